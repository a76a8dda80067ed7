"""Slots: divides a backend's sessions among the pools of all identities, and says whose turn it is to open one.

A pool that needs a session queues here. The next one to open a session is, in this order,

1. a pool that holds no session and has requests waiting, the longest-queued first;
2. the pool with waiting requests that holds fewest sessions;
3. a pool that keeps ``min_idle`` sessions warm, pools without a session first.

A pool that holds a session leaves ``reserve`` slots free for pools that have none: one for each pool that lost its last
session within a minute, at most an eighth of all slots, or one. So no identity can hold every session of a backend.

If no slot is free, an idle session of another pool is closed, of the pool that holds most, or of those the least
recently used. Since this costs a handshake, it happens only

* for a pool that holds no session;
* if the pools differ by two or more sessions, so that they can't take sessions from each other for ever;
* if the session was unused for a second; but the last session of a pool only if clients did not use it for a minute,
  and for a pool that holds less than half of the slots.

If no idle session may be closed, a session whose answer nobody awaits any more is closed.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Protocol

import trio

from gateway.errors import BackendError
from gateway.upstream.gate import Gate, Pause

_PATIENCE: Final = 0.25  # s that a pool without a session waits before another pool's only session is closed for it
_UNUSED: Final = 1.0  # s after which the slot of an idle session may go to any pool that needs one
_RECENT: Final = 60.0  # s for which a pool without a session has a slot reserved, or keeps its last session
_RESERVE: Final = 8  # a reserve is one of so many slots
_ABANDONED: Final = 4  # one of so many slots may be held by sessions whose answer nobody awaits
_LOOK_FOR_CLIENTS: Final = 0.05  # s between two searches for sessions whose client has disconnected
_CEILING_SIGNS: Final = 2  # handshakes refused in a row, beside sessions that serve, until the ceiling is believed
_CEILING_DOUBTED: Final = (60.0, 600.0)  # s until one session more is tried: at first, and at most
_NEVER: Final = float("inf")


class PoolMember(Protocol):
    """A pool, as Slots see it."""

    @property
    def waiting_since(self) -> float:
        """Time at which the longest-waiting request without a session being opened began to wait; or infinity."""

    @property
    def idle_since(self) -> float:
        """Time at which clients last used a session of this pool; infinity if none is idle."""

    @property
    def needs_session(self) -> bool:
        """True if a session should be opened for a waiting request."""

    @property
    def needs_warm_session(self) -> bool:
        """True if a session should be opened to keep ``min_idle``."""

    def close_oldest_idle(self) -> None:
        """Close the session that has been idle longest; its slot is the caller's."""

    def close_disconnected(self) -> None:
        """Close the sessions whose request may be repeated and whose client has disconnected."""

    def begin_to_open(self) -> None:
        """Open a session in the slot that was just taken."""

    def fail_waiters(self, error: BackendError) -> None:
        """Let the waiting requests try elsewhere, unless a session of this pool may still serve them."""


class Ceiling:
    """The number of sessions that the backend has been found to allow, if less than ``limit``, which may change."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._signs = 0
        self._sign_at = float("-inf")
        self._pause = Pause(*_CEILING_DOUBTED)
        self.value: int | None = None

    def __repr__(self) -> str:
        return f"<Ceiling {self.value} of {self.limit}>"

    def now(self, now: float) -> int:
        """Return how many sessions may be open; one more than the ceiling if it is time to doubt it."""
        if self.value is None:
            return self.limit
        return min(self.limit, self.value + self._pause.is_over(now))

    def opened(self, sessions: int) -> None:
        """Count a session that opened; so many are open now."""
        self._signs = 0
        if self.value is not None and sessions > self.value:
            self.value = sessions if sessions < self.limit else None
            self._pause.reset()

    def refused(self, sessions: int, began: float, now: float) -> bool:
        """Count a handshake that failed while so many sessions were open and served. Return True if that is news.

        Handshakes that were under way together fail together: they are one sign.
        """
        if self.value is not None and sessions >= self.value:
            self._pause.failed(now)
            return False
        if began < self._sign_at or sessions >= self.limit:
            return False
        self._signs += 1
        self._sign_at = now
        if self._signs < _CEILING_SIGNS:
            return False
        self._signs = 0
        self.value = max(1, sessions)
        self._pause.failed(now)
        return True


class Slots:
    """A backend's slots for sessions, open or being opened. A pool takes one before it opens a session."""

    def __init__(self, limit: int, *, gate: Gate | None = None) -> None:
        self.used = 0
        self.gate = gate or Gate()
        self.ceiling = Ceiling(limit)
        #: Busy sessions, and their pools, whose answer is awaited by nobody; the oldest first.
        self.abandoned: OrderedDict[Abandoned, PoolMember] = OrderedDict()
        self._reclaimed: set[Abandoned] = set()  # abandoned sessions that were closed and are not back yet
        self._held: dict[PoolMember, int] = {}  # pools that hold a slot
        self._without: OrderedDict[PoolMember, float] = OrderedDict()  # pools that lost their last slot, and when
        self._first: OrderedDict[PoolMember, None] = OrderedDict()  # queues: pools without a session,
        self._then: OrderedDict[PoolMember, None] = OrderedDict()  # pools with sessions,
        self._warm: OrderedDict[PoolMember, None] = OrderedDict()  # and pools that keep some warm
        self._looked_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Slots {self.used} of {self.limit}>"

    @property
    def limit(self) -> int:
        """How many sessions may be open at most; as configured, whatever the ceiling."""
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

    def _limit(self) -> int:
        return self.ceiling.now(trio.current_time())

    # Taking ----------------------------------------------------------------------------------------------------------

    def want(self, pool: PoolMember) -> None:
        """Queue a pool that needs sessions; it opens them as soon as it may."""
        queue = self._then if pool in self._held else self._first
        queue.setdefault(pool)
        self.serve()

    def want_warm(self, pool: PoolMember) -> None:
        """Queue a pool that should keep more sessions warm; those without a session come first."""
        self._warm.setdefault(pool)
        if pool not in self._held:
            self._warm.move_to_end(pool, last=False)
        self.serve()

    @property
    def free(self) -> int:
        """How many slots may be taken."""
        return max(0, self._limit() - self.used)

    def forget(self, pool: PoolMember) -> list["Abandoned"]:
        """Forget a pool that was closed, and return its abandoned sessions.

        Sessions keep their slots until they are given back.
        """
        for queue in (self._first, self._then, self._warm, self._without):
            queue.pop(pool, None)
        return [session for session, holder in self.abandoned.items() if holder is pool]

    def serve(self) -> None:
        """Let pools open sessions in turn, as long as slots and the gate allow."""
        now = trio.current_time()
        while self.gate.has_room(now):
            for pool, queue in self._candidates():
                if self._make_room(pool, now, may_evict=queue is not self._warm):
                    break
            else:
                if self._first or self._then:
                    self._reclaim(now)
                return
            del queue[pool]
            self._take(pool)
            pool.begin_to_open()
            if pool.needs_session:
                self._then.setdefault(pool)
            elif pool.needs_warm_session:
                self._warm.setdefault(pool)

    def _candidates(self) -> Iterator[tuple[PoolMember, OrderedDict[PoolMember, None]]]:
        """Yield the pool whose turn it is in each of the queues, and the queue.

        If the pool with waiting requests must leave a reserved slot free, a pool without a session may still warm up.
        """
        for queue, pool in ((self._first, self._first_without()), (self._then, self._fewest())):
            if pool is not None:
                yield pool, queue
        while self._warm:
            pool = next(iter(self._warm))
            if pool.needs_warm_session:
                yield pool, self._warm
                return
            del self._warm[pool]

    def _first_without(self) -> PoolMember | None:
        """Return the longest-queued pool without a session; drop pools that need nothing any more."""
        while self._first:
            pool = next(iter(self._first))
            if pool.needs_session:
                return pool
            del self._first[pool]
        return None

    def _fewest(self) -> PoolMember | None:
        """Return the pool with waiting requests that holds fewest sessions; drop pools that need nothing any more."""
        for pool in [one for one in self._then if not one.needs_session]:
            del self._then[pool]
        return min(self._then, key=self.held, default=None)

    def _take(self, pool: PoolMember) -> None:
        self._held[pool] = self.held(pool) + 1
        self._without.pop(pool, None)
        self.used += 1
        self.gate.under_way += 1

    def _make_room(self, pool: PoolMember, now: float, *, may_evict: bool) -> bool:
        """Return True if a slot is free for this pool, perhaps since an idle session was closed."""
        reserve = self._reserve(now) if pool in self._held else 0
        if self.used + reserve < self.ceiling.now(now):
            return True
        return may_evict and self._evict_for(pool, now)

    def _reserve(self, now: float) -> int:
        most = max(1, self.ceiling.now(now) // _RESERVE)
        reserve = 0
        for lost_at in reversed(self._without.values()):
            if reserve == most or now - lost_at > _RECENT:
                break
            reserve += 1
        return reserve

    def _evict_for(self, taker: PoolMember, now: float) -> bool:
        """Close an idle session of another pool, if one may be closed, and free its slot."""
        victims = [one for one in self._held if one is not taker and self._may_move(one, taker, now)]
        if not victims:
            return False
        victim = max(victims, key=lambda one: (self._held[one], -one.idle_since))
        victim.close_oldest_idle()
        self._drop(victim)
        return True

    def _may_move(self, holder: PoolMember, taker: PoolMember, now: float) -> bool:
        if holder.idle_since == _NEVER:
            return False
        if taker not in self._held or self._evens_out(taker, holder):
            return True
        unused = now - holder.idle_since
        if self._held[holder] > 1:
            return unused >= _UNUSED
        return unused >= _RECENT and 2 * self._held[taker] < self.ceiling.now(now)

    def _evens_out(self, taker: PoolMember, holder: PoolMember) -> bool:
        return self.held(taker) + 1 < self.held(holder)

    def _reclaim(self, now: float) -> None:
        """Close a session whose answer nobody awaits, one for each pool that waits for a slot."""
        if now - self._looked_at >= _LOOK_FOR_CLIENTS:
            self._looked_at = now
            for pool in list(self._held):
                pool.close_disconnected()
        if len(self._reclaimed) < len(self._first) + len(self._then) and self.abandoned:
            self._close_abandoned()

    # Giving back -----------------------------------------------------------------------------------------------------

    def opened(self, seconds: float) -> None:
        """A session was opened in a slot that was taken, in so many seconds."""
        self.gate.under_way -= 1
        self.gate.succeeded(seconds)
        self.ceiling.opened(self.used - self.gate.under_way)
        self.serve()

    def not_opened(self, pool: PoolMember) -> None:
        """No session could be opened in a slot that was taken: the slot is free again."""
        self.gate.under_way -= 1
        self._drop(pool, had_session=False)
        self.serve()

    def abandon(self, session: "Abandoned", pool: PoolMember) -> None:
        """Nobody awaits this session's answer: keep it while its slot is not needed, and while there are few such."""
        session.is_abandoned = True
        self.abandoned[session] = pool
        if len(self.abandoned) > max(1, self.limit // _ABANDONED):
            self._close_abandoned()
        self.serve()

    def _close_abandoned(self) -> None:
        session, _tenant = self.abandoned.popitem()  # the oldest ones show soonest if the backend is slow or dead
        self._reclaimed.add(session)
        session.close()

    def fail_waiting(self, error: BackendError) -> None:
        """No pool can open a session for now: let waiting requests try elsewhere."""
        for queue in (self._first, self._then):
            for pool in list(queue):
                pool.fail_waiters(error)

    def returned(self, session: "Abandoned") -> None:
        """An abandoned session has come back from its exchange."""
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
            self._without[pool] = now = trio.current_time()
            while now - next(iter(self._without.values())) > _RECENT:
                self._without.popitem(last=False)
        if pool in self._then:
            del self._then[pool]
            self._first[pool] = None

    def should_yield(self, holder: PoolMember) -> bool:
        """Return True if a session that comes back should be closed: for another pool, or since there are too many."""
        if not self._first and not self._then and self.ceiling.value is None:
            return self.used > self.ceiling.limit
        now = trio.current_time()
        free = self.ceiling.now(now) - self.used
        if free < 0:
            return True
        if not self.gate.has_room(now):
            return False
        if free == 0 and self._is_owed(self._first_without(), holder):
            return True
        return free <= self._reserve(now) and self._is_owed(self._fewest(), holder)

    def _is_owed(self, pool: PoolMember | None, holder: PoolMember) -> bool:
        if pool is None or pool is holder:
            return False
        if self._evens_out(pool, holder):
            return True
        long_ago = trio.current_time() - _PATIENCE
        return pool not in self._held and pool.waiting_since < min(long_ago, holder.waiting_since)


class Abandoned(Protocol):
    """A busy session whose answer is awaited by nobody."""

    is_abandoned: bool

    def close(self) -> None:
        """Close it at once; its pool gets it back soon after."""
