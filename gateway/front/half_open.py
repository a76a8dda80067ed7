"""The bound on half-open connections: their TLS handshake is not finished, so that their client is unknown.

At the bound, each new connection evicts an older connection of the address that has the most: the oldest that has not
sent its first TLS record, or else the oldest that has not continued for a second after the gateway's answer.
"""

import socket
from collections.abc import Callable
from itertools import islice
from typing import Final

from gateway.front.sources import HalfOpen, Source

_GRACE: Final = 1.0  # s for a client to continue after the gateway's answer; a shorter time would end slow links
_EXAMINED: Final = 8  # connections that are examined at most for each eviction


class HalfOpenConnections:
    """All half-open connections, over all listeners, at most ``max_half_open``.

    ``has_hello`` returns True if the first TLS record has arrived on a socket: then the connection waits for the
    gateway, not for its client, and is not evicted.
    """

    def __init__(self, max_half_open: int, has_hello: Callable[[socket.socket], bool]) -> None:
        self.max_half_open = max_half_open
        self._has_hello = has_hello
        self._number = 0
        self._by_number: dict[int, dict[Source, None]] = {}  # addresses by their number of connections
        self._largest = 0  # upper bound of the keys of ``_by_number``

    def __len__(self) -> int:
        return self._number

    def __repr__(self) -> str:
        return f"<HalfOpenConnections {self._number} of {self.max_half_open}>"

    def add(self, half_open: HalfOpen) -> None:
        """Count a connection; ``remove`` must follow."""
        half_open.source.silent[half_open] = None
        self._recount(half_open.source, 1)

    def remove(self, half_open: HalfOpen) -> None:
        """Stop counting a connection. Does nothing if the connection was removed already, by an eviction."""
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
        """Evict a connection of the address that has the most, for a new connection of ``newcomer``.

        Return False if no connection may be closed. Connections of an address that has more than the newcomer's get no
        second to continue.
        """
        while self._largest and self._largest not in self._by_number:
            self._largest -= 1
        sources = self._by_number.get(self._largest)
        if sources is None:
            return False
        grace = 0.0 if self._largest > newcomer.half_open + 1 else _GRACE
        return self._evict(next(iter(sources)), now - grace)

    def evict_one_of(self, source: Source, now: float) -> bool:
        """Evict the oldest connection of an address for its newest. Return False if no connection may be closed."""
        return self._evict(source, now - _GRACE)

    def _evict(self, source: Source, answered_before: float) -> bool:
        victim = self._victim(source, answered_before)
        if victim is None:
            return False
        self.remove(victim)
        victim.evict()
        return True

    def _victim(self, source: Source, answered_before: float) -> HalfOpen | None:
        for half_open in islice(source.silent, _EXAMINED):
            if not self._has_hello(half_open.sock):
                return half_open
        oldest = next(iter(source.answered), None)
        if oldest is not None and oldest.answered_at <= answered_before:
            return oldest
        return None

    def _recount(self, source: Source, change: int) -> None:
        """Move an address to its new number of connections, after a change by one."""
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
