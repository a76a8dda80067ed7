"""Tests of Backend: it combines health, breaker and gate, and acts when the backend goes down."""

from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.config import BackendOptions
from gateway.errors import BackendError
from gateway.policy import Effect
from gateway.upstream.backend import Backend
from gateway.upstream.health import Verdict
from gateway.upstream.maintenance import maintain_pools
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import FakeKeyManager, ask, in_virtual_time, lease, make_pool, use

CREDENTIALS = ("red", "green", "blue")


def make_backend(key_manager: FakeKeyManager, nursery: trio.Nursery, limit: int = 10) -> Backend:
    slots = Slots(limit)
    pools = {name: make_pool(key_manager, nursery.start_soon, credential=name, slots=slots)[0] for name in CREDENTIALS}
    return Backend(key_manager.name, slots, pools)


def fail(backend: Backend, *credentials: str, effect: Effect = Effect.READ) -> None:
    """Count three failed exchanges of each credential."""
    now = trio.current_time()
    for name in credentials:
        for _ in range(3):
            backend.breaker.failed(name, effect, now, now)


def available(backend: Backend, effect: Effect = Effect.READ) -> list[str]:
    return [name for name in CREDENTIALS if backend.is_available_to(name, effect)]


# Exchanges ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_failures_of_one_credential_hold_back_that_credential_only(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red")
    assert backend.state == "up"
    assert available(backend) == ["green", "blue"]


@in_virtual_time
async def test_failures_of_two_credentials_eject_the_backend(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green")
    assert backend.state == "ejected"
    assert available(backend) == []
    assert backend.is_live  # sessions can be opened


@in_virtual_time
async def test_an_answer_to_another_credential_begins_the_trials(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green")
    backend.breaker.answered("blue", Effect.READ, trio.current_time())
    assert backend.state == "half_open"
    assert available(backend) == ["blue"]


@in_virtual_time
async def test_four_answers_in_a_row_bring_the_backend_back(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green")
    await trio.sleep(1)
    for _ in range(4):
        assert available(backend) == list(CREDENTIALS)
        backend.breaker.answered("red", Effect.READ, trio.current_time())
        backend.breaker.answered("green", Effect.READ, trio.current_time())
    assert backend.state == "up"


@in_virtual_time
async def test_failures_of_changes_leave_reads_alone(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green", effect=Effect.MUTATE)
    assert backend.state == "half_open"
    assert available(backend) == list(CREDENTIALS)
    assert available(backend, Effect.MUTATE) == []


# Handshakes --------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_refused_credential_makes_only_its_own_pool_unreachable(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    key_manager.refused.add("red")
    with pytest.raises(BackendError):
        await use(backend.pools["red"], "key")
    assert available(backend) == ["green", "blue"]
    assert backend.is_live


@in_virtual_time
async def test_a_refused_connection_makes_pools_without_sessions_unreachable(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    await use(backend.pools["blue"], "key")
    key_manager.refuse()
    with pytest.raises(BackendError):
        await use(backend.pools["red"], "key")
    assert available(backend) == ["blue"]


@in_virtual_time
async def test_an_answered_health_check_ends_the_pause_of_the_gate(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    key_manager.refuse()
    nursery.start_soon(partial(maintain_pools, backend.pools.values(), 3.0))
    with pytest.raises(BackendError):
        await use(backend.pools["red"], "key")
    await trio.sleep(60)
    key_manager.recover()

    backend.reached()
    await trio.sleep(0.25 + key_manager.handshake_cost)

    assert available(backend) == list(CREDENTIALS)


# Health ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verdict", "state"), [(Verdict.FAILS, "down"), (Verdict.STANDBY, "standby")])
@in_virtual_time
async def test_the_health_check_speaks_for_every_credential(
    verdict: Verdict, state: str, nursery: trio.Nursery
) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    backend.health.checked(verdict)
    assert backend.state == state
    assert available(backend) == []
    assert not backend.is_live


@in_virtual_time
async def test_idle_sessions_are_closed_when_the_backend_goes_down(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    for name in CREDENTIALS:
        await use(backend.pools[name], "key")
    assert len(key_manager.open_connections) == 3
    backend.on_down(lambda _credential: True)
    assert key_manager.open_connections == []
    assert backend.slots.used == 0


@pytest.mark.parametrize(("repeatable", "others", "stays"), [(True, True, 0), (True, False, 1), (False, True, 1)])
@in_virtual_time
async def test_reads_are_interrupted_on_backend_down_if_others_serve(
    repeatable: bool, others: bool, stays: int, nursery: trio.Nursery
) -> None:
    """A change that is only slow must not end with an unknown outcome."""
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    pool = backend.pools["red"]
    session = await pool.wait()
    session.is_repeatable = repeatable
    backend.on_down(lambda _credential: others)
    assert len(key_manager.open_connections) == stays
    pool.give_back(session)


@pytest.mark.parametrize("others", [True, False])
@in_virtual_time
async def test_waiting_requests_move_on_backend_down_if_others_serve(others: bool, nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery, limit=1)
    pool = backend.pools["red"]
    session = await pool.wait()
    errors = []

    async def client() -> None:
        try:
            pool.give_back(await pool.wait())
        except BackendError as error:
            errors.append(error.reason)

    nursery.start_soon(client)
    await wait_all_tasks_blocked()
    backend.on_down(lambda _credential: others)
    await wait_all_tasks_blocked()

    assert errors == ["down"] * others
    assert pool.statistics().waiting == (not others)
    pool.give_back(session)


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", Effect)
def test_a_read_only_backend_accepts_no_changes(effect: Effect) -> None:
    clone = Backend("clone", Slots(1), {}, options=BackendOptions(role="ro"))
    assert clone.accepts(effect) is (effect <= Effect.TOUCH)


def test_a_backend_speaks_every_version_until_it_has_reported_its_own() -> None:
    backend = Backend("kms", Slots(1), {})
    assert backend.speaks((2, 1))
    backend.versions = frozenset({(1, 4)})
    assert backend.speaks((1, 4))
    assert not backend.speaks((2, 1))


# Operators -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_drained_backend_finishes_its_exchange_and_takes_no_other(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    red = backend.pools["red"]
    idle, busy = await lease(red), await lease(red)
    red.give_back(idle)

    backend.drain()

    assert (backend.state, backend.is_live, available(backend)) == ("drained", False, [])
    assert red.statistics()[:2] == (0, 1)
    await busy.exchange(ask("key"))
    red.give_back(busy)
    assert red.statistics() == (0, 0, 0, 0)
    with pytest.raises(BackendError, match="an operator has drained the key manager"):
        await lease(red)
    nursery.start_soon(maintain_pools, backend.pools.values(), 3.0)
    await trio.sleep(5)
    assert key_manager.open_connections == []

    backend.enable()

    assert backend.state == "up"
    assert available(backend) == list(CREDENTIALS)
    red.give_back(await lease(red))


@in_virtual_time
async def test_requests_that_wait_at_a_drained_backend_move_on(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery, limit=1)
    red = backend.pools["red"]
    busy = await lease(red)
    failures = list[BackendError]()

    @nursery.start_soon
    async def wait() -> None:
        with pytest.raises(BackendError) as caught:
            await lease(red)
        failures.append(caught.value)

    await wait_all_tasks_blocked()
    backend.drain()
    await wait_all_tasks_blocked()
    assert [failure.reason for failure in failures] == ["drained"]
    red.give_back(busy)


@in_virtual_time
async def test_a_pool_of_a_removed_backend_is_not_reopened(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    backend.drain()
    backend.close("removed")
    backend.enable()
    with pytest.raises(BackendError) as caught:
        await lease(backend.pools["red"])
    assert caught.value.reason == "removed"


@in_virtual_time
async def test_a_reconnect_replaces_sessions_one_after_the_other(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    red = backend.pools["red"]
    sessions = [await lease(red) for _ in range(8)]
    for session in sessions[:6]:
        red.give_back(session)
    nursery.start_soon(maintain_pools, backend.pools.values(), 3.0)
    await wait_all_tasks_blocked()

    assert backend.reconnect(0.5) == 8
    await trio.sleep(1.3)
    assert red.statistics().idle == 3
    await trio.sleep(2)
    for session in sessions[6:]:
        red.give_back(session)
    await trio.sleep(5)
    assert not set(sessions) & {session for pool in backend.pools.values() for session in pool._idle}
