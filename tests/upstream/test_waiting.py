"""Tests of requests that wait for a session: the bound of the queue, and waits that move to other backends."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.errors import BackendError, PoolBusyError
from gateway.policy import Effect
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import SETTINGS, FakeKeyManager, in_virtual_time, lease, make_pool, waiting


@pytest.fixture
def atlanta() -> FakeKeyManager:
    return FakeKeyManager()


@in_virtual_time
async def test_a_request_beyond_the_queue_length_is_rejected(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"queue_length": 2}), slots=Slots(1))
    await lease(pool)
    await waiting(pool, nursery, 2)

    with pytest.raises(PoolBusyError, match="2 requests are waiting already") as caught:
        await pool.wait()

    assert caught.value.reason == "queue_full"
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=1 opening=0 waiting=2>"


@in_virtual_time
async def test_sessions_are_opened_with_a_queue_length_of_zero(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    """A request with a pending open does not count as waiting."""
    pool, _ = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"queue_length": 0}), slots=Slots(2))

    waiters = await waiting(pool, nursery, 3)
    await trio.sleep(1)

    assert [waiter.session is not None for waiter in waiters] == [True, True, False]
    assert isinstance(waiters[2].error, PoolBusyError)


@in_virtual_time
async def test_a_full_queue_rejects_the_principal_that_fills_it(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"queue_length": 3}), slots=Slots(1))
    await lease(pool)
    busy = await waiting(pool, nursery, 3, "alice")

    (modest,) = await waiting(pool, nursery, 1, "bob")

    assert [waiter.error is None for waiter in busy] == [True, True, False]
    assert isinstance(busy[2].error, PoolBusyError)
    assert modest.ended_at is None
    assert pool.statistics().waiting == 3


@in_virtual_time
async def test_waiting_requests_move_the_oldest_first(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    await lease(pool)
    moved: list[str] = []

    async def client(name: str, effect: Effect | None) -> None:
        try:
            await pool.wait("alice", effect)
        except BackendError as error:
            moved.append(f"{name} {error.reason}")

    for name, effect in [("bound", None), ("read", Effect.READ), ("change", Effect.MUTATE), ("late", Effect.READ)]:
        nursery.start_soon(client, name, effect)
        await trio.sleep(1)
    assert pool.waiters.have_waited_since(trio.current_time() - 4)
    assert not pool.waiters.have_waited_since(trio.current_time() - 5)

    pool.waiters.move(trio.current_time() - 1.5, lambda effect: 0 if effect is Effect.MUTATE else 5)
    await wait_all_tasks_blocked()

    assert moved == ["read moved"]
    assert pool.statistics().waiting == 3
    pool.waiters.move(trio.current_time(), lambda _effect: 1)
    await wait_all_tasks_blocked()
    assert sorted(moved) == ["change moved", "late moved", "read moved"]
