"""Tests of maintenance: learned limits are dropped; an internal error ends neither the rounds nor the gateway."""

from collections.abc import Callable
from functools import partial

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from gateway.config import PoolConfig
from gateway.errors import BackendError
from gateway.log import Log
from gateway.metrics import Metrics
from gateway.policy import Effect
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.maintenance import maintain_pools, watch
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import FakeKeyManager, in_virtual_time, lease, make_pool

READ = Effect.READ
WARM = PoolConfig(min_idle=1, idle_timeout=25.0, lifetime_spread=0.0)


@pytest.fixture
def logged() -> LogCapture:
    return LogCapture()


@pytest.fixture
def log(logged: LogCapture) -> Log:
    """Return a log whose entries ``logged`` captures."""
    logger: Log = structlog.wrap_logger(
        None, processors=[logged], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger


def stumble(fault: Exception) -> Callable[..., None]:
    """Return a function that raises the first time, and does nothing afterwards."""
    faults = [fault]

    def stumbles(*_arguments: object) -> None:
        if faults:
            raise faults.pop()

    return stumbles


@in_virtual_time
async def test_a_learned_idle_limit_is_forgotten_after_an_hour(
    nursery: trio.Nursery, logged: LogCapture, log: Log
) -> None:
    limit = IdleLimit(25.0)
    pools = [make_pool(FakeKeyManager(), nursery.start_soon)[0] for _ in range(2)]
    nursery.start_soon(partial(maintain_pools, pools, 3.0, idle_limit=limit, log=log.bind(backend="atlanta")))
    for _ in range(3):
        await trio.sleep(20)
        limit.closed_by_peer(10.0, trio.current_time())
    assert limit.source == "learned"

    await trio.sleep(3590)
    assert limit.source == "learned"
    await trio.sleep(20)

    assert limit.source == "config"
    assert logged.entries == [
        {
            "event": "learned idle limit dropped after an hour: pool.idle_timeout applies again",
            "log_level": "info",
            "backend": "atlanta",
            "idle_timeout": 25.0,
        }
    ]


@in_virtual_time
async def test_a_fault_in_the_round_of_one_pool_stops_no_other_round(
    nursery: trio.Nursery, logged: LogCapture, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots(4)
    red, blue = (
        make_pool(FakeKeyManager(), nursery.start_soon, WARM, credential=name, slots=slots)[0]
        for name in ("red", "blue")
    )
    fault = RuntimeError("a fault")

    def stumbles() -> list[object]:
        raise fault

    monkeypatch.setattr(red, "maintain", stumbles)
    nursery.start_soon(partial(maintain_pools, [red, blue], 3.0, log=log))
    await trio.sleep(1)
    assert (red.statistics().idle, blue.statistics().idle) == (0, 1)

    monkeypatch.undo()
    await trio.sleep(1)
    assert red.statistics().idle == 1
    assert [(entry["event"], entry["exc_info"]) for entry in logged.entries] == [
        ("internal error: pool not maintained; report this bug", fault)  # once a minute, however many rounds
    ]


@in_virtual_time
async def test_a_fault_while_a_session_is_validated_costs_that_session_only(
    nursery: trio.Nursery, logged: LogCapture, log: Log
) -> None:
    key_manager = FakeKeyManager()
    pool, observer = make_pool(key_manager, nursery.start_soon, WARM)
    nursery.start_soon(partial(maintain_pools, [pool], 3.0, log=log))
    await trio.sleep(1)
    fault = RuntimeError("a fault")
    key_manager.behaviour = lambda _connection, _request: stumble(fault)()

    await trio.sleep(21)  # beyond 0.8 of idle_timeout
    key_manager.recover()
    await trio.sleep(21)

    assert [(entry["event"], entry["exc_info"]) for entry in logged.entries] == [
        ("internal error: session not validated; report this bug", fault)
    ]
    assert observer.closed == {"error": 1}
    assert pool.statistics().idle == 1


@in_virtual_time
async def test_a_fault_while_a_backend_is_watched_does_not_end_the_watch(
    nursery: trio.Nursery, logged: LogCapture, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend("atlanta", Slots(1), {})
    fault = RuntimeError("a fault")
    monkeypatch.setattr("gateway.upstream.maintenance._move_waiters", stumble(fault))
    watching = partial(watch, backend, balancer=Balancer([backend]), metrics=Metrics("test"), log=log)
    nursery.start_soon(watching)
    await trio.sleep(5)

    assert [(entry["log_level"], entry["exc_info"]) for entry in logged.entries] == [("error", fault)]


# Watching ----------------------------------------------------------------------------------------------------------


def two_backends(nursery: trio.Nursery) -> list[Backend]:
    """Return two backends with a slot each."""
    backends = []
    for name in ("atlanta", "london"):
        slots = Slots(1)
        pool, _ = make_pool(FakeKeyManager(name), nursery.start_soon, slots=slots)
        backends.append(Backend(name, slots, {"red": pool}))
    return backends


@pytest.mark.parametrize(
    ("london_is_busy", "effect", "moves"), [(False, READ, True), (True, READ, False), (False, None, False)]
)
@in_virtual_time
async def test_waiting_requests_move_if_another_backend_has_room(
    nursery: trio.Nursery, log: Log, london_is_busy: bool, effect: Effect | None, moves: bool
) -> None:
    atlanta, london = two_backends(nursery)
    await lease(atlanta.pools["red"])
    if london_is_busy:
        await lease(london.pools["red"])
    balancer = Balancer([atlanta, london])
    nursery.start_soon(partial(watch, atlanta, balancer=balancer, metrics=Metrics("test"), log=log))
    outcome = []

    async def client() -> None:
        try:
            await atlanta.pools["red"].wait("alice", effect)
        except BackendError as error:
            outcome.append(error.reason)

    nursery.start_soon(client)
    await trio.sleep(1)

    assert outcome == ["moved"] * moves


@in_virtual_time
async def test_reads_are_overdue_at_once_if_their_key_manager_becomes_silent(nursery: trio.Nursery, log: Log) -> None:
    """No answer to a new connection means that the awaited answers will not come either."""
    slots, silent = Slots(4), FakeKeyManager("atlanta")
    pool, _ = make_pool(silent, nursery.start_soon, slots=slots)
    atlanta, (_, london) = Backend("atlanta", slots, {"red": pool}), two_backends(nursery)
    balancer = Balancer([atlanta, london])
    nursery.start_soon(partial(watch, atlanta, balancer=balancer, metrics=Metrics("test"), log=log))
    read, change = await lease(pool), await lease(pool)
    fired: list[str] = []
    for session, name in ((read, "read"), (change, "change")):
        session.is_repeatable = session is read
        pool.timers.set(session.timer, trio.current_time() + 30, partial(fired.append, name))
    silent.is_reachable = False
    nursery.start_soon(lease, pool)

    await trio.sleep(2.9)
    assert fired == []
    await trio.sleep(0.5)

    assert fired == ["read"]
