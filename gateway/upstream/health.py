"""Health: the state of a backend by its health checks; several equal verdicts in a row change the state."""

from enum import Enum
from typing import Final

from gateway.config import HealthConfig


class Verdict(Enum):
    """Result of a health check."""

    SERVES = "serves"
    STANDBY = "standby"  # answers, but is in standby
    FAILS = "fails"


class HealthState(Enum):
    """State of a backend by its health checks."""

    UP = "up"
    STANDBY = "standby"
    DOWN = "down"


class Health:
    """The state of a backend: ``rise`` successful checks in a row make it UP, ``fall`` failed checks make it DOWN.

    A backend begins as UP, so that the gateway's start does not wait for health checks; the first check counts at once.
    ``reason`` (a short word) and ``detail`` (a sentence for the log) tell why the last check did not succeed; both are
    empty if it did.
    """

    def __init__(self, settings: HealthConfig | None = None) -> None:
        self._settings = settings or HealthConfig()
        self.state = HealthState.UP
        self.reason = ""
        self.detail = ""
        self._verdict: Verdict | None = None
        self._in_a_row = 0

    def __repr__(self) -> str:
        return (
            f"<Health {self.state.value}: {self._verdict.value if self._verdict else 'not checked'} x{self._in_a_row}>"
        )

    @property
    def serves(self) -> bool:
        """True if requests should be sent to the backend."""
        return self.state is _UP

    def checked(self, verdict: Verdict, reason: str = "", detail: str = "") -> bool:
        """Count the verdict of a health check, and keep its reason. Return True if the state has changed."""
        self.reason, self.detail = reason, detail
        first = self._verdict is None
        self._in_a_row = self._in_a_row + 1 if verdict is self._verdict else 1
        self._verdict = verdict
        state = _STATE_AFTER[verdict]
        if state is self.state or (self._in_a_row < self._needed(verdict) and not first):
            return False
        self.state = state
        return True

    def _needed(self, verdict: Verdict) -> int:
        """Return how many equal verdicts in a row change the state."""
        if verdict is Verdict.FAILS:
            return self._settings.fall
        if verdict is Verdict.STANDBY or self.state is HealthState.STANDBY:
            return 1  # a role is a fact that the key manager states, not a symptom
        return self._settings.rise


_UP: Final = HealthState.UP  # access to an enum member is slow
_STATE_AFTER: Final = {
    Verdict.SERVES: HealthState.UP,
    Verdict.STANDBY: HealthState.STANDBY,
    Verdict.FAILS: HealthState.DOWN,
}
