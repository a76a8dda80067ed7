"""The supervisor: the parent of the core and of the TLS workers, without an event loop.

It owns what outlives them: the listening sockets and the listeners' TLS contexts, which are made before the processes
are forked, so that every worker resumes the sessions of every other. It starts the core and the workers, starts a
worker that died again, after a growing pause, and ends with the core.

    supervisor --- core          a Unix socket pair: see ``gateway.front.supervision``
               --- worker 1      a Unix socket pair to the core, made here and handed to both ends
               --- worker 2

A worker that dies costs its own clients only. If the core dies, everything ends with the core's status, so that the
service manager starts it again: the pool, the limits and the affinity of clients are the core's.
"""

import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

from gateway import log
from gateway.errors import ConfigError
from gateway.front.supervision import Order, receive_order, send_prepared, send_worker, socket_pair
from gateway.listening import NextSockets

FAILED: Final = 70  # exit status of a process that met a fault of the gateway (EX_SOFTWARE)
_FIRST_PAUSE: Final = 0.2  # s before a worker that died is started again; doubled each time
_LONGEST_PAUSE: Final = 10.0
_STABLE: Final = 30.0  # s that a worker must have lived, for the pause to be the first one again
_LAST_WAIT: Final = 5.0  # s for the workers to end after the core, before they are killed
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
#: The signal that drains the core. Others send SIGTERM and SIGINT to whole groups of processes (Ctrl-C, ``timeout``,
#: systemd's KillMode=control-group): a core that obeyed these would count a first signal twice, and end the waiting.
DRAIN_CORE: Final = signal.SIGRTMIN
_BLOCKED: Final = (*_PASSED_ON, DRAIN_CORE)

#: Runs the core, given its end of the socket pair to the supervisor; returns its exit status.
RunCore = Callable[[socket.socket], int]
#: Runs a worker, given its index and its end of the socket pair to the core; returns its exit status.
RunWorker = Callable[[int, socket.socket], int]


class Generations(Protocol):
    """The configuration that workers are started with; it changes with a reload."""

    def prepare(self) -> NextSockets:
        """Make what another generation of workers needs; return its listening sockets. Raises ConfigError."""

    def forget(self) -> None:
        """Close what was prepared, and is not used."""

    def use(self) -> None:
        """Have ``run_worker`` run workers of the generation that was prepared last."""


@dataclass
class _Slot:
    """The place of one worker: the process that is there, or the time at which it is started again."""

    index: int
    process: int = 0  # 0 if none runs
    began: float = 0.0
    pause: float = _FIRST_PAUSE
    due: float = 0.0

    def pause_after_end(self) -> float:
        """Return the seconds until another process is started here. They grow while processes live for a short time."""
        now = time.monotonic()
        if now - self.began > _STABLE:
            self.pause = _FIRST_PAUSE
        pause = self.pause
        self.due = now + pause
        self.pause = min(pause * 2, _LONGEST_PAUSE)
        return pause


@dataclass
class Supervisor:
    """Starts ``run_core`` and ``workers`` times ``run_worker``, each in a process of its own."""

    run_core: RunCore
    run_worker: RunWorker
    workers: int
    generations: Generations
    _leaving: set[int] = field(default_factory=set)  # processes of workers that were replaced, and end by themselves
    _slots: list[_Slot] = field(default_factory=list)
    _core: int = 0
    _generation: int = 0  # times that all workers were replaced
    _has_to_end: bool = False  # a signal said so
    _is_ending: bool = False  # no worker is started any more: the core takes no new clients, or has ended

    def run(self) -> int:
        """Supervise until the core has ended; return its exit status. To be called without threads or an event loop."""
        self._log = log.get("supervisor")
        _freeze_memory()
        with _woken_by_signals(self._pass_on) as wakeup:
            to_core, of_core = socket_pair()
            self._slots = [_Slot(index) for index in range(self.workers)]
            self._core = self._fork(lambda: self.run_core(of_core), to_core)
            of_core.close()
            if self._has_to_end:  # a signal came before there was a core to pass it to
                self._pass_on(signal.SIGTERM)
            with closing(to_core):
                for slot in self._slots:
                    self._start(slot, to_core)
                status = self._watch(wakeup, to_core)
            self._end_workers(wakeup)
        return status

    def _watch(self, wakeup: socket.socket, to_core: socket.socket) -> int:
        """Return the core's exit status once it has ended."""
        hears_core = True
        while True:
            due = min((slot.due for slot in self._slots if not slot.process), default=None)
            if _wait(wakeup, due, to_core if hears_core else None):
                received = receive_order(to_core)
                hears_core = received is not None
                if received is not None:
                    self._obey(*received, to_core)
            for process, status in _ended():
                if process == self._core:
                    if status >= FAILED:
                        self._log.error("core ended; all processes end with its status", status=status)
                    return status
                self._note_death(process, status)
            now = time.monotonic()
            for slot in self._slots:
                if not slot.process and slot.due <= now and not self._is_ending:
                    self._start(slot, to_core)

    def _start(self, slot: _Slot, to_core: socket.socket) -> None:
        """Start a worker, and hand the core its end of their socket pair. If that fails, it is tried again later."""
        slot.process, slot.began = 0, time.monotonic()
        try:
            of_worker, of_core = socket.socketpair()
            with closing(of_worker), closing(of_core):
                slot.process = self._fork(lambda: self.run_worker(slot.index, of_worker), to_core, of_core)
                with suppress(OSError):  # the core has gone: its end is noticed next
                    send_worker(to_core, slot.index, self._generation, of_core)
        except OSError as error:  # out of descriptors, processes or memory: the other workers serve meanwhile
            self._log.error(
                "cannot start a TLS worker: raise the limit of descriptors or processes; trying again",
                worker=slot.index,
                reason=error.strerror,
                seconds=slot.pause_after_end(),
            )

    def _obey(self, order: Order, number: int, to_core: socket.socket) -> None:
        if order is Order.PREPARE:
            self._prepare_workers(number, to_core)
        elif order is Order.USE:
            self._replace_workers(to_core)
        elif order is Order.FORGET:
            self.generations.forget()
        elif order is Order.DRAIN:
            self._is_ending = True
            to_core.shutdown(socket.SHUT_WR)  # so that the core knows that no worker is on its way

    def _prepare_workers(self, number: int, to_core: socket.socket) -> None:
        mistakes: Sequence[str] = ()
        following = NextSockets({}, {})
        try:
            following = self.generations.prepare()
        except ConfigError as error:
            mistakes = error.mistakes
        except Exception as error:  # noqa: BLE001 - a fault here must not end the gateway
            self._log.error("internal error: TLS workers not replaced; report this bug", exc_info=error)
            mistakes = ["internal error: the log says more"]
        with suppress(OSError):  # the core has gone, as above
            send_prepared(to_core, number, mistakes, following.binds, following.opened)

    def _replace_workers(self, to_core: socket.socket) -> None:
        """Start a new worker for each worker. The core retires the previous ones, which end after their last client."""
        self.generations.use()
        self._generation += 1
        _freeze_memory()
        for slot in self._slots:
            if slot.process:
                self._leaving.add(slot.process)
            self._start(slot, to_core)

    def _note_death(self, process: int, status: int) -> None:
        slot = next((slot for slot in self._slots if slot.process == process), None)
        if slot is not None:
            slot.process = 0
            pause = slot.pause_after_end()
        if slot is not None and not self._is_ending:
            self._log.error(
                "TLS worker ended; its clients are disconnected, and another one is started",
                worker=slot.index,
                status=status,
                seconds=pause,
            )
        elif status and (slot is not None or process in self._leaving):
            self._log.error("TLS worker ended before its last client; its clients are disconnected", status=status)
        self._leaving.discard(process)

    def _fork(self, run: Callable[[], int], *others: socket.socket) -> int:
        """Run a function in a process of its own, in which ``others`` are closed; return its process number.

        Signals are blocked in the new process, so that none is lost: it calls ``unblock_signals`` once it handles them.
        """
        sys.stdout.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        process = -1
        try:
            process = os.fork()
        finally:
            if process:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
        if process:
            return process
        status = FAILED
        try:
            _restore_signals()
            for sock in others:
                sock.close()
            status = run()
        except BaseException:  # noqa: BLE001 - nothing may return into the supervisor's stack
            with suppress(OSError):
                traceback.print_exc()
        finally:
            try:
                with suppress(OSError):  # the disk is full
                    sys.stderr.flush()
            finally:
                os._exit(status)

    def _pass_on(self, number: int) -> None:
        """Pass a signal to the core, which drains, reloads, or ignores it; SIGTERM and SIGINT become DRAIN_CORE."""
        if number in {signal.SIGTERM, signal.SIGINT}:
            self._has_to_end = True
            number = DRAIN_CORE
        if self._core:
            with suppress(ProcessLookupError):
                os.kill(self._core, number)

    def _end_workers(self, wakeup: socket.socket) -> None:
        """Wait for the workers, whose sockets to the core are closed; kill those that do not end."""
        self._is_ending = True
        until = time.monotonic() + _LAST_WAIT
        while self._processes() and time.monotonic() < until:
            for process, status in _ended():
                self._note_death(process, status)
            if self._processes():
                _wait(wakeup, min(until, time.monotonic() + 0.5))
        for process in self._processes():
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)

    def _processes(self) -> list[int]:
        """Return the processes of all workers, also of those that were replaced."""
        return [*self._leaving, *(slot.process for slot in self._slots if slot.process)]


def _freeze_memory() -> None:
    """Leave all present objects out of garbage collections, here and in the processes that are forked.

    A collection writes to each object that it looks at, after which a process has its own copy of the page: without
    this, a worker at rest has 23 MiB of its own, and 7 MiB with it.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def unblock_signals() -> None:
    """Receive the signals that the supervisor passes on, also those that came while they were blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)


def _ended() -> Iterator[tuple[int, int]]:
    """Yield the number and the exit status of each child that has ended; 128 plus the number of the signal, if any."""
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not process:
            return
        code = os.waitstatus_to_exitcode(status)
        number = signal.SIGTERM if code == -DRAIN_CORE else -code  # a third signal has ended the core
        yield process, code if code >= 0 else 128 + number


def _wait(wakeup: socket.socket, until: float | None, other: socket.socket | None = None) -> bool:
    """Wait for a signal, at most until a time of the monotonic clock. Return True if ``other`` can be read."""
    timeout = None if until is None else max(0.0, until - time.monotonic())
    readable = select.select([wakeup] if other is None else [wakeup, other], [], [], timeout)[0]
    if wakeup in readable:
        with suppress(BlockingIOError):
            wakeup.recv(4096)
    return other in readable


@contextmanager
def _woken_by_signals(pass_on: Callable[[int], None]) -> Iterator[socket.socket]:
    """Call ``pass_on`` with each signal to be passed on; the yielded socket is readable after any signal."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    before = {number: signal.signal(number, lambda number, _frame: pass_on(number)) for number in _PASSED_ON}
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    unblock_signals()
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()


def _restore_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (*_PASSED_ON, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
