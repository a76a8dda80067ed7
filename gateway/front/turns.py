"""Turns: the order in which clients' requests get the event loop, fair between principals.

trio runs everything that is ready in one tick, in random order: a principal with 400 busy connections makes a tick of
400 requests long, and its neighbour waits for two of them. So a conversation takes a turn after its socket has become
readable, before it reads. A few turns a tick are free; beyond them conversations queue, a constant number leaves the
queue in each tick, and start-time fair queueing says of which principal: the one that has used least since both wait
(Goyal, Vin and Cheng, "Start-time Fair Queueing", 1996). A principal that has nothing waiting and is not ahead goes at
once. Nothing is kept idle: alone, a principal has every turn.

One turn is a read of at most one TLS record, with the request that it completes: some 0.1 ms. Work that takes longer is
charged: later turns of its principal come later.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from typing import Final

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

_FREE: Final = 8  # turns between two looks at whether a new tick has begun
_LULL: Final = 0.02  # s: so many free turns never take as long, so that they were of several ticks
_LANES: Final = 2  # turns that leave the queue in each tick


class Share:
    """A principal's place in the order. ``tag`` is the virtual time at which its next turn starts."""

    __slots__ = ("is_queued", "tag", "waiting")

    def __init__(self) -> None:
        self.tag = 0.0
        self.waiting: deque[Task] = deque()
        self.is_queued = False

    def __repr__(self) -> str:
        return f"<Share at {self.tag:g}: {len(self.waiting)} waiting>"


class Turns:
    """The turns of one event loop.

    A lane is a chain of queued turns, one a tick: each wakes the next one, which runs in the next tick. ``clock`` is in
    seconds.
    """

    __slots__ = ("_clock", "_lanes", "_latest", "_now", "_order", "_sequence", "_since", "_used", "waiting")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.waiting = 0
        self._now = clock
        self._used = 0.0  # turns since a new tick was last seen
        self._since = clock()  # time at which they began to be counted
        self._lanes = 0
        self._clock = 0.0  # the virtual time: the start of the turn that left the queue last
        self._latest = 0.0  # the highest tag
        self._order: list[tuple[float, int, Share]] = []  # a heap of the shares with waiting turns
        self._sequence = 0

    def __repr__(self) -> str:
        return f"<Turns: {self.waiting} waiting, {self._lanes} lanes>"

    def take(self, share: Share) -> Awaitable[None] | None:
        """Take a turn. Return None if it is there at once, otherwise wait for what is returned."""
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
        """Charge a principal for work beyond that of one turn."""
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
                self._clock = self._latest  # nobody waits: whatever principals have used before is forgotten
            self._lanes += 1
            self._start(share)
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await self._queue(share)
        # A new tick has begun since this turn was asked for.
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
            if share.waiting:  # it was charged meanwhile
                self._enqueue(share)
        self._start(share)
        self.waiting -= 1
        trio.lowlevel.reschedule(share.waiting.popleft())
        if share.waiting:
            self._enqueue(share)
