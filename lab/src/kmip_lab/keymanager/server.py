"""A simulated key manager on the network: KMIP over mutual TLS. Not for production.

Keys are kept unprotected in memory or in a file, and nothing is audited. The parts that a gateway meets are real: the
handshake and its cost, the messages, the objects and their owners.
"""

import errno
import math
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import trio
from OpenSSL import SSL

from gateway.errors import ProtocolError, StreamClosedError, TlsError
from gateway.kmip import compose
from gateway.kmip.framing import FrameReader
from gateway.kmip.spec import ResultReason, Tag
from kmip_lab.certs import common_name
from kmip_lab.faults import Exchange, Fault, Faults, FaultyStream, Point
from kmip_lab.keymanager.costs import CREATE_RSA, Hsm
from kmip_lab.keymanager.crypto import KeyPairPool, new_key_pair
from kmip_lab.keymanager.engine import Batch, Engine
from kmip_lab.keymanager.journal import Journal
from kmip_lab.keymanager.replication import Replication
from kmip_lab.keymanager.roles import Access
from kmip_lab.keymanager.server_state import DeferredOperation
from kmip_lab.keymanager.store import Store

HANDSHAKE_TIMEOUT: Final = 10.0  # seconds
MAX_REQUEST_SIZE: Final = 1 << 20  # bytes
_BACKLOG: Final = 512
_LINGER: Final = 1.0  # seconds in which a client may finish sending bytes that are not read
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_PAUSE: Final = 0.1  # seconds before accepting again when descriptors or memory have run out


class _ScheduledOperation(NamedTuple):
    """A deferred operation; ``due``, of trio's clock, is the time of its execution."""

    due: float
    deferred: DeferredOperation
    batch: Batch


class KeyManager:
    """A key manager: a name, an HSM of its own, and a store that it may share with other key managers.

    Clients are identified by the common name of their certificate, and see only their own objects. ``faults`` may be
    switched at any time.

    * ``context`` is a server's (tls.server_context).
    * Costs are in seconds: the HSM spends ``handshake_cost`` after every full handshake, and ``operation_cost`` before
      every operation but Query and Discover Versions; ``costs``, by name (costs.COST_NAMES), come before both. If RSA
      key pairs have a cost of their own, a KeyPairPool makes them.
    * With ``replication``, ``store`` must be the replication's, and its roles decide whether this is a master.
    * With ``pending_for``, seconds, an operation that must be asynchronous is answered with Operation Pending, and
      executed that much later.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        *,
        context: SSL.Context,
        handshake_cost: float = 0.0,
        operation_cost: float = 0.0,
        costs: Mapping[str, float] | None = None,
        journal: Journal | None = None,
        pending_for: float | None = None,
        replication: Replication | None = None,
    ) -> None:
        self.name = name
        self.engine = Engine(name, store, journal, KeyPairPool() if costs and CREATE_RSA in costs else new_key_pair)
        self.hsm = Hsm(handshake_cost, operation_cost, costs or {})
        self.faults = Faults()
        self.replication = replication
        self._send_deferred, self._deferred = trio.open_memory_channel[_ScheduledOperation](math.inf)
        self._pending_for = pending_for or 0.0
        if pending_for is not None:
            self.engine.defer = self._defer
        if replication is not None:
            replication.thawed = self.faults.thawed
            self.engine.in_step = lambda: replication.in_step
        #: The port on which ``serve`` listens; 0 before it listens.
        self.port = 0
        #: Sessions whose handshake succeeded; full handshakes among them; sessions that are open now.
        self.sessions_opened = 0
        self.full_handshakes = 0
        self.sessions = 0
        #: Requests that were received whole, decodable or not.
        self.requests = 0
        self._context = context
        self._streams: set[FaultyStream] = set()

    def __repr__(self) -> str:
        return f"<KeyManager {self.name} on port {self.port}: {self.sessions} sessions, {self.requests} requests>"

    def handle(self, frame: bytes, owner: str) -> bytes:
        """Execute a request of the client ``owner`` and return the answer, without TLS and without cost."""
        return self.engine.handle(frame, owner)

    async def ask(self, frame: bytes, owner: str) -> bytes:
        """As ``handle``, after the HSM's cost; after a write, return once the synchronous replicas have it."""
        batch = self.engine.begin(frame, owner)
        await self._execute(batch)
        return batch.answer()

    async def serve(
        self, listener: socket.socket | tuple[str, int], *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled, on a listening socket or on a host and port (0: any free port).

        Start it in a nursery, which returns the port once it listens:
        ``await nursery.start(key_manager.serve, ("127.0.0.1", 0))``. Raises OSError if the address is not available.
        """
        sock = listen(listener) if isinstance(listener, tuple) else listener
        host, self.port = sock.getsockname()[:2]
        async with trio.open_nursery() as connections:
            if self.replication is not None:
                await connections.start(self.replication.run)
            connections.start_soon(self._execute_deferred)
            task_status.started(self.port)
            while True:
                await self._accept_until_refuse_fault(sock, connections)
                await self.faults.wait_off(Fault.REFUSE)
                sock = listen((host, self.port))

    async def _accept_until_refuse_fault(self, sock: socket.socket, connections: trio.Nursery) -> None:
        sock.setblocking(False)
        try:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, sock, connections)
                setting = await self.faults.wait_on(Fault.REFUSE)
                accepting.cancel_scope.cancel()
        finally:
            trio.lowlevel.notify_closing(sock)
            sock.close()
        if setting.reset:
            for stream in tuple(self._streams):
                stream.reset()

    async def _accept(self, sock: socket.socket, connections: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            await self.faults.thawed()
            try:
                connection = sock.accept()[0]
            except (BlockingIOError, ConnectionError):
                continue
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                await trio.sleep(_ACCEPT_PAUSE)
            else:
                connections.start_soon(self._connection, connection)

    async def _connection(self, sock: socket.socket) -> None:
        """Serve a client until it disconnects. An error of its connection ends this task only."""
        stream = FaultyStream(sock, self._context, self.faults)
        self._streams.add(stream)
        try:
            with suppress(TlsError, StreamClosedError, trio.TooSlowError):
                with trio.fail_after(HANDSHAKE_TIMEOUT):
                    await stream.handshake()
                await self._session(stream)
            await self.faults.thawed()
        finally:
            self._streams.remove(stream)
            stream.close_politely()

    async def _session(self, stream: FaultyStream) -> None:
        self.sessions_opened += 1
        self.sessions += 1
        try:
            if not stream.resumed:
                self.full_handshakes += 1
                await self.hsm.handshake()
            owner = common_name(stream.peer_certificate())
            if owner is not None:
                await self._requests(stream, owner)
        finally:
            self.sessions -= 1

    async def _requests(self, stream: FaultyStream, owner: str) -> None:
        """Answer requests in turn, until the stream ends or has bytes that are not a request.

        Those bytes get an answer, and nothing after them is read. Closing then waits up to a second for the client to
        finish sending: closing at once would reset the connection, and the client could lose the answer.
        """
        reader = FrameReader(Tag.REQUEST_MESSAGE, MAX_REQUEST_SIZE)
        while data := await self._receive(stream):
            try:
                frame = reader.feed(data)
                while frame is not None:
                    if not await self._request(stream, frame, owner):
                        return
                    frame = reader.next_frame()
                if len(reader):
                    stream.acknowledge()
            except ProtocolError as error:
                self.requests += 1
                await stream.send_all(compose.failure(None, ResultReason.INVALID_MESSAGE, str(error)))
                await stream.aclose(linger=_LINGER)
                return

    async def _receive(self, stream: FaultyStream) -> bytes:
        with self.faults.idle():
            return await stream.receive_some()

    async def _request(self, stream: FaultyStream, frame: bytes, owner: str) -> bool:
        """Answer one request; return False if the connection can't be used any more."""
        self.requests += 1
        batch = self.engine.begin(frame, owner)
        exchange = Exchange(stream, batch.operations, batch.unique_identifiers)
        await self.faults.at(Point.REQUEST, exchange)
        await self._execute(batch, standby=exchange.standby)
        exchange.answer = batch.answer()
        await self.faults.at(Point.EXECUTED, exchange)
        await self.faults.at(Point.ANSWER, exchange)
        await stream.send_all(exchange.answer)
        if batch.undecodable:
            await stream.aclose(linger=_LINGER)
        return not batch.undecodable

    async def _execute(self, batch: Batch, *, standby: bool = False) -> None:
        """Execute all items. ``standby``: as a standby, because of a fault; otherwise as the roles say at each item."""
        while batch.pending is not None:
            batch.access = self._access(standby)
            names, charged = batch.cost
            await self.hsm.operation(names, charged=charged)
            await self.faults.thawed()
            batch.access = self._access(standby)  # again: the role may have changed while the HSM was busy
            batch.execute()
        if batch.wrote and self.replication is not None:
            await self.replication.synchronize()

    def _defer(self, deferred: DeferredOperation, batch: Batch) -> None:
        self._send_deferred.send_nowait(_ScheduledOperation(trio.current_time() + self._pending_for, deferred, batch))

    async def _execute_deferred(self) -> None:
        """Execute the deferred operations in the order of their requests, each when it is due."""
        async for due, deferred, batch in self._deferred:
            await trio.sleep_until(due)
            await self.faults.thawed()
            if deferred.start():
                await self._execute(batch)
                deferred.finish(batch.results[0])

    def _access(self, standby: bool) -> Access:
        if standby:
            return Access.INFORMATION_ONLY
        if self.replication is None:
            return Access.FULL
        return self.replication.access()


def listen(address: tuple[str, int]) -> socket.socket:
    """Return a listening socket on a host, by name or IP address, and a port. Raises OSError."""
    family, *_ = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address, family=family, backlog=_BACKLOG)
