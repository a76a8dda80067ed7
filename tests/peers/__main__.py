"""``make peers``: try the gateway with software that this project has not written, and write docs/compatibility.md."""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.peers import barbican, cosmian, cyphera, haproxy, kmip_go, kmip_rust, mongodb, pykmip, simulated, swift
from tests.peers.page import page
from tests.peers.peer import PeerError
from tests.peers.trial import Outcome, Trial, notices, run_trial

_ROOT: Final = Path(__file__).parents[2]
_BUILDS: Final = _ROOT / ".peers"
_PAGE: Final = _ROOT / "docs" / "compatibility.md"

TRIALS: Final = (
    Trial(kmip_go.CLIENT, simulated.SERVER),
    Trial(kmip_go.CLIENT, kmip_go.SERVER),
    Trial(pykmip.CLIENT, simulated.SERVER),
    Trial(pykmip.CLIENT, pykmip.SERVER),
    Trial(pykmip.CLIENT, pykmip.SERVER, key_type="rsa"),
    Trial(kmip_go.CLIENT, simulated.SERVER, front=haproxy.FRONT),
    Trial(pykmip.CLIENT, pykmip.SERVER, front=haproxy.FRONT),
    Trial(swift.CLIENT, pykmip.SERVER),
    Trial(barbican.CLIENT, pykmip.SERVER),
    Trial(mongodb.CLIENT, simulated.SERVER),
    Trial(mongodb.CLIENT, pykmip.SERVER),
    Trial(kmip_go.CLIENT, cosmian.SERVER),
    Trial(pykmip.CLIENT, cosmian.SERVER),
    Trial(mongodb.CLIENT, cosmian.SERVER),
    Trial(cyphera.CLIENT, simulated.SERVER),
    Trial(cyphera.CLIENT, pykmip.SERVER),
    Trial(kmip_rust.CLIENT, simulated.SERVER),
    Trial(kmip_rust.CLIENT, pykmip.SERVER),
)
#: Trials that must notice a fault of the gateway, each client once.
FAULTY: Final = (
    (TRIALS[0], "cut"),
    (TRIALS[0], "mark"),
    *((trial, "cut") for trial in {trial.client.software.name: trial for trial in reversed(TRIALS[1:])}.values()),
)


def main() -> int:
    """Run the trials; return the exit status: 1 if there is a difference without a reason, or a driver failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("--save", action="store_true", help="write docs/compatibility.md; not with --only")
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds after which no trial begins")
    parser.add_argument("--only", default="", help="run the trials with this text in their name")
    arguments = parser.parse_args()
    if arguments.save and arguments.only:
        parser.error("--save needs all trials")
    failed = False
    end = time.monotonic() + arguments.within
    outcomes: list[Outcome] = []
    for trial in TRIALS:
        if arguments.only not in trial.name:
            continue
        began = time.monotonic()
        if began > end:
            print(f"{trial.name}: LEFT OUT: no time")
            continue
        try:
            with tempfile.TemporaryDirectory() as directory:
                outcome = run_trial(trial, _BUILDS, Path(directory))
        except (PeerError, AssertionError) as error:
            print(f"{trial.name}: FAILED: {error}")
            failed = True
            continue
        outcomes.append(outcome)
        _print(outcome, time.monotonic() - began)
        failed = failed or not outcome.is_good
    tried = [outcome.trial for outcome in outcomes if not outcome.skipped]
    for trial, fault in FAULTY:
        if time.monotonic() < end and trial in tried:
            with tempfile.TemporaryDirectory() as directory:
                seen = notices(trial, fault, _BUILDS, Path(directory))
            print(f"{trial.name}, with a gateway that has the fault {fault!r}: {'noticed' if seen else 'NOT NOTICED'}")
            failed = failed or not seen
    if arguments.save and not failed:
        _PAGE.write_text(page(outcomes))
    return int(failed)


def _print(outcome: Outcome, seconds: float) -> None:
    if outcome.skipped:
        print(f"{outcome.trial.name}: LEFT OUT: {outcome.skipped}")
        return
    print(
        f"{outcome.trial.name}: {len(outcome.lines)} results, {len(outcome.differences)} differences, {seconds:.0f} s"
    )
    for difference in outcome.differences:
        print(f"  {difference.workers} TLS workers: {difference.reason or 'UNEXPECTED'}")
        print(f"    direct:  {difference.direct}")
        print(f"    through: {difference.through}")


if __name__ == "__main__":
    sys.exit(main())
