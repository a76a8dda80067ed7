"""The load: clients that get a key, over and over, in one process with one epoll.

``python -m kmip_lab.compare.load`` reads a LoadJob as JSON from standard input and writes a LoadResult as JSON to
standard output. The load reads the proxy's CPU time and memory itself, in the moments in which counting begins and
ends.
"""

import json
import select
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from OpenSSL import SSL

from kmip_lab.compare import wire
from kmip_lab.compare.pace import LoadPace
from kmip_lab.tools import usage
from kmip_lab.tools.statistics import percentile

_RECORD: Final = 16384
_TIMEOUT: Final = 10.0  # s for one step of an idle client, and for a connection to be accepted
_SETTLE: Final = 1.0  # s before memory is read
_WARM_IDLE: Final = 50  # idle clients before memory is first read, whose memory a proxy needs in any case
_ERROR_PAUSE: Final = 0.05  # s; a proxy that refuses everything must not be refused in a loop


@dataclass(frozen=True)
class LoadJob:
    """One run: ``work`` is fresh, resumed, kept or idle; ``request`` is hexadecimal; ``sessions`` are the proxy's.

    ``rate`` is for kept: Gets a second of all clients together, or 0 for as many as they can. ``supervisor`` is the
    process number of a gateway that has TLS workers, or 0.
    """

    work: str
    addresses: list[tuple[str, int]]
    certificate: str
    private_key: str
    ca: str
    request: str
    sessions: list[int]
    clients: int = 8
    warm_up: float = 0.5
    seconds: float = 2.0
    is_tls_1_3: bool = True
    rate: float = 0.0
    supervisor: int = 0


@dataclass(frozen=True)
class LoadResult:
    """The outcome: times in seconds, ``cpu`` of the whole proxy, ``memory`` in bytes for one idle client.

    ``core_cpu`` and ``worker_cpu`` are parts of ``cpu``, of a gateway with TLS workers: the core, and all workers.
    ``full_handshakes`` is counted if sessions are resumed, and should be none. ``opened`` is how many sessions the
    gateway opened to backends meanwhile; the caller of the load adds it.
    """

    operations: int = 0
    seconds: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    cpu: float = 0.0
    core_cpu: float = 0.0
    worker_cpu: float = 0.0
    memory: float = 0.0
    errors: int = 0
    full_handshakes: int = 0
    opened: int = 0


class _Load:
    """The state that all clients of one job share."""

    def __init__(self, job: LoadJob) -> None:
        self.job = job
        self.request = bytes.fromhex(job.request)
        self.context = wire.client_context(
            Path(job.certificate), Path(job.private_key), Path(job.ca), is_tls_1_3=job.is_tls_1_3
        )
        self.is_fresh = job.work != "kept"
        self.resumes = job.work == "resumed"
        self.poll = select.epoll()
        self.clients: dict[int, _Client] = {}
        self.team = [_Client(self, number) for number in range(job.clients)]
        self.pace = LoadPace(job.rate, job.clients, time.perf_counter()) if job.rate else None
        self.durations: list[float] = []
        self.errors = 0
        self.full_handshakes = 0
        if self.resumes:
            self.context.set_verify(SSL.VERIFY_PEER, self._count)

    def _count(self, _connection: SSL.Connection, _certificate: object, _error: int, depth: int, ok: int) -> bool:
        """Count a full handshake: OpenSSL verifies certificates in no other."""
        self.full_handshakes += depth == 0
        return bool(ok)

    def measure(self) -> LoadResult:
        """Run the clients, first to warm up, then to count."""
        for client in self.team:
            client.connect()
        self._run(self.job.warm_up)
        self.durations.clear()
        self.errors = self.full_handshakes = 0
        numbers = usage.processes(self.job.sessions)
        core, workers = _core_and_workers(self.job.supervisor)
        before, began = [usage.cpu_seconds(part) for part in (numbers, core, workers)], time.perf_counter()
        self._run(self.job.seconds)
        seconds, after = time.perf_counter() - began, [usage.cpu_seconds(part) for part in (numbers, core, workers)]
        cpu, core_cpu, worker_cpu = (end - begin for begin, end in zip(before, after, strict=True))
        durations = sorted(self.durations)
        return LoadResult(
            operations=len(durations),
            seconds=seconds,
            p50=percentile(durations, 0.5) or 0.0,
            p99=percentile(durations, 0.99) or 0.0,
            cpu=cpu,
            core_cpu=core_cpu,
            worker_cpu=worker_cpu,
            errors=self.errors,
            full_handshakes=self.full_handshakes,
        )

    def _run(self, seconds: float) -> None:
        clients, poll = self.clients, self.poll
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if self.pace is not None:
                left = self._paced(self.pace, left)
            for number, _event in poll.poll(left):
                clients[number].step()

    def _paced(self, pace: LoadPace, left: float) -> float:
        """Wait for an answer or a due request, send what is due, and return how long epoll may wait: not at all.

        epoll's timeout is rounded up to milliseconds, in which four Gets are due; that of select is not. A busy loop
        would take the processor from the backends.
        """
        select.select([self.poll], [], [], pace.delay(time.perf_counter(), left))
        for number in pace.due(time.perf_counter()):
            self.team[number].ask(time.perf_counter())
        return 0.0


class _Client:
    """One client: it connects, sends a request, reads the answer, and begins again."""

    __slots__ = (
        "address",
        "began",
        "connection",
        "is_handshaken",
        "load",
        "number",
        "received",
        "sessions",
        "sock",
        "turns",
    )

    def __init__(self, load: _Load, number: int) -> None:
        self.load = load
        self.number = number
        #: Each client takes the addresses in turn by itself, so that it has a session to resume with each of them.
        self.turns = islice(cycle(load.job.addresses), number % len(load.job.addresses), None)
        self.sessions: dict[tuple[str, int], SSL.Session] = {}

    def connect(self) -> None:
        """Begin a connection. On the loopback interface it is accepted or refused at once."""
        load = self.load
        self.began = time.perf_counter()
        self.address = next(self.turns)
        self.sock = socket.create_connection(self.address, timeout=_TIMEOUT)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = SSL.Connection(load.context, self.sock)
        self.connection.set_connect_state()
        if self.address in self.sessions:
            self.connection.set_session(self.sessions[self.address])
        self.is_handshaken = False
        self.received = b""
        load.clients[self.sock.fileno()] = self
        load.poll.register(self.sock.fileno(), select.EPOLLIN)
        self.step()

    def step(self) -> None:
        """Continue with the bytes that have arrived."""
        try:
            if not self.is_handshaken:
                self.connection.do_handshake()
                self.is_handshaken = True
                self._ask_or_wait(self.began)
                return
            self.received += self.connection.recv(_RECORD)
        except (SSL.WantReadError, SSL.WantWriteError):
            return
        except (SSL.Error, OSError):
            self._fail()
            return
        if wire.size(self.received) <= len(self.received):
            self._answered()

    def _answered(self) -> None:
        load = self.load
        load.durations.append(time.perf_counter() - self.began)
        if wire.SUCCESS not in self.received:
            self._fail()
        elif load.is_fresh:
            if load.resumes:
                self._remember()
            self._close()
            self.connect()
        else:
            self.received = b""
            self._ask_or_wait(time.perf_counter())

    def _ask_or_wait(self, since: float) -> None:
        """Send at once, or when the pace says so; if that time is past, the wait for the last answer counts, too."""
        pace = self.load.pace
        began = since if pace is None else pace.ready(self.number, time.perf_counter())
        if began is not None:
            self.ask(began)

    def ask(self, began: float) -> None:
        """Send a Get whose duration counts from ``began`` on."""
        self.began = began
        try:
            self.connection.send(self.load.request)
        except (SSL.Error, OSError):
            self._fail()

    def _remember(self) -> None:
        session = self.connection.get_session()
        if session is not None:
            self.sessions[self.address] = session

    def _fail(self) -> None:
        self.load.errors += 1
        if self.load.pace is not None:
            self.load.pace.leave(self.number)
        self._close()
        time.sleep(_ERROR_PAUSE)
        self.connect()

    def _close(self) -> None:
        with suppress(SSL.Error):
            self.connection.shutdown()
        del self.load.clients[self.sock.fileno()]
        self.sock.close()


def _core_and_workers(supervisor: int) -> tuple[list[int], list[int]]:
    """Return the core's process number, and the workers': a supervisor's first child is the core."""
    children = usage.children(supervisor) if supervisor else []
    return children[:1], children[1:]


def measure_idle(job: LoadJob) -> LoadResult:
    """Measure the memory for each of ``clients`` that send one request and stay connected."""
    load = _Load(job)
    numbers = usage.processes(job.sessions)
    turns = cycle(job.addresses)
    kept = [_idle_client(load, next(turns)) for _ in range(_WARM_IDLE)]
    time.sleep(_SETTLE)
    before = usage.memory(numbers)
    kept += [_idle_client(load, next(turns)) for _ in range(job.clients)]
    time.sleep(_SETTLE)
    return LoadResult(operations=len(kept), memory=(usage.memory(numbers) - before) / job.clients)


def _idle_client(load: _Load, address: tuple[str, int]) -> SSL.Connection:
    sock = socket.create_connection(address, timeout=_TIMEOUT)
    sock.settimeout(None)
    connection = SSL.Connection(load.context, sock)
    connection.set_connect_state()
    connection.do_handshake()
    connection.send(load.request)
    received = b""
    while wire.size(received) > len(received):
        received += connection.recv(_RECORD)
    return connection


def main() -> None:
    """Run the job that standard input describes."""
    job = LoadJob(**json.load(sys.stdin))
    job = LoadJob(**{**asdict(job), "addresses": [(host, port) for host, port in job.addresses]})
    measured = measure_idle(job) if job.work == "idle" else _Load(job).measure()
    json.dump(asdict(measured), sys.stdout)


if __name__ == "__main__":
    main()
