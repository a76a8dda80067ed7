"""A front without backends: a real listener over real TLS, with a fake dispatcher."""

import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio
from kmip_lab.tools.clients import Client, connect
from OpenSSL import SSL
from structlog.testing import LogCapture
from trio.testing import wait_all_tasks_blocked

from gateway.config import Address, IdentityConfig, LimitsConfig, ListenerConfig, MatchConfig
from gateway.dispatcher import Answer, Dispatcher
from gateway.front.admission import Admission
from gateway.front.clients import Clients
from gateway.front.connection_errors import ConnectionErrors
from gateway.front.listener import Listener
from gateway.front.pipe import Pipe
from gateway.front.relay import Relay, RelayLimits
from gateway.front.worker_link import WorkerLink, WorkerLinks
from gateway.identity import Identities, Principal
from gateway.kmip import compose, ttlv
from gateway.kmip.compose import Ask, Result
from gateway.kmip.decode import decode_response
from gateway.kmip.messages import Request, Response, Version
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.log import Log, Throttle
from gateway.metrics import Metrics
from gateway.revocation import Trust
from gateway.tls import TlsStream
from tests.kit.processes import Certificates
from tests.kit.settings import listener_config, make_admission
from tests.kit.streams import client_tls, server_tls

NAME = "kmip"
NO_CLIENT = MatchConfig(subject_cn=("nobody",))  # a rule that matches none of the tests' certificates
PART_OF_HELLO = b"\x16\x03\x01\x02\x00"  # the head of a TLS record whose 512 bytes do not follow


class FakeDispatcher(Dispatcher):
    """Answers all requests with success while its gate is open, and keeps the requests."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.gate.set()
        self.asked: list[Request] = []
        self.answered = 0
        self.answer_size = 0
        self.fault: Exception | None = None

    async def dispatch(self, request: Request, principal: Principal, *_more: Any, **_by_name: Any) -> Answer:
        """Answer."""
        assert principal.subject
        self.asked.append(request)
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.answered += 1
        payload = ttlv.octets(Tag.DATA, bytes(self.answer_size))
        results = [
            Result(ResultStatus.SUCCESS, item.operation, item.unique_batch_item_id, payload=payload)
            for item in request.items
        ]
        frame = compose.encode_response(request.version, results)
        return Answer(frame, decode_response(frame))

    def close_gate(self) -> None:
        """Answer nothing until the gate is opened again."""
        self.gate = trio.Event()


@dataclass
class Front:
    """A running listener, its fake dispatcher, its metrics and its log."""

    address: Address
    listener: Listener
    served: Clients
    dispatcher: FakeDispatcher
    certificates: Certificates
    context: SSL.Context
    metrics: Metrics
    log: LogCapture
    relay: Relay | None

    @property
    def is_reading(self) -> bool:
        """True while a client has sent the beginning of a request."""
        conversations = self.served._conversations
        return any("reading" in repr(one) or one.stream.is_read_delayed for one in conversations)

    @property
    def is_sending(self) -> bool:
        """True while a client does not read the whole of its answer."""
        if self.relay is not None:
            return any(client.is_sending for client in self.relay._clients.values())
        return "sending" in repr(self.served._conversations)

    @asynccontextmanager
    async def client(
        self, name: str = "alice", *, version: str | None = None, context: SSL.Context | None = None
    ) -> AsyncIterator[Client]:
        """Connect a client for the length of a block; then wait until the listener has noticed its end."""
        before = self.clients
        async with connect(self.address, context or client_tls(self.certificates, name, version)) as client:
            yield client
        await until(lambda: self.clients <= before)

    def drain(self) -> None:
        """Drain the listener and its clients, as the core does."""
        self.listener.drain()
        self.served.drain()

    def count(self, family: str, **labels: str) -> float:
        """Return the sum of the samples of this name that have these labels, or 0 if there is none."""
        return sum(
            sample.value
            for found in self.metrics.registry.collect()
            for sample in found.samples
            if sample.name == f"kmip_gateway_{family}" and labels.items() <= sample.labels.items()
        )

    @property
    def errors(self) -> dict[str, float]:
        """The client connection errors that were counted, by reason."""
        return {
            sample.labels["reason"]: sample.value
            for family in self.metrics.client_connection_errors.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    @property
    def refusals(self) -> dict[str, float]:
        """The gateway's own answers, by reason."""
        found: dict[str, float] = {}
        for (reason, _identity), counter in self.metrics.local_errors.children():
            found[reason] = found.get(reason, 0.0) + counter.value
        return found

    @property
    def clients(self) -> float:
        """The number of client connections in the metrics."""
        return self.count("client_connections", listener=NAME)


#: True if the fronts of the current test pass their clients through a TLS worker's relay; see conftest.
ENDS_TLS_IN_WORKER: ContextVar[bool] = ContextVar("ENDS_TLS_IN_WORKER", default=False)


class _ThroughWorker:
    """The way of clients through a TLS worker and a pipe to the core, in one process."""

    def __init__(self, settings: ListenerConfig, limits: LimitsConfig, served: Clients, log: Log) -> None:
        self._core, worker = (Pipe(sock, log) for sock in socket.socketpair())
        self._worker = worker
        self._served = served
        self.relay = Relay(worker, make_admission(max_buffered=limits.max_buffered))
        self.receive = partial(
            self.relay.receive,
            listener=NAME,
            limits=RelayLimits(limits.max_request_size, settings.request_timeout, settings.send_timeout),
        )

    async def run(self) -> None:
        """Relay until cancelled."""
        links = WorkerLinks(self._core, self._serve, lambda _payload: None)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(links.run)
                nursery.start_soon(self.relay.look_for_left_clients)
                nursery.start_soon(self._worker.run, self.relay.handle)
        finally:
            self._core.close()
            self._worker.close()

    async def _serve(self, link: WorkerLink) -> None:
        await self._served.receive(link, link.opening.peer)
        link.close()


@asynccontextmanager
async def open_front(
    certificates: Certificates,
    *,
    limits: LimitsConfig | None = None,
    settings: ListenerConfig | None = None,
    match: MatchConfig | None = None,
    trust: Trust | None = None,
    admission: Admission | None = None,
    listening: socket.socket | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[Front]:
    """Run a front for the length of a block; by default an identity matches every client. Closes its socket.

    ``host`` is the address of ``listening``.
    """
    rule = IdentityConfig(
        name="everyone",
        match=match or MatchConfig(subject_cn=("*",)),
        shared=True,
        certificate=Path("unused"),
        private_key=Path("unused"),
    )
    dispatcher, metrics, log = FakeDispatcher(), Metrics("test"), LogCapture()
    context = server_tls(certificates)
    settings, limits, admission = (
        settings or listener_config(NAME),
        limits or LimitsConfig(),
        admission or make_admission(),
    )
    logger = structlog.wrap_logger(
        None, processors=[log], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO)
    )
    throttle = Throttle()
    errors = ConnectionErrors(NAME, metrics, logger, throttle)
    served = Clients(
        settings,
        Identities([rule]),
        trust or Trust.load(certificates.path("clients_ca.pem"), (), accepts_stale=False),
        admission=admission,
        dispatcher=dispatcher,
        limits=limits,
        errors=errors,
        metrics=metrics,
        log=logger,
        throttle=throttle,
    )
    through_worker = _ThroughWorker(settings, limits, served, logger) if ENDS_TLS_IN_WORKER.get() else None
    listener = Listener(
        settings,
        context,
        served.receive if through_worker is None else through_worker.receive,
        limit_reached=served.limit_before_handshake,
        admission=admission,
        errors=errors,
        metrics=metrics,
        admitted_at_once=8,
        log=logger,
    )
    with listening or socket.create_server(("127.0.0.1", 0)) as sock:
        address = Address(host, sock.getsockname()[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, sock)
            if through_worker is not None:
                nursery.start_soon(through_worker.run)
            relay = None if through_worker is None else through_worker.relay
            yield Front(address, listener, served, dispatcher, certificates, context, metrics, log, relay)
            nursery.cancel_scope.cancel()
    assert repr(served) == f"<Clients of {NAME}: 0>"
    assert not served._conversations
    assert not listener._handshakes
    assert metrics.registry.get_sample_value("kmip_gateway_client_connections", {"listener": NAME}) == 0


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until a condition is true, for 2 s at most."""
    for _ in range(400):
        if condition():
            return
        await wait_all_tasks_blocked(0.005)
    raise AssertionError("the condition has not become true")


def connect_tcp(front: Front, source: str = "127.0.0.1") -> socket.socket:
    """Connect, and send nothing."""
    sock = socket.create_connection((front.address.host, front.address.port), source_address=(source, 0))
    sock.setblocking(False)
    return sock


async def wait_for_end(sock: socket.socket) -> None:
    """Wait until the peer has closed or reset the connection."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            if not sock.recv(65536):
                return
        except ConnectionError:
            return


async def is_served(front: Front, context: SSL.Context, source: str = "127.0.0.1") -> None:
    """Connect, send a request, check its answer, and close."""
    stream = TlsStream(connect_tcp(front, source), context, server_side=False)
    await stream.handshake()
    assert number_of(await Client(stream).ask(request(5))) == 5
    stream.close_politely()


def is_open(sock: socket.socket) -> bool:
    """Return True if the peer has neither closed nor sent anything."""
    try:
        return bool(sock.recv(1)) and False
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def request(number: int = 1, version: Version = (1, 2), operations: Sequence[int] = (Operation.GET,)) -> bytes:
    """Return a request; its Unique Batch Item IDs are a number, which its answer repeats."""
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, f"key-{number}")
    mark = number.to_bytes(8, "big")
    return compose.encode_request(version, [Ask(operation, payload, mark) for operation in operations])


def number_of(response: Response) -> int:
    """Return the number of the request to which this is the answer."""
    mark = response.items[0].unique_batch_item_id
    assert mark is not None
    return int.from_bytes(mark, "big")


def padded(size: int, number: int = 1) -> bytes:
    """Return a request of exactly ``size`` bytes, a multiple of eight."""
    empty = compose.encode_request((1, 2), [Ask(Operation.ENCRYPT, ttlv.octets(Tag.DATA, b""), bytes(8))])
    data = ttlv.octets(Tag.DATA, bytes(size - len(empty)))
    frame = compose.encode_request((1, 2), [Ask(Operation.ENCRYPT, data, number.to_bytes(8, "big"))])
    assert len(frame) == size
    return frame
