"""Tests of the learned idle limit: the closes that count as evidence, and the end of a learned limit."""

import pytest
import trio

from gateway.config import PoolConfig
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.maintenance import maintain_pools
from tests.kit.fake_backends import Connection, FakeKeyManager, in_virtual_time, make_pool


def test_closes_at_about_the_same_age_teach_a_limit() -> None:
    limit = IdleLimit(25)
    assert [limit.closed_by_peer(age, now) for now, age in [(20, 10.0), (35, 10.2), (50, 10.1)]] == [False, False, True]
    assert limit.effective == pytest.approx(8.0)
    assert limit.source == "learned"


def test_a_restart_that_closes_all_at_once_teaches_nothing() -> None:
    limit = IdleLimit(25)
    for restart in range(10):
        for session in range(20):
            assert not limit.closed_by_peer(10.0, 100.0 * restart + session * 0.001)
    assert limit.effective == 25
    assert limit.source == "config"


def test_closes_at_different_ages_teach_nothing() -> None:
    limit = IdleLimit(25)
    assert not any(limit.closed_by_peer(age, now) for now, age in enumerate([3.0, 12.0, 20.0, 7.0, 16.0], 1))


DAY = 86_400.0


@pytest.mark.parametrize("apart", [DAY, 7 * DAY, 600.0], ids=["a day", "a week", "ten minutes"])
def test_restarts_that_are_apart_teach_nothing(apart: float) -> None:
    limit = IdleLimit(25)
    for restart in range(52):
        assert not limit.closed_by_peer(10.0, restart * apart)
    assert limit.source == "config"


def test_closes_within_a_quarter_of_an_hour_are_evidence_together() -> None:
    limit = IdleLimit(25)
    assert [limit.closed_by_peer(10.0, now) for now in (0.0, 1000.0, 1400.0, 1899.0)] == [False, False, False, True]


def test_a_long_limit_is_learned_as_well() -> None:
    """A session that is closed after 2,000 s, and opened again, can't show that three times in a quarter of an hour."""
    limit = IdleLimit(3000)
    assert [limit.closed_by_peer(2000.0, now) for now in (2000.0, 4001.0, 6002.0)] == [False, False, True]


def test_a_limit_is_at_least_five_seconds() -> None:
    limit = IdleLimit(25)
    for now in (10, 20, 30):
        limit.closed_by_peer(1.0, now)
    assert limit.effective == 5.0


def test_a_learned_limit_never_exceeds_the_setting() -> None:
    limit = IdleLimit(25)
    for now in (100, 200, 300):
        assert not limit.closed_by_peer(60.0, now)
    assert limit.effective == 25


def test_a_lower_limit_is_learned_later() -> None:
    limit = IdleLimit(25)
    for now, age in [(20, 20.0), (45, 20.0), (70, 20.0), (100, 10.0), (120, 10.0), (140, 10.0)]:
        limit.closed_by_peer(age, now)
    assert limit.effective == pytest.approx(8.0)


def test_a_learned_limit_is_dropped_after_an_hour() -> None:
    limit = IdleLimit(25)
    for now in (20, 35, 50):
        limit.closed_by_peer(10.0, now)
    assert not limit.forget(50 + 3599)
    assert limit.forget(50 + 3601)
    assert limit.effective == 25


@in_virtual_time
async def test_a_pool_stays_below_what_its_key_manager_allows(nursery: trio.Nursery) -> None:
    """Sessions that are idle for 12 s are closed. After three closes the pool closes or validates them earlier."""
    key_manager = FakeKeyManager()
    pool, observer = make_pool(key_manager, nursery.start_soon, PoolConfig(min_idle=1, lifetime_spread=0.0))

    async def close_idle() -> None:
        heard: dict[Connection, tuple[int, float]] = {}
        while True:
            for connection in key_manager.open_connections:
                count, since = heard.get(connection, (-1, 0.0))
                if count != len(connection.sent):
                    heard[connection] = (len(connection.sent), trio.current_time())
                elif trio.current_time() - since >= 12.0:
                    connection.hang_up()
            await trio.sleep(0.1)

    nursery.start_soon(close_idle)
    nursery.start_soon(maintain_pools, [pool], 3.0)
    await trio.sleep(60)
    assert observer.learned == [pytest.approx(9.6, abs=0.5)]
    assert observer.closed["remote_idle"] == 3
    await trio.sleep(600)
    assert observer.closed["remote_idle"] == 3  # and never again
