"""Handshakes: the way of a client's connection from ``accept`` to a TLS stream, under limits and a deadline.

Behind a load balancer the connection begins with a PROXY header, which names the client's address. A connection is
counted as half-open until its handshake has ended; each failure is counted with its reason.
"""

import ipaddress
import time
from collections.abc import Callable, Sequence
from typing import Final

import trio
from OpenSSL import SSL

from gateway.errors import GatewayError, TlsError
from gateway.front.admission import Admission, Limit
from gateway.front.connection_errors import ConnectionErrors
from gateway.front.preface import read_proxy_header, wait_for_hello
from gateway.front.proxy_protocol import ProxyHeaderError, looks_like_header
from gateway.front.sources import HalfOpen, plain_address
from gateway.metrics import Metrics
from gateway.tls import TlsStream

_LINGER: Final = 1.0  # s for a client to read the alert that ends its handshake


class Handshakes:
    """The unfinished handshakes of one listener.

    ``timeout`` is in seconds, and covers the PROXY header. ``proxy_from`` holds the addresses and networks that may
    connect and must send that header; if it is empty, any address may connect, and no header is read. ``limit_reached``
    returns the limit because of which no handshake may begin, or None.
    """

    def __init__(
        self,
        listener: str,
        context: SSL.Context,
        *,
        timeout: float,
        proxy_from: Sequence[str],
        limit_reached: Callable[[], Limit | None],
        admission: Admission,
        errors: ConnectionErrors,
        metrics: Metrics,
    ) -> None:
        self._listener = listener
        self._context = context
        self._timeout = timeout
        self._balancers = [ipaddress.ip_network(network) for network in proxy_from]
        self._limit_reached = limit_reached
        self._admission = admission
        self._errors = errors
        self._metrics = metrics
        self._half_open = metrics.client_half_open.labels(listener)
        self._scopes: set[trio.CancelScope] = set()
        self._draining = False

    def __len__(self) -> int:
        return len(self._scopes)

    def __repr__(self) -> str:
        return f"<Handshakes of {self._listener}: {len(self)} unfinished>"

    def settings_changed(self, *, timeout: float, proxy_from: Sequence[str], context: SSL.Context | None) -> None:
        """Use these settings, and the context unless it is None, for the connections that arrive from now on."""
        self._timeout = timeout
        self._balancers = [ipaddress.ip_network(network) for network in proxy_from]
        self._context = context or self._context

    def drain(self) -> None:
        """End all handshakes, and those that begin from now on."""
        self._draining = True
        for scope in list(self._scopes):
            scope.cancel()

    def admit(self, half_open: HalfOpen) -> bool:
        """Count a new connection as half-open. Return False, with the reason counted, if it must be closed at once."""
        if not self._balancers:
            return self._admit_client(half_open)
        address = ipaddress.ip_address(half_open.host)
        if not any(address in network for network in self._balancers):
            self._refuse(half_open, "proxy_source", "connection closed: its address is not in proxy_from", "proxy_from")
            return False
        limit = self._admission.await_header(half_open, trio.current_time())
        if limit is None:
            return True
        self._errors.over_limit(limit, half_open.peer)
        return False

    def _admit_client(self, half_open: HalfOpen) -> bool:
        """Count a connection for its client's address. Return False, with the limit counted, if it exceeds a limit."""
        limit = self._limit_reached() or self._admission.begin_handshake(half_open, trio.current_time())
        if limit is None:
            return True
        self._errors.over_limit(limit, half_open.peer)
        return False

    async def shake_hands(self, half_open: HalfOpen) -> TlsStream | None:
        """Shake hands until the deadline; a drain or an eviction ends the handshake earlier.

        Return None, with the reason counted, if the handshake failed.
        """
        began = time.perf_counter()
        failed: str | None = None
        seconds = 0 if self._draining or half_open.evicted else self._timeout
        scope = half_open.scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        self._scopes.add(scope)
        self._half_open.inc()
        try:
            with scope:
                if self._balancers and not await self._take_proxy_header(half_open):
                    return None
                beginning = await wait_for_hello(half_open.sock)
                self._admission.half_open.answer(half_open, trio.current_time())
                stream = TlsStream(half_open.sock, self._context, server_side=True)
                try:
                    await stream.handshake(beginning)
                    failed = ""
                except TlsError as error:
                    failed = error.reason
                    self._log_failed(error, half_open.peer, beginning)
                    await stream.aclose(linger=_LINGER)  # a TLS 1.3 client may have sent a request already
                except GatewayError:
                    failed = "client_closed"
        finally:
            self._scopes.discard(scope)
            half_open.scope = None
            self._half_open.inc(-1)
            self._admission.end_handshake(half_open)
        if failed is None:
            failed = self._cut_off_reason(half_open)
        if failed:
            self._errors.count(failed, half_open.peer)
            return None
        took = half_open.handshake_seconds = time.perf_counter() - began
        self._metrics.handshake_succeeded(self._listener, stream.version, took, resumed=stream.resumed)
        return stream

    async def _take_proxy_header(self, half_open: HalfOpen) -> bool:
        """Read the PROXY header, and count the connection for the address that it names.

        Return False, with the reason counted, if the header is missing or malformed, or if a limit is exceeded.
        """
        try:
            header = await read_proxy_header(half_open.sock)
        except ProxyHeaderError as error:
            event = "connection closed: no valid PROXY header"
            self._refuse(half_open, "proxy_header", event, "proxy_protocol", detail=str(error))
            return False
        except GatewayError:
            self._errors.count("client_closed", half_open.peer)
            return False
        if header.source is not None:
            half_open.host, half_open.port = plain_address(header.source[0]), header.source[1]
        self._admission.end_handshake(half_open)  # to be counted again, for the client's address
        return self._admit_client(half_open)

    def _cut_off_reason(self, half_open: HalfOpen) -> str:
        """Return why the scope of a handshake was cancelled."""
        if self._draining:
            return "drain"
        if not half_open.evicted:
            return "handshake_timeout"
        self._errors.warn(
            "evicted",
            "half-open connection closed for a newer connection: limit reached",
            peer=half_open.peer,
            setting="limits.max_half_open, per_address.max_half_open",
        )
        return "evicted"

    def _refuse(self, half_open: HalfOpen, reason: str, event: str, setting: str, **fields: object) -> None:
        self._errors.count(reason, half_open.peer)
        self._errors.warn(reason, event, peer=half_open.peer, setting=f"listeners.{setting}", **fields)

    def _log_failed(self, error: TlsError, peer: str, beginning: bytes) -> None:
        if not self._balancers and looks_like_header(beginning):
            self._errors.warn(
                "proxy header",
                "connection closed: unexpected PROXY header; if a load balancer sent it, set proxy_protocol = true and"
                " proxy_from",
                peer=peer,
                setting="listeners.proxy_protocol",
            )
            return
        key = f"handshake {error.reason}"
        self._errors.warn(key, "handshake failed", peer=peer, reason=error.reason, detail=str(error))
