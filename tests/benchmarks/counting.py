"""Count instructions: run cases under valgrind, and read its counts.

A case is run twice, few times and many times: the difference is the cost of one more request, without the start of
Python, the imports and the warming up. All cases are forked from one process, so that imports are made once.
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from gateway import log
from tests.benchmarks.parts import decode_requests, decode_responses, dispatch
from tests.benchmarks.serving import Role, Size, certificates, serve_audited, serve_fresh, serve_kept

_REFERENCES: Final = re.compile(r"I +refs: +([0-9,]+)")


class Case(NamedTuple):
    """Work to count, which is done ``few`` and ``many`` times."""

    work: Callable[[int, Size], None]
    few: int
    many: int


CASES: Final = {
    "decode_request": Case(decode_requests, 500, 2500),
    "decode_response": Case(decode_responses, 500, 2500),
    "dispatch": Case(dispatch, 200, 1200),
    "kept": Case(serve_kept, 200, 1700),
    "audited": Case(serve_audited, 200, 1700),
    "fresh": Case(serve_fresh, 10, 110),
    "kept_core": Case(partial(serve_kept, role=Role.CORE), 200, 1700),
    "kept_worker": Case(partial(serve_kept, role=Role.WORKER), 200, 1700),
    "fresh_core": Case(partial(serve_fresh, role=Role.CORE), 10, 210),
    "fresh_worker": Case(partial(serve_fresh, role=Role.WORKER), 10, 110),
}
#: As kept: large messages take their time; and of many handshakes before the requests, the sum varies by some 10 M.
_ALL: Final = {
    **CASES,
    "large": Case(serve_kept, 20, 220),
    "crowded": Case(serve_kept, 200, 4700),
    "crowded_core": Case(partial(serve_kept, role=Role.CORE), 200, 4700),
    "crowded_worker": Case(partial(serve_kept, role=Role.WORKER), 200, 4700),
}


def count(wanted: Mapping[str, tuple[str, Size]]) -> dict[str, float]:
    """Return the instructions in user space that each case costs per request. Needs valgrind.

    The cases are pairs of name and size; the result has the same keys.
    """
    with tempfile.TemporaryDirectory(prefix="kmip-gateway-instructions-") as directory:
        environment = dict(os.environ, PYTHONHASHSEED="0")
        valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
        command = [*valgrind, f"--log-file={directory}/%p.count", sys.executable, "-m", "tests.benchmarks.counting"]
        arguments = [f"{name},{','.join(map(str, size))}" for name, size in wanted.values()]
        ended = subprocess.run([*command, *arguments], env=environment, stdout=subprocess.PIPE, check=True, text=True)
        counts = [_read(Path(directory, f"{process}.count")) for process in ended.stdout.split()]
    pairs = zip(wanted.items(), counts[::2], counts[1::2], strict=True)
    return {key: (many - few) / (_ALL[name].many - _ALL[name].few) for (key, (name, _size)), few, many in pairs}


def _read(path: Path) -> int:
    found = _REFERENCES.search(path.read_text())
    if found is None:
        raise RuntimeError(f"valgrind has counted nothing:\n{path.read_text()}")
    return int(found[1].replace(",", ""))


def _main(arguments: list[str]) -> None:
    """Run cases, each few and many times in a process of its own; print the numbers of these processes."""
    certificates()
    for argument in arguments:
        name, *size = argument.split(",")
        case = _ALL[name]
        for times in (case.few, case.many):
            process = os.fork()
            if process == 0:
                _run(case, times, Size(*map(int, size)))
            _process, status = os.waitpid(process, 0)
            if status:
                sys.exit(f"{name} failed")
            print(process, flush=True)


def _run(case: Case, times: int, size: Size) -> None:
    status = 1
    try:
        log.configure("warning", "text")  # standard output is for the numbers of processes
        random.seed(0)
        case.work(times, size)
        status = 0
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    _main(sys.argv[1:])
