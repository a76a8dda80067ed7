"""Reserve: leaves the last slots of a backend to principals that do not hold half of them already.

The rule in numbers, for a backend with ``limit`` slots:

* It applies to a limit of 8 or more, while at most ``limit // 8`` slots (at least one) are free.
* A principal is greedy if it waits, and holds ``limit // 2`` slots or more. If it is the only principal that waits, the
  sessions that are being opened count as its own.
* No session is opened for a greedy principal if a different principal waits, or was lent a session within 60 s.
* A session that has just been opened goes to a greedy principal only if no other principal waits.

Slots does the same between pools, that is, between identities.
"""

from collections import Counter
from collections.abc import Collection, Hashable
from typing import Final

import trio

from gateway.upstream.session import Session
from gateway.upstream.slots import Slots
from gateway.upstream.waiting import Waiters

_RECENT: Final = 60.0  # s for which a principal counts as one that may send the next request
_PRINCIPALS: Final = 1000  # principals that are remembered for that
_RESERVE: Final = 8  # the inverse of the share of slots that is left to other principals
_GREEDY: Final = 2  # the inverse of the share of slots that makes a principal greedy


class Reserve:
    """Finds the greedy principals of one pool, from its waiting requests and its busy sessions."""

    def __init__(self, slots: Slots, waiters: Waiters, busy: Collection[Session]) -> None:
        self._slots = slots
        self._waiters = waiters
        self._busy = busy
        self._seen: dict[Hashable, float] = {}  # principals, and the time of each one's latest ``note``, in that order

    def __repr__(self) -> str:
        return f"<Reserve for {len(self._seen)} principals>"

    def note(self, principal: Hashable) -> None:
        """Note a principal that is lent a session which a different principal used before.

        Beyond 1,000 principals, the principal whose latest note is the oldest is forgotten.
        """
        self._seen.pop(principal, None)  # else the principal would keep the place of its first note
        self._seen[principal] = trio.current_time()
        if len(self._seen) > _PRINCIPALS:
            del self._seen[next(iter(self._seen))]

    def greedy(self, opening: int) -> list[Hashable]:
        """Return the greedy principals, while ``opening`` sessions are being opened; [] if the rule does not apply."""
        limit = self._slots.limit
        if limit < _RESERVE or limit - self._slots.used > max(1, limit // _RESERVE):
            return []
        waiting = self._waiters.principals()
        opening_for_one = opening if len(waiting) == 1 else 0
        if len(self._busy) + opening_for_one < limit // _GREEDY:
            return []
        held = Counter(session.principal for session in self._busy)
        if opening_for_one:
            held.update({next(iter(waiting)): opening_for_one})
        return [name for name, number in held.items() if number >= limit // _GREEDY and self._waiters.has(name)]

    def passed_over(self, now: float, opening: int) -> int:
        """Return the number of waiting requests for which no session is opened, since their principals are greedy."""
        greedy = self.greedy(opening)
        if not greedy:
            return 0
        is_alone = len(greedy) == len(self._waiters.principals())
        if is_alone and not any(now - seen <= _RECENT and name not in greedy for name, seen in self._seen.items()):
            return 0
        return sum(map(self._waiters.count, greedy))
