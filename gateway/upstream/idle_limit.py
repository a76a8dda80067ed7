"""The learned idle limit: how long a key manager lets a session be idle, as its own behaviour tells.

Key managers close idle sessions, often after 30 s and without saying so in their documentation. A request that is sent
just then is lost, so that the pool must let go first.
"""

from collections import deque
from typing import Final

_EVIDENCE: Final = 3  # sessions closed at about the same age
_APART: Final = 1.0  # s between them: a restart closes all at once, and teaches nothing
_TOGETHER: Final = 900.0  # s within which they must fall: restarts a day or a week apart teach nothing
_ALIKE: Final = 0.15  # of the age: how far their ages may differ
_MARGIN: Final = 0.8  # of the age: where the pool stays
_LEAST: Final = 5.0  # s; below that the cure would cost more than the illness
_FORGET_AFTER: Final = 3600.0  # s until what was learned is doubted


class IdleLimit:
    """``configured`` is the idle timeout of the settings, in seconds; ``effective`` what the pool should keep."""

    def __init__(self, configured: float) -> None:
        self.configured = configured
        self._learned: float | None = None
        self._learned_at = 0.0
        self._closes: deque[tuple[float, float]] = deque(maxlen=_EVIDENCE)

    def __repr__(self) -> str:
        return f"<IdleLimit {self.effective:g} s ({self.source})>"

    @property
    def effective(self) -> float:
        """Seconds for which a session may be idle."""
        return self.configured if self._learned is None else min(self.configured, self._learned)

    @property
    def source(self) -> str:
        """``config`` or ``learned``."""
        return "config" if self.effective == self.configured else "learned"

    def closed_by_peer(self, idle_for: float, now: float) -> bool:
        """The key manager closed a session that had been idle for so long. Returns whether a new limit was learned."""
        if self._closes and now - self._closes[-1][0] < _APART:
            self._closes.clear()  # several at once: an event on the other side, not a limit
            self._closes.append((now, float("inf")))
            return False
        self._closes.append((now, idle_for))
        # a session is idle for ``configured`` at the most: opened again each time, one shows a limit in thrice that
        while now - self._closes[0][0] > max(_TOGETHER, 3 * self.configured):
            self._closes.popleft()
        ages = [age for _, age in self._closes]
        if len(ages) < _EVIDENCE or max(ages) > min(ages) * (1 + _ALIKE):
            return False
        limit = max(_LEAST, min(ages) * _MARGIN)
        self._closes.clear()
        if limit >= self.effective:
            return False
        self._learned = limit
        self._learned_at = now
        return True

    def forget(self, now: float) -> bool:
        """Unlearn what was learned long ago. Returns whether there was anything to unlearn."""
        if self._learned is None or now - self._learned_at < _FORGET_AFTER:
            return False
        self._learned = None
        return True
