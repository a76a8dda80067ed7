"""Reload: read the configuration again, and change in the running core what has changed.

``compare`` computes the difference between two configurations; ``Reloader`` applies a difference. The new configuration
is checked whole, and its TLS contexts are made, before anything changes; if it has a mistake, nothing changes.

Most objects hold the tables of the core's own copy of the configuration, and read a setting when they use it: a table
adopts the new values (``Table.adopt``), and only objects that hold something derived from settings are called.
"""

import hashlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from gateway import log
from gateway.admin.server import AdminServer
from gateway.certificate_names import names_of
from gateway.config import Config, PolicyConfig, load
from gateway.config.credentials import BELONGS_TO
from gateway.config.model import LISTS, SECTIONS, Table
from gateway.dispatcher import Dispatcher
from gateway.errors import ConfigError
from gateway.front.listeners import Listeners
from gateway.front.workers import TlsWorkers
from gateway.metrics import Metrics
from gateway.revocation import Trust
from gateway.wiring import (
    AdminAccess,
    ClientIssuers,
    Credentials,
    Front,
    Upstream,
    admin_access,
    client_issuers,
    client_trust,
    server_context,
)

#: Settings that only a restart changes; a section without a key stands for all of its settings.
NEEDS_RESTART: Final = frozenset(
    {
        "admin.bind",
        "admin.socket",
        "audit.file",
        "audit.key_file",
        "audit.syslog",
        "audit.to",
        "gateway.confinement",
        "gateway.group",
        "gateway.tls_workers",
        "gateway.user",
        "gateway.watchdog",
        "listeners.reuse_port",
        "log.format",
        "replication.answer_discover_versions",
        "replication.fallback_on_not_found",
        "replication.mark_key_file",
        "replication.marks",
        "replication.mode",
    }
)
#: Settings that TLS workers hold; see ``share_of`` and ``TlsWorker``.
_OF_WORKERS: Final = frozenset(
    {
        "per_address",
        "limits.max_buffered",
        "limits.max_half_open",
        "limits.max_request_size",
        "limits.max_response_size",
        "listeners.bind",
        "listeners.handshake_timeout",
        "listeners.proxy_from",
        "listeners.proxy_protocol",
        "listeners.request_timeout",
        "listeners.send_timeout",
    }
)
_LISTENER_CONTEXT: Final = frozenset(
    {"certificate", "passphrase_file", "private_key", "client_ca", "tls_policy", "resumption_lifetime"}
)
_TRUST: Final = frozenset({"client_ca", "client_crl", "crl_stale"})
_NEW_BACKEND: Final = frozenset({"address", "addresses", "probe"})  # another key manager, or another way to ask it
_NEW_SESSIONS: Final = frozenset(
    {"ca", "crl", "crl_stale", "server_name", "pinned_sha256", "tls_policy"}
)  # of the backend
_CREDENTIAL: Final = frozenset(BELONGS_TO) - {"client_issuer", "client_credential"} | {"credential"}
_RULE: Final = frozenset({"match", "listeners", "shared", "credential", "client_issuer"})
_CLIENTS: Final = frozenset({"match", "listeners"})  # of the settings of a rule
_POLICY: Final = frozenset(PolicyConfig.model_fields)
_RATE: Final = frozenset({"requests_per_second", "request_burst"})

_REPLACE_EVERY: Final = 0.05  # s between two sessions that are replaced
_LOOK_EVERY: Final = 0.05  # s between two looks at whether the requests of a removed identity have ended

Contents = Mapping[Path, bytes]
#: Digests by the names of identities.
Owners = Mapping[str, bytes]


class ReloadReport(NamedTuple):
    """The outcome of a reload.

    ``changed`` names the settings and files that are in use as they are now; ``needs_restart`` the changed settings
    that only a restart can bring into use; ``mistakes`` those of a configuration that was not taken at all.
    """

    changed: Sequence[str] = ()
    needs_restart: Sequence[str] = ()
    mistakes: Sequence[str] = ()

    @property
    def succeeded(self) -> bool:
        """True if the configuration had no mistake."""
        return not self.mistakes

    def facts(self) -> dict[str, Any]:
        """Return the report for the audit trail."""
        found = {name: list(value) for name, value in self._asdict().items() if value}
        return {"result": "success" if self.succeeded else "failure", **found}


def files_of(config: Config) -> Iterator[tuple[str, str, Path]]:
    """Yield the section, the table's name and the path of each certificate, key and CA in a configuration."""
    for listener in config.listeners:
        for path in (listener.certificate, listener.passphrase_file, listener.private_key, listener.client_ca):
            if path is not None:
                yield "listeners", listener.name, path
    for backend in config.backends:
        for path in (*((backend.ca,) if backend.ca is not None else ()), *backend.crl):
            yield "backends", backend.name, path
    for identity in config.identities:
        if identity.client_issuer is not None:
            yield "identities", identity.name, identity.client_issuer
        for path in (identity.own_file, *identity.secret_files.values()):
            yield "identities", identity.name, path


def crls_of(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the name of the listener and the path of each CRL for clients."""
    for listener in config.listeners:
        for path in listener.client_crl:
            yield listener.name, path


def admin_files(config: Config) -> set[Path]:
    """Return the files of the admin port: certificate, key, CA and tokens."""
    admin = config.admin
    files = (admin.certificate, admin.private_key, admin.client_ca, admin.token_file)
    return {path for path in files if path is not None}


def trust_files_of(config: Config) -> set[Path]:
    """Return the files of the CAs of clients, and of their CRLs."""
    return {listener.client_ca for listener in config.listeners} | {path for _name, path in crls_of(config)}


def contents_of(config: Config) -> Contents:
    """Return a digest of each certificate, key, CA, CRL and file of tokens; an empty one if a file can't be read."""
    paths = admin_files(config)
    paths |= {path for _section, _name, path in files_of(config)} | {path for _name, path in crls_of(config)}
    return {path: _digest(path) for path in paths}


def owners_of(config: Config) -> Owners:
    """Return a digest of subject and alternative names of the certificate that is shown for each identity.

    A renewed certificate has the same; minted certificates are their clients' own, and not among them. It is empty if
    the file can't be read.
    """
    paths = {identity.name: identity.own_file for identity in config.identities if identity.credential != "minted"}
    return {name: _owner(path) for name, path in paths.items()}


def _owner(path: Path) -> bytes:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = names_of(certificate.public_bytes(serialization.Encoding.DER))
    except (OSError, ValueError):
        return b""
    return hashlib.sha256(repr((names.subject, names.alternative_names)).encode()).digest()


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


@dataclass
class ListChanges:
    """Differences between two lists of tables with names. ``keys`` holds the changed settings of tables in both."""

    added: set[str]
    removed: set[str]
    keys: dict[str, set[str]]
    is_reordered: bool
    files: set[str] = field(default_factory=set)  # tables of which a file has changed
    crls: set[str] = field(default_factory=set)  # listeners of which a CRL has changed

    def with_key(self, keys: Collection[str]) -> set[str]:
        """Return the names of the tables of which one of these settings has changed."""
        return {name for name, changed in self.keys.items() if not changed.isdisjoint(keys)}

    @property
    def is_empty(self) -> bool:
        """True if nothing has changed."""
        return not (self.added or self.removed or self.keys or self.is_reordered or self.files)


@dataclass
class Changes:
    """Differences between two configurations. ``tables`` holds the changed settings of each section with one table."""

    tables: dict[str, set[str]]
    listeners: ListChanges
    backends: ListChanges
    identities: ListChanges
    files: list[Path]
    needs_restart: list[str]
    admin: bool = False  # True if the access to the admin port has changed
    issuers: set[str] = field(default_factory=set)  # identities of which the file of ``client_issuer`` has changed
    owners: set[str] = field(default_factory=set)  # identities whose certificate file has other names

    @property
    def replaced_backends(self) -> set[str]:
        """Backends that are removed and built anew."""
        return self.backends.with_key(_NEW_BACKEND)

    @property
    def renewed_backends(self) -> set[str]:
        """Backends of which all sessions are replaced."""
        return (self.backends.with_key(_NEW_SESSIONS) | self.backends.files) - self.replaced_backends

    @property
    def renewed_identities(self) -> set[str]:
        """Identities of which all sessions are replaced."""
        return self.identities.with_key(_CREDENTIAL) | self.identities.files

    @property
    def mixed_identities(self) -> dict[str, list[str]]:
        """Identities to which other clients may come while their credential changes, with the changed settings.

        Clients come by the rule itself, or because an earlier rule has changed, was moved or removed. Sessions with the
        previous credential go on for a while, and would serve these clients. A renewed certificate is no change.
        """
        keys = {name: set(changed) for name, changed in self.identities.keys.items()}
        for name in self.owners:
            keys.setdefault(name, set()).add("certificate")
        clients = {name: changed & _CLIENTS for name, changed in keys.items()}
        for name, changed in keys.items():
            if "credential" not in changed:  # else it is set or removed together with the kind
                clients[name] |= changed & {"client_issuer"}
        other_rules = self.identities.removed or self.identities.is_reordered or self.issuers
        moving = bool(other_rules or any(clients.values()))
        return {
            name: [*sorted(clients[name]), *sorted(changed & _CREDENTIAL)]
            for name, changed in keys.items()
            if moving and changed & _CREDENTIAL
        }

    @property
    def has_other_rules(self) -> bool:
        """True if a client may have another identity now, or none."""
        changes = self.identities
        is_changed = changes.added or changes.removed or changes.is_reordered or changes.with_key(_RULE)
        return bool(is_changed or self.issuers)

    @property
    def listener_contexts(self) -> set[str]:
        """Listeners that need a new TLS context."""
        return self.listeners.with_key(_LISTENER_CONTEXT) | self.listeners.files

    @property
    def judging_listeners(self) -> set[str]:
        """Listeners of which the CAs or CRLs of clients have changed, so that all clients are judged again."""
        return self.listeners.with_key(_TRUST) | self.listeners.files | self.listeners.crls

    def concerns_workers(self) -> bool:
        """Return True if TLS workers hold something that has changed."""
        names = {f"{section}.{key}" for section, keys in self.tables.items() for key in keys}
        names |= {f"listeners.{key}" for keys in self.listeners.keys.values() for key in keys}
        listeners = self.listeners
        has_others = listeners.added or listeners.removed or self.listener_contexts
        return bool(has_others) or any(_is_in(name, _OF_WORKERS) for name in names)

    def lines(self) -> list[str]:
        """Return a line for each change, as the settings are called in the file."""
        found = [f"{section}.{key}" for section, keys in self.tables.items() for key in sorted(keys)]
        for section in sorted(LISTS):
            changes: ListChanges = getattr(self, section)
            found += [f'{section}["{name}"] added' for name in sorted(changes.added)]
            found += [f'{section}["{name}"] removed' for name in sorted(changes.removed)]
            found += [f'{section}["{name}"].{key}' for name in changes.keys for key in sorted(changes.keys[name])]
            found += [f"order of {section}"] * changes.is_reordered
        return found + [f"file {path}" for path in self.files]


def compare(
    old: Config,
    new: Config,
    old_contents: Contents,
    new_contents: Contents,
    old_owners: Owners = MappingProxyType({}),
    new_owners: Owners = MappingProxyType({}),
) -> Changes:
    """Return the differences between two configurations, the contents of their files, and the owners in these."""
    tables = {section: _differing(getattr(old, section), getattr(new, section)) for section in SECTIONS.keys() - LISTS}
    lists = {section: _compare_lists(getattr(old, section), getattr(new, section)) for section in LISTS}
    changed = {path for path in new_contents if path in old_contents and new_contents[path] != old_contents[path]}
    for section, name, path in files_of(new):
        if path in changed and name not in lists[section].added:
            lists[section].files.add(name)
    for name, path in crls_of(new):
        if path in changed and name not in lists["listeners"].added:
            lists["listeners"].crls.add(name)
    needs_restart = [*_take_out(tables)]
    listeners = lists["listeners"]
    for name, keys in listeners.keys.items():
        kept = {key for key in keys if _is_in(f"listeners.{key}", NEEDS_RESTART) and "bind" not in keys}
        needs_restart += [f'listeners["{name}"].{key}' for key in sorted(kept)]
        keys.difference_update(kept)
    listeners.is_reordered = False
    listeners.keys = {name: keys for name, keys in listeners.keys.items() if keys}
    return Changes(
        {section: tables[section] for section in SECTIONS if tables.get(section)},
        listeners,
        lists["backends"],
        lists["identities"],
        sorted(changed),
        needs_restart,
        admin=bool(tables["admin"]) or not changed.isdisjoint(admin_files(new)),
        issuers={identity.name for identity in new.identities if identity.client_issuer in changed},
        owners={name for name in new_owners if old_owners.get(name, new_owners[name]) != new_owners[name]},
    )


def _take_out(tables: Mapping[str, set[str]]) -> Iterator[str]:
    """Take the settings that need a restart out of the changed settings, and yield them."""
    for section in SECTIONS:
        for key in sorted(tables.get(section, ())):
            if _is_in(f"{section}.{key}", NEEDS_RESTART):
                tables[section].discard(key)
                yield f"{section}.{key}"


def _is_in(setting: str, settings: Collection[str]) -> bool:
    return setting in settings or setting.partition(".")[0] in settings


def _differing(old: Table, new: Table) -> set[str]:
    return {key for key in type(old).model_fields if getattr(old, key) != getattr(new, key)}


def _compare_lists(old: Iterable[Any], new: Iterable[Any]) -> ListChanges:
    before, after = ({table.name: table for table in tables} for tables in (old, new))
    keys = {name: _differing(before[name], after[name]) for name in after if name in before}
    return ListChanges(
        added=after.keys() - before.keys(),
        removed=before.keys() - after.keys(),
        keys={name: differing for name, differing in keys.items() if differing},
        is_reordered=[name for name in before if name in after] != [name for name in after if name in before],
    )


class _Prepared(NamedTuple):
    """A checked configuration, its difference from the present one, and the TLS contexts for the difference."""

    config: Config
    contents: Contents
    owners: Owners
    changes: Changes
    credentials: Credentials
    issuers: ClientIssuers
    contexts: dict[str, SSL.Context]  # by listener
    trusts: dict[str, Trust]  # by listener
    admin: AdminAccess | None  # if it has changed
    digest: str


def _digest_of(path: Path) -> str:
    """Return the beginning of a file's SHA-256, or "" if the file has gone."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


class Reloader:
    """Reloads the configuration of a core from a file.

    ``config`` is the core's own copy, of which the tables change. ``nursery`` is the parent of the tasks that wait for
    the clients of removed listeners.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        *,
        upstream: Upstream,
        dispatcher: Dispatcher,
        front: Front,
        entrance: Listeners | TlsWorkers,
        nursery: trio.Nursery,
        admin: AdminServer,
        metrics: Metrics,
    ) -> None:
        self._path = path
        self._config = config
        self._contents = contents_of(config)
        self._owners = owners_of(config)
        self._upstream = upstream
        self._dispatcher = dispatcher
        self._front = front
        self._entrance = entrance
        self._nursery = nursery
        self._admin = admin
        self._metrics = metrics
        self._log = log.get("reload")
        self._lock = trio.Lock()
        for result in ("success", "failure"):
            metrics.config_reloads.labels(result)
        metrics.config_last_reload_success.set(time.time())  # of the start
        self._failures: set[str] = set()  # of the configuration and the CRLs, which are read apart
        metrics.config_last_reload_successful.set(1)
        self._digest = _digest_of(path)
        metrics.config_info.set_function(lambda: [((self._digest,), 1)])

    @property
    def files(self) -> set[Path]:
        """The certificates, keys, CAs, CRLs and tokens in use."""
        of_tables = {path for _section, _name, path in files_of(self._config)}
        return of_tables | self.trust_files | admin_files(self._config)

    @property
    def crl_files(self) -> set[Path]:
        """The CRLs of clients in use."""
        return {path for _name, path in crls_of(self._config)}

    @property
    def trust_files(self) -> set[Path]:
        """The CAs and CRLs of clients in use."""
        return trust_files_of(self._config)

    async def read_crls(self, changed: Collection[Path]) -> ReloadReport:
        """Read the CRLs of the listeners as configured, and use them. If one has a mistake, all stay.

        ``changed`` are the files that are reported as changed.
        """
        async with self._lock:
            try:
                trusts = await trio.to_thread.run_sync(self._load_trusts)
            except ConfigError as error:
                self._count("crls", "failure")
                for mistake in error.mistakes:
                    self._log.error("CRLs not read again: one has a mistake, and the old ones stay", detail=mistake)
                return ReloadReport(mistakes=error.mistakes)
            await self._front.trust_changed(trusts)
        self._note_result("crls", "success")
        entries = {name: sum(len(crl.serials) for crl in trust.lists or ()) for name, trust in trusts.items()}
        self._log.info("CRLs read again", entries=entries)
        return ReloadReport(changed=[f"file {path}" for path in sorted(changed)])

    def _load_trusts(self) -> dict[str, Trust]:
        return {listener.name: client_trust(listener) for listener in self._config.listeners if listener.client_crl}

    async def reload(self) -> ReloadReport:
        """Read the file, and use what has changed. Raises nothing for a mistake in it: the old configuration goes on.

        Returns when the changes are in use; sessions of changed credentials are replaced afterwards.
        """
        async with self._lock:
            try:
                return await self._reload()
            except ConfigError as error:
                return self._failed(error.mistakes)
            except Exception as error:  # noqa: BLE001 - a fault here must not end the gateway
                self._log.error("internal error: reload not finished; report this bug", exc_info=error)
                return self._failed(["internal error: the log says more"])

    def _count(self, what: str, result: str) -> None:
        self._metrics.config_reloads.labels(result).inc()
        self._note_result(what, result)

    def _note_result(self, what: str, result: str) -> None:
        """Keep the gauge of the last result: 0 while the configuration, or the CRLs, could not be read."""
        (self._failures.add if result == "failure" else self._failures.discard)(what)
        self._metrics.config_last_reload_successful.set(not self._failures)

    async def _reload(self) -> ReloadReport:
        prepared = await trio.to_thread.run_sync(self._prepare)
        if self._concerns_entrance(prepared.changes):
            await self._entrance.prepare(prepared.config.listeners)
        try:
            await self._apply(prepared)
        finally:
            self._entrance.forget()  # sockets that are not used must not listen
        report = ReloadReport(prepared.changes.lines(), prepared.changes.needs_restart)
        self._digest = prepared.digest
        self._note_result("crls", "success")  # they were read, too
        self._count("configuration", "success")
        self._metrics.config_last_reload_success.set(time.time())
        self._log.info("configuration reloaded", changed=report.changed or "nothing")
        if report.needs_restart:
            self._log.warning(
                "configuration reloaded in part: restart the gateway to use the other changes",
                needs_restart=report.needs_restart,
            )
        return report

    def _failed(self, mistakes: Sequence[str]) -> ReloadReport:
        self._count("configuration", "failure")
        for mistake in mistakes:
            self._log.error("configuration not reloaded: it has a mistake, and the old one stays", detail=mistake)
        return ReloadReport(mistakes=mistakes)

    def _prepare(self) -> _Prepared:
        """Do what can fail, and what takes long. Runs in a thread: changes nothing."""
        config = load(self._path)
        contents, owners = contents_of(config), owners_of(config)
        changes = compare(self._config, config, self._contents, contents, self._owners, owners)
        if changes.mixed_identities:
            raise ConfigError([_mixed(name, keys) for name, keys in changes.mixed_identities.items()])
        credentials = self._upstream.make_credentials(
            config,
            backends=changes.backends.added | changes.replaced_backends | changes.renewed_backends,
            identities=changes.identities.added | changes.renewed_identities,
            leaving=changes.backends.removed,
        )
        contexts = {
            listener.name: server_context(listener)
            for listener in config.listeners
            if listener.name in changes.listener_contexts | changes.listeners.added
        }
        trusts = {
            listener.name: client_trust(listener)
            for listener in config.listeners
            if listener.name in changes.judging_listeners | changes.listeners.added
        }
        admin = admin_access(config) if changes.admin else None
        return _Prepared(
            config,
            contents,
            owners,
            changes,
            credentials,
            client_issuers(config),
            contexts,
            trusts,
            admin,
            _digest_of(self._path),
        )

    async def _apply(self, prepared: _Prepared) -> None:
        new, changes = prepared.config, prepared.changes
        self._contents, self._owners = prepared.contents, prepared.owners
        self._upstream.use_credentials(prepared.credentials)
        self._adopt_tables(new, changes)
        added = changes.listeners.added
        await self._front.trust_changed({name: it for name, it in prepared.trusts.items() if name not in added})
        if not changes.identities.is_empty:
            await self._change_identities(new, changes, prepared.issuers)
        await self._change_listeners(prepared)  # after the rules: a new listener may trust other CAs
        if changes.identities.removed:
            await self._remove_identities(changes)
        if not changes.backends.is_empty:
            self._change_backends(new, changes)
        if changes.renewed_backends or changes.renewed_identities:
            self._upstream.renew_sessions(changes.renewed_backends, changes.renewed_identities, _REPLACE_EVERY)
        self._upstream.settings_changed(restart=self._needs_new_checks(changes))
        if prepared.admin is not None:
            self._admin.settings_changed(*prepared.admin)

    def _adopt_tables(self, new: Config, changes: Changes) -> None:
        """Change the settings of the sections with one table, and all limits and times of clients."""
        for section, keys in changes.tables.items():
            getattr(self._config, section).adopt(getattr(new, section), keys)
        _adopt_each(self._config.listeners, new.listeners, changes.listeners.keys)
        if "level" in changes.tables.get("log", ()):  # else a level that a command has set stays
            log.set_level(self._config.log.level)
            if isinstance(self._entrance, TlsWorkers):
                self._entrance.log_changed()
        if changes.tables or changes.listeners.keys:
            self._dispatcher.settings_changed()
            self._front.settings_changed(())

    async def _change_identities(self, new: Config, changes: Changes, issuers: ClientIssuers) -> None:
        """Add pools, then identify all clients by the new rules."""
        before = {identity.name: identity for identity in self._config.identities}
        _adopt_each(self._config.identities, new.identities, changes.identities.keys)
        merged = tuple(before.get(identity.name, identity) for identity in new.identities)
        self._config.adopt(self._config.model_copy(update={"identities": merged}), ["identities"])
        for identity in merged:
            if identity.name in changes.identities.added | changes.identities.with_key(("credential",)):
                self._upstream.add_identity(identity)
        self._front.settings_changed(changes.identities.with_key(_RATE))
        if not changes.has_other_rules:
            if changes.identities.with_key(_POLICY):
                self._front.policies_changed()
            return
        await self._front.identities_changed(issuers)
        for identity in merged:
            if identity.name in changes.identities.with_key(("credential",)):
                self._upstream.change_kind(identity)

    async def _remove_identities(self, changes: Changes) -> None:
        """Remove the pools of identities, after the last request that uses them."""
        self._upstream.settings_changed(restart=True)  # health checks must not use the pools that are removed
        for name in changes.identities.removed:
            await trio.sleep(_LOOK_EVERY)
            while self._dispatcher.requests_in_flight(name):  # noqa: ASYNC110 - no request pays for an event
                await trio.sleep(_LOOK_EVERY)
            await self._upstream.minted.retire(name)
            self._upstream.remove_identity(name)
            self._dispatcher.forget_identity(name)
            self._metrics.forget_identity(name)

    def _change_backends(self, new: Config, changes: Changes) -> None:
        """Change the options of backends in place; build the added and replaced ones, remove the others."""
        replaced = changes.replaced_backends
        keys = {name: keys for name, keys in changes.backends.keys.items() if name not in replaced}
        _adopt_each(self._config.backends, new.backends, keys)
        before = {backend.name: backend for backend in self._config.backends if backend.name not in replaced}
        merged = tuple(before.get(backend.name, backend) for backend in new.backends)
        self._config.adopt(self._config.model_copy(update={"backends": merged}), ["backends"])
        self._upstream.change_backends(replaced)

    def _needs_new_checks(self, changes: Changes) -> bool:
        """Return True if health checks or the maintenance of pools hold something that has changed."""
        return bool(
            "health" in changes.tables
            or "connect" in changes.tables.get("deadlines", ())
            or changes.identities.added
            or changes.renewed_identities
            or changes.renewed_backends
        )

    def _concerns_entrance(self, changes: Changes) -> bool:
        """Return True if the listeners, or the TLS workers, hold something that has changed."""
        return not changes.listeners.is_empty if isinstance(self._entrance, Listeners) else changes.concerns_workers()

    async def _change_listeners(self, prepared: _Prepared) -> None:
        """Add listeners and remove others; the clients of these are let go later."""
        new, changes = prepared.config, prepared.changes
        before = {listener.name: listener for listener in self._config.listeners}
        for listener in new.listeners:
            if listener.name in changes.listeners.added:
                trust = prepared.trusts[listener.name]
                before[listener.name] = await self._front.add_listener(listener, trust)
        merged = tuple(before[listener.name] for listener in new.listeners)
        self._config.adopt(self._config.model_copy(update={"listeners": merged}), ["listeners"])
        for name in changes.listeners.removed:
            self._front.remove_listener(before[name])
            self._nursery.start_soon(self._front.let_leave, before[name])
        if self._concerns_entrance(changes):
            self._entrance.use(merged, prepared.contexts, {*changes.listeners.keys})


def _mixed(name: str, keys: Sequence[str]) -> str:
    return (
        f'identities["{name}"]: another credential while other clients may come to this rule ({", ".join(keys)}); give'
        " this rule another name, or change rules and credentials in two reloads, so that no client gets a session with"
        " the credential of the previous clients"
    )


def _adopt_each(old: Iterable[Any], new: Iterable[Any], keys: Mapping[str, set[str]]) -> None:
    """Have each table that stands in both lists adopt its changed settings."""
    after = {table.name: table for table in new}
    for table in old:
        if table.name in keys:
            table.adopt(after[table.name], keys[table.name])
