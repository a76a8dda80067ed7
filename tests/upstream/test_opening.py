"""Tests of Opening: a pool's attempts, the pauses after failures, and the failure that new requests get."""

import random

import pytest
import trio

from gateway.config import FailoverConfig
from gateway.errors import BackendError, Stage
from gateway.upstream.gate import Gate
from gateway.upstream.opening import Opening
from gateway.upstream.session import Session
from tests.kit.fake_backends import (
    DEADLINES,
    LIMITS,
    FakeKeyManager,
    FakeStream,
    answer_to,
    ask,
    hangs_up_after,
    in_virtual_time,
)

MAX_PAUSE = 4.0


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pause as long as it can be."""
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def opening(gate: Gate) -> Opening:
    return opening_of(FakeKeyManager(), gate)


def opening_of(key_manager: FakeKeyManager, gate: Gate) -> Opening:
    opener = key_manager.opener("red")
    return Opening(
        key_manager.name,
        opener,
        gate,
        ask("probe"),
        deadlines=DEADLINES,
        failover=FailoverConfig(max_ejection_time=MAX_PAUSE),
    )


def failure(reason: str) -> BackendError:
    return BackendError(f"failed: {reason}", backend="atlanta", stage=Stage.CONNECT, reason=reason)


def reason_of(failure: BackendError | None) -> str | None:
    return None if failure is None else failure.reason


# Attempts ----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_attempt_returns_a_session(opening: Opening) -> None:
    assert isinstance(await opening.attempt(), Session)


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (failure("connect"), "connect"),
        (failure("credential"), "credential"),
        (ValueError("error parsing asn1 value"), "unexpected"),
        (ExceptionGroup("several", [OSError("one"), OSError("other")]), "unexpected"),
    ],
    ids=["connect", "credential", "odd", "several"],
)
@in_virtual_time
async def test_an_attempt_returns_a_failure(gate: Gate, refusal: Exception, reason: str) -> None:
    key_manager = FakeKeyManager()
    key_manager.refusal = refusal
    outcome = await opening_of(key_manager, gate).attempt()
    assert isinstance(outcome, BackendError)
    assert (outcome.reason, outcome.stage, outcome.backend) == (reason, Stage.CONNECT, "atlanta")


@in_virtual_time
async def test_an_attempt_ends_at_the_connect_deadline(gate: Gate) -> None:
    key_manager = FakeKeyManager()
    key_manager.is_reachable = False
    outcome = await opening_of(key_manager, gate).attempt()
    assert isinstance(outcome, BackendError)
    assert (outcome.reason, outcome.args[0]) == ("timeout", "no session within 3 s")
    assert trio.current_time() == 3.0


@in_virtual_time
async def test_an_attempt_can_be_cancelled(gate: Gate) -> None:
    key_manager = FakeKeyManager()
    key_manager.is_reachable = False
    with trio.move_on_after(1) as scope:
        await opening_of(key_manager, gate).attempt()
    assert scope.cancelled_caught


# One credential's failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["alert", "credential", "validation"])
def test_a_refused_credential_pauses_its_own_pool_only(opening: Opening, gate: Gate, reason: str) -> None:
    opening.failed(failure(reason), 0.0)
    assert not opening.may_try(0.24)
    assert opening.may_try(0.25)
    assert gate.has_room(0.0)
    assert (gate.failure, gate.limit) == (None, 3)


def test_pauses_after_a_refusal_double_up_to_the_setting(opening: Opening) -> None:
    now, pauses = 0.0, []
    for _ in range(7):
        opening.failed(failure("credential"), now)
        began = now
        while not opening.may_try(now):
            now += 0.25
        pauses.append(now - began)
    assert pauses == [0.25, 0.5, 1, 2, 4, 4, 4]


def test_a_session_ends_the_pause_and_resets_it(opening: Opening) -> None:
    for moment in (0.0, 10.0, 20.0):
        opening.failed(failure("credential"), moment)
    assert (opening.failing_since, opening.failed_at) == (0.0, 20.0)

    opening.opened()

    assert opening.may_try(20.0)
    assert (opening.failure, opening.failing_since) == (None, float("inf"))
    opening.failed(failure("credential"), 30.0)
    assert opening.may_try(30.25)


def test_one_attempt_at_a_time_is_made_until_a_session_opens(opening: Opening) -> None:
    opening.failed(failure("credential"), 0.0)
    opening.under_way = 1
    assert not opening.may_try(10.0)
    opening.opened()
    assert opening.may_try(10.0)


# Failures that concern every credential ----------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["connect", "timeout", "tls", "unexpected"])
def test_an_unreachable_key_manager_pauses_the_gate(opening: Opening, gate: Gate, reason: str) -> None:
    opening.failed(failure(reason), 0.0)
    assert not gate.has_room(0.09)
    assert gate.has_room(0.1)
    assert reason_of(gate.failure) == reason
    assert opening.may_try(0.0)  # as far as this credential is concerned


def test_a_lack_of_descriptors_is_no_failure_of_the_pool(opening: Opening, gate: Gate) -> None:
    opening.failed(failure("resources"), 0.0)
    assert not gate.has_room(0.09)
    assert gate.has_room(0.1)
    assert (opening.failure, gate.failure) == (None, None)


# The known failure -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "after", "under_way", "known"),
    [
        ("credential", 0.1, 0, "credential"),  # during the pause
        ("credential", 0.3, 0, None),  # after it, a request may try
        ("credential", 0.3, 1, "credential"),  # also known while an attempt is under way
        ("connect", 0.05, 0, "connect"),
        ("connect", 0.05, 1, None),  # an attempt that began before the failure may still succeed
        ("connect", 0.3, 0, None),
        ("connect", 0.3, 1, None),  # all requests wait for the outcome of this attempt
        ("resources", 0.05, 0, None),
    ],
)
def test_the_failure_is_known_while_no_attempt_may_begin(
    opening: Opening, reason: str, after: float, under_way: int, known: str | None
) -> None:
    opening.failed(failure(reason), 0.0)
    opening.under_way = under_way
    assert reason_of(opening.known_failure(after)) == known


def test_an_unreachable_backend_is_a_known_failure_of_every_pool(gate: Gate) -> None:
    red, blue = (opening_of(FakeKeyManager(), gate) for _ in range(2))
    red.failed(failure("connect"), 0.0)
    assert reason_of(blue.known_failure(0.05)) == "connect"
    gate.reached()  # by the health check
    assert blue.known_failure(0.05) is None


# Sessions that end young -------------------------------------------------------------------------------------------


def session_that(opened_at: float, *, answered: int = 0) -> Session:
    session = Session(FakeStream(), "atlanta", limits=LIMITS)
    session.opened_at, session.requests = opened_at, answered
    return session


@in_virtual_time
async def test_the_session_after_an_early_close_is_validated_twice(gate: Gate) -> None:
    atlanta = FakeKeyManager()
    opening = opening_of(atlanta, gate)
    assert opening.closed_by_peer(session_that(0.0), now=0.1)

    assert isinstance(await opening.attempt(), Session)
    assert [len(connection.sent) for connection in atlanta.connections] == [1]

    assert isinstance(await opening.attempt(), Session)
    assert [len(connection.sent) for connection in atlanta.connections] == [1, 0]


@in_virtual_time
async def test_closing_after_the_first_answer_is_a_refusal(gate: Gate) -> None:
    atlanta = FakeKeyManager()
    atlanta.behaviour = hangs_up_after
    opening = opening_of(atlanta, gate)
    assert opening.closed_by_peer(session_that(0.0), now=0.1)

    for _ in range(2):
        outcome = await opening.attempt()
        assert isinstance(outcome, BackendError)
        assert reason_of(outcome) == "validation"
    assert atlanta.open_connections == []


@in_virtual_time
async def test_more_bytes_after_the_second_validation_are_a_refusal(gate: Gate) -> None:
    """The session stays BUSY, and must not be lent or kept."""
    atlanta = FakeKeyManager()
    atlanta.behaviour = lambda connection, request: connection.say(2 * answer_to(request))
    opening = opening_of(atlanta, gate)
    assert opening.closed_by_peer(session_that(0.0), now=0.1)

    outcome = await opening.attempt()

    assert isinstance(outcome, BackendError)
    assert reason_of(outcome) == "validation"
    assert atlanta.open_connections == []


@pytest.mark.parametrize(
    ("answered", "age"), [(1, 0.1), (0, 2.1)], ids=["it has answered a client", "it was open for two seconds"]
)
@in_virtual_time
async def test_later_closes_do_not_make_the_key_manager_suspicious(opening: Opening, answered: int, age: float) -> None:
    assert not opening.closed_by_peer(session_that(0.0, answered=answered), now=age)
    assert not opening.is_suspicious


@in_virtual_time
async def test_repr_shows_failing_attempts(opening: Opening) -> None:
    opening.under_way = 2
    assert repr(opening) == "<Opening 2 under way>"
    opening.failed(failure("validation"), 0.0)
    assert repr(opening) == "<Opening 2 under way, failing>"
