"""The TLS workers of a core: counts that never go backwards, and listening sockets that all processes share."""

import socket
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway import log
from gateway.config import Address
from gateway.front.channel import Kind, Message
from gateway.front.pipe import Pipe
from gateway.front.workers import TlsWorkers, WorkerCounts, report
from gateway.listening import listen
from gateway.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    found: float | None = metrics.registry.get_sample_value(f"kmip_gateway_{name}", labels)
    return found


def test_counts_of_two_workers_are_added_and_survive_their_ends() -> None:
    core, workers = Metrics("test"), [Metrics("test"), Metrics("test")]
    counts = [WorkerCounts(core), WorkerCounts(core)]
    for worker, count in zip(workers, counts, strict=True):
        for _ in range(2):
            worker.client_connection_errors.labels("kmip", "certificate").inc()
            worker.client_connections.labels("kmip").inc()
            count.take(report(worker))
    errors = {"listener": "kmip", "reason": "certificate"}
    assert value(core, "client_connection_errors_total", **errors) == 4
    assert value(core, "client_connections", listener="kmip") == 4
    counts[0].end()
    assert value(core, "client_connection_errors_total", **errors) == 4
    assert value(core, "client_connections", listener="kmip") == 2


class Supervised:
    """TLS workers of a core, with the supervisor's end of their socket, and the workers' ends of their pipes."""

    def __init__(self, sock: socket.socket) -> None:
        self.listening = sock
        self.metrics = Metrics("test")
        self.supervisor, of_core = socket.socketpair()
        self.drains = 0
        self.workers = TlsWorkers(
            of_core, {}, {"kmip": sock}, drain=self._drain, metrics=self.metrics, log=log.get("test")
        )
        self.of_core = of_core
        self.heard: list[list[Message]] = []

    def _drain(self) -> None:
        self.drains += 1

    def start(self, nursery: trio.Nursery, index: int = 0) -> Pipe:
        """Hand over a worker; return its end of the pipe."""
        of_worker, of_core = socket.socketpair()
        socket.send_fds(self.supervisor, [index.to_bytes(4, "big")], [of_core.fileno()])
        of_core.close()
        pipe = Pipe(of_worker, log.get("test"))
        self.heard.append([])
        nursery.start_soon(pipe.run, self.heard[-1].append)
        return pipe


@pytest.fixture
async def supervised(nursery: trio.Nursery) -> AsyncIterator[Supervised]:
    with listen("listener", Address("127.0.0.1", 0)) as sock:
        supervised = Supervised(sock)
        nursery.start_soon(supervised.workers.run)
        yield supervised
        nursery.cancel_scope.cancel()
        supervised.supervisor.close()
        supervised.of_core.close()


async def test_all_workers_refuse_and_accept_together(supervised: Supervised, nursery: trio.Nursery) -> None:
    pipes = [supervised.start(nursery)]
    await wait_all_tasks_blocked()
    supervised.workers.stop_accepting()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(supervised.listening.getsockname())
    pipes.append(supervised.start(nursery))  # a worker that is started meanwhile refuses, too
    await wait_all_tasks_blocked()
    assert value(supervised.metrics, "accepting", listener="kmip") == 0
    supervised.workers.resume_accepting()
    socket.create_connection(supervised.listening.getsockname()).close()
    await wait_all_tasks_blocked()
    kinds = [[message.kind for message in heard] for heard in supervised.heard]
    assert kinds == [[Kind.REFUSE, Kind.ACCEPT]] * 2
    assert value(supervised.metrics, "accepting", listener="kmip") == 1
    for pipe in pipes:
        pipe.close()


async def test_a_drain_refuses_connections_and_reaches_every_worker(
    supervised: Supervised, nursery: trio.Nursery
) -> None:
    pipe = supervised.start(nursery)
    await wait_all_tasks_blocked()
    assert len(supervised.workers) == 1
    supervised.workers.drain()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(supervised.listening.getsockname())
    await wait_all_tasks_blocked()
    assert supervised.heard[0][-1].kind == Kind.DRAIN
    pipe.close()
    await wait_all_tasks_blocked()
    assert len(supervised.workers) == 0


async def test_each_worker_retires_when_its_successor_has_come(supervised: Supervised, nursery: trio.Nursery) -> None:
    pipes = [supervised.start(nursery, index) for index in (0, 1)]
    await wait_all_tasks_blocked()
    supervised.workers.renew()
    assert supervised.supervisor.recv(10) == b"n"
    await wait_all_tasks_blocked()
    assert supervised.heard == [[], []]
    pipes.append(supervised.start(nursery, 1))
    await wait_all_tasks_blocked()
    kinds = [[message.kind for message in heard] for heard in supervised.heard]
    assert kinds == [[], [Kind.RETIRE], []]
    pipes.append(supervised.start(nursery, 1))  # started again after a death: its predecessor is no older
    await wait_all_tasks_blocked()
    assert supervised.heard[2] == []
    for pipe in pipes:
        pipe.close()


async def test_the_end_of_the_supervisor_drains_the_core(supervised: Supervised) -> None:
    supervised.supervisor.close()
    await wait_all_tasks_blocked()
    assert supervised.drains == 1


async def test_clients_of_a_retired_worker_are_counted_with_its_successors(
    supervised: Supervised, nursery: trio.Nursery
) -> None:
    pipes = [supervised.start(nursery) for _ in range(2)]
    await wait_all_tasks_blocked()
    for worker, clients in zip(supervised.workers._workers, (3, 4), strict=True):
        worker._links = dict.fromkeys(range(clients))  # type: ignore[assignment]
    assert supervised.workers.clients_by_worker() == {0: 7}
    for worker in supervised.workers._workers:
        worker._links = {}
    for pipe in pipes:
        pipe.close()
