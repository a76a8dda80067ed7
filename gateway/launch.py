"""Launch: run the gateway in one process, or as a supervisor with a core and TLS workers."""

import gc
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Self

import trio
from OpenSSL import SSL

from gateway import log
from gateway.config import Config, load
from gateway.core import Core, HandedOver
from gateway.errors import ConfigError
from gateway.listening import listen_for_clients
from gateway.supervisor import Supervisor, unblock_signals
from gateway.tls_worker import TlsWorker
from gateway.wiring import server_context

MISTAKE: Final = 2  # exit status for a mistake in the configuration
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_IGNORED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # scripts send these to have a service reload
_RELOADING: Final = signal.SIGHUP

#: Shows the mistakes of a configuration to the operator.
ShowMistakes = Callable[[Sequence[str]], None]


def launch(config: Config, show_mistakes: ShowMistakes, path: Path | None = None) -> int:
    """Run the gateway until it has drained; return its exit status. To be called once, by the only thread.

    ``path`` is the file of the configuration, for reloads.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)  # before and after the time in which the core receives signals
    workers = number_of_workers(config.gateway.tls_workers)
    if not workers:
        return _run_core(Core(config, path=path), show_mistakes)
    try:
        return _supervise(config, workers, show_mistakes, path)
    except ConfigError as error:
        show_mistakes(error.mistakes)
        return MISTAKE


def number_of_workers(setting: int | str) -> int:
    """Return the number of TLS workers; for "auto", the processors of this process but one, which is the core's."""
    if isinstance(setting, int):
        return setting
    return len(os.sched_getaffinity(0)) - 1


class _Generation(NamedTuple):
    """The configuration of TLS workers that were started together, and the TLS contexts of their listeners."""

    config: Config
    contexts: dict[str, SSL.Context]

    @classmethod
    def of(cls, config: Config) -> Self:
        """Make the contexts. Raises ConfigError."""
        return cls(config, {listener.name: server_context(listener) for listener in config.listeners})

    def merged_with(self, new: Config) -> Config:
        """Return a new configuration with the listeners of this one, changed if the new configuration has them, too."""
        changed = {listener.name: listener for listener in new.listeners}
        listeners = tuple(changed.get(listener.name, listener) for listener in self.config.listeners)
        return new.model_copy(update={"listeners": listeners})


def _supervise(config: Config, workers: int, show_mistakes: ShowMistakes, path: Path | None) -> int:
    """Open the sockets and make the TLS contexts, so that all processes share them; then start the processes."""
    with ExitStack() as stack:
        sockets = {listener.name: stack.enter_context(listen_for_clients(listener)) for listener in config.listeners}
        generation = _Generation.of(config)

        def prepare_workers() -> bool:
            nonlocal generation
            try:
                generation = _Generation.of(config if path is None else generation.merged_with(load(path)))
            except ConfigError as error:
                for mistake in error.mistakes:
                    log.get("supervisor").error("TLS workers not replaced: reload the configuration", detail=mistake)
                return False
            return True

        def run_core(supervisor: socket.socket) -> int:
            return _run_core(Core(config, HandedOver(sockets, supervisor), path), show_mistakes)

        def run_worker(index: int, core: socket.socket) -> int:
            return _run_worker(TlsWorker(generation.config, generation.contexts, core, workers=workers), sockets, index)

        return Supervisor(run_core, run_worker, workers, prepare_workers).run()


def _run_core(core: Core, show_mistakes: ShowMistakes) -> int:
    mistakes: list[str] = []
    try:
        trio.run(_until_drained, core)
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


async def _until_drained(core: Core) -> None:
    """Run a core until it has drained. A first signal starts the drain, a second one ends the process at once."""
    _freeze()
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey_signals, core, nursery)
        await core.run()
        nursery.cancel_scope.cancel()


async def _obey_signals(core: Core, nursery: trio.Nursery, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(*_ENDING, *_IGNORED) as signals:
        unblock_signals()
        task_status.started()
        async for number in signals:
            if number in _ENDING:
                break
            if number == _RELOADING:
                nursery.start_soon(core.reload)
            else:
                name = signal.Signals(number).name
                log.get("core").warning("signal ignored: SIGHUP reloads the configuration", signal=name)
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_DFL)
    core.drain()


def _mistakes(error: BaseException) -> list[str]:
    """Return the mistakes of a ConfigError inside the groups in which nurseries wrap it."""
    if isinstance(error, BaseExceptionGroup):
        return [mistake for inner in error.exceptions for mistake in _mistakes(inner)]
    return error.mistakes if isinstance(error, ConfigError) else []
