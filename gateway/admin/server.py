"""The admin listener: HTTP/1.1 over TCP or TLS, for Prometheus and for the programs that start and stop the gateway.

h11 reads and writes HTTP; this module owns the connections and their bounds, ``access`` says who may read the metrics.
The port only reads, and its default address is the machine's own. A stranger costs the gateway's clients little: few
connections, short deadlines, small requests without a body, a bounded rate of connections and of requests on each. The
server speaks HTTP/1.1 and 1.0 only: an upgrade is ignored, and HTTP/2 is refused.
"""

import socket
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple

import h11
import trio
from OpenSSL import SSL

from gateway import log
from gateway.admin.access import Access
from gateway.admin.answer import HttpAnswer
from gateway.admin.routes import Routes
from gateway.admin.tls_stream import TlsAdminStream
from gateway.errors import GatewayError
from gateway.tls import TlsStream

BACKLOG: Final = 64  # connections that wait to be accepted; more would exceed the timeouts of health checks
_CHUNK: Final = 4096  # bytes read at once
_GRACE: Final = 0.5  # s for answers under way when the server ends
_LINGER: Final = 0.5  # s in which a refused client may finish sending, so that a reset does not destroy the answer
_LINGER_BYTES: Final = 64 * 1024
_PAUSE: Final = 0.1  # s after a failed accept
_STREAM_BUFFER: Final = 16 * 1024  # bytes of a stream that the kernel holds, of which it has twice as many
_VERSIONS: Final = {b"1.0", b"1.1"}


class AdminLimits(NamedTuple):
    """The bounds of the admin port. Times are in seconds, rates in events a second, sizes in bytes."""

    connections: int = 32
    connections_per_second: float = 200.0
    requests_per_second: float = 10.0  # on each connection, pipelined or not
    request_burst: int = 3
    request_size: int = 8192  # of the request line and the headers together
    handshakes_per_second: float = 20.0  # with TLS, which costs the core some milliseconds for each
    idle: float = 10.0
    read: float = 5.0
    send: float = 5.0


class RateLimiter:
    """A rate limit that waits: at most ``burst`` turns at once, and ``rate`` turns a second."""

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._burst = burst
        self._next = float("-inf")

    async def turn(self) -> None:
        """Wait until the next turn is due."""
        earliest = trio.current_time() - (self._burst - 1) * self._interval
        due = max(self._next, earliest)
        self._next = due + self._interval
        await trio.sleep_until(due)


class AdminConnection:
    """A client of the admin port. Each request is answered before the next is read."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, routes: Routes, limits: AdminLimits) -> None:
        self._stream = stream
        self._has_certificate = isinstance(stream, TlsAdminStream) and stream.has_certificate
        self._routes = routes
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.request_size)
        self._rate = RateLimiter(limits.requests_per_second, limits.request_burst)
        self._scope = trio.CancelScope()
        self.served_at = trio.current_time()  # time of acceptance, or of the last request

    def cancel(self) -> None:
        """Close the connection, also while a request is being answered."""
        self._scope.cancel()

    async def run(self) -> None:
        """Serve until the client disconnects, exceeds a bound, or is cancelled; then close the stream."""
        with self._scope:
            try:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while await self._exchange():
                        await self._rate.turn()
            finally:
                await trio.aclose_forcefully(self._stream)

    async def _exchange(self) -> bool:
        """Read a request and answer it; return True if the connection may carry a next request."""
        try:
            request = await self._receive()
            if request is None:
                return False
            refusal = self._refusal(request)
        except h11.RemoteProtocolError as error:
            refusal = HttpAnswer.of(_status(error.error_status_hint))
            request = None
        if request is None or refusal is not None:
            await self._send(refusal or HttpAnswer.of(HTTPStatus.BAD_REQUEST), is_last=True)
            await self._linger()
            return False
        self.served_at = trio.current_time()
        answer = await self._answer(request)
        if answer.stream is not None and request.method != b"HEAD":
            await self._send_stream(answer, answer.stream())
            return False
        await self._send(answer, head_only=request.method == b"HEAD")
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def _receive(self) -> h11.Request | None:
        """Return the next request's head; None if the client disconnects or is too slow. Raise RemoteProtocolError."""
        with trio.move_on_after(self._limits.idle) as deadline:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = await self._stream.receive_some(_CHUNK)
                deadline.deadline = min(deadline.deadline, trio.current_time() + self._limits.read)
                self._http.receive_data(bytes(data))
            return event if isinstance(event, h11.Request) else None
        return None

    def _refusal(self, request: h11.Request) -> HttpAnswer | None:
        if request.http_version not in _VERSIONS:
            return HttpAnswer.of(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        if not isinstance(self._http.next_event(), h11.EndOfMessage):
            return HttpAnswer.of(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a request here has no body")
        return None

    async def _answer(self, request: h11.Request) -> HttpAnswer:
        headers = {name: value.decode("latin-1") for name, value in reversed(list(request.headers))}
        try:
            return await self._routes.answer(
                request.method.decode(),
                request.target.decode("latin-1"),
                headers.get(b"host"),
                headers.get(b"authorization"),
                has_certificate=self._has_certificate,
            )
        except Exception as error:  # noqa: BLE001 - a fault of a route must cost only its answer
            log.get("admin").error("internal error: admin request failed; report this bug", exc_info=error)
            return HttpAnswer.of(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _send(self, answer: HttpAnswer, *, head_only: bool = False, is_last: bool = False) -> None:
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", answer.media_type),
            ("Content-Length", str(len(answer.body))),
            *answer.headers,
            *([("Connection", "close")] if is_last else []),
        ]
        status = answer.status
        head = h11.Response(status_code=status, reason=status.phrase.encode(), headers=headers)
        parts: list[h11.Event] = [head, *([] if head_only else [h11.Data(data=answer.body)]), h11.EndOfMessage()]
        data = b"".join(self._http.send(part) or b"" for part in parts)
        with trio.move_on_after(self._limits.send) as deadline:
            await self._stream.send_all(data)
        if deadline.cancelled_caught:
            raise trio.BrokenResourceError

    async def _send_stream(self, answer: HttpAnswer, chunks: AsyncGenerator[bytes]) -> None:
        """Send the chunks as they come, until the client disconnects or is too slow.

        The kernel holds little of it for a client that does not read.
        """
        if isinstance(self._stream, (trio.SocketStream, TlsAdminStream)):
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _STREAM_BUFFER)
        headers = [("Date", formatdate(usegmt=True)), ("Content-Type", answer.media_type), *answer.headers]
        headers.append(("Connection", "close"))
        head = h11.Response(status_code=answer.status, reason=answer.status.phrase.encode(), headers=headers)
        data = self._http.send(head) or b""
        async with aclosing(chunks):
            async for chunk in chunks:
                data += self._http.send(h11.Data(data=chunk)) or b""
                with trio.move_on_after(self._limits.send) as deadline:
                    await self._stream.send_all(data)
                if deadline.cancelled_caught:
                    raise trio.BrokenResourceError
                self.served_at = trio.current_time()
                data = b""

    async def _linger(self) -> None:
        with trio.move_on_after(_LINGER):
            await self._stream.send_eof()
            discarded = 0
            while discarded < _LINGER_BYTES and (data := await self._stream.receive_some(_CHUNK)):
                discarded += len(data)


def _status(hint: int) -> HTTPStatus:
    return HTTPStatus(hint) if hint in set(HTTPStatus) else HTTPStatus.BAD_REQUEST


class _Handshake:
    """A connection in its TLS handshake."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.scope = scope
        self.served_at = trio.current_time()

    def cancel(self) -> None:
        self.scope.cancel()


class AdminServer:
    """The connections of the admin port.

    When ``limits.connections`` are open and a client connects, the connection whose last request is the longest ago is
    closed, so that silent clients can't keep out the rest. With a ``context``, the port speaks TLS.
    """

    def __init__(self, routes: Routes, limits: AdminLimits | None = None, context: SSL.Context | None = None) -> None:
        self._routes = routes
        self._context = context
        self._limits = limits or AdminLimits()
        self._rate = RateLimiter(self._limits.connections_per_second, self._limits.connections)
        self._handshakes = RateLimiter(self._limits.handshakes_per_second, self._limits.connections)
        self._connections: set[AdminConnection | _Handshake] = set()
        self._log = log.get("admin")
        self._throttle = log.Throttle(interval=60.0)

    def __repr__(self) -> str:
        return f"<AdminServer {len(self._connections)} connections>"

    async def run(self, listening: socket.socket, until: trio.Event) -> None:
        """Serve on a listening socket until the event. The caller keeps and closes the socket."""
        async with trio.open_nursery() as clients:
            with listening.dup() as duplicate:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(self._accept, trio.socket.from_stdlib_socket(duplicate), clients)
                    await until.wait()
                    accepting.cancel_scope.cancel()
            clients.cancel_scope.deadline = trio.current_time() + _GRACE

    async def _accept(self, listening: trio.socket.SocketType, clients: trio.Nursery) -> None:
        while True:
            await (self._rate if self._context is None else self._handshakes).turn()
            try:
                sock, _ = await listening.accept()
            except OSError as error:
                self._throttle.warn(self._log, "accept", "cannot accept admin clients", reason=error.strerror)
                await trio.sleep(_PAUSE)
                continue
            self._evict_oldest()
            if self._context is not None:
                clients.start_soon(self._shake_hands, sock, self._context)
                continue
            try:
                stream = trio.SocketStream(sock)
            except OSError:  # the client has disconnected already
                sock.close()
                continue
            connection = AdminConnection(stream, self._routes, self._limits)
            self._connections.add(connection)
            clients.start_soon(self._serve, connection)

    def settings_changed(self, names: Iterable[str], access: Access, context: SSL.Context | None) -> None:
        """Use this access from now on, and close all connections: they were opened under another one."""
        self._routes.settings_changed(names, access)
        self._context = context
        for connection in list(self._connections):
            self._connections.discard(connection)
            connection.cancel()

    async def _shake_hands(self, sock: trio.socket.SocketType, context: SSL.Context) -> None:
        """Make the TLS handshake of a connection, within the time to read a request, and serve it."""
        plain = socket.socket(fileno=sock.detach())
        try:
            stream = TlsStream(plain, context, server_side=True)
        except OSError:
            plain.close()
            return
        handshake = _Handshake(trio.CancelScope(deadline=trio.current_time() + self._limits.read))
        self._connections.add(handshake)
        is_finished = False
        try:
            with handshake.scope, suppress(GatewayError):
                await stream.handshake()
                is_finished = True
        finally:
            self._connections.discard(handshake)
            if not is_finished:
                stream.close()
        if is_finished:
            connection = AdminConnection(TlsAdminStream(stream), self._routes, self._limits)
            self._connections.add(connection)
            await self._serve(connection)

    def _evict_oldest(self) -> None:
        if len(self._connections) >= self._limits.connections:
            self._throttle.warn(
                self._log,
                "connections",
                "too many admin connections: closed the connection whose last request is the longest ago",
                allowed=self._limits.connections,
            )
            oldest = min(self._connections, key=lambda connection: connection.served_at)
            self._connections.discard(oldest)
            oldest.cancel()

    async def _serve(self, connection: AdminConnection) -> None:
        try:
            await connection.run()
        except Exception as error:  # noqa: BLE001 - no client of this port may end the gateway
            self._log.error("internal error: admin connection closed; report this bug", exc_info=error)
        finally:
            self._connections.discard(connection)
