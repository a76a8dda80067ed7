"""Health: patience in both directions."""

import pytest

from gateway.upstream.health import Health, HealthState, Verdict


def test_it_begins_as_up() -> None:
    assert Health().state is HealthState.UP


def test_the_first_verdict_counts_at_once() -> None:
    health = Health(rise=2, fall=3)
    assert health.checked(Verdict.FAILS)
    assert health.state is HealthState.DOWN


@pytest.mark.parametrize("fall", [1, 2, 5])
def test_it_falls_with_patience(fall: int) -> None:
    health = Health(rise=1, fall=fall)
    health.checked(Verdict.SERVES)
    assert [health.checked(Verdict.FAILS) for _ in range(fall)] == [False] * (fall - 1) + [True]
    assert not health.serves


@pytest.mark.parametrize("rise", [1, 2, 5])
def test_it_rises_with_patience(rise: int) -> None:
    health = Health(rise=rise, fall=1)
    health.checked(Verdict.FAILS)
    assert [health.checked(Verdict.SERVES) for _ in range(rise)] == [False] * (rise - 1) + [True]
    assert health.serves


def test_a_single_failure_in_between_is_forgiven() -> None:
    health = Health(rise=2, fall=3)
    for verdict in [Verdict.SERVES, Verdict.FAILS, Verdict.FAILS] * 20:
        health.checked(verdict)
    assert health.serves


def test_a_standby_does_not_serve_and_joins_at_once_when_promoted() -> None:
    health = Health(rise=3, fall=3)
    health.checked(Verdict.SERVES)
    assert health.checked(Verdict.STANDBY)
    assert health.state is HealthState.STANDBY
    assert not health.serves
    assert health.checked(Verdict.SERVES)
    assert health.serves
