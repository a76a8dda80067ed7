"""Breaker: decides, from the outcomes of exchanges, if requests of a kind may be sent to a backend.

    N consecutive failures         the pause is over
  CLOSED ------------------> OPEN ------------------> HALF_OPEN
    ^                          ^                       |  |  |
    |                          +---- a trial fails ----+  |  +--- a trial is answered: twice as many at once
    +------------- 1, 2, 4 and 8 trials are answered -----+

Reads and changes have a circuit each, since a key manager may answer every Get and hang on every Create. There is a
circuit for each credential (a partition of an HSM may fail alone), and a circuit for all credentials together. Reads
are tried before changes. Each pause is twice as long as the previous pause. An answer that arrives while a circuit is
OPEN makes it HALF_OPEN. The failure of a request that began before the end of the previous pause is ignored.

An overdue request opens no circuit, since slowness is no failure. Until all overdue requests of a kind end, or the
backend answers a request of that kind, other backends are preferred.

No function here reads the clock: callers pass the time, in trio's seconds.
"""

import random
from collections.abc import Iterable
from enum import Enum
from typing import Final

from gateway.config import FailoverConfig
from gateway.policy import Effect

_TRIALS: Final = 8  # trials at once that must be reached, and answered, before the circuit closes
_FIRST_PAUSE: Final = 1.0  # s
_MAX_PAUSES: Final = 32  # more would not lengthen the pause, only overflow it
_FORGIVEN: Final = 60.0  # s without a failure after which the next pause is the shortest one again
_ALONE: Final = 10.0  # s without any answer after which one credential's failures open the circuit for all
_MAX_CIRCUITS: Final = 4096  # beyond, half of those of single credentials are forgotten, the oldest first
_READS_FIRST: Final = 1.0  # s for which a half-open backend waits for a read before it is tried with a change


class CircuitState(Enum):
    """States of a circuit; the values are labels of metrics."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


_CLOSED: Final = CircuitState.CLOSED
_OPEN: Final = CircuitState.OPEN
_HALF_OPEN: Final = CircuitState.HALF_OPEN


class Circuit:
    """The state machine above, for reads or changes of one credential, or of all."""

    __slots__ = (
        "closed_at",
        "credentials",
        "failing_since",
        "failures",
        "overdue",
        "overdue_until",
        "pauses",
        "settings",
        "state",
        "trials",
        "tried_since",
        "under_way",
        "until",
    )

    def __init__(self, settings: FailoverConfig) -> None:
        self.settings = settings
        self.state = _CLOSED
        self.closed_at = float("-inf")
        self.failures = 0
        self.failing_since = float("inf")
        self.credentials: set[str] = set()  # of these failures
        self.overdue: set[object] = set()  # the requests that are
        self.overdue_until = float("-inf")  # when the last of them ended
        self.pauses = 0
        self.until = float("-inf")  # end of the pause
        self.tried_since = float("-inf")  # when the state became HALF_OPEN
        self.trials = 0  # the greatest number under way together in HALF_OPEN
        self.under_way = 0

    def __repr__(self) -> str:
        return f"<Circuit {self.state.value}, {self.failures} failures in a row, {self.pauses} pauses>"

    def allows(self, now: float, *, is_change: bool, is_for_changes: bool) -> bool:
        """Return True if one more request may be sent.

        ``is_change`` is the kind of the request, ``is_for_changes`` the kind of this circuit: a change must also pass
        the circuit for reads. In the first second in which reads may be tried, a half-open circuit for reads lets no
        change be the first trial.
        """
        if self.state is _OPEN and now >= self.until:
            self._try(now)
        if self.state is not _HALF_OPEN:
            return self.state is _CLOSED
        tried_since = max(self.tried_since, self.overdue_until)
        if is_change and not is_for_changes and self.trials == 1 and now - tried_since < _READS_FIRST:
            return False
        return self.under_way < self.trials

    def _try(self, now: float) -> None:
        self.state = _HALF_OPEN
        self.tried_since = now
        self.trials = 1

    def answered(self, now: float) -> None:
        """Count an answer: it ends the failures, and may close the circuit."""
        self.failures = 0
        self.failing_since = float("inf")
        self.credentials.clear()
        self.overdue.clear()
        if self.state is _OPEN:
            self._try(now)
        elif self.state is _HALF_OPEN:
            self.trials *= 2
            if self.trials > _TRIALS:
                self.state = _CLOSED
                self.closed_at = now

    def failed(self, credential: str, began: float, now: float, credentials_needed: int) -> bool:
        """Count the failure of an exchange that ``began`` then. Return True if the circuit opened.

        ``credentials_needed`` is the number of credentials that must have failed.
        """
        if self.state is _OPEN or began < self.tried_since:
            return False  # sent before the end of the previous pause
        self.failures += 1
        self.credentials.add(credential)
        self.failing_since = min(self.failing_since, began)
        if self.state is _CLOSED:
            is_alone = len(self.credentials) < credentials_needed and now - self.failing_since < _ALONE
            if self.failures < self.settings.consecutive_failures or is_alone:
                return False
        self._open(now)
        return True

    def _open(self, now: float) -> None:
        if self.state is _CLOSED and now - self.closed_at > _FORGIVEN:
            self.pauses = 0
        pause = min(self.settings.max_ejection_time, _FIRST_PAUSE * 2**self.pauses)
        self.pauses = min(self.pauses + 1, _MAX_PAUSES)
        self.until = now + pause * random.uniform(0.75, 1)  # noqa: S311 - spreads load, hides nothing
        self.state = _OPEN

    def is_forgettable(self, now: float) -> bool:
        """Return True if a new circuit would behave the same."""
        is_quiet = self.state is _CLOSED and not self.failures and not self.overdue and not self.under_way
        return is_quiet and now - self.closed_at > _FORGIVEN


_CHANGES: Final = "changes"
_ALL: Final = ""  # stands for all credentials together; no identity has an empty name
_Key = tuple[str, bool]  # a credential, and True for changes


class Breaker:
    """The circuits of one backend. ``credentials`` is the number of credentials in use.

    ``is_quiet`` is True while no circuit exists: then a request passes without a search.
    """

    def __init__(self, settings: FailoverConfig | None = None, *, credentials: int = 1) -> None:
        self._settings = settings or FailoverConfig()
        self.credentials = credentials
        self._circuits: dict[_Key, Circuit] = {}
        self.is_quiet = True

    @property
    def _needed(self) -> int:
        return min(2, self.credentials)

    def __repr__(self) -> str:
        return f"<Breaker {self.state.value}, {len(self._circuits)} circuits>"

    @property
    def state(self) -> CircuitState:
        """The state for all credentials together: that of reads, or HALF_OPEN if only changes are held back."""
        reads, changes = (self._circuits.get((_ALL, kind)) for kind in (False, True))
        if reads is not None and reads.state is not _CLOSED:
            return reads.state
        return _CLOSED if changes is None or changes.state is _CLOSED else _HALF_OPEN

    def describe(self, now: float) -> str:
        """Return a sentence for the log: the requests that are held back, and the time of the next trial."""
        changes = self._circuits.get((_ALL, True))
        reads = self._circuits.get((_ALL, False))
        kind, circuit = ("requests", reads) if reads is not None and reads.state is not _CLOSED else (_CHANGES, changes)
        if circuit is None or circuit.state is _CLOSED:
            return "no requests are held back"
        if circuit.state is _OPEN:
            return (
                f"{kind} failed in a row and go to other backends; next trial in {max(0.0, circuit.until - now):.1f} s"
            )
        return f"{kind} failed in a row; at most {circuit.trials} at a time are sent as trials"

    def circuits(self) -> Iterable[tuple[str, bool, CircuitState]]:
        """Yield the credential ("" for all), True for changes, and the state of every circuit."""
        for (credential, is_change), circuit in self._circuits.items():
            yield credential, is_change, circuit.state

    def allows(self, credential: str, effect: Effect, now: float) -> bool:
        """Return True if a request of this effect may be sent with this credential."""
        return self.is_quiet or all(
            circuit.allows(now, is_change=not effect.is_read, is_for_changes=is_for_changes)
            for is_for_changes, circuit in self._relevant(credential, effect)
        )

    def enter(self, credential: str, effect: Effect, now: float) -> list[Circuit]:
        """Count a request that is about to be sent. The caller passes the returned trials to ``leave`` afterwards.

        A request that is sent although ``allows`` returns False, because no backend is left, is no trial.
        """
        if self.is_quiet or not self.allows(credential, effect, now):
            return []
        trials = [circuit for _, circuit in self._relevant(credential, effect) if circuit.state is _HALF_OPEN]
        for circuit in trials:
            circuit.under_way += 1
        return trials

    def leave(self, trials: Iterable[Circuit]) -> None:
        """Count the end of a request that ``enter`` counted."""
        for circuit in trials:
            circuit.under_way -= 1

    def answered(self, credential: str, effect: Effect, now: float) -> None:
        """Count an answer to a request. An answered change also counts as an answered read."""
        for kind in (False,) if effect.is_read else (False, True):
            for key in ((credential, kind), (_ALL, kind)):
                circuit = self._circuits.get(key)
                if circuit is not None:
                    circuit.answered(now)
                    if circuit.is_forgettable(now):
                        del self._circuits[key]
        self.is_quiet = not self._circuits

    def failed(self, credential: str, effect: Effect, began: float, now: float) -> str | None:
        """Count the failure of an exchange that ``began`` then.

        Return the credential whose circuit opened, "" for that of all credentials, or None if no circuit opened.
        """
        is_change = not effect.is_read
        opened = None
        if self._circuit(credential, is_change=is_change).failed(credential, began, now, 1):
            opened = credential
        if self._circuit(_ALL, is_change=is_change).failed(credential, began, now, self._needed):
            opened = _ALL
        return opened

    def reset(self) -> None:
        """Forget all circuits: the backend has become a different machine."""
        self._circuits.clear()
        self.is_quiet = True

    def overdue(self, credential: str, effect: Effect, request: object) -> None:
        """Prefer other backends until this ``request`` ends, or one of its kind is answered."""
        for name in (credential, _ALL):
            self._circuit(name, is_change=not effect.is_read).overdue.add(request)

    def ended(self, credential: str, effect: Effect, request: object, now: float) -> None:
        """Count the end of a request that may be overdue. If it failed, ``failed`` counts that."""
        for name in (credential, _ALL):
            circuit = self._circuits.get((name, not effect.is_read))
            if circuit is not None and request in circuit.overdue:
                circuit.overdue.remove(request)
                circuit.overdue_until = now

    def is_overdue(self, credential: str, effect: Effect) -> bool:
        """Return True if a request of this kind is overdue, and no request of this kind was answered since."""
        return not self.is_quiet and any(circuit.overdue for _, circuit in self._relevant(credential, effect))

    def _relevant(self, credential: str, effect: Effect) -> Iterable[tuple[bool, Circuit]]:
        """Yield the circuits that a request must pass, with their kinds. A change must also pass those for reads."""
        for kind in (False,) if effect.is_read else (False, True):
            for name in (credential, _ALL):
                circuit = self._circuits.get((name, kind))
                if circuit is not None:
                    yield kind, circuit

    def _circuit(self, credential: str, *, is_change: bool) -> Circuit:
        key = credential, is_change
        circuit = self._circuits.get(key)
        if circuit is None:
            if len(self._circuits) >= _MAX_CIRCUITS:
                self._make_room()
            circuit = self._circuits[key] = Circuit(self._settings)
            self.is_quiet = False
        return circuit

    def _make_room(self) -> None:
        """Forget the oldest half of the circuits of single credentials: clients with minted credentials may be many.

        A credential whose circuit is forgotten is used as before its failures; all credentials together have a circuit
        of their own.
        """
        single = [key for key in self._circuits if key[0] != _ALL]
        for key in single[: _MAX_CIRCUITS // 2]:
            del self._circuits[key]
