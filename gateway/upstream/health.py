"""Health: the state of a backend by its own health check, which needs several verdicts in a row to change it."""

from enum import Enum
from typing import Final


class Verdict(Enum):
    """What a probe found."""

    SERVES = "serves"
    STANDBY = "standby"  # it answers, and does not serve
    FAILS = "fails"


class HealthState(Enum):
    """What is believed of a backend."""

    UP = "up"
    STANDBY = "standby"
    DOWN = "down"


class Health:
    """What a backend's own probes say of it: patient in both directions, by ``rise`` and ``fall``.

    A backend begins as UP, so that a start does not wait for probes; the first verdict of all counts at once.
    ``reason`` (a short word) and ``detail`` (a sentence for the log) say why the last health check did not find a
    backend that serves; both are empty if it did.
    """

    def __init__(self, *, rise: int = 2, fall: int = 3) -> None:
        self.state = HealthState.UP
        self._rise = rise
        self._fall = fall
        self.reason = ""
        self.detail = ""
        self._verdict: Verdict | None = None
        self._in_a_row = 0

    def __repr__(self) -> str:
        return (
            f"<Health {self.state.value}: {self._verdict.value if self._verdict else 'not probed'} x{self._in_a_row}>"
        )

    @property
    def serves(self) -> bool:
        """Whether requests should be sent to it."""
        return self.state is _UP

    def probed(self, verdict: Verdict, reason: str = "", detail: str = "") -> bool:
        """Take a probe's verdict into account, and note why. Returns whether the state has changed."""
        self.reason, self.detail = reason, detail
        first = self._verdict is None
        self._in_a_row = self._in_a_row + 1 if verdict is self._verdict else 1
        self._verdict = verdict
        state = _STATE_AFTER[verdict]
        if state is self.state or (self._in_a_row < self._patience(verdict) and not first):
            return False
        self.state = state
        return True

    def _patience(self, verdict: Verdict) -> int:
        if verdict is Verdict.FAILS:
            return self._fall
        if verdict is Verdict.STANDBY or self.state is HealthState.STANDBY:
            return 1  # a role is a fact that the key manager states, not a symptom
        return self._rise


_UP: Final = HealthState.UP  # a member of an enumeration is slow to come by
_STATE_AFTER: Final = {
    Verdict.SERVES: HealthState.UP,
    Verdict.STANDBY: HealthState.STANDBY,
    Verdict.FAILS: HealthState.DOWN,
}
