"""Tests of the ceiling: refused handshakes teach how many sessions a backend allows."""

from itertools import pairwise

from gateway.upstream.ceiling import Ceiling


class Clock:
    """The time that a test passes to the ceiling."""

    def __init__(self) -> None:
        self.now = 1000.0


def refuse(ceiling: Ceiling, sessions: int, clock: Clock, times: int = 1) -> bool:
    """Refuse handshakes, one after the other, while so many sessions answer. Return the last result."""
    is_news = False
    for _ in range(times):
        began = clock.now
        clock.now += 0.1
        is_news = ceiling.refused(sessions, began, clock.now)
    return is_news


def test_two_refusals_in_a_row_teach_a_ceiling() -> None:
    clock = Clock()
    ceiling = Ceiling(64)
    assert not refuse(ceiling, 4, clock)
    assert ceiling.now(clock.now) == 64
    assert refuse(ceiling, 4, clock)
    assert ceiling.now(clock.now) == 4
    assert repr(ceiling) == "<Ceiling 4 of 64>"


def test_refusals_of_one_moment_are_one_sign() -> None:
    """A key manager that goes down refuses every handshake that is under way."""
    clock = Clock()
    ceiling = Ceiling(64)
    assert not any(ceiling.refused(4, clock.now, clock.now + 0.1) for _ in range(16))
    assert ceiling.value is None


def test_a_session_that_opens_speaks_against_a_ceiling() -> None:
    clock = Clock()
    ceiling = Ceiling(64)
    for _ in range(10):
        refuse(ceiling, 4, clock)
        ceiling.opened(5)
    assert ceiling.value is None


def test_one_session_more_is_tried_after_a_growing_pause() -> None:
    clock = Clock()
    ceiling, tries = Ceiling(64), []
    refuse(ceiling, 4, clock, 2)
    began = clock.now
    while clock.now < began + 3600:
        if ceiling.now(clock.now) == 5:
            tries.append(clock.now)
            assert not refuse(ceiling, 4, clock)
        clock.now += 1
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert tries[0] - began <= 61
    assert max(gaps) <= 602
    assert 5 <= len(tries) <= 15


def test_a_session_beyond_the_ceiling_raises_it() -> None:
    clock = Clock()
    ceiling = Ceiling(8)
    refuse(ceiling, 4, clock, 2)
    clock.now += 61
    raised = []
    for sessions in range(5, 9):
        assert ceiling.now(clock.now) == sessions
        ceiling.opened(sessions)
        raised.append(ceiling.value)
    assert raised == [5, 6, 7, None]
    assert ceiling.now(clock.now) == 8


def test_a_ceiling_that_sinks_is_learned_too() -> None:
    clock = Clock()
    ceiling = Ceiling(64)
    refuse(ceiling, 40, clock, 2)
    assert refuse(ceiling, 4, clock, 2)
    assert ceiling.now(clock.now) == 4
