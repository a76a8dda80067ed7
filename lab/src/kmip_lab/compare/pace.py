"""The pace of an even load: when each client asks next, at one rate for all, whatever the proxy can do."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush


class Pace:
    """Clients 0 to ``clients`` - 1, evenly staggered, who together ask ``rate`` times a second from ``began`` on.

    Times are in seconds, of any clock. A client has one Get under way at most: what is due before the last answer is
    there waits for it, and is not left out. The schedule itself never moves.
    """

    def __init__(self, rate: float, clients: int, began: float) -> None:
        self._interval = clients / rate
        self._due = [began + number / rate for number in range(clients)]
        self._waiting: list[tuple[float, int]] = []

    def ready(self, client: int, now: float) -> float | None:
        """This client could ask: since when it should have, or None where it is to wait for ``due`` to name it."""
        due = self._due[client]
        if due > now:
            heappush(self._waiting, (due, client))
            return None
        self._due[client] += self._interval
        return due

    def due(self, now: float) -> Iterator[int]:
        """Those whose time to ask has come; none of them waits any longer."""
        while self._waiting and self._waiting[0][0] <= now:
            client = heappop(self._waiting)[1]
            self._due[client] += self._interval
            yield client

    def delay(self, now: float, most: float) -> float:
        """Seconds until somebody's time comes, or the most that the caller would wait."""
        return max(0.0, min(most, self._waiting[0][0] - now)) if self._waiting else most

    def leave(self, client: int) -> None:
        """It lost its connection, and can't ask until it is ready again."""
        self._waiting = [each for each in self._waiting if each[1] != client]
        heapify(self._waiting)
