"""What one key manager does not find: where it is looked for, at what price, and whose answer the client gets."""

import trio

from gateway.config import DeadlinesConfig, FailoverConfig, ReplicationConfig
from gateway.dispatcher import DispatcherSettings, Knowledge
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from gateway.policy import Refusal
from gateway.upstream.maintenance import maintain_pools
from tests.kit.fake_backends import SETTINGS, Connection, ask, hangs_up_after, in_virtual_time, never_answers
from tests.kit.replicas import (
    FOUND,
    MISSING,
    Replica,
    goes_down,
    is_back,
    late,
    late_house,
    replicas,
    status,
    taken_for_down,
)
from tests.test_dispatcher import House, house, refusal

FAILED = ResultStatus.OPERATION_FAILED


def both() -> Knowledge:
    return late(window=10.0, asks_others=True)


def asked_for(operation: Operation, key_managers: list[Replica]) -> list[int]:
    return [one.asked.count(operation) for one in key_managers]


async def leave_something_on_both(it: House) -> None:
    """The client makes key-1 on the second key manager, and then key-2 on the first."""
    with taken_for_down(it, 0):
        await it.ask(ask("key-1", Operation.CREATE))
    with taken_for_down(it, 1):
        await it.ask(ask("key-2", Operation.CREATE))


# Whom to ask, and at what price ---------------------------------------------------------------------------------------


@in_virtual_time
async def test_who_has_found_it_keeps_the_client_waiting_for_nobody_else() -> None:
    key_managers = replicas("atlanta", "london", "paris", lag=1e9)
    async with late_house(key_managers, late(asks_others=True)) as it:
        key_managers[1].has["key-1"] = 0.0
        key_managers[2].behaviour = never_answers
        began = trio.current_time()
        assert status(await it.ask(ask("key-1"))) == FOUND
        assert trio.current_time() - began < 1
        assert key_managers[2].connections == []


@in_virtual_time
async def test_a_search_costs_one_however_many_are_asked() -> None:
    key_managers = replicas("atlanta", "london", "paris", "rome")
    times = DispatcherSettings(
        replication=ReplicationConfig(lookup_ratio=0.0, min_lookups_per_second=0.1)
    )  # one is held, and no more come in this time
    async with late_house(key_managers, late(asks_others=True), times) as it:
        for _ in range(2):
            assert status(await it.ask(ask("nothing"))) == MISSING
        assert sum(asked_for(Operation.GET, key_managers)) == 4 + 1


@in_virtual_time
async def test_every_request_adds_to_what_pays_for_searches() -> None:
    key_managers = replicas("atlanta", "london", lag=0.0)
    times = DispatcherSettings(replication=ReplicationConfig(lookup_ratio=0.2, min_lookups_per_second=0.0001))
    async with late_house(key_managers, late(asks_others=True), times) as it:
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
async def test_where_the_identity_has_just_changed_something_is_asked_for_nothing() -> None:
    """There it may well be. A client that locates and finds nothing because a budget is empty makes a second key."""
    key_managers = replicas("atlanta", "london", "paris", lag=1e9)
    times = DispatcherSettings(replication=ReplicationConfig(lookup_ratio=0.0, min_lookups_per_second=0.0001))
    async with late_house(key_managers, both(), times) as it:
        await it.ask(ask("nothing"))  # takes the one search that there is
        await it.ask(ask("key-1", Operation.CREATE))
        for _ in range(30):
            assert status(await it.ask(ask("key-1"), name="bob")) == FOUND
        assert status(await it.ask(ask("key-1"), "blue", "carol")) == FOUND  # an identity with a search of its own

        await trio.sleep(11)
        assert [status(await it.ask(ask("key-1"), name="bob")) for _ in range(3)].count(MISSING) == 2


@in_virtual_time
async def test_who_is_down_is_not_asked() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(asks_others=True)) as it:
        with taken_for_down(it, 1):
            assert status(await it.ask(ask("nothing"))) == MISSING
        assert key_managers[1].connections == []


@in_virtual_time
async def test_nobody_is_asked_once_the_time_for_the_request_is_over() -> None:
    key_managers = replicas("atlanta", "london", "paris")
    times = DispatcherSettings(deadlines=DeadlinesConfig(request=6.0), failover=FailoverConfig(try_timeout=5.0))
    warm = SETTINGS.model_copy(update={"min_idle": 1})
    async with house(*key_managers, knowledge=lambda _: late(asks_others=True), times=times, pool=warm) as it:
        for backend in it.backends:  # all have sessions
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


# What is looked for ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_what_a_client_has_destroyed_does_not_come_back_to_it() -> None:
    """From one that has not heard of that; other clients may still find it there."""
    key_managers = replicas("atlanta", "london", lag=5.0)
    async with late_house(key_managers, both()) as it:
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
    """A Locate that does not say which identifier it is after."""
    payload = ttlv.structure(Tag.ATTRIBUTE, ttlv.text(Tag.ATTRIBUTE_VALUE, name))
    return decode_request(compose.encode_request((1, 2), [compose.Ask(Operation.LOCATE, payload)]))


@in_virtual_time
async def test_a_destroy_that_failed_has_destroyed_nothing() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, both()) as it:
        key_managers[1].has["key-1"] = 0.0
        await it.ask(ask("key-2", Operation.CREATE))
        assert status(await it.ask(ask("key-1", Operation.DESTROY))) == MISSING
        assert status(await it.ask(ask("key-1"))) == FOUND


@in_virtual_time
async def test_a_batch_of_which_a_change_has_run_is_not_run_again() -> None:
    """Else there would be a second key."""
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_house(key_managers, both()) as it:
        await leave_something_on_both(it)
        request = batch((Operation.CREATE, "key-3"), (Operation.ACTIVATE, "key-1"))
        answer = await it.ask(request)
        assert answer.response is not None
        assert [item.status for item in answer.response.items] == [ResultStatus.SUCCESS, FAILED]
        assert [one.made for one in key_managers] == [2, 1]


@in_virtual_time
async def test_a_batch_of_which_only_reads_have_run_may_run_where_its_object_is() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_house(key_managers, both()) as it:
        await leave_something_on_both(it)
        answer = await it.ask(ask("key-1", Operation.LOCATE, Operation.ACTIVATE, numbered=True))
        assert answer.response is not None
        assert [item.status for item in answer.response.items] == [ResultStatus.SUCCESS] * 2
        assert answer.backend is it.backends[1]


def batch(*asked: tuple[Operation, str]) -> Request:
    """Operations, each on an object of its own."""
    asks = [
        compose.Ask(operation, ttlv.text(Tag.UNIQUE_IDENTIFIER, name), bytes([index]))
        for index, (operation, name) in enumerate(asked)
    ]
    return decode_request(compose.encode_request((1, 2), asks))


# Whose answer counts --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_who_shows_that_it_has_the_object_is_believed() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(asks_others=True)) as it:
        key_managers[1].has["key-1"] = 0.0
        key_managers[1].becomes("key-1", "archived")
        assert status(await it.ask(ask("key-1"))) == (FAILED, ResultReason.OBJECT_ARCHIVED)


def refuses_everything(connection: Connection, request: Request) -> None:
    """As a standby may, or one that does not know this credential."""
    connection.execute(request)
    connection.say(compose.failure(request, ResultReason.PERMISSION_DENIED, "not here"))


@in_virtual_time
async def test_who_refuses_says_nothing_of_the_object() -> None:
    key_managers = replicas("atlanta", "london")
    key_managers[1].behaviour = refuses_everything
    async with late_house(key_managers, late(asks_others=True)) as it:
        for operation, outcome in ((Operation.GET, MISSING), (Operation.LOCATE, FOUND)):
            answer = await it.ask(ask("nothing", operation))
            assert (status(answer), answer.backend) == (outcome, it.backends[0])
            await it.ask(ask("nothing", operation))  # the other's turn


@in_virtual_time
async def test_what_the_one_says_that_has_the_clients_object_counts_whatever_it_is() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_house(key_managers, both()) as it:
        await leave_something_on_both(it)
        assert status(await it.ask(ask("key-1", Operation.ACTIVATE))) == FOUND
        with taken_for_down(it, 1):
            await it.ask(ask("key-3", Operation.CREATE))
        again = await it.ask(ask("key-1", Operation.ACTIVATE))  # atlanta has no such key, in london it is active
        assert (status(again), again.backend) == ((FAILED, ResultReason.PERMISSION_DENIED), it.backends[1])


@in_virtual_time
async def test_a_change_that_was_made_elsewhere_is_made_on_no_third_one() -> None:
    key_managers = replicas("atlanta", "london", "paris", lag=1e9)
    async with late_house(key_managers, both()) as it:
        for place in (2, 1):
            with taken_for_down(it, 0), taken_for_down(it, 3 - place):
                await it.ask(ask("key-1", Operation.CREATE))
        with taken_for_down(it, 1), taken_for_down(it, 2):
            await it.ask(ask("key-2", Operation.CREATE))
        assert status(await it.ask(ask("key-1", Operation.ACTIVATE))) == FOUND
        assert sum(asked_for(Operation.ACTIVATE, key_managers)) == 2


@in_virtual_time
async def test_of_a_change_that_breaks_off_elsewhere_the_outcome_is_unknown() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_house(key_managers, both()) as it:
        await leave_something_on_both(it)
        key_managers[1].behaviour = hangs_up_after
        assert refusal(await it.ask(ask("key-1", Operation.ACTIVATE)))[0] is Refusal.OUTCOME_UNKNOWN


@in_virtual_time
async def test_once_the_one_that_may_have_it_is_back_it_is_heard() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_house(key_managers, both()) as it:
        await leave_something_on_both(it)
        goes_down(key_managers[1])
        assert refusal(await it.ask(ask("key-1", Operation.ACTIVATE)))[0] is Refusal.BACKEND_FAILED
        is_back(it, 1)
        await trio.sleep(1)
        assert status(await it.ask(ask("key-1", Operation.ACTIVATE))) == FOUND
