"""What one key manager knows and others do not: where requests go after a change, who else is asked, which values find
their way back, and what the gateway answers itself.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from gateway import log
from gateway.config import BackendOptions, ReplicationConfig
from gateway.dispatcher import Answer, DispatcherSettings, Knowledge
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Version
from gateway.kmip.spec import CredentialType, Operation, ResultReason, ResultStatus, Tag
from gateway.policy import Refusal
from gateway.upstream.affinity import Affinity
from gateway.upstream.balancer import Balancer
from gateway.upstream.health import Verdict
from gateway.upstream.maintenance import watch
from gateway.upstream.marks import SIZE, Marks
from gateway.upstream.versions import CommonVersions
from tests.kit.fake_backends import (
    Behaviour,
    Connection,
    FakeKeyManager,
    ask,
    hangs_up_after,
    in_virtual_time,
    name_in,
    never_answers,
)
from tests.kit.messages import authentication, credential, ticket_credential
from tests.kit.replicas import (
    FOUND,
    MISSING,
    Replica,
    answers_for_itself,
    goes_down,
    is_back,
    late,
    late_house,
    replicas,
    state_in,
    status,
    taken_for_down,
)
from tests.test_dispatcher import House, house, refusal

# Read your own writes -------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_without_a_remedy_the_next_read_meets_a_replica_that_has_not_heard() -> None:
    async with late_house(replicas("atlanta", "london"), late()) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        assert [status(await it.ask(ask("key-1"))) for _ in range(2)] == [FOUND, MISSING]


@in_virtual_time
async def test_a_client_reads_what_it_wrote_while_the_window_lasts() -> None:
    key_managers = replicas("atlanta", "london", "paris")
    async with late_house(key_managers, late(window=10.0)) as it:
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
async def test_a_request_that_is_sent_before_the_change_is_answered_follows_it() -> None:
    """Two sessions of one client: the second begins while the Create of the first is under way."""
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(window=10.0)) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.ask, ask("key-1", Operation.CREATE))
        await trio.sleep(0.0605)
        nursery.start_soon(it.ask, ask("key-2", Operation.CREATE))
    assert [one.made for one in key_managers] == [2, 0]


@in_virtual_time
async def test_other_clients_are_not_kept_from_taking_turns() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(window=10.0)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        for _ in range(4):
            await it.ask(ask("key-1"), name="bob")
        assert [len(one.asked) for one in key_managers] == [3, 2]


@in_virtual_time
async def test_where_the_one_that_has_it_can_not_be_reached_others_serve() -> None:
    """Better an old answer than none: but for what was just made, there is one that knows it."""
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(window=10.0)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        await trio.sleep(3)
        goes_down(key_managers[0])
        assert status(await it.ask(ask("key-1"))) == FOUND
        assert Operation.GET in key_managers[1].asked


@in_virtual_time
@pytest.mark.parametrize("asks_others", [False, True])
async def test_what_may_be_on_the_one_that_is_down_is_not_said_to_be_missing(asks_others: bool) -> None:
    """Neither a lost key nor a Locate that makes the client create a second one; but only while the window lasts."""
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(window=10.0, asks_others=asks_others)) as it:
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
@pytest.mark.parametrize("asks_others", [False, True])
async def test_a_change_that_went_elsewhere_does_not_make_what_was_made_before_missing(asks_others: bool) -> None:
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(window=10.0, asks_others=asks_others)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        goes_down(key_managers[0])
        assert status(await it.ask(ask("key-2", Operation.CREATE))) == FOUND
        assert refusal(await it.ask(ask("key-1")))[0] is Refusal.BACKEND_FAILED


@in_virtual_time
async def test_a_change_that_reached_nobody_leaves_the_window_as_it_was() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(window=10.0)) as it:
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
async def test_nor_is_it_said_to_be_missing_to_what_uses_or_changes_it(operation: Operation) -> None:
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(window=10.0, asks_others=True)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        goes_down(key_managers[0])
        assert refusal(await it.ask(ask("key-1", operation)))[0] is Refusal.BACKEND_FAILED
        assert refusal(await it.ask(ask("key-1")))[0] is Refusal.BACKEND_FAILED


@in_virtual_time
async def test_what_needs_an_object_goes_to_where_the_client_made_it_and_runs_once() -> None:
    """Also where the client has changed something elsewhere since; but not to those that it has nothing on."""
    key_managers = replicas("atlanta", "london", "paris", lag=1e9)
    async with late_house(key_managers, late(window=10.0, asks_others=True)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        goes_down(key_managers[0])
        await it.ask(ask("key-2", Operation.CREATE))
        is_back(it, 0)
        await trio.sleep(5)
        assert status(await it.ask(ask("key-1", Operation.ACTIVATE))) == FOUND
        assert [one.asked.count(Operation.ACTIVATE) for one in key_managers] == [1, 1, 0]


@in_virtual_time
async def test_a_poll_that_a_mark_leads_elsewhere_does_not_end_the_window_of_a_change() -> None:
    key_managers = replicas("atlanta", "london")
    knows = Knowledge(Affinity(10.0, is_shared=False), Marks([bytes(32)]))
    async with late_house(key_managers, knows) as it:
        key_managers[0].behaviour = begins_and_polls
        value = value_in(await it.ask(begin("job")))
        key_managers[0].behaviour = key_managers[1].behaviour
        await trio.sleep(11)
        await it.ask(ask("key-2", Operation.CREATE))
        await it.ask(poll(value))
        assert status(await it.ask(ask("key-2"))) == FOUND


@in_virtual_time
@pytest.mark.parametrize("window", [0.0, 20.0])
async def test_the_wait_for_the_preferred_one_leaves_time_for_another_that_is_free(window: float) -> None:
    key_managers = replicas("atlanta", "london")
    async with (
        house(*key_managers, knowledge=lambda _: late(window=window), places=1) as it,
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
async def test_a_client_that_keeps_changing_things_goes_back_to_its_tier() -> None:
    """With what it makes anew; what it made before is found where it is."""
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(window=10.0, asks_others=True)) as it:
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
async def test_the_window_is_as_long_after_the_answer_as_it_was_before() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_house(key_managers, late(window=10.0)) as it:
        key_managers[0].operation_cost = 6.0
        await it.ask(ask("key-1", Operation.CREATE))
        key_managers[0].operation_cost = 0.001
        await trio.sleep(9)
        assert [status(await it.ask(ask("key-1"))) for _ in range(2)] == [FOUND, FOUND]


@in_virtual_time
async def test_a_change_that_fails_beside_one_that_succeeds_does_not_end_its_window() -> None:
    """Two sessions of one client; what failed was sent first, and answered last."""
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_house(key_managers, late(window=10.0)) as it, trio.open_nursery() as nursery:
        key_managers[0].operation_cost = 0.5
        nursery.start_soon(it.ask, ask("nothing", Operation.ACTIVATE))
        await trio.sleep(0.1)
        key_managers[0].operation_cost = 0.001
        await it.ask(ask("key-1", Operation.CREATE))
        await trio.sleep(1)
        assert [status(await it.ask(ask("key-1"))) for _ in range(4)] == [FOUND] * 4


def finds_its_answer_too_large(connection: Connection, request: Request) -> None:
    """What was executed stays executed."""
    key_manager = connection.key_manager
    assert isinstance(key_manager, Replica)
    key_manager.answer(request)
    connection.say(compose.failure(request, ResultReason.RESPONSE_TOO_LARGE, "too large"))


@in_virtual_time
async def test_a_change_whose_answer_is_too_large_may_have_run() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    key_managers[0].behaviour = finds_its_answer_too_large
    async with late_house(key_managers, late(window=10.0)) as it:
        assert status(await it.ask(ask("key-1", Operation.CREATE)))[1] == ResultReason.RESPONSE_TOO_LARGE
        key_managers[0].behaviour = answers_for_itself
        assert [status(await it.ask(ask("key-1"))) for _ in range(4)] == [FOUND] * 4


@in_virtual_time
async def test_a_change_that_is_made_elsewhere_for_want_of_its_object_is_followed_there() -> None:
    """Pre-Active, of a key that was activated, is the answer at which a database shuts down."""
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(window=10.0, asks_others=True)) as it:
        with taken_for_down(it, 0):
            await it.ask(ask("key-1", Operation.CREATE))
        with taken_for_down(it, 1):
            await it.ask(ask("key-2", Operation.CREATE))
        await trio.sleep(1)
        assert status(await it.ask(ask("key-1", Operation.ACTIVATE))) == FOUND
        await trio.sleep(1.5)  # atlanta has heard of the key by now, and not yet that it is active
        assert state_in(await it.ask(ask("key-1", Operation.GET_ATTRIBUTES))) == "active"


async def _activated(it: House) -> None:
    """A key that all have, and of which only its key manager knows that it is active."""
    await it.ask(ask("key-1", Operation.CREATE))
    await trio.sleep(6)
    await it.ask(ask("key-1", Operation.ACTIVATE))


@in_virtual_time
async def test_the_one_that_knows_is_waited_for_while_others_keep_it_busy() -> None:
    key_managers = replicas("atlanta", "london", lag=5.0)
    knows = late(window=10.0, asks_others=True)
    async with house(*key_managers, knowledge=lambda _: knows, places=1) as it, trio.open_nursery() as nursery:
        await _activated(it)
        key_managers[0].operation_cost = 4.0
        nursery.start_soon(it.ask, ask("key-2"), "red", "bob")
        nursery.start_soon(it.ask, ask("key-2"), "red", "bob")
        await trio.sleep(0.1)
        key_managers[0].operation_cost = 0.001
        assert state_in(await it.ask(ask("key-1", Operation.GET_ATTRIBUTES))) == "active"


@in_virtual_time
async def test_the_one_that_knows_is_waited_for_while_it_is_slow() -> None:
    key_managers = replicas("atlanta", "london", lag=5.0)
    async with late_house(key_managers, late(window=20.0)) as it:
        await _activated(it)
        key_managers[0].operation_cost = 6.0
        assert trio.current_time() < 7
        answer = await it.ask(ask("key-1", Operation.GET_ATTRIBUTES))
        assert answer.backend is it.backends[0]


@in_virtual_time
async def test_the_one_that_knows_is_waited_for_no_longer_than_until_it_is_found_to_be_down() -> None:
    key_managers = replicas("atlanta", "london", lag=1.0)
    async with late_house(key_managers, late(window=60.0)) as it:
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


async def _says(it: House, request: Request, expected: tuple[int, int | None]) -> None:
    assert status(await it.ask(request)) == expected


@in_virtual_time
async def test_what_is_made_in_a_lower_tier_stays_in_one_place_where_the_better_speaks_another_version() -> None:
    key_managers = replicas("atlanta", "london", "paris", lag=1e9)
    async with late_house(key_managers, late(window=10.0)) as it:
        it.backends[0].versions = frozenset({(1, 2)})
        for backend in it.backends[1:]:
            backend.options = BackendOptions(priority=1)
        it.balancer.backends = it.backends
        for number in range(4):
            await it.ask(ask(f"key-{number}", Operation.CREATE, version=(2, 1)))
        assert sorted(one.made for one in key_managers) == [0, 0, 4]


# Outcomes that are unknown --------------------------------------------------------------------------------------------


def _makes_it_after(seconds: float, then: Callable[[FakeKeyManager], None]) -> Behaviour:
    """A busy HSM: a Create takes so long, and is not answered; something happens then."""

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


@pytest.mark.parametrize("asks_others", [True, False])
@in_virtual_time
async def test_the_window_begins_when_the_outcome_of_a_change_becomes_unknown(asks_others: bool) -> None:
    key_managers = replicas("atlanta", "london", lag=8.0)
    async with late_house(key_managers, late(window=10.0, asks_others=asks_others)) as it:
        key_managers[0].behaviour = _makes_it_after(15.0, FakeKeyManager.hang_up)
        assert refusal(await it.ask(ask("key-1", Operation.CREATE)))[0] is Refusal.OUTCOME_UNKNOWN
        for _ in range(7):
            assert status(await it.ask(ask("key-1"))) == FOUND
            await trio.sleep(1)
        assert it.backends[0] is (await it.ask(ask("key-1"))).backend


@in_virtual_time
async def test_the_window_begins_when_a_change_is_cancelled() -> None:
    key_managers = replicas("atlanta", "london", lag=20.0)
    async with late_house(key_managers, late(window=10.0)) as it:
        key_managers[0].behaviour = _makes_it_after(1.0, lambda _key_manager: None)
        with trio.move_on_after(15):
            await it.ask(ask("key-1", Operation.CREATE))
        key_managers[0].behaviour = answers_for_itself
        for _ in range(4):
            assert status(await it.ask(ask("key-1"))) == FOUND


@pytest.mark.parametrize("seconds", [5.0, 15.0])
@in_virtual_time
async def test_no_match_is_not_told_while_the_one_that_may_have_the_key_is_down(seconds: float) -> None:
    """The client would make a second key."""
    key_managers = replicas("atlanta", "london", lag=20.0)
    async with late_house(key_managers, late(window=10.0, asks_others=True)) as it:
        key_managers[0].behaviour = _makes_it_after(seconds, goes_down)
        assert refusal(await it.ask(ask("key-1", Operation.CREATE)))[0] is Refusal.OUTCOME_UNKNOWN
        assert refusal(await it.ask(ask("key-1", Operation.LOCATE)))[0] is Refusal.BACKEND_FAILED
        assert [key_manager.made for key_manager in key_managers] == [1, 0]


# Asking others --------------------------------------------------------------------------------------------------------


@in_virtual_time
@pytest.mark.parametrize("version", [(1, 2), (2, 1)], ids=str)
async def test_what_one_does_not_find_another_is_asked_for(version: Version) -> None:
    key_managers = replicas("atlanta", "london", "paris")
    async with late_house(key_managers, late(asks_others=True)) as it:
        await it.ask(ask("key-1", Operation.CREATE, version=version))
        for reader in ("bob", "carol", "dave"):
            assert status(await it.ask(ask("key-1", version=version), name=reader)) == FOUND
        assert it.metrics.fallback_lookups.labels("found")._value.get() >= 1
        assert it.metrics.fallback_lookups.labels("missing")._value.get() == 0


@in_virtual_time
async def test_a_locate_that_comes_back_empty_is_asked_of_the_others() -> None:
    async with late_house(replicas("atlanta", "london"), late(asks_others=True)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        for _ in range(2):
            answer = await it.ask(ask("key-1", Operation.LOCATE), name="bob")
            assert answer.response is not None
            assert answer.response.items[0].unique_identifiers == [b"key-1"]


@in_virtual_time
async def test_what_nobody_has_is_missing_in_the_words_of_the_first_and_everybody_was_asked_once() -> None:
    key_managers = replicas("atlanta", "london", "paris")
    async with late_house(key_managers, late(asks_others=True)) as it:
        answer = await it.ask(ask("nothing"))

        assert (status(answer), answer.backend) == (MISSING, it.backends[0])
        assert [one.asked for one in key_managers] == [[Operation.GET]] * 3


@in_virtual_time
async def test_of_a_batch_the_answer_that_found_most_is_passed_on() -> None:
    """Whole: answers of two key managers are never mixed."""
    key_managers = replicas("atlanta", "london", lag=1e9)
    async with late_house(key_managers, late(asks_others=True)) as it:
        key_managers[1].has["key-1"] = 0.0
        request = ask("key-1", Operation.GET, Operation.GET, Operation.GET_ATTRIBUTES, numbered=True)
        answer = await it.ask(request)
        assert answer.response is not None
        assert [item.status for item in answer.response.items] == [ResultStatus.SUCCESS] * 3
        assert answer.backend is it.backends[1]


@in_virtual_time
async def test_a_change_of_something_missing_is_not_tried_elsewhere() -> None:
    key_managers = replicas("atlanta", "london")
    async with late_house(key_managers, late(asks_others=True)) as it:
        assert status(await it.ask(ask("nothing", Operation.ACTIVATE))) == MISSING
        assert [len(one.asked) for one in key_managers] == [1, 0]


@in_virtual_time
async def test_one_that_can_not_be_reached_when_it_is_asked_too_changes_nothing() -> None:
    key_managers = replicas("atlanta", "london", "paris")
    async with late_house(key_managers, late(asks_others=True)) as it:
        key_managers[2].has["key-1"] = 0.0
        key_managers[1].refuse()
        assert status(await it.ask(ask("key-1"))) == FOUND
        key_managers[2].has.clear()
        key_managers[2].behaviour = hangs_up_after
        assert status(await it.ask(ask("key-1"))) == MISSING


@in_virtual_time
async def test_asking_others_is_paid_for_by_the_lookup_budget() -> None:
    """Who polls for what is not there yet does not multiply the load by the number of key managers."""
    key_managers = replicas("atlanta", "london", "paris")
    times = DispatcherSettings(replication=ReplicationConfig(lookup_ratio=0.1, min_lookups_per_second=0.1))
    async with late_house(key_managers, late(asks_others=True), times=times) as it:
        for _ in range(200):
            assert status(await it.ask(ask("nothing"))) == MISSING
        assert 200 < sum(len(one.asked) for one in key_managers) <= 200 * (1 + 2 * 0.1) + 10
        assert it.metrics.fallback_lookups.labels("denied")._value.get() > 100


@in_virtual_time
async def test_one_that_hangs_does_not_keep_back_the_answer_that_is_there() -> None:
    key_managers = replicas("atlanta", "london")
    key_managers[1].behaviour = never_answers
    async with late_house(key_managers, late(asks_others=True)) as it:
        assert status(await it.ask(ask("nothing"))) == MISSING
        assert trio.current_time() < 6


@in_virtual_time
async def test_asking_others_does_not_use_up_the_retries_after_failures() -> None:
    key_managers = replicas("atlanta", "london", lag=0.0)
    async with late_house(key_managers, late(asks_others=True)) as it:
        await it.ask(ask("key-1", Operation.CREATE))
        for _ in range(60):
            await it.ask(ask("nothing", Operation.LOCATE))
        key_managers[0].behaviour = hangs_up_after
        for _ in range(2):
            assert status(await it.ask(ask("key-1"))) == FOUND


@in_virtual_time
async def test_a_locate_that_is_pending_is_begun_once_and_missing_nothing() -> None:
    key_managers = replicas("atlanta", "london", "paris")
    for one in key_managers:
        one.behaviour = begins_and_polls
    later = (ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True),)
    async with late_house(key_managers, late(window=10.0, asks_others=True)) as it:
        await it.ask(ask("key-1", Operation.LOCATE, header=later))
        assert [len(one.executed) for one in key_managers] == [1, 0, 0]


def says_how_many(connection: Connection, request: Request) -> None:
    """Seven, and none of them by name: as asked for with Maximum Items 0."""
    connection.execute(request)
    result = compose.Result(ResultStatus.SUCCESS, Operation.LOCATE, payload=ttlv.integer(Tag.LOCATED_ITEMS, 7))
    connection.say(compose.encode_response(request.version, [result], now=0))


@in_virtual_time
async def test_a_locate_that_says_how_many_there_are_is_not_empty() -> None:
    key_managers = replicas("atlanta", "london")
    for one in key_managers:
        one.behaviour = says_how_many
    async with late_house(key_managers, late(asks_others=True)) as it:
        await it.ask(ask("key-1", Operation.LOCATE))
        assert [len(one.executed) for one in key_managers] == [1, 0]


# Ten minutes of clients that make a key where they find none ----------------------------------------------------------


async def _make_unless_it_is_there(it: House, name: str, client: str) -> None:
    answer = await it.ask(ask(name, Operation.LOCATE), name=client)
    assert answer.response is not None
    if not answer.response.items[0].unique_identifiers:
        await it.ask(ask(name, Operation.CREATE), name=client)


async def _ten_minutes(
    knowledge: Knowledge, *, lag: float, clients: Sequence[str], pause: float = 0.5, nodes: int = 3
) -> int:
    """Second keys that were made, where clients locate one by name and make it where there is none, 40 ms apart."""
    key_managers = replicas(*map(str, range(nodes)), lag=lag)
    rounds = 0
    async with late_house(key_managers, knowledge) as it:
        while trio.current_time() < 600:
            rounds += 1
            for client in clients:
                await _make_unless_it_is_there(it, f"key-{rounds}", client)
                await trio.sleep(0.04)
            await trio.sleep(pause)
    return sum(one.made for one in key_managers) - rounds


@in_virtual_time
async def test_without_a_remedy_ten_minutes_make_hundreds_of_second_keys() -> None:
    assert await _ten_minutes(late(), lag=2.0, clients=["alice"] * 4) > 100


@in_virtual_time
async def test_in_ten_minutes_the_window_lets_no_client_make_a_second_key() -> None:
    assert await _ten_minutes(late(window=10.0), lag=2.0, clients=["alice"] * 4) == 0


@in_virtual_time
async def test_in_ten_minutes_asking_others_lets_no_two_clients_make_a_second_key() -> None:
    """Of all that is asked of the others, the budget pays: it must have grown again."""
    clients = ["alice", "bob", "carol"]
    assert await _ten_minutes(late(asks_others=True), lag=2.0, clients=clients, pause=6) == 0


@in_virtual_time
@pytest.mark.parametrize("nodes", [3, 5])
@pytest.mark.parametrize("pause", [0.0, 1.0, 3.0])
async def test_in_ten_minutes_both_let_nobody_make_a_second_key(pause: float, nodes: int) -> None:
    """As often as they come: where somebody has just made a key, others are asked for nothing."""
    both, clients = late(window=10.0, asks_others=True), ["alice", "alice", "bob", "bob"]
    assert await _ten_minutes(both, lag=2.0, clients=clients, pause=pause, nodes=nodes) == 0


# Marks ----------------------------------------------------------------------------------------------------------------


def begins_and_polls(connection: Connection, request: Request) -> None:
    """It answers what may take long with a value of its own, and knows that value, and no other."""
    value = f"later at {connection.key_manager.name}".encode()
    item = request.items[0]
    connection.execute(request)
    if item.operation == Operation.POLL:
        known = value in request.frame and b"kgw" not in request.frame
        outcome, reason = FOUND if known else MISSING
        result = compose.Result(outcome, Operation.CREATE, item.unique_batch_item_id, reason)
    elif name_in(request):
        result = compose.Result(
            ResultStatus.OPERATION_PENDING, item.operation, None, asynchronous_correlation_value=value
        )
    else:
        result = compose.Result(ResultStatus.SUCCESS, item.operation)
    connection.say(compose.encode_response(request.version, [result], now=0))


def patient(*names: str) -> list[FakeKeyManager]:
    key_managers = [FakeKeyManager(name) for name in names]
    for one in key_managers:
        one.behaviour = begins_and_polls
    return key_managers


def begin(name: str, *header: bytes) -> Request:
    return ask(name, Operation.CREATE, header=(*header, ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True)))


def poll(value: bytes, *more: bytes) -> Request:
    asks = [
        compose.Ask(Operation.POLL, ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, one), bytes([index]))
        for index, one in enumerate((value, *more))
    ]
    return decode_request(compose.encode_request((1, 4), asks))


def with_marks(balancer: Balancer) -> Knowledge:
    return Knowledge(Affinity(10.0), Marks([bytes(32)]), CommonVersions(balancer))


def value_in(answer: Answer) -> bytes:
    return decode_response(answer.frame).items[0].asynchronous_correlation_value or b""


@in_virtual_time
async def test_polls_find_the_key_manager_that_began_through_any_gateway() -> None:
    key_managers = patient("atlanta", "london", "paris")
    async with house(*key_managers, knowledge=with_marks) as one, house(*key_managers, knowledge=with_marks) as other:
        values = [value_in(await one.ask(begin(f"key-{number}"))) for number in range(6)]
        assert len({value[SIZE:] for value in values}) == 3
        for value in values:
            assert status(await other.ask(poll(value))) == FOUND


@in_virtual_time
async def test_without_marks_values_pass_as_they_are_and_follow_the_window() -> None:
    key_managers = patient("atlanta", "london", "paris")
    async with house(*key_managers, knowledge=lambda _: Knowledge(Affinity(10.0))) as it:
        for value in [b"later at atlanta"] * 3:
            await it.ask(poll(value))
        assert [len(one.connections) for one in key_managers] == [1, 0, 0]


@in_virtual_time
@pytest.mark.parametrize("operation", [Operation.CREATE, Operation.GET], ids=str)
@pytest.mark.parametrize("is_shared", [False, True])
async def test_without_marks_a_poll_follows_what_is_pending(operation: Operation, is_shared: bool) -> None:
    key_managers = patient("atlanta", "london", "paris")
    knows = Knowledge(Affinity(10.0, is_shared=is_shared))
    later = (ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True),)
    async with house(*key_managers, knowledge=lambda _: knows) as it:
        for number in range(6):
            value = value_in(await it.ask(ask(f"key-{number}", operation, header=later)))
            assert status(await it.ask(poll(value))) == FOUND


@in_virtual_time
async def test_without_marks_a_ticket_is_shown_where_it_was_given() -> None:
    key_managers = [FakeKeyManager("atlanta"), FakeKeyManager("london")]
    for one in key_managers:
        one.behaviour = logs_in_and_makes
    shown = (authentication(ticket_credential(b"mine")),)
    async with house(*key_managers, knowledge=lambda _: Knowledge(Affinity(10.0))) as it:
        await it.ask(ask("", Operation.LOGIN, version=(2, 1)))
        for _ in range(3):
            assert (await it.ask(ask("key-1", version=(2, 1), header=shown))).backend is it.backends[0]


@in_virtual_time
async def test_a_change_that_was_pending_is_followed_once_a_poll_says_that_it_has_run() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    knows = Knowledge(Affinity(10.0, is_shared=False), Marks([bytes(32)]))
    async with late_house(key_managers, knows) as it:
        for one in key_managers:
            one.behaviour = begins_and_polls
        value = value_in(await it.ask(begin("key-1")))
        await trio.sleep(11)
        assert status(await it.ask(poll(value))) == FOUND
        key_managers[0].has["key-1"] = trio.current_time()
        for one in key_managers:
            one.behaviour = answers_for_itself
        assert [status(await it.ask(ask("key-1", Operation.ACTIVATE))) for _ in range(1)] == [FOUND]
        assert [status(await it.ask(ask("key-1"))) for _ in range(3)] == [FOUND] * 3


def has_found_nothing(connection: Connection, request: Request) -> None:
    """What was pending was a Locate."""
    connection.execute(request)
    connection.say(compose.encode_response(request.version, [compose.Result(ResultStatus.SUCCESS, Operation.LOCATE)]))


@in_virtual_time
async def test_a_password_binds_to_no_key_manager_in_particular() -> None:
    """It is good anywhere, so that a Poll elsewhere leads nothing away from the last change."""
    key_managers = replicas("atlanta", "london", lag=5.0)
    knows = Knowledge(Affinity(10.0, is_shared=False), Marks([bytes(32)]))
    header = (authentication(credential(CredentialType.USERNAME_AND_PASSWORD)),)
    async with late_house(key_managers, knows) as it:
        key_managers[0].behaviour = begins_and_polls
        value = value_in(await it.ask(begin("job")))
        key_managers[0].behaviour = has_found_nothing
        await trio.sleep(11)
        await it.ask(ask("key-1", Operation.CREATE, header=header))
        await trio.sleep(6)
        await it.ask(ask("key-1", Operation.ACTIVATE, header=header))
        assert key_managers[1].state("key-1") == "active"
        await it.ask(poll(value))
        key_managers[0].behaviour = answers_for_itself
        assert state_in(await it.ask(ask("key-1", Operation.GET_ATTRIBUTES, header=header))) == "active"


@in_virtual_time
async def test_a_forged_value_and_somebody_elses_are_unknown_and_reach_no_key_manager() -> None:
    (key_manager,) = patient("atlanta")
    async with house(key_manager, knowledge=with_marks) as it:
        value = value_in(await it.ask(begin("key-1")))
        sent = len(key_manager.connections[0].sent)
        for answer in (
            await it.ask(poll(value[:-1])),
            await it.ask(poll(value), name="bob"),
            await it.ask(poll(value), "blue"),
        ):
            assert refusal(answer)[:2] == (Refusal.UNKNOWN_ASYNCHRONOUS_VALUE, ResultReason.ITEM_NOT_FOUND)
        assert len(key_manager.connections[0].sent) == sent


@in_virtual_time
async def test_a_batch_with_values_of_two_key_managers_is_refused() -> None:
    async with house(*patient("atlanta", "london"), knowledge=with_marks) as it:
        values = [value_in(await it.ask(begin(f"key-{number}"))) for number in range(2)]
        answer = await it.ask(poll(*values))
        assert answer.refusal is Refusal.SEVERAL_BACKENDS
        assert len(decode_response(answer.frame).items) == 2


@in_virtual_time
async def test_where_the_one_that_began_is_down_the_client_hears_that_and_no_other_is_asked() -> None:
    key_managers = patient("atlanta", "london")
    async with house(*key_managers, knowledge=with_marks) as it:
        value = value_in(await it.ask(begin("key-1")))
        goes_down(key_managers[0])

        reason, number, message = refusal(await it.ask(poll(value)))

        assert (reason, number) == (Refusal.NO_BACKEND, ResultReason.GENERAL_FAILURE)
        assert "holds this request's state" in message
        assert key_managers[1].connections == []

        key_managers[0].recover()
        key_managers[0].behaviour = begins_and_polls
        await trio.sleep(60)
        assert status(await it.ask(poll(value))) == FOUND


@in_virtual_time
async def test_marks_count_towards_the_maximum_response_size() -> None:
    (key_manager,) = patient("atlanta")
    async with house(key_manager, knowledge=with_marks) as it:
        whole = len((await it.ask(begin("key-1"))).frame)
        most = ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, whole)
        fits = await it.ask(begin("key-1", most))
        sent = decode_request(key_manager.connections[0].sent[-1])
        too_long = await it.ask(begin("key-1", ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, whole - 1)))

        assert (len(fits.frame), sent.maximum_response_size) == (whole, whole - SIZE)
        assert refusal(too_long)[0] is Refusal.RESPONSE_TOO_LARGE


def logs_in_and_makes(connection: Connection, request: Request) -> None:
    """A ticket for each Login; what does not fit is refused before it is done."""
    ticket = ttlv.structure(Tag.TICKET, ttlv.enumeration(Tag.TICKET_TYPE, 1), ttlv.octets(Tag.TICKET_VALUE, b"mine"))
    results = [
        compose.Result(
            ResultStatus.SUCCESS,
            item.operation,
            item.unique_batch_item_id,
            payload=ticket if item.operation == Operation.LOGIN else ttlv.text(Tag.UNIQUE_IDENTIFIER, "key-1"),
        )
        for item in request.items
    ]
    frame = compose.encode_response(request.version, results, now=0)
    if len(frame) > (request.maximum_response_size or 1 << 20):
        frame = compose.failure(request, ResultReason.RESPONSE_TOO_LARGE, "too large")
    else:
        connection.execute(request)
    connection.say(frame)


@in_virtual_time
async def test_room_for_marks_is_left_in_a_batch_that_also_changes_something() -> None:
    key_manager = FakeKeyManager("atlanta")
    key_manager.behaviour = logs_in_and_makes
    async with house(key_manager, knowledge=with_marks) as it:
        both = (Operation.LOGIN, Operation.CREATE)
        whole = len((await it.ask(ask("key-1", *both, numbered=True))).frame)
        key_manager.executed.clear()
        most = ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, whole - 1)
        await it.ask(ask("key-1", *both, numbered=True, header=(most,)))
        assert key_manager.executed == []


@in_virtual_time
async def test_a_mark_does_not_cost_the_client_an_answer_that_was_longer_than_it_asked_for_anyway() -> None:
    (key_manager,) = patient("atlanta")  # which does not look at Maximum Response Size
    async with house(key_manager, knowledge=with_marks) as it:
        assert value_in(await it.ask(begin("key-1", ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 0))))


@in_virtual_time
async def test_who_can_not_show_a_ticket_where_it_was_given_hears_what_another_says_of_it() -> None:
    """It may know the ticket, or say that one must log in again."""
    key_managers = [FakeKeyManager("atlanta"), FakeKeyManager("london")]
    for one in key_managers:
        one.behaviour = logs_in_and_makes
    async with house(*key_managers, knowledge=with_marks) as it:
        frame = (await it.ask(ask("", Operation.LOGIN, version=(2, 1)))).frame
        ticket = frame[frame.index(b"kgw") :][: SIZE + 4]
        shown = (authentication(ticket_credential(ticket)),)
        for _ in range(3):
            assert (await it.ask(ask("key-1", version=(2, 1), header=shown))).backend is it.backends[0]
        goes_down(key_managers[0])
        assert (await it.ask(ask("key-1", version=(2, 1), header=shown))).backend is it.backends[1]


@in_virtual_time
@pytest.mark.parametrize("seconds", [3.0, 6.0])
async def test_a_ticket_is_shown_where_it_was_given_though_that_one_is_busy_or_slow(seconds: float) -> None:
    key_managers = [FakeKeyManager("atlanta"), FakeKeyManager("london")]
    for one in key_managers:
        one.behaviour = logs_in_and_makes
    async with house(*key_managers, knowledge=with_marks, places=1) as it, trio.open_nursery() as nursery:
        frame = (await it.ask(ask("", Operation.LOGIN, version=(2, 1)))).frame
        ticket = frame[frame.index(b"kgw") :][: SIZE + 4]
        shown = (authentication(ticket_credential(ticket)),)

        def takes_its_time(connection: Connection, request: Request) -> None:
            connection.execute(request)
            answer = compose.encode_response(request.version, [compose.Result(ResultStatus.SUCCESS, Operation.GET)])
            connection.say(answer, at=trio.current_time() + seconds)

        key_managers[0].behaviour = takes_its_time
        if seconds < 5:  # the only session is in use for so long
            nursery.start_soon(it.ask, ask("key-0", version=(2, 1), header=shown))
            await trio.sleep(0.01)
        answer = await it.ask(ask("key-1", version=(2, 1), header=shown))
        assert answer.backend is it.backends[0]


# Discover Versions ----------------------------------------------------------------------------------------------------


def discover(
    *versions: Version, version: Version = (1, 1), header: tuple[bytes, ...] = (), more: bytes = b""
) -> Request:
    listed = b"".join(
        ttlv.structure(
            Tag.PROTOCOL_VERSION,
            ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, major),
            ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, minor),
        )
        for major, minor in versions
    )
    asked = [compose.Ask(Operation.DISCOVER_VERSIONS, listed + more)]
    return decode_request(compose.encode_request(version, asked, header=header))


def versions_in(answer: Answer) -> list[Version]:
    item = decode_response(answer.frame).items[0]
    assert (item.operation, item.status) == (Operation.DISCOVER_VERSIONS, ResultStatus.SUCCESS)
    frame = answer.frame
    return [
        (
            ttlv.read_integer(frame, ttlv.find(frame, one.start, one.end, Tag.PROTOCOL_VERSION_MAJOR) or one),
            ttlv.read_integer(frame, ttlv.find(frame, one.start, one.end, Tag.PROTOCOL_VERSION_MINOR) or one),
        )
        for one in ttlv.walk(frame, *item.fields[Tag.RESPONSE_PAYLOAD])
    ]


@asynccontextmanager
async def house_of_versions(*spoken: Sequence[Version] | None) -> AsyncIterator[House]:
    """Key managers that speak these versions; None for one that was not asked yet."""
    async with house(*map(str, range(len(spoken))), knowledge=with_marks) as it:
        for backend, versions in zip(it.backends, spoken, strict=True):
            backend.versions = None if versions is None else frozenset(versions)
        yield it


OLD: list[Version] = [(1, 0), (1, 1), (1, 2)]
NEW: list[Version] = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1)]


@in_virtual_time
async def test_the_gateway_answers_with_what_all_of_them_speak_the_newest_first() -> None:
    async with house_of_versions(OLD, NEW) as it:
        answer = await it.ask(discover())

        assert versions_in(answer) == [(1, 2), (1, 1)]
        assert (answer.response, answer.refusal) == (None, None)
        assert not it.key_managers[0].connections + it.key_managers[1].connections


@in_virtual_time
async def test_a_list_is_answered_with_what_is_in_it() -> None:
    async with house_of_versions(OLD, NEW) as it:
        assert versions_in(await it.ask(discover((1, 0), (1, 1)))) == [(1, 1)]
        assert versions_in(await it.ask(discover((1, 2), (1, 2), (9, 9), (-1, 0)))) == [(1, 2)]
        assert versions_in(await it.ask(discover((3, 0)))) == []


@in_virtual_time
async def test_only_those_that_are_available_now_count() -> None:
    async with house_of_versions(OLD, NEW) as it:
        for _ in range(3):
            it.backends[0].health.checked(Verdict.FAILS)
        assert versions_in(await it.ask(discover())) == sorted(NEW, reverse=True)


@in_virtual_time
async def test_with_all_of_them_down_no_version_is_spoken() -> None:
    """VCenter takes the answer for a sign of life."""
    async with house_of_versions(OLD, NEW) as it:
        for backend, key_manager in zip(it.backends, it.key_managers, strict=True):
            key_manager.refuse()
            for _ in range(3):
                backend.health.checked(Verdict.FAILS)
        assert refusal(await it.ask(discover()))[0] is Refusal.NO_BACKEND


#: Questions that are not the plain one: a key manager answers them.
NOT_PLAIN = {
    "a credential": discover(header=(ttlv.structure(Tag.AUTHENTICATION),)),
    "an extension": discover(header=(ttlv.octets(0x540001, b"vendor"),)),
    "a correlation value": discover(header=(ttlv.text(Tag.CLIENT_CORRELATION_VALUE, "x"),)),
    "an odd list": discover((1, 1), more=ttlv.integer(Tag.BATCH_COUNT, 1)),
    "half a version": discover(more=ttlv.structure(Tag.PROTOCOL_VERSION)),
    "a list that can't be read": discover(more=b"\xff" * 16),
    "a version that one does not speak": discover(version=(1, 4)),
    "a version without this operation": discover(version=(1, 0)),
    "no room for the answer": discover(header=(ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 100),)),
    "a batch": ask("", Operation.DISCOVER_VERSIONS, Operation.QUERY, numbered=True, version=(1, 1)),
    "another operation": ask("", Operation.QUERY, version=(1, 1)),
}


@in_virtual_time
@pytest.mark.parametrize("request_", NOT_PLAIN.values(), ids=NOT_PLAIN)
async def test_anything_but_the_plain_question_is_for_a_key_manager(request_: Request) -> None:
    async with house_of_versions(OLD, NEW) as it:
        for key_manager in it.key_managers:
            key_manager.behaviour = _finds_it_invalid
        assert (await it.ask(request_)).response is not None


def _finds_it_invalid(connection: Connection, request: Request) -> None:
    connection.say(compose.failure(request, ResultReason.INVALID_MESSAGE, "no"))


@in_virtual_time
async def test_one_that_was_not_asked_yet_may_speak_anything() -> None:
    async with house_of_versions(NEW, None) as it:
        assert (await it.ask(discover())).response is not None


@in_virtual_time
async def test_the_plain_question_may_say_how_a_batch_is_to_be_run_and_when_it_was_asked() -> None:
    header = (
        ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 8192),
        ttlv.enumeration(Tag.BATCH_ERROR_CONTINUATION_OPTION, 2),
        ttlv.boolean(Tag.BATCH_ORDER_OPTION, value=True),
        ttlv.date_time(Tag.TIME_STAMP, 1_700_000_000),
    )
    async with house_of_versions(NEW) as it:
        assert versions_in(await it.ask(discover(header=header)))
