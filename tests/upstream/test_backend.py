"""Backend: a credential that is refused is its own trouble; several that fail together are the backend's."""

import pytest
import trio

from gateway.policy import Effect
from gateway.upstream.backend import Backend, Traits
from gateway.upstream.health import Verdict
from gateway.upstream.slots import Slots
from tests.upstream.fakes import FakeKeyManager, in_virtual_time, make_pool, use

CREDENTIALS = ("red", "green", "blue")


def make_backend(key_manager: FakeKeyManager, nursery: trio.Nursery) -> Backend:
    slots = Slots(10)
    pools = {name: make_pool(key_manager, nursery.start_soon, credential=name, slots=slots)[0] for name in CREDENTIALS}
    return Backend(key_manager.name, slots, pools)


def fail(backend: Backend, *credentials: str) -> None:
    for name in credentials:
        for _ in range(3):
            backend.pools[name].exchange_failed()


@in_virtual_time
async def test_one_credential_that_fails_is_its_own_trouble(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red")
    assert not backend.judge()
    assert backend.state == "up"
    assert not backend.is_available_to("red")
    assert backend.is_available_to("blue")


@in_virtual_time
async def test_two_that_fail_are_the_backends_fault(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green")
    assert backend.judge()
    assert backend.state == "ejected"
    assert not backend.is_available_to("blue")


@in_virtual_time
async def test_unless_somebody_elses_have_worked_since(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green")
    await trio.sleep(1)
    backend.pools["blue"].answered(trio.current_time())
    backend.judge()
    assert backend.state == "up"
    assert backend.is_available_to("blue")


@in_virtual_time
async def test_or_its_own_probe_was_answered_since(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green")
    await trio.sleep(1)
    backend.proved(trio.current_time())
    backend.judge()
    assert backend.state == "up"


@in_virtual_time
async def test_it_recovers_when_one_of_them_works_again(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green")
    backend.judge()
    backend.pools["red"].answered(trio.current_time())
    assert backend.judge()
    assert backend.state == "up"


@pytest.mark.parametrize(("verdict", "state"), [(Verdict.FAILS, "down"), (Verdict.STANDBY, "standby")])
@in_virtual_time
async def test_its_own_probe_speaks_for_all(verdict: Verdict, state: str, nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    backend.health.probed(verdict)
    assert backend.state == state
    assert not any(backend.is_available_to(name) for name in CREDENTIALS)
    assert not backend.is_live


@in_virtual_time
async def test_when_it_turns_down_idle_sessions_go(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    for name in CREDENTIALS:
        await use(backend.pools[name], "key")
    assert len(key_manager.open_connections) == 3
    backend.let_go(lambda _credential: True)
    assert key_manager.open_connections == []
    assert backend.slots.used == 0


@pytest.mark.parametrize(("repeatable", "others", "stays"), [(True, True, 0), (True, False, 1), (False, True, 1)])
@in_virtual_time
async def test_and_reads_on_their_way_where_others_can_serve_them(
    repeatable: bool, others: bool, stays: int, nursery: trio.Nursery
) -> None:
    """A change that is merely slow must not become one whose outcome nobody knows."""
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    pool = backend.pools["red"]
    session = await pool.wait()
    session.is_repeatable = repeatable
    backend.let_go(lambda _credential: others)
    assert len(key_manager.open_connections) == stays
    pool.give_back(session)


@pytest.mark.parametrize("effect", Effect)
def test_a_clone_that_only_reads_runs_nothing_that_leaves_a_trace(effect: Effect) -> None:
    clone = Backend("clone", Slots(1), {}, traits=Traits(writable=False))
    assert clone.accepts(effect) is (effect <= Effect.TOUCH)


def test_versions_are_believed_once_they_are_told() -> None:
    backend = Backend("kms", Slots(1), {})
    assert backend.speaks((2, 1))
    backend.versions = frozenset({(1, 4)})
    assert backend.speaks((1, 4))
    assert not backend.speaks((2, 1))
