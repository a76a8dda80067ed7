"""Tests of the breaker: consecutive failures open a circuit, answered trials close it again."""

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import FailoverConfig
from gateway.policy import Effect
from gateway.upstream.breaker import Breaker, Circuit, CircuitState

READ, CHANGE = Effect.READ, Effect.MUTATE
CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
PAUSE, MAX_PAUSE = 1.0, 30.0  # s, without jitter


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pause as long as it can be."""
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)


class Exchanges:
    """Exchanges with a backend, and the time that passes between them."""

    def __init__(self, *, credentials: int = 1) -> None:
        self.breaker = Breaker(credentials=credentials)
        self.now = 1000.0

    def fail(
        self, times: int = 1, credential: str = "red", effect: Effect = READ, *, lasted: float = 0.0
    ) -> str | None:
        held_back = None
        for _ in range(times):
            held_back = self.breaker.failed(credential, effect, self.now - lasted, self.now)
        return held_back

    def answer(self, times: int = 1, credential: str = "red", effect: Effect = READ) -> None:
        for _ in range(times):
            self.breaker.answered(credential, effect, self.now)

    def allows(self, credential: str = "red", effect: Effect = READ) -> bool:
        return self.breaker.allows(credential, effect, self.now)

    def trials(self, effect: Effect = READ) -> int:
        """Begin as many requests as are allowed at once, and end them without an outcome. Return their number."""
        begun: list[list[Circuit]] = []
        while self.allows(effect=effect) and len(begun) < 100:
            begun.append(self.breaker.enter("red", effect, self.now))
        for trials in begun:
            self.breaker.leave(trials)
        return len(begun)

    def open(self, effect: Effect = READ) -> None:
        """Fail until the circuit is open."""
        self.fail(3, effect=effect)

    def half_open(self) -> None:
        """Fail, and wait for the end of the pause."""
        self.open()
        self.now += PAUSE
        assert self.allows()

    def recover(self) -> None:
        """Open the circuit, and close it again with answered trials."""
        self.half_open()
        self.answer(4)


# The states --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ("", CLOSED),
        ("ff", CLOSED),
        ("ffaff", CLOSED),  # not in a row
        ("fff", OPEN),
        ("fff.", OPEN),  # a quarter of the pause is over
        ("fff....", HALF_OPEN),
        ("fffa", HALF_OPEN),  # an answer comes during the pause
        ("fff....f", OPEN),  # the trial fails
        ("fff....aaf", OPEN),
        ("fff....a", HALF_OPEN),
        ("fff....aaa", HALF_OPEN),
        ("fff....aaaa", CLOSED),
        ("fff....aaaaff", CLOSED),  # three consecutive failures are needed again
        ("fff....aaaafff", OPEN),
        ("fff....f....", OPEN),  # the second pause is longer
        ("fff....f........", HALF_OPEN),
    ],
)
def test_states_follow_the_outcomes(events: str, state: CircuitState) -> None:
    exchanges = Exchanges()
    for event in events:
        match event:
            case "f":
                exchanges.fail()
            case "a":
                exchanges.answer()
            case _:
                exchanges.now += PAUSE / 4
        exchanges.allows()
    assert exchanges.breaker.state is state
    assert exchanges.allows() is (state is not OPEN)


def test_one_two_four_and_eight_trials_are_allowed_at_once() -> None:
    exchanges = Exchanges()
    exchanges.half_open()
    allowed = []
    while exchanges.breaker.state is HALF_OPEN:
        allowed.append(exchanges.trials())
        exchanges.answer()
    assert allowed == [1, 2, 4, 8]
    assert exchanges.trials() == 100


def test_a_trial_without_an_outcome_makes_room_for_the_next() -> None:
    exchanges = Exchanges()
    exchanges.half_open()
    trials = exchanges.breaker.enter("red", READ, exchanges.now)
    assert not exchanges.allows()
    exchanges.breaker.leave(trials)
    assert exchanges.allows()


def test_a_request_that_is_not_allowed_is_no_trial() -> None:
    """The request was sent because no other backend was left."""
    exchanges = Exchanges()
    exchanges.open()
    assert exchanges.breaker.enter("red", READ, exchanges.now) == []
    exchanges.now += PAUSE
    trials = exchanges.breaker.enter("red", READ, exchanges.now)
    assert exchanges.breaker.enter("red", READ, exchanges.now) == []
    assert len(trials) == 2  # of this credential, and of all


def test_each_pause_is_twice_as_long_up_to_a_maximum() -> None:
    exchanges, pauses = Exchanges(), []
    exchanges.open()
    for _ in range(8):
        began = exchanges.now
        while not exchanges.allows():
            exchanges.now += 0.25
        pauses.append(exchanges.now - began)
        exchanges.fail()
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(("well_for", "pause"), [(59.0, 2 * PAUSE), (61.0, PAUSE)])
def test_pauses_start_short_again_after_a_minute_without_failure(well_for: float, pause: float) -> None:
    exchanges = Exchanges()
    exchanges.recover()
    exchanges.now += well_for
    exchanges.open()
    exchanges.now += pause - 0.01
    assert not exchanges.allows()
    exchanges.now += 0.01
    assert exchanges.allows()


def test_the_end_of_a_pause_is_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    waits = set()
    for _ in range(100):
        exchanges = Exchanges()
        exchanges.open()
        waits.add(float(exchanges.breaker.describe(exchanges.now).split()[-2]))
    assert min(waits) >= 0.75 * PAUSE - 0.05
    assert max(waits) <= PAUSE
    assert len(waits) > 1


def test_settings_say_how_many_failures_and_how_long() -> None:
    breaker = Breaker(FailoverConfig(consecutive_failures=5, max_ejection_time=1.5))
    assert [breaker.failed("red", READ, 0.0, 0.0) for _ in range(5)] == [None] * 4 + [""]
    assert not breaker.allows("red", READ, 0.9)
    assert breaker.allows("red", READ, 1.0)
    breaker.failed("red", READ, 1.0, 1.0)
    assert not breaker.allows("red", READ, 2.4)
    assert breaker.allows("red", READ, 2.5)


# Late outcomes -----------------------------------------------------------------------------------------------------


def test_a_late_failure_does_not_lengthen_the_pause() -> None:
    exchanges = Exchanges()
    exchanges.open()
    exchanges.now += 0.9
    exchanges.fail(20, lasted=30.0)
    exchanges.now += 0.1
    assert exchanges.allows()


def test_a_late_failure_does_not_end_the_trials() -> None:
    exchanges = Exchanges()
    exchanges.half_open()
    assert exchanges.fail(20, lasted=30.0) is None
    assert exchanges.breaker.state is HALF_OPEN


def test_late_failures_do_not_open_a_circuit_that_has_closed() -> None:
    """Requests that were sent before the pause run into their deadline long after the backend has recovered."""
    exchanges = Exchanges()
    exchanges.recover()
    exchanges.now += 5.0
    assert exchanges.fail(20, lasted=10.0) is None
    assert exchanges.breaker.state is CLOSED
    assert exchanges.fail(3, lasted=1.0) == ""


def test_a_late_answer_ends_the_pause() -> None:
    exchanges = Exchanges()
    exchanges.open()
    exchanges.answer()
    assert exchanges.breaker.state is HALF_OPEN
    assert exchanges.trials() == 1


# Reads and changes -------------------------------------------------------------------------------------------------


def test_failed_changes_hold_back_changes_only() -> None:
    exchanges = Exchanges()
    exchanges.open(CHANGE)
    assert exchanges.allows(effect=READ)
    assert exchanges.allows(effect=Effect.TOUCH)
    assert not exchanges.allows(effect=CHANGE)
    assert not exchanges.allows(effect=Effect.STATEFUL)
    assert exchanges.breaker.state is HALF_OPEN


def test_failed_reads_hold_back_changes_too() -> None:
    exchanges = Exchanges()
    exchanges.open(READ)
    assert not exchanges.allows(effect=CHANGE)


def test_reads_do_not_stand_for_changes() -> None:
    exchanges = Exchanges()
    exchanges.open(CHANGE)
    exchanges.answer(100, effect=READ)
    assert not exchanges.allows(effect=CHANGE)


def test_an_answered_change_stands_for_reads() -> None:
    exchanges = Exchanges()
    exchanges.open(READ)
    exchanges.answer(5, effect=CHANGE)
    assert exchanges.breaker.state is CLOSED


def test_reads_are_tried_before_changes() -> None:
    exchanges = Exchanges()
    exchanges.half_open()
    assert exchanges.allows(effect=READ)
    assert not exchanges.allows(effect=CHANGE)
    exchanges.answer()
    assert exchanges.allows(effect=CHANGE)


def test_a_change_is_tried_after_a_second_without_reads() -> None:
    exchanges = Exchanges()
    exchanges.half_open()
    exchanges.now += 0.99
    assert not exchanges.allows(effect=CHANGE)
    exchanges.now += 0.01
    assert exchanges.trials(CHANGE) == 1


def test_changes_have_trials_of_their_own() -> None:
    exchanges = Exchanges()
    exchanges.open(CHANGE)
    exchanges.now += PAUSE
    allowed = []
    for _ in range(4):
        allowed.append(exchanges.trials(CHANGE))
        exchanges.answer(effect=CHANGE)
    assert allowed == [1, 2, 4, 8]
    assert exchanges.breaker.state is CLOSED


# Credentials -------------------------------------------------------------------------------------------------------


def test_one_credential_that_fails_is_held_back_alone() -> None:
    exchanges = Exchanges(credentials=2)
    assert exchanges.fail(3, "red") == "red"
    assert not exchanges.allows("red")
    assert exchanges.allows("blue")
    assert exchanges.breaker.state is CLOSED
    assert list(exchanges.breaker.circuits()) == [("red", False, OPEN), ("", False, CLOSED)]


def test_two_credentials_that_fail_open_the_circuit_for_all() -> None:
    exchanges = Exchanges(credentials=3)
    assert [exchanges.fail(2, "red"), exchanges.fail(1, "green")] == [None, ""]
    assert not exchanges.allows("blue")
    assert exchanges.breaker.state is OPEN


def test_another_credentials_answer_keeps_the_circuit_for_all_closed() -> None:
    exchanges = Exchanges(credentials=2)
    exchanges.fail(2, "red")
    exchanges.answer(1, "blue")
    exchanges.fail(2, "red")
    exchanges.fail(1, "blue")
    assert not exchanges.allows("red")
    assert exchanges.breaker.state is OPEN  # three in a row of both: two and one
    exchanges.answer(1, "blue")
    assert exchanges.breaker.state is HALF_OPEN


def test_one_credential_alone_opens_the_circuit_for_all_after_ten_seconds() -> None:
    exchanges = Exchanges(credentials=2)
    exchanges.fail(3, "red")
    exchanges.now += 9.9
    assert exchanges.allows("red")
    assert exchanges.fail(1, "red", lasted=0.0) == "red"  # its trial
    assert exchanges.breaker.state is CLOSED
    exchanges.now += 2 * PAUSE
    assert exchanges.allows("red")
    assert exchanges.fail(1, "red") == ""
    assert exchanges.breaker.state is OPEN


def test_the_only_credential_stands_for_all() -> None:
    exchanges = Exchanges(credentials=1)
    assert exchanges.fail(3) == ""
    assert exchanges.breaker.state is OPEN


# Overdue requests --------------------------------------------------------------------------------------------------


def test_an_overdue_request_holds_nothing_back() -> None:
    exchanges = Exchanges()
    for _ in range(100):
        exchanges.breaker.overdue("red", READ, object())
    assert exchanges.breaker.state is CLOSED
    assert exchanges.trials() == 100


@pytest.mark.parametrize(
    ("overdue", "answered", "reads", "changes"),
    [
        (READ, None, True, True),
        (CHANGE, None, False, True),
        (READ, READ, False, False),
        (READ, CHANGE, False, False),
        (CHANGE, READ, False, True),
        (CHANGE, CHANGE, False, False),
    ],
)
def test_an_overdue_request_counts_until_one_of_its_kind_is_answered(
    overdue: Effect, answered: Effect | None, reads: bool, changes: bool
) -> None:
    exchanges = Exchanges()
    breaker = exchanges.breaker
    breaker.overdue("red", overdue, "request")
    if answered is not None:
        exchanges.answer(effect=answered)
    assert (breaker.is_overdue("red", READ), breaker.is_overdue("red", CHANGE)) == (reads, changes)


def test_other_backends_are_preferred_until_all_overdue_requests_end() -> None:
    exchanges = Exchanges()
    breaker = exchanges.breaker
    for request in ("first", "second"):
        breaker.overdue("red", READ, request)
    breaker.ended("red", READ, "first", exchanges.now)
    assert breaker.is_overdue("red", READ)
    breaker.ended("red", READ, "second", exchanges.now)
    assert not breaker.is_overdue("red", READ)


def test_the_end_of_a_request_from_before_an_answer_ends_no_later_one() -> None:
    exchanges = Exchanges()
    breaker = exchanges.breaker
    breaker.overdue("red", READ, "first")
    exchanges.answer()
    breaker.overdue("red", READ, "second")
    breaker.ended("red", READ, "first", exchanges.now)
    assert breaker.is_overdue("red", READ)


def test_a_read_may_be_the_first_trial_for_a_second_after_overdue_reads_end() -> None:
    """Until then no read was sent, so that the second in which only reads are tried has passed without one."""
    exchanges = Exchanges()
    breaker = exchanges.breaker
    exchanges.half_open()
    breaker.overdue("red", READ, "read")
    exchanges.now += 30.0
    breaker.ended("red", READ, "read", exchanges.now)
    assert not breaker.allows("red", CHANGE, exchanges.now)
    assert breaker.allows("red", READ, exchanges.now)
    exchanges.now += 1.0
    assert breaker.allows("red", CHANGE, exchanges.now)


def test_an_overdue_request_speaks_for_every_credential() -> None:
    exchanges = Exchanges(credentials=2)
    breaker = exchanges.breaker
    breaker.overdue("red", READ, "request")
    assert breaker.is_overdue("blue", READ)
    exchanges.answer(credential="blue")
    assert not breaker.is_overdue("blue", READ)
    assert breaker.is_overdue("red", READ)


# Forgetting --------------------------------------------------------------------------------------------------------


def test_a_breaker_without_failures_is_quiet() -> None:
    exchanges = Exchanges()
    assert exchanges.breaker.is_quiet
    exchanges.answer(10)
    assert exchanges.breaker.is_quiet
    assert exchanges.breaker.enter("red", READ, exchanges.now) == []


def test_a_few_failures_are_forgotten_with_the_next_answer() -> None:
    exchanges = Exchanges()
    exchanges.fail(2)
    assert not exchanges.breaker.is_quiet
    exchanges.answer()
    assert exchanges.breaker.is_quiet
    assert list(exchanges.breaker.circuits()) == []


def test_a_circuit_that_was_open_is_remembered_for_a_minute() -> None:
    exchanges = Exchanges()
    exchanges.recover()
    exchanges.now += 59.0
    exchanges.answer()
    assert not exchanges.breaker.is_quiet
    exchanges.now += 2.0
    exchanges.answer()
    assert exchanges.breaker.is_quiet


def test_a_circuit_is_remembered_while_a_trial_is_under_way() -> None:
    exchanges = Exchanges()
    exchanges.half_open()
    trials = exchanges.breaker.enter("red", READ, exchanges.now)
    exchanges.answer(4)
    exchanges.now += 61.0
    exchanges.answer()
    assert not exchanges.breaker.is_quiet
    exchanges.breaker.leave(trials)
    exchanges.answer()
    assert exchanges.breaker.is_quiet


# Text --------------------------------------------------------------------------------------------------------------


def test_the_description_names_the_requests_that_are_held_back() -> None:
    exchanges = Exchanges()
    breaker = exchanges.breaker
    assert breaker.describe(exchanges.now) == "no requests are held back"
    exchanges.open(CHANGE)
    exchanges.now += 0.4
    held_back = "changes failed in a row"
    assert breaker.describe(exchanges.now) == f"{held_back} and go to other backends; next trial in 0.6 s"
    exchanges.now += 0.6
    exchanges.allows(effect=CHANGE)
    assert breaker.describe(exchanges.now) == f"{held_back}; at most 1 at a time are sent as trials"
    exchanges.open(READ)
    assert breaker.describe(exchanges.now).startswith(
        "requests failed in a row and go to other backends; next trial in"
    )
    assert repr(breaker) == "<Breaker open, 4 circuits>"


# Any history -------------------------------------------------------------------------------------------------------


Event = tuple[str, str, Effect, float]


def events() -> st.SearchStrategy[Event]:
    return st.tuples(
        st.sampled_from(["enter", "answered", "failed", "lost", "overdue", "pass"]),
        st.sampled_from(["red", "blue"]),
        st.sampled_from([READ, CHANGE]),
        st.sampled_from([0.1, 1.0, 5.0, 31.0]),
    )


class History:
    """A random sequence of events, and the requests under way."""

    def __init__(self) -> None:
        self.breaker = Breaker(credentials=2)
        self.now = 0.0
        self.under_way: list[tuple[list[Circuit], str, Effect, float]] = []

    def happens(self, event: Event) -> None:
        what, credential, effect, seconds = event
        if what == "pass":
            self.now += seconds
        elif what == "overdue":
            self.breaker.overdue(credential, effect, object())
        elif what == "enter":
            self.under_way.append((self.breaker.enter(credential, effect, self.now), credential, effect, self.now))
        elif self.under_way:
            self.end(what)

    def end(self, outcome: str) -> None:
        """End the oldest request under way."""
        trials, credential, effect, began = self.under_way.pop(0)
        self.breaker.leave(trials)
        if outcome == "answered":
            self.breaker.answered(credential, effect, self.now)
        elif outcome == "failed":
            self.breaker.failed(credential, effect, began, self.now)

    def check(self) -> None:
        circuits = self.breaker._circuits.values()
        assert self.breaker.is_quiet is (not circuits)
        assert all(0 <= circuit.under_way <= 8 and circuit.until <= self.now + MAX_PAUSE for circuit in circuits)

    def serve_everybody(self) -> None:
        """Answer one request of each kind, after the longest pause."""
        self.now += MAX_PAUSE + 1.0
        for credential, effect in product(("red", "blue"), (READ, CHANGE)):
            if self.breaker.allows(credential, effect, self.now):
                self.breaker.answered(credential, effect, self.now)


@settings(max_examples=300, deadline=None)
@given(st.lists(events(), max_size=80))
def test_no_history_leaks_a_trial_or_holds_requests_back_for_ever(happened: list[Event]) -> None:
    history = History()
    for event in happened:
        history.happens(event)
        history.check()
    while history.under_way:
        history.end("lost")

    for _ in range(20):
        history.serve_everybody()

    assert history.breaker.is_quiet


# Many credentials -----------------------------------------------------------------------------------------------------


def test_circuits_of_single_credentials_are_bounded() -> None:
    breaker = Breaker(FailoverConfig(), credentials=2)
    for number in range(10_000):
        breaker.failed(f"storage/{number}", Effect.READ, 0.0, 1.0)
        assert len(breaker._circuits) <= 4097
    for _ in range(3):
        breaker.failed("storage/9999", Effect.READ, 1.0, 2.0)
    assert not breaker.allows("storage/9999", Effect.READ, 2.0)
    assert breaker.state is OPEN  # the circuit of all credentials was not forgotten
