"""Timers: deadlines that are set for every request and hardly ever come.

To enter and leave a cancel scope with a deadline costs a request more than decoding does. Setting or stopping a timer
that is in the heap only changes its fields; the heap is touched again when the originally scheduled time comes (lazy
deletion, as in asyncio's timers).
"""

import heapq
from collections.abc import Awaitable, Callable
from itertools import count

import trio


class Timer:
    """A call of ``action`` at the time ``due``, in trio's seconds; infinity if the timer is not set.

    ``TimerHeap.set`` arms a timer, ``stop`` disarms it. A timer can be set again.
    """

    __slots__ = ("action", "due", "scheduled")

    def __init__(self) -> None:
        self.due = float("inf")
        self.scheduled = float("inf")  # time of the timer's entry in the heap; belongs to TimerHeap
        self.action: Callable[[], None] = _nothing

    def __repr__(self) -> str:
        return f"<Timer due at {self.due:g}>"

    def stop(self) -> None:
        """Disarm: the action is not called. The entry in the heap stays until its time comes."""
        self.due = float("inf")
        self.action = _nothing


def _nothing() -> None:
    """Do nothing: the action of a timer that is not set."""


class TimerHeap:
    """Calls the actions of timers. ``spawn`` starts a task in a nursery that outlives the timers.

    The task runs only while the heap has an entry.
    """

    def __init__(self, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._spawn = spawn
        self._entries: list[tuple[float, int, Timer]] = []  # a heap
        self._numbers = count()  # break ties: timers can't be compared
        self._sleep = trio.CancelScope()
        self._runs = False

    def __repr__(self) -> str:
        return f"<TimerHeap of {len(self._entries)} entries>"

    def set(self, timer: Timer, due: float, action: Callable[[], None]) -> None:
        """Call ``action`` at the time ``due``, unless the timer is stopped or set anew before."""
        timer.due = due
        timer.action = action
        if due < timer.scheduled:
            self._push(timer)

    def _push(self, timer: Timer) -> None:
        timer.scheduled = timer.due
        heapq.heappush(self._entries, (timer.due, next(self._numbers), timer))
        if not self._runs:
            self._runs = True
            self._spawn(self._run)
        elif timer.due < self._sleep.deadline:
            self._sleep.deadline = timer.due

    async def _run(self) -> None:
        while self._entries:
            with trio.CancelScope(deadline=self._entries[0][0]) as self._sleep:
                await trio.sleep_forever()
            self._fire(trio.current_time())
        self._runs = False

    def _fire(self, now: float) -> None:
        """Call the actions that are due; drop entries of stopped timers, and move entries of postponed timers."""
        while self._entries and self._entries[0][0] <= now:
            at, _number, timer = heapq.heappop(self._entries)
            if at != timer.scheduled:  # superseded by an entry for an earlier time
                continue
            timer.scheduled = float("inf")
            if timer.due <= now:
                action = timer.action
                timer.stop()
                action()
            elif timer.due < float("inf"):
                self._push(timer)
