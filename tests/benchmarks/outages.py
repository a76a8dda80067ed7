"""Measure the cost of outages and slow key managers to clients: one table, from real processes.

Every row starts simulated key managers and a gateway as processes of their own, with certificates of its own, and lets
clients work for a bounded time. The rows use the command line, the configuration and /metrics only, so that two
revisions can be compared: ``--json`` keeps the figures of a run, and ``--before`` shows them beside the figures of the
next run.
"""

import json
import math
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import click
import trio
from kmip_lab.certs import Authority
from kmip_lab.faults import Fault, FaultSetting, write_faults
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import get_key

from gateway.errors import GatewayError
from gateway.kmip import compose
from gateway.kmip.spec import Operation
from tests.benchmarks.crowd import Reads, ask_once, ask_until, context_of, counters_of, created_key
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_manager_processes,
    running_key_managers,
)

Figures = dict[str, float | str]

_LOOK: Final = 0.25  # s between two looks at /metrics; key managers look at their file of faults more often
_EXTRA: Final = """
[deadlines]
drain = 0.5
[log]
level = "error"
"""


class Row(NamedTuple):
    """An experiment: its description in the table, the seconds that it may take, and its function."""

    what: str
    seconds: float
    measure: Callable[[Certificates], Awaitable[Figures]]


def _settings(ports: Sequence[int], names: Sequence[str], backend: str = "") -> GatewaySettings:
    """Return default settings with an identity for each name; common names begin with the name and a hyphen."""
    identities = [Identity(name, f'{{ subject_cn = "{name}-*" }}', credential=name) for name in names]
    return GatewaySettings(ports, identities, backend=backend, extra=_EXTRA)


@contextmanager
def _gateway(
    certificates: Certificates,
    key_managers: Sequence[str],
    identities: Sequence[str],
    *options: str,
    backend: str = "",
    faults: Sequence[FaultSetting] = (),
) -> Iterator[Gateway]:
    """Run a gateway before key managers in one process, which all have the same faults."""
    file = certificates.path(f"faults-{key_managers[0]}.json")
    write_faults(file, dict.fromkeys(key_managers, faults))
    with (
        running_key_managers(certificates, key_managers, "--faults", str(file), *options) as ports,
        running_gateway(certificates, _settings(ports, identities, backend), is_measured=True) as gateway,
    ):
        yield gateway


# a: slow reads --------------------------------------------------------------------------------------------------------

_SLOW: Final = FaultSetting(Fault.SLOW, seconds=6.0, operations=frozenset({Operation.GET}))
_SLOW_FOR: Final = 60.0  # s
_SLOW_CLIENTS: Final = 40


async def slow_reads(certificates: Certificates) -> Figures:
    """Measure two and four key managers at the same time: both gateways are nearly idle."""
    found: dict[int, Figures] = {}
    with ExitStack() as stack:
        gateways = {
            number: stack.enter_context(
                _gateway(certificates, [f"kms-{number}-{one}" for one in range(number)], ["reader"], faults=[_SLOW])
            )
            for number in (2, 4)
        }
        async with trio.open_nursery() as nursery:
            for number, gateway in gateways.items():
                nursery.start_soon(_read_slowly, gateway, number, found)
    return {name: value for number in sorted(found) for name, value in found[number].items()}


async def _read_slowly(gateway: Gateway, number: int, found: dict[int, Figures]) -> None:
    context, reads = context_of(gateway, "reader-1"), Reads()
    frame = get_key(await created_key(gateway, "reader-1"))
    before = await counters_of(gateway)
    until = trio.current_time() + _SLOW_FOR
    async with trio.open_nursery() as nursery:
        for _ in range(_SLOW_CLIENTS):
            nursery.start_soon(partial(ask_until, gateway, context, frame, reads, until=until))
    after = await counters_of(gateway)
    ejections = "kmip_gateway_backend_ejections_total"
    found[number] = {
        f"{number} key managers: reads": len(reads.ended),
        f"{number} key managers: failed reads": reads.failed,
        f"{number} key managers: longest read, s": reads.longest,
        f"{number} key managers: ejections": after.total(ejections) - before.total(ejections),
        f"{number} key managers: handshakes": after.handshakes - before.handshakes,
    }


# b: a key manager is killed -------------------------------------------------------------------------------------------

_KILLED_CLIENTS: Final = 200
_KILLED_OPERATION: Final = FaultSetting(Fault.SLOW, seconds=0.2, operations=frozenset({Operation.GET}))
_BEFORE_KILL: Final = 8.0  # s of reading, sessions and clients' handshakes included
_AFTER_KILL: Final = 10.0  # s


async def killed(certificates: Certificates) -> Figures:
    """Kill one of two key managers while 200 clients read."""
    with running_key_manager_processes(certificates, ["kms-1", "kms-2"]) as key_managers:
        ports = [key_manager.port for key_manager in key_managers]
        with running_gateway(
            certificates, _settings(ports, ["reader"], "max_sessions = 256"), is_measured=True
        ) as gateway:
            frame = get_key(await created_key(gateway, "reader-1"))
            for key_manager in key_managers:
                key_manager.set_faults(_KILLED_OPERATION)
            await trio.sleep(_LOOK)
            context, reads = context_of(gateway, "reader-1"), Reads()
            until = trio.current_time() + _BEFORE_KILL + _AFTER_KILL
            async with trio.open_nursery() as nursery:
                for _ in range(_KILLED_CLIENTS):
                    nursery.start_soon(partial(ask_until, gateway, context, frame, reads, until=until))
                await trio.sleep(_BEFORE_KILL)
                before = await counters_of(gateway)
                killed_at = trio.current_time()
                key_managers[0].kill()
    after = reads.since(killed_at)
    return {
        "in flight at the key manager": before.total("kmip_gateway_sessions", backend="kms-1", state="busy"),
        "reads in the 8 s before": len(reads.ended) - len(after.ended),
        "failed reads in the 8 s before": reads.failed - after.failed,
        "reads in the 10 s after": len(after.ended),
        "failed reads in the 10 s after": after.failed,
        "longest read, s": after.longest,
    }


# c: a start with many identities --------------------------------------------------------------------------------------

_IDENTITIES: Final = 200
_HANDSHAKE_COST: Final = 0.05  # s, one at a time: 10 s for all of them
_WARM_WITHIN: Final = 95.0  # s


async def start(certificates: Certificates) -> Figures:
    """Start a gateway before a key manager whose handshakes are slow and serial."""
    names = [f"app{number:03}" for number in range(_IDENTITIES)]
    for name in names:
        certificates.credential(name)  # made here, so that only the start is timed
    with running_key_managers(certificates, ["kms-1"], "--handshake-cost", str(_HANDSHAKE_COST)) as ports:
        began = time.monotonic()
        with running_gateway(
            certificates, _settings(ports, names, f"max_sessions = {_IDENTITIES + 64}"), is_measured=True
        ) as gateway:
            idle, most_idle, most_opening = 0.0, 0.0, 0.0
            while idle < _IDENTITIES and time.monotonic() - began < _WARM_WITHIN:
                await trio.sleep(_LOOK)
                counters = await counters_of(gateway)
                idle = counters.total("kmip_gateway_sessions", state="idle")
                most_idle = max(most_idle, idle)
                most_opening = max(most_opening, counters.total("kmip_gateway_sessions", state="opening"))
            took = time.monotonic() - began
    return {
        "seconds until all are warm": took if idle >= _IDENTITIES else f"more than {_WARM_WITHIN:g}",
        "most warm sessions at once": most_idle,
        "most sessions being opened at once": most_opening,
        "handshakes": counters.handshakes,
        "handshakes given up": counters.failed_opens,
    }


# d: a refused credential ----------------------------------------------------------------------------------------------

_REFUSED_CLIENTS: Final = 8
_REFUSED_FOR: Final = 15.0  # s
_RETRY_PAUSE: Final = 0.01  # s: at once, plus the time that a client itself takes
_WELCOME_CLIENTS: Final = 4
_WELCOME_PAUSE: Final = 0.05  # s


async def refused(certificates: Certificates) -> Figures:
    """Measure clients with a refused credential, and clients with a valid credential at the same time."""
    Authority("A stranger").issue_client("refused").write(*certificates.pair("credential-refused"))
    refusals, reads = Reads(), Reads()
    with _gateway(certificates, ["kms-1"], ["welcome", "refused"]) as gateway:
        frame = get_key(await created_key(gateway, "welcome-1"))
        contexts = {name: context_of(gateway, f"{name}-1") for name in ("welcome", "refused")}
        before = await counters_of(gateway)
        until = trio.current_time() + _REFUSED_FOR
        crowds = [
            ("welcome", _WELCOME_CLIENTS, reads, _WELCOME_PAUSE),
            ("refused", _REFUSED_CLIENTS, refusals, _RETRY_PAUSE),
        ]
        async with trio.open_nursery() as nursery:
            for name, number, ended, pause in crowds:
                ask = partial(ask_until, gateway, contexts[name], frame, ended, until=until, pause=pause)
                for _ in range(number):
                    nursery.start_soon(ask)
            await trio.sleep_until(until)
            after = await counters_of(gateway)
    return {
        "handshakes a second": (after.handshakes - before.handshakes) / _REFUSED_FOR,
        "refused requests": refusals.failed,
        "other identity: requests": len(reads.ended),
        "other identity: failed requests": reads.failed,
        "other identity: longest request, s": reads.longest,
    }


# e: abandoned requests ------------------------------------------------------------------------------------------------

_ABANDONED: Final = 100
_ABANDONED_AFTER: Final = 0.2  # s
_QUIET: Final = 2.0  # s in which the other identity's warm session is idle, so that it counts as unused
_ABANDONED_REQUEST: Final = FaultSetting(Fault.SLOW, seconds=20.0, operations=frozenset({Operation.LOCATE}))
_OTHERS_FOR: Final = 20  # s, and as many reads


async def abandoned(certificates: Certificates) -> Figures:
    """Let 100 clients abandon slow requests, while a client of a second identity reads once a second."""
    locate = compose.encode_request((1, 2), [compose.Ask(Operation.LOCATE, b"")])
    reads = Reads()
    limit = "max_sessions = 32"
    with _gateway(certificates, ["kms-1"], ["calm", "busy"], backend=limit, faults=[_ABANDONED_REQUEST]) as gateway:
        calm, busy = context_of(gateway, "calm-1"), context_of(gateway, "busy-1")
        frame = get_key(await created_key(gateway, "calm-1"))

        async def leave(connected: trio.Event, go: trio.Event) -> None:
            async with connect(gateway.address, busy, server_name="localhost") as client:
                connected.set()
                await go.wait()
                await client.stream.send_all(locate)
                await trio.sleep(_ABANDONED_AFTER)

        async def read() -> None:
            with suppress(GatewayError, OSError):
                async with connect(gateway.address, calm, server_name="localhost") as client:
                    await ask_once(client, frame, reads)

        go = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(_ABANDONED):
                connected = trio.Event()
                nursery.start_soon(leave, connected, go)
                await connected.wait()
            await trio.sleep(_QUIET)
            go.set()
        async with trio.open_nursery() as nursery:
            for _ in range(_OTHERS_FOR):
                nursery.start_soon(read)
                await trio.sleep(1)
    return {
        "other identity: reads": len(reads.ended),
        "other identity: failed reads": reads.failed,
        "other identity: longest wait, s": reads.longest,
    }


# The table ------------------------------------------------------------------------------------------------------------

ROWS: Final = {
    "a": Row("reads of 6 s, 40 clients, 60 s", 130, slow_reads),
    "b": Row("kill -9 of one of two key managers, 200 clients reading", 80, killed),
    "c": Row("start with 200 identities, handshakes of 50 ms one at a time", 110, start),
    "d": Row("a refused credential, 8 clients that retry at once, 15 s", 40, refused),
    "e": Row("100 abandoned requests of 20 s, max_sessions 32, another identity reads for 20 s", 75, abandoned),
}


async def measure(row: Row) -> Figures:
    """Measure one row within its time."""
    with tempfile.TemporaryDirectory(prefix="kmip-gateway-outages-") as directory:
        try:
            with trio.fail_after(row.seconds):
                return await row.measure(Certificates(Path(directory)))
        except trio.TooSlowError:
            return {"not finished, s": row.seconds}


def table(
    found: Mapping[str, Figures], before: Mapping[str, Figures] | None = None, rows: Mapping[str, Row] = ROWS
) -> str:
    """Return a Markdown table of figures by row; with an earlier run, its figures get a column."""
    lines = ["| row | what | figure | value |", "|---|---|---|---:|"]
    if before is not None:
        lines = ["| row | what | figure | before | value |", "|---|---|---|---:|---:|"]
    for key, figures in found.items():
        what = rows[key].what
        for name, value in figures.items():
            cells = [key, what, name, _shown(value)]
            if before is not None:
                cells.insert(3, _shown(before.get(key, {}).get(name, "")))
            lines.append(f"| {' | '.join(cells)} |")
            what = ""
    return "\n".join(lines)


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "not exported"
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}"


_FILE: Final = click.Path(dir_okay=False, path_type=Path)


def only_option(rows: Mapping[str, Row]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option --only, which names rows of a measurement, with commas between them."""

    def chosen(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
        keys = [key.strip() for key in value.split(",")]
        if unknown := [key for key in keys if key not in rows]:
            raise click.BadParameter(f"there is no row {', '.join(unknown)}; rows are {', '.join(rows)}")
        return keys

    return click.option(
        "--only", default=",".join(rows), callback=chosen, show_default=True, help="The rows to measure."
    )


@click.command()
@only_option(ROWS)
@click.option("--json", "save", type=_FILE, help="Write the figures to this file, too.")
@click.option("--before", type=_FILE, help="A file of --json, to show its figures beside the new ones.")
def main(only: list[str], save: Path | None, before: Path | None) -> None:
    """Measure outages with real processes, some four minutes for all rows, and print a Markdown table.

    The handshakes are counted by the gateway, successful or not: handshakes of its pools, without health checks.
    """
    earlier = None if before is None else json.loads(before.read_text())
    found: dict[str, Figures] = {}
    for key in only:
        began = time.monotonic()
        found[key] = trio.run(measure, ROWS[key])
        click.echo(f"row {key}: {time.monotonic() - began:.0f} s", err=True)
        if save is not None:
            save.write_text(json.dumps(found, indent=2) + "\n")
    click.echo(table(found, earlier))


if __name__ == "__main__":
    main()
