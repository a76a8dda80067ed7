"""Fair queue: principals take turns, and each principal's requests are served in the order of arrival.

A principal that sends a thousand requests at once delays only itself: the next request of a different principal is
served after at most one of the thousand.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Hashable
from itertools import islice
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """The part of a waiting request that the queue uses."""

    @property
    def principal(self) -> Hashable:
        """The principal that sent the request."""

    @property
    def since(self) -> float:
        """Time at which the request began to wait, in trio's seconds."""


_T = TypeVar("_T", bound=Waiting)


class FairQueue(Generic[_T]):
    """Waiters, by principal and by arrival.

    Each call takes constant time, except for ``newest_of_the_longest`` (one step per principal), ``remove`` (one step
    per waiter of the principal), ``since`` (one step per waiter before the index) and ``all``.
    """

    def __init__(self) -> None:
        self._turns: OrderedDict[Hashable, deque[_T]] = OrderedDict()
        self._all: dict[_T, None] = {}  # in the order of arrival

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self._all

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._all)} waiting, of {len(self._turns)} principals>"

    def append(self, waiter: _T) -> None:
        """Add a waiter."""
        self._turns.setdefault(waiter.principal, deque()).append(waiter)
        self._all[waiter] = None

    def popleft(self, passed_over: Collection[Hashable] = ()) -> _T:
        """Remove and return the first waiter of the principal whose turn it is; that principal goes to the end.

        Principals in ``passed_over``, which are few, get a turn only if no other principal waits.
        """
        first = next(iter(self._turns))
        if passed_over:
            first = next((principal for principal in self._turns if principal not in passed_over), first)
        waiters = self._turns[first]
        waiter = waiters.popleft()
        self._turns.move_to_end(first)
        self._removed(waiter, waiters)
        return waiter

    def remove(self, waiter: _T) -> None:
        """Remove a waiter without a turn."""
        waiters = self._turns[waiter.principal]
        waiters.remove(waiter)
        self._removed(waiter, waiters)

    def _removed(self, waiter: _T, waiters: deque[_T]) -> None:
        del self._all[waiter]
        if not waiters:
            del self._turns[waiter.principal]

    def since(self, index: int) -> float:
        """Return the time since which the waiter at this index, by arrival, has waited; infinity beyond the end."""
        return next((waiter.since for waiter in islice(self._all, index, None)), float("inf"))

    def all(self) -> list[_T]:
        """Return all waiters, in the order of arrival."""
        return list(self._all)

    def has(self, principal: Hashable) -> bool:
        """Return True if a request of this principal waits."""
        return principal in self._turns

    def count(self, principal: Hashable) -> int:
        """Return how many requests of this principal wait."""
        return len(self._turns.get(principal, ()))

    def principals(self) -> Collection[Hashable]:
        """Return the principals of the waiting requests."""
        return self._turns.keys()

    def longest_wait(self, now: float) -> float:
        """Return how long the waiter that has waited longest has waited, in seconds; 0 if none waits."""
        return max(0.0, now - self.since(0)) if self._all else 0.0

    def oldest(self) -> _T:
        """Return the waiter that has waited longest."""
        return next(iter(self._all))

    def newest_of_the_longest(self, newcomer: Hashable) -> _T | None:
        """Return the waiter to reject if the queue is full and the newcomer should stay.

        That is the newest waiter of the principal with most waiters. None if that principal does not have at least two
        more waiters than the newcomer's principal: then the newcomer is rejected.
        """
        longest = max(self._turns.values(), key=len)
        own = self._turns.get(newcomer, ())
        return longest[-1] if len(longest) > len(own) + 1 else None
