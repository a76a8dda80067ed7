"""Wiring: build every object of the gateway from a Config."""

import os
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio
from cryptography import x509
from OpenSSL import SSL

from gateway import log, tls
from gateway.admin.access import Access
from gateway.admin.page import Snapshot, no_state
from gateway.admin.routes import Routes
from gateway.admin.server import AdminServer
from gateway.audit.refused import RefusedConnections
from gateway.audit.trail import Trail
from gateway.config import (
    Address,
    AllowanceConfig,
    BackendConfig,
    Config,
    IdentityConfig,
    ListenerConfig,
    OwnCertificate,
)
from gateway.config.files import certificates
from gateway.config.key_files import audit_key, mark_keys, tokens_in
from gateway.config.reading import MissingFileError
from gateway.dispatcher import Dispatcher, DispatcherSettings, ReplicationPolicy
from gateway.errors import ConfigError, TlsError
from gateway.front.admission import Admission, Limit
from gateway.front.clients import Clients
from gateway.front.connection_errors import ConnectionErrors
from gateway.front.listener import Listener
from gateway.front.listeners import Listeners
from gateway.front.request_log import RequestLog
from gateway.front.taps import Taps
from gateway.identity import Identities, Principal
from gateway.kmip.messages import Request
from gateway.listening import ListeningSockets
from gateway.log import Log, Throttle
from gateway.metrics import Metrics
from gateway.permissions import Permissions
from gateway.revocation import Trust, TrustInUse
from gateway.tls import TlsStream
from gateway.tls.minting import IssuingCa
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
from gateway.upstream.minted import MintedCredentials, open_minted_session
from gateway.upstream.open_session import VALIDATION_REQUESTS, Opener, SessionTarget, open_session
from gateway.upstream.overrides import Overrides
from gateway.upstream.passwords import Password, password_of
from gateway.upstream.pool import Pool
from gateway.upstream.pool_observer import PoolObserver
from gateway.upstream.slots import Slots
from gateway.upstream.versions import CommonVersions

_JUDGE_EVERY: Final = 0.5  # s between two looks at whether a client's certificate has expired

ClientIssuers = Mapping[str, Sequence[x509.Certificate]]


class Credentials(NamedTuple):
    """TLS contexts by backend and identity; by identity, what is shown with them; and the Trust by backend.

    ``own`` are the certificates in files, ``passwords`` those in requests, ``cas`` the issuing CAs of minted
    certificates.
    """

    contexts: dict[tuple[str, str], SSL.Context]
    own: dict[str, OwnCertificate]
    passwords: dict[str, Password]
    cas: dict[str, IssuingCa]
    trusts: dict[str, Trust | None]


def _weights(config: Config) -> dict[str, int]:
    return {backend.name: backend.weight for backend in config.backends}


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
        self._weights = _weights(config)  # as configured, by the name of the backend
        self._own: dict[str, OwnCertificate] = {}  # by identity: the file as it was when its first context was made
        self._trusts: dict[str, Trust | None] = {}  # by backend; None for a backend without CRLs
        self.passwords: dict[str, Password] = {}  # by identity
        self._cas: dict[str, IssuingCa] = {}  # by identity
        self.minted = MintedCredentials(
            config.pool, self._cas, metrics, is_unused=self._is_unused, forget=self._forget_pools
        )
        metrics.minted_credentials.set_function(lambda: [((), len(self.minted))])
        for identity in config.identities:
            self._read_credential(identity)
        self._restarts: dict[Backend, trio.Event] = {}  # set to restart the periodic work of a backend
        configured = [self._configure(settings) for settings in config.backends]
        self.fleet = Fleet(
            configured,
            self._maintain,
            self._replace_backends,
            self._log,
            lambda backend, result: metrics.dns_resolutions.labels(backend, result).inc(),
        )
        self.balancer = Balancer(self.fleet.backends, policy=config.balancing.policy)

    @property
    def identities(self) -> list[str]:
        """The names of the identities in the configuration."""
        return [identity.name for identity in self._config.identities]

    def _read_credential(self, identity: IdentityConfig) -> None:
        """Read the password, or the issuing CA, of an identity at the start. Raises ConfigError."""
        try:
            if (password := password_of(identity)) is not None:
                self.passwords[identity.name] = password
            if identity.credential == "minted":
                self._cas[identity.name] = IssuingCa.of(identity)
        except ValueError as error:
            raise ConfigError([f'identities["{identity.name}"]: {error}']) from None

    def _is_unused(self, credential: str) -> bool:
        pools = (backend.pools.get(credential) for backend in self.fleet.backends)
        return all(pool is None or pool.is_unused for pool in pools)

    def _forget_pools(self, credential: str) -> None:
        for backend in self.fleet.backends:
            if credential in backend.pools:
                backend.remove_pool(credential)

    def _configure(self, settings: BackendConfig) -> ConfiguredBackend:
        return ConfiguredBackend(
            name=settings.name,
            address=settings.address,
            build=partial(self._build_backend, settings),
            addresses=settings.addresses,
        )

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
        """Do the periodic work of one backend until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check_and_maintain, backend, self._settings_of(backend))
            await watch(backend, balancer=self.balancer, metrics=self._metrics, log=self._log)

    async def _check_and_maintain(self, backend: Backend, settings: BackendConfig) -> None:
        """Check the health of a backend and maintain its pools, and begin anew whenever ``restart`` says so."""
        try:
            while True:
                restart = self._restarts[backend] = trio.Event()
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
                    await restart.wait()
                    nursery.cancel_scope.cancel()
        finally:
            self._restarts.pop(backend, None)

    def _settings_of(self, backend: Backend) -> BackendConfig:
        """Return the table of a backend, whose name may be that of the table, "/" and a number."""
        table = backend.name.partition("/")[0]
        return next(settings for settings in self._config.backends if settings.name == table)

    # Reload ----------------------------------------------------------------------------------------------------------

    def make_credentials(
        self, config: Config, *, backends: Collection[str], identities: Collection[str], leaving: Collection[str]
    ) -> Credentials:
        """Return new TLS contexts for these backends with all identities, and for these identities at all backends.

        Reads files, and changes nothing, so that it may run in a thread. The backends in ``leaving`` are removed at
        once, and get contexts that were made for another backend: their files may be gone. Raises ConfigError.
        """
        made = Credentials({}, {}, {}, {}, {})
        contexts = made.contexts
        for identity in config.identities:
            try:
                made.own[identity.name] = OwnCertificate.of(identity)
                if (password := password_of(identity)) is not None:
                    made.passwords[identity.name] = password
                if identity.credential == "minted":
                    made.cas[identity.name] = IssuingCa.of(identity)
            except ValueError as error:
                raise ConfigError([f'identities["{identity.name}"]: {error}']) from None
            ca = made.cas.get(identity.name)
            for settings in config.backends:
                if settings.name in backends or identity.name in identities:
                    contexts[settings.name, identity.name] = backend_context(settings, identity, ca)
            for name in leaving if identity.name in identities else ():
                contexts[name, identity.name] = contexts[config.backends[0].name, identity.name]
        trusts = {settings.name: backend_trust(settings) for settings in config.backends if settings.name in backends}
        made.trusts.update(trusts)
        return made

    def use_credentials(self, credentials: Credentials) -> None:
        """Use these TLS contexts for the sessions of pools and backends that are built, or renewed, from now on."""
        self._contexts.update(credentials.contexts)
        self._own.update(credentials.own)
        self._trusts.update(credentials.trusts)
        self.passwords.update(credentials.passwords)  # those of removed identities stay for their last requests
        self._cas.update(credentials.cas)

    def trusts(self) -> Iterator[TrustInUse]:
        """Yield the Trust of each key manager that has CRLs."""
        for settings in self._config.backends:
            trust = self._trusts.get(settings.name)
            if trust is not None:
                yield TrustInUse("backend", settings.name, trust)

    def change_backends(self, replaced: Collection[str]) -> None:
        """Have a backend for each table of the configuration, in its order; build those in ``replaced`` anew."""
        kept = {each.name: each for each in self.fleet.configured if each.name not in replaced}
        self.fleet.replace([kept.get(settings.name) or self._configure(settings) for settings in self._config.backends])

    def add_identity(self, identity: IdentityConfig) -> None:
        """Add a pool for an identity to each backend; minted credentials get theirs when they are used."""
        for backend in self.fleet.backends:
            if identity.credential != "minted" and identity.name not in backend.pools:
                backend.add_pool(identity.name, self._build_own_pool(self._settings_of(backend), identity, backend))

    def remove_identity(self, name: str) -> None:
        """Close the pools of an identity that has no request in flight."""
        self._forget_pools(name)
        self._own.pop(name, None)
        self._cas.pop(name, None)
        self.passwords.pop(name, None)
        self._contexts = {key: context for key, context in self._contexts.items() if key[1] != name}

    def change_kind(self, identity: IdentityConfig) -> None:
        """Forget the pools of an identity's previous kind of credential, once no request uses them any more.

        A password of the previous kind is not put into requests any more.
        """
        if identity.credential != "password":
            self.passwords.pop(identity.name, None)
        if identity.credential == "minted":
            self._spawn(partial(self._forget_fixed, identity.name))
        else:
            self._spawn(partial(self._forget_minted, identity.name))

    async def _forget_minted(self, identity: str) -> None:
        await self.minted.retire(identity)
        if not any(each.name == identity and each.credential == "minted" for each in self._config.identities):
            self._cas.pop(identity, None)

    async def _forget_fixed(self, identity: str) -> None:
        await trio.sleep(self._config.deadlines.request)  # by then, every request that began before has ended
        if any(each.name == identity and each.credential == "minted" for each in self._config.identities):
            self._forget_pools(identity)

    def renew_sessions(self, backends: Collection[str], identities: Collection[str], pause: float) -> None:
        """Replace the sessions to these backends, and the sessions with these identities, one every ``pause`` seconds.

        One pool begins after the other has ended, so that no backend has to make all handshakes at once.
        """
        for name in identities:
            self.minted.renew(name)
        delay = 0.0
        for backend in self.fleet.backends:
            settings = self._settings_of(backend)
            known = {identity.name: identity for identity in self._config.identities}
            for key, pool in backend.pools.items():
                identity = known.get(pool.credential)
                if identity is None or (identity.credential == "minted") != (key != identity.name):
                    continue  # removed, or of a kind that the identity no longer has
                if settings.name in backends or identity.name in identities:
                    validation = self._validation_request(settings, identity)
                    opener = self._build_opener(settings, identity, backend, key)
                    delay += pool.renew(opener, self._config.failover, pause, delay, validation_request=validation)

    def settings_changed(self, *, restart: bool) -> None:
        """Use the settings as they are now; ``restart`` if health checks or pool maintenance must begin anew."""
        self.fleet.resolve_interval = self._config.balancing.resolve_interval
        weights = _weights(self._config)
        for name, weight in weights.items():
            if weight != self._weights.get(name, weight):  # the file changed the very value that an operator had set
                self.overrides.forget_weight(name)
        self._weights = weights
        for backend in self.fleet.backends:
            backend.options = self._settings_of(backend)
            backend.mints = self._mints
            backend.count_credentials()
            backend.slots.limit = self._settings_of(backend).max_sessions
            backend.slots.serve()
            backend.idle_limit.configured = self._config.pool.idle_timeout
            if restart and backend in self._restarts:
                self._restarts[backend].set()
        self.balancer.set_policy(self._config.balancing.policy)
        self.override()

    # Building --------------------------------------------------------------------------------------------------------

    def _build_health_checker(self, backend: Backend, settings: BackendConfig) -> HealthChecker:
        health = self._config.health
        names = [identity.name for identity in self._config.identities if identity.credential != "minted"]
        first = health.credential or names[0]
        probe = "query" if health.expect_text else settings.probe
        return HealthChecker(
            backend,
            [first, *(name for name in names if name != first)],
            VALIDATION_REQUESTS[probe],
            health,
            self._metrics,
            self._log,
            asks_versions=settings.probe == "discover-versions",
            passwords=self.passwords,
        )

    def _build_backend(self, settings: BackendConfig, name: str, address: Address) -> Backend:
        config = self._config
        backend = Backend(
            name,
            Slots(settings.max_sessions, gate=Gate(config.deadlines)),
            {},
            health=Health(config.health),
            breaker=Breaker(config.failover),
            idle_limit=IdleLimit(config.pool.idle_timeout),
            options=settings,
            endpoint=Endpoint(address),
            mints=self._mints,
        )
        backend.build_pool = partial(self._build_minted_pool, backend, {})
        for identity in config.identities:
            if identity.credential == "minted":
                self._context(settings, identity)  # a mistake shows at the start
            else:
                backend.add_pool(identity.name, self._build_own_pool(settings, identity, backend))
        self.overrides.apply(backend)
        return backend

    @property
    def _mints(self) -> bool:
        return any(identity.credential == "minted" for identity in self._config.identities)

    def _build_minted_pool(self, backend: Backend, observers: dict[str, PoolObserver], principal: Principal) -> Pool:
        """Return a pool for one principal; only ``Backend.pool_of`` calls this, when a request is about to be sent.

        ``observers`` belong to the backend, by identity: the pools of all clients of an identity share one.
        """
        identity = next(each for each in self._config.identities if each.name == principal.identity.name)
        if identity.name not in observers:
            observers[identity.name] = PoolObserver(
                backend.name, identity.name, self._metrics, self._log, is_of_many=True
            )
        settings, observer = self._settings_of(backend), observers[identity.name]
        return self._build_pool(settings, identity, backend, observer, principal.credential)

    def _validation_request(self, settings: BackendConfig, identity: IdentityConfig) -> Request:
        """Return the request that validates a session, with the password of the identity if it has one."""
        request = VALIDATION_REQUESTS[settings.probe]
        password = self.passwords.get(identity.name)
        return request if password is None else password.added_to(request)

    def _build_own_pool(self, settings: BackendConfig, identity: IdentityConfig, backend: Backend) -> Pool:
        """Return the pool of an identity whose credential is a file, with an observer of its own."""
        observer = PoolObserver(backend.name, identity.name, self._metrics, self._log)
        return self._build_pool(settings, identity, backend, observer)

    def _build_pool(
        self,
        settings: BackendConfig,
        identity: IdentityConfig,
        backend: Backend,
        observer: PoolObserver,
        credential: str | None = None,
    ) -> Pool:
        """Return the pool of an identity, or of one minted ``credential`` of it."""
        config = self._config
        return Pool(
            backend=backend.name,
            credential=identity.name,
            settings=config.pool,
            deadlines=config.deadlines,
            failover=config.failover,
            slots=backend.slots,
            opener=self._build_opener(settings, identity, backend, credential or identity.name),
            spawn=self._spawn,
            observer=observer,
            idle_limit=backend.idle_limit,
            validation_request=self._validation_request(settings, identity),
            endpoint=backend.endpoint,
            keeps_warm=credential is None,
        )

    def _build_opener(
        self, settings: BackendConfig, identity: IdentityConfig, backend: Backend, credential: str
    ) -> Opener:
        """Return a function that opens a session."""
        target = self.session_target(settings, identity, backend.name, backend.endpoint)
        if identity.credential == "minted":
            return partial(open_minted_session, target, self.minted[credential])
        return partial(open_session, target)

    def session_target(
        self, settings: BackendConfig, identity: IdentityConfig, backend: str, endpoint: Endpoint
    ) -> SessionTarget:
        """Return the parameters of the sessions of an identity to an endpoint; ``backend`` is its name.

        A pinned certificate without a CA has no name to be verified.
        """
        return SessionTarget(
            backend=backend,
            endpoint=endpoint,
            context=self._context(settings, identity),
            server_name=settings.server_name if settings.ca is not None else None,
            pinned_sha256=frozenset(settings.pinned_sha256),
            trust=self._trust(settings),
            limits=self._config.limits,
            validation_request=self._validation_request(settings, identity),
            own=self._own[identity.name],
            tcp=self._config.pool,
        )

    def _trust(self, settings: BackendConfig) -> Trust | None:
        if settings.name not in self._trusts:
            self._trusts[settings.name] = backend_trust(settings)
        return self._trusts[settings.name]

    def _context(self, settings: BackendConfig, identity: IdentityConfig) -> SSL.Context:
        key = (settings.name, identity.name)
        if key not in self._contexts:
            self._contexts[key] = backend_context(settings, identity, self._cas.get(identity.name))
            self._own.setdefault(identity.name, OwnCertificate.of(identity))
        return self._contexts[key]


def backend_context(settings: BackendConfig, identity: IdentityConfig, ca: IssuingCa | None) -> SSL.Context:
    """Return the TLS context of an identity's sessions to a backend; ``ca`` issues its certificates, if it is minted.

    Raises ConfigError for a file that OpenSSL refuses.
    """
    make_context = partial(
        tls.client_context,
        certificate=identity.certificate,
        private_key=identity.private_key,
        ca=settings.ca,
        tls_policy=settings.tls_policy,
        passphrase_file=identity.passphrase_file,
        chain=() if ca is None else ca.shown_chain,
    )
    return _checked(f'identities["{identity.name}"].certificate', make_context)


def backend_trust(settings: BackendConfig) -> Trust | None:
    """Read the CAs of a key manager, and its CRLs; return None if it has no CRLs. Raises ConfigError."""
    if not settings.crl or settings.ca is None:
        return None
    try:
        return Trust.load(settings.ca, settings.crl, accepts_stale=settings.crl_stale == "accept")
    except ValueError as error:
        raise ConfigError([f'backends["{settings.name}"].crl: {error}']) from None


def build_dispatcher(config: Config, upstream: Upstream, metrics: Metrics) -> Dispatcher:
    """Return the dispatcher over the backends of ``upstream``. Raises ConfigError."""
    balancer = upstream.balancer
    settings = DispatcherSettings(
        deadlines=config.deadlines,
        pool=config.pool,
        failover=config.failover,
        replication=config.replication,
        health=config.health,
        log=config.log,
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
    dispatcher = Dispatcher(
        balancer,
        settings,
        metrics=metrics,
        replication=policy,
        passwords=upstream.passwords,
        minted=upstream.minted,
    )
    metrics.retry_budget_tokens.set_function(dispatcher.retry_tokens)
    return dispatcher


def make_mark_key(config: Config) -> bool:
    """Make the file of the mark key if it is missing, before this process may no longer write there.

    Return False if it can't be made.
    """
    path = config.replication.mark_key_file
    if config.replication.marks and not path.exists():
        try:
            _write_once(path, secrets.token_hex(32) + "\n")
        except OSError:  # logged where the key is used
            return False
    return True


def _mark_keys(path: Path) -> list[bytes]:
    """Return the keys of a file, which is made if it is missing; or a temporary key, if it can't be made."""
    key = secrets.token_bytes(32)
    try:
        with suppress(MissingFileError):
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


def build_trail(config: Config, version: str) -> Trail | None:
    """Return the audit trail, which is not open yet, or None if there is none. Raises ConfigError."""
    settings = config.audit
    if settings.to == "off":
        return None
    try:
        key = None if settings.key_file is None else audit_key(settings.key_file)
    except ValueError as error:
        raise ConfigError([f"audit.key_file: {error}"]) from None
    return Trail(settings, key, log.get("audit"), version=version)


class _Leaving(NamedTuple):
    """A listener that was removed, whose clients are still connected. ``is_back`` is set if it is added again."""

    settings: ListenerConfig
    is_back: trio.Event


class Front:
    """The front of the gateway in one process: the clients of each listener, and their common limits.

    The clients of a listener that a reload has removed are in ``clients``, too, until the last one has left.
    """

    def __init__(self, config: Config, dispatcher: Dispatcher, metrics: Metrics, trail: Trail | None = None) -> None:
        self.taps = Taps()
        self._config = config
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._trail = trail
        self._throttle = Throttle()
        self.request_log = RequestLog(config.log)
        self._permissions = _permissions(config)
        self._issuers = client_issuers(config)
        self.admission = build_admission(config)
        self._instrument()
        self.clients = {
            listener.name: self._build_clients(listener, client_trust(listener)) for listener in config.listeners
        }
        self._leaving: dict[str, _Leaving] = {}

    def _instrument(self) -> None:
        """Read gauges from here at each scrape."""
        metrics, admission = self._metrics, self.admission
        metrics.memory_buffered.set_function(lambda: admission.buffered)
        metrics.memory_budget.set_function(lambda: [((), admission.max_buffered)])
        metrics.client_connections_queued.set_function(lambda: admission.turns.waiting)
        metrics.clients.set_function(lambda: [((), admission.clients)])
        metrics.clients_max.set_function(lambda: [((), admission.max_clients)])
        metrics.requests_max.set_function(lambda: [((), admission.max_requests)])
        metrics.client_half_open_max.set_function(lambda: [((), admission.half_open.max_half_open)])
        metrics.client_connections_max.set_function(
            lambda: [((listener.name,), listener.max_clients) for listener in self._config.listeners]
        )

    def settings_changed(self, rates: Collection[str]) -> None:
        """Use the settings as they are now; ``rates`` names the identities whose rate of requests has changed."""
        self.admission.settings_changed(_allowances(self._config), rates)
        self.request_log.settings_changed()
        if self._trail is not None:
            self._trail.settings_changed()
        for clients in self.clients.values():
            clients.settings_changed()

    def policies_changed(self) -> None:
        """Use the policies as they are now for the next request of each client; the identity rules are the same."""
        for identity in self._config.identities:
            self._permissions[identity.name].change(identity)

    async def trust_changed(self, trusts: Mapping[str, Trust]) -> None:
        """Accept the clients of these listeners by other CAs and CRLs, and disconnect those not accepted any more."""
        for name, trust in trusts.items():
            await self.clients[name].change_trust(trust)

    def trusts(self) -> Iterator[TrustInUse]:
        """Yield the Trust of each listener."""
        for name, clients in self.clients.items():
            yield TrustInUse("client", name, clients.trust)

    async def judge_clients(self) -> None:
        """Disconnect clients when their certificates expire, or the CRLs for them become stale; until cancelled."""
        while True:
            await trio.sleep(_JUDGE_EVERY)
            for clients in self.clients.values():
                await clients.judge_when_due()

    async def identities_changed(self, issuers: ClientIssuers) -> None:
        """Identify all clients, also the connected ones, by the rules as they are now, and these pinned issuers.

        A client has the old policy of its old identity until it is identified again: if policies changed first, clients
        that a rule no longer matches could have its new policy for a moment.
        """
        self._issuers = issuers
        self._permissions = _permissions(self._config)
        for listener in (*self._config.listeners, *(leaving.settings for leaving in self._leaving.values())):
            await self.clients[listener.name].change_identities(self._identities(listener))

    async def add_listener(self, settings: ListenerConfig, trust: Trust) -> ListenerConfig:
        """Have clients for another listener. Return the table to be used for it: ``settings``, or an equal one.

        If clients of a listener of this name, which was removed before, are still connected, they stay.
        """
        leaving = self._leaving.pop(settings.name, None)
        if leaving is None:
            self.clients[settings.name] = self._build_clients(settings, trust)
            return settings
        leaving.is_back.set()
        leaving.settings.adopt(settings, type(settings).model_fields)
        self.clients[settings.name].settings_changed()
        await self.clients[settings.name].change_trust(trust)
        return leaving.settings

    def remove_listener(self, settings: ListenerConfig) -> None:
        """Note that a listener was removed: ``let_leave`` must follow."""
        self._leaving[settings.name] = _Leaving(settings, trio.Event())

    async def let_leave(self, settings: ListenerConfig) -> None:
        """Let go of the clients of a removed listener after ``[deadlines] retire``, and forget the listener.

        Returns when the last client has left, or when there is a listener of this name again.
        """
        leaving, clients = self._leaving[settings.name], self.clients[settings.name]
        with trio.move_on_after(self._config.deadlines.retire):
            await leaving.is_back.wait()
        async with trio.open_nursery() as nursery:

            async def stop_when_back() -> None:
                await leaving.is_back.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_back)
            await clients.let_go()
            nursery.cancel_scope.cancel()
        if not leaving.is_back.is_set():
            del self._leaving[settings.name], self.clients[settings.name]

    def build_listeners(self, sockets: ListeningSockets) -> Listeners:
        """Return the listeners, whose TLS ends in this process, in the configured order. Raises ConfigError."""
        listeners = Listeners(self._build_listener, sockets, metrics=self._metrics, log=log.get("front"))
        for settings in self._config.listeners:
            listeners.add(settings, server_context(settings))
        return listeners

    def _build_listener(self, settings: ListenerConfig, context: SSL.Context) -> Listener:
        return build_listener(
            settings,
            context,
            self.clients[settings.name].receive,
            limit_reached=self.clients[settings.name].limit_before_handshake,
            admission=self.admission,
            metrics=self._metrics,
            throttle=self._throttle,
            refused=self._refused,
        )

    @property
    def _refused(self) -> RefusedConnections | None:
        return None if self._trail is None else self._trail.refused

    def _build_clients(self, listener: ListenerConfig, trust: Trust) -> Clients:
        logger = _front_log(listener)
        return Clients(
            listener,
            self._identities(listener),
            trust,
            admission=self.admission,
            dispatcher=self._dispatcher,
            limits=self._config.limits,
            errors=ConnectionErrors(listener.name, self._metrics, logger, self._throttle, self._refused),
            metrics=self._metrics,
            log=logger,
            throttle=self._throttle,
            trail=self._trail,
            taps=self.taps,
            request_log=self.request_log,
        )

    def _identities(self, listener: ListenerConfig) -> Identities:
        rules = [rule for rule in self._config.identities if not rule.listeners or listener.name in rule.listeners]
        return Identities(rules, self._permissions, self._issuers)


def _permissions(config: Config) -> dict[str, Permissions]:
    return {identity.name: Permissions(identity) for identity in config.identities}


def client_trust(listener: ListenerConfig) -> Trust:
    """Read the CAs of a listener's clients, and their CRLs. Takes long for long lists. Raises ConfigError."""
    accepts_stale = listener.crl_stale == "accept"
    try:
        return Trust.load(listener.client_ca, listener.client_crl, accepts_stale=accepts_stale)
    except ValueError as error:
        raise ConfigError([f'listeners["{listener.name}"].client_crl: {error}']) from None


def client_issuers(config: Config) -> ClientIssuers:
    """Return, by identity, the certificates of the CA that its clients must have. Raises ConfigError."""
    found: dict[str, Sequence[x509.Certificate]] = {}
    for identity in config.identities:
        if identity.credential == "minted" and identity.client_issuer is not None:
            try:
                found[identity.name] = certificates(identity.client_issuer)
            except ValueError as error:
                raise ConfigError([f'identities["{identity.name}"].client_issuer: {error}']) from None
    return found


def build_admission(config: Config) -> Admission:
    """Return the limits that all listeners share."""
    return Admission(
        limits=config.limits,
        per_address=config.per_address,
        allowances=_allowances(config),
    )


def _allowances(config: Config) -> dict[str, AllowanceConfig]:
    return {identity.name: identity for identity in config.identities}


def build_listener(
    listener: ListenerConfig,
    context: SSL.Context,
    receive: Callable[[TlsStream, str, float], Awaitable[None]],
    *,
    limit_reached: Callable[[], Limit | None],
    admission: Admission,
    metrics: Metrics,
    throttle: Throttle,
    refused: RefusedConnections | None = None,
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
        errors=ConnectionErrors(listener.name, metrics, logger, throttle, refused),
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
        passphrase_file=listener.passphrase_file,
        client_ca=listener.client_ca,
        tls_policy=listener.tls_policy,
        resumption_lifetime=listener.resumption_lifetime,
    )
    return _checked(f'listeners["{listener.name}"].certificate', make_context)


class AdminAccess(NamedTuple):
    """Access to the admin port: host names, tokens and certificates, and the TLS context, if it speaks TLS."""

    names: tuple[str, ...]
    access: Access
    context: SSL.Context | None


def admin_access(config: Config) -> AdminAccess:
    """Read the files of the admin port. Raises ConfigError."""
    admin = config.admin
    try:
        tokens = [] if admin.token_file is None else tokens_in(admin.token_file)
    except ValueError as error:
        raise ConfigError([f"admin.token_file: {error}"]) from None
    context = None
    if admin.certificate is not None and admin.private_key is not None:
        make_context = partial(
            tls.admin_context,
            certificate=admin.certificate,
            private_key=admin.private_key,
            client_ca=admin.client_ca,
        )
        context = _checked("admin.certificate", make_context)
    names = (admin.bind.host, *admin.hosts)
    return AdminAccess(names, Access(tokens, needs_certificate=admin.client_ca is not None), context)


def build_admin(
    config: Config, metrics: Metrics, unreadiness: Callable[[], str | None], snapshot: Snapshot = no_state
) -> AdminServer:
    """Return the server of the admin port. ``unreadiness`` returns why /readyz should fail, or None.

    ``snapshot`` returns the state of the gateway for the status page.
    """
    it = admin_access(config)
    return AdminServer(Routes(metrics.exposition_parts, unreadiness, it.names, it.access, snapshot), context=it.context)


#: Advice for files that OpenSSL refuses, by a part of its text.
_OF_OPENSSL: Final = {
    "key too small": "have it issued with an RSA key of 2048 bits or more, or with an ECDSA key",
    "md too weak": "have it issued again, signed with SHA-256",
    "no such file": "put the file back, or correct the path",
}


def _checked(setting: str, make_context: Callable[[], SSL.Context]) -> SSL.Context:
    """Make a context of files that ``load`` has read. Raises ConfigError if OpenSSL refuses one of them."""
    try:
        return make_context()
    except TlsError as error:
        remedy = next((remedy for part, remedy in _OF_OPENSSL.items() if part in str(error)), "correct the file")
        raise ConfigError([f"{setting}: OpenSSL refuses it: {error}; {remedy}"]) from None
