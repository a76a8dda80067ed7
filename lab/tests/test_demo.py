"""The demo, as a newcomer types it; short."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from kmip_lab.demo import DemoPhase, _invite, _report
from kmip_lab.tools.programs import prepare, programs
from kmip_lab.tools.usage import processes
from rich.console import Console


def test_the_demo_prints_the_ratio_and_survives_the_end_of_a_key_manager() -> None:
    command = [sys.executable, "-m", "kmip_lab", "demo", "--seconds", "4", "--clients", "4"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    printed = " ".join(ended.stdout.split())
    found = re.search(r"ratio ([0-9.]+) x", printed)
    assert found is not None
    assert float(found[1]) > 1
    assert re.search(r"london-002 was killed while the clients went on: [1-9][0-9]* Gets, 0 errors", printed)
    assert "openssl" not in printed  # no commands with certificates that are removed
    assert len(ended.stdout.splitlines()) <= 18


def test_ctrl_c_ends_the_demo_and_all_its_programs() -> None:
    command = [sys.executable, "-m", "kmip_lab", "demo", "--clients", "1"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may have been started with it ignored
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdout is not None
        process.stdout.readline()  # printed when all programs are ready
        children = [int(number) for number in _children(process.pid)]
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=30)
    assert (process.returncode, complaints) == (0, "")
    assert len(children) == 5
    assert processes(children) == []


def _children(number: int) -> list[str]:
    """Return the children of all threads of a process: trio starts processes in threads."""
    tasks = Path(f"/proc/{number}/task").glob("*/children")
    return [child for task in tasks for child in task.read_text().split()]


@pytest.mark.parametrize(("busy", "is_said"), [(0.89, False), (0.95, True)])
def test_the_demo_says_when_the_processors_were_the_limit(busy: float, is_said: bool) -> None:
    console = Console(width=100)
    straight, through = (DemoPhase("", [0.1], seconds=1.0, busy=share) for share in (0.99, busy))
    with console.capture() as printed:
        _report(console, [straight, through, DemoPhase("")])
    assert ("The processors were the limit" in printed.get()) is is_said


async def test_the_printed_command_that_measures_the_demo_works(tmp_path: Path) -> None:
    site = prepare(tmp_path)
    console = Console(record=True, width=60)  # a narrow terminal breaks no line of a command
    _invite(site, console)
    (command,) = (line for line in console.export_text().splitlines() if " speed " in line)
    words = [{"1-10": "1,2"}.get(word, word) for word in shlex.split(command)]
    async with programs(site):
        ended = await trio.run_process([*words, "--repeat=3"], capture_stdout=True, capture_stderr=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "a fresh session for every operation" in ended.stdout.decode()
