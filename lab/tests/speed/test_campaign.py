"""``speed`` that ends early: finished results are shown, keys left behind are reported, and no process stays."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kmip_lab.keymanager import read_journal
from kmip_lab.tools.usage import processes

from lab.tests.kit.speed_server import Serve, SpeedServer

_SLOW = {"fault": "slow", "seconds": 0.2, "operations": ["Create"]}


@contextmanager
def measuring(server: SpeedServer) -> Iterator[subprocess.Popen[str]]:
    """Run ``speed`` in a session of its own until Get is measured and its two clients create keys."""
    command = [sys.executable, "-m", "kmip_lab", "speed", *server.options, "--get", "--create", "--clients=2"]
    pipe = subprocess.PIPE
    # A suite that was begun in the background ignores SIGINT, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [*command, "--repeat=500"], stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        signal.signal(signal.SIGINT, before)
        try:
            until(lambda: created(server) >= 5)
            yield process
        finally:
            process.kill()


def created(server: SpeedServer) -> int:
    return sum(entry.operation == "Create" for entry in read_journal(server.journal))


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


def clients(process: subprocess.Popen[str]) -> list[int]:
    """Return the process numbers of the clients: their parent is a child of the command, the server that forks them."""
    parents = {
        number: int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
        for number in processes([process.pid])
    }
    return [number for number, parent in parents.items() if parent in parents and parent != process.pid]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_all_processes_and_finished_results_are_shown(serve: Serve, number: signal.Signals) -> None:
    with serve(_SLOW) as server, measuring(server) as process:
        process.send_signal(number)
        said, complaints = process.communicate(timeout=30)
        until(lambda: processes([process.pid]) == [])
        left = created(server)
        destroyed = [entry.result for entry in read_journal(server.journal) if entry.operation == "Destroy"]
    assert process.returncode == 1
    assert re.search(r"^ *get +2 ", said, re.MULTILINE)
    assert "create" not in said
    warning = re.search(
        r"^create, 2 clients: broke off; the keys of up to (\d+) operations are left", complaints, re.MULTILINE
    )
    assert warning is not None
    assert int(warning[1]) >= left - 1  # one key was for Get
    assert destroyed == ["Success"]  # and that key is destroyed
    assert complaints.endswith("Error: ended before everything was measured\n")


def test_a_killed_client_ends_the_others_and_finished_results_are_shown(serve: Serve) -> None:
    with serve(_SLOW) as server, measuring(server) as process:
        victim, _other = (number for number in clients(process))
        os.kill(victim, signal.SIGKILL)
        said, complaints = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.search(r"^ *get +2 ", said, re.MULTILINE)
    assert "create, 2 clients: broke off; the keys of" in complaints
    assert complaints.endswith("Error: a client process was killed by signal 9\n")


def test_clients_do_not_outlive_a_parent_that_is_killed(serve: Serve) -> None:
    with serve(_SLOW) as server, measuring(server) as process:
        assert len(clients(process)) == 2
        process.kill()
        process.wait()
        until(lambda: processes([process.pid]) == [])
