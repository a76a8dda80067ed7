"""The load: clients that get a key, over and over, in one process with one epoll.

``python -m kmip_lab.compare.load`` reads a Job as JSON from standard input and writes a Measured as JSON to standard
output. It reads the proxy's CPU time and memory itself, at the very moments at which it begins and ends to count.
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

from kmip_lab.compare import usage, wire
from kmip_lab.compare.pace import Pace

_RECORD: Final = 16384
_PATIENCE: Final = 10.0  # s for one step of an idle client, and for a connection to be taken
_SETTLE: Final = 1.0  # s before memory is read
_WARM_IDLE: Final = 50  # idle clients that are there before memory is read first: what a proxy needs anyway
_ERROR_PAUSE: Final = 0.05  # s; a proxy that refuses everything must not be refused in a loop


@dataclass(frozen=True)
class Job:
    """What to do: ``work`` is fresh, resumed, kept or idle; ``request`` is hexadecimal; ``sessions``, the proxy's.

    ``rate`` is for kept: Gets a second of all clients together, or 0 for as many as they can.
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


@dataclass(frozen=True)
class Measured:
    """What came of it: times in seconds, ``cpu`` of the whole proxy, ``memory`` in bytes for one idle client.

    ``full_handshakes`` is counted where sessions are resumed, and should be none. ``opened`` is how many sessions the
    gateway opened to backends meanwhile, which is told by whoever runs the load.
    """

    operations: int = 0
    seconds: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    cpu: float = 0.0
    memory: float = 0.0
    errors: int = 0
    full_handshakes: int = 0
    opened: int = 0


class _Load:
    """Everything that the clients of one job share."""

    def __init__(self, job: Job) -> None:
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
        self.pace = Pace(job.rate, job.clients, time.perf_counter()) if job.rate else None
        self.durations: list[float] = []
        self.errors = 0
        self.full_handshakes = 0
        if self.resumes:
            self.context.set_verify(SSL.VERIFY_PEER, self._count)

    def _count(self, _connection: SSL.Connection, _certificate: object, _error: int, depth: int, ok: int) -> bool:
        """OpenSSL verifies certificates in full handshakes only."""
        self.full_handshakes += depth == 0
        return bool(ok)

    def measure(self) -> Measured:
        """Run the clients, first to warm up, then to count."""
        for client in self.team:
            client.connect()
        self._run(self.job.warm_up)
        self.durations.clear()
        self.errors = self.full_handshakes = 0
        numbers = usage.processes(self.job.sessions)
        cpu, began = usage.cpu_seconds(numbers), time.perf_counter()
        self._run(self.job.seconds)
        seconds, cpu = time.perf_counter() - began, usage.cpu_seconds(numbers) - cpu
        durations = sorted(self.durations)
        return Measured(
            operations=len(durations),
            seconds=seconds,
            p50=percentile(durations, 0.5),
            p99=percentile(durations, 0.99),
            cpu=cpu,
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

    def _paced(self, pace: Pace, left: float) -> float:
        """Wait until an answer or somebody's time has come, let those ask, and say how long epoll may wait: not at all.

        epoll's timeout is rounded up to milliseconds, in which four Gets are due; that of select is not. To turn round
        until the time comes would take the processor from the backends.
        """
        select.select([self.poll], [], [], pace.delay(time.perf_counter(), left))
        for number in pace.due(time.perf_counter()):
            self.team[number].ask(time.perf_counter())
        return 0.0


class _Client:
    """One client: connects, asks, reads, and begins anew."""

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
        #: Each takes turns by itself: it has a session with every address as soon as it has connected to each once.
        self.turns = islice(cycle(load.job.addresses), number % len(load.job.addresses), None)
        self.sessions: dict[tuple[str, int], SSL.Session] = {}

    def connect(self) -> None:
        """Begin a connection. On loopback it is taken at once, or there is nobody."""
        load = self.load
        self.began = time.perf_counter()
        self.address = next(self.turns)
        self.sock = socket.create_connection(self.address, timeout=_PATIENCE)
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
        """Go on with what has arrived."""
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
        """Ask at once, or when the pace says so; where that is past, the wait for the last answer counts, too."""
        pace = self.load.pace
        began = since if pace is None else pace.ready(self.number, time.perf_counter())
        if began is not None:
            self.ask(began)

    def ask(self, began: float) -> None:
        """Send a Get that takes its time from ``began`` on."""
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


def measure_idle(job: Job) -> Measured:
    """Memory for each of ``clients`` that have asked once and then stay."""
    load = _Load(job)
    numbers = usage.processes(job.sessions)
    turns = cycle(job.addresses)
    kept = [_idle_client(load, next(turns)) for _ in range(_WARM_IDLE)]
    time.sleep(_SETTLE)
    before = usage.memory(numbers)
    kept += [_idle_client(load, next(turns)) for _ in range(job.clients)]
    time.sleep(_SETTLE)
    return Measured(operations=len(kept), memory=(usage.memory(numbers) - before) / job.clients)


def _idle_client(load: _Load, address: tuple[str, int]) -> SSL.Connection:
    sock = socket.create_connection(address, timeout=_PATIENCE)
    sock.settimeout(None)
    connection = SSL.Connection(load.context, sock)
    connection.set_connect_state()
    connection.do_handshake()
    connection.send(load.request)
    received = b""
    while wire.size(received) > len(received):
        received += connection.recv(_RECORD)
    return connection


def percentile(ordered: list[float], fraction: float) -> float:
    """Of values in order; 0 where there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))] if ordered else 0.0


def main() -> None:
    """Do the job that standard input describes."""
    job = Job(**json.load(sys.stdin))
    job = Job(**{**asdict(job), "addresses": [(host, port) for host, port in job.addresses]})
    measured = measure_idle(job) if job.work == "idle" else _Load(job).measure()
    json.dump(asdict(measured), sys.stdout)


if __name__ == "__main__":
    main()
