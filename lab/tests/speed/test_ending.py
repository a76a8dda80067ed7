"""``speed`` that ends before its time: what was measured is shown, what is left behind is told, nobody goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from kmip_lab.compare.usage import processes
from kmip_lab.keymanager import read_journal
from kmip_lab.speed.making import Maker

from lab.tests.speed.conftest import Serve, Server

_SLOW = {"fault": "slow", "seconds": 0.2, "operations": ["Create"]}


@contextmanager
def measuring(server: Server) -> Iterator[subprocess.Popen[str]]:
    """``speed`` in a session of its own, which has measured Get, and has its two clients create keys for long."""
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


def created(server: Server) -> int:
    return sum(entry.operation == "Create" for entry in read_journal(server.journal))


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


def clients(process: subprocess.Popen[str]) -> list[int]:
    """The clients' process numbers: who started them is no process that the command itself was."""
    parents = {
        number: int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
        for number in processes([process.pid])
    }
    return [number for number, parent in parents.items() if parent in parents and parent != process.pid]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_all_of_it_and_what_was_measured_is_shown(serve: Serve, number: signal.Signals) -> None:
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
        r"^create, 2 clients: broke off; what it made in up to (\d+) operations is left", complaints, re.MULTILINE
    )
    assert warning is not None
    assert int(warning[1]) >= left - 1  # one was for Get
    assert destroyed == ["Success"]  # and it is gone
    assert complaints.endswith("Error: ended before everything was measured\n")


def test_a_client_that_is_killed_ends_the_others_and_what_was_measured_is_shown(serve: Serve) -> None:
    with serve(_SLOW) as server, measuring(server) as process:
        victim, _other = (number for number in clients(process))
        os.kill(victim, signal.SIGKILL)
        said, complaints = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.search(r"^ *get +2 ", said, re.MULTILINE)
    assert "create, 2 clients: broke off; what it made" in complaints
    assert complaints.endswith("Error: a client process was killed by signal 9\n")


def test_clients_do_not_outlive_a_parent_that_is_killed(serve: Serve) -> None:
    with serve(_SLOW) as server, measuring(server) as process:
        assert len(clients(process)) == 2
        process.kill()
        process.wait()
        until(lambda: processes([process.pid]) == [])


def test_keys_are_given_up_on_where_the_server_does_not_answer_any_more(serve: Serve) -> None:
    with serve({"fault": "deaf", "operations": ["Destroy"]}) as server:
        maker = Maker(replace(server.target, timeout=0.1))
        maker.prepare(["get"])
        maker.made += ["never", "there", "at", "all"]
        maker.destroy()
    assert maker.failed == {"no answer in time": 3}
    assert len(maker.made) == 2


def test_keys_that_the_server_does_not_have_are_no_reason_to_give_up(serve: Serve) -> None:
    with serve() as server:
        maker = Maker(server.target)
        maker.prepare(["get"])
        maker.made += ["never", "there", "at", "all"]
        maker.destroy()
    assert maker.failed == {"refused: ItemNotFound": 4}
    assert maker.made == []
