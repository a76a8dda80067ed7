"""The demo and the measurement, as a newcomer types them; short."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import trio
from kmip_lab.demo import _invite
from kmip_lab.programs import prepare, programs
from rich.console import Console


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "kmip_lab", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_demo_ends_by_itself_and_prints_the_ratio() -> None:
    said = run("demo", "--seconds", "3", "--clients", "4")
    found = re.search(r"ratio ([0-9.]+) x", said)
    assert found is not None
    assert float(found[1]) > 1
    assert "openssl" not in said  # no commands with certificates that are gone


async def test_the_command_that_measures_the_demo_works_as_it_is_printed(tmp_path: Path) -> None:
    place = prepare(tmp_path)
    console = Console(record=True, width=60)  # a narrow terminal breaks no line of a command
    _invite(place, console)
    (command,) = (line for line in console.export_text().splitlines() if " speed " in line)
    words = [{"1-10": "1,2"}.get(word, word) for word in shlex.split(command)]
    async with programs(place):
        ended = await trio.run_process([*words, "--repeat=3"], capture_stdout=True, capture_stderr=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "a fresh session for every operation" in ended.stdout.decode()


def test_the_gateways_own_cpu_time_is_measured() -> None:
    said = run("cpu", "--seconds", "1", "--rounds", "1")
    assert len(re.findall(r"[0-9]+ us", said)) == 2
