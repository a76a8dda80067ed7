"""Slots: how many sessions one backend may have, over all the credentials that share it.

A place moves from one pool to another only where that evens out what they hold, where nobody has used it for a while,
or to a pool that has none: a move costs a handshake, and two busy pools must not take places from each other for ever.
"""

from typing import Final, Protocol

import trio

_PATIENCE: Final = 0.25  # s that a pool without a session waits before it is given one that is in use
_UNUSED: Final = 1.0  # s after which an idle session's place may go to any pool that needs one


class Tenant(Protocol):
    """A pool, as its backend's other pools see it."""

    @property
    def waiting_since(self) -> float:
        """When its first waiter began to wait for whom a session should be opened, and is not; or infinity."""

    @property
    def is_failing(self) -> bool:
        """Whether its last attempt to open a session failed."""

    def close_oldest_idle(self, since: float) -> bool:
        """Close the session that has been idle longest, if it has been since then; its place is the caller's."""

    def open_if_wanted(self) -> None:
        """Begin to open what waiters wait for."""


class Slots:
    """A backend's places for sessions, open or being opened. A pool takes one before it opens a session."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0  # places taken: the sum of what is held, which every request asks for
        self._held: dict[Tenant, int] = {}

    def __repr__(self) -> str:
        return f"<Slots {self.used} of {self.limit}>"

    def add(self, tenant: Tenant) -> None:
        """Let a pool take part."""
        self._held[tenant] = 0

    def has_room(self) -> bool:
        """Whether a place could be taken without closing anything."""
        return self.used < self.limit

    def take(self, taker: Tenant) -> bool:
        """Take a place for a pool: a free one, or that of another pool's idle session."""
        if not self.has_room() and not self._evict_for(taker):
            return False
        self._held[taker] += 1
        self.used += 1
        return True

    def _evict_for(self, taker: Tenant) -> bool:
        """Close an idle session of another pool, of the one that holds most if it may be; its place is free then."""
        unused = trio.current_time() - _UNUSED
        others = sorted((tenant for tenant in self._held if tenant is not taker), key=self._held.__getitem__)
        for other in reversed(others):
            may_move = not self._held[taker] or self._would_even_out(taker, other)
            if other.close_oldest_idle(float("inf") if may_move else unused):
                self._held[other] -= 1
                self.used -= 1
                return True
        return False

    def give_back(self, holder: Tenant) -> None:
        """Free a place for a waiter: of a pool that holds fewest, and of those the one that has waited longest."""
        self._held[holder] -= 1
        self.used -= 1
        for tenant in sorted(self._held, key=lambda each: (self._held[each], each.waiting_since)):
            if not self.has_room():
                break
            tenant.open_if_wanted()

    def owed_by(self, holder: Tenant) -> bool:
        """Whether a session that comes back should rather make place: for another pool's waiter, or a lower limit."""
        if self.used < self.limit:
            return False
        if self.used > self.limit:
            return True
        return any(self._is_due(tenant, holder) for tenant in self._held if tenant is not holder)

    def _would_even_out(self, taker: Tenant, holder: Tenant) -> bool:
        return self._held[taker] + 1 < self._held[holder]

    def _is_due(self, tenant: Tenant, holder: Tenant) -> bool:
        since = tenant.waiting_since
        if since == float("inf"):
            return False
        if self._would_even_out(tenant, holder) and not tenant.is_failing:
            return True
        long_ago = trio.current_time() - _PATIENCE
        return self._held[tenant] == 0 and since < min(long_ago, holder.waiting_since)
