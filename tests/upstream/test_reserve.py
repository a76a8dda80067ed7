"""Tests of the reserve: a principal that holds half of the slots leaves the last slots to other principals."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.upstream.slots import Slots
from tests.kit.fake_backends import FakeKeyManager, in_virtual_time, kept_warm, make_pool, waiting


@pytest.fixture
def atlanta() -> FakeKeyManager:
    return FakeKeyManager()


@pytest.mark.parametrize(("seen_before", "sessions"), [(50.0, 7), (70.0, 8)])
@in_virtual_time
async def test_a_principal_leaves_a_slot_to_one_seen_within_a_minute(
    nursery: trio.Nursery, atlanta: FakeKeyManager, seen_before: float, sessions: int
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(8))
    (bob,) = await waiting(pool, nursery, 1, "bob")
    await trio.sleep(1)
    assert bob.session is not None
    pool.give_back(bob.session)
    await trio.sleep(seen_before - 1)
    pool.drop_idle("idle")

    async with kept_warm(pool):
        await waiting(pool, nursery, 10, "alice")
        await trio.sleep(1)
        assert pool.statistics().busy == sessions

        (bob,) = await waiting(pool, nursery, 1, "bob")
        await trio.sleep(1)
        assert (bob.session is not None) is (sessions < 8)


@in_virtual_time
async def test_a_greedy_principal_gets_no_session_opened_for_another(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(64))
    async with kept_warm(pool):
        for name in ("bob", "carol"):
            pool.give_back(await pool.wait(name))
            session = pool.take(name)
            assert session is not None
            session.close()
            pool.give_back(session)
        await waiting(pool, nursery, 100, "alice")
        await trio.sleep(5)
        assert pool.statistics().busy == 56

        for name in ("bob", "carol"):
            (other,) = await waiting(pool, nursery, 1, name)
            await trio.sleep(atlanta.handshake_cost)
            await wait_all_tasks_blocked()
            assert other.session is not None
        assert pool.statistics().busy == 58


@in_virtual_time
async def test_many_principals_use_every_slot(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(8))
    for number in range(20):
        await waiting(pool, nursery, 1, f"client-{number}")
    await trio.sleep(1)
    assert pool.statistics().busy == 8


@in_virtual_time
async def test_the_principal_not_seen_for_longest_is_forgotten_beyond_a_thousand(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(8))
    reserve = pool._reserve
    for number in range(1000):
        reserve.note(f"client-{number}")
    reserve.note("client-0")
    reserve.note("client-1000")
    assert len(reserve._seen) == 1000
    assert "client-0" in reserve._seen
    assert "client-1" not in reserve._seen
