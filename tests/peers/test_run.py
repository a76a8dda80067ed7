"""A peer's program: whatever it does, the run goes on, and nothing of it is left."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kit.processes import wait_until
from tests.peers import run as running
from tests.peers.run import PeerError, run


def python(code: str, timeout: float = 20) -> str:
    return run([sys.executable, "-c", code], Path.cwd(), timeout)


def test_the_output_is_returned() -> None:
    assert python("print('create: #1')") == "create: #1\n"


def test_bytes_that_are_not_text_are_escaped() -> None:
    assert python(r"import os; os.write(1, b'get: \xff\xfe\n')") == "get: \\xff\\xfe\n"


def test_a_program_that_fails_is_an_error_with_its_message() -> None:
    with pytest.raises(PeerError, match="ended with 1: it broke"):
        python("raise SystemExit('it broke')")


def test_a_program_that_is_killed_is_an_error() -> None:
    with pytest.raises(PeerError, match="ended with -9"):
        python("import os; os.kill(os.getpid(), 9)")


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="no-such-program: No such file"):
        run([str(tmp_path / "no-such-program")], tmp_path, 1)


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(60)", "import os, time; os.close(1); os.close(2); time.sleep(60)"]
)
def test_a_program_that_hangs_is_an_error(code: str) -> None:
    with pytest.raises(PeerError, match=r"took longer than 0\.3 s"):
        python(code, 0.3)


def test_a_program_that_prints_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "OUTPUT_LIMIT", 100_000)
    with pytest.raises(PeerError, match="printed more than 100,000 bytes"):
        python("while True: print('garbage' * 1000)")


def test_a_program_has_no_input() -> None:
    assert python("import sys; print(repr(sys.stdin.read()))") == "''\n"


def test_no_child_of_a_program_outlives_the_call(tmp_path: Path) -> None:
    note = tmp_path / "child"
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(note)!r}, "w").write(str(child.pid))
"""
    began = time.monotonic()
    with pytest.raises(PeerError, match="took longer than 3 s"):
        python(code, 3)  # the child holds the pipe
    assert time.monotonic() - began < 30
    child = int(note.read_text())
    wait_until(lambda: not _is_running(child), "the end of the child", 10)


def _is_running(process: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(process, 0)
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    return False
