"""Relay: a TLS worker's side of its clients. Whole requests go to the core, and its answers come back.

Here are the bounds that need the bytes: the size of a request, the time for it to arrive, the memory held, the time for
an answer to be read. Everything that needs to understand a request is the core's.
"""

import hashlib
import json
from contextlib import suppress
from typing import Final

import trio

from gateway.errors import BuffersFullError, ClientAbandonedError, GatewayError, StreamClosedError, TruncatedError
from gateway.front.admission import Account, Admission
from gateway.front.channel import Kind, Message, Opening, encode_error
from gateway.front.pipe import Pipe
from gateway.kmip.framing import FrameReader
from gateway.kmip.spec import Tag
from gateway.tls import TlsStream

_FRAME, _ANSWER = Kind.FRAME, Kind.ANSWER  # to look up a member of an enumeration is a call
_SMALL: Final = 1024  # bytes of a request that are not counted as held
_LOOK_FOR_LEFT: Final = 0.5  # s between two looks at whether clients whose requests are under way have left
_DRAIN_LINGER: Final = 1.0  # s in which a client may finish sending after a drain has closed its connection
_CLOSE_WITHIN: Final = 10.0  # s for the core to close a connection that the worker has reported as failed


class RelayLimits:
    """The bounds of one listener: bytes of a request, seconds for it to arrive, seconds for an answer to be read."""

    __slots__ = ("max_request_size", "request_timeout", "send_timeout")

    def __init__(self, max_request_size: int, request_timeout: float, send_timeout: float) -> None:
        self.max_request_size = max_request_size
        self.request_timeout = request_timeout
        self.send_timeout = send_timeout


class RequestsUnderWay:
    """The clients whose requests are at the core, for the task that looks whether such clients have left."""

    def __init__(self) -> None:
        self.clients: set[RelayedClient] = set()
        self._added = trio.Event()

    def add(self, client: "RelayedClient") -> None:
        """Add a client; ``wait`` ends."""
        self.clients.add(client)
        self._added.set()

    async def wait(self) -> None:
        """Wait until there is a client."""
        if not self.clients:
            self._added = trio.Event()
            await self._added.wait()


class RelayedClient:
    """One client connection: its reader, its answer under way, and its end."""

    def __init__(
        self,
        number: int,
        stream: TlsStream,
        *,
        limits: RelayLimits,
        account: Account,
        pipe: Pipe,
        under_way: RequestsUnderWay,
    ) -> None:
        self.number = number
        self.stream = stream
        self.asked_at = 0.0  # trio's time at which the last request was sent to the core
        self.has_left = False
        self.is_sending = False  # the rest of an answer, which the client does not read at once
        self._is_idle = False  # waiting for the first byte of a request
        self._ends_when_idle = False  # the core drains
        self._limits = limits
        self._account = account
        self._pipe = pipe
        self._under_way = under_way
        self._reader = FrameReader(Tag.REQUEST_MESSAGE, limits.max_request_size)
        self._held = 0
        self._answered = trio.Event()
        self._rest: memoryview | None = None  # of an answer that the socket has not taken
        self._is_undelivered = False  # the client has closed before an answer
        self._closing = trio.CancelScope()  # cancelled once the core closes the connection
        self._linger = 0.0  # s for which the client may finish sending, as the core says when it closes

    async def run(self) -> None:
        """Relay until the client or the core closes the connection. The stream is closed then."""
        try:
            with self._closing:
                if await self._relay_until_ended():
                    return
                self._closing.deadline = trio.current_time() + _CLOSE_WITHIN  # the core knows, and closes
                await trio.sleep_forever()
            with suppress(GatewayError):
                await self._send_rest()
            await self.stream.aclose(linger=self._linger)
        finally:
            self._under_way.clients.discard(self)
            self.stream.close()
            self._hold(0)

    async def _relay_until_ended(self) -> bool:
        """Return True if the client has ended the connection, and False if the core must end it."""
        try:
            while True:
                frame = await self._next_frame()
                if frame is None:
                    self._pipe.send(Kind.ENDED, self.number)
                    if self._ends_when_idle:
                        await self.stream.aclose(linger=_DRAIN_LINGER)
                    else:
                        self.stream.close_politely()
                    return True
                self._answered = trio.Event()
                self.asked_at = trio.current_time()
                self._under_way.add(self)
                if self._pipe.is_full:
                    await self._pipe.wait_for_room()
                self._pipe.send(_FRAME, self.number, frame)
                del frame
                await self._answered.wait()
                await self._send_rest()
                self._hold(0)
        except GatewayError as error:
            self._pipe.send(Kind.FAILED, self.number, encode_error(error))
            return False

    async def _next_frame(self) -> bytes | None:
        """Return the next request, whole; None if the client has closed. Raises ProtocolError for anything else."""
        frame = data = None
        if self._reader.beginning:
            frame = self._reader.next_frame()
        if frame is None and self._reader.beginning:
            return await self._rest_of_frame()
        if frame is None:
            if self._ends_when_idle and self.stream.is_idle():
                return None
            self._is_idle = True
            data = await self.stream.receive_some()
            self._is_idle = False
            if not data:
                return None
            frame = self._reader.feed(data)
            if frame is None:
                return await self._rest_of_frame()
        if frame is not data or len(frame) > _SMALL:
            self._hold(len(frame) + len(self._reader))
        return frame

    async def _rest_of_frame(self) -> bytes:
        self._pipe.send(Kind.BEGUN, self.number)
        with trio.move_on_after(self._limits.request_timeout):
            while True:
                self._hold(len(self._reader))
                self.stream.acknowledge()
                data = await self.stream.receive_some()
                if not data:
                    raise TruncatedError("the connection ended in the middle of a request")
                frame = self._reader.feed(data)
                if frame is not None:
                    self._hold(len(frame) + len(self._reader))
                    return frame
        raise ClientAbandonedError("reading_timeout")

    def _hold(self, size: int) -> None:
        """Count ``size`` bytes as held from now on. Raises BuffersFullError if they exceed the worker's share."""
        if size == self._held:
            return
        limit = self._account.hold(size - self._held)
        if limit is not None:
            raise BuffersFullError(
                f"the gateway has no memory left for the request (limit {limit.value}); try again later"
            )
        self._held = size

    def answer(self, frame: bytes) -> None:
        """Send an answer; what the client does not read at once is sent by its own task, under a deadline."""
        self._under_way.clients.discard(self)
        try:
            sent = self.stream.send_now(frame)
        except StreamClosedError:
            self._is_undelivered = True
        else:
            self._rest = memoryview(frame)[sent:] if sent < len(frame) else None
        self._answered.set()

    async def _send_rest(self) -> None:
        """Send what is left of an answer. Raises GatewayError if the client does not read it, or has closed.

        The core may close the connection meanwhile: the answer is its last, and is sent nevertheless.
        """
        if self._is_undelivered:
            raise ClientAbandonedError("client_closed")
        rest, self._rest = self._rest, None
        if rest is None:
            return
        if self._account.hold(len(rest)) is not None:
            raise ClientAbandonedError("unread")
        self.is_sending = True
        try:
            with trio.move_on_after(self._limits.send_timeout, shield=True):
                await self.stream.send_all(rest)
                return
            raise ClientAbandonedError("sending_timeout")
        except StreamClosedError:
            raise ClientAbandonedError("client_closed") from None
        finally:
            self.is_sending = False
            self._account.hold(-len(rest))

    def close(self, linger: float) -> None:
        """End the connection as the core says, after the last answer."""
        self._linger = linger
        self._closing.cancel()

    def close_if_idle(self) -> None:
        """End the connection unless a request has arrived, at least in part: else after that request."""
        if self._is_idle and self.stream.is_idle():
            self._is_idle = False
            self._pipe.send(Kind.ENDED, self.number)
            self.close(_DRAIN_LINGER)
        else:
            self._ends_when_idle = True

    def cut(self) -> None:
        """End the connection at once, also if an answer is not sent whole."""
        self.stream.cut()
        self._closing.cancel()

    def check_left(self, now: float) -> None:
        """Tell the core, once, if the client of a request under way has closed or reset its connection."""
        if not self.has_left and now - self.asked_at >= _LOOK_FOR_LEFT and self.stream.peer_has_left():
            self.has_left = True
            self._pipe.send(Kind.LEFT, self.number)


class Relay:
    """The clients of one TLS worker, and its pipe to the core."""

    def __init__(self, pipe: Pipe, admission: Admission) -> None:
        self._pipe = pipe
        self._admission = admission
        self._clients: dict[int, RelayedClient] = {}
        self._under_way = RequestsUnderWay()
        self._last = 0

    def __len__(self) -> int:
        return len(self._clients)

    def __repr__(self) -> str:
        return f"<Relay: {len(self)} clients>"

    async def receive(
        self, stream: TlsStream, peer: str, seconds: float, *, listener: str, limits: RelayLimits
    ) -> None:
        """Relay one client whose handshake took ``seconds``, from its opening to its end."""
        client = self._open(stream, peer, seconds, listener, limits)
        try:
            await client.run()
        finally:
            del self._clients[client.number]

    def _open(self, stream: TlsStream, peer: str, seconds: float, listener: str, limits: RelayLimits) -> RelayedClient:
        """Tell the core about a client. Apart from ``receive``, whose frame would keep the client's certificates."""
        certificate = stream.peer_certificate_der() or b""
        account = self._admission.account_of(hashlib.sha256(certificate).hexdigest())
        self._last += 1
        client = self._clients[self._last] = RelayedClient(
            self._last, stream, limits=limits, account=account, pipe=self._pipe, under_way=self._under_way
        )
        issuers = stream.issuers_der() or ()
        opening = Opening(listener, peer, stream.version, stream.resumed, seconds, certificate, issuers)
        self._pipe.send(Kind.OPENED, client.number, opening.encode())
        return client

    def handle(self, message: Message) -> None:
        """Take a message of the core about a connection; one that has ended meanwhile is ignored."""
        client = self._clients.get(message.connection)
        if client is None:
            return
        if message.kind == _ANSWER:
            client.answer(message.payload)
        elif message.kind == Kind.CLOSE:
            client.close(json.loads(message.payload) if message.payload else 0.0)
        elif message.kind == Kind.CLOSE_IF_IDLE:
            client.close_if_idle()
        elif message.kind == Kind.CUT:
            client.cut()

    async def look_for_left_clients(self) -> None:
        """Look at the clients with a request under way, for ever."""
        while True:
            await self._under_way.wait()
            await trio.sleep(_LOOK_FOR_LEFT)
            now = trio.current_time()
            for client in list(self._under_way.clients):
                client.check_left(now)
