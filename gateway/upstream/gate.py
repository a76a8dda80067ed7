"""Gate: bounds the handshakes with one backend that are under way, over all of its pools.

Handshakes cost a key manager more than anything else, and an HSM makes them one by one. The bound grows by one with
each success, as long as handshakes are quick, and is halved by each failure. After a failure no session is opened for a
pause, which doubles while failures go on. An answered health check ends the pause.
"""

import random
from typing import Final

from gateway.config import DeadlinesConfig
from gateway.errors import BackendError

_INITIAL: Final = 4  # handshakes at once
_MOST: Final = 16  # handshakes at once
_SLOW: Final = 0.25  # of the connect deadline: slower handshakes do not raise the bound
_FIRST_PAUSE: Final = 0.1  # s
_LONGEST_PAUSE: Final = 2.0  # s; a connection attempt in that time costs no key manager anything


class Pause:
    """A time without attempts that doubles with each failure, from ``first`` to ``longest`` seconds, with jitter."""

    __slots__ = ("_first", "_longest", "_next", "until")

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first
        self.until = float("-inf")

    def __repr__(self) -> str:
        return f"<Pause until {self.until:g}, the next one {self._next:g} s>"

    def is_over(self, now: float) -> bool:
        """Return True if an attempt may be made."""
        return now >= self.until

    def failed(self, now: float) -> None:
        """Begin the next pause. Does nothing during a pause: attempts that were under way together fail together."""
        if now >= self.until:
            self.until = now + min(self._next, self._longest) * random.uniform(0.75, 1)  # noqa: S311 - spreads load
            self._next = min(self._next * 2, self._longest)

    def reset(self) -> None:
        """End the pause; the next one is the shortest again."""
        self.until = float("-inf")
        self._next = self._first


class Gate:
    """Counts handshakes with one backend. ``deadlines.connect`` bounds each of them, in seconds.

    ``failure`` is the last handshake's error, if it concerns every credential; ``failing_since`` the time of the first
    such error since a success.
    """

    def __init__(self, deadlines: DeadlinesConfig | None = None) -> None:
        self.limit = _INITIAL
        self.under_way = 0
        self.failure: BackendError | None = None
        self.failing_since = float("inf")
        self.pause = Pause(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._deadlines = deadlines or DeadlinesConfig()

    def __repr__(self) -> str:
        return f"<Gate {self.under_way} of {self.limit}>"

    @property
    def _slow(self) -> float:
        return self._deadlines.connect * _SLOW

    def has_room(self, now: float) -> bool:
        """Return True if a handshake may begin."""
        return now >= self.pause.until and self.under_way < (self.limit if self.failure is None else 1)

    def succeeded(self, seconds: float) -> None:
        """Count a handshake that succeeded in so many seconds. The caller decrements ``under_way``."""
        if seconds <= self._slow:
            self.limit = min(self.limit + 1, _MOST)
        self.reached()

    def reached(self) -> None:
        """End the failure and the pause: the backend has answered a handshake or a health check."""
        self.failure = None
        self.failing_since = float("inf")
        self.pause.reset()

    def refused(self) -> None:
        """Count a handshake that failed for a reason that concerns one credential only."""
        self.limit = max(1, self.limit - 1)

    def failed(self, error: BackendError, now: float) -> None:
        """Count a handshake that failed for a reason that concerns every credential."""
        if self.pause.is_over(now):
            self.limit = max(1, self.limit // 2)
        if self.failure is None:
            self.failing_since = now
        self.failure = error
        self.pause.failed(now)

    def wait_until(self, then: float) -> None:
        """Let no handshake begin before this time: this process lacks descriptors or memory."""
        self.pause.until = max(self.pause.until, then)
