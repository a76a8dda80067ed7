"""Idle limit: learns how long a key manager leaves a session open that is idle, from the sessions that it closes.

Key managers close idle sessions, often after 30 s and without documenting it. A request that is sent in that moment is
lost, so that the pool must close idle sessions earlier than the key manager.
"""

from collections import deque
from typing import Final

_EVIDENCE: Final = 3  # sessions closed at about the same age
_APART: Final = 1.0  # s between them: a restart closes all sessions at once, and shows no limit
_TOGETHER: Final = 900.0  # s within which they must fall: restarts a day or a week apart show no limit
_ALIKE: Final = 0.15  # of the age: how far their ages may differ
_MARGIN: Final = 0.8  # of the age: the limit that the pool then keeps
_LEAST: Final = 5.0  # s; a lower limit would cost more handshakes than lost requests
_FORGET_AFTER: Final = 3600.0  # s until a learned limit is dropped


class IdleLimit:
    """``configured`` is the idle timeout of the settings, in seconds; ``effective`` the one that the pool keeps."""

    def __init__(self, configured: float) -> None:
        self.configured = configured
        self._learned: float | None = None
        self._learned_at = 0.0
        self._closes: deque[tuple[float, float]] = deque(maxlen=_EVIDENCE)  # time, and seconds of idleness

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
        """Count a session that the key manager closed after so many seconds. Return True if a new limit was learned."""
        if self._closes and now - self._closes[-1][0] < _APART:
            self._closes.clear()  # several at once: a restart or a network fault, not a limit
            self._closes.append((now, float("inf")))
            return False
        self._closes.append((now, idle_for))
        # Sessions are idle for ``configured`` at most; three, opened one after the other, take three times that.
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
        """Drop a limit that was learned an hour ago or earlier. Return True if there was such a limit."""
        if self._learned is None or now - self._learned_at < _FORGET_AFTER:
            return False
        self._learned = None
        return True
