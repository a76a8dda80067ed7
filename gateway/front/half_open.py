"""The bound on half-open connections: their TLS handshake is not finished, so that nobody knows yet whose they are.

Beyond the bound, one of the address that has the most is closed for each new one: the oldest that has not even sent the
beginning of a handshake, or else the oldest that has not gone on for a while after the gateway's answer.
"""

import socket
from collections.abc import Callable
from itertools import islice
from typing import Final

from gateway.front.sources import HalfOpen, Source

_GRACE: Final = 1.0  # s for a client to go on once the gateway has begun to answer; less would end slow links
_LOOKED_AT: Final = 8  # connections that are examined for one that may be closed


class HalfOpenConnections:
    """All half-open connections, over all listeners, at most ``most``.

    ``has_spoken`` returns True if the first TLS record has arrived on a socket: then the gateway is late, and not the
    client.
    """

    def __init__(self, most: int, has_spoken: Callable[[socket.socket], bool]) -> None:
        self.most = most
        self._has_spoken = has_spoken
        self._number = 0
        self._by_number: dict[int, dict[Source, None]] = {}  # the addresses that have so many, for ``evict_one``
        self._largest = 0  # no address has more; it may be too high

    def __len__(self) -> int:
        return self._number

    def __repr__(self) -> str:
        return f"<HalfOpenConnections {self._number} of {self.most}>"

    def add(self, half_open: HalfOpen) -> None:
        """Count a connection; ``remove`` must follow."""
        half_open.source.silent[half_open] = None
        self._recount(half_open.source, 1)

    def remove(self, half_open: HalfOpen) -> None:
        """Count a connection no longer. Does nothing if that was done already, because it was evicted."""
        source = half_open.source
        for part in (source.silent, source.answered):
            if half_open in part:
                del part[half_open]
                self._recount(source, -1)

    def answer(self, half_open: HalfOpen, now: float) -> None:
        """Note that the first TLS record has arrived, and that the gateway begins to answer."""
        source = half_open.source
        half_open.answered_at = now
        if half_open in source.silent:
            del source.silent[half_open]
            source.answered[half_open] = None

    def evict_one(self, newcomer: Source, now: float) -> bool:
        """Make room for a connection of any address, at the cost of the one that has the most.

        Returns False if none may be closed. Who has more than the newcomer has no time of grace.
        """
        while self._largest and self._largest not in self._by_number:
            self._largest -= 1
        sources = self._by_number.get(self._largest)
        if sources is None:
            return False
        grace = 0.0 if self._largest > newcomer.half_open + 1 else _GRACE
        return self._evict(next(iter(sources)), now - grace)

    def evict_one_of(self, source: Source, now: float) -> bool:
        """Make room for one connection of an address, at the cost of its own oldest. False if none may be closed."""
        return self._evict(source, now - _GRACE)

    def _evict(self, source: Source, answered_before: float) -> bool:
        victim = self._victim(source, answered_before)
        if victim is None:
            return False
        self.remove(victim)
        victim.evict()
        return True

    def _victim(self, source: Source, answered_before: float) -> HalfOpen | None:
        for half_open in islice(source.silent, _LOOKED_AT):
            if not self._has_spoken(half_open.sock):
                return half_open
        oldest = next(iter(source.answered), None)
        if oldest is not None and oldest.answered_at <= answered_before:
            return oldest
        return None

    def _recount(self, source: Source, change: int) -> None:
        """Note that the number of an address has changed by one."""
        self._number += change
        number = source.half_open
        before = number - change
        if before:
            sources = self._by_number[before]
            del sources[source]
            if not sources:
                del self._by_number[before]
        if number:
            self._by_number.setdefault(number, {})[source] = None
            self._largest = max(self._largest, number)
