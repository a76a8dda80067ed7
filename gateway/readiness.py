"""Readiness: tasks wait for a descriptor that stays registered with epoll, or a callback serves it.

``trio.lowlevel.wait_readable`` arms epoll anew for every wait: a system call, and a tenth of the instructions of a Get
on a kept connection. A Readiness registers its descriptor at the first wait, level-triggered, and leaves it registered:
the next message nearly always arrives while a task waits for it. An event for which nobody waits for some rounds of the
loop removes the registration, so that no unread byte keeps the loop awake; the next wait registers again. It may last
some rounds, because a conversation waits for its turn before it reads.

For this, ``_Manager`` takes the place of the class of trio's I/O manager, in an event loop that runs already, and
looks at each event first. It uses these private parts of trio, and nothing else: ``GLOBAL_RUN_CONTEXT`` (``task``, and
of ``runner`` its ``io_manager`` and ``reschedule``), ``EpollIOManager`` (``_epoll``, ``_registered``, ``get_events``,
``process_events``) and ``WaitTaskRescheduled``. They are used with the releases of trio in ``_TESTED``, on Linux,
and if the environment has KMIP_GATEWAY_WAITS=persistent. Else a Readiness waits by trio's public functions: the gain
was not shown to be worth private parts (docs/performance.md, "Waits without trio's public functions").

A descriptor must not be waited for by ``trio.lowlevel`` and by its Readiness at the same time.
"""

import os
import select
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator
from types import coroutine
from typing import Any, Final, cast

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

_TESTED: Final = ("0.35.",)
_MOST: Final = 1024  # events of one round of the event loop
_PATIENCE: Final = 4  # rounds in which an event may be reported for which nobody waits
_IN: Final = 1  # EPOLLIN and EPOLLOUT; with an error or the end of the connection, all waits end
_OUT: Final = 4
_READY: Final = outcome.Value(None)


class Readiness:
    """The waits for one descriptor, by trio's public functions. One task may wait to read, and one to write."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of descriptor {self._descriptor}>"

    def readable(self) -> Awaitable[None]:
        """Wait until the descriptor can be read. Raises trio.ClosedResourceError if ``interrupt`` is called."""
        return trio.lowlevel.wait_readable(self._descriptor)  # noqa: ASYNC105 - the caller awaits it

    def writable(self) -> Awaitable[None]:
        """Wait until the descriptor can be written. Raises trio.ClosedResourceError if ``interrupt`` is called."""
        return trio.lowlevel.wait_writable(self._descriptor)  # noqa: ASYNC105 - as above

    async def serve(self, action: Callable[[], None]) -> None:
        """Call ``action`` each time the descriptor can be read; it may be called without a current task.

        Raises the exception of ``action``, and trio.ClosedResourceError if ``interrupt`` is called.
        """
        while self._descriptor >= 0:
            await self.readable()
            action()
        raise trio.ClosedResourceError("the descriptor was closed")

    def interrupt(self) -> None:
        """Raise trio.ClosedResourceError in the tasks that wait."""
        trio.lowlevel.notify_closing(self._descriptor)

    def close(self) -> None:
        """End all waits, as ``interrupt`` does. To be called before the descriptor is closed, and once."""
        self.interrupt()
        self._descriptor = -1


def readiness(descriptor: int) -> Readiness:
    """Return the Readiness of a descriptor in the event loop that runs."""
    if not IS_PERSISTENT:
        return Readiness(descriptor)
    return _Persistent(descriptor, _manager())


def _is_persistent() -> bool:
    return (
        trio.__version__.startswith(_TESTED)
        and hasattr(select, "epoll")
        and os.environ.get("KMIP_GATEWAY_WAITS", "") == "persistent"
    )


#: True if descriptors stay registered, False if trio's public functions are used.
IS_PERSISTENT: bool = _is_persistent()

if IS_PERSISTENT:
    from trio._core._io_epoll import EpollIOManager
    from trio._core._run import GLOBAL_RUN_CONTEXT
    from trio._core._traps import WaitTaskRescheduled

    class _Persistent(Readiness):
        """A Readiness whose descriptor stays registered. ``_events`` are those that epoll reports, 0 if none."""

        __slots__ = (
            "_action",
            "_events",
            "_ignored",
            "_manager",
            "_read_wait",
            "_reader",
            "_runner",
            "_write_wait",
            "_writer",
        )

        def __init__(self, descriptor: int, manager: "_Manager") -> None:
            self._descriptor = descriptor
            self._manager = manager
            self._runner = GLOBAL_RUN_CONTEXT.runner
            self._events = 0
            self._ignored = 0  # reports since a task waited to read
            self._reader: Task | None = None
            self._writer: Task | None = None
            self._action: Callable[[], None] | None = None
            # Messages to the event loop at the beginning of a wait, made once.
            self._read_wait: Any = WaitTaskRescheduled(self._stop_reading)
            self._write_wait: Any = WaitTaskRescheduled(self._stop_writing)

        def readable(self) -> Awaitable[None]:
            if self._reader is not None:
                raise trio.BusyResourceError("another task is already reading this descriptor")
            if not self._events & _IN:
                self._register(_IN)
            self._reader = GLOBAL_RUN_CONTEXT.task
            return _wait(self._read_wait)

        def writable(self) -> Awaitable[None]:
            if self._writer is not None:
                raise trio.BusyResourceError("another task is already writing this descriptor")
            self._register(_OUT)
            self._writer = GLOBAL_RUN_CONTEXT.task
            return _wait(self._write_wait)

        async def serve(self, action: Callable[[], None]) -> None:
            waiting = self.readable()
            self._action = action
            try:
                await waiting
            finally:
                self._action = None

        def _register(self, events: int) -> None:
            events |= self._events
            epoll = self._manager._epoll  # noqa: SLF001 - see the top of this file
            try:
                if self._events:
                    epoll.modify(self._descriptor, events)
                else:
                    epoll.register(self._descriptor, events)
            except FileExistsError:  # trio has registered it, for an earlier wait by its own functions
                epoll.modify(self._descriptor, events)
            self._events = events
            self._manager._registered.ready[self._descriptor] = self  # noqa: SLF001

        def _unregister(self, events: int) -> None:
            """Have epoll no longer report these events: level-triggered, it would report them again and again."""
            epoll = self._manager._epoll  # noqa: SLF001
            self._events &= ~events
            if self._events:
                epoll.modify(self._descriptor, self._events)
            else:
                epoll.unregister(self._descriptor)
                del self._manager._registered.ready[self._descriptor]  # noqa: SLF001

        def report(self, events: int) -> None:
            """Wake the tasks that wait for these events."""
            unwanted = 0
            if events & ~_OUT:
                if self._action is not None:
                    self._act(self._action)
                elif (reader := self._reader) is not None:
                    self._reader = None
                    self._ignored = 0
                    self._runner.reschedule(reader, _READY)
                elif self._ignored < _PATIENCE:
                    self._ignored += 1
                else:
                    unwanted = self._events & _IN
            if events & ~_IN:
                if (writer := self._writer) is not None:
                    self._writer = None
                    self._runner.reschedule(writer, _READY)
                unwanted |= self._events & _OUT
            if unwanted:
                self._unregister(unwanted)

        def _act(self, action: Callable[[], None]) -> None:
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - for the task that waits, not for trio
                self._action = None
                self._end(error)

        def _end(self, error: BaseException) -> None:
            """Raise an error in the tasks that wait."""
            for task in (self._reader, self._writer):
                if task is not None:
                    self._runner.reschedule(task, outcome.Error(error))
            self._reader = self._writer = None

        def _stop_reading(self, _: RaiseCancelT) -> Abort:
            self._reader = None
            return Abort.SUCCEEDED

        def _stop_writing(self, _: RaiseCancelT) -> Abort:
            self._writer = None
            return Abort.SUCCEEDED

        def interrupt(self) -> None:
            self._end(trio.ClosedResourceError("the descriptor was closed"))

        def close(self) -> None:
            self.interrupt()
            if self._events:
                self._unregister(self._events)
            self._read_wait = self._write_wait = None  # the cycles of references

    class _Registered(defaultdict[int, Any]):
        """trio's own waits, by descriptor, and beside them ``ready``: the Readiness of each other descriptor."""

        ready: dict[int, _Persistent]

    class _Manager(EpollIOManager):
        """trio's I/O manager, which reports the events of ``_registered.ready`` to their Readiness."""

        __slots__ = ()
        _registered: _Registered

        def get_events(self, timeout: float) -> list[tuple[int, int]]:
            return self._epoll.poll(timeout, _MOST)

        def process_events(self, events: list[tuple[int, int]]) -> None:
            ready = self._registered.ready
            for event in events:
                found = ready.get(event[0])
                if found is None:
                    super().process_events([event])
                else:
                    found.report(event[1])

    def _manager() -> _Manager:
        """Return the I/O manager of the event loop that runs; its class is replaced at the first call."""
        manager = GLOBAL_RUN_CONTEXT.runner.io_manager
        if type(manager) is not _Manager:
            before = manager._registered  # noqa: SLF001
            registered = _Registered(before.default_factory, before)
            registered.ready = {}
            manager._registered = registered  # noqa: SLF001
            manager.__class__ = _Manager
        return cast("_Manager", manager)

    @coroutine
    def _wait(message: Any) -> Generator[Any, Any, None]:
        result = yield message
        if result is not _READY:
            result.unwrap()
