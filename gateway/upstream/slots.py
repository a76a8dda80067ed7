"""Slots: divides a backend's sessions among the pools of all identities.

A slot is the right to hold one session, open or being opened. ``limit`` is the number of slots.

Opening. A pool that needs a session queues. The next pool to open a session is, in this order,

1. a pool that holds no slot and has requests waiting, the longest-queued first;
2. the pool with waiting requests that holds fewest slots;
3. a pool that keeps ``min_idle`` sessions warm, pools without a slot first.

Reserve. A pool that holds a slot leaves free one slot for each pool that lost its last slot within 60 s, but at most
``limit // 8``, or one. So no identity can hold every session of a backend.

Eviction. If no slot is free, an idle session of a different pool is closed: of the pool with most slots, or among
equals the one that clients used least recently. Since that costs a handshake, a session of pool B is closed for pool A
only

* if A holds no slot;
* or if B holds at least two slots more than A: then the balance improves, and the two can't take sessions from each
  other for ever;
* or if clients did not use B for 1 s and B holds two slots or more;
* or if clients did not use B for 60 s and A holds less than half of ``limit``.

Yielding. A session that is given back to pool B is closed instead of kept

* if more slots are used than the limit, which was lowered or learned;
* or, while a handshake may begin, if no slot is free, a pool A without a slot waits, and B holds at least two slots (if
  B holds one, A's request must have waited for 0.25 s, and longer than any request of B);
* or, while a handshake may begin, if no more slots are free than are reserved, and B holds at least two slots more than
  the pool with waiting requests that holds fewest.

Abandoned sessions, whose answers nobody awaits, may hold ``limit // 4`` slots, or one; beyond that the newest is
closed. If no idle session may be closed, an abandoned one is closed for each pool that waits.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Protocol

import trio

from gateway.errors import BackendError
from gateway.upstream.ceiling import Ceiling
from gateway.upstream.gate import Gate

STARVATION_DELAY: Final = 0.25  # s that a pool without a slot waits before the only session of a pool is closed for it
_UNUSED: Final = 1.0  # s after which an idle session of a pool with several may be closed for any pool
_RECENT: Final = 60.0  # s for which a pool without a slot has one reserved, or keeps its last session
_RESERVE: Final = 8  # the inverse of the share of slots that may be reserved
_ABANDONED: Final = 4  # the inverse of the share of slots that abandoned sessions may hold
_LOOK_FOR_CLIENTS: Final = 0.05  # s between two searches for sessions whose client has disconnected
_NEVER: Final = float("inf")


class PoolMember(Protocol):
    """The part of a pool that Slots uses."""

    @property
    def waiting_since(self) -> float:
        """Time at which the longest-waiting request without a pending open began to wait; infinity if none."""

    @property
    def idle_since(self) -> float:
        """Time at which clients last used a session of this pool; infinity if no session is idle."""

    @property
    def needs_session(self) -> bool:
        """True if a session should be opened for a waiting request."""

    @property
    def needs_warm_session(self) -> bool:
        """True if a session should be opened to keep ``min_idle``."""

    def close_oldest_idle(self) -> None:
        """Close the session that has been idle longest. Slots frees its slot."""

    def close_disconnected(self) -> None:
        """Close the sessions whose request may be repeated and whose client has disconnected."""

    def begin_to_open(self) -> None:
        """Start to open a session in the slot that was just taken."""

    def fail_waiters(self, error: BackendError) -> None:
        """Fail the waits that no session of this pool can end, so that the requests try a different backend."""


class Abandoned(Protocol):
    """The part of a busy session, whose answer nobody awaits, that Slots uses."""

    is_abandoned: bool

    def close(self) -> None:
        """Close at once; the pool gets the session back soon after."""


class Slots:
    """A backend's slots. A pool takes one before it opens a session, and the session holds it until it is closed."""

    def __init__(self, limit: int, *, gate: Gate | None = None) -> None:
        self.used = 0
        self.gate = gate or Gate()
        self.ceiling = Ceiling(limit)
        #: Abandoned sessions and their pools, the oldest first.
        self.abandoned: OrderedDict[Abandoned, PoolMember] = OrderedDict()
        self._reclaimed: set[Abandoned] = set()  # abandoned sessions that were closed and are not given back yet
        self._held: dict[PoolMember, int] = {}  # pools that hold slots, and how many
        self._lost_last: OrderedDict[PoolMember, float] = OrderedDict()  # pools without slots, by time
        # The three queues, in the order in which they are served.
        self._without_slot: OrderedDict[PoolMember, None] = OrderedDict()
        self._with_slots: OrderedDict[PoolMember, None] = OrderedDict()
        self._warm: OrderedDict[PoolMember, None] = OrderedDict()
        self._looked_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Slots {self.used} of {self.limit}>"

    @property
    def limit(self) -> int:
        """The greatest number of sessions, as configured, whatever the ceiling."""
        return self.ceiling.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self.ceiling.limit = limit

    def held(self, pool: PoolMember) -> int:
        """Return how many slots a pool holds."""
        return self._held.get(pool, 0)

    def has_room(self) -> bool:
        """Return True if a slot is free."""
        return self.used < (self.ceiling.limit if self.ceiling.value is None else self._limit())

    @property
    def free(self) -> int:
        """The number of free slots."""
        return max(0, self._limit() - self.used)

    def _limit(self) -> int:
        return self.ceiling.now(trio.current_time())

    # Taking ----------------------------------------------------------------------------------------------------------

    def want(self, pool: PoolMember) -> None:
        """Queue a pool that needs sessions for waiting requests; it opens them as soon as it may."""
        queue = self._with_slots if pool in self._held else self._without_slot
        queue.setdefault(pool)
        self.serve()

    def want_warm(self, pool: PoolMember) -> None:
        """Queue a pool that should keep more sessions warm; pools without a slot come first."""
        self._warm.setdefault(pool)
        if pool not in self._held:
            self._warm.move_to_end(pool, last=False)
        self.serve()

    def forget(self, pool: PoolMember) -> list[Abandoned]:
        """Forget a pool that was closed, and return its abandoned sessions.

        Sessions keep their slots until they are given back.
        """
        for queue in (self._without_slot, self._with_slots, self._warm, self._lost_last):
            queue.pop(pool, None)
        return [session for session, holder in self.abandoned.items() if holder is pool]

    def serve(self) -> None:
        """Let pools open sessions in turn, as long as slots and the gate allow.

        If pools wait and none can be given a slot, sessions that nobody needs are closed.
        """
        now = trio.current_time()
        while self.gate.has_room(now):
            for pool, queue in self._candidates():
                if self._make_room(pool, now, may_evict=queue is not self._warm):
                    break
            else:
                if self._without_slot or self._with_slots:
                    self._reclaim(now)
                return
            del queue[pool]
            self._take(pool)
            pool.begin_to_open()
            if pool.needs_session:
                self._with_slots.setdefault(pool)
            elif pool.needs_warm_session:
                self._warm.setdefault(pool)

    def _candidates(self) -> Iterator[tuple[PoolMember, OrderedDict[PoolMember, None]]]:
        """Yield the pool whose turn it is in each of the queues, and the queue.

        If the pool with waiting requests must leave a reserved slot free, a pool without a slot may still warm up.
        """
        for queue, pool in ((self._without_slot, self._first_without()), (self._with_slots, self._fewest())):
            if pool is not None:
                yield pool, queue
        while self._warm:
            pool = next(iter(self._warm))
            if pool.needs_warm_session:
                yield pool, self._warm
                return
            del self._warm[pool]

    def _first_without(self) -> PoolMember | None:
        """Return the longest-queued pool without a slot; drop pools that need nothing any more."""
        while self._without_slot:
            pool = next(iter(self._without_slot))
            if pool.needs_session:
                return pool
            del self._without_slot[pool]
        return None

    def _fewest(self) -> PoolMember | None:
        """Return the pool with waiting requests that holds fewest slots; drop pools that need nothing any more."""
        for pool in [pool for pool in self._with_slots if not pool.needs_session]:
            del self._with_slots[pool]
        return min(self._with_slots, key=self.held, default=None)

    def _take(self, pool: PoolMember) -> None:
        self._held[pool] = self.held(pool) + 1
        self._lost_last.pop(pool, None)
        self.used += 1
        self.gate.under_way += 1

    def _make_room(self, pool: PoolMember, now: float, *, may_evict: bool) -> bool:
        """Return True if a slot is free for this pool, perhaps because an idle session was closed."""
        reserve = self._reserve(now) if pool in self._held else 0
        if self.used + reserve < self.ceiling.now(now):
            return True
        return may_evict and self._evict_for(pool, now)

    def _reserve(self, now: float) -> int:
        """Return how many slots are reserved for pools that lost their last slot lately."""
        reservable = max(1, self.ceiling.now(now) // _RESERVE)
        reserve = 0
        for lost_at in reversed(self._lost_last.values()):
            if reserve == reservable or now - lost_at > _RECENT:
                break
            reserve += 1
        return reserve

    def _evict_for(self, taker: PoolMember, now: float) -> bool:
        """Close an idle session of a different pool, if a rule of Eviction (above) allows that, and free its slot."""
        holders = [pool for pool in self._held if pool is not taker and self._may_evict(pool, taker, now)]
        if not holders:
            return False
        holder = max(holders, key=lambda pool: (self._held[pool], -pool.idle_since))
        holder.close_oldest_idle()
        self._drop(holder)
        return True

    def _may_evict(self, holder: PoolMember, taker: PoolMember, now: float) -> bool:
        if holder.idle_since == _NEVER:
            return False
        if taker not in self._held or self._improves_balance(taker, holder):
            return True
        unused = now - holder.idle_since
        if self._held[holder] > 1:
            return unused >= _UNUSED
        return unused >= _RECENT and 2 * self._held[taker] < self.ceiling.now(now)

    def _improves_balance(self, taker: PoolMember, holder: PoolMember) -> bool:
        return self.held(taker) + 1 < self.held(holder)

    def _reclaim(self, now: float) -> None:
        """Close sessions that nobody needs: those of disconnected clients, and one abandoned session at each call.

        At most as many abandoned sessions are being closed as pools wait for a slot.
        """
        if now - self._looked_at >= _LOOK_FOR_CLIENTS:
            self._looked_at = now
            for pool in list(self._held):
                pool.close_disconnected()
        if len(self._reclaimed) < len(self._without_slot) + len(self._with_slots) and self.abandoned:
            self._close_abandoned()

    # Giving back -----------------------------------------------------------------------------------------------------

    def opened(self, seconds: float) -> None:
        """Count a session that was opened, in so many seconds, in a slot that was taken."""
        self.gate.under_way -= 1
        self.gate.succeeded(seconds)
        self.ceiling.opened(self.used - self.gate.under_way)
        self.serve()

    def not_opened(self, pool: PoolMember) -> None:
        """Free a slot that was taken, and in which no session could be opened."""
        self.gate.under_way -= 1
        self._drop(pool, had_session=False)
        self.serve()

    def abandon(self, session: Abandoned, pool: PoolMember) -> None:
        """Allow a session, whose answer nobody awaits, to be closed if its slot is needed or too many are abandoned."""
        session.is_abandoned = True
        self.abandoned[session] = pool
        if len(self.abandoned) > max(1, self.limit // _ABANDONED):
            self._close_abandoned()
        self.serve()

    def _close_abandoned(self) -> None:
        session, _pool = self.abandoned.popitem()  # the newest: the oldest show soonest if the backend is slow or dead
        self._reclaimed.add(session)
        session.close()

    def fail_waiting(self, error: BackendError) -> None:
        """Fail the waits in all queued pools: no pool can open a session for now."""
        for queue in (self._without_slot, self._with_slots):
            for pool in list(queue):
                pool.fail_waiters(error)

    def returned(self, session: Abandoned) -> None:
        """Forget an abandoned session: it was given back after its exchange."""
        session.is_abandoned = False
        self.abandoned.pop(session, None)
        self._reclaimed.discard(session)

    def release(self, pool: PoolMember) -> None:
        """Free a slot of a pool, and let the next pool have it."""
        self._drop(pool)
        self.serve()

    def _drop(self, pool: PoolMember, *, had_session: bool = True) -> None:
        self.used -= 1
        self._held[pool] -= 1
        if self._held[pool]:
            return
        del self._held[pool]
        if had_session:  # else a refused credential would have a slot reserved for ever
            self._lost_last[pool] = now = trio.current_time()
            while now - next(iter(self._lost_last.values())) > _RECENT:
                self._lost_last.popitem(last=False)
        if pool in self._with_slots:
            del self._with_slots[pool]
            self._without_slot[pool] = None

    def should_yield(self, holder: PoolMember) -> bool:
        """Return True if a session that is given back should be closed instead of kept: see Yielding, above."""
        if not self._without_slot and not self._with_slots and self.ceiling.value is None:
            return self.used > self.ceiling.limit
        now = trio.current_time()
        free = self.ceiling.now(now) - self.used
        if free < 0:
            return True
        if not self.gate.has_room(now):
            return False
        if free == 0 and self._needs_slot_of(self._first_without(), holder):
            return True
        return free <= self._reserve(now) and self._needs_slot_of(self._fewest(), holder)

    def _needs_slot_of(self, pool: PoolMember | None, holder: PoolMember) -> bool:
        if pool is None or pool is holder:
            return False
        if self._improves_balance(pool, holder):
            return True
        starving_since = trio.current_time() - STARVATION_DELAY
        return pool not in self._held and pool.waiting_since < min(starving_since, holder.waiting_since)
