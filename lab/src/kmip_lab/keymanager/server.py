"""A simulated key manager on the network: KMIP over mutual TLS. Unfit for production.

Keys lie unprotected in memory or in a file, and nothing is audited. What is real is what a gateway meets: the handshake
and its cost, the messages, the objects and their owners.
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
from kmip_lab.keymanager.batch import Batch, Engine
from kmip_lab.keymanager.costs import CREATE_RSA, Hsm
from kmip_lab.keymanager.deferred import Deferred
from kmip_lab.keymanager.journal import Journal
from kmip_lab.keymanager.keys import KeyPairPool, new_key_pair
from kmip_lab.keymanager.operations import Standing
from kmip_lab.keymanager.replication import Replication
from kmip_lab.keymanager.store import Store

HANDSHAKE_TIMEOUT: Final = 10.0  # seconds
MAX_REQUEST_SIZE: Final = 1 << 20  # bytes
_BACKLOG: Final = 512
_LINGER: Final = 1.0  # seconds in which a client may finish sending what is not read any more
_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE: Final = 0.1  # seconds before accepting again when there is no room for another connection


class _Later(NamedTuple):
    """An operation that was deferred, and when it is to be executed."""

    due: float
    deferred: Deferred
    batch: Batch


class KeyManager:
    """One key manager: a name, an HSM of its own, and a store that it may share with others.

    ``context`` is a server's (tls.server_context). Costs are in seconds: ``handshake_cost`` is spent after every full
    handshake, ``operation_cost`` before every operation but Query and Discover Versions, and ``costs``, by name
    (costs.COST_NAMES), come before both; the HSM does one thing at a time. Where RSA key pairs have a cost of their
    own, a KeyPairPool makes them. With ``replication``, the store is the replication's, and its roles say whether this
    is a master. With ``pending_for``, seconds, an operation that is to be asynchronous is answered with Operation
    Pending, and executed that much later. Clients are told apart by the common name of their certificate, and see their
    own objects only. ``faults`` may be switched at any time.
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
        self._send_deferred, self._deferred = trio.open_memory_channel[_Later](math.inf)
        self._pending_for = pending_for or 0.0
        if pending_for is not None:
            self.engine.defer = self._defer
        if replication is not None:
            replication.thawed = self.faults.thawed
            self.engine.in_step = lambda: replication.in_step
        #: The port that is listened on; 0 before ``serve`` has begun.
        self.port = 0
        #: Sessions whose handshake succeeded; those of them that shook hands in full; those that are open now.
        self.sessions_opened = 0
        self.full_handshakes = 0
        self.sessions = 0
        #: Requests that were received whole, readable or not.
        self.requests = 0
        self._context = context
        self._streams: set[FaultyStream] = set()

    def __repr__(self) -> str:
        return f"<KeyManager {self.name} on port {self.port}: {self.sessions} sessions, {self.requests} requests>"

    def handle(self, frame: bytes, owner: str) -> bytes:
        """Execute one request of the client ``owner`` and return the answer; no TLS, and no cost."""
        return self.engine.handle(frame, owner)

    async def ask(self, frame: bytes, owner: str) -> bytes:
        """As ``handle``, with the HSM's cost, and answered when the synchronous replicas have what was written."""
        batch = self.engine.begin(frame, owner)
        await self._execute(batch)
        return batch.answer()

    async def serve(
        self, listener: socket.socket | tuple[str, int], *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled, on a listening socket or on a host and port (0: any free one).

        Reports the port once connections are taken. Raises OSError where the address can't be had. To be started in a
        nursery: ``await nursery.start(key_manager.serve, ("127.0.0.1", 0))``.
        """
        sock = listen(listener) if isinstance(listener, tuple) else listener
        host, self.port = sock.getsockname()[:2]
        async with trio.open_nursery() as connections:
            if self.replication is not None:
                await connections.start(self.replication.run)
            connections.start_soon(self._execute_deferred)
            task_status.started(self.port)
            while True:
                await self._accept_until_refused(sock, connections)
                await self.faults.wait_off(Fault.REFUSE)
                sock = listen((host, self.port))

    async def _accept_until_refused(self, sock: socket.socket, connections: trio.Nursery) -> None:
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
                if error.errno not in _NO_ROOM:
                    raise
                await trio.sleep(_PAUSE)
            else:
                connections.start_soon(self._connection, connection)

    async def _connection(self, sock: socket.socket) -> None:
        """Serve one client until it leaves. Whatever happens to its connection stays here."""
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
        """Answer requests in turn, up to the end of the stream or to bytes that are no request.

        After the answer to those nothing more is read, so that closing must wait for the client to finish sending.
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
        """Answer one request; tell whether the connection is fit for another."""
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
        """Execute all of it, ``standby`` as a fault has it or as the roles have it at each item."""
        while batch.pending is not None:
            batch.standing = self._standing(standby)
            names, charged = batch.cost
            await self.hsm.operation(names, charged=charged)
            await self.faults.thawed()
            batch.standing = self._standing(standby)  # anew: it may have changed while the HSM was busy
            batch.execute()
        if batch.wrote and self.replication is not None:
            await self.replication.synchronize()

    def _defer(self, deferred: Deferred, batch: Batch) -> None:
        self._send_deferred.send_nowait(_Later(trio.current_time() + self._pending_for, deferred, batch))

    async def _execute_deferred(self) -> None:
        """Execute what was deferred, in turn."""
        async for due, deferred, batch in self._deferred:
            await trio.sleep_until(due)
            await self.faults.thawed()
            if deferred.start():
                await self._execute(batch)
                deferred.finish(batch.results[0])

    def _standing(self, standby: bool) -> Standing:
        if standby:
            return Standing.STANDBY
        if self.replication is None:
            return Standing.MASTER
        return self.replication.standing()


def listen(address: tuple[str, int]) -> socket.socket:
    """A listening socket on a host, by name or IP address, and a port. Raises OSError."""
    family, *_ = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address, family=family, backlog=_BACKLOG)
