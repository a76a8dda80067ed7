"""Core: one process of the gateway. Builds everything from a Config, runs it, and drains it."""

import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from gateway import log
from gateway.admin.control import ControlServer, control_socket
from gateway.admin.server import BACKLOG as ADMIN_BACKLOG
from gateway.admin.server import AdminServer
from gateway.audit.trail import Trail
from gateway.config import Address, Config, exposed
from gateway.dispatcher import Dispatcher
from gateway.errors import AuditError, ConfigError
from gateway.expiry import ExpiryWatch
from gateway.fast_metrics import Reading
from gateway.front.clients import MAX_REFUSED_CLIENTS
from gateway.front.drain import Drain
from gateway.front.listeners import Listeners
from gateway.front.reachability import log_while_unreachable, refuse_while_unreachable
from gateway.front.workers import TlsWorkers
from gateway.listening import ListeningSockets, address_of, listen, listening_sockets
from gateway.loop_lag import measure_loop_lag
from gateway.metrics import Metrics
from gateway.reload import Reloader, ReloadReport, trust_files_of
from gateway.runtime_control import CHANGING, RuntimeControl
from gateway.status import Status
from gateway.systemd import Notifier
from gateway.tls import openssl_version
from gateway.upstream.collector import collect_pools
from gateway.upstream.fleet import Fleet
from gateway.watchdog import Watchdog
from gateway.watching import FileWatch
from gateway.wiring import Front, Upstream, build_admin, build_dispatcher, build_trail

_TRUST_INTERVAL: Final = 0.2  # s between two looks at clients' CAs and CRLs, and for which they must not change
_OTHER_DESCRIPTORS: Final = 64  # for health checks, lookups of names, and clients of the admin port


class ListenAddresses(NamedTuple):
    """Addresses that a core listens on, in the order of the configuration; each with the port that it got."""

    listeners: list[Address]
    admin: Address


class HandedOver(NamedTuple):
    """The sockets that a core is given: those of the listeners, by their names, and that of the admin port.

    ``supervisor`` is the socket to the supervisor, if TLS ends in TLS workers.
    """

    sockets: ListeningSockets
    admin: socket.socket
    supervisor: socket.socket | None = None


@contextmanager
def open_sockets(config: Config, inherited: Mapping[str, socket.socket]) -> Iterator[HandedOver]:
    """Open the listening sockets for the length of a block, for a core without TLS workers.

    Raises ConfigError with all addresses that can't be had.
    """
    with ExitStack() as stack:
        mistakes: list[str] = []
        try:
            sockets = stack.enter_context(listening_sockets(config.listeners, inherited))
        except ConfigError as error:
            mistakes += error.mistakes
        try:
            admin = stack.enter_context(listen("admin.bind", config.admin.bind, ADMIN_BACKLOG))
        except ConfigError as error:
            mistakes += error.mistakes
        if mistakes:
            raise ConfigError(mistakes)
        yield HandedOver(sockets, admin)


#: The way in for clients.
Entrance = Listeners | TlsWorkers


class Core:
    """The process of the gateway that holds the pools, the limits and the health of key managers.

    ``config`` comes from ``load``, and from the file ``path``, which a reload reads again. Clients' TLS ends in this
    process, or in TLS workers if ``handed_over`` has a socket to the supervisor. A core that is handed nothing opens
    its own sockets. ``notifier`` tells the service manager what the gateway does.
    """

    def __init__(
        self,
        config: Config,
        handed_over: HandedOver | None = None,
        path: Path | None = None,
        *,
        notifier: Notifier | None = None,
    ) -> None:
        self._config = config.model_copy(deep=True)  # its tables change: see Table.adopt
        self._path = None if path is None else path.absolute()
        self._reloader: Reloader | None = None  # while the core runs, if it has a file
        self._watch: FileWatch | None = None  # of the files in use, as above
        self._trust_watch: FileWatch | None = None  # of clients' CAs and CRLs
        self._expiry: ExpiryWatch  # while the core runs
        self._handed_over = handed_over
        self._notifier = notifier or Notifier({})
        self._log = log.get("core")
        self.metrics = Metrics(version("kmip-gateway"), openssl_version())
        self._drain = Drain(self._config.deadlines, self.metrics, log.get("core"))
        self._trail: Trail | None = None  # while the core runs, if there is an audit trail

    def drain(self) -> None:
        """Fail /readyz; after deadlines.lame_duck accept no more clients, and answer the requests in flight.

        ``run`` returns once these are answered, after deadlines.drain at the latest.
        """
        if not self._drain.has_begun:
            deadlines = self._config.deadlines
            self._notifier.stopping(f"draining for at most {deadlines.lame_duck + deadlines.drain:g} s")
        self._drain.begin()

    def end_waiting(self) -> None:
        """End a drain at once: requests in flight are answered "the outcome is unknown"."""
        self._drain.end_waiting()

    async def reload(self) -> ReloadReport:
        """Read the configuration file again, and use what has changed; see ``Reloader``."""
        if self._reloader is None:
            return ReloadReport(mistakes=["the gateway is not running from a file that could be read again"])
        report = await self._reloader.reload()
        self._audit("reload", report.facts())
        for watch in (self._watch, self._trust_watch):
            if watch is not None:
                watch.add_new()
        if report.succeeded:
            with suppress(OSError, ValueError):  # a file has gone since it was read; its watch reloads again
                self._expiry.note(await trio.to_thread.run_sync(self._expiry.read))
                self._warn_of_exposed_secrets()
        return report

    @property
    def has_audit_file(self) -> bool:
        """True if there is an audit trail, and it is written to a file."""
        return self._config.audit.to == "file"

    async def reopen_audit_file(self) -> None:
        """Begin a new file of the audit trail at its path. Raises AuditError."""
        if self._trail is None:
            raise AuditError("there is no audit trail: [audit] to is off")
        await self._trail.reopen()

    @asynccontextmanager
    async def _audited(self) -> AsyncIterator[None]:
        """Have an audit trail for a block, if there is one; its last line says if the block was left by an error."""
        self._trail = trail = build_trail(self._config, version("kmip-gateway"))
        if trail is None:
            yield
            return
        trail.open()
        reason = "failed"
        try:
            yield
            reason = "drained"
        finally:
            with trio.CancelScope(shield=True):
                await trail.close(reason)

    async def _watch_audit_trail(self) -> None:
        if self._trail is not None:
            await self._trail.run()

    def _audit(self, event: str, facts: Mapping[str, Any]) -> None:
        if self._trail is not None:
            self._trail.add_event(event, facts)

    async def run(self, *, task_status: trio.TaskStatus[ListenAddresses] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained. Raises ConfigError for an address in use, and for a certificate that OpenSSL refuses."""
        config = self._config
        finished = trio.Event()
        with ExitStack() as stack:
            handed_over = self._handed_over or stack.enter_context(open_sockets(config, {}))
            sockets, admin_socket = handed_over.sockets, handed_over.admin
            path = config.admin.socket
            control = None if path is None else stack.enter_context(control_socket(path))
            bound = ListenAddresses([address_of(sock) for sock in sockets.values()], address_of(admin_socket))
            async with (
                self._audited(),
                trio.open_nursery() as until_finished,
                trio.open_nursery() as background,
            ):
                upstream = Upstream(config, background, self.metrics)
                dispatcher = build_dispatcher(config, upstream, self.metrics)
                self._watch_trust()
                front = Front(config, dispatcher, self.metrics, self._trail)
                entrance = self._build_entrance(front, handed_over)
                workers = entrance if isinstance(entrance, TlsWorkers) else None
                unreadiness = partial(self._unreadiness, upstream.fleet)
                status = Status(
                    upstream, front, self.metrics, workers=workers, unreadiness=unreadiness, control=config.admin.socket
                )
                admin = build_admin(config, self.metrics, unreadiness, status.snapshot)
                self._instrument(upstream, front, entrance)
                self._build_reloader(upstream, dispatcher, front, entrance, admin, background)
                until_finished.start_soon(admin.run, admin_socket, finished)
                if control is not None:
                    commands = RuntimeControl(
                        config,
                        upstream,
                        status,
                        reload=self.reload,
                        reopen_audit_file=self.reopen_audit_file,
                        taps=front.taps,
                        request_log=front.request_log,
                        workers=workers,
                    )
                    server = ControlServer(commands.commands(), changing=CHANGING, audit=self._audit)
                    background.start_soon(server.run, control)
                background.start_soon(upstream.run)
                background.start_soon(self._reload_when_files_change)
                background.start_soon(self._read_again_when_trust_changes)
                background.start_soon(front.judge_clients)
                background.start_soon(self._expiry.run)
                background.start_soon(self._notifier.feed_watchdog)
                background.start_soon(Watchdog(config.gateway.watchdog, self._log).run)
                background.start_soon(self._watch_audit_trail)
                background.start_soon(measure_loop_lag, self.metrics.event_loop_lag.labels("core"))
                background.start_soon(self.metrics.flush_often)
                self._announce(bound)
                self._notifier.ready()
                task_status.started(bound)
                try:
                    await self._serve(front, entrance, upstream.fleet)
                finally:
                    for backend in upstream.fleet.backends:
                        backend.close()
                finished.set()
                background.cancel_scope.cancel()

    def _announce(self, bound: ListenAddresses) -> None:
        """Log the addresses that the core listens on, and what the operator should know at the start."""
        for address in bound.listeners:
            self._log.info("listening", address=str(address))
        scheme = "http" if self._config.admin.certificate is None else "https"
        self._log.info("metrics", url=f"{scheme}://{bound.admin}/metrics")
        self._warn_of_few_descriptors()
        with suppress(OSError, ValueError):  # as in ``reload``
            self._expiry.note(self._expiry.read())
        self._warn_of_exposed_secrets()

    def _build_entrance(self, front: Front, handed_over: HandedOver) -> Entrance:
        if handed_over.supervisor is None:
            return front.build_listeners(handed_over.sockets)
        return TlsWorkers(
            handed_over.supervisor,
            front.clients,
            handed_over.sockets,
            deadlines=self._config.deadlines,
            drain=self.drain,
            metrics=self.metrics,
            log=log.get("front"),
            add_event=None if self._trail is None else self._trail.add_event,
        )

    async def _serve(self, front: Front, entrance: Entrance, fleet: Fleet) -> None:
        async with self._drain.bounding(front.clients.values()) as serving:
            serving.start_soon(entrance.run)
            async with trio.open_nursery() as until_drained:
                until_drained.start_soon(refuse_while_unreachable, [entrance], partial(self._accepts, fleet), self._log)
                until_drained.start_soon(log_while_unreachable, partial(self._serves, fleet), self._log)
                await self._drain.wait()
                until_drained.cancel_scope.cancel()
            entrance.drain()
            for clients in front.clients.values():
                clients.drain()

    def _watch_trust(self) -> None:
        """Watch clients' CAs and CRLs, from before they are read: no change may be missed."""
        if self._path is not None:
            files = partial(trust_files_of, self._config)
            self._trust_watch = FileWatch(files, interval=_TRUST_INTERVAL, settled=_TRUST_INTERVAL)

    def _instrument(self, upstream: Upstream, front: Front, entrance: Entrance) -> None:
        collect_pools(self.metrics, lambda: upstream.fleet.backends, lambda: upstream.identities)
        workers = entrance if isinstance(entrance, TlsWorkers) else None
        self.metrics.ticket_key_age.set_function(partial(_ages, entrance))
        self.metrics.workers.set_function(lambda: [((), 0 if workers is None else len(workers))])
        self.metrics.log_messages_dropped.set_function(
            lambda: [((), log.messages_dropped() + (0 if workers is None else workers.log_messages_dropped))]
        )
        if (trail := self._trail) is not None:
            self.metrics.audit_lines.set_function(lambda: [((), trail.sequence)])
            self.metrics.audit_records_lost.set_function(lambda: [((), trail.lost)])
            self.metrics.audit_queued.set_function(lambda: trail.queued)
            self.metrics.audit_failing.set_function(lambda: trail.error is not None)
        in_flight = self.metrics.requests_in_flight
        in_flight.set_function(lambda: sum(clients.requests_in_flight for clients in front.clients.values()))
        self._expiry = ExpiryWatch(
            self._config, lambda: [*front.trusts(), *upstream.trusts()], self.metrics, log.get("expiry")
        )

    def _build_reloader(
        self,
        upstream: Upstream,
        dispatcher: Dispatcher,
        front: Front,
        entrance: Entrance,
        admin: AdminServer,
        nursery: trio.Nursery,
    ) -> None:
        if self._path is not None:
            self._reloader = Reloader(
                self._path,
                self._config,
                upstream=upstream,
                dispatcher=dispatcher,
                front=front,
                entrance=entrance,
                nursery=nursery,
                admin=admin,
                metrics=self.metrics,
            )

    async def _reload_when_files_change(self) -> None:
        reloader = self._reloader
        if reloader is None:
            return
        self._watch = FileWatch(lambda: reloader.files - reloader.trust_files)
        while True:
            changed = await self._watch.changed()
            if self._config.gateway.watch_files:
                self._log.info("files changed: reloading the configuration", files=[str(path) for path in changed])
                await self.reload()

    async def _read_again_when_trust_changes(self) -> None:
        """Look at clients' CAs and CRLs more often: a client that was revoked should not be served for seconds."""
        reloader, watch = self._reloader, self._trust_watch
        if reloader is None or watch is None:
            return
        while True:
            changed = await watch.changed()
            if not self._config.gateway.watch_files:
                continue
            if reloader.crl_files.issuperset(changed):  # a mistake elsewhere must not stop a revocation
                report = await reloader.read_crls(changed)
                self._audit("reload", report.facts())
                if report.succeeded:
                    self._expiry.note_crls()
            else:
                self._log.info("files changed: reloading the configuration", files=[str(path) for path in changed])
                await self.reload()

    def _warn_of_few_descriptors(self) -> None:
        """Warn if clients could use up the descriptors that sessions to key managers need."""
        config = self._config
        clients = min(config.limits.max_clients, sum(listener.max_clients for listener in config.listeners))
        clients += config.limits.max_half_open + MAX_REFUSED_CLIENTS * len(config.listeners)
        needed = clients + sum(backend.max_sessions for backend in config.backends) + _OTHER_DESCRIPTORS
        allowed, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if allowed < needed:
            self._log.warning(
                "fewer descriptors than clients and sessions may need: raise the limit (ulimit -n, LimitNOFILE), or"
                " lower limits.max_clients",
                allowed=allowed,
                needed=needed,
            )

    def _warn_of_exposed_secrets(self) -> None:
        for secret in exposed(self._config):
            self._log.warning(
                "other users can read or change a file with a secret",
                key=secret.setting,
                file=str(secret.file),
                detail=secret.remedy(),
            )

    def _accepts(self, fleet: Fleet) -> bool:
        """Return True if new connections should be accepted."""
        return self._config.failover.when_none == "answer" or _is_reachable(fleet)

    def _serves(self, fleet: Fleet) -> bool:
        """Return False if no key manager can be reached although connections are accepted."""
        return self._config.failover.when_none != "answer" or _is_reachable(fleet)

    def _unreadiness(self, fleet: Fleet) -> str | None:
        if self._drain.has_begun:
            return "draining"
        if _is_reachable(fleet):
            return None
        if all(backend.state == "drained" for backend in fleet.backends):
            return "all key managers are drained: see kmip-gateway enable"
        return "no key manager can be reached"


def _ages(entrance: Entrance) -> list[Reading]:
    """Return the age of each listener's ticket keys."""
    now = time.monotonic()
    return [((name,), now - made_at) for name, made_at in entrance.ticket_keys_made_at().items()]


def _is_reachable(fleet: Fleet) -> bool:
    """Return True if at least one key manager can serve requests, as far as is known."""
    return any(backend.is_live for backend in fleet.backends)
