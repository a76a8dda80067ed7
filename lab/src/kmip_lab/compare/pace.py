"""The schedule of an even load: all clients together send requests at one rate, whatever the proxy can do."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush


class LoadPace:
    """Clients 0 to ``clients`` - 1, evenly staggered, who together send ``rate`` requests a second from ``began`` on.

    Times are in seconds, of any clock. A client has one Get under way at most: a Get that is due before the answer to
    the last one waits for that answer, and is not left out. The schedule itself never moves.
    """

    def __init__(self, rate: float, clients: int, began: float) -> None:
        self._interval = clients / rate
        self._due = [began + number / rate for number in range(clients)]
        self._waiting: list[tuple[float, int]] = []

    def ready(self, client: int, now: float) -> float | None:
        """Note that a client could send now. Return when its request was due; None if ``due`` will yield it later."""
        due = self._due[client]
        if due > now:
            heappush(self._waiting, (due, client))
            return None
        self._due[client] += self._interval
        return due

    def due(self, now: float) -> Iterator[int]:
        """Yield the waiting clients whose request is due, and remove each from those that wait."""
        while self._waiting and self._waiting[0][0] <= now:
            client = heappop(self._waiting)[1]
            self._due[client] += self._interval
            yield client

    def delay(self, now: float, most: float) -> float:
        """Return the seconds until a waiting client's request is due, ``most`` at the most."""
        return max(0.0, min(most, self._waiting[0][0] - now)) if self._waiting else most

    def leave(self, client: int) -> None:
        """Remove a client that lost its connection, until it is ready again."""
        self._waiting = [each for each in self._waiting if each[1] != client]
        heapify(self._waiting)
