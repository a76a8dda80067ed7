"""Turns: the order in which clients' requests get the event loop, fair between principals.

trio runs all ready tasks in a tick, in random order: 400 busy connections of one principal make a tick as long as 400
requests, and a request of a second principal waits for two such ticks. So a conversation takes a turn after its socket
has become readable, before it reads. A few turns of each tick are free. Beyond them conversations queue, and a constant
number leaves the queue in each tick. Start-time fair queueing chooses the principal: of all that wait, the principal
that has used the fewest turns while all of them waited (Goyal, Vin and Cheng, "Start-time Fair Queueing", 1996). A
principal without waiting turns that is not ahead of the queue goes at once. No turn stays unused: a principal alone
gets every turn.

A turn is a read of at most one TLS record, with the request that it completes: some 0.1 ms. Longer work is charged, and
delays the later turns of its principal.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from typing import Final

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

_FREE: Final = 8  # turns that are free before the clock is read again
_LULL: Final = 0.005  # s; the free turns of one tick take less, so that after more time a new tick has begun
_LANES: Final = 2  # turns that leave the queue in each tick


class Share:
    """The waiting turns of a principal. ``tag`` is the virtual time at which its next turn starts."""

    __slots__ = ("is_queued", "tag", "waiting")

    def __init__(self) -> None:
        self.tag = 0.0
        self.waiting: deque[Task] = deque()
        self.is_queued = False

    def __repr__(self) -> str:
        return f"<Share at {self.tag:g}: {len(self.waiting)} waiting>"


class Turns:
    """The turns of one event loop.

    A lane is a chain of queued turns, a turn a tick: each turn wakes the next, which runs in the next tick. ``clock``
    returns seconds.
    """

    __slots__ = ("_clock", "_lanes", "_latest", "_now", "_order", "_sequence", "_since", "_used", "waiting")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.waiting = 0
        self._now = clock
        self._used = 0.0  # turns since ``_since``, a time at which a new tick had begun
        self._since = clock()
        self._lanes = 0
        self._clock = 0.0  # the virtual time: the start of the turn that left the queue last
        self._latest = 0.0  # the highest tag
        self._order: list[tuple[float, int, Share]] = []  # a heap of the shares with waiting turns
        self._sequence = 0

    def __repr__(self) -> str:
        return f"<Turns: {self.waiting} waiting, {self._lanes} lanes>"

    def take(self, share: Share) -> Awaitable[None] | None:
        """Take a turn. Return None if the turn may begin at once; otherwise the caller must await the result first."""
        self._used += 1
        if self._used <= _FREE and not self.waiting:
            return None
        if not self.waiting and self._now() - self._since > _LULL:
            self._begin_to_count()
            return None
        if self.waiting and not share.waiting and share.tag <= self._clock:
            self._start(share)
            return None
        return self._wait(share)

    def charge(self, share: Share, turns: float) -> None:
        """Charge a principal for work that took ``turns`` turns more than its own."""
        self._used += turns
        self._since = self._now()
        share.tag = max(share.tag, self._clock) + turns
        self._latest = max(self._latest, share.tag)

    def _begin_to_count(self) -> None:
        self._used = 0.0
        self._since = self._now()

    def _start(self, share: Share) -> None:
        start = max(share.tag, self._clock)
        self._clock = start
        share.tag = start + 1
        self._latest = max(self._latest, share.tag)

    async def _wait(self, share: Share) -> None:
        if self._lanes < _LANES:
            if not self._lanes:
                self._clock = self._latest  # no turn waits: forget the turns that principals have used so far
            self._lanes += 1
            self._start(share)
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await self._queue(share)
        # A new tick has begun since the caller asked for this turn.
        self._begin_to_count()
        if self.waiting:
            self._wake_next()
        else:
            self._lanes -= 1

    async def _queue(self, share: Share) -> None:
        task = trio.lowlevel.current_task()
        share.waiting.append(task)
        self.waiting += 1
        self._enqueue(share)

        def leave(_: RaiseCancelT) -> Abort:
            share.waiting.remove(task)
            self.waiting -= 1
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    def _enqueue(self, share: Share) -> None:
        if not share.is_queued:
            share.is_queued = True
            self._sequence += 1
            heappush(self._order, (share.tag, self._sequence, share))

    def _wake_next(self) -> None:
        while True:
            tag, _, share = heappop(self._order)
            share.is_queued = False
            if share.waiting and tag >= share.tag:
                break
            if share.waiting:  # charged since it was queued
                self._enqueue(share)
        self._start(share)
        self.waiting -= 1
        trio.lowlevel.reschedule(share.waiting.popleft())
        if share.waiting:
            self._enqueue(share)
