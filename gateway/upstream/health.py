"""Health: what is known of a backend, with patience; and a breaker for each credential that is shown to it.

A credential that a key manager refuses is not a sick key manager. So failures are counted for each (backend,
credential) by its Breaker, and a backend's own Health falls only by its own probe. Everything here is plain: time is
handed in, in trio's seconds.
"""

import random
from enum import Enum
from typing import Final, NamedTuple


class BreakerSettings(NamedTuple):
    """When a breaker opens, and for how long; times in seconds."""

    soft_failures: int = 3  # exchanges in a row that broke or timed out
    first_pause: float = 0.1  # after sessions could not be opened
    first_ejection: float = 1.0  # after exchanges failed
    longest: float = 30.0
    factor: float = 2.0


_MOST_OPENINGS: Final = 32  # more would not lengthen the pause, only overflow it


class Breaker:
    """Whether one credential's requests should go to one backend.

    It opens when a session can't be opened (a hard sign), or after several exchanges in a row that broke (soft signs).
    While it is open, one attempt is made in the background after each pause; a session that opens and proves itself
    closes it. Only an answered request of a client forgets how often it opened, so that a backend that answers probes
    and nothing else is left alone for longer each time.
    """

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self._settings = settings or BreakerSettings()
        self.is_open = False
        self.opened_at = float("-inf")
        self._until = float("-inf")
        self._openings = 0
        self._soft = 0

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Breaker {state}, opened {self._openings} times, {self._soft} soft failures>"

    def may_try(self, now: float) -> bool:
        """Whether an attempt is due: the pause is over, or a session was opened in it."""
        return not self.is_open or now >= self._until

    def could_not_open(self, now: float) -> None:
        """A session could not be opened."""
        self._open(now, self._settings.first_pause)

    def exchange_failed(self, now: float) -> bool:
        """An exchange broke in a way that speaks against the backend. Returns whether that opened the breaker."""
        self._soft += 1
        if self.is_open or self._soft < self._settings.soft_failures:
            return False
        self._open(now, self._settings.first_ejection)
        return True

    def session_opened(self) -> None:
        """A session was opened and has proved itself: that ends a pause.

        It does not excuse exchanges that broke before, since each of those costs a session, and so opens one.
        """
        if self.is_open:
            self.is_open = False
            self._soft = 0

    def answered(self) -> None:
        """A client's request was answered."""
        if self._openings or self._soft:
            self.is_open = False
            self._openings = 0
            self._soft = 0

    def _open(self, now: float, first: float) -> None:
        pause = min(self._settings.longest, first * self._settings.factor**self._openings)
        self._until = now + pause * random.uniform(0.75, 1)  # noqa: S311 - spreads attempts, hides nothing
        self._openings = min(self._openings + 1, _MOST_OPENINGS)
        if not self.is_open:
            self.is_open = True
            self.opened_at = now


class Verdict(Enum):
    """What a probe found."""

    SERVES = "serves"
    STANDBY = "standby"  # it answers, and does not serve
    FAILS = "fails"


class State(Enum):
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
        self.state = State.UP
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
        if verdict is Verdict.STANDBY or self.state is State.STANDBY:
            return 1  # a role is a fact that the key manager states, not a symptom
        return self._rise


_UP: Final = State.UP  # a member of an enumeration is slow to come by
_STATE_AFTER: Final = {Verdict.SERVES: State.UP, Verdict.STANDBY: State.STANDBY, Verdict.FAILS: State.DOWN}
