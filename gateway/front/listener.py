"""Listener: accept connections, shake hands, and pass on each client whose handshake has succeeded."""

import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final

import trio
from OpenSSL import SSL

from gateway.config import ListenerConfig
from gateway.errors import OUT_OF_RESOURCES
from gateway.front.admission import Admission, Limit
from gateway.front.connection_errors import ConnectionErrors
from gateway.front.handshakes import Handshakes
from gateway.front.sources import HalfOpen, plain_address
from gateway.listening import accept_connections, refuse_connections
from gateway.log import Log
from gateway.metrics import Metrics
from gateway.tcp import set_timeouts
from gateway.tls import TlsStream

_ACCEPTED_AT_ONCE: Final = 64  # connections accepted before other tasks run
_ACCEPT_PAUSE: Final = 0.1  # s without accepting after a fault, or when the process has no descriptors or memory


class Listener:
    """A listening socket and the handshakes of its clients.

    ``receive`` serves a client whose handshake has succeeded: the stream, the client's address for the log, and the
    seconds that the handshake took. ``limit_reached`` returns the limit because of which no handshake may begin, or
    None. ``admitted_at_once`` is the number of connections that begin a handshake, which may cost 2 ms, before other
    tasks run.
    """

    def __init__(
        self,
        settings: ListenerConfig,
        context: SSL.Context,
        receive: Callable[[TlsStream, str, float], Awaitable[None]],
        *,
        limit_reached: Callable[[], Limit | None],
        admission: Admission,
        errors: ConnectionErrors,
        metrics: Metrics,
        log: Log,
        admitted_at_once: int,
    ) -> None:
        self._settings = settings
        self._receive = receive
        self._log = log
        self._admission = admission
        self._errors = errors
        self._handshakes = Handshakes(
            settings.name,
            context,
            timeout=settings.handshake_timeout,
            proxy_from=settings.proxy_from,
            limit_reached=limit_reached,
            admission=admission,
            errors=errors,
            metrics=metrics,
        )
        self._admitted_at_once = admitted_at_once
        self._draining = False
        self._is_retired = False
        self._open = 0  # connections, from their acceptance to their end
        self._accept_scope = trio.CancelScope()
        self._listening: socket.socket | None = None  # while ``serve`` accepts or refuses
        self._resumed = trio.Event()  # unset while new connections are refused
        self._resumed.set()
        self._accepting = metrics.accepting.labels(settings.name)
        self._connections = metrics.client_connections.labels(settings.name)

    def __len__(self) -> int:
        return self._open

    def __repr__(self) -> str:
        return f"<Listener {self._settings.name}: {len(self._handshakes)} unfinished handshakes>"

    async def serve(self, listening: socket.socket) -> None:
        """Accept on a listening socket until drained; return when the last client has ended.

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
            if not self._is_retired:
                self._accepting.set(0)

    def settings_changed(self, context: SSL.Context | None = None) -> None:
        """Use the settings as they are now, and the context unless it is None, for new connections."""
        settings = self._settings
        self._handshakes.settings_changed(
            timeout=settings.handshake_timeout, proxy_from=settings.proxy_from, context=context
        )
        if self._listening is not None:
            set_timeouts(self._listening, settings)

    def stop_accepting(self) -> None:
        """Have the kernel refuse new connections; see ``refuse_connections``."""
        if self._listening is not None and self._resumed.is_set():
            self.pause()
            refuse_connections(self._listening)

    def resume_accepting(self) -> None:
        """Accept new connections again. If the kernel refuses to listen, log it; the caller tries again later."""
        if self._listening is None or self._resumed.is_set():
            return
        try:
            accept_connections(self._listening)
        except OSError as error:
            self._errors.warn(
                "listen",
                "cannot listen: another process may use the port; trying again",
                reason=error.strerror,
            )
            return
        self.resume()

    def pause(self) -> None:
        """Accept no connection until ``resume``; the kernel's side is another process's."""
        if self._resumed.is_set():
            self._resumed = trio.Event()
            self._accepting.set(0)

    def resume(self) -> None:
        """Accept connections again after ``pause``."""
        if not self._resumed.is_set():
            self._resumed.set()
            self._accepting.set(1)

    def drain(self) -> None:
        """Stop accepting, and end all handshakes. Clients that were passed on are not touched."""
        self._draining = True
        self._accept_scope.cancel()
        self._handshakes.drain()

    def retire(self) -> None:
        """Stop accepting: another listener of this name does, or none. Handshakes go on, and clients stay."""
        self._draining = self._is_retired = True
        self._accept_scope.cancel()

    async def _accept_some(self, listening: socket.socket, clients: trio.Nursery) -> None:
        admitted = 0
        for _ in range(_ACCEPTED_AT_ONCE):
            if admitted >= self._admitted_at_once:
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
                if error.errno == errno.EINVAL:  # another process has the kernel refuse connections
                    await trio.sleep(_ACCEPT_PAUSE)
                    return
                continue  # the client has closed already
            sock.setblocking(False)
            half_open = HalfOpen(sock, plain_address(address[0]), address[1])
            if self._handshakes.admit(half_open):
                admitted += 1
                self._open += 1
                clients.start_soon(self._serve_client, half_open)
            else:
                sock.close()

    async def _serve_client(self, half_open: HalfOpen) -> None:
        self._connections.inc()
        stream = None
        try:
            stream = await self._handshakes.shake_hands(half_open)
            if stream is not None:
                await self._receive(stream, half_open.peer, half_open.handshake_seconds)
        except Exception as error:  # noqa: BLE001 - a bug that affects one client must not end the gateway
            self._errors.count("internal", half_open.peer)
            self._log.error(
                "internal error: client connection closed; report this bug", peer=half_open.peer, exc_info=error
            )
        finally:
            if stream is not None:
                stream.close()
            half_open.sock.close()
            self._admission.disconnect(half_open)
            self._connections.inc(-1)
            self._open -= 1
