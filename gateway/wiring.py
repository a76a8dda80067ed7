"""Wiring: build every object of the gateway from a Config."""

import os
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio
from OpenSSL import SSL

from gateway import log, tls
from gateway.admin.routes import Routes
from gateway.admin.server import AdminServer
from gateway.config import Address, BackendConfig, Config, IdentityConfig, ListenerConfig, OwnCertificate
from gateway.config.files import mark_keys
from gateway.dispatcher import Dispatcher, DispatcherSettings, ReplicationPolicy
from gateway.errors import ConfigError, TlsError
from gateway.front.admission import Admission, Limit
from gateway.front.clients import Clients
from gateway.front.connection_errors import ConnectionErrors
from gateway.front.listener import Listener
from gateway.identity import Identities
from gateway.kmip.decode import decode_request
from gateway.log import Log, Throttle
from gateway.metrics import Metrics
from gateway.tls import TlsStream
from gateway.upstream.affinity import Affinity
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.breaker import Breaker
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.fleet import ConfiguredBackend, Fleet
from gateway.upstream.gate import Gate
from gateway.upstream.health import Health
from gateway.upstream.health_check import HealthChecker
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.maintenance import maintain_pools, watch
from gateway.upstream.marks import Marks
from gateway.upstream.open_session import VALIDATION_REQUESTS, Opener, SessionTarget, open_session
from gateway.upstream.overrides import Overrides
from gateway.upstream.pool import Pool
from gateway.upstream.pool_observer import PoolObserver
from gateway.upstream.slots import Slots
from gateway.upstream.versions import CommonVersions


class Upstream:
    """Everything behind the dispatcher: the fleet of backends, and the balancer that chooses among them.

    ``nursery`` is the parent of the tasks that open sessions. Raises ConfigError.
    """

    def __init__(self, config: Config, nursery: trio.Nursery, metrics: Metrics) -> None:
        self._config = config
        self._nursery = nursery
        self._metrics = metrics
        self._log = log.get("upstream")
        self._contexts: dict[tuple[str, str], SSL.Context] = {}  # by backend and identity
        self.overrides = Overrides()
        self._own: dict[str, OwnCertificate] = {}  # by identity: the file as it was when its first context was made
        configured = [
            ConfiguredBackend(
                name=settings.name,
                address=settings.address,
                build=partial(self._build_backend, settings),
                addresses=settings.addresses,
            )
            for settings in config.backends
        ]
        self.fleet = Fleet(configured, self._maintain, self._replace_backends, self._log)
        self.balancer = Balancer(self.fleet.backends, policy=config.balancing.policy)

    async def run(self) -> None:
        """Maintain the pools, check the health of the backends and look their names up, until cancelled."""
        await self.fleet.run(self._config.balancing.resolve_interval)

    def _replace_backends(self, backends: Sequence[Backend]) -> None:
        self.balancer.backends = tuple(backends)

    def override(self) -> None:
        """Bring all backends in line with ``overrides``, after a change of these."""
        for backend in self.fleet.backends:
            self.overrides.apply(backend)
        self._replace_backends(self.fleet.backends)

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start a task of a pool. An internal error in the task is logged, and does not end the gateway."""
        self._nursery.start_soon(self._run_guarded, work)

    async def _run_guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - see _spawn
            self._log.error("internal error: task of a pool ended; report this bug", exc_info=error)

    async def _maintain(self, backend: Backend) -> None:
        """Do the periodic work of one backend until cancelled. Its name may be that of a table, "/" and a number."""
        table = backend.name.partition("/")[0]
        settings = next(settings for settings in self._config.backends if settings.name == table)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._build_health_checker(backend, settings).run)
            nursery.start_soon(
                partial(
                    maintain_pools,
                    backend.pools.values(),
                    self._config.deadlines.connect,
                    idle_limit=backend.idle_limit,
                    log=self._log.bind(backend=backend.name),
                )
            )
            await watch(backend, balancer=self.balancer, metrics=self._metrics, log=self._log)

    def _build_health_checker(self, backend: Backend, settings: BackendConfig) -> HealthChecker:
        health = self._config.health
        names = [identity.name for identity in self._config.identities]
        first = health.credential or names[0]
        probe = "query" if health.expect_text else settings.probe
        return HealthChecker(
            backend,
            [first, *(name for name in names if name != first)],
            decode_request(VALIDATION_REQUESTS[probe]),
            health,
            self._metrics,
            self._log,
            asks_versions=settings.probe == "discover-versions",
        )

    def _build_backend(self, settings: BackendConfig, name: str, address: Address) -> Backend:
        config = self._config
        slots = Slots(settings.max_sessions, gate=Gate(config.deadlines))
        idle_limit = IdleLimit(config.pool.idle_timeout)
        endpoint = Endpoint(address)
        pools = {
            identity.name: Pool(
                backend=name,
                credential=identity.name,
                settings=config.pool,
                deadlines=config.deadlines,
                failover=config.failover,
                slots=slots,
                opener=self._build_opener(settings, identity, name, endpoint),
                spawn=self._spawn,
                observer=PoolObserver(name, identity.name, self._metrics, self._log),
                idle_limit=idle_limit,
                validation_request=decode_request(VALIDATION_REQUESTS[settings.probe]),
                endpoint=endpoint,
            )
            for identity in config.identities
        }
        backend = Backend(
            name,
            slots,
            pools,
            health=Health(config.health),
            breaker=Breaker(config.failover, credentials=len(config.identities)),
            idle_limit=idle_limit,
            options=settings,
            endpoint=endpoint,
        )
        self.overrides.apply(backend)
        return backend

    def _build_opener(
        self, settings: BackendConfig, identity: IdentityConfig, backend: str, endpoint: Endpoint
    ) -> Opener:
        """Return a function that opens a session. A pinned certificate without a CA has no name to be verified."""
        target = SessionTarget(
            backend=backend,
            endpoint=endpoint,
            context=self._context(settings, identity),
            server_name=settings.server_name if settings.ca is not None else None,
            pinned_sha256=frozenset(settings.pinned_sha256),
            limits=self._config.limits,
            validation_request=VALIDATION_REQUESTS[settings.probe],
            own=self._own[identity.name],
            tcp=self._config.pool,
        )
        return partial(open_session, target)

    def _context(self, settings: BackendConfig, identity: IdentityConfig) -> SSL.Context:
        key = (settings.name, identity.name)
        if key not in self._contexts:
            make_context = partial(
                tls.client_context,
                certificate=identity.certificate,
                private_key=identity.private_key,
                ca=settings.ca,
            )
            self._contexts[key] = _checked(f'identities["{identity.name}"].certificate', make_context)
            self._own.setdefault(identity.name, OwnCertificate.of(identity))
        return self._contexts[key]


def build_dispatcher(config: Config, balancer: Balancer, metrics: Metrics) -> Dispatcher:
    """Return the dispatcher over a balancer. Raises ConfigError."""
    settings = DispatcherSettings(
        deadlines=config.deadlines,
        pool=config.pool,
        failover=config.failover,
        replication=config.replication,
        health=config.health,
    )
    replication = config.replication
    is_shared = replication.mode == "shared"
    affinity = Affinity(replication.read_your_writes_window, is_shared=is_shared)
    metrics.affinity_clients.set_function(lambda: len(affinity))
    policy = ReplicationPolicy(
        affinity=affinity,
        marks=Marks(_mark_keys(replication.mark_key_file)) if replication.marks else None,
        versions=CommonVersions(balancer) if replication.answer_discover_versions else None,
        fallback_on_not_found=replication.fallback_on_not_found and not is_shared,
    )
    return Dispatcher(balancer, settings, metrics=metrics, replication=policy)


def _mark_keys(path: Path) -> list[bytes]:
    """Return the keys of a file, which is made if it is missing; or a temporary key, if it can't be made."""
    key = secrets.token_bytes(32)
    try:
        with suppress(FileNotFoundError):
            return mark_keys(path)
        _write_once(path, key.hex() + "\n")
        return mark_keys(path)
    except ValueError as error:
        raise ConfigError([f"replication.mark_key_file: {error}"]) from None
    except OSError as error:
        log.get("core").warning(
            "cannot write the mark key file; using a temporary key: correlation values and tickets issued now are"
            " rejected after a restart. Set replication.mark_key_file to a writable path, or marks = false",
            file=str(path),
            reason=error.strerror,
        )
        return [key]


def _write_once(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all. A file that exists by then is kept as it is."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links: for a short moment, the file is there in part
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as plain:
                plain.write(text)


class Front:
    """The front of the gateway in one process: the clients of each listener, and their common limits."""

    def __init__(self, config: Config, dispatcher: Dispatcher, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._throttle = Throttle()
        self.admission = build_admission(config)
        metrics.memory_buffered.set_function(lambda: self.admission.buffered)
        metrics.client_connections_queued.set_function(lambda: self.admission.turns.waiting)
        self.clients = {listener.name: self._build_clients(listener, dispatcher) for listener in config.listeners}

    def build_listeners(self) -> list[Listener]:
        """Return the listeners, whose TLS ends in this process, in the configured order. Raises ConfigError."""
        return [
            build_listener(
                listener,
                server_context(listener),
                self.clients[listener.name].receive,
                limit_reached=self.clients[listener.name].limit_before_handshake,
                admission=self.admission,
                metrics=self._metrics,
                throttle=self._throttle,
            )
            for listener in self._config.listeners
        ]

    def _build_clients(self, listener: ListenerConfig, dispatcher: Dispatcher) -> Clients:
        logger = _front_log(listener)
        rules = [rule for rule in self._config.identities if not rule.listeners or listener.name in rule.listeners]
        return Clients(
            listener,
            Identities(rules),
            admission=self.admission,
            dispatcher=dispatcher,
            limits=self._config.limits,
            errors=ConnectionErrors(listener.name, self._metrics, logger, self._throttle),
            metrics=self._metrics,
            log=logger,
            throttle=self._throttle,
        )


def build_admission(config: Config) -> Admission:
    """Return the limits that all listeners share."""
    return Admission(
        limits=config.limits,
        per_address=config.per_address,
        allowances={identity.name: identity for identity in config.identities},
    )


def build_listener(
    listener: ListenerConfig,
    context: SSL.Context,
    receive: Callable[[TlsStream, str, float], Awaitable[None]],
    *,
    limit_reached: Callable[[], Limit | None],
    admission: Admission,
    metrics: Metrics,
    throttle: Throttle,
    admitted_at_once: int = 8,
) -> Listener:
    """Return a listener that passes on its clients to ``receive``."""
    logger = _front_log(listener)
    return Listener(
        listener,
        context,
        receive,
        limit_reached=limit_reached,
        admission=admission,
        errors=ConnectionErrors(listener.name, metrics, logger, throttle),
        metrics=metrics,
        log=logger,
        admitted_at_once=admitted_at_once,
    )


def _front_log(listener: ListenerConfig) -> Log:
    return log.get("front").bind(listener=listener.name)


def server_context(listener: ListenerConfig) -> SSL.Context:
    """Return the TLS context of a listener. Raises ConfigError for a file that OpenSSL refuses."""
    make_context = partial(
        tls.server_context,
        certificate=listener.certificate,
        private_key=listener.private_key,
        client_ca=listener.client_ca,
        tls_policy=listener.tls_policy,
        resumption_lifetime=listener.resumption_lifetime,
    )
    return _checked(f'listeners["{listener.name}"].certificate', make_context)


def build_admin(config: Config, metrics: Metrics, unreadiness: Callable[[], str | None]) -> AdminServer:
    """Return the server of the admin port. ``unreadiness`` returns why /readyz should fail, or None."""
    names = (config.admin.bind.host, *config.admin.hosts)
    return AdminServer(Routes(metrics.exposition, unreadiness, names))


def _checked(setting: str, make_context: Callable[[], SSL.Context]) -> SSL.Context:
    """Make a context of files that ``load`` has read. Raises ConfigError if OpenSSL refuses one of them."""
    try:
        return make_context()
    except TlsError as error:
        raise ConfigError(
            [f"{setting}: OpenSSL refuses it: {error}; give a PEM file with an RSA key of 2048 bits or more"]
        ) from None
