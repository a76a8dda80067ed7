"""Sticky routing: a client reads its own writes. Key managers that replicate late, in virtual time."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import trio

from gateway import log
from gateway.config import BackendOptions
from gateway.dispatcher import ReplicationPolicy
from gateway.kmip import compose
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultReason
from gateway.policy import Refusal
from gateway.upstream.affinity import Affinity
from gateway.upstream.health import Verdict
from gateway.upstream.maintenance import watch
from gateway.upstream.marks import Marks
from tests.kit.deployment import Deployment, deployment, refusal
from tests.kit.fake_backends import (
    Behaviour,
    Connection,
    FakeKeyManager,
    ask,
    in_virtual_time,
    never_answers,
)
from tests.kit.marked import begin, begins_and_polls, poll, value_in
from tests.kit.replicas import (
    FOUND,
    MISSING,
    Replica,
    answers_for_itself,
    goes_down,
    is_back,
    late,
    late_deployment,
    replicas,
    state_in,
    status,
    taken_for_down,
)

# Read your own writes -------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_without_a_remedy_the_next_read_meets_a_stale_replica() -> None:
    async with late_deployment(replicas("atlanta", "london"), late()) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        assert [status(await it.ask(ask("key-1"))) for _ in range(2)] == [FOUND, MISSING]


@in_virtual_time
async def test_a_client_reads_what_it_wrote_while_the_window_lasts() -> None:
    key_managers = replicas("atlanta", "london", "paris")
    async with late_deployment(key_managers, late(window=10.0)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        for _ in range(20):
            assert status(await it.ask(ask("key-1"))) == FOUND
            await trio.sleep(0.4)
        assert [len(one.asked) for one in key_managers] == [21, 0, 0]

        await trio.sleep(10)
        for _ in range(3):
            await it.ask(ask("key-1"))
        assert [len(one.asked) for one in key_managers] == [22, 1, 1]


@in_virtual_time
async def test_the_window_begins_before_the_change_is_answered() -> None:
    """Two sessions of one client: the second begins while the Create of the first is under way."""
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(window=10.0)) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.ask, ask("key-1", Operation.CREATE))
        await trio.sleep(0.0605)
        nursery.start_soon(it.ask, ask("key-2", Operation.CREATE))
    assert [one.made for one in key_managers] == [2, 0]


@in_virtual_time
async def test_other_clients_still_use_all_backends_in_turn() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(window=10.0)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        for _ in range(4):
            await it.ask(ask("key-1"), name="bob")
        assert [len(one.asked) for one in key_managers] == [3, 2]


@in_virtual_time
async def test_other_backends_serve_while_the_preferred_is_unreachable() -> None:
    """A stale answer is better than none."""
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(window=10.0)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        await trio.sleep(3)
        goes_down(key_managers[0])
        assert status(await it.ask(ask("key-1"))) == FOUND
        assert Operation.GET in key_managers[1].asked


@in_virtual_time
@pytest.mark.parametrize("fallback", [False, True])
async def test_no_not_found_while_the_backend_of_the_change_is_down(fallback: bool) -> None:
    """Neither a Get nor a Locate reports a miss, at which the client would make a second key, within the window."""
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(window=10.0, fallback=fallback)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        goes_down(key_managers[0])
        for operation in (Operation.GET, Operation.LOCATE):
            told = refusal(await it.ask(ask("key-1", operation)))
            assert told[:2] == (Refusal.BACKEND_FAILED, ResultReason.GENERAL_FAILURE)
            assert "try again" in told[2]
            assert "atlanta" not in told[2]
        assert status(await it.ask(ask("key-1"), name="bob")) == MISSING

        await trio.sleep(2)
        assert status(await it.ask(ask("key-1"))) == FOUND
        assert status(await it.ask(ask("nothing"), name="bob")) == MISSING
        await trio.sleep(10)
        assert status(await it.ask(ask("nothing"))) == MISSING


@in_virtual_time
@pytest.mark.parametrize("fallback", [False, True])
async def test_a_change_elsewhere_does_not_end_the_window_of_the_first(fallback: bool) -> None:
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(window=10.0, fallback=fallback)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        goes_down(key_managers[0])
        assert status(await it.ask(ask("key-2", Operation.CREATE))) == FOUND
        assert refusal(await it.ask(ask("key-1")))[0] is Refusal.BACKEND_FAILED


@in_virtual_time
async def test_a_change_that_reached_no_backend_begins_no_window() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(window=10.0)) as it:
        for key_manager in key_managers:
            key_manager.refuse()
        assert refusal(await it.ask(ask("key-1", Operation.CREATE)))[0] is Refusal.NO_BACKEND
        for key_manager in key_managers:
            key_manager.recover()
            key_manager.behaviour = answers_for_itself
        await trio.sleep(1)
        assert status(await it.ask(ask("nothing", Operation.ACTIVATE))) == MISSING
        assert status(await it.ask(ask("nothing"))) == MISSING


@in_virtual_time
@pytest.mark.parametrize("operation", [Operation.ACTIVATE, Operation.ENCRYPT, Operation.DESTROY], ids=str)
async def test_changes_hear_no_not_found_while_the_objects_backend_is_down(operation: Operation) -> None:
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(window=10.0, fallback=True)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        goes_down(key_managers[0])
        assert refusal(await it.ask(ask("key-1", operation)))[0] is Refusal.BACKEND_FAILED
        assert refusal(await it.ask(ask("key-1")))[0] is Refusal.BACKEND_FAILED


@in_virtual_time
async def test_a_change_runs_once_at_the_backend_that_has_its_object() -> None:
    """Though the client's latest change is at another backend; backends without an entry are not asked."""
    key_managers = replicas("atlanta", "london", "paris", lag=1e9)
    async with late_deployment(key_managers, late(window=10.0, fallback=True)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        goes_down(key_managers[0])
        await it.ask(ask("key-2", Operation.CREATE))
        is_back(it, 0)
        await trio.sleep(5)
        assert status(await it.ask(ask("key-1", Operation.ACTIVATE))) == FOUND
        assert [one.asked.count(Operation.ACTIVATE) for one in key_managers] == [1, 1, 0]


@in_virtual_time
async def test_a_poll_at_another_backend_does_not_end_a_changes_window() -> None:
    key_managers = replicas("atlanta", "london")
    knows = ReplicationPolicy(Affinity(10.0, is_shared=False), Marks([bytes(32)]))
    async with late_deployment(key_managers, knows) as it:
        key_managers[0].behaviour = begins_and_polls
        value = value_in(await it.ask(begin("job")))
        key_managers[0].behaviour = key_managers[1].behaviour
        await trio.sleep(11)
        await it.ask(ask("key-2", Operation.CREATE))
        await it.ask(poll(value))
        assert status(await it.ask(ask("key-2"))) == FOUND


@in_virtual_time
@pytest.mark.parametrize("window", [0.0, 20.0])
async def test_the_wait_for_the_preferred_backend_leaves_time_for_another(window: float) -> None:
    key_managers = replicas("atlanta", "london")
    async with (
        deployment(*key_managers, replication=lambda _: late(window=window), max_sessions=1) as it,
        trio.open_nursery() as run,
    ):
        await it.ask(ask("key-1", Operation.CREATE))
        await trio.sleep(3)
        await it.ask(ask("key-1"))
        key_managers[0].operation_cost = 25.0
        run.start_soon(it.ask, ask("key-2", Operation.CREATE))
        await trio.sleep(0.1)
        assert status(await it.ask(ask("key-1"))) == FOUND


@in_virtual_time
async def test_new_objects_go_back_to_the_better_tier() -> None:
    """Requests for older objects still find them in the lower tier."""
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(window=10.0, fallback=True)) as it:
        it.backends[1].options = BackendOptions(priority=1)
        it.balancer.backends = it.backends
        with taken_for_down(it, 0):
            await it.ask(ask("key-0", Operation.CREATE))
        await it.ask(ask("key-1", Operation.CREATE))
        assert [one.made for one in key_managers] == [1, 1]
        for name in ("key-0", "key-1"):
            assert status(await it.ask(ask(name))) == FOUND
            assert status(await it.ask(ask(name, Operation.ACTIVATE))) == FOUND


@in_virtual_time
async def test_the_window_begins_anew_when_the_answer_comes() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, late(window=10.0)) as it:
        key_managers[0].operation_cost = 6.0
        await it.ask(ask("key-1", Operation.CREATE))
        key_managers[0].operation_cost = 0.001
        await trio.sleep(9)
        assert [status(await it.ask(ask("key-1"))) for _ in range(2)] == [FOUND, FOUND]


@in_virtual_time
async def test_a_failed_change_does_not_end_the_window_of_another() -> None:
    """Two sessions of one client: the failed change was sent first, and answered last."""
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, late(window=10.0)) as it, trio.open_nursery() as nursery:
        key_managers[0].operation_cost = 0.5
        nursery.start_soon(it.ask, ask("nothing", Operation.ACTIVATE))
        await trio.sleep(0.1)
        key_managers[0].operation_cost = 0.001
        await it.ask(ask("key-1", Operation.CREATE))
        await trio.sleep(1)
        assert [status(await it.ask(ask("key-1"))) for _ in range(4)] == [FOUND] * 4


def finds_its_answer_too_large(connection: Connection, request: Request) -> None:
    """Execute a request, but answer with Response Too Large."""
    key_manager = connection.key_manager
    assert isinstance(key_manager, Replica)
    key_manager.answer(request)
    connection.say(compose.failure(request, ResultReason.RESPONSE_TOO_LARGE, "too large"))


@in_virtual_time
async def test_a_change_whose_answer_is_too_large_may_have_run() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    key_managers[0].behaviour = finds_its_answer_too_large
    async with late_deployment(key_managers, late(window=10.0)) as it:
        assert status(await it.ask(ask("key-1", Operation.CREATE)))[1] == ResultReason.RESPONSE_TOO_LARGE
        key_managers[0].behaviour = answers_for_itself
        assert [status(await it.ask(ask("key-1"))) for _ in range(4)] == [FOUND] * 4


@in_virtual_time
async def test_a_change_that_ran_at_a_second_backend_is_followed_there() -> None:
    """Some databases shut down if an activated key is reported as Pre-Active."""
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(window=10.0, fallback=True)) as it:
        with taken_for_down(it, 0):
            await it.ask(ask("key-1", Operation.CREATE))
        with taken_for_down(it, 1):
            await it.ask(ask("key-2", Operation.CREATE))
        await trio.sleep(1)
        assert status(await it.ask(ask("key-1", Operation.ACTIVATE))) == FOUND
        await trio.sleep(1.5)  # atlanta has the key by now, but not its activation
        assert state_in(await it.ask(ask("key-1", Operation.GET_ATTRIBUTES))) == "active"


async def _activated(it: Deployment) -> None:
    """Make a key that all backends have, of which only the first knows that it is active."""
    await it.ask(ask("key-1", Operation.CREATE))
    await trio.sleep(6)
    await it.ask(ask("key-1", Operation.ACTIVATE))


@in_virtual_time
async def test_the_preferred_backend_is_waited_for_while_it_is_busy() -> None:
    key_managers = replicas("atlanta", "london", lag=5.0)
    knows = late(window=10.0, fallback=True)
    async with (
        deployment(*key_managers, replication=lambda _: knows, max_sessions=1) as it,
        trio.open_nursery() as nursery,
    ):
        await _activated(it)
        key_managers[0].operation_cost = 4.0
        nursery.start_soon(it.ask, ask("key-2"), "red", "bob")
        nursery.start_soon(it.ask, ask("key-2"), "red", "bob")
        await trio.sleep(0.1)
        key_managers[0].operation_cost = 0.001
        assert state_in(await it.ask(ask("key-1", Operation.GET_ATTRIBUTES))) == "active"


@in_virtual_time
async def test_the_preferred_backend_is_waited_for_while_it_is_slow() -> None:
    key_managers = replicas("atlanta", "london", lag=5.0)
    async with late_deployment(key_managers, late(window=20.0)) as it:
        await _activated(it)
        key_managers[0].operation_cost = 6.0
        assert trio.current_time() < 7
        answer = await it.ask(ask("key-1", Operation.GET_ATTRIBUTES))
        assert answer.backend is it.backends[0]


@in_virtual_time
async def test_the_wait_for_the_preferred_backend_ends_when_it_is_down() -> None:
    key_managers = replicas("atlanta", "london", lag=1.0)
    async with late_deployment(key_managers, late(window=60.0)) as it:
        await _activated(it)
        key_managers[0].behaviour = never_answers
        it.nursery.start_soon(
            partial(watch, it.backends[0], balancer=it.balancer, metrics=it.metrics, log=log.get("test"))
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_says, it, ask("key-1"), FOUND)
            await trio.sleep(8)
            assert key_managers[1].asked == []
            for _ in range(3):
                it.backends[0].health.checked(Verdict.FAILS)
            began = trio.current_time()
        assert trio.current_time() - began < 1


async def _says(it: Deployment, request: Request, expected: tuple[int, int | None]) -> None:
    assert status(await it.ask(request)) == expected


@in_virtual_time
async def test_new_objects_stay_at_one_backend_of_a_lower_tier() -> None:
    key_managers = replicas("atlanta", "london", "paris", lag=1e9)
    async with late_deployment(key_managers, late(window=10.0)) as it:
        it.backends[0].versions = frozenset({(1, 2)})
        for backend in it.backends[1:]:
            backend.options = BackendOptions(priority=1)
        it.balancer.backends = it.backends
        for number in range(4):
            await it.ask(ask(f"key-{number}", Operation.CREATE, version=(2, 1)))
        assert sorted(one.made for one in key_managers) == [0, 0, 4]


# Unknown outcomes -----------------------------------------------------------------------------------------------------


def _makes_it_after(seconds: float, then: Callable[[FakeKeyManager], None]) -> Behaviour:
    """Return the behaviour of a busy HSM: a Create takes some time and gets no answer, then ``then`` is called."""

    def behaviour(connection: Connection, request: Request) -> None:
        if request.items[0].operation != Operation.CREATE:
            answers_for_itself(connection, request)
            return

        async def makes() -> None:
            await trio.sleep(seconds)
            key_manager = connection.key_manager
            assert isinstance(key_manager, Replica)
            key_manager.answer(request)
            then(key_manager)

        trio.lowlevel.spawn_system_task(makes)

    return behaviour


@pytest.mark.parametrize("fallback", [True, False])
@in_virtual_time
async def test_the_window_begins_when_the_outcome_of_a_change_becomes_unknown(fallback: bool) -> None:
    key_managers = replicas("atlanta", "london", lag=8.0)
    async with late_deployment(key_managers, late(window=10.0, fallback=fallback)) as it:
        key_managers[0].behaviour = _makes_it_after(15.0, FakeKeyManager.hang_up)
        assert refusal(await it.ask(ask("key-1", Operation.CREATE)))[0] is Refusal.OUTCOME_UNKNOWN
        for _ in range(7):
            assert status(await it.ask(ask("key-1"))) == FOUND
            await trio.sleep(1)
        assert it.backends[0] is (await it.ask(ask("key-1"))).backend


@in_virtual_time
async def test_the_window_begins_when_a_change_is_cancelled() -> None:
    key_managers = replicas("atlanta", "london", lag=20.0)
    async with late_deployment(key_managers, late(window=10.0)) as it:
        key_managers[0].behaviour = _makes_it_after(1.0, lambda _key_manager: None)
        with trio.move_on_after(15):
            await it.ask(ask("key-1", Operation.CREATE))
        key_managers[0].behaviour = answers_for_itself
        for _ in range(4):
            assert status(await it.ask(ask("key-1"))) == FOUND


@pytest.mark.parametrize("seconds", [5.0, 15.0])
@in_virtual_time
async def test_no_empty_locate_while_the_backend_of_an_unknown_create_is_down(seconds: float) -> None:
    """An empty Locate would make the client create a second key."""
    key_managers = replicas("atlanta", "london", lag=20.0)
    async with late_deployment(key_managers, late(window=10.0, fallback=True)) as it:
        key_managers[0].behaviour = _makes_it_after(seconds, goes_down)
        assert refusal(await it.ask(ask("key-1", Operation.CREATE)))[0] is Refusal.OUTCOME_UNKNOWN
        assert refusal(await it.ask(ask("key-1", Operation.LOCATE)))[0] is Refusal.BACKEND_FAILED
        assert [key_manager.made for key_manager in key_managers] == [1, 0]


# Ten minutes of clients that make a key if they find none -------------------------------------------------------------


async def _make_unless_it_is_there(it: Deployment, name: str, client: str) -> None:
    answer = await it.ask(ask(name, Operation.LOCATE), name=client)
    assert answer.response is not None
    if not answer.response.items[0].unique_identifiers:
        await it.ask(ask(name, Operation.CREATE), name=client)


async def _ten_minutes(
    replication: ReplicationPolicy, *, lag: float, clients: Sequence[str], pause: float = 0.5, nodes: int = 3
) -> int:
    """Return the number of second keys made in ten minutes by clients that make a key if they locate none."""
    key_managers = replicas(*map(str, range(nodes)), lag=lag)
    rounds = 0
    async with late_deployment(key_managers, replication) as it:
        while trio.current_time() < 600:
            rounds += 1
            for client in clients:
                await _make_unless_it_is_there(it, f"key-{rounds}", client)
                await trio.sleep(0.04)
            await trio.sleep(pause)
    return sum(one.made for one in key_managers) - rounds


@in_virtual_time
async def test_in_ten_minutes_without_a_remedy_hundreds_of_second_keys_are_made() -> None:
    assert await _ten_minutes(late(), lag=2.0, clients=["alice"] * 4) > 100


@in_virtual_time
async def test_in_ten_minutes_the_window_prevents_a_clients_second_keys() -> None:
    assert await _ten_minutes(late(window=10.0), lag=2.0, clients=["alice"] * 4) == 0


@in_virtual_time
async def test_in_ten_minutes_lookups_prevent_second_keys_of_other_clients() -> None:
    """Six seconds between the rounds let the lookup budget grow again."""
    clients = ["alice", "bob", "carol"]
    assert await _ten_minutes(late(fallback=True), lag=2.0, clients=clients, pause=6) == 0


@in_virtual_time
@pytest.mark.parametrize("nodes", [3, 5])
@pytest.mark.parametrize("pause", [0.0, 1.0, 3.0])
async def test_in_ten_minutes_both_remedies_prevent_every_second_key(pause: float, nodes: int) -> None:
    """At any rate of requests: a backend on which the identity has just made a key is asked without a token."""
    both, clients = late(window=10.0, fallback=True), ["alice", "alice", "bob", "bob"]
    assert await _ten_minutes(both, lag=2.0, clients=clients, pause=pause, nodes=nodes) == 0
