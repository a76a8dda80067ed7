"""Wiring: each setting of the configuration reaches the objects that use it.

``ROWS`` has a row for every setting of the model: an odd value, and the places where this value must be found after
everything was built from a configuration without any other odd value. A new setting without a row fails a test.
"""

import errno
import inspect
import os
import signal
import socket
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import trio
from click.testing import CliRunner
from OpenSSL import SSL

from gateway import cli, core, launch, listening, log, tls, tls_worker, wiring
from gateway.budget import TokenBucket
from gateway.config import Config
from gateway.config.crosschecks import crosschecked
from gateway.config.draft import Draft
from gateway.config.loading import examine
from gateway.config.mistakes import Mistake
from gateway.config.model import LISTS, SECTIONS, MatchConfig
from gateway.confinement import User
from gateway.core import Core, ListenAddresses
from gateway.front.admission import Account, Admission
from gateway.front.clients import Clients
from gateway.front.listener import Listener
from gateway.identity import Identity, Principal
from gateway.kmip import compose
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation
from gateway.metrics import Metrics
from gateway.upstream import balancer
from gateway.upstream.backend import Backend
from gateway.upstream.health_check import HealthChecker
from gateway.upstream.open_session import SessionTarget
from gateway.upstream.pool import Pool
from gateway.upstream.pool_observer import PoolObserver
from tests.kit import processes
from tests.kit.authorities import Ca, encrypt, write_secret
from tests.kit.fake_backends import in_virtual_time
from tests.kit.processes import Certificates, GatewaySettings, free_port, write_config
from tests.kit.revocation import crl_of

PIN: Final = "ab" * 32
KEY: Final = "cd" * 32  # of marks
SECOND_LISTENER: Final = """
[[listeners]]
name = "second"
bind = "127.0.0.1:{}"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients_ca.pem"
"""


class Built:
    """Objects built from a configuration. TLS contexts are empty: their arguments are in ``contexts``."""

    def __init__(self, config: Config, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config = config
        self.monkeypatch = monkeypatch
        self.contexts: list[Mapping[str, Any]] = []
        self.admin_context: Mapping[str, Any] = {}
        make_admin = inspect.signature(tls.admin_context)
        monkeypatch.setattr(tls, "admin_context", partial(self._make_admin_context, make_admin))
        for name in ("server_context", "client_context"):
            monkeypatch.setattr(tls, name, partial(self._make_context, inspect.signature(getattr(tls, name))))
        metrics = Metrics("test")
        self.upstream = wiring.Upstream(config, nursery, metrics)
        self.dispatcher = wiring.build_dispatcher(config, self.upstream, metrics)
        self.trail = wiring.build_trail(config, "test")
        self.front = wiring.Front(config, self.dispatcher, metrics, self.trail)
        self.listeners = self.front.build_listeners(listening.ListeningSockets())
        self.admin = wiring.build_admin(config, metrics, lambda: None)

    def _make_admin_context(self, signature: inspect.Signature, **by_name: Any) -> SSL.Context:
        self.admin_context = signature.bind(**by_name).arguments
        return SSL.Context(SSL.TLS_METHOD)

    def is_accepted_on_every_address(self) -> bool:
        """Return True if the admin port may listen on every address without tokens."""
        admin = {"bind": "0.0.0.0:9696", "anonymous_metrics": self.config.admin.anonymous_metrics}
        draft = Draft({"admin": admin}, set())
        return not any(mistake.at == ("admin", "bind") for mistake in crosschecked(draft, Path(), datetime.now(UTC)))

    def _make_context(self, signature: inspect.Signature, *arguments: Any, **by_name: Any) -> SSL.Context:
        self.contexts.append(signature.bind(*arguments, **by_name).arguments)
        return SSL.Context(SSL.TLS_METHOD)

    @property
    def server_context(self) -> Mapping[str, Any]:
        """Arguments of the context of the first listener."""
        return next(arguments for arguments in self.contexts if "client_ca" in arguments)

    @property
    def client_context(self) -> Mapping[str, Any]:
        """Arguments of the context for the first backend and the first identity."""
        return next(arguments for arguments in self.contexts if "ca" in arguments)

    @property
    def backend(self) -> Backend:
        """The first backend."""
        return self.upstream.fleet.backends[0]

    @property
    def pool(self) -> Pool:
        """The pool of the first backend and the first identity."""
        return next(iter(self.backend.pools.values()))

    @property
    def observer(self) -> PoolObserver:
        """The observer of ``pool``."""
        assert isinstance(self.pool.observer, PoolObserver)
        return self.pool.observer

    @property
    def target(self) -> SessionTarget:
        """The parameters of the sessions in ``pool``."""
        assert isinstance(self.pool.opener, partial)
        target: SessionTarget = self.pool.opener.args[0]
        return target

    @property
    def health_checker(self) -> HealthChecker:
        """The health checker of the first backend."""
        return self.upstream._build_health_checker(self.backend, self.config.backends[0])

    @property
    def listener(self) -> Listener:
        """The first listener."""
        return self.listeners[self.config.listeners[0].name]

    @property
    def clients(self) -> Clients:
        """The clients of the first listener."""
        return next(iter(self.front.clients.values()))

    @property
    def conversation(self) -> Mapping[str, Any]:
        """Arguments of each conversation of the first listener."""
        assert isinstance(self.clients._converse, partial)
        return self.clients._converse.keywords

    @property
    def rule(self) -> tuple[MatchConfig, Identity]:
        """The first identity rule of the first listener."""
        return self.clients._identities._rules[0]

    @property
    def admission(self) -> Admission:
        """The limits that the listeners share."""
        return self.clients._admission

    @property
    def account(self) -> Account:
        """The account of a client under the first identity."""
        return self.admission.account(Principal(self.rule[1], "CN=CA", "CN=alice", 0.0, float("inf")))

    @property
    def source_bucket(self) -> TokenBucket | None:
        """The bucket for the handshakes of one source address."""
        return self.admission.sources.connect("::1").bucket

    async def arguments_of(self, owner: Any, name: str, work: Callable[[], Awaitable[None]]) -> Mapping[str, Any]:
        """Return the arguments with which ``work`` calls an asynchronous function of ``owner``."""
        signature, calls = inspect.signature(getattr(owner, name)), list[Mapping[str, Any]]()

        async def note(*arguments: Any, **by_name: Any) -> None:
            calls.append(signature.bind(*arguments, **by_name).arguments)

        self.monkeypatch.setattr(owner, name, note)
        with trio.move_on_after(1):
            await work()
        return calls[0]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Core, ListenAddresses]]:
        """Run a core without any work behind its dispatcher, and drain it at the end of the block."""
        self.monkeypatch.setattr(wiring.Upstream, "run", _never_ends)
        running = Core(self.config, path=Path("gateway.toml"))
        async with trio.open_nursery() as nursery:
            addresses: ListenAddresses = await nursery.start(running.run)
            yield running, addresses
            running.drain()

    async def drained_within(self) -> float:
        """Return the seconds for which a core that drains waits for a conversation that does not end."""
        self.monkeypatch.setattr(Listener, "serve", _never_ends)
        async with self.running():
            began = trio.current_time()
        return trio.current_time() - began

    async def left_after(self) -> float:
        """Return the seconds after which the clients of a removed listener are let go."""
        began, settings = trio.current_time(), self.config.listeners[0]
        found: list[float] = []

        async def let_go(_clients: Clients) -> None:
            found.append(trio.current_time() - began)

        self.monkeypatch.setattr(Clients, "let_go", let_go)
        self.front.remove_listener(settings)
        await self.front.let_leave(settings)
        return found[0]

    async def accepting_while_draining(self) -> float:
        """Return the seconds for which a core that drains still accepts clients."""
        async with self.running() as (running, _addresses):
            began = trio.current_time()
            running.drain()
            await running._drain.wait()
            return trio.current_time() - began

    async def when_none(self) -> str:
        """Return "close" if a core refuses connections while no backend can be reached, or "answer"."""
        found = list[bool]()

        async def refuse(_acceptors: object, is_reachable: Callable[[], bool], _log: object) -> None:
            found.append(is_reachable())

        self.monkeypatch.setattr(core, "refuse_while_unreachable", refuse)
        self.monkeypatch.setattr(core, "_is_reachable", lambda _fleet: False)
        async with self.running():
            await trio.sleep(0.1)
        return "answer" if found[0] else "close"

    async def reloads_when_files_change(self) -> bool:
        """Return True if a core reloads its configuration when a file of it has changed."""
        calls = list[Core]()

        class OneChange:
            def __init__(self, _files: object, **_times: float) -> None:
                self.has_changed = False

            async def changed(self) -> list[Path]:
                if self.has_changed:
                    await trio.sleep_forever()
                self.has_changed = True
                return []

        async def reload(running: Core) -> None:
            calls.append(running)

        self.monkeypatch.setattr(core, "FileWatch", OneChange)
        self.monkeypatch.setattr(Core, "reload", reload)
        async with self.running():
            await trio.sleep(0.1)
        return bool(calls)

    async def control_socket(self) -> str:
        """Return the name of the socket that a core listens on for control commands, or ""."""
        path = self.config.admin.socket
        async with self.running():
            return path.name if path is not None and path.is_socket() else ""

    async def addresses(self) -> ListenAddresses:
        """Return the addresses that a core listens on."""
        async with self.running() as (_core, addresses):
            return addresses

    def started_workers(self) -> int:
        """Return the number of TLS workers that a launch would start."""
        found: list[int] = []

        class Supervisor:
            def __init__(self, _run_core: object, _run_worker: object, workers: int, _prepare: object) -> None:
                found.append(workers)

            def run(self) -> int:
                return 0

        self.monkeypatch.setattr(launch, "Supervisor", Supervisor)
        self.monkeypatch.setattr(launch, "_run_core", lambda *_arguments: 0)
        self.monkeypatch.setattr(launch, "server_context", lambda _listener: None)
        numbers = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        handlers = [signal.getsignal(number) for number in numbers]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:
            launch.launch(self.config, lambda _mistakes: None)
        finally:  # the signals are those of the process that runs the tests, and of all that it starts
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)
        return found[0] if found else 0

    def confined(self) -> list[str]:
        """Return the functions that a launch calls to take rights from its process, with their arguments."""
        calls: list[str] = []
        for name in ("change_user", "confine_core", "confine_worker"):
            self.monkeypatch.setattr(
                launch, name, lambda *given, name=name, **_options: calls.append(f"{name} {given}")
            )
        self.started_workers()
        return calls

    def is_accepted_with_exposed_key(self) -> bool:
        """Return True if a configuration with this ``key_permissions`` may name a key that everybody can read."""
        key = self.config.listeners[0].private_key
        document = {"gateway": {"key_permissions": self.config.gateway.key_permissions}}
        key.chmod(0o644)
        try:
            return not any(key.name in mistake.text for mistake in exposed_files_in(key, document))
        finally:
            key.chmod(0o600)

    async def watchdog_limit(self, module: Any) -> float:
        """Return the seconds after which the watchdog of a core, or of a TLS worker, ends its process."""
        found: list[float] = []

        class NoWatchdog:
            def __init__(self, limit: float, _log: object) -> None:
                found.append(limit)

            async def run(self) -> None:
                pass

        self.monkeypatch.setattr(module, "Watchdog", NoWatchdog)
        if module is core:
            async with self.running():
                await trio.sleep(0.1)
        else:
            one, other = socket.socketpair()
            with one, other:
                tls_worker.TlsWorker(self.config, {"kmip": None, "second": None}, one, workers=1)  # type: ignore[dict-item]
        return found[0]

    def option_of_listener(self, option: int, level: int = socket.IPPROTO_TCP) -> int:
        """Return an option, by default of TCP, of the first listener's socket."""
        with listening.listen_for_clients(self.config.listeners[0]) as sock:
            return sock.getsockopt(level, option)

    def log_arguments(self) -> Mapping[str, Any]:
        """Return the arguments with which ``kmip-gateway run`` sets up the log."""
        calls = list[Mapping[str, Any]]()
        signature = inspect.signature(log.configure)

        def configure(*arguments: Any, **by_name: Any) -> log.LossyFile:
            calls.append(signature.bind(*arguments, **by_name).arguments)
            return log.LossyFile(None)

        self.monkeypatch.setattr(cli, "load_apart", lambda _path: self.config)
        self.monkeypatch.setattr(log, "configure", configure)
        self.monkeypatch.setattr(trio, "run", lambda *_arguments: None)
        assert CliRunner().invoke(cli.main, ["run", "gateway.toml"]).exit_code == 0
        return calls[0]


def exposed_files_in(key: Path, document: dict[str, Any]) -> list[Mistake]:
    """Return the mistakes of a document that names a key, between its settings."""
    listeners = [{"name": "kmip", "private_key": key.name}]
    return crosschecked(Draft(document | {"listeners": listeners}, set()), key.parent, datetime.now(UTC))


async def _never_ends(*_arguments: object) -> None:
    await trio.sleep_forever()


def probe_of(request: Request) -> str:
    """Return the value of ``backends.probe`` that stands for a request."""
    return {Operation.DISCOVER_VERSIONS: "discover-versions", Operation.QUERY: "query"}[
        Operation(request.items[0].operation)
    ]


Place = Callable[[Built], Any]


class Row(NamedTuple):
    """An odd value as a file gives it, and the places where it must be found, as ``found`` if that is not the same.

    ``beside`` are settings of the same table without which the odd value would be a mistake.
    """

    odd: Any
    places: tuple[Place, ...]
    found: Any = None
    beside: Mapping[str, Any] = {}


def row(odd: Any, *places: Place, found: Any = None, **beside: Any) -> Row:
    """Return a Row; ``found`` is the odd value unless it is given."""
    return Row(odd, places, odd if found is None else found, beside)


def of_conversation(table: str, *names: tuple[str, Any]) -> dict[str, Row]:
    """Return rows of settings that conversations use: names and odd values."""
    section = "limits" if table == "limits" else "listeners"

    def place(name: str) -> Place:
        return lambda it: getattr(it.conversation[table], name)

    return {f"{section}.{name}": row(odd, place(name)) for name, odd in names}


def of_match(**odd: str) -> dict[str, Row]:
    """Return rows of the keys of match."""

    def place(name: str) -> Place:
        return lambda it: getattr(it.rule[0], name)

    return {f"match.{name}": row(value, place(name), found=(value,)) for name, value in odd.items()}


#: Settings beside each setting of minted credentials, and of passwords.
MINTED: Final = {
    "credential": "minted",
    "certificate": "",
    "private_key": "",
    "client_issuer": "clients_ca.pem",
    "issuing_ca": "odd-ca.pem",
    "issuing_ca_key": "odd-ca.key",
}
PASSWORD: Final = {"credential": "password", "username": "odd-user", "password_file": "odd.password"}


def of_minted(setting: str, odd: Any, *places: Place, found: Any = None, **beside: Any) -> dict[str, Row]:
    """Return the row of a setting of minted credentials."""
    given = {key: value for key, value in {**MINTED, **beside}.items() if key != setting}
    return {f"identities.{setting}": row(odd, *places, found=found, **given)}


def of_password(setting: str, odd: Any, *places: Place, found: Any = None, **beside: Any) -> dict[str, Row]:
    """Return the row of a setting of passwords."""
    given = {key: value for key, value in {**PASSWORD, **beside}.items() if key != setting}
    return {f"identities.{setting}": row(odd, *places, found=found, **given)}


def is_sent(text: bytes) -> tuple[Place, ...]:
    """Return the places of a text in the requests with a password: those of clients, and the gateway's own."""
    plain = decode_request(compose.discover_versions())
    return (
        lambda it: text in it.dispatcher._passwords["first"].added_to(plain).frame,
        lambda it: text in it.pool.validation_request.frame,
        lambda it: text in it.pool.opening._validation_request.frame,
        lambda it: text in it.target.validation_request.frame,
        lambda it: text in it.health_checker._with_credential(it.health_checker._request).frame,
    )


PORTS: Final = [free_port() for _ in range(2)]
ROWS: Final[dict[str, Row]] = {
    # gateway
    "gateway.tls_workers": row(3, lambda it: it.started_workers()),
    "gateway.watch_files": row(False, lambda it: it.reloads_when_files_change()),
    "gateway.user": row(
        "0", lambda it: [call for call in it.confined() if "change" in call], found=[f"change_user ({User(0, 0)},)"]
    ),
    "gateway.group": row(
        "1",
        lambda it: [call for call in it.confined() if "change" in call],
        found=[f"change_user ({User(0, 1)},)"],
        user="0",
    ),
    "gateway.key_permissions": row("warn", lambda it: it.is_accepted_with_exposed_key(), found=True),
    "gateway.confinement": row("off", lambda it: "confine" not in str(it.confined()), found=True),
    "gateway.watchdog": row(17.0, lambda it: it.watchdog_limit(core), lambda it: it.watchdog_limit(tls_worker)),
    # listeners
    "listeners.name": row("odd", lambda it: it.listener._settings.name, lambda it: repr(it.listener).split()[1][:-1]),
    "listeners.bind": row(f"127.0.0.1:{PORTS[0]}", lambda it: _text(it.addresses, "listeners")),
    "listeners.certificate": row("odd.pem", lambda it: it.server_context["certificate"].name, private_key="odd.key"),
    "listeners.private_key": row("odd.key", lambda it: it.server_context["private_key"].name, certificate="odd.pem"),
    "listeners.passphrase_file": row(
        "odd.passphrase", lambda it: it.server_context["passphrase_file"].name, private_key="server-encrypted.key"
    ),
    "listeners.client_ca": row("kms_ca.pem", lambda it: it.server_context["client_ca"].name),
    "listeners.client_crl": row(
        "clients.crl", lambda it: [crl.file.name for crl in it.clients.trust.lists or ()], found=["clients.crl"]
    ),
    "listeners.crl_stale": row("accept", lambda it: "accept" if it.clients.trust.accepts_stale else "refuse"),
    "listeners.tls_policy": row("compatible", lambda it: it.server_context["tls_policy"]),
    "listeners.max_clients": row(17, lambda it: it.clients._settings.max_clients),
    "listeners.handshake_timeout": row(1.25, lambda it: it.listener._handshakes._timeout),
    **of_conversation("settings", ("request_timeout", 1.5), ("idle_timeout", 777.0), ("send_timeout", 1.75)),
    "listeners.tcp_keepalive": row(17, lambda it: it.option_of_listener(socket.TCP_KEEPIDLE)),
    "listeners.reuse_port": row(True, lambda it: bool(it.option_of_listener(socket.SO_REUSEPORT, socket.SOL_SOCKET))),
    "listeners.tcp_user_timeout": row(177.0, lambda it: it.option_of_listener(socket.TCP_USER_TIMEOUT) / 1000),
    "listeners.resumption_lifetime": row(177, lambda it: it.server_context["resumption_lifetime"]),
    "listeners.proxy_protocol": row(
        True, lambda it: bool(it.listener._handshakes._balancers), proxy_from=["192.0.2.0/24"]
    ),
    "listeners.proxy_from": row(
        ["192.0.2.0/24"],
        lambda it: [str(network) for network in it.listener._handshakes._balancers],
        proxy_protocol=True,
    ),
    # backends
    "backends.name": row(
        "odd",
        lambda it: it.backend.name,
        lambda it: it.pool.backend,
        lambda it: it.target.backend,
        lambda it: it.observer._backend,
    ),
    "backends.address": row(
        "odd.example.com:5697",
        lambda it: str(it.backend.endpoint.address),
        lambda it: str(it.target.endpoint.address),
        lambda it: str(it.upstream.fleet._configured[0].address),
    ),
    "backends.addresses": row("each", lambda it: it.upstream.fleet._configured[0]._addresses),
    "backends.ca": row("clients_ca.pem", lambda it: it.client_context["ca"].name),
    "backends.crl": row(
        "kms.crl",
        lambda it: it.target.trust and [crl.file.name for crl in it.target.trust.lists or ()],
        found=["kms.crl"],
    ),
    "backends.crl_stale": row(
        "accept",
        lambda it: "accept" if it.target.trust and it.target.trust.accepts_stale else "refuse",
        crl="kms.crl",
    ),
    "backends.tls_policy": row("legacy", lambda it: it.client_context["tls_policy"]),
    "backends.server_name": row("odd.example.com", lambda it: it.target.server_name),
    "backends.pinned_sha256": row(PIN, lambda it: it.target.pinned_sha256, found=frozenset({PIN})),
    "backends.max_sessions": row(17, lambda it: it.backend.slots.limit),
    "backends.probe": row(
        "query",
        lambda it: probe_of(it.pool.validation_request),
        lambda it: probe_of(it.target.validation_request),
        lambda it: probe_of(it.health_checker._request),
        lambda it: "discover-versions" if it.health_checker._asks_versions else "query",
    ),
    "backends.weight": row(7, lambda it: it.backend.options.weight),
    "backends.priority": row(7, lambda it: it.backend.options.priority),
    "backends.role": row("ro", lambda it: it.backend.options.role),
    # identities
    "identities.name": row(
        "odd",
        lambda it: it.rule[1].name,
        lambda it: it.pool.credential,
        lambda it: it.observer._credential,
        lambda it: next(iter(it.backend.pools)),
        lambda it: next(iter(it.admission._allowances)),
        lambda it: it.target.own and it.target.own.identity,
        lambda it: it.health_checker._credential,
    ),
    "identities.listeners": row(
        "second",
        lambda it: [
            name
            for name, clients in it.front.clients.items()
            if "first" in {identity.name for _match, identity in clients._identities._rules}
        ],
        found=["second"],
    ),
    "identities.shared": row(True, lambda it: it.rule[1].shared),
    "identities.certificate": row(
        "credential-odd.pem",
        lambda it: it.client_context["certificate"].name,
        lambda it: it.target.own and it.target.own.file.name,
        private_key="credential-odd.key",
    ),
    "identities.private_key": row(
        "credential-odd.key", lambda it: it.client_context["private_key"].name, certificate="credential-odd.pem"
    ),
    "identities.passphrase_file": row(
        "odd.passphrase",
        lambda it: it.client_context["passphrase_file"].name,
        private_key="credential-first-encrypted.key",
    ),
    **of_minted("credential", "minted", lambda it: "minted" if "first" in it.upstream._cas else "fixed"),
    **of_minted(
        "client_issuer",
        "odd-ca.pem",
        lambda it: it.clients._identities._issuers["first"][0].subject.rfc4514_string(),
        found="CN=odd CA",
    ),
    **of_minted("issuing_ca", "odd-ca.pem", lambda it: repr(it.upstream._cas["first"]), found="<IssuingCa CN=odd CA>"),
    **of_minted(
        "issuing_ca_passphrase_file",
        "odd.passphrase",
        lambda it: repr(it.upstream._cas["first"]),
        found="<IssuingCa CN=odd CA>",
        issuing_ca_key="odd-ca-encrypted.key",
    ),
    **of_minted(
        "issuing_ca_key",
        "odd-ca.key",
        lambda it: it.upstream._cas["first"]._private_key.public_key() == it.upstream._cas["first"]._own.public_key(),
        found=True,
    ),
    **of_minted("minted_key", "ec-p384", lambda it: it.upstream._cas["first"].minted_key),
    **of_minted("minted_lifetime", 1700, lambda it: it.upstream._cas["first"]._lifetime.total_seconds()),
    **of_password("username", "odd-name", *is_sent(b"odd-name"), found=True),
    **of_password("device", {"serial_number": "odd-17"}, *is_sent(b"odd-17"), found=True, username=""),
    **of_password("password_file", "odd.password", *is_sent(b"odd-secret"), found=True),
    **of_password("client_credential", "replace", lambda it: it.dispatcher._passwords["first"].client_credential),
    "identities.max_clients": row(17, lambda it: it.account._allowance.max_clients),
    "identities.max_requests": row(17, lambda it: it.account._allowance.max_requests),
    "identities.requests_per_second": row(17.0, lambda it: it.account._bucket and it.account._bucket._rate),
    "identities.request_burst": row(
        17.0, lambda it: it.account._bucket and it.account._bucket._burst, requests_per_second=3.0
    ),
    "identities.allow": row("read", lambda it: bool(it.rule[1].permissions.free & {Operation.DESTROY}), found=False),
    "identities.refuse": row("Get", lambda it: bool(it.rule[1].permissions.free & {Operation.GET}), found=False),
    "identities.object_types": row("Certificate", lambda it: it.rule[1].permissions._object_types, found={1}),
    "identities.max_batch_items": row(17, lambda it: it.rule[1].permissions.max_items),
    **of_match(
        subject_cn="odd",
        san_dns="odd.example.com",
        san_email="odd@example.com",
        san_uri="spiffe://example.com/odd",
        san_ip="192.0.2.7",
        fingerprint_sha256=PIN,
    ),
    "match.issuer": row("CN=Odd", lambda it: it.rule[0].issuer, found=("CN=Odd",)),
    # admin
    "admin.bind": row(
        f"127.0.0.2:{PORTS[1]}",
        lambda it: _text(it.addresses, "admin"),
        lambda it: f"127.0.0.2:{PORTS[1]}" if "127.0.0.2" in it.admin._routes._names else None,
    ),
    "admin.hosts": row(
        "odd.example.com",
        lambda it: it.admin._routes._names,
        found={"localhost", "127.0.0.1", "odd.example.com"},
    ),
    "admin.socket": row("odd.sock", lambda it: it.control_socket()),
    "admin.certificate": row("odd.pem", lambda it: _file_of_admin(it, "certificate"), private_key="odd.key"),
    "admin.private_key": row("odd.key", lambda it: _file_of_admin(it, "private_key"), certificate="odd.pem"),
    "admin.client_ca": row(
        "kms_ca.pem",
        lambda it: _file_of_admin(it, "client_ca"),
        lambda it: it.admin._routes._access._needs_certificate and "kms_ca.pem",
        certificate="odd.pem",
        private_key="odd.key",
    ),
    "admin.token_file": row(
        "odd.tokens",
        lambda it: (
            it.admin._routes._access.refuse(f"Bearer {KEY}", has_certificate=False) is None
            and it.admin._routes._access.refuse(None, has_certificate=False) is not None
        ),
        found=True,
    ),
    "admin.anonymous_metrics": row(True, lambda it: it.is_accepted_on_every_address()),
    # pool
    "pool.max_principals": row(17, lambda it: it.upstream.minted._settings.max_principals),
    "pool.min_idle": row(7, lambda it: it.pool._settings.min_idle),
    "pool.idle_timeout": row(
        17.5, lambda it: it.backend.idle_limit.configured, lambda it: it.pool._idle_limit.configured
    ),
    "pool.max_lifetime": row(1777.0, lambda it: it.pool._settings.max_lifetime),
    "pool.lifetime_spread": row(0.25, lambda it: it.pool._settings.lifetime_spread),
    "pool.queue_length": row(17, lambda it: it.pool._settings.queue_length),
    "pool.queue_timeout": row(1.25, lambda it: it.dispatcher._settings.pool.queue_timeout),
    "pool.validate_after": row(1.75, lambda it: it.dispatcher._settings.pool.validate_after),
    "pool.tcp_keepalive": row(3, lambda it: it.target.tcp and it.target.tcp.tcp_keepalive),
    "pool.tcp_user_timeout": row(17.0, lambda it: it.target.tcp and it.target.tcp.tcp_user_timeout),
    # balancing
    "balancing.policy": row(
        "least-outstanding",
        lambda it: next(name for name, way in balancer._POLICIES.items() if way is it.upstream.balancer._choose),
    ),
    "balancing.resolve_interval": row(
        17.5, lambda it: _argument(it, it.upstream.fleet, "run", it.upstream.run, "resolve_interval")
    ),
    # failover
    "failover.try_timeout": row(1.25, lambda it: it.dispatcher._settings.failover.try_timeout),
    "failover.retry_ratio": row(0.25, lambda it: it.dispatcher._budgets.retries["odd"]._ratio),
    "failover.min_retries": row(7, lambda it: it.dispatcher._budgets.retries["odd"]._least),
    "failover.consecutive_failures": row(7, lambda it: it.backend.breaker._settings.consecutive_failures),
    "failover.max_ejection_time": row(
        17.0, lambda it: it.backend.breaker._settings.max_ejection_time, lambda it: it.pool.opening._pause._longest
    ),
    "failover.when_none": row("answer", lambda it: it.when_none()),
    # replication
    "replication.mode": row("async", lambda it: "shared" if it.dispatcher._affinity.is_shared else "async"),
    "replication.read_your_writes_window": row(1.25, lambda it: it.dispatcher._affinity.window),
    "replication.fallback_on_not_found": row(
        False, lambda it: it.dispatcher._replication.fallback_on_not_found, mode="async"
    ),
    "replication.marks": row(False, lambda it: it.dispatcher._replication.marks is not None),
    "replication.mark_key_file": row(
        "odd.marks",
        lambda it: it.dispatcher._replication.marks and it.dispatcher._replication.marks._keys,
        found=(bytes.fromhex(KEY),),
    ),
    "replication.answer_discover_versions": row(False, lambda it: it.dispatcher._versions is not None),
    "replication.lookup_ratio": row(0.25, lambda it: it.dispatcher._budgets.lookups["odd"]._ratio),
    "replication.min_lookups_per_second": row(7.0, lambda it: it.dispatcher._budgets.lookups["odd"]._floor._rate),
    # health
    "health.credential": row("second", lambda it: it.health_checker._credential),
    "health.interval": row(1.25, lambda it: it.health_checker._settings.interval),
    "health.timeout": row(1.75, lambda it: it.health_checker._settings.timeout),
    "health.jitter": row(0.25, lambda it: it.health_checker._settings.jitter),
    "health.rise": row(7, lambda it: it.backend.health._settings.rise),
    "health.fall": row(17, lambda it: it.backend.health._settings.fall),
    "health.expect_status": row("success", lambda it: it.health_checker._settings.expect_status),
    "health.expect_text": row(
        "odd",
        lambda it: it.health_checker._expect_text.decode(),
        lambda it: "odd" if probe_of(it.health_checker._request) == "query" else "",
    ),
    "health.observe": row(False, lambda it: it.dispatcher._settings.health.observe),
    # deadlines
    "deadlines.request": row(17.0, lambda it: it.dispatcher._settings.deadlines.request),
    "deadlines.connect": row(
        1.25,
        lambda it: it.dispatcher._settings.deadlines.connect,
        lambda it: it.pool.opening._deadline,
        lambda it: it.backend.slots.gate._slow * 4,
        lambda it: _argument(it, wiring, "maintain_pools", partial(it.upstream._maintain, it.backend), "deadline"),
    ),
    "deadlines.lame_duck": row(17.0, lambda it: it.accepting_while_draining()),
    "deadlines.drain": row(17.0, lambda it: it.drained_within()),
    "deadlines.retire": row(17.0, lambda it: it.left_after()),
    # limits
    **of_conversation(
        "limits", ("max_request_size", 17_000), ("max_depth", 17), ("max_batch_items", 170), ("max_fields", 1700)
    ),
    "limits.max_response_size": row(1_700_000, lambda it: it.target.limits.max_response_size),
    "limits.max_response_fields": row(17_000, lambda it: it.target.limits.max_response_fields),
    "limits.max_clients": row(17, lambda it: it.admission.max_clients),
    "limits.max_half_open": row(17, lambda it: it.admission.half_open.max_half_open),
    "limits.max_requests": row(17, lambda it: it.admission.max_requests),
    "limits.max_buffered": row(17_000_000, lambda it: it.admission.max_buffered),
    # per_address
    "per_address.max_clients": row(17, lambda it: it.admission.sources.limits.max_clients),
    "per_address.max_half_open": row(17, lambda it: it.admission.sources.limits.max_half_open),
    "per_address.handshakes_per_second": row(17.0, lambda it: it.source_bucket and it.source_bucket._rate),
    "per_address.handshake_burst": row(
        17.0, lambda it: it.source_bucket and it.source_bucket._burst, handshakes_per_second=3.0
    ),
    "per_address.ipv4_prefix": row(17, lambda it: it.admission.sources._masks[4].bit_count()),
    "per_address.ipv6_prefix": row(117, lambda it: it.admission.sources._masks[16].bit_count()),
    # log
    "log.level": row("error", lambda it: it.log_arguments()["level"]),
    "log.format": row("json", lambda it: it.log_arguments()["form"]),
    "log.slow_request": row(
        7.0,
        lambda it: it.dispatcher._attempts._slow * 2,
        lambda it: it.clients._converse.keywords["request_log"].logged_from,  # type: ignore[attr-defined]
    ),
    # audit
    "audit.to": row("stdout", lambda it: it.trail and it.trail.settings.to),
    "audit.file": row("odd.jsonl", lambda it: it.trail and it.trail.settings.file.name, to="file"),
    "audit.syslog": row("/dev/odd", lambda it: it.trail and str(it.trail.settings.syslog), to="syslog"),
    "audit.requests": row(
        "changes", lambda it: "all" if it.trail is None or it.trail.writes_all else "changes", to="file"
    ),
    "audit.on_failure": row(
        "refuse", lambda it: "refuse" if it.trail is not None and it.trail.refuses else "continue", to="file"
    ),
    "audit.max_size": row(1_700_000, lambda it: it.trail and it.trail.settings.max_size, to="file"),
    "audit.keep": row(17, lambda it: it.trail and it.trail.settings.keep, to="file"),
    "audit.max_queued": row(1_700_000, lambda it: it.trail and it.trail.settings.max_queued, to="file"),
    "audit.key_file": row("odd.marks", lambda it: it.trail and it.trail._key, found=bytes.fromhex(KEY), to="file"),
}


def _file_of_admin(it: Built, name: str) -> str | None:
    """Return the name of a file in the TLS context of the admin port."""
    assert it.admin._context is None or it.config.admin.certificate is not None
    return next((path.name for path in [it.admin_context.get(name)] if path is not None), None)


async def _text(addresses: Callable[[], Awaitable[ListenAddresses]], name: str) -> str:
    found = getattr(await addresses(), name)
    return str(found[0] if isinstance(found, list) else found)


async def _argument(it: Built, owner: Any, function: str, work: Callable[[], Awaitable[None]], name: str) -> object:
    return (await it.arguments_of(owner, function, work))[name]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A configuration with two listeners, a backend and two identities, and a path beside the files that it names."""
    certificates = Certificates(tmp_path_factory.mktemp("wiring"))
    certificates.gateway_ca.issue_server("odd", processes.HOSTS).write(*certificates.pair("odd"))
    certificates.credential("odd")
    certificates.path("odd.marks").write_text(KEY)
    certificates.path("odd.tokens").write_text(KEY)
    certificates.path("odd.tokens").chmod(0o600)
    certificates.path("clients.crl").write_bytes(crl_of(certificates.clients_ca))
    certificates.path("kms.crl").write_bytes(crl_of(certificates.kms_ca))
    certificates.path("odd.marks").chmod(0o600)
    write_secret(certificates.path("odd.passphrase"), "odd-passphrase")
    write_secret(certificates.path("odd.password"), "odd-secret")
    odd_ca = Ca.make("odd CA")
    odd_ca.write(certificates.path("odd-ca"))
    write_secret(certificates.path("odd-ca-encrypted.key"), odd_ca.key_pem(b"odd-passphrase"))
    certificates.credential("first")
    for name in ("server", "credential-first"):
        encrypted = encrypt(certificates.path(f"{name}.key").read_bytes(), b"odd-passphrase")
        write_secret(certificates.path(f"{name}-encrypted.key"), encrypted)
    identities = [
        processes.Identity(name, f'{{ fingerprint_sha256 = "{digit * 64}" }}', shared=False, credential=name)
        for name, digit in (("first", "1"), ("second", "2"))
    ]
    settings = GatewaySettings([free_port()], identities, extra=SECOND_LISTENER.format(free_port()))
    path = write_config(certificates, settings, free_port(), free_port())
    return tomllib.loads(path.read_text()), path


def changed(document: dict[str, Any], setting: str, given: Row) -> dict[str, Any]:
    """Return the document with the odd value of a row."""
    document = deepcopy(document)
    section, key = setting.split(".")
    if section == "match":
        document["identities"][0] |= {"match": {key: given.odd}, "shared": True}
        return document
    table = document[section][0] if section in LISTS else document.setdefault(section, {})
    table |= {**given.beside, key: given.odd}
    return document


def test_every_setting_has_a_row_and_no_other_row_exists() -> None:
    settings = {f"{section}.{key}" for section, table in SECTIONS.items() for key in table.model_fields}
    keys_of_match = {f"match.{key}" for key in MatchConfig.model_fields}
    assert set(ROWS) == (settings - {"identities.match"}) | keys_of_match


@pytest.mark.parametrize("setting", ROWS)
@in_virtual_time
async def test_a_setting_reaches_the_objects_that_use_it(
    document: tuple[dict[str, Any], Path], setting: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, path = document
    odd = changed(usual, setting, ROWS[setting])
    for place in ROWS[setting].places:
        with monkeypatch.context() as patch:
            assert await found_at(place, Built(examine(odd, path), nursery, patch)) == ROWS[setting].found
    if not ROWS[setting].beside:
        with monkeypatch.context() as patch:
            assert await found_at(place, Built(examine(usual, path), nursery, patch)) != ROWS[setting].found


async def found_at(place: Place, built: Built) -> object:
    """Return the value at a place."""
    found = place(built)
    return await found if inspect.isawaitable(found) else found


def test_a_file_system_without_links_gets_a_mark_key_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_paths: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    keys = wiring._mark_keys(tmp_path / "mark.key")

    assert wiring._mark_keys(tmp_path / "mark.key") == keys
    assert (tmp_path / "mark.key").stat().st_mode & 0o777 == 0o600
