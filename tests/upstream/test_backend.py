"""Backend: failures of one credential are its own, failures of several are the backend's; how it turns down."""

import pytest
import trio

from gateway.errors import BackendError
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


def fail(backend: Backend, *credentials: str, effect: Effect = Effect.READ) -> None:
    """Three exchanges of each credential fail."""
    now = trio.current_time()
    for name in credentials:
        for _ in range(3):
            backend.breaker.failed(name, effect, now, now)


# By the outcomes of exchanges ----------------------------------------------------------------------------------------


@in_virtual_time
async def test_failures_of_one_credential_hold_back_that_credential_only(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red")
    assert backend.state == "up"
    assert not backend.is_available_to("red", Effect.READ)
    assert backend.is_available_to("blue", Effect.READ)
    assert backend.is_live


@in_virtual_time
async def test_failures_of_two_credentials_eject_the_backend_for_all(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green")
    assert backend.state == "ejected"
    assert not backend.is_available_to("blue", Effect.READ)


@in_virtual_time
async def test_a_backend_with_one_credential_is_ejected_by_its_failures(nursery: trio.Nursery) -> None:
    slots = Slots(10)
    pool, _ = make_pool(FakeKeyManager(), nursery.start_soon, slots=slots)
    backend = Backend("atlanta", slots, {"red": pool})
    fail(backend, "red")
    assert backend.state == "ejected"


@in_virtual_time
async def test_failed_changes_leave_reads_alone(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green", effect=Effect.MUTATE)
    assert backend.state == "half_open"
    assert backend.is_available_to("blue", Effect.READ)
    assert not backend.is_available_to("blue", Effect.MUTATE)


@in_virtual_time
async def test_an_ejected_backend_is_half_open_once_a_credential_is_answered(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green")
    states = []
    for _ in range(5):  # the first begins the trials of 1, 2, 4 and 8 at once
        backend.breaker.answered("blue", Effect.READ, trio.current_time())
        states.append(backend.state)
    assert states == ["half_open"] * 4 + ["up"]
    assert not backend.is_available_to("red", Effect.READ)  # its own circuit is open


@in_virtual_time
async def test_an_ejected_backend_is_tried_once_its_pause_is_over(nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    fail(backend, "red", "green")
    await trio.sleep(1)
    assert backend.is_available_to("blue", Effect.READ)
    assert backend.state == "half_open"

    backend.breaker.enter("blue", Effect.READ, trio.current_time())
    assert not backend.is_available_to("blue", Effect.READ)  # one trial at first


# By its own health check ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verdict", "state"), [(Verdict.FAILS, "down"), (Verdict.STANDBY, "standby")])
@in_virtual_time
async def test_the_health_check_speaks_for_all_credentials(verdict: Verdict, state: str, nursery: trio.Nursery) -> None:
    backend = make_backend(FakeKeyManager(), nursery)
    backend.health.probed(verdict)
    assert backend.state == state
    assert not any(backend.is_available_to(name, Effect.READ) for name in CREDENTIALS)
    assert not backend.is_live


@in_virtual_time
async def test_idle_sessions_are_closed_if_the_backend_turns_down(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    for name in CREDENTIALS:
        await use(backend.pools[name], "key")
    assert len(key_manager.open_connections) == 3
    backend.turned_down(lambda _credential: True)
    assert key_manager.open_connections == []
    assert backend.slots.used == 0


@pytest.mark.parametrize(("repeatable", "others", "stays"), [(True, True, 0), (True, False, 1), (False, True, 1)])
@in_virtual_time
async def test_reads_under_way_are_interrupted_if_other_backends_can_serve_them(
    repeatable: bool, others: bool, stays: int, nursery: trio.Nursery
) -> None:
    """A change that is merely slow must not become one whose outcome nobody knows."""
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    pool = backend.pools["red"]
    session = await pool.wait()
    session.is_repeatable = repeatable
    backend.turned_down(lambda _credential: others)
    assert len(key_manager.open_connections) == stays
    pool.give_back(session)


@pytest.mark.parametrize("others", [True, False])
@in_virtual_time
async def test_requests_that_wait_are_released_if_other_backends_can_serve_them(
    others: bool, nursery: trio.Nursery
) -> None:
    key_manager = FakeKeyManager()
    key_manager.is_reachable = False
    backend = make_backend(key_manager, nursery)
    reasons = []

    async def waits() -> None:
        try:
            await backend.pools["red"].wait()
        except BackendError as error:
            reasons.append((error.reason, trio.current_time()))

    nursery.start_soon(waits)
    await trio.sleep(1)
    backend.turned_down(lambda _credential: others)
    await trio.sleep(5)
    assert reasons == [("down", 1.0) if others else ("timeout", 3.0)]


@in_virtual_time
async def test_an_answered_health_check_ends_the_pause_between_handshakes(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager()
    backend = make_backend(key_manager, nursery)
    key_manager.refuse()
    with pytest.raises(BackendError):
        await backend.pools["red"].wait()
    assert not backend.is_live

    key_manager.recover()
    backend.reached()
    assert backend.pools["blue"].is_failing is False
    assert backend.is_live


# Roles and versions --------------------------------------------------------------------------------------------------


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
