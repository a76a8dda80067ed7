"""Slots: how many sessions one backend may have, over all the credentials that share it.

A place moves from one pool to another only where that evens out what they hold, or where a pool without any has waited
for long: a move costs a handshake, and two busy pools must not take places from each other for ever.
"""

from typing import Final, Protocol

import trio

_PATIENCE: Final = 0.25  # s that a pool without a session waits before it is given another's


class Tenant(Protocol):
    """A pool, as its backend's other pools see it."""

    @property
    def waiting_since(self) -> float:
        """When its first waiter for whom nothing is being opened began to wait, in trio's time; or infinity."""

    def close_oldest_idle(self) -> bool:
        """Close the session that has been idle longest; False without one."""

    def open_if_wanted(self) -> None:
        """Begin to open what waiters wait for."""


class Slots:
    """A backend's places for sessions, open or being opened. A pool takes one before it opens a session."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[Tenant, int] = {}

    def __repr__(self) -> str:
        return f"<Slots {self.used} of {self.limit}>"

    @property
    def used(self) -> int:
        """Places taken."""
        return sum(self._held.values())

    def add(self, tenant: Tenant) -> None:
        """Let a pool take part."""
        self._held[tenant] = 0

    def has_room(self) -> bool:
        """Whether a place could be taken without closing anything."""
        return self.used < self.limit

    def take(self, taker: Tenant) -> bool:
        """Take a place for a pool, where all are taken that of an idle session of the pool that holds most."""
        if not self.has_room():
            others = sorted((tenant for tenant in self._held if tenant is not taker), key=self._held.__getitem__)
            if not any(tenant.close_oldest_idle() for tenant in reversed(others)):
                return False
        self._held[taker] += 1
        return True

    def give_back(self, holder: Tenant) -> None:
        """Free a place, and let the pool whose waiter has waited longest have it."""
        self._held[holder] -= 1
        first = min(self._held, key=lambda tenant: tenant.waiting_since)
        if first.waiting_since < float("inf"):
            first.open_if_wanted()

    def owed_by(self, holder: Tenant) -> bool:
        """Whether a session that comes back should rather make place for another pool's waiter."""
        if self.has_room():
            return False
        return any(self._is_due(tenant, holder) for tenant in self._held if tenant is not holder)

    def _is_due(self, tenant: Tenant, holder: Tenant) -> bool:
        since = tenant.waiting_since
        if since == float("inf"):
            return False
        if self._held[tenant] + 1 < self._held[holder]:
            return True
        long_ago = trio.current_time() - _PATIENCE
        return self._held[tenant] == 0 and since < min(long_ago, holder.waiting_since)
