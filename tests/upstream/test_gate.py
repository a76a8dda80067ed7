"""Tests of the gate: the bound on handshakes under way, and the pauses after failures."""

import random

import pytest

from gateway.config import DeadlinesConfig
from gateway.errors import BackendError, Stage
from gateway.upstream.gate import Gate, Pause

QUICK, SLOW = 0.1, 1.0  # seconds, with a connect deadline of 3 s


def failure(reason: str = "connect") -> BackendError:
    return BackendError("refused", backend="atlanta", stage=Stage.CONNECT, reason=reason)


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pause as long as it can be."""
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)


# Concurrency -------------------------------------------------------------------------------------------------------


def test_four_handshakes_may_begin_at_first() -> None:
    gate = Gate()
    begun = 0
    while gate.has_room(0.0):
        gate.under_way += 1
        begun += 1
    assert begun == 4
    assert repr(gate) == "<Gate 4 of 4>"


@pytest.mark.parametrize(
    ("events", "limit"),
    [
        ("", 4),
        ("q", 5),  # a quick handshake
        ("qqq", 7),
        ("q" * 50, 16),
        ("s", 4),  # a slow handshake: the key manager makes them one by one, or is far away
        ("ssss", 4),
        ("f", 2),  # a failure that concerns every credential
        ("f-f", 1),  # and a second failure after the pause
        ("f-f-f-f", 1),
        ("ffff", 2),  # four that fail together
        ("f-q", 3),
        ("c", 3),  # a credential that is refused
        ("cccccc", 1),
        ("cq", 4),
    ],
)
def test_concurrency_is_learned_from_the_outcomes(events: str, limit: int) -> None:
    gate, now = Gate(), 0.0
    for event in events:
        match event:
            case "q":
                gate.succeeded(QUICK)
            case "s":
                gate.succeeded(SLOW)
            case "f":
                gate.failed(failure(), now)
            case "c":
                gate.refused()
            case _:
                now += 10
    assert gate.limit == limit


def test_a_slow_handshake_is_measured_by_the_connect_deadline() -> None:
    patient = Gate(DeadlinesConfig(connect=8.0))
    patient.succeeded(2.0)
    patient.succeeded(2.1)
    assert patient.limit == 5


def test_one_handshake_at_a_time_is_tried_after_a_failure() -> None:
    gate = Gate()
    gate.failed(failure(), 0.0)
    assert not gate.has_room(0.05)
    assert gate.has_room(0.1)
    gate.under_way = 1
    assert not gate.has_room(0.1)

    gate.under_way = 0
    gate.succeeded(QUICK)

    assert gate.has_room(0.1)
    gate.under_way = 1
    assert gate.has_room(0.1)


# Pauses ------------------------------------------------------------------------------------------------------------


def pauses_of(gate: Gate, number: int) -> list[float]:
    """Fail so many handshakes, each as soon as it may begin, and return the pauses."""
    now, lengths = 0.0, []
    for _ in range(number):
        gate.failed(failure(), now)
        lengths.append(round(gate.pause.until - now, 6))
        now = gate.pause.until
    return lengths


def test_pauses_double_up_to_two_seconds() -> None:
    assert pauses_of(Gate(), 8) == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_handshakes_that_fail_together_make_one_pause() -> None:
    gate = Gate()
    for moment in (0.0, 0.0, 0.05, 0.09):
        gate.failed(failure(), moment)
    assert gate.pause.until == 0.1
    gate.failed(failure(), 0.1)
    assert gate.pause.until == pytest.approx(0.3)


@pytest.mark.parametrize("end", ["succeeded", "reached"])
def test_a_handshake_or_an_answered_health_check_ends_the_pause(end: str) -> None:
    gate = Gate()
    pauses_of(gate, 6)
    assert (gate.failure is not None, gate.failing_since) == (True, 0.0)

    if end == "succeeded":
        gate.succeeded(QUICK)
    else:
        gate.reached()

    assert gate.has_room(0.0)
    assert (gate.failure, gate.failing_since) == (None, float("inf"))
    gate.failed(failure(), 10.0)
    assert gate.pause.until == pytest.approx(10.1)  # the next pause is the shortest again


def test_the_gate_keeps_the_last_failure_and_the_time_of_the_first() -> None:
    gate = Gate()
    gate.failed(failure("connect"), 3.0)
    gate.failed(failure("timeout"), 5.0)
    assert gate.failure is not None
    assert gate.failure.reason == "timeout"
    assert gate.failing_since == 3.0


def test_a_refused_credential_pauses_no_other() -> None:
    gate = Gate()
    for _ in range(10):
        gate.refused()
    assert gate.has_room(0.0)
    assert gate.failure is None


def test_a_lack_of_descriptors_holds_back_handshakes_but_is_no_failure() -> None:
    gate = Gate()
    gate.wait_until(0.1)
    gate.wait_until(0.05)  # never shortens a pause
    assert not gate.has_room(0.09)
    assert gate.has_room(0.1)
    assert (gate.failure, gate.limit) == (None, 4)


# Jitter ------------------------------------------------------------------------------------------------------------


def test_jitter_spreads_the_ends_of_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ends = set()
    for _ in range(200):
        pause = Pause(1.0, 30.0)
        pause.failed(0.0)
        ends.add(pause.until)
    assert len(ends) > 100
    assert 0.75 <= min(ends) < 0.8
    assert 0.95 < max(ends) <= 1.0


def test_jitter_does_not_compound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next pause doubles the length of the previous pause without its jitter."""
    monkeypatch.undo()
    pause, now = Pause(0.25, 4.0), 0.0
    for longest in (0.25, 0.5, 1.0, 2.0, 4.0, 4.0):
        pause.failed(now)
        assert 0.75 * longest <= pause.until - now <= longest
        assert not pause.is_over(pause.until - 0.001)
        assert pause.is_over(pause.until)
        now = pause.until


def test_a_pause_that_is_reset_begins_anew() -> None:
    pause = Pause(0.25, 4.0)
    for moment in range(10):
        pause.failed(moment * 10.0)
    pause.reset()
    assert pause.is_over(90.0)
    pause.failed(100.0)
    assert repr(pause) == "<Pause until 100.25, the next one 0.5 s>"
