"""Tests of Health: several equal verdicts in a row change the state, in both directions."""

import pytest

from gateway.config import HealthConfig
from gateway.upstream.health import Health, HealthState, Verdict


def test_health_begins_as_up() -> None:
    assert Health().state is HealthState.UP


def test_the_first_verdict_counts_at_once() -> None:
    health = Health(HealthConfig(rise=2, fall=3))
    assert health.checked(Verdict.FAILS)
    assert health.state is HealthState.DOWN


@pytest.mark.parametrize("fall", [1, 2, 5])
def test_several_failed_checks_make_it_down(fall: int) -> None:
    health = Health(HealthConfig(rise=1, fall=fall))
    health.checked(Verdict.SERVES)
    assert [health.checked(Verdict.FAILS) for _ in range(fall)] == [False] * (fall - 1) + [True]
    assert not health.serves


@pytest.mark.parametrize("rise", [1, 2, 5])
def test_several_successful_checks_make_it_up(rise: int) -> None:
    health = Health(HealthConfig(rise=rise, fall=1))
    health.checked(Verdict.FAILS)
    assert [health.checked(Verdict.SERVES) for _ in range(rise)] == [False] * (rise - 1) + [True]
    assert health.serves


def test_a_single_failure_in_between_is_forgiven() -> None:
    health = Health(HealthConfig(rise=2, fall=3))
    for verdict in [Verdict.SERVES, Verdict.FAILS, Verdict.FAILS] * 20:
        health.checked(verdict)
    assert health.serves


def test_a_standby_that_is_promoted_serves_at_once() -> None:
    health = Health(HealthConfig(rise=3, fall=3))
    health.checked(Verdict.SERVES)
    assert health.checked(Verdict.STANDBY)
    assert health.state is HealthState.STANDBY
    assert not health.serves
    assert health.checked(Verdict.SERVES)
    assert health.serves
