"""Health and Breaker: patience, pauses that grow, and what closes them again."""

import pytest

from gateway.upstream.health import Breaker, BreakerSettings, Health, State, Verdict

SETTINGS = BreakerSettings(soft_failures=3, first_pause=0.1, first_ejection=1.0, longest=8.0)


def pause_of(breaker: Breaker, now: float) -> float:
    """How long after ``now`` an attempt is due, to a millisecond."""
    return next(step / 1000 for step in range(100_000) if breaker.may_try(now + step / 1000))


class TestBreaker:
    def test_it_opens_at_the_first_session_that_can_not_be_opened(self) -> None:
        breaker = Breaker(SETTINGS)
        breaker.could_not_open(now=10.0)
        assert breaker.is_open
        assert not breaker.may_try(10.0)
        assert 0.07 <= pause_of(breaker, 10.0) <= 0.11

    def test_it_opens_after_some_broken_exchanges_in_a_row(self) -> None:
        breaker = Breaker(SETTINGS)
        assert [breaker.exchange_failed(1.0) for _ in range(3)] == [False, False, True]
        assert breaker.is_open
        assert 0.75 <= pause_of(breaker, 1.0) <= 1.01

    def test_an_answer_between_them_begins_the_count_anew(self) -> None:
        breaker = Breaker(SETTINGS)
        for _ in range(10):
            breaker.exchange_failed(1.0)
            breaker.exchange_failed(1.0)
            breaker.answered()
        assert not breaker.is_open

    def test_pauses_double_up_to_the_longest(self) -> None:
        breaker = Breaker(SETTINGS)
        pauses = []
        for round_ in range(10):
            breaker.could_not_open(now=100.0 * round_)
            pauses.append(pause_of(breaker, 100.0 * round_))
        for attempt, pause in enumerate(pauses):
            full = min(8.0, 0.1 * 2**attempt)
            assert 0.74 * full <= pause <= full + 0.001

    def test_a_session_that_opens_closes_it_but_does_not_shorten_the_next_pause(self) -> None:
        breaker = Breaker(SETTINGS)
        for now in (0.0, 100.0, 200.0):
            for _ in range(3):
                breaker.exchange_failed(now)
            assert breaker.is_open
            pause = pause_of(breaker, now)
            breaker.session_opened()
            assert not breaker.is_open
        assert 3.0 <= pause <= 4.01

    def test_what_fails_after_a_session_was_opened_in_the_pause_opens_it_again_at_once(self) -> None:
        breaker = Breaker(SETTINGS)
        for _ in range(3):
            breaker.exchange_failed(0.0)
        breaker.session_opened()
        assert breaker.may_try(0.1)
        breaker.could_not_open(0.1)
        assert breaker.is_open
        assert not breaker.may_try(0.2)

    def test_sessions_opened_in_between_do_not_excuse_exchanges_that_broke(self) -> None:
        breaker = Breaker(SETTINGS)
        for _ in range(3):
            breaker.session_opened()  # each broken exchange costs a session, and another is opened
            breaker.exchange_failed(1.0)
        assert breaker.is_open

    def test_an_answered_request_forgets_everything(self) -> None:
        breaker = Breaker(SETTINGS)
        for now in (0.0, 1.0, 2.0, 3.0):
            breaker.could_not_open(now)
        breaker.session_opened()
        breaker.answered()
        breaker.could_not_open(10.0)
        assert pause_of(breaker, 10.0) <= 0.11

    def test_it_can_fail_for_years(self) -> None:
        breaker = Breaker(SETTINGS)
        for attempt in range(5000):
            breaker.could_not_open(float(attempt))
        assert breaker.is_open


class TestHealth:
    def test_it_begins_as_up(self) -> None:
        assert Health().state is State.UP

    def test_the_first_verdict_counts_at_once(self) -> None:
        health = Health(rise=2, fall=3)
        assert health.probed(Verdict.FAILS)
        assert health.state is State.DOWN

    @pytest.mark.parametrize("fall", [1, 2, 5])
    def test_it_falls_with_patience(self, fall: int) -> None:
        health = Health(rise=1, fall=fall)
        health.probed(Verdict.SERVES)
        assert [health.probed(Verdict.FAILS) for _ in range(fall)] == [False] * (fall - 1) + [True]
        assert not health.serves

    @pytest.mark.parametrize("rise", [1, 2, 5])
    def test_it_rises_with_patience(self, rise: int) -> None:
        health = Health(rise=rise, fall=1)
        health.probed(Verdict.FAILS)
        assert [health.probed(Verdict.SERVES) for _ in range(rise)] == [False] * (rise - 1) + [True]
        assert health.serves

    def test_a_single_failure_in_between_is_forgiven(self) -> None:
        health = Health(rise=2, fall=3)
        for verdict in [Verdict.SERVES, Verdict.FAILS, Verdict.FAILS] * 20:
            health.probed(verdict)
        assert health.serves

    def test_a_standby_does_not_serve_and_joins_at_once_when_promoted(self) -> None:
        health = Health(rise=3, fall=3)
        health.probed(Verdict.SERVES)
        assert health.probed(Verdict.STANDBY)
        assert health.state is State.STANDBY
        assert not health.serves
        assert health.probed(Verdict.SERVES)
        assert health.serves
