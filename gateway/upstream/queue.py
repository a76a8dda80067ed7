"""The queue of a pool: fair between principals, in turn within each.

A principal that sends a thousand requests at once waits for its own; another that sends one is next but one.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Hashable
from itertools import islice
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """A waiting request, as the queue sees it."""

    @property
    def principal(self) -> Hashable:
        """The principal whose turn it uses."""

    @property
    def since(self) -> float:
        """Time, in trio's seconds, at which it began to wait."""


_T = TypeVar("_T", bound=Waiting)


class FairQueue(Generic[_T]):
    """Takes turns between principals. Every call takes constant time, but for ``longest`` (one step a principal)."""

    def __init__(self) -> None:
        self._turns: OrderedDict[Hashable, deque[_T]] = OrderedDict()
        self._all: dict[_T, None] = {}  # in the order of arrival

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self._all

    def __repr__(self) -> str:
        return f"<FairQueue {len(self._all)} waiting, of {len(self._turns)} principals>"

    def append(self, waiter: _T) -> None:
        """Add a waiter."""
        self._turns.setdefault(waiter.principal, deque()).append(waiter)
        self._all[waiter] = None

    def popleft(self, passed_over: Collection[Hashable] = ()) -> _T:
        """Remove and return the waiter whose principal has its turn; the principal's next turn comes after all others.

        Principals in ``passed_over``, which are few, have a turn only if no other waits.
        """
        first = next(iter(self._turns))
        principal = next((one for one in self._turns if one not in passed_over), first) if passed_over else first
        waiters = self._turns[principal]
        waiter = waiters.popleft()
        self._turns.move_to_end(principal)
        self._left(waiter, waiters)
        return waiter

    def remove(self, waiter: _T) -> None:
        """Remove a waiter that leaves without a turn."""
        waiters = self._turns[waiter.principal]
        waiters.remove(waiter)
        self._left(waiter, waiters)

    def _left(self, waiter: _T, waiters: deque[_T]) -> None:
        del self._all[waiter]
        if not waiters:
            del self._turns[waiter.principal]

    def since(self, place: int) -> float:
        """Return the time at which the waiter at this place, by arrival, began to wait; infinity beyond the end."""
        return next((waiter.since for waiter in islice(self._all, place, None)), float("inf"))

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
        """Return the principals of which requests wait."""
        return self._turns.keys()

    def oldest(self) -> _T:
        """Return the waiter that has waited longest."""
        return next(iter(self._all))

    def newest_of_the_longest(self, newcomer: Hashable) -> _T | None:
        """Return the waiter that makes room for a newcomer in a full queue: the last of the principal that waits most.

        None unless that principal has at least two more waiters than the newcomer's principal.
        """
        longest = max(self._turns.values(), key=len)
        own = self._turns.get(newcomer, ())
        return longest[-1] if len(longest) > len(own) + 1 else None
