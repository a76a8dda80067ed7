"""Launch: run the gateway in one process, or as a supervisor with a core and TLS workers."""

import gc
import hashlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Self

import trio
from OpenSSL import SSL

from gateway import log
from gateway.config import Config, ListenerConfig, load_apart
from gateway.confinement import change_user, confine_core, confine_worker, find_user
from gateway.core import Core, HandedOver, open_sockets
from gateway.errors import AuditError, ConfigError
from gateway.listening import ListeningSockets, NextSockets
from gateway.supervisor import DRAIN_CORE, Supervisor, unblock_signals
from gateway.systemd import Notifier, inherited_sockets
from gateway.tls_worker import TlsWorker
from gateway.wiring import make_mark_key, server_context

MISTAKE: Final = 2  # exit status for a mistake in the configuration
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_IGNORED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # scripts send these to have a service reload
_RELOADING: Final = signal.SIGHUP
_REOPENING: Final = signal.SIGUSR1

#: Shows the mistakes of a configuration to the operator.
ShowMistakes = Callable[[Sequence[str]], None]


class _Service(NamedTuple):
    """The service manager: where to tell it what happens, and the listening sockets that it handed over, by name."""

    notifier: Notifier
    sockets: Mapping[str, socket.socket]


def launch(config: Config, show_mistakes: ShowMistakes, path: Path | None = None) -> int:
    """Run the gateway until it has drained; return its exit status. To be called once, by the only thread.

    ``path`` is the file of the configuration, for reloads.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)  # before and after the time in which the core receives signals
    workers = number_of_workers(config.gateway.tls_workers)
    service = _Service(Notifier(), inherited_sockets())  # before a fork: the service manager knows this process
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # until they are handled: clients can connect before
    try:
        with open_sockets(config, service.sockets) as opened:
            if config.gateway.user:
                change_user(find_user(config.gateway.user, config.gateway.group))
            if workers:
                return _supervise(config, workers, opened, service.notifier, show_mistakes, path)
            _confine_core(config, listens=True)
            return _run_core(Core(config, opened, path, notifier=service.notifier), show_mistakes)
    except ConfigError as error:
        show_mistakes(error.mistakes)
        return MISTAKE
    finally:
        unblock_signals()


def _confine_core(config: Config, *, listens: bool = False) -> None:
    """Take the rights from this process that a core does not need, once its last file was made."""
    if config.gateway.confinement == "off":
        return
    writable = [] if config.admin.socket is None else [config.admin.socket.parent]
    if config.audit.to == "file":
        writable.append(config.audit.file.parent)
    if not make_mark_key(config):
        writable.append(config.replication.mark_key_file.parent)  # so that the log says why it can't be made
    if not confine_core(writable, listens=listens):
        log.get("core").info(
            "not confined: this machine's kernel has no Landlock, or has it turned off; every file of the gateway's"
            " user can be opened"
        )


def number_of_workers(setting: int | str) -> int:
    """Return the number of TLS workers; for "auto", the processors of this process but one, which is the core's."""
    if isinstance(setting, int):
        return setting
    return len(os.sched_getaffinity(0)) - 1


class _Made(NamedTuple):
    """A TLS context of a listener, and what it was made from."""

    context: SSL.Context
    origin: tuple[object, ...]

    @classmethod
    def of(cls, listener: ListenerConfig, before: Self | None) -> Self:
        """Return the context from before if nothing has changed, so that clients can resume; else make it anew.

        Raises ConfigError.
        """
        files = [listener.certificate, listener.private_key, listener.client_ca]
        try:
            contents = [path.read_bytes() for path in files]
        except OSError as error:
            raise ConfigError([f'listeners["{listener.name}"]: {error.filename}: {error.strerror}']) from None
        digests = [hashlib.sha256(content).digest() for content in contents]
        origin = (listener.tls_policy, listener.resumption_lifetime, *files, *digests)
        return before if before is not None and before.origin == origin else cls(server_context(listener), origin)


class _Next(NamedTuple):
    config: Config
    made: dict[str, _Made]
    sockets: NextSockets


class _Generations:
    """The configuration that TLS workers are started with, the listeners' TLS contexts, and their sockets.

    A reload has ``prepare`` read the file again, and ``use`` take over what was prepared.
    """

    def __init__(self, config: Config, sockets: ListeningSockets, path: Path | None) -> None:
        self.config = config
        self.sockets = sockets
        self._path = path
        self._made = {listener.name: _Made.of(listener, None) for listener in config.listeners}
        self._next: _Next | None = None

    @property
    def contexts(self) -> dict[str, SSL.Context]:
        """The TLS contexts by listener."""
        return {name: made.context for name, made in self._made.items()}

    def prepare(self) -> NextSockets:
        """Read the file, and make what it needs. Return its sockets. Raises ConfigError."""
        self.forget()
        config = self.config if self._path is None else load_apart(self._path)
        made = {listener.name: _Made.of(listener, self._made.get(listener.name)) for listener in config.listeners}
        self._next = _Next(config, made, self.sockets.prepare(config.listeners))
        return self._next.sockets

    def forget(self) -> None:
        """Close the sockets that were prepared, and are not used."""
        if self._next is not None:
            self._next.sockets.close()
            self._next = None

    def use(self) -> None:
        """Use what was prepared last, for the workers that start from now on."""
        if self._next is not None:
            self.config, self._made = self._next.config, self._next.made
            for sock in self.sockets.use(self._next.sockets):
                sock.close()
            self._next = None


def _supervise(
    config: Config,
    workers: int,
    opened: HandedOver,
    notifier: Notifier,
    show_mistakes: ShowMistakes,
    path: Path | None,
) -> int:
    """Make the listeners' TLS contexts, so that all processes share them and the sockets; then start the processes."""
    generations = _Generations(config, opened.sockets, path)

    def run_core(supervisor: socket.socket) -> int:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)  # they may reach all processes: the supervisor sends DRAIN_CORE
        _confine_core(config)
        core = Core(config, opened._replace(supervisor=supervisor), path, notifier=notifier)
        return _run_core(core, show_mistakes, [DRAIN_CORE])

    def run_worker(index: int, core: socket.socket) -> int:
        opened.admin.close()
        worker = TlsWorker(generations.config, generations.contexts, core, workers=workers)
        if config.gateway.confinement != "off":
            confine_worker()  # the core has logged it if the kernel can't
        return _run_worker(worker, generations.sockets, index)

    return Supervisor(run_core, run_worker, workers, generations).run()


def _run_core(core: Core, show_mistakes: ShowMistakes, ending: Sequence[signal.Signals] = _ENDING) -> int:
    mistakes: list[str] = []
    try:
        trio.run(_until_drained, core, ending)
    except* ConfigError as errors:
        mistakes = _mistakes(errors)
    show_mistakes(mistakes)
    return MISTAKE if mistakes else 0


def _run_worker(worker: TlsWorker, sockets: Mapping[str, socket.socket], _index: int) -> int:
    for number in (*_ENDING, *_IGNORED):
        signal.signal(number, signal.SIG_IGN)  # the core ends the workers: Ctrl-C reaches all processes at once
    unblock_signals()
    _freeze()
    trio.run(partial(worker.run, sockets))
    return 0


def _freeze() -> None:
    """Exempt all objects from garbage collection: a collection that examines imported ones delays all clients."""
    gc.collect()
    gc.freeze()


async def _until_drained(core: Core, ending: Sequence[signal.Signals]) -> None:
    """Run a core until it has drained.

    A first signal of ``ending`` starts the drain, a second one ends the waiting, a third one ends the process at once.
    """
    _freeze()
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey_signals, core, ending, nursery)
        await core.run()
        nursery.cancel_scope.cancel()


async def _obey_signals(
    core: Core, ending: Sequence[signal.Signals], nursery: trio.Nursery, *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(*ending, *_IGNORED) as signals:
        unblock_signals()
        task_status.started()
        is_draining = False
        async for number in signals:
            if number in ending:
                if is_draining:
                    break
                is_draining = True
                core.drain()
            elif number == _RELOADING:
                nursery.start_soon(core.reload)
            elif number == _REOPENING and core.has_audit_file:
                nursery.start_soon(_reopen_audit_file, core)
            else:
                name = signal.Signals(number).name
                log.get("core").warning("signal ignored: SIGHUP reloads the configuration", signal=name)
    for number in ending:
        signal.signal(number, signal.SIG_DFL)
    core.end_waiting()


async def _reopen_audit_file(core: Core) -> None:
    try:
        await core.reopen_audit_file()
    except AuditError as error:
        log.get("audit").error("audit file not reopened", reason=str(error))


def _mistakes(error: BaseException) -> list[str]:
    """Return the mistakes of a ConfigError inside the groups in which nurseries wrap it."""
    if isinstance(error, BaseExceptionGroup):
        return [mistake for inner in error.exceptions for mistake in _mistakes(inner)]
    return error.mistakes if isinstance(error, ConfigError) else []
