"""The worker: one process. It builds the house from a Config, runs it, and drains it."""

import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import trio
from cryptography import x509
from OpenSSL import SSL

from gateway import log, tls
from gateway.admin.server import application, serve_admin
from gateway.config import Address, BackendConfig, Config, IdentityConfig, ListenerConfig
from gateway.dispatcher import Deadlines, Dispatcher
from gateway.errors import ConfigError, TlsError
from gateway.front.conversation import Limits
from gateway.front.listener import Listener, ListenerSettings
from gateway.identity import Identities
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.collector import PoolCollector
from gateway.upstream.meter import Meter
from gateway.upstream.pool import Pool, PoolSettings
from gateway.upstream.prober import keep_warm
from gateway.upstream.session import PROBES, Target, open_session
from gateway.upstream.slots import Slots

_BACKLOG: Final = 1024


class Bound(NamedTuple):
    """The addresses that a worker listens on, in the order of the configuration."""

    listeners: list[Address]
    admin: Address | None


class Worker:
    """One process of the gateway, from a checked Config."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._log = log.get("worker")
        self._drain = trio.Event()
        self.metrics = Metrics(version("kmip-gateway"))

    def drain(self) -> None:
        """Take no new clients, finish what is begun, within the drain deadline; then ``run`` returns."""
        self._drain.set()

    async def run(self, *, task_status: trio.TaskStatus[Bound] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained. Raises ConfigError for what shows only now: an address in use, a key too weak."""
        config = self._config
        sockets = [_listen(f'listeners["{listener.name}"].bind', listener.bind) for listener in config.listeners]
        admin_socket = None if config.admin is None else _listen("admin.bind", config.admin.bind)
        addresses = [_address_of(sock) for sock in sockets]
        admin_address = None if admin_socket is None else _address_of(admin_socket)
        finished = trio.Event()
        try:
            async with trio.open_nursery() as admin, trio.open_nursery() as house:
                backends = _build_backends(config, house, self.metrics)
                listeners = _build_listeners(config, backends, self.metrics)
                self._instrument(backends, listeners)
                if admin_socket is not None:
                    app = application(self.metrics.exposition, partial(self._unreadiness, backends))
                    admin.start_soon(serve_admin, admin_socket, app, finished)
                for address in addresses:
                    self._log.info("listening", address=str(address))
                if admin_address is not None:
                    self._log.info("metrics", url=f"http://{admin_address}/metrics")
                task_status.started(Bound(addresses, admin_address))
                await self._serve(listeners, sockets)
                for backend in backends:
                    backend.close()
                finished.set()
                house.cancel_scope.cancel()
        finally:
            for sock in (*sockets, *([admin_socket] if admin_socket else [])):
                sock.close()

    async def _serve(self, listeners: Sequence[Listener], sockets: Sequence[socket.socket]) -> None:
        async with trio.open_nursery() as front:
            for listener, sock in zip(listeners, sockets, strict=True):
                front.start_soon(listener.serve, sock)
            await self._drain.wait()
            self._log.info("draining", seconds=self._config.deadlines.drain)
            self.metrics.draining.set(1)
            front.cancel_scope.deadline = trio.current_time() + self._config.deadlines.drain
            for listener in listeners:
                listener.drain()

    def _instrument(self, backends: Sequence[Backend], listeners: Sequence[Listener]) -> None:
        self.metrics.registry.register(PoolCollector(backends))
        in_flight = self.metrics.requests_in_flight
        in_flight.set_function(lambda: sum(listener.requests_in_flight for listener in listeners))
        for role, name, path in _certificates(self._config):
            ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
            self.metrics.certificate_not_after.labels(role, name).set(ends)

    def _unreadiness(self, backends: Sequence[Backend]) -> str | None:
        if self._drain.is_set():
            return "draining"
        if not any(backend.is_live for backend in backends):
            return "no key manager can be reached"
        return None


# Building --------------------------------------------------------------------------------------------------------------


def _build_backends(config: Config, house: trio.Nursery, metrics: Metrics) -> list[Backend]:
    backends = []
    for backend in config.backends:
        slots = Slots(backend.max_sessions)
        pools = {
            identity.name: _build_pool(config, backend, identity, slots, house, metrics)
            for identity in config.identities
        }
        backends.append(Backend(backend.name, slots, pools))
        house.start_soon(keep_warm, list(pools.values()), PROBES[backend.probe], config.deadlines.connect)
    return backends


def _build_pool(
    config: Config,
    backend: BackendConfig,
    identity: IdentityConfig,
    slots: Slots,
    house: trio.Nursery,
    metrics: Metrics,
) -> Pool:
    key = f'identities["{identity.name}"].certificate'
    target = Target(
        backend.name,
        backend.address,
        _checked(key, partial(tls.client_context, identity.certificate, identity.private_key, backend.ca)),
        backend.server_name if backend.ca is not None else None,
        frozenset(backend.pinned_sha256),
        config.limits.max_response_size,
        PROBES[backend.probe],
    )
    pool = config.pool
    return Pool(
        backend.name,
        identity.name,
        PoolSettings(
            pool.min_idle,
            pool.idle_timeout,
            pool.max_lifetime,
            pool.lifetime_spread,
            pool.queue_length,
            config.deadlines.connect,
        ),
        slots=slots,
        opener=partial(open_session, target),
        spawn=house.start_soon,
        observer=Meter(backend.name, identity.name, metrics, log.get("upstream")),
    )


def _build_listeners(config: Config, backends: Sequence[Backend], metrics: Metrics) -> list[Listener]:
    dispatcher = Dispatcher(Balancer(backends), Deadlines(config.deadlines.request, config.pool.queue_timeout))
    identities = Identities(config.identities)
    return [_build_listener(config, listener, dispatcher, identities, metrics) for listener in config.listeners]


def _build_listener(
    config: Config, listener: ListenerConfig, dispatcher: Dispatcher, identities: Identities, metrics: Metrics
) -> Listener:
    make_context = partial(
        tls.server_context,
        listener.certificate,
        listener.private_key,
        listener.client_ca,
        listener.tls_policy,
        resumption_lifetime=listener.resumption_lifetime,
    )
    limits = Limits(
        config.limits.max_request_size,
        config.limits.max_depth,
        config.limits.max_batch_items,
        listener.request_timeout,
        listener.idle_timeout,
        listener.send_timeout,
    )
    return Listener(
        ListenerSettings(listener.name, listener.max_clients, listener.handshake_timeout),
        _checked(f'listeners["{listener.name}"].certificate', make_context),
        identities,
        dispatcher=dispatcher,
        limits=limits,
        metrics=metrics,
        log=log.get("front").bind(listener=listener.name),
    )


def _checked(key: str, make_context: Callable[[], SSL.Context]) -> SSL.Context:
    try:
        return make_context()
    except TlsError as error:
        raise ConfigError(
            [f"{key}: OpenSSL does not take it: {error}; use a PEM file with at least 2048 bits RSA"]
        ) from None


def _certificates(config: Config) -> Iterator[tuple[str, str, Path]]:
    for listener in config.listeners:
        yield "listener", listener.name, listener.certificate
        yield "client_ca", listener.name, listener.client_ca
    for identity in config.identities:
        yield "backend_client", identity.name, identity.certificate
    for backend in config.backends:
        if backend.ca is not None:
            yield "backend_ca", backend.name, backend.ca


def _listen(key: str, address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise ConfigError(
            [f"{key}: can't listen on {address}: {reason}; choose a free address of this machine"]
        ) from None
    return sock


def _address_of(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(host, port)
