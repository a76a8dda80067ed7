"""Fallback lookups: the backends that are asked, their price, and the answer that counts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from gateway.config import BackendOptions, DeadlinesConfig, FailoverConfig, ReplicationConfig
from gateway.dispatcher import Answer, DispatcherSettings, ReplicationPolicy
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request, Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from gateway.policy import Effect, Refusal
from gateway.upstream.maintenance import maintain_pools
from tests.kit.clients import failures_of
from tests.kit.deployment import Deployment, deployment, refusal
from tests.kit.fake_backends import (
    SETTINGS,
    Connection,
    ask,
    hangs_up_after,
    in_virtual_time,
    never_answers,
)
from tests.kit.marked import begins_and_polls
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
    status,
    taken_for_down,
)

FAILED = ResultStatus.OPERATION_FAILED


def both() -> ReplicationPolicy:
    return late(window=10.0, fallback=True)


def asked_for(operation: Operation, key_managers: list[Replica]) -> list[int]:
    return [one.asked.count(operation) for one in key_managers]


async def leave_something_on_both(it: Deployment) -> None:
    """Let the client make key-1 on the second key manager, and then key-2 on the first."""
    with taken_for_down(it, 0):
        await it.ask(ask("key-1", Operation.CREATE))
    with taken_for_down(it, 1):
        await it.ask(ask("key-2", Operation.CREATE))


# Backends and budget --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_first_complete_answer_ends_the_lookup() -> None:
    key_managers = replicas("atlanta", "london", "paris", lag=1e9)
    async with late_deployment(key_managers, late(fallback=True)) as it:
        key_managers[1].has["key-1"] = 0.0
        key_managers[2].behaviour = never_answers
        began = trio.current_time()
        assert status(await it.ask(ask("key-1"))) == FOUND
        assert trio.current_time() - began < 1
        assert key_managers[2].connections == []


@in_virtual_time
async def test_a_lookup_costs_one_token_however_many_backends_it_asks() -> None:
    key_managers = replicas("atlanta", "london", "paris", "rome")
    times = DispatcherSettings(
        replication=ReplicationConfig(lookup_ratio=0.0, min_lookups_per_second=0.1)
    )  # one token is held, and no more come in this time
    async with late_deployment(key_managers, late(fallback=True), times) as it:
        for _ in range(2):
            assert status(await it.ask(ask("nothing"))) == MISSING
        assert sum(asked_for(Operation.GET, key_managers)) == 4 + 1


@in_virtual_time
async def test_every_request_adds_to_the_lookup_budget() -> None:
    key_managers = replicas("atlanta", "london", lag=0.0)
    times = DispatcherSettings(replication=ReplicationConfig(lookup_ratio=0.2, min_lookups_per_second=0.0001))
    async with late_deployment(key_managers, late(fallback=True), times) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        for _ in range(10):
            await it.ask(ask("nothing"))
        for _ in range(20):
            await it.ask(ask("key-1"))
        before = sum(asked_for(Operation.GET, key_managers))
        for _ in range(4):
            await it.ask(ask("nothing"))
        assert sum(asked_for(Operation.GET, key_managers)) == before + 4 + 4


@in_virtual_time
async def test_a_backend_that_the_identity_just_changed_costs_no_token() -> None:
    """A client whose Locate finds nothing because the budget is empty would make a second key."""
    key_managers = replicas("atlanta", "london", "paris", lag=1e9)
    times = DispatcherSettings(replication=ReplicationConfig(lookup_ratio=0.0, min_lookups_per_second=0.0001))
    async with late_deployment(key_managers, both(), times) as it:
        await it.ask(ask("nothing"))  # takes the only token
        await it.ask(ask("key-1", Operation.CREATE))
        for _ in range(30):
            assert status(await it.ask(ask("key-1"), name="bob")) == FOUND
        assert status(await it.ask(ask("key-1"), "blue", "carol")) == FOUND  # this identity has its own token

        await trio.sleep(11)
        assert [status(await it.ask(ask("key-1"), name="bob")) for _ in range(3)].count(MISSING) == 2


@in_virtual_time
async def test_a_backend_that_is_down_is_not_asked() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(fallback=True)) as it:
        with taken_for_down(it, 1):
            assert status(await it.ask(ask("nothing"))) == MISSING
        assert key_managers[1].connections == []


@in_virtual_time
async def test_no_backend_is_asked_after_the_requests_deadline() -> None:
    key_managers = replicas("atlanta", "london", "paris")
    times = DispatcherSettings(deadlines=DeadlinesConfig(request=6.0), failover=FailoverConfig(try_timeout=5.0))
    warm = SETTINGS.model_copy(update={"min_idle": 1})
    async with deployment(*key_managers, replication=lambda _: late(fallback=True), times=times, pool=warm) as it:
        for backend in it.backends:  # each has a session
            it.nursery.start_soon(maintain_pools, backend.pools.values(), 3.0)
        await trio.sleep(1)
        for one in key_managers[1:]:
            one.behaviour = never_answers
        key_managers[0].operation_cost = 2.0
        began, sent = trio.current_time(), requests_at(key_managers[1:])
        assert status(await it.ask(ask("nothing"))) == MISSING
        assert trio.current_time() - began < 6.5
        assert requests_at(key_managers[1:]) == sent + 1


def requests_at(key_managers: list[Replica]) -> int:
    return sum(len(connection.sent) for one in key_managers for connection in one.connections)


# Objects that are looked up -------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_object_that_the_client_destroyed_is_not_found_on_replicas() -> None:
    """A replica that does not know of the Destroy has it still, and other clients find it."""
    key_managers = replicas("atlanta", "london", lag=5.0)
    async with late_deployment(key_managers, both()) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        await trio.sleep(6)
        assert status(await it.ask(ask("key-1", Operation.DESTROY))) == FOUND
        assert status(await it.ask(ask("key-1"))) == MISSING
        assert asked_for(Operation.GET, key_managers) == [1, 0]
        for located in (await it.ask(ask("key-1", Operation.LOCATE)), await it.ask(by_name("key-1"))):
            assert located.response is not None
            assert located.response.items[0].unique_identifiers == []
        assert status(await it.ask(ask("key-1"), name="bob")) == FOUND


def by_name(name: str) -> Request:
    """Return a Locate that names no identifier."""
    payload = ttlv.structure(Tag.ATTRIBUTE, ttlv.text(Tag.ATTRIBUTE_VALUE, name))
    return decode_request(compose.encode_request((1, 2), [compose.Ask(Operation.LOCATE, payload)]))


@in_virtual_time
async def test_a_failed_destroy_does_not_hide_the_object() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, both()) as it:
        key_managers[1].has["key-1"] = 0.0
        await it.ask(ask("key-2", Operation.CREATE))
        assert status(await it.ask(ask("key-1", Operation.DESTROY))) == MISSING
        assert status(await it.ask(ask("key-1"))) == FOUND


@in_virtual_time
async def test_a_batch_with_a_change_that_has_run_is_not_sent_again() -> None:
    """A second run would make a second key."""
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, both()) as it:
        await leave_something_on_both(it)
        request = batch((Operation.CREATE, "key-3"), (Operation.ACTIVATE, "key-1"))
        answer = await it.ask(request)
        assert answer.response is not None
        assert [item.status for item in answer.response.items] == [ResultStatus.SUCCESS, FAILED]
        assert [one.made for one in key_managers] == [2, 1]


@in_virtual_time
async def test_a_batch_of_which_only_reads_have_run_is_sent_again() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, both()) as it:
        await leave_something_on_both(it)
        answer = await it.ask(ask("key-1", Operation.LOCATE, Operation.ACTIVATE, numbered=True))
        assert answer.response is not None
        assert [item.status for item in answer.response.items] == [ResultStatus.SUCCESS] * 2
        assert answer.backend is it.backends[1]


def batch(*asked: tuple[Operation, str]) -> Request:
    """Return a batch of operations, each on its own object."""
    asks = [
        compose.Ask(operation, ttlv.text(Tag.UNIQUE_IDENTIFIER, name), bytes([index]))
        for index, (operation, name) in enumerate(asked)
    ]
    return decode_request(compose.encode_request((1, 2), asks))


# The answer that counts -----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_error_that_proves_the_object_exists_is_passed_on() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(fallback=True)) as it:
        key_managers[1].has["key-1"] = 0.0
        key_managers[1].becomes("key-1", "archived")
        assert status(await it.ask(ask("key-1"))) == (FAILED, ResultReason.OBJECT_ARCHIVED)


def refuses_everything(connection: Connection, request: Request) -> None:
    """Refuse every request, as a standby does, or a key manager that does not know the credential."""
    connection.execute(request)
    connection.say(compose.failure(request, ResultReason.PERMISSION_DENIED, "not here"))


@in_virtual_time
async def test_a_backend_that_refuses_the_request_changes_nothing() -> None:
    key_managers = replicas("atlanta", "london")
    key_managers[1].behaviour = refuses_everything
    async with late_deployment(key_managers, late(fallback=True)) as it:
        for operation, outcome in ((Operation.GET, MISSING), (Operation.LOCATE, FOUND)):
            answer = await it.ask(ask("nothing", operation))
            assert (status(answer), answer.backend) == (outcome, it.backends[0])
            await it.ask(ask("nothing", operation))  # the turn of the second backend


@in_virtual_time
async def test_the_error_of_the_backend_with_the_clients_object_counts() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, both()) as it:
        await leave_something_on_both(it)
        assert status(await it.ask(ask("key-1", Operation.ACTIVATE))) == FOUND
        with taken_for_down(it, 1):
            await it.ask(ask("key-3", Operation.CREATE))
        again = await it.ask(ask("key-1", Operation.ACTIVATE))  # atlanta has no such key, in london it is active
        assert (status(again), again.backend) == ((FAILED, ResultReason.PERMISSION_DENIED), it.backends[1])


@in_virtual_time
async def test_a_change_that_ran_at_a_second_backend_is_sent_to_no_third() -> None:
    key_managers = replicas("atlanta", "london", "paris", lag=1e9)
    async with late_deployment(key_managers, both()) as it:
        for place in (2, 1):
            with taken_for_down(it, 0), taken_for_down(it, 3 - place):
                await it.ask(ask("key-1", Operation.CREATE))
        with taken_for_down(it, 1), taken_for_down(it, 2):
            await it.ask(ask("key-2", Operation.CREATE))
        assert status(await it.ask(ask("key-1", Operation.ACTIVATE))) == FOUND
        assert sum(asked_for(Operation.ACTIVATE, key_managers)) == 2


@in_virtual_time
async def test_a_change_that_breaks_at_a_second_backend_is_outcome_unknown() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, both()) as it:
        await leave_something_on_both(it)
        key_managers[1].behaviour = hangs_up_after
        assert refusal(await it.ask(ask("key-1", Operation.ACTIVATE)))[0] is Refusal.OUTCOME_UNKNOWN


@in_virtual_time
async def test_a_backend_with_an_entry_is_asked_once_it_is_back() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, both()) as it:
        await leave_something_on_both(it)
        goes_down(key_managers[1])
        assert refusal(await it.ask(ask("key-1", Operation.ACTIVATE)))[0] is Refusal.BACKEND_FAILED
        is_back(it, 1)
        await trio.sleep(1)
        assert status(await it.ask(ask("key-1", Operation.ACTIVATE))) == FOUND


# A second opinion before the lookup ----------------------------------------------------------------------------------


def has_lost_its_hsm(connection: Connection, request: Request) -> None:
    """Answer with General Failure about the object "broken", and as usual about the rest."""
    key_manager = connection.key_manager
    assert isinstance(key_manager, Replica)
    results = [
        compose.Result(FAILED, item.operation, item.unique_batch_item_id, ResultReason.GENERAL_FAILURE, "no HSM")
        if item.unique_identifiers == [b"broken"]
        else key_manager._execute(
            item.operation, item.unique_identifiers, item.unique_batch_item_id, ResultReason.ITEM_NOT_FOUND
        )
        for item in request.items
    ]
    connection.say(compose.encode_response(request.version, results, now=0), at=trio.current_time() + 0.001)


def reasons(answer: Answer) -> list[int | None]:
    assert answer.response is not None, answer.detail
    return [item.reason for item in answer.response.items]


@pytest.mark.parametrize("fallback", [False, True])
@in_virtual_time
async def test_a_not_found_of_the_second_opinion_counts_as_that_backends_answer(fallback: bool) -> None:
    """The client has entries for both: the key manager that gives the second opinion has answered, too."""
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, late(window=10.0, fallback=fallback)) as it:
        await leave_something_on_both(it)
        key_managers[0].behaviour = has_lost_its_hsm
        answer = await it.ask(batch((Operation.GET, "broken"), (Operation.GET, "nothing")))
        assert reasons(answer) == [ResultReason.GENERAL_FAILURE, ResultReason.ITEM_NOT_FOUND]
        assert answer.backend is it.backends[0]


@in_virtual_time
async def test_a_second_opinion_that_found_more_is_passed_on() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, both()) as it:
        await leave_something_on_both(it)
        key_managers[0].behaviour = has_lost_its_hsm
        answer = await it.ask(batch((Operation.GET, "broken"), (Operation.GET, "nothing"), (Operation.GET, "key-1")))
        assert reasons(answer) == [ResultReason.ITEM_NOT_FOUND, ResultReason.ITEM_NOT_FOUND, None]
        assert answer.backend is it.backends[1]
        assert it.metrics.fallback_lookups.labels("found")._value.get() == 1


@in_virtual_time
async def test_a_backend_that_gave_no_second_opinion_may_have_the_object() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, both()) as it:
        await leave_something_on_both(it)
        key_managers[0].behaviour = has_lost_its_hsm
        key_managers[1].behaviour = hangs_up_after
        answer = await it.ask(batch((Operation.GET, "broken"), (Operation.GET, "key-1")))
        assert answer.refusal is Refusal.BACKEND_FAILED
        assert failures_of(it.backends[1]) == 1


# Failures of lookups --------------------------------------------------------------------------------------------------


def hangs_on_gets(connection: Connection, request: Request) -> None:
    """Answer every request but a Get, as a key manager whose health check succeeds."""
    if request.items[0].operation != Operation.GET:
        answers_for_itself(connection, request)


def garbles_answers(connection: Connection, _request: Request) -> None:
    connection.say(b"\xff" * 64)


async def seconds_of_miss(it: Deployment) -> float:
    """Ask for an object that no key manager has; return the seconds until "not found"."""
    began = trio.current_time()
    assert status(await it.ask(ask("nothing"))) == MISSING
    return trio.current_time() - began


@asynccontextmanager
async def first_is_preferred(key_managers: list[Replica], *, window: float = 0.0) -> AsyncIterator[Deployment]:
    """Deploy a dispatcher whose reads go to the first key manager, and whose lookups are asked of the others."""
    async with late_deployment(key_managers, late(window=window, fallback=True)) as it:
        for backend in it.backends[1:]:
            backend.options = BackendOptions(priority=1)
        it.balancer.backends = it.balancer.backends
        yield it


@in_virtual_time
async def test_a_lookup_that_times_out_counts_as_overdue_and_delays_one_miss() -> None:
    key_managers = replicas("atlanta", "london")
    key_managers[1].behaviour = hangs_on_gets
    async with first_is_preferred(key_managers) as it:
        assert await seconds_of_miss(it) == pytest.approx(5.0, abs=0.1)
        await trio.sleep(0.1)  # a session was opened first: the answer is overdue 5 s after the request was sent
        assert it.backends[1].breaker.is_overdue("red", Effect.READ)
        assert [await seconds_of_miss(it) for _ in range(9)] == [pytest.approx(0.0, abs=0.1)] * 9
        assert failures_of(it.backends[1]) == 0

        key_managers[1].behaviour = answers_for_itself
        key_managers[1].has["key-1"] = 0.0
        await trio.sleep(30)
        assert not it.backends[1].breaker.is_overdue("red", Effect.READ)
        assert status(await it.ask(ask("key-1"))) == FOUND
        assert it.has_only_idle_sessions()


@in_virtual_time
async def test_a_backend_that_hangs_in_every_lookup_is_ejected() -> None:
    key_managers = replicas("atlanta", "london")
    key_managers[1].behaviour = hangs_on_gets
    async with first_is_preferred(key_managers) as it:
        slow = 0
        while trio.current_time() < 600:
            slow += await seconds_of_miss(it) > 1
            await trio.sleep(0.5)
        assert it.backends[1].state in {"ejected", "half_open"}
        assert it.observers[2].ejections
        assert slow < 20

        key_managers[1].behaviour = answers_for_itself
        key_managers[1].has["key-1"] = 0.0
        await trio.sleep(60)
        for _ in range(20):
            assert status(await it.ask(ask("key-1"))) == FOUND
        assert it.backends[1].state == "up"


@in_virtual_time
async def test_a_backend_that_breaks_in_three_lookups_is_ejected() -> None:
    key_managers = replicas("atlanta", "london")
    key_managers[1].behaviour = garbles_answers
    async with first_is_preferred(key_managers) as it:
        for failures in (1, 2):
            await seconds_of_miss(it)
            assert failures_of(it.backends[1]) == failures
        await seconds_of_miss(it)
        assert it.observers[2].ejections == [("red", Effect.TOUCH)]


@pytest.mark.parametrize("seconds", [4.0, 6.0, 12.0, 20.0])
@in_virtual_time
async def test_no_backend_is_ejected_if_every_backend_is_slow(seconds: float) -> None:
    key_managers = replicas("atlanta", "london", "paris", "rome")
    async with first_is_preferred(key_managers) as it:
        for one in key_managers:
            one.operation_cost = seconds
        async with trio.open_nursery() as clients:
            for _ in range(6):
                clients.start_soon(seconds_of_miss, it)
                await trio.sleep(10)
        await trio.sleep(60)
        assert [failures_of(backend) for backend in it.backends] == [0] * 4
        assert not any(observer.ejections for observer in it.observers)
        assert not any(backend.in_flight for backend in it.backends)


@in_virtual_time
async def test_an_overdue_backend_that_the_identity_changed_is_asked_all_the_same() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with first_is_preferred(key_managers, window=10.0) as it:
        with taken_for_down(it, 0):
            await it.ask(ask("key-1", Operation.CREATE), name="bob")
        it.backends[1].breaker.overdue("red", Effect.READ, "request")
        assert status(await it.ask(ask("key-1"))) == FOUND
        assert not it.backends[1].breaker.is_overdue("red", Effect.READ)


@in_virtual_time
async def test_a_lookup_on_a_dead_path_is_no_failure_of_the_backend() -> None:
    """A firewall has forgotten the session: the key manager never saw the request."""
    key_managers = replicas("atlanta", "london")
    async with first_is_preferred(key_managers) as it:
        await seconds_of_miss(it)
        (connection,) = key_managers[1].connections
        connection.is_swallowed = True
        key_managers[1].behaviour = never_answers
        await seconds_of_miss(it)
        await trio.sleep(60)
        assert connection.closed
        assert it.backends[1].breaker.is_quiet


# Lookups of other clients' objects ------------------------------------------------------------------------------------


@in_virtual_time
@pytest.mark.parametrize("version", [(1, 2), (2, 1)], ids=str)
async def test_an_object_that_one_backend_misses_is_found_at_another(version: Version) -> None:
    key_managers = replicas("atlanta", "london", "paris")
    async with late_deployment(key_managers, late(fallback=True)) as it:
        await it.ask(ask("key-1", Operation.CREATE, version=version))
        for reader in ("bob", "carol", "dave"):
            assert status(await it.ask(ask("key-1", version=version), name=reader)) == FOUND
        assert it.metrics.fallback_lookups.labels("found")._value.get() >= 1
        assert it.metrics.fallback_lookups.labels("missing")._value.get() == 0


@in_virtual_time
async def test_a_locate_without_a_match_is_sent_to_other_backends() -> None:
    async with late_deployment(replicas("atlanta", "london"), late(fallback=True)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        for _ in range(2):
            answer = await it.ask(ask("key-1", Operation.LOCATE), name="bob")
            assert answer.response is not None
            assert answer.response.items[0].unique_identifiers == [b"key-1"]


@in_virtual_time
async def test_a_miss_everywhere_returns_the_first_answer_after_asking_each_once() -> None:
    key_managers = replicas("atlanta", "london", "paris")
    async with late_deployment(key_managers, late(fallback=True)) as it:
        answer = await it.ask(ask("nothing"))

        assert (status(answer), answer.backend) == (MISSING, it.backends[0])
        assert [one.asked for one in key_managers] == [[Operation.GET]] * 3


@in_virtual_time
async def test_the_answer_to_a_batch_that_found_most_is_passed_on() -> None:
    """An answer is passed on whole: answers of two key managers are never mixed."""
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_deployment(key_managers, late(fallback=True)) as it:
        key_managers[1].has["key-1"] = 0.0
        request = ask("key-1", Operation.GET, Operation.GET, Operation.GET_ATTRIBUTES, numbered=True)
        answer = await it.ask(request)
        assert answer.response is not None
        assert [item.status for item in answer.response.items] == [ResultStatus.SUCCESS] * 3
        assert answer.backend is it.backends[1]


@in_virtual_time
async def test_a_change_of_a_missing_object_is_not_tried_elsewhere() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_deployment(key_managers, late(fallback=True)) as it:
        assert status(await it.ask(ask("nothing", Operation.ACTIVATE))) == MISSING
        assert [len(one.asked) for one in key_managers] == [1, 0]


@in_virtual_time
async def test_an_unreachable_backend_changes_nothing_in_a_lookup() -> None:
    key_managers = replicas("atlanta", "london", "paris")
    async with late_deployment(key_managers, late(fallback=True)) as it:
        key_managers[2].has["key-1"] = 0.0
        key_managers[1].refuse()
        assert status(await it.ask(ask("key-1"))) == FOUND
        key_managers[2].has.clear()
        key_managers[2].behaviour = hangs_up_after
        assert status(await it.ask(ask("key-1"))) == MISSING


@in_virtual_time
async def test_lookups_end_when_the_lookup_budget_is_empty() -> None:
    """Clients that poll for a missing object do not multiply the load by the number of key managers."""
    key_managers = replicas("atlanta", "london", "paris")
    times = DispatcherSettings(replication=ReplicationConfig(lookup_ratio=0.1, min_lookups_per_second=0.1))
    async with late_deployment(key_managers, late(fallback=True), times=times) as it:
        for _ in range(200):
            assert status(await it.ask(ask("nothing"))) == MISSING
        assert 200 < sum(len(one.asked) for one in key_managers) <= 200 * (1 + 2 * 0.1) + 10
        assert it.metrics.fallback_lookups.labels("denied")._value.get() > 100


@in_virtual_time
async def test_a_backend_that_hangs_delays_the_first_answer_by_try_timeout() -> None:
    key_managers = replicas("atlanta", "london")
    key_managers[1].behaviour = never_answers
    async with late_deployment(key_managers, late(fallback=True)) as it:
        assert status(await it.ask(ask("nothing"))) == MISSING
        assert trio.current_time() < 6


@in_virtual_time
async def test_lookups_do_not_use_up_the_retry_budget() -> None:
    key_managers = replicas("atlanta", "london", lag=0.0)
    async with late_deployment(key_managers, late(fallback=True)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        for _ in range(60):
            await it.ask(ask("nothing", Operation.LOCATE))
        key_managers[0].behaviour = hangs_up_after
        for _ in range(2):
            assert status(await it.ask(ask("key-1"))) == FOUND


@in_virtual_time
async def test_a_pending_locate_is_sent_to_one_backend_only() -> None:
    key_managers = replicas("atlanta", "london", "paris")
    for one in key_managers:
        one.behaviour = begins_and_polls
    later = (ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True),)
    async with late_deployment(key_managers, late(window=10.0, fallback=True)) as it:
        await it.ask(ask("key-1", Operation.LOCATE, header=later))
        assert [len(one.executed) for one in key_managers] == [1, 0, 0]


def says_how_many(connection: Connection, request: Request) -> None:
    """Answer with the number of matches only, as to a Locate with Maximum Items 0."""
    connection.execute(request)
    result = compose.Result(ResultStatus.SUCCESS, Operation.LOCATE, payload=ttlv.integer(Tag.LOCATED_ITEMS, 7))
    connection.say(compose.encode_response(request.version, [result], now=0))


@in_virtual_time
async def test_a_locate_that_counts_matches_is_not_empty() -> None:
    key_managers = replicas("atlanta", "london")
    for one in key_managers:
        one.behaviour = says_how_many
    async with late_deployment(key_managers, late(fallback=True)) as it:
        await it.ask(ask("key-1", Operation.LOCATE))
        assert [len(one.executed) for one in key_managers] == [1, 0]
