"""The TLS workers of a core: their connections, their counts, and the listening sockets that they share."""

import json
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Final

import trio

from gateway.front.channel import Kind
from gateway.front.clients import Clients
from gateway.front.pipe import Pipe
from gateway.front.worker_link import WorkerLink, WorkerLinks
from gateway.listening import accept_connections, refuse_connections
from gateway.log import Log
from gateway.metrics import Metrics

#: Counters and gauges of a worker's own metrics that it reports to the core, by the names of their attributes.
REPORTED_COUNTERS: Final = ("client_connection_errors", "limit_rejections")
REPORTED_GAUGES: Final = ("client_connections", "client_half_open")


def report(metrics: Metrics) -> bytes:
    """Return a worker's counts as the payload of COUNTED: [[attribute, label values, total], ...]."""
    found: list[tuple[str, list[str], float]] = []
    for name in (*REPORTED_COUNTERS, *REPORTED_GAUGES):
        for family in getattr(metrics, name).collect():
            found += [
                (name, list(sample.labels.values()), sample.value)
                for sample in family.samples
                if not sample.name.endswith("_created")
            ]
    return json.dumps(found).encode()


class WorkerCounts:
    """Adds what one worker has counted to the metrics of the core."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last: dict[tuple[str, tuple[str, ...]], float] = {}

    def take(self, payload: bytes) -> None:
        """Take a report; see ``report``."""
        for name, labels, value in json.loads(payload):
            key = (name, tuple(labels))
            self._add(key, value - self._last.get(key, 0.0))
            self._last[key] = value

    def end(self) -> None:
        """Take back the gauges of a worker that has ended. Its counters stay: no counter goes backwards."""
        for (name, labels), value in self._last.items():
            if name in REPORTED_GAUGES:
                self._add((name, labels), -value)
        self._last.clear()

    def _add(self, key: tuple[str, tuple[str, ...]], difference: float) -> None:
        name, labels = key
        if difference:
            getattr(self._metrics, name).labels(*labels).inc(difference)


class TlsWorkers:
    """The TLS workers that serve the clients of a core.

    ``supervisor`` is the socket over which the supervisor hands over a socket to each worker that it has started.
    ``sockets`` are this process's copies of the listening sockets; those named by ``inherited`` are the service
    manager's, and listen on after a drain. ``drain`` drains the core: it is called if the supervisor ends first.
    """

    def __init__(
        self,
        supervisor: socket.socket,
        clients: Mapping[str, Clients],
        sockets: Mapping[str, socket.socket],
        *,
        inherited: Collection[str] = (),
        drain: Callable[[], None],
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._supervisor = supervisor
        self._drain_core = drain
        self._clients = clients
        self._sockets = sockets
        self._inherited = inherited
        self._metrics = metrics
        self._log = log
        self._workers: dict[WorkerLinks, int] = {}  # and their indices
        self._outdated: set[WorkerLinks] = set()  # to retire when their successors have come
        self._log_level = ""  # if it was changed
        self._is_accepting = True
        self._draining = False
        self._taking = trio.CancelScope()  # of new workers
        for name in sockets:
            metrics.accepting.labels(name).set(1)

    def __len__(self) -> int:
        return len(self._workers)

    def __repr__(self) -> str:
        return f"<TlsWorkers: {len(self)}, {sum(map(len, self._workers))} clients>"

    async def run(self) -> None:
        """Serve the clients of all workers until drained."""
        self._supervisor.setblocking(False)
        async with trio.open_nursery() as nursery:
            with self._taking:
                while True:
                    await trio.lowlevel.wait_readable(self._supervisor)
                    data, descriptors, _flags, _address = socket.recv_fds(self._supervisor, 4, 1)
                    if not data:
                        self._log.error("draining: the supervisor has ended")
                        self._drain_core()
                        return
                    for descriptor in descriptors:
                        nursery.start_soon(self._serve, socket.socket(fileno=descriptor), int.from_bytes(data, "big"))

    async def _serve(self, sock: socket.socket, index: int) -> None:
        pipe, counts = Pipe(sock, self._log), WorkerCounts(self._metrics)
        worker = WorkerLinks(pipe, self._receive, counts.take)
        self._workers[worker] = index
        self._retire_predecessors(index)
        self._log.info("TLS worker started", worker=index)
        try:
            if self._log_level:
                pipe.send(Kind.LOG, 0, self._log_level.encode())
            if not self._is_accepting:
                pipe.send(Kind.REFUSE)
            if self._draining:
                pipe.send(Kind.DRAIN)
            await worker.run()
        finally:
            self._workers.pop(worker)
            self._outdated.discard(worker)
            counts.end()
            pipe.close()

    def renew(self) -> None:
        """Have the supervisor start new workers with the configuration file as it is.

        Each worker stops accepting when its successor has come, keeps its clients until they leave, and then ends.
        """
        self._outdated = set(self._workers)
        with suppress(OSError):  # the supervisor has ended, which is noticed next
            self._supervisor.send(b"n")

    def _retire_predecessors(self, index: int) -> None:
        for worker in [worker for worker in self._outdated if self._workers[worker] == index]:
            self._outdated.discard(worker)
            worker.pipe.send(Kind.RETIRE)

    async def _receive(self, link: WorkerLink) -> None:
        opening = link.opening
        self._metrics.handshake_succeeded(opening.listener, opening.version, opening.seconds, resumed=opening.resumed)
        try:
            await self._clients[opening.listener].receive(link, opening.peer)
        finally:
            link.close()

    def stop_accepting(self) -> None:
        """Have the kernel refuse new connections on all listeners."""
        self._stop_accepting(self._sockets)

    def _stop_accepting(self, refusing: Collection[str]) -> None:
        """Accept no new connections; those of the listeners in ``refusing`` are refused, the others wait."""
        if self._is_accepting:
            self._is_accepting = False
            self._send_to_all(Kind.REFUSE)
            for name, sock in self._sockets.items():
                if name in refusing:
                    refuse_connections(sock)
                self._metrics.accepting.labels(name).set(0)

    def resume_accepting(self) -> None:
        """Accept new connections again. If the kernel refuses to listen, log it; the caller tries again later."""
        if self._is_accepting or self._draining:
            return
        try:
            for sock in self._sockets.values():
                accept_connections(sock)
        except OSError as error:
            self._log.warning("cannot listen: another process may use the port; trying again", reason=error.strerror)
            return
        for name in self._sockets:
            self._metrics.accepting.labels(name).set(1)
        self._is_accepting = True
        self._send_to_all(Kind.ACCEPT)

    def drain(self) -> None:
        """Take no new clients; each worker ends when its last client has ended."""
        self._stop_accepting([name for name in self._sockets if name not in self._inherited])
        self._draining = True
        self._send_to_all(Kind.DRAIN)
        self._taking.cancel()

    def set_log_level(self, level: str) -> None:
        """Change the log level of all workers, also of those that start later."""
        self._log_level = level
        self._send_to_all(Kind.LOG, level.encode())

    def clients_by_worker(self) -> dict[int, int]:
        """Return the number of clients by the worker's index; a worker and its retired predecessors have the same."""
        clients: dict[int, int] = {}
        for worker, index in self._workers.items():
            clients[index] = clients.get(index, 0) + len(worker)
        return dict(sorted(clients.items()))

    def _send_to_all(self, kind: Kind, payload: bytes = b"") -> None:
        for worker in self._workers:
            worker.pipe.send(kind, 0, payload)
