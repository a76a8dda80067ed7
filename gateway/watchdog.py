"""Watchdog: a thread that notices that the event loop stands still, logs its stack, and ends the process.

It counts seconds in which it runs itself, so that a process that was stopped as a whole (SIGSTOP, a paused container or
virtual machine) is not taken for one whose event loop stands still. It can't notice C code that never gives the
interpreter back; the service manager's watchdog (``systemd``) can.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import trio

from gateway.log import Log

STUCK: Final = 70  # exit status (EX_SOFTWARE)
_LOOK_EVERY: Final = 1.0  # s
_LOG_WITHIN: Final = 2.0  # s for a line of the log, which must not keep the process from its end


class Watchdog:
    """Ends the process once its event loop has not run for ``limit`` seconds; after half the time it logs the stack.

    The stack has names of functions and lines of code, and no values. 0 turns the watchdog off.
    """

    def __init__(
        self, limit: float, log: Log, *, interval: float = _LOOK_EVERY, end: Callable[[int], object] = os._exit
    ) -> None:
        self._limit = limit
        self._log = log
        self._interval = min(interval, limit / 4) if limit else interval
        self._end = end
        self._beats = 0
        self._ended = threading.Event()

    async def run(self) -> None:
        """Watch the event loop that runs this task, until cancelled. Returns at once if the watchdog is off."""
        if not self._limit:
            return
        with self._watching(threading.get_ident()):
            while True:
                self._beats += 1
                await trio.sleep(self._interval / 2)

    @contextmanager
    def _watching(self, thread: int) -> Iterator[None]:
        threading.Thread(target=self._watch, args=(thread,), name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            self._ended.set()

    def _watch(self, thread: int) -> None:
        """Count the looks without a beat since the look before. Runs in a thread of its own."""
        seen, missed, is_logged = -1, 0, False
        while not self._ended.wait(self._interval):
            beats = self._beats
            if beats != seen:
                seen, missed, is_logged = beats, 0, False
                continue
            missed += 1
            seconds = missed * self._interval
            if seconds >= self._limit:
                self._say(partial(self._log.error, "event loop stands still: ending this process", seconds=seconds))
                self._end(STUCK)
                return
            if seconds >= self._limit / 2 and not is_logged:
                is_logged = True
                stack = "".join(traceback.format_stack(sys._current_frames()[thread]))  # noqa: SLF001 - the way to it
                self._say(
                    partial(
                        self._log.error,
                        "event loop stands still: report this bug; the process ends if this goes on",
                        seconds=seconds,
                        ends_after=self._limit,
                        exception=stack,
                    )
                )

    def _say(self, write: Callable[[], object]) -> None:
        """Write a line in a thread: the event loop may stand still because it writes to the log."""
        writing = threading.Thread(target=write, name="watchdog log", daemon=True)
        writing.start()
        writing.join(_LOG_WITHIN)
