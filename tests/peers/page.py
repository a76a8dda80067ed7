"""docs/compatibility.md: the outcomes of the trials as tables, and, apart from them, tests/peers/not_tried.md."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.peers.trial import WORKERS, Outcome

NOT_TRIED: Final = Path(__file__).with_name("not_tried.md")
HEAD: Final = """\
# Compatibility

This page is written by `make peers`: do not edit it. The part about products that were not tried is
`tests/peers/not_tried.md`.

Each client below was put before a key manager, directly and then through the gateway: once with one process, once with
two TLS workers. A cluster dial and HAProxy use two gateways. The client's driver prints a line for each result, such as
the number of objects found, or whether a value came back unchanged. Some results are errors: of operations that the
client tried and the key manager does not know, or that must fail. "equal" means that each line through the gateway,
also each error, was the same as the direct one.

`make peers` also gives the gateway faults, and fails unless each client notices: answers that are cut short, answers
that are another request's, and, for the client that sends Correlation Values, marks that stay in requests.
"""


def page(outcomes: Sequence[Outcome]) -> str:
    """Return the text of the page."""
    return "\n".join((HEAD, *_results(outcomes), *_covered(outcomes), NOT_TRIED.read_text()))


def _results(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "## What was tried\n"
    yield (
        "| client | version | before the gateway | key manager | version | results | errors among them | one process"
        " | two TLS workers |"
    )
    yield "|---|---|---|---|---|---:|---:|---|---|"
    reasons: list[str] = []
    for outcome in outcomes:
        trial, client, server = outcome.trial, outcome.trial.client.software, outcome.trial.server.software
        keys = "" if trial.key_type == "ecdsa" else f", {trial.key_type.upper()} keys"
        front = (
            "" if trial.front is None else f"{trial.front.software.name} {trial.front.software.version}, PROXY protocol"
        )
        cells = [client.name, client.version, front, f"{server.name}{keys}", server.version]
        if outcome.skipped:
            yield f"| {' | '.join(cells)} | | | left out: {outcome.skipped} | |"
            continue
        cells += [str(len(outcome.lines)), str(outcome.errors)]
        for workers in WORKERS:
            different = [each for each in outcome.differences if each.workers == workers]
            notes = []
            for difference in different:
                if difference.reason not in reasons:
                    reasons.append(difference.reason)
                notes.append(f"[{reasons.index(difference.reason) + 1}]")
            cells.append(f"{len(different)} different {' '.join(notes)}" if different else "equal")
        yield f"| {' | '.join(cells)} |"
    for number, reason in enumerate(reasons, 1):
        yield f"\n[{number}] {reason[:1].upper()}{reason[1:] or 'NO REASON IS KNOWN'}."
    yield ""


def _covered(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "## What each client did\n"
    yield "| client | language | what it did |"
    yield "|---|---|---|"
    for client in {outcome.trial.client.software.name: outcome.trial.client for outcome in outcomes}.values():
        yield f"| {client.software.name} | {client.software.language} | {client.covers} |"
    yield ""
