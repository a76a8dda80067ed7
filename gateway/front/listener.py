"""Listener: accept connections, and have a handshake and a conversation with each client."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Final

import trio
from OpenSSL import SSL

from gateway.config import LimitsConfig, ListenerConfig
from gateway.dispatcher import Dispatcher
from gateway.errors import OUT_OF_RESOURCES, TlsError
from gateway.front.admission import Admission, Limit
from gateway.front.connection_errors import ConnectionErrors
from gateway.front.conversation import Conversation, Phase
from gateway.front.handshakes import Handshakes
from gateway.front.sources import HalfOpen, plain_address
from gateway.identity import Identities, Principal
from gateway.log import Log, Throttle, quoted
from gateway.metrics import Metrics
from gateway.tls import UNREADABLE_CERTIFICATE, TlsStream

BACKLOG: Final = 1024  # connections that the kernel keeps until they are accepted
_ACCEPTED_AT_ONCE: Final = 64  # connections accepted before other tasks run
_ADMITTED_AT_ONCE: Final = 8  # connections that begin a handshake, which may cost 2 ms, before other tasks run
MAX_REFUSED_CLIENTS: Final = 64  # clients that get an error and are disconnected, beside max_clients; more are closed
_REFUSAL_TIMEOUT: Final = 3.0  # s for such a client to send a request and to read the error
_ACCEPT_PAUSE: Final = 0.1  # s without accepting after a fault, or when the process has no descriptors or memory


class Listener:
    """A listening socket, with the TLS context, the identity rules and the limits of its clients."""

    def __init__(
        self,
        settings: ListenerConfig,
        context: SSL.Context,
        identities: Identities,
        *,
        admission: Admission,
        dispatcher: Dispatcher,
        limits: LimitsConfig,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._settings = settings
        self._identities = identities
        self._metrics = metrics
        self._log = log
        throttle = Throttle()
        self._converse: Callable[..., Conversation] = partial(
            Conversation,
            admission=admission,
            dispatcher=dispatcher,
            limits=limits,
            settings=settings,
            metrics=metrics,
            log=log,
            throttle=throttle,
        )
        self._admission = admission
        self._errors = ConnectionErrors(settings.name, metrics, log, throttle)
        self._handshakes = Handshakes(
            settings.name,
            context,
            timeout=settings.handshake_timeout,
            proxy_from=settings.proxy_from,
            limit_reached=self._limit_before_handshake,
            admission=admission,
            errors=self._errors,
            metrics=metrics,
        )
        self._conversations: set[Conversation] = set()
        self._draining = False
        self._clients = 0  # with a finished handshake, without those that are refused
        self._refused = 0  # clients to which an error is being sent
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
        """The number of requests that were read and are not yet answered."""
        return sum(conversation.phase is Phase.ANSWERING for conversation in self._conversations)

    async def serve(self, listening: socket.socket) -> None:
        """Accept on a listening socket until drained; return when the last conversation has ended.

        Only this method closes the socket: if another task did, ``accept`` could use a descriptor that is in use again.
        """
        async with trio.open_nursery() as clients:
            with self._accept_scope, closing(listening), self._owning(listening):
                while not self._draining:
                    if not self._resumed.is_set():
                        await self._resumed.wait()
                    await trio.lowlevel.wait_readable(listening)  # ends with ``stop_accepting``, too
                    if self._resumed.is_set():
                        try:
                            await self._accept_some(listening, clients)
                        except Exception as error:  # noqa: BLE001 - one connection must not end the gateway
                            self._log.error("internal error: connection not accepted; report this bug", exc_info=error)
                            await trio.sleep(_ACCEPT_PAUSE)

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

        ``shutdown`` leaves the LISTEN state on Linux (HAProxy pauses its listeners so); connections in the kernel's
        backlog are reset. Both processes set SO_REUSEADDR, so that a second process could now listen on the port; the
        option is cleared until this process listens again.
        """
        if self._listening is None or not self._resumed.is_set():
            return
        self._resumed = trio.Event()
        self._listening.shutdown(socket.SHUT_RD)
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        self._accepting.set(0)

    def resume_accepting(self) -> None:
        """Accept new connections again. If the kernel refuses to listen, log it; the caller tries again later."""
        if self._listening is None or self._resumed.is_set():
            return
        try:
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # clients hold the port, too
            self._listening.listen(BACKLOG)
        except OSError as error:
            self._errors.warn(
                "listen",
                "cannot listen: another process may use the port; trying again",
                reason=error.strerror,
            )
            return
        self._resumed.set()
        self._accepting.set(1)

    def drain(self) -> None:
        """Stop accepting, end all handshakes, and let each conversation end after its request in progress."""
        self._draining = True
        self._accept_scope.cancel()
        self._handshakes.drain()
        for conversation in list(self._conversations):
            conversation.drain()

    async def _accept_some(self, listening: socket.socket, clients: trio.Nursery) -> None:
        admitted = 0
        for _ in range(_ACCEPTED_AT_ONCE):
            if admitted >= _ADMITTED_AT_ONCE:
                return
            try:
                sock, address = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    self._errors.warn(
                        "accept",
                        "cannot accept clients: out of file descriptors or memory; raise the limits of the process",
                        reason=error.strerror,
                    )
                    await trio.sleep(_ACCEPT_PAUSE)
                    return
                continue  # the client has closed already
            sock.setblocking(False)
            half_open = HalfOpen(sock, plain_address(address[0]), address[1])
            if self._handshakes.admit(half_open):
                admitted += 1
                clients.start_soon(self._serve_client, half_open)
            else:
                sock.close()

    def _limit_before_handshake(self) -> Limit | None:
        """Return the limit that a client would exceed after its handshake, if no further client gets an error then."""
        return self._limit_reached() if self._refused >= MAX_REFUSED_CLIENTS else None

    def _limit_reached(self, principal: Principal | None = None) -> Limit | None:
        if self._clients >= self._settings.max_clients:
            return Limit.LISTENER_CLIENTS
        if self._admission.clients >= self._admission.max_clients:
            return Limit.CLIENTS
        if principal is not None and self._admission.account(principal).is_full:
            return Limit.PRINCIPAL_CLIENTS
        return None

    async def _serve_client(self, half_open: HalfOpen) -> None:
        self._connections.inc()
        try:
            stream = await self._handshakes.shake_hands(half_open)
            if stream is not None:
                with closing(stream):
                    await self._have_conversation(stream, half_open.peer)
        except Exception as error:  # noqa: BLE001 - a bug that affects one client must not end the gateway
            self._errors.count("internal")
            self._log.error(
                "internal error: client connection closed; report this bug", peer=half_open.peer, exc_info=error
            )
        finally:
            half_open.sock.close()
            self._admission.disconnect(half_open)
            self._connections.dec()

    async def _have_conversation(self, stream: TlsStream, peer: str) -> None:
        principal = self._identify(stream, peer)
        over = self._limit_reached(principal)
        conversation = self._converse(stream, principal, peer=peer, over=over)
        if principal is None or over is not None:
            await self._refuse(conversation, stream, over, peer)
            return
        self._clients += 1
        self._admission.clients += 1
        try:
            ended = await self._run(conversation)
        finally:
            self._clients -= 1
            self._admission.clients -= 1
        if ended not in _ORDINARY_ENDS:
            self._errors.count(ended)

    async def _run(self, conversation: Conversation) -> str:
        if self._draining:
            conversation.drain()
        self._conversations.add(conversation)
        try:
            return await conversation.run()
        finally:
            self._conversations.discard(conversation)
            self._metrics.client_requests_per_connection.observe(conversation.requests)

    async def _refuse(self, conversation: Conversation, stream: TlsStream, over: Limit | None, peer: str) -> None:
        """Send an error to a client that exceeds a limit or has no identity, and disconnect it.

        Such clients are not counted by ``max_clients``. If there are 64 of them already, only close the connection.
        """
        if self._refused < MAX_REFUSED_CLIENTS:
            self._refused += 1
            try:
                with trio.move_on_after(_REFUSAL_TIMEOUT):
                    await self._run(conversation)
            finally:
                self._refused -= 1
        else:
            stream.close_politely()
        if over is None:
            self._errors.count("not_authenticated")
        elif conversation.requests:  # the conversation has counted the limit when it sent the error
            self._errors.count("limit")
        else:
            self._errors.over_limit(over, peer)

    def _identify(self, stream: TlsStream, peer: str) -> Principal | None:
        """Return the client's principal, or None. Resumed sessions are checked, too: their handshake checks nothing."""
        try:
            certificate = stream.peer_certificate_der()
            return None if certificate is None else self._identities.identify(certificate)
        except (TlsError, *UNREADABLE_CERTIFICATE) as error:
            self._errors.warn(
                "certificate",
                "client rejected: its certificate cannot be read",
                peer=peer,
                detail=quoted(repr(error)),
            )
            return None


_ORDINARY_ENDS: Final = frozenset({"client", "drain", "idle_timeout"})
