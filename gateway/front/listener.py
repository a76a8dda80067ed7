"""Listener: accepts clients, admits them, shakes hands under a deadline, and has a conversation with each."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Final, NamedTuple

import trio
from OpenSSL import SSL

from gateway.dispatcher import Dispatcher
from gateway.errors import OUT_OF_RESOURCES, GatewayError, TlsError
from gateway.front.admission import Admission, Limit
from gateway.front.conversation import Conversation, Limits, Phase
from gateway.identity import Identities, Principal
from gateway.log import Log, Throttle, quoted
from gateway.metrics import Metrics
from gateway.tls import UNREADABLE_CERTIFICATE, TlsStream

BACKLOG: Final = 1024  # connections that the kernel keeps until they are accepted
_ACCEPTED_AT_ONCE: Final = 64  # connections taken before others get a turn
_TOLD_AT_ONCE: Final = 64  # clients over a limit that may shake hands to hear so; others are closed
_LINGER: Final = 1.0  # s for a client to take the alert that ends its handshake
_BREATH: Final = 0.1  # s without accepting when the process is out of descriptors or memory


class ListenerSettings(NamedTuple):
    """``name`` is the label of its metrics; ``handshake_timeout`` is in seconds."""

    name: str
    max_clients: int = 10_000
    handshake_timeout: float = 10.0


class Listener:
    """One listening socket, with the TLS context, the identity rules and the limits that hold behind it."""

    def __init__(
        self,
        settings: ListenerSettings,
        context: SSL.Context,
        identities: Identities,
        *,
        admission: Admission,
        dispatcher: Dispatcher,
        limits: Limits,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._settings = settings
        self._context = context
        self._identities = identities
        self._metrics = metrics
        self._log = log
        throttle = Throttle()
        self._converse: Callable[..., Conversation] = partial(
            Conversation,
            admission=admission,
            dispatcher=dispatcher,
            limits=limits,
            metrics=metrics,
            log=log,
            throttle=throttle,
        )
        self._throttle = throttle
        self._admission = admission
        self._conversations: set[Conversation] = set()
        self._handshakes: set[trio.CancelScope] = set()
        self._draining = False
        self._clients = 0
        self._told = 0  # clients over a limit that are being told so
        self._accept_scope = trio.CancelScope()
        self._listening: socket.socket | None = None  # while ``serve`` accepts or refuses
        self._resumed = trio.Event()  # unset while new connections are refused
        self._resumed.set()
        self._accepting = metrics.accepting.labels(settings.name)
        self._connections = metrics.client_connections.labels(settings.name)

    def __repr__(self) -> str:
        return f"<Listener {self._settings.name}: {self._clients} clients>"

    @property
    def requests_in_flight(self) -> int:
        """Requests that were read and are not yet answered."""
        return sum(conversation.phase is Phase.ANSWERING for conversation in self._conversations)

    async def serve(self, listening: socket.socket) -> None:
        """Accept on a listening socket until drained; returns when the last conversation has ended.

        The socket is closed by then, and here only: who accepts must not find its descriptor to be another's.
        """
        async with trio.open_nursery() as clients:
            with self._accept_scope, closing(listening), self._owning(listening):
                while not self._draining:
                    if not self._resumed.is_set():
                        await self._resumed.wait()
                    await trio.lowlevel.wait_readable(listening)  # ``stop_accepting`` wakes it, too
                    if self._resumed.is_set():
                        await self._accept_some(listening, clients)

    @contextmanager
    def _owning(self, listening: socket.socket) -> Iterator[None]:
        """Let ``stop_accepting`` and ``resume_accepting`` use the socket until it is closed."""
        listening.setblocking(False)
        self._listening = listening
        self._accepting.set(1)
        try:
            yield
        finally:
            self._listening = None
            self._accepting.set(0)

    def stop_accepting(self) -> None:
        """Have the kernel refuse new connections (ECONNREFUSED); the port stays bound, and clients stay connected.

        ``shutdown`` leaves the LISTEN state on Linux (HAProxy pauses its listeners so); connections that the kernel
        has taken and nobody has accepted are reset. Another process could listen on the port from then on, since both
        set SO_REUSEADDR; so that is taken back for as long as nobody listens.
        """
        if self._listening is None or not self._resumed.is_set():
            return
        self._resumed = trio.Event()
        self._listening.shutdown(socket.SHUT_RD)
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        self._accepting.set(0)

    def resume_accepting(self) -> None:
        """Accept new connections again. If the kernel refuses to listen, log that; the caller tries again later."""
        if self._listening is None or self._resumed.is_set():
            return
        try:
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # clients hold the port, too
            self._listening.listen(BACKLOG)
        except OSError as error:
            self._throttle.warn(self._log, "listen", "can't accept clients", reason=error.strerror)
            return
        self._resumed.set()
        self._accepting.set(1)

    def drain(self) -> None:
        """Take no new clients, give up on handshakes; let each conversation end after the answer that is due."""
        self._draining = True
        self._accept_scope.cancel()
        for handshake in list(self._handshakes):
            handshake.cancel()
        for conversation in list(self._conversations):
            conversation.drain()

    async def _accept_some(self, listening: socket.socket, clients: trio.Nursery) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, address = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    self._throttle.warn(self._log, "accept", "can't accept clients", reason=error.strerror)
                    await trio.sleep(_BREATH)
                    return
                continue  # the client has gone already
            over = self._limit_reached()
            if over is not None and self._told >= _TOLD_AT_ONCE:
                self._metrics.client_rejected.labels(over.value).inc()
                self._failed("limit")
                sock.close()
                continue
            self._clients += 1
            self._admission.clients += 1
            self._told += over is not None
            clients.start_soon(self._serve_client, sock, f"{address[0]}:{address[1]}", over)

    def _limit_reached(self) -> Limit | None:
        if self._clients >= self._settings.max_clients:
            return Limit.LISTENER_CLIENTS
        return Limit.CLIENTS if self._admission.clients >= self._admission.max_clients else None

    async def _serve_client(self, sock: socket.socket, peer: str, over: Limit | None) -> None:
        self._connections.inc()
        try:
            with closing(TlsStream(sock, self._context, server_side=True)) as stream:
                if await self._shake_hands(stream, peer):
                    await self._have_conversation(stream, peer, over)
        except Exception as error:  # noqa: BLE001 - a fault of ours that one client meets must not end the others
            self._failed("internal")
            self._log.error("client lost to a fault of the gateway", peer=peer, exc_info=error)
        finally:
            sock.close()
            self._clients -= 1
            self._admission.clients -= 1
            self._told -= over is not None
            self._connections.dec()

    async def _shake_hands(self, stream: TlsStream, peer: str) -> bool:
        began = time.perf_counter()
        try:
            reason = await self._try_to_shake_hands(stream)
        except TlsError as error:
            self._failed(error.reason)
            key = f"handshake {error.reason}"
            self._throttle.warn(self._log, key, "handshake failed", peer=peer, reason=error.reason, detail=str(error))
            await stream.aclose(linger=_LINGER)  # in TLS 1.3 a request may be there already, unread
            return False
        except GatewayError:
            reason = "gone"
        if reason:
            self._failed(reason)
            return False
        self._metrics.handshake_succeeded(
            self._settings.name, stream.version, time.perf_counter() - began, resumed=stream.resumed
        )
        return True

    async def _try_to_shake_hands(self, stream: TlsStream) -> str:
        """Shake hands under the deadline, which a drain brings forward. Returns why it was given up, or nothing."""
        with trio.move_on_after(0 if self._draining else self._settings.handshake_timeout) as scope:
            self._handshakes.add(scope)
            try:
                await stream.handshake()
                return ""
            finally:
                self._handshakes.discard(scope)
        return "drain" if self._draining else "handshake_timeout"

    async def _have_conversation(self, stream: TlsStream, peer: str, over: Limit | None) -> None:
        conversation = self._converse(stream, self._identify(stream, peer), peer=peer, over=over)
        if self._draining:
            conversation.drain()
        self._conversations.add(conversation)
        try:
            ended = await conversation.run()
        finally:
            self._conversations.discard(conversation)
        self._metrics.client_requests_per_connection.observe(conversation.requests)
        if ended not in _ORDINARY_ENDS:
            self._failed(ended)

    def _identify(self, stream: TlsStream, peer: str) -> Principal | None:
        """Ask on every connection, resumed ones included: on those, no handshake has looked at the certificate."""
        try:
            certificate = stream.peer_certificate_der()
            return None if certificate is None else self._identities.identify(certificate)
        except (TlsError, *UNREADABLE_CERTIFICATE) as error:
            self._throttle.warn(
                self._log, "certificate", "client certificate can't be read", peer=peer, detail=quoted(repr(error))
            )
            return None

    def _failed(self, reason: str) -> None:
        self._metrics.client_connection_errors.labels(self._settings.name, reason).inc()


_ORDINARY_ENDS: Final = frozenset({"client", "drain", "idle_timeout"})
