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
from gateway.config import Address, BackendConfig, Config, IdentityConfig, ListenerConfig, OwnCertificate
from gateway.config.files import mark_keys
from gateway.dispatcher import Dispatcher, DispatcherSettings, Knowledge
from gateway.errors import ConfigError, TlsError
from gateway.front.admission import Admission, Allowance
from gateway.front.conversation import Limits
from gateway.front.listener import Listener, ListenerSettings
from gateway.front.sources import AddressLimits
from gateway.identity import Identities
from gateway.kmip.decode import decode_request
from gateway.metrics import Metrics
from gateway.tcp import TcpTimeouts
from gateway.upstream.affinity import Affinity
from gateway.upstream.backend import Backend, BackendOptions
from gateway.upstream.balancer import Balancer
from gateway.upstream.breaker import Breaker, BreakerSettings
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.fleet import ConfiguredBackend, Fleet
from gateway.upstream.gate import Gate
from gateway.upstream.health import Health
from gateway.upstream.health_check import HealthChecker, HealthCheckSettings
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.maintenance import maintain_pools, watch
from gateway.upstream.marks import Marks
from gateway.upstream.open_session import VALIDATION_REQUESTS, Opener, SessionTarget, open_session
from gateway.upstream.pool import Pool, PoolSettings
from gateway.upstream.pool_observer import PoolObserver
from gateway.upstream.slots import Slots
from gateway.upstream.versions import CommonVersions


class Upstream:
    """Everything behind the dispatcher: the fleet of backends and the balancer that chooses among them.

    ``nursery`` is the parent of the sessions that are being opened.
    """

    def __init__(self, config: Config, nursery: trio.Nursery, metrics: Metrics) -> None:
        self._config = config
        self._nursery = nursery
        self._metrics = metrics
        self._log = log.get("upstream")
        self._contexts: dict[tuple[str, str], SSL.Context] = {}
        self._own: dict[str, OwnCertificate] = {}  # as it was when the first of the contexts was made
        members = [
            ConfiguredBackend(
                backend.name, backend.address, partial(self._build_backend, backend), addresses=backend.addresses
            )
            for backend in config.backends
        ]
        self.fleet = Fleet(members, self._tend, self._changed, self._log)
        self.balancer = Balancer(self.fleet.backends, config.balancing.policy)

    async def run(self) -> None:
        """Keep, probe and resolve, for ever."""
        await self.fleet.run(self._config.balancing.resolve_interval)

    def _changed(self, backends: Sequence[Backend]) -> None:
        self.balancer.backends = tuple(backends)

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start a task of a pool. A fault of ours in it is logged, and does not end the gateway."""
        self._nursery.start_soon(self._run_apart, work)

    async def _run_apart(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - see above
            self._log.error("task lost to a fault of the gateway", exc_info=error)

    async def _tend(self, backend: Backend) -> None:
        config = self._config
        name = backend.name.partition("/")[0]
        settings = next(settings for settings in config.backends if settings.name == name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._build_health_checker(backend, settings).run)
            nursery.start_soon(
                partial(
                    maintain_pools,
                    backend.pools.values(),
                    config.deadlines.connect,
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
            HealthCheckSettings(
                health.interval,
                health.timeout,
                health.jitter,
                health.expect_status == "success",
                health.expect_text.encode(),
                asks_versions=settings.probe == "discover-versions",
            ),
            self._metrics,
            self._log,
        )

    def _build_backend(self, settings: BackendConfig, name: str, address: Address) -> Backend:
        config = self._config
        slots = Slots(settings.max_sessions, gate=Gate(connect_deadline=config.deadlines.connect))
        idle_limit = IdleLimit(config.pool.idle_timeout)
        endpoint = Endpoint(address)
        pools = {
            identity.name: self._build_pool(
                name,
                identity,
                slots,
                idle_limit,
                endpoint,
                self._opener(settings, identity, name, endpoint),
                settings.probe,
            )
            for identity in config.identities
        }
        return Backend(
            name,
            slots,
            pools,
            health=Health(rise=config.health.rise, fall=config.health.fall),
            breaker=Breaker(
                BreakerSettings(
                    consecutive_failures=config.failover.consecutive_failures,
                    max_pause=config.failover.max_ejection_time,
                ),
                credentials=len(config.identities),
            ),
            idle_limit=idle_limit,
            options=BackendOptions(settings.weight, settings.priority, settings.role == "rw"),
            endpoint=endpoint,
        )

    def _build_pool(
        self,
        backend: str,
        identity: IdentityConfig,
        slots: Slots,
        idle_limit: IdleLimit,
        endpoint: Endpoint,
        opener: Opener,
        probe: str,
    ) -> Pool:
        pool = self._config.pool
        return Pool(
            backend,
            identity.name,
            PoolSettings(
                pool.min_idle,
                pool.idle_timeout,
                pool.max_lifetime,
                pool.lifetime_spread,
                pool.queue_length,
                self._config.deadlines.connect,
                self._config.failover.max_ejection_time,
            ),
            slots=slots,
            opener=opener,
            spawn=self._spawn,
            observer=PoolObserver(backend, identity.name, self._metrics, self._log),
            idle_limit=idle_limit,
            validation_request=decode_request(VALIDATION_REQUESTS[probe]),
            endpoint=endpoint,
        )

    def _opener(self, settings: BackendConfig, identity: IdentityConfig, name: str, endpoint: Endpoint) -> Opener:
        target = SessionTarget(
            name,
            endpoint,
            self._context(settings, identity),
            settings.server_name if settings.ca is not None else None,
            frozenset(settings.pinned_sha256),
            self._config.limits.max_response_size,
            VALIDATION_REQUESTS[settings.probe],
            own=self._own[identity.name],
            max_fields=self._config.limits.max_response_fields,
            tcp=TcpTimeouts(keepalive=self._config.pool.tcp_keepalive, user_timeout=self._config.pool.tcp_user_timeout),
        )
        return partial(open_session, target)

    def _context(self, settings: BackendConfig, identity: IdentityConfig) -> SSL.Context:
        key = (settings.name, identity.name)
        if key not in self._contexts:
            make = partial(tls.client_context, identity.certificate, identity.private_key, settings.ca)
            self._contexts[key] = _checked(f'identities["{identity.name}"].certificate', make)
            self._own.setdefault(identity.name, OwnCertificate.of(identity))
        return self._contexts[key]


def build_dispatcher(config: Config, balancer: Balancer, metrics: Metrics) -> Dispatcher:
    """The dispatcher over a balancer. Raises ConfigError."""
    settings = DispatcherSettings(
        request=config.deadlines.request,
        queue=config.pool.queue_timeout,
        try_timeout=config.failover.try_timeout,
        validate_after=config.pool.validate_after,
        proof=config.deadlines.connect,
        retry_ratio=config.failover.retry_ratio,
        min_retries=config.failover.min_retries,
        lookup_ratio=config.replication.lookup_ratio,
        min_lookups=config.replication.min_lookups_per_second,
        observe=config.health.observe,
    )
    replication = config.replication
    is_shared = replication.mode == "shared"
    affinity = Affinity(replication.read_your_writes_window, is_shared=is_shared)
    metrics.affinity_clients.set_function(lambda: len(affinity))
    knowledge = Knowledge(
        affinity,
        Marks(_mark_keys(replication.mark_key_file)) if replication.marks else None,
        CommonVersions(balancer) if replication.answer_discover_versions else None,
        asks_others=replication.fallback_on_not_found and not is_shared,
    )
    return Dispatcher(balancer, settings, metrics=metrics, knowledge=knowledge)


def _mark_keys(path: Path) -> list[bytes]:
    """The keys of a file, which is made where there is none; where it can't be, one that ends with the process."""
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
            "marks end with this process: after a restart, values that they stand before are unknown; name a file that"
            " can be written, or turn marks off",
            key="replication.mark_key_file",
            file=str(path),
            reason=error.strerror,
        )
        return [key]


def _write_once(path: Path, text: str) -> None:
    """Write a file for its owner only, whole or not at all; where another has written it meanwhile, that one stays."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links: the moment in which it is half written is a short one
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as plain:
                plain.write(text)


def build_listeners(config: Config, dispatcher: Dispatcher, metrics: Metrics) -> list[Listener]:
    """The listeners, with the limits that hold over all of them together."""
    admission = Admission(
        max_clients=config.limits.max_clients,
        max_requests=config.limits.max_requests,
        max_buffered=config.limits.max_buffered,
        max_half_open=config.limits.max_half_open,
        per_address=AddressLimits(**config.per_address.model_dump()),
        allowances={
            identity.name: Allowance(
                identity.max_clients, identity.max_requests, identity.requests_per_second, identity.request_burst
            )
            for identity in config.identities
        },
    )
    metrics.memory_buffered.set_function(lambda: admission.buffered)
    metrics.client_connections_queued.set_function(lambda: admission.turns.waiting)
    return [_build_listener(config, listener, dispatcher, admission, metrics) for listener in config.listeners]


def _build_listener(
    config: Config,
    listener: ListenerConfig,
    dispatcher: Dispatcher,
    admission: Admission,
    metrics: Metrics,
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
        config.limits.max_fields,
        listener.request_timeout,
        listener.idle_timeout,
        listener.send_timeout,
    )
    return Listener(
        ListenerSettings(listener.name, listener.max_clients, listener.handshake_timeout, listener.proxy_from),
        _checked(f'listeners["{listener.name}"].certificate', make_context),
        Identities(rule for rule in config.identities if not rule.listeners or listener.name in rule.listeners),
        admission=admission,
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
