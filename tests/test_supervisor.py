"""The supervisor with real processes: starts, deaths, signals, and the end."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """
import gc, json, os, resource, select, signal, socket, sys, time
from pathlib import Path
from typing import Any
from gateway.errors import ConfigError
from gateway.front.supervision import Order, receive_news, send_order
from gateway.listening import NextSockets
from gateway.supervisor import DRAIN_CORE, Supervisor, unblock_signals

events = Path(sys.argv[1])
workers = int(sys.argv[2])
behaviour = sys.argv[3]

def note(**event):
    with events.open("a") as file:
        file.write(json.dumps(event | {"process": os.getpid(), "parent": os.getppid()}) + "\\n")

def core(supervisor):
    signals = []
    for number in (DRAIN_CORE, signal.SIGHUP):
        signal.signal(number, lambda number, frame: signals.append(number))
    unblock_signals()
    note(event="core")
    links = {}
    while True:
        while signals:
            number = signals.pop(0)
            note(event="signal", number=int(number))
            if number == DRAIN_CORE and behaviour == "lame duck":
                continue
            if number == DRAIN_CORE:
                send_order(supervisor, Order.DRAIN)
                return 0
            if behaviour == "lame duck":
                return 0
            if behaviour.startswith("renew"):
                send_order(supervisor, Order.PREPARE, 7)
        if select.select([supervisor], [], [], 0.02)[0]:
            news = receive_news(supervisor)
            if news is None:
                return 3
            if news.worker is None:
                note(event="prepared", mistakes=news.mistakes, opened=[*news.sockets], number=news.number)
                if behaviour == "renew and forget":
                    send_order(supervisor, Order.FORGET)
                elif not news.mistakes:
                    send_order(supervisor, Order.USE)
                continue
            index = news.worker
            links[index] = news.sockets[""]
            said = links[index].recv(100).decode()
            note(event="link", worker=index, generation=news.generation, said=said)
            if behaviour == "core dies":
                os.kill(os.getpid(), signal.SIGKILL)

def worker(index, link):
    note(event="worker", worker=index, frozen=gc.get_freeze_count(), rest=len(gc.get_objects()))
    link.sendall(f"worker {index}".encode())
    if behaviour == "stubborn":
        time.sleep(60)
    while link.recv(100):
        pass
    note(event="worker ends", worker=index)
    return 0

def fork_fails_once():
    if not next(forks_left, True):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

class Generations:
    def prepare(self):
        note(event="prepare")
        if behaviour == "renew fails":
            raise ConfigError(["a mistake"])
        return NextSockets({}, {"kmip": socket.create_server(("127.0.0.1", 0))})

    def forget(self):
        note(event="forget")

    def use(self):
        note(event="use")

if behaviour == "no processes":
    fork, forks_left = os.fork, iter([True, True, True, False])  # the core, two workers, and one that is started again
    os.fork = fork_fails_once

sys.exit(Supervisor(core, worker, workers, Generations()).run())
"""


class Program:
    """A supervisor of two workers in a process of its own, and what its processes have noted."""

    def __init__(self, directory: Path, behaviour: str = "", workers: int = 2, stderr: int | None = None) -> None:
        self._events = directory / "events.jsonl"
        command = [sys.executable, "-c", textwrap.dedent(_PROGRAM), str(self._events), str(workers), behaviour]
        self.log = directory / "log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=stderr or output)

    def events(self, event: str) -> list[dict[str, Any]]:
        if not self._events.exists():
            return []
        found = [json.loads(line) for line in self._events.read_text().splitlines()]
        return [one for one in found if one["event"] == event]

    def wait_for(self, event: str, count: int) -> list[dict[str, Any]]:
        until = time.monotonic() + 20
        while len(found := self.events(event)) < count:
            assert time.monotonic() < until, f"{event}: {found}"
            time.sleep(0.02)
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


def is_running(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def test_the_core_gets_a_socket_to_each_worker(tmp_path: Path) -> None:
    program = Program(tmp_path)
    links = program.wait_for("link", 2)
    assert sorted((link["worker"], link["said"]) for link in links) == [(0, "worker 0"), (1, "worker 1")]
    assert program.end() == 0
    assert len(program.events("worker ends")) == 2


def test_the_collector_leaves_memory_that_processes_share_alone(tmp_path: Path) -> None:
    """A collection writes to each object that it looks at, and the process then has its own copy of the page."""
    program = Program(tmp_path, "renew")
    program.wait_for("link", 2)
    program.process.send_signal(signal.SIGHUP)
    started = program.wait_for("worker", 4)
    assert program.end() == 0
    assert all(worker["frozen"] > 10 * worker["rest"] for worker in started), started


def test_a_worker_that_dies_is_started_again_and_the_core_stays(tmp_path: Path) -> None:
    program = Program(tmp_path)
    (first, _) = program.wait_for("worker", 2)
    program.wait_for("link", 2)
    os.kill(first["process"], signal.SIGKILL)
    again = program.wait_for("worker", 3)[-1]
    assert again["worker"] == first["worker"]
    assert program.wait_for("link", 3)[-1]["worker"] == first["worker"]
    assert len(program.events("core")) == 1
    assert program.end() == 0


def test_a_worker_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    program = Program(tmp_path)
    (first, _) = program.wait_for("worker", 2)
    program.wait_for("link", 2)
    before = resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (4, 4096))
    os.kill(first["process"], signal.SIGKILL)
    time.sleep(0.5)
    assert program.process.poll() is None
    resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (min(before[0], 4096), 4096))
    assert program.wait_for("link", 3)[-1]["worker"] == first["worker"]
    assert program.end() == 0


def test_a_worker_for_which_there_is_no_process_is_tried_again(tmp_path: Path) -> None:
    program = Program(tmp_path, "no processes")
    (first, _) = program.wait_for("worker", 2)
    program.wait_for("link", 2)
    os.kill(first["process"], signal.SIGKILL)
    assert program.wait_for("link", 3)[-1]["worker"] == first["worker"]
    assert program.end() == 0  # by a signal: none is blocked


def test_the_pause_before_a_worker_grows_while_it_keeps_dying(tmp_path: Path) -> None:
    program = Program(tmp_path, workers=1)
    for count in (1, 2, 3):
        os.kill(program.wait_for("worker", count)[-1]["process"], signal.SIGKILL)
    began = time.monotonic()
    program.wait_for("worker", 4)
    assert time.monotonic() - began > 0.5  # 0.2, 0.4, then 0.8 s
    assert program.end() == 0


def test_the_death_of_the_core_ends_everything_with_its_status(tmp_path: Path) -> None:
    program = Program(tmp_path, "core dies")
    assert program.process.wait(20) == 128 + signal.SIGKILL
    assert "core ended; all processes end with its status" in program.log.read_text()
    for worker in program.events("worker"):
        assert not is_running(worker["process"])


def test_signals_are_passed_to_the_core(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.wait_for("link", 2)
    program.process.send_signal(signal.SIGHUP)
    assert program.wait_for("signal", 1)[0]["number"] == signal.SIGHUP
    assert program.end(signal.SIGTERM) == 0


def test_new_workers_are_started_when_the_core_asks(tmp_path: Path) -> None:
    program = Program(tmp_path, "renew")
    old = program.wait_for("worker", 2)
    program.wait_for("link", 2)
    program.process.send_signal(signal.SIGHUP)
    links = program.wait_for("link", 4)
    assert sorted((link["worker"], link["generation"]) for link in links) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    prepared = program.events("prepared")[0]
    assert (prepared["opened"], prepared["number"]) == (["kmip"], 7)
    program.wait_for("worker ends", 2)  # this core drops its sockets to the old ones when the new ones come
    time.sleep(0.6)
    assert len(program.events("worker")) == 4  # no other one is started for them
    assert not any(is_running(worker["process"]) for worker in old)
    assert program.end() == 0
    assert not any(is_running(worker["process"]) for worker in program.events("worker"))


def test_what_was_prepared_is_forgotten_when_the_core_asks(tmp_path: Path) -> None:
    program = Program(tmp_path, "renew and forget")
    program.wait_for("link", 2)
    program.process.send_signal(signal.SIGHUP)
    program.wait_for("forget", 1)
    assert program.events("use") == []
    assert program.end() == 0


def test_workers_stay_if_others_cannot_be_prepared(tmp_path: Path) -> None:
    program = Program(tmp_path, "renew fails")
    program.wait_for("link", 2)
    program.process.send_signal(signal.SIGHUP)
    assert program.wait_for("prepared", 1)[0]["mistakes"] == ["a mistake"]
    time.sleep(0.3)
    assert len(program.events("worker")) == 2
    assert program.end() == 0


def test_workers_that_do_not_end_are_killed(tmp_path: Path) -> None:
    program = Program(tmp_path, "stubborn")
    workers = program.wait_for("worker", 2)
    program.wait_for("link", 2)
    assert program.end() == 0
    assert not any(is_running(worker["process"]) for worker in workers)


def test_the_core_ends_if_the_supervisor_is_killed(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.wait_for("link", 2)
    core = program.events("core")[0]["process"]
    program.process.kill()
    program.process.wait(20)
    until = time.monotonic() + 10
    while is_running(core) or any(is_running(worker["process"]) for worker in program.events("worker")):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_worker_that_dies_while_the_core_still_accepts_is_started_again(tmp_path: Path) -> None:
    program = Program(tmp_path, "lame duck")
    (first, _) = program.wait_for("worker", 2)
    program.wait_for("link", 2)
    program.process.send_signal(signal.SIGTERM)
    program.wait_for("signal", 1)
    os.kill(first["process"], signal.SIGKILL)
    assert program.wait_for("link", 3)[-1]["worker"] == first["worker"]
    assert program.end(signal.SIGHUP) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_ends_starts_no_worker_again(tmp_path: Path, number: int) -> None:
    program = Program(tmp_path)
    program.wait_for("link", 2)
    assert program.end(number) in {0, 128 + number}
    assert len(program.events("worker")) == 2
