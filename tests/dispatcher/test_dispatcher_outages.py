"""The dispatcher: queues, short outages, errors of the key manager's own, and requests that are cancelled."""

from collections.abc import Callable

import pytest
import trio

from gateway.config import Balancing, HealthConfig
from gateway.dispatcher import DispatcherSettings
from gateway.kmip import compose
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultReason, ResultStatus
from gateway.upstream.balancer import Balancer
from gateway.upstream.health import Verdict
from tests.kit.backend_faults import FAULTS, REQUESTS
from tests.kit.clients import WARM, Tally, client, failures_of, maintain
from tests.kit.deployment import Deployment, deployment
from tests.kit.fake_backends import Connection, FakeKeyManager, ask, in_virtual_time, name_in, never_answers
from tests.kit.streams import CancelAtStep

# A read that breaks once ----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_read_that_breaks_once_at_the_only_key_manager_is_sent_again() -> None:
    async with deployment("atlanta") as it:
        answered = it.key_managers[0].behaviour

        def breaks_once(connection: Connection, request: Request) -> None:
            it.key_managers[0].behaviour = answered
            connection.execute(request)
            connection.hang_up()

        it.key_managers[0].behaviour = breaks_once
        tally = Tally()
        await tally.ask(it, ask("key"))
        assert tally.outcomes == {"ok": 1}
        assert len(it.executed) == 2


# Queues ---------------------------------------------------------------------------------------------------------------


def freeze(key_manager: FakeKeyManager) -> None:
    """Stop answering, also the requests that are under way, as after SIGSTOP."""
    key_manager.behaviour = never_answers
    key_manager.is_reachable = False
    for connection in key_manager.open_connections:
        connection._said.clear()


@in_virtual_time
async def test_reads_that_wait_at_a_frozen_key_manager_move_to_one_that_has_room() -> None:
    async with deployment("atlanta", "london") as it:
        maintain(it)
        tally, creates = Tally(), Tally()
        await it.ask(ask("warm", Operation.CREATE))
        freeze(it.key_managers[0])
        async with trio.open_nursery() as clients:
            it.balancer.backends = it.balancer.backends  # turns begin anew: atlanta's is first
            clients.start_soon(creates.ask, it, ask("key", Operation.CREATE))
            await trio.sleep(0.01)
            for _ in range(12):
                clients.start_soon(tally.ask, it, ask("key"))
            await trio.sleep(10)
            clients.cancel_scope.cancel()
        assert tally.outcomes == {"ok": 12}


def every_tenth_creates(number: int, _turn: int) -> Request:
    return ask("key", Operation.GET if number % 10 else Operation.CREATE)


@pytest.mark.parametrize("max_sessions", [24, 32, 64])
@in_virtual_time
async def test_a_frozen_key_manager_costs_no_read_while_the_other_has_room(max_sessions: int) -> None:
    async with deployment("atlanta", "london", max_sessions=max_sessions, pool=WARM) as it:
        for key_manager in it.key_managers:
            key_manager.operation_cost = 0.05
        maintain(it)
        reads, creates = Tally(), Tally()
        async with trio.open_nursery() as clients:
            for number in range(60):
                tally = reads if number % 10 else creates
                clients.start_soon(client, it, tally, number, 0.05 + number * 0.001, every_tenth_creates)
            await trio.sleep(5)
            reads.clear()
            creates.clear()
            freeze(it.key_managers[0])
            await trio.sleep(20)
            clients.cancel_scope.cancel()
        assert reads.failures == 0


@in_virtual_time
async def test_requests_waiting_at_a_backend_that_goes_down_move_to_another() -> None:
    async with deployment("atlanta", "london", max_sessions=2) as it:
        for key_manager in it.key_managers:
            key_manager.operation_cost = 1.0
        maintain(it)
        await trio.sleep(1)
        tally, creates = Tally(), Tally()
        async with trio.open_nursery() as clients:
            for _ in range(4):  # two at each backend: all slots are busy
                clients.start_soon(creates.ask, it, ask("key", Operation.CREATE))
            await trio.sleep(0.2)
            freeze(it.key_managers[0])
            for _ in range(4):
                clients.start_soon(tally.ask, it, ask("key"))
            await trio.sleep(0.3)
            for _ in range(3):
                it.backends[0].health.checked(Verdict.FAILS)
            await trio.sleep(4)
            clients.cancel_scope.cancel()
        assert tally.outcomes == {"ok": 4}
        assert tally.slowest < 3.5


# Short outages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.3, 2.0])
@in_virtual_time
async def test_a_single_key_manager_that_restarts_refuses_no_read(seconds: float) -> None:
    async with deployment("atlanta", pool=WARM) as it:
        maintain(it)
        tally = Tally()
        async with trio.open_nursery() as clients:
            for number in range(20):
                clients.start_soon(client, it, tally, number, 0.05)
            await trio.sleep(2)
            tally.clear()
            it.key_managers[0].refuse()
            it.key_managers[0].hang_up()
            await trio.sleep(seconds)
            it.key_managers[0].recover()
            await trio.sleep(5)
            clients.cancel_scope.cancel()
        assert tally.failures == 0


@in_virtual_time
async def test_requests_wait_only_in_the_first_seconds_of_an_outage() -> None:
    async with deployment("atlanta", pool=WARM) as it:
        maintain(it)
        await trio.sleep(1)
        it.key_managers[0].refuse()
        it.key_managers[0].hang_up()
        first, later = Tally(), Tally()
        await first.ask(it, ask("key", Operation.CREATE))
        await trio.sleep(3)
        await later.ask(it, ask("key", Operation.CREATE))
        assert first.outcomes == later.outcomes == {"no_backend": 1}
        assert 4 < first.slowest < 5.5
        assert later.slowest < 0.5


@in_virtual_time
async def test_a_refused_credential_is_answered_at_once() -> None:
    async with deployment("atlanta", pool=WARM) as it:
        maintain(it, credential="blue")
        it.key_managers[0].refused.add("red")
        tally = Tally()
        for _ in range(50):
            await tally.ask(it, ask("key"))
            await trio.sleep(0.1)
        assert tally.outcomes == {"no_backend": 50}
        assert tally.slowest < 0.2
        assert len(it.key_managers[0].attempts) < 12


# Errors of the key manager's own --------------------------------------------------------------------------------------


def fails_with(reason: ResultReason) -> Callable[[Connection, Request], None]:
    """Fail every request, as a key manager without its database or HSM; answer health checks."""

    def behaviour(connection: Connection, request: Request) -> None:
        connection.execute(request)
        status = ResultStatus.OPERATION_FAILED if name_in(request) else ResultStatus.SUCCESS
        results = [
            compose.Result(
                status, item.operation, item.unique_batch_item_id, reason if name_in(request) else None, "no"
            )
            for item in request.items
        ]
        connection.say(compose.encode_response(request.version, results, now=0), at=trio.current_time() + 0.001)

    return behaviour


@pytest.mark.parametrize("policy", ["round-robin", "least-outstanding"])
@in_virtual_time
async def test_a_key_manager_that_fails_every_read_costs_none_beside_a_healthy_one(policy: Balancing) -> None:
    async with deployment("atlanta", "london", max_sessions=64) as it:
        it.balancer._choose = Balancer(it.backends, policy)._choose
        it.balancer._takes_turns = policy == "round-robin"
        it.balancer.backends = it.balancer.backends
        it.key_managers[0].behaviour = fails_with(ResultReason.GENERAL_FAILURE)
        it.key_managers[1].operation_cost = 0.05
        tally = Tally()
        async with trio.open_nursery() as clients:
            for number in range(20):
                clients.start_soon(client, it, tally, number, 0.0)
            await trio.sleep(1)  # until it is ejected
            tally.clear()
            await trio.sleep(20)
            clients.cancel_scope.cancel()
        assert tally.failures == 0
        assert it.backends[0].state in {"ejected", "half_open"}


@in_virtual_time
async def test_a_read_that_fails_at_one_key_manager_gets_the_answer_of_another() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].behaviour = fails_with(ResultReason.INTERNAL_SERVER_ERROR)
        answer = await it.ask(ask("key"))
        assert answer.backend is it.backends[1]
        assert failures_of(it.backends[0]) == 1
        assert len(it.executed) == 2


@in_virtual_time
async def test_a_read_that_fails_everywhere_counts_against_no_backend() -> None:
    async with deployment("atlanta", "london", "paris") as it:
        for key_manager in it.key_managers:
            key_manager.behaviour = fails_with(ResultReason.CRYPTOGRAPHIC_FAILURE)
        tally = Tally()
        for _ in range(10):
            await tally.ask(it, ask("key"))
        assert tally.outcomes == {"failed": 10}
        assert [failures_of(backend) for backend in it.backends] == [0, 0, 0]
        assert len(it.executed) == 10 * 2  # each is tried at a second backend


@pytest.mark.parametrize("operation", [Operation.GET, Operation.CREATE])
@in_virtual_time
async def test_errors_of_changes_and_unobserved_errors_are_passed_on(operation: Operation) -> None:
    async with deployment(
        "atlanta", "london", times=DispatcherSettings(health=HealthConfig(observe=operation != Operation.GET))
    ) as it:
        it.key_managers[0].behaviour = fails_with(ResultReason.GENERAL_FAILURE)
        answer = await it.ask(ask("key", operation))
        assert answer.backend is it.backends[0]
        assert failures_of(it.backends[0]) == 0
        assert len(it.executed) == 1


# Cancellation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["read", "mutation"])
@in_virtual_time
async def test_a_request_that_is_cancelled_at_any_step_leaves_nothing_behind(name: str, fault: str) -> None:
    step = 0
    is_cancelled = True
    while is_cancelled:
        step += 1
        async with deployment("atlanta", "london", max_sessions=2) as it:
            for _ in range(2):
                await it.ask(ask("warm"))
            await trio.sleep(1.5)
            FAULTS[fault].switch(it.key_managers[0])
            is_cancelled = await cancelled_at(step, it, REQUESTS[name])
            await trio.sleep(40)
            counts = [pool.statistics() for backend in it.backends for pool in backend.pools.values()]
            assert not any(count.busy or count.waiting or count.opening for count in counts), (step, counts)
            assert [backend.slots.used for backend in it.backends] == [
                sum(pool.statistics().idle for pool in backend.pools.values()) for backend in it.backends
            ]
            assert not any(backend.in_flight for backend in it.backends)
            budgets = it.dispatcher._budgets.retries.values()
            assert [(budget.held, budget.in_flight) for budget in budgets] == [(0, 0)] * len(budgets)
    assert step > 5


async def cancelled_at(step: int, it: Deployment, request: Request) -> bool:
    """Let four clients ask, and cancel them at a step of trio's. Return False if they had ended before."""
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            async with trio.open_nursery() as clients:
                for number in range(2):
                    for credential in ("red", "blue"):
                        clients.start_soon(it.ask, request, credential, f"client-{number}")
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught
