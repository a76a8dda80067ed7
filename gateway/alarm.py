"""Alarms: deadlines that are set for every request and hardly ever come.

To enter and leave a cancel scope with a deadline costs a request more than to decode it. To set an alarm that was set
before, and to stop it, is an assignment: only where the time comes for which it was first set is it looked at again.
"""

import heapq
from collections.abc import Awaitable, Callable
from itertools import count

import trio


class Alarm:
    """Something that may become due. ``due`` is in trio's time; set by Alarms, and back to infinity by ``stop``."""

    __slots__ = ("due", "listed", "ring")

    def __init__(self) -> None:
        self.due = float("inf")
        self.listed = float("inf")  # belongs to Alarms: when it is looked at next
        self.ring: Callable[[], None] = _nothing

    def __repr__(self) -> str:
        return f"<Alarm due at {self.due:g}>"

    def stop(self) -> None:
        """It must not ring any more."""
        self.due = float("inf")
        self.ring = _nothing


def _nothing() -> None:
    """What an alarm that is not set does."""


class Alarms:
    """Looks after alarms. ``spawn`` starts a task in a nursery that outlives their use; it runs while any is listed."""

    def __init__(self, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._spawn = spawn
        self._listed: list[tuple[float, int, Alarm]] = []  # a heap
        self._numbers = count()
        self._sleep = trio.CancelScope()
        self._runs = False

    def __repr__(self) -> str:
        return f"<Alarms {len(self._listed)} listed>"

    def set(self, alarm: Alarm, due: float, ring: Callable[[], None]) -> None:
        """Have ``ring`` called at a time, unless the alarm is stopped or set anew until then."""
        alarm.due = due
        alarm.ring = ring
        if due < alarm.listed:
            self._list(alarm)

    def _list(self, alarm: Alarm) -> None:
        alarm.listed = alarm.due
        heapq.heappush(self._listed, (alarm.due, next(self._numbers), alarm))
        if not self._runs:
            self._runs = True
            self._spawn(self._run)
        elif alarm.due < self._sleep.deadline:
            self._sleep.deadline = alarm.due

    async def _run(self) -> None:
        while self._listed:
            with trio.CancelScope(deadline=self._listed[0][0]) as self._sleep:
                await trio.sleep_forever()
            self._look(trio.current_time())
        self._runs = False

    def _look(self, now: float) -> None:
        """Ring what is due; what was stopped is forgotten, and what was put off is listed again."""
        while self._listed and self._listed[0][0] <= now:
            at, _number, alarm = heapq.heappop(self._listed)
            if at != alarm.listed:  # it was set for an earlier time, too
                continue
            alarm.listed = float("inf")
            if alarm.due <= now:
                ring = alarm.ring
                alarm.stop()
                ring()
            elif alarm.due < float("inf"):
                self._list(alarm)
