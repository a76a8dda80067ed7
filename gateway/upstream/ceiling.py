"""Ceiling: learns how many sessions a backend allows, if that is less than configured.

A handshake that fails while other sessions of the backend answer is a sign. Two signs in a row set the ceiling to the
number of sessions that were open. After 60 s, and then after pauses that double up to 600 s, one session more is tried;
if it opens, the ceiling rises.
"""

from typing import Final

from gateway.upstream.gate import Pause

_SIGNS: Final = 2  # handshakes refused in a row, beside sessions that answer, until the ceiling is set
_DOUBTED_AFTER: Final = (60.0, 600.0)  # s until one session more is tried: at first, and at most


class Ceiling:
    """The number of sessions that may be open: ``limit``, which may change, or the learned ``value`` if less."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._signs = 0
        self._sign_at = float("-inf")
        self._pause = Pause(*_DOUBTED_AFTER)
        self.value: int | None = None

    def __repr__(self) -> str:
        return f"<Ceiling {self.value} of {self.limit}>"

    def now(self, now: float) -> int:
        """Return how many sessions may be open; one more than the learned value if it is time to try."""
        if self.value is None:
            return self.limit
        return min(self.limit, self.value + self._pause.is_over(now))

    def opened(self, sessions: int) -> None:
        """Count a session that opened; ``sessions`` are open now."""
        self._signs = 0
        if self.value is not None and sessions > self.value:
            self.value = sessions if sessions < self.limit else None
            self._pause.reset()

    def refused(self, sessions: int, began: float, now: float) -> bool:
        """Count a handshake that failed while ``sessions`` answered. Return True if a new ceiling was learned.

        Handshakes that were under way together fail together: they are one sign.
        """
        if self.value is not None and sessions >= self.value:
            self._pause.failed(now)
            return False
        if began < self._sign_at or sessions >= self.limit:
            return False
        self._signs += 1
        self._sign_at = now
        if self._signs < _SIGNS:
            return False
        self._signs = 0
        self.value = max(1, sessions)
        self._pause.failed(now)
        return True
