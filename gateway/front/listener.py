"""Listener: accepts clients, admits them, shakes hands under a deadline, and has a conversation with each."""

import ipaddress
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
from gateway.front.admission import SETTINGS, Admission, Limit
from gateway.front.conversation import Conversation, Limits, Phase
from gateway.front.preface import read_proxy_header, wait_for_hello
from gateway.front.proxy_protocol import ProxyHeaderError, looks_like_header
from gateway.front.sources import HalfOpen, plain_address
from gateway.identity import Identities, Principal
from gateway.log import Log, Throttle, quoted
from gateway.metrics import Metrics
from gateway.tls import UNREADABLE_CERTIFICATE, TlsStream

BACKLOG: Final = 1024  # connections that the kernel keeps until they are accepted
_ACCEPTED_AT_ONCE: Final = 64  # connections taken before others get a turn
_ADMITTED_AT_ONCE: Final = 8  # of them, those that begin a handshake, which may cost 2 ms; the others are closed
TOLD_AT_ONCE: Final = 64  # clients that are told why they are refused, beside max_clients; others are only closed
_TOLD_WITHIN: Final = 3.0  # s for such a client to send a request and to take the answer
_LINGER: Final = 1.0  # s for a client to take the alert that ends its handshake
_BREATH: Final = 0.1  # s without accepting when the process is out of descriptors or memory


class ListenerSettings(NamedTuple):
    """``name`` is the label of its metrics; ``handshake_timeout`` is in seconds.

    ``proxy_from`` are the addresses and networks that must send a PROXY header; if there is none, none is read.
    """

    name: str
    max_clients: int = 10_000
    handshake_timeout: float = 10.0
    proxy_from: tuple[str, ...] = ()


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
        self._balancers = [ipaddress.ip_network(network) for network in settings.proxy_from]
        self._clients = 0  # whose handshake has succeeded, and who are not refused
        self._told = 0  # clients that are being told why they are refused
        self._accept_scope = trio.CancelScope()
        self._listening: socket.socket | None = None  # while ``serve`` accepts or refuses
        self._resumed = trio.Event()  # unset while new connections are refused
        self._resumed.set()
        self._accepting = metrics.accepting.labels(settings.name)
        self._connections = metrics.client_connections.labels(settings.name)
        self._half_open = metrics.client_half_open.labels(settings.name)

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
                        try:
                            await self._accept_some(listening, clients)
                        except Exception as error:  # noqa: BLE001 - else one connection would end the gateway
                            self._log.error("connection lost to a fault of the gateway", exc_info=error)
                            await trio.sleep(_BREATH)

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
                    self._throttle.warn(self._log, "accept", "can't accept clients", reason=error.strerror)
                    await trio.sleep(_BREATH)
                    return
                continue  # the client has gone already
            sock.setblocking(False)
            half_open = HalfOpen(sock, plain_address(address[0]), address[1])
            if self._admit(half_open):
                admitted += 1
                clients.start_soon(self._serve_client, half_open)
            else:
                sock.close()

    def _admit(self, half_open: HalfOpen) -> bool:
        """Count a new connection as half-open. Returns False, with that counted, if it is to be closed at once."""
        if not self._balancers:
            return self._begin_handshake(half_open)
        address = ipaddress.ip_address(half_open.host)
        if not any(address in network for network in self._balancers):
            self._refuse_peer(
                half_open, "proxy_source", "connection closed: its address is not in proxy_from", "proxy_from"
            )
            return False
        limit = self._admission.await_header(half_open, trio.current_time())
        if limit is None:
            return True
        self._reject(limit, half_open.peer)
        return False

    def _begin_handshake(self, half_open: HalfOpen) -> bool:
        """Count a connection for its address. Returns False, with that counted, if it exceeds a limit."""
        limit = self._limit_reached() if self._told >= TOLD_AT_ONCE else None
        limit = limit or self._admission.begin_handshake(half_open, trio.current_time())
        if limit is None:
            return True
        self._reject(limit, half_open.peer)
        return False

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
            stream = await self._shake_hands(half_open)
            if stream is not None:
                with closing(stream):
                    await self._have_conversation(stream, half_open.peer)
        except Exception as error:  # noqa: BLE001 - a fault of ours that one client meets must not end the others
            self._failed("internal")
            self._log.error("client lost to a fault of the gateway", peer=half_open.peer, exc_info=error)
        finally:
            half_open.sock.close()
            self._admission.disconnect(half_open)
            self._connections.dec()

    async def _shake_hands(self, half_open: HalfOpen) -> TlsStream | None:
        """Shake hands under the deadline, which a drain or an eviction brings forward.

        Returns None, with the reason counted, if that failed.
        """
        began = time.perf_counter()
        failed: str | None = None
        scope = half_open.scope
        scope.deadline = trio.current_time() + (0 if self._draining else self._settings.handshake_timeout)
        self._handshakes.add(scope)
        self._half_open.inc()
        try:
            with scope:
                if self._balancers and not await self._take_proxy_header(half_open):
                    return None
                beginning = await wait_for_hello(half_open.sock)
                self._admission.half_open.answer(half_open, trio.current_time())
                stream = TlsStream(half_open.sock, self._context, server_side=True)
                try:
                    await stream.handshake()
                    failed = ""
                except TlsError as error:
                    failed = error.reason
                    self._say_failed(error, half_open.peer, beginning)
                    await stream.aclose(linger=_LINGER)  # in TLS 1.3 a request may be there already, unread
                except GatewayError:
                    failed = "gone"
        finally:
            self._handshakes.discard(scope)
            self._half_open.dec()
            self._admission.end_handshake(half_open)
        if failed is None:
            failed = self._why_cut_off(half_open)
        if failed:
            self._failed(failed)
            return None
        self._metrics.handshake_succeeded(
            self._settings.name, stream.version, time.perf_counter() - began, resumed=stream.resumed
        )
        return stream

    def _why_cut_off(self, half_open: HalfOpen) -> str:
        if self._draining:
            return "drain"
        if not half_open.evicted:
            return "handshake_timeout"
        self._throttle.warn(
            self._log,
            "evicted",
            "half-open connection closed to make room",
            peer=half_open.peer,
            setting="limits.max_half_open, per_address.max_half_open",
        )
        return "evicted"

    async def _take_proxy_header(self, half_open: HalfOpen) -> bool:
        """Read the PROXY header, and count the connection for the address that it names.

        Returns False, with the reason counted, if the header is missing or broken, or if a limit is exceeded.
        """
        try:
            header = await read_proxy_header(half_open.sock)
        except ProxyHeaderError as error:
            event = "connection closed: no valid PROXY header"
            self._refuse_peer(half_open, "proxy_header", event, "proxy_protocol", detail=str(error))
            return False
        except GatewayError:
            self._failed("gone")
            return False
        if header.source is not None:
            half_open.host, half_open.port = plain_address(header.source[0]), header.source[1]
        self._admission.end_handshake(half_open)  # it begins again, for the client's address
        return self._begin_handshake(half_open)

    def _say_failed(self, error: TlsError, peer: str, beginning: bytes) -> None:
        if not self._balancers and looks_like_header(beginning):
            self._throttle.warn(
                self._log,
                "proxy header",
                "a PROXY header was sent to a listener that does not read it; if it is a load balancer's, set"
                " proxy_protocol = true, and proxy_from",
                peer=peer,
                setting="listeners.proxy_protocol",
            )
            return
        key = f"handshake {error.reason}"
        self._throttle.warn(self._log, key, "handshake failed", peer=peer, reason=error.reason, detail=str(error))

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
            self._failed(ended)

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
        """Tell a client that it is over a limit or that no rule matches it, beside ``max_clients``, or only close."""
        if self._told < TOLD_AT_ONCE:
            self._told += 1
            try:
                with trio.move_on_after(_TOLD_WITHIN):
                    await self._run(conversation)
            finally:
                self._told -= 1
        else:
            stream.close_politely()
        if over is None:
            self._failed("not_authenticated")
        elif conversation.requests:  # told, and counted with that
            self._failed("limit")
        else:
            self._reject(over, peer)

    def _reject(self, limit: Limit, peer: str) -> None:
        """Count a connection that is closed because of a limit, and log it."""
        self._metrics.limit_rejections.labels(limit.value).inc()
        self._failed("limit")
        self._throttle.warn(
            self._log,
            f"limit {limit.value}",
            "connection closed: over a limit",
            peer=peer,
            reason=limit.value,
            setting=SETTINGS[limit],
        )

    def _refuse_peer(self, half_open: HalfOpen, reason: str, event: str, setting: str, **fields: object) -> None:
        self._failed(reason)
        self._throttle.warn(self._log, reason, event, peer=half_open.peer, setting=f"listeners.{setting}", **fields)

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
