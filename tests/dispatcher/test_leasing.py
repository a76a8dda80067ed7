"""Leasing: waits for sessions, and the validation of sessions that may be dead."""

import pytest
import trio

from gateway.dispatcher import DispatcherSettings
from gateway.dispatcher.job import ClientDisconnectedError, Job
from gateway.dispatcher.leasing import Leasing
from gateway.errors import PoolBusyError
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation
from gateway.policy import effect_of
from gateway.upstream.session import Session
from tests.kit.deployment import Deployment, deployment, principal
from tests.kit.fake_backends import Connection, answers, ask, in_virtual_time, lease, name_in

SETTINGS = DispatcherSettings()


def job_of(it: Deployment, operation: Operation, *, left: bool = False, prefers: int | None = None) -> Job:
    request = ask("key", operation)
    retries = it.dispatcher._budgets.retries["red"]
    job = Job(request, principal("red"), effect_of(request), SETTINGS, retries, lambda: left, None, trio.current_time())
    job.begin_round((iter(it.backends), None if prefers is None else it.backends[prefers], ()))
    return job


async def leased(it: Deployment, job: Job, until: float | None = None, *, always_validate: bool = False) -> Session:
    backend = it.backends[0]
    return await Leasing(SETTINGS).lease(backend, backend.pools["red"], job, until, always_validate=always_validate)


async def opens_idle_session(it: Deployment, seconds: float) -> Session:
    """Open a session to the first key manager, and leave it idle for some seconds."""
    pool = it.backends[0].pools["red"]
    session = await lease(pool)
    pool.give_back(session)
    await trio.sleep(seconds)
    return session


def validations(it: Deployment) -> int:
    return sum(len(connection.sent) for connection in it.key_managers[0].connections)


def answers_no_validation(connection: Connection, request: Request) -> None:
    """Answer clients' requests only."""
    if name_in(request):
        answers(connection, request)


@pytest.mark.parametrize(
    ("operation", "idle", "always", "expected"),
    [
        (Operation.GET, 20.0, False, 0),
        (Operation.GET, 0.5, True, 1),
        (Operation.CREATE, 0.5, False, 0),
        (Operation.CREATE, 20.0, False, 1),
        (Operation.CREATE, 0.5, True, 1),
    ],
)
@in_virtual_time
async def test_an_idle_session_is_validated_before_changes_or_always(
    operation: Operation, idle: float, always: bool, expected: int
) -> None:
    async with deployment("atlanta") as it:
        session = await opens_idle_session(it, idle)
        assert await leased(it, job_of(it, operation), always_validate=always) is session
        assert validations(it) == expected


@in_virtual_time
async def test_every_session_of_a_distrusted_key_manager_is_validated() -> None:
    async with deployment("atlanta") as it:
        session = await opens_idle_session(it, 0.5)
        it.backends[0].pools["red"].endpoint.distrust(trio.current_time())
        assert await leased(it, job_of(it, Operation.GET)) is session
        assert validations(it) == 1


@in_virtual_time
async def test_a_session_that_fails_validation_is_replaced_by_a_fresh_one() -> None:
    async with deployment("atlanta") as it:
        dead = await opens_idle_session(it, 20)
        it.key_managers[0].behaviour = answers_no_validation
        began = trio.current_time()
        session = await leased(it, job_of(it, Operation.CREATE))
        assert session is not dead
        assert not session.is_reused
        assert trio.current_time() - began == pytest.approx(SETTINGS.deadlines.connect + 0.06)


@pytest.mark.parametrize("is_distrusted", [False, True])
@pytest.mark.parametrize("sessions", [1, 2])
@in_virtual_time
async def test_validation_of_idle_sessions_ends_at_the_time_given(sessions: int, is_distrusted: bool) -> None:
    async with deployment("atlanta", max_sessions=sessions) as it:
        pool = it.backends[0].pools["red"]
        for session in [await lease(pool) for _ in range(sessions)]:
            pool.give_back(session)
        await trio.sleep(0.5)
        if is_distrusted:
            pool.endpoint.distrust(trio.current_time())
        it.key_managers[0].behaviour = answers_no_validation
        it.key_managers[0].is_reachable = False
        began = trio.current_time()
        with pytest.raises(PoolBusyError):
            await leased(it, job_of(it, Operation.GET), began + 0.5, always_validate=not is_distrusted)
        assert trio.current_time() - began == pytest.approx(0.5)


@in_virtual_time
async def test_a_validation_that_ends_too_late_costs_no_second_session() -> None:
    async with deployment("atlanta") as it:
        pool = it.backends[0].pools["red"]
        first, second = await lease(pool), await lease(pool)
        pool.give_back(first)
        it.key_managers[0].behaviour = answers_no_validation

        async def comes_back() -> None:
            await trio.sleep(0.25)
            pool.give_back(second)

        it.nursery.start_soon(comes_back)
        with pytest.raises(PoolBusyError):
            await leased(it, job_of(it, Operation.GET), trio.current_time() + 0.5, always_validate=True)
        assert pool.take() is second


@in_virtual_time
async def test_validation_of_a_session_from_the_queue_ends_at_the_time_given() -> None:
    async with deployment("atlanta", max_sessions=1) as it:
        pool = it.backends[0].pools["red"]
        pool.endpoint.distrust(trio.current_time())
        busy = await lease(pool)
        it.key_managers[0].behaviour = answers_no_validation
        it.key_managers[0].is_reachable = False
        began = trio.current_time()

        async def comes_back() -> None:
            await trio.sleep(0.25)
            pool.give_back(busy)

        it.nursery.start_soon(comes_back)
        with pytest.raises(PoolBusyError):
            await leased(it, job_of(it, Operation.GET), began + 0.5)
        assert trio.current_time() - began == pytest.approx(0.5)


@pytest.mark.parametrize(("prefers", "queue_left"), [(None, 0.0), (0, SETTINGS.pool.queue_timeout)])
@in_virtual_time
async def test_only_the_wait_for_the_preferred_backend_is_not_counted(prefers: int | None, queue_left: float) -> None:
    async with deployment("atlanta", max_sessions=1) as it:
        await lease(it.backends[0].pools["red"])
        job = job_of(it, Operation.GET, prefers=prefers)
        with pytest.raises(PoolBusyError, match="no session free within 5 s"):
            await leased(it, job)
        assert job.queue_left == pytest.approx(queue_left)


@in_virtual_time
async def test_a_client_that_left_while_it_waited_gets_no_session() -> None:
    async with deployment("atlanta") as it:
        with pytest.raises(ClientDisconnectedError):
            await leased(it, job_of(it, Operation.GET, left=True))
        assert it.has_only_idle_sessions()
