"""The demo and the measurement, as a newcomer types them; short."""

import re
import subprocess
import sys


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "gateway", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_demo_ends_by_itself_and_prints_the_ratio() -> None:
    said = run("demo", "--seconds", "3", "--clients", "4")
    found = re.search(r"ratio ([0-9.]+) x", said)
    assert found is not None
    assert float(found[1]) > 1
    assert "openssl" not in said  # no commands with certificates that are gone


def test_the_gateways_own_cpu_time_is_measured() -> None:
    said = run("cpu", "--seconds", "1", "--rounds", "1")
    assert len(re.findall(r"[0-9]+ us", said)) == 2
