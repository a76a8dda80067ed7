"""``make peers``: try the gateway with software that this project has not written, and write docs/compatibility.md."""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.peers import barbican, haproxy, kmip_go, kmip_rust, mongodb, pykmip, simulated, swift
from tests.peers.peer import PeerError
from tests.peers.trial import Outcome, Trial, run_trial

_ROOT: Final = Path(__file__).parents[2]
_BUILDS: Final = _ROOT / ".peers"

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
    Trial(kmip_rust.CLIENT, simulated.SERVER),
    Trial(kmip_rust.CLIENT, pykmip.SERVER),
)


def main() -> int:
    """Run the trials; return the exit status: 1 if there is a difference without a reason, or a driver failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("--only", default="", help="run the trials with this text in their name")
    arguments = parser.parse_args()
    failed = False
    for trial in TRIALS:
        if arguments.only not in trial.name:
            continue
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as directory:
                outcome = run_trial(trial, _BUILDS, Path(directory))
        except (PeerError, AssertionError) as error:
            print(f"{trial.name}: FAILED: {error}")
            failed = True
            continue
        _print(outcome, time.monotonic() - began)
        failed = failed or not outcome.is_good
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
