"""Tests of Backend: it combines health, breaker and gate, and acts when the backend goes down."""

from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.config import BackendOptions
from gateway.errors import BackendError
from gateway.identity import Identity, OwnNames, Principal
from gateway.policy import Effect
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.health import Verdict
from gateway.upstream.maintenance import maintain_pools
from gateway.upstream.pool import Pool
from gateway.upstream.slots import Slots
from gateway.upstream.versions import CommonVersions
from tests.kit.fake_backends import FakeKeyManager, ask, in_virtual_time, kept_warm, lease, make_pool, use

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


# Minted credentials ---------------------------------------------------------------------------------------------------


def minted(name: str) -> Principal:
    names = OwnNames(f"storage/{name}", b"")
    return Principal(Identity("storage", shared=False), "CN=ca", f"CN={name}", 0, float("inf"), names)


def make_minting(key_manager: FakeKeyManager, nursery: trio.Nursery, limit: int = 10) -> Backend:
    """Return a backend without pools, which builds a pool for each principal with minted credentials."""
    slots = Slots(limit)
    backend = Backend(key_manager.name, slots, {}, mints=True)

    def build(principal: Principal) -> Pool:
        credential = principal.credential
        pool, _observer = make_pool(
            key_manager, nursery.start_soon, credential=credential, slots=slots, keeps_warm=False
        )
        return pool

    backend.build_pool = build
    return backend


@in_virtual_time
async def test_questions_about_a_minted_credential_build_no_pool(nursery: trio.Nursery) -> None:
    backend = make_minting(FakeKeyManager(), nursery)
    alice = minted("alice").credential
    balancer = Balancer([backend])
    assert backend.is_live
    assert backend.is_available_to(alice, Effect.READ)
    assert backend.is_reachable_with(alice)
    assert backend.has_room_for(alice)
    assert backend.room_for(alice) == 10
    assert list(balancer.order(alice, Effect.READ, (1, 4))) == [backend]
    assert list(balancer.order(alice, Effect.READ, (1, 4), backend)) == [backend]
    assert not balancer.has_other([backend], alice, Effect.READ, (1, 4))
    assert balancer.room_elsewhere(backend, alice, Effect.READ) == 0
    assert not balancer.serves_elsewhere(backend, alice)
    assert CommonVersions(balancer).answer(ask("1"), alice) is None
    assert backend.pools == {}


@in_virtual_time
async def test_each_principal_has_sessions_of_its_own(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_minting(key_manager, nursery)
    for _ in range(3):
        for name in ("alice", "bob"):
            assert await use(backend.pool_of(minted(name)), f"{name}-1") == f"{name}-1"
    assert [(credential, key) for credential, key in key_manager.executed] == [
        (f"storage/{name}", f"{name}-1") for _ in range(3) for name in ("alice", "bob")
    ]
    assert len(key_manager.connections) == 2


@in_virtual_time
async def test_nothing_is_kept_warm_for_a_minted_credential(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_minting(key_manager, nursery)
    pool = backend.pool_of(minted("alice"))
    async with kept_warm(pool):
        await trio.sleep(5)
        assert key_manager.connections == []
        await use(pool, "1")
        assert not pool.is_dormant
        await trio.sleep(26)
        assert key_manager.open_connections == []
        assert pool.is_dormant
        assert pool.is_unused


@in_virtual_time
async def test_a_failure_of_a_minted_credential_ends_with_a_request(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_minting(key_manager, nursery)
    alice = minted("alice").credential
    pool = backend.pool_of(minted("alice"))
    key_manager.refused.add(alice.partition("/")[0])
    key_manager.refuse("credential")
    async with kept_warm(pool):
        with pytest.raises(BackendError):
            await use(pool, "1")
        assert not backend.is_available_to(alice, Effect.READ)
        attempts = len(key_manager.attempts)
        await trio.sleep(1)
        assert len(key_manager.attempts) == attempts  # no attempt without a request
        assert backend.is_available_to(alice, Effect.READ)
        assert backend.is_available_to(minted("bob").credential, Effect.READ)
        key_manager.recover()
        assert await use(pool, "1") == "1"


@in_virtual_time
async def test_a_breaker_outlives_the_pool_of_a_minted_credential(nursery: trio.Nursery) -> None:
    backend = make_minting(FakeKeyManager(), nursery)
    alice = minted("alice")
    backend.pool_of(alice)
    fail(backend, alice.credential)
    backend.remove_pool(alice.credential)
    backend.pool_of(alice)
    assert not backend.is_available_to(alice.credential, Effect.READ)
    assert backend.is_available_to(minted("bob").credential, Effect.READ)


@in_virtual_time
async def test_sessions_of_all_principals_are_within_the_limit(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_minting(key_manager, nursery, limit=3)
    most = 0
    pools = [backend.pool_of(minted(f"client-{number}")) for number in range(30)]
    async with kept_warm(*pools), trio.open_nursery() as clients:
        for number, pool in enumerate(pools):
            clients.start_soon(use, pool, f"client-{number}")
        for _ in range(100):
            most = max(most, len(key_manager.open_connections))
            await trio.sleep(0.01)
    assert most == 3
    assert {credential.partition("/")[2] for credential, _key in key_manager.executed} == {
        key for _credential, key in key_manager.executed
    }
    assert len(key_manager.executed) == 30


@in_virtual_time
async def test_pools_of_a_drained_or_closed_backend_lend_nothing(nursery: trio.Nursery) -> None:
    backend = make_minting(FakeKeyManager(), nursery)
    backend.drain()
    with pytest.raises(BackendError, match="drained"):
        await use(backend.pool_of(minted("alice")), "1")
    backend.enable()
    assert await use(backend.pool_of(minted("alice")), "1") == "1"
    backend.close("removed")
    with pytest.raises(BackendError, match="left this address"):
        await use(backend.pool_of(minted("bob")), "1")


@in_virtual_time
async def test_a_pool_of_a_removed_identity_is_not_built(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    red = Principal(Identity("red", shared=False), "CN=ca", "CN=a", 0, float("inf"))
    assert backend.pool_of(red) is backend.pools["red"]
    backend.remove_pool("red")
    with pytest.raises(BackendError, match="the identity has been removed"):
        backend.pool_of(red)
