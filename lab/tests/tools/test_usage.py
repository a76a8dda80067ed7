"""Processor time and memory, read from real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kmip_lab.tools import usage

_BUSY = "import time, sys\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\nsys.stdin.read()"


def ticks(number: int) -> float:
    """User and system time in seconds, as /proc has them."""
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_all_processes_of_a_session_are_found_with_their_time_and_memory() -> None:
    command = ["sh", "-c", f'{sys.executable} -c "$0"; true', _BUSY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        found = usage.processes([process.pid])
        assert process.pid in found
        assert len(found) == 2
        assert usage.cpu_seconds(found) >= 0.2
        by_ticks = sum(map(ticks, found))
        assert usage.cpu_seconds(found) == pytest.approx(by_ticks, abs=0.05)  # two times two, each cut to a hundredth
        assert usage.memory(found) > 1 << 20
        process.stdin.close()
    assert usage.processes([process.pid]) == []
    assert os.getpid() in usage.processes([os.getsid(0)])


def test_without_a_clock_of_the_process_its_ticks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_clock(_number: int) -> float:
        raise OSError

    exact = usage.cpu_seconds([os.getpid()])
    monkeypatch.setattr(time, "clock_gettime", no_clock)
    assert usage.cpu_seconds([os.getpid()]) == pytest.approx(exact, abs=0.05)


def test_the_share_of_busy_processors_is_between_none_and_all() -> None:
    use = usage.MachineUse()
    assert use.busy() == 0 or 0 <= use.busy() <= 1
    time.sleep(0.05)
    assert 0 <= use.busy() <= 1


def test_other_programs_are_told_from_this_one_and_its_children() -> None:
    use = usage.MachineUse()
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    own = use.busy() * (os.cpu_count() or 1) - use.of_others()
    assert own > 0 or use.busy() == 0  # all of a busy machine's time may be that of others, but for this


def test_children_are_found_in_the_order_in_which_they_began() -> None:
    script = "sleep 60 & echo $!; sleep 61 & echo $!; read _; kill $(jobs -p)"
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        begun = [int(process.stdout.readline()) for _ in range(2)]
        assert usage.children(process.pid) == begun
        process.stdin.write(b"\n")


def test_pages_that_a_fork_shares_count_once() -> None:
    script = """
import os, sys
data = bytearray(os.urandom(1 << 24))
if child := os.fork():
    print(child, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        numbers = [process.pid, int(process.stdout.readline())]
        for of in (usage.memory, usage.whole_memory):
            assert 1 << 24 < of(numbers) < 2 << 24
            assert of(numbers[:1]) < 1 << 24
        assert usage.memory(numbers) < usage.whole_memory(numbers)
        process.stdin.close()
