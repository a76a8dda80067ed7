"""``make peers``: try the gateway with software that this project has not written, and write docs/compatibility.md."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.peers import barbican, cosmian, cyphera, haproxy, kmip_go, kmip_rust, mongodb, pykmip, simulated, swift
from tests.peers.page import page
from tests.peers.run import PeerError
from tests.peers.trial import Outcome, Trial, run_trial

_ROOT: Final = Path(__file__).parents[2]
_BUILDS: Final = _ROOT / ".peers"
_PAGE: Final = _ROOT / "docs" / "compatibility.md"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Differences of a trial that are printed.
_SHOWN: Final = 20

#: The first trial of each client has faults for it to notice.
_FAULTS: Final = ("cut", "another")
TRIALS: Final = (
    Trial(kmip_go.CLIENT, simulated.SERVER, faults=(*_FAULTS, "mark")),
    Trial(kmip_go.CLIENT, kmip_go.SERVER),
    Trial(pykmip.CLIENT, simulated.SERVER, faults=_FAULTS),
    Trial(pykmip.CLIENT, pykmip.SERVER),
    Trial(pykmip.CLIENT, pykmip.SERVER, key_type="rsa"),
    Trial(kmip_go.CLIENT, simulated.SERVER, front=haproxy.FRONT),
    Trial(pykmip.CLIENT, pykmip.SERVER, front=haproxy.FRONT),
    Trial(swift.CLIENT, pykmip.SERVER, faults=_FAULTS),
    Trial(barbican.CLIENT, pykmip.SERVER, faults=_FAULTS),
    Trial(barbican.CLIENT, cosmian.SERVER),
    Trial(mongodb.CLIENT, simulated.SERVER, faults=_FAULTS),
    Trial(mongodb.CLIENT, pykmip.SERVER),
    Trial(kmip_go.CLIENT, cosmian.SERVER),
    Trial(pykmip.CLIENT, cosmian.SERVER),
    Trial(mongodb.CLIENT, cosmian.SERVER),
    Trial(cyphera.CLIENT, simulated.SERVER, faults=_FAULTS),
    Trial(cyphera.CLIENT, pykmip.SERVER),
    Trial(kmip_rust.CLIENT, simulated.SERVER, faults=_FAULTS),
    Trial(kmip_rust.CLIENT, pykmip.SERVER),
    Trial(kmip_rust.CLIENT, cosmian.SERVER),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials; return the exit status: 1 if there is a difference without a reason, or something failed.

    Trials that are left out do not change the exit status; the last lines name them.
    """
    options = _options(arguments)
    end = time.monotonic() + options.within
    chosen = [trial for trial in TRIALS if options.only.casefold() in trial.name.casefold()]
    outcomes: list[Outcome] = []
    failed: list[str] = []
    for trial in chosen:
        began = time.monotonic()
        outcome = Outcome(trial, skipped="no time") if began > end else _try(trial)
        if outcome is None:
            failed.append(trial.name)
            continue
        outcomes.append(outcome)
        _print(outcome, time.monotonic() - began)
        if not outcome.is_good:
            failed.append(trial.name)
    tried = [outcome.trial for outcome in outcomes if not outcome.skipped]
    left_out = [f"{outcome.trial.name}: {outcome.skipped}" for outcome in outcomes if outcome.skipped]
    for text in left_out:
        print(f"LEFT OUT: {text}")
    for text in failed:
        print(f"FAILED: {text}")
    print(f"{len(tried)} of {len(chosen)} trials ran; {len(left_out)} left out, {len(failed)} failed", flush=True)
    if options.save and failed:
        print(f"{_PAGE.name} was not written")
    elif options.save:
        _PAGE.write_text(page(outcomes))
    return int(bool(failed))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("--save", action="store_true", help="write docs/compatibility.md; needs all trials")
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds after which no trial begins")
    parser.add_argument("--only", default="", help="run the trials with this text in their name")
    options = parser.parse_args(arguments)
    if options.save and (options.only or options.within != float("inf")):
        parser.error("--save needs all trials: leave out --only and --within")
    if not any(options.only.casefold() in trial.name.casefold() for trial in TRIALS):
        parser.error(f"no trial has {options.only!r} in its name; the names: {'; '.join(each.name for each in TRIALS)}")
    return options


def _try(trial: Trial) -> Outcome | None:
    """Return the outcome of a trial, or None if something failed, with its message printed."""
    try:
        with tempfile.TemporaryDirectory() as directory:
            return run_trial(trial, _BUILDS, Path(directory))
    except (PeerError, AssertionError, OSError) as error:
        print(f"{trial.name}: FAILED: {error}", flush=True)
        return None


def _print(outcome: Outcome, seconds: float) -> None:
    if outcome.skipped:
        print(f"{outcome.trial.name}: LEFT OUT: {outcome.skipped}", flush=True)
        return
    print(
        f"{outcome.trial.name}: {len(outcome.lines)} results, {outcome.errors} of them errors,"
        f" {len(outcome.differences)} differences, {seconds:.0f} s"
    )
    for difference in outcome.differences[:_SHOWN]:
        print(f"  {difference.workers} TLS workers: {difference.reason or 'UNEXPECTED'}")
        print(f"    direct:  {difference.direct}")
        print(f"    through: {difference.through}")
    for fault in outcome.trial.faults:
        print(f"  a gateway with the fault {fault!r}: {'NOT NOTICED' if fault in outcome.unnoticed else 'noticed'}")
    if len(outcome.differences) > _SHOWN:
        print(f"  and {len(outcome.differences) - _SHOWN} more")
    sys.stdout.flush()


def _end(number: int, _frame: object) -> None:
    """End the run as by Ctrl-C, so that each process that it started ends, too."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    for each in _SIGNALS:
        signal.signal(each, _end)
    sys.exit(main())
