"""Attempts: failures, and their effect on other requests, sessions and backends; requests whose client left."""

from collections import Counter
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from gateway.dispatcher import Answer
from gateway.errors import StreamClosedError
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation
from gateway.policy import Refusal
from tests.kit.clients import WARM, Tally, client, maintain
from tests.kit.deployment import Deployment, deployment, principal
from tests.kit.fake_backends import (
    Connection,
    answers,
    ask,
    in_virtual_time,
    name_in,
    never_answers,
)

# A request that breaks sessions ---------------------------------------------------------------------------------------


def hangs_up_on_poison(connection: Connection, request: Request) -> None:
    """Hang up on the request "poison", as a key manager that crashes on an odd request."""
    if name_in(request) == "poison":
        connection.hang_up()
    else:
        answers(connection, request)


async def opens_sessions(it: Deployment, number: int) -> None:
    """Let a number of clients ask at once, so that each opens a session."""
    async with trio.open_nursery() as clients:
        for _ in range(number):
            clients.start_soon(it.ask, ask("key"))


def closed(it: Deployment) -> int:
    """The number of sessions that were closed."""
    return sum(observer.closed.total() for observer in it.observers)


@pytest.mark.parametrize("operation", [Operation.GET, Operation.CREATE])
@in_virtual_time
async def test_a_poisonous_request_costs_a_few_sessions_and_ejects_no_backend(operation: Operation) -> None:
    async with deployment("atlanta", "london", "paris", "tokyo", max_sessions=64) as it:
        for key_manager in it.key_managers:
            key_manager.behaviour = hangs_up_on_poison
            key_manager.operation_cost = 0.2
        await opens_sessions(it, 80)
        before = sum(backend.slots.used for backend in it.backends)
        assert before >= 40

        for _ in range(5):
            answer = await it.ask(ask("poison", operation), name="mallory")
            assert answer.refusal in {Refusal.BACKEND_FAILED, Refusal.OUTCOME_UNKNOWN}

        assert closed(it) <= 5 * 5
        assert [backend.state for backend in it.backends] == ["up"] * 4
        assert sum(len(observer.ejections) for observer in it.observers) == 0


@in_virtual_time
async def test_poison_once_a_second_leaves_other_clients_their_sessions() -> None:
    async with deployment("atlanta", "london", "paris", "tokyo", max_sessions=64, pool=WARM) as it:
        for key_manager in it.key_managers:
            key_manager.behaviour = hangs_up_on_poison
        maintain(it)
        tally, poison = Tally(), Tally()
        async with trio.open_nursery() as clients:
            for number in range(100):
                clients.start_soon(client, it, tally, number, 0.1)
            await trio.sleep(5)
            clients.start_soon(partial(client, it, poison, 100, 1.0, lambda _client, _round: ask("poison")))
            before = closed(it)
            await trio.sleep(30)
            clients.cancel_scope.cancel()

        assert tally.failures == 0
        assert poison.outcomes["ok"] == 0
        assert closed(it) - before <= 5 * (poison.outcomes.total() + 1)
        assert [backend.state for backend in it.backends] == ["up"] * 4


@in_virtual_time
async def test_poison_of_two_identities_ejects_no_backend_for_a_third() -> None:
    async with deployment("atlanta", "london", max_sessions=64, pool=WARM) as it:
        for key_manager in it.key_managers:
            key_manager.behaviour = hangs_up_on_poison
        maintain(it)
        tally, poison, states = Tally(), Tally(), Counter[str]()
        async with trio.open_nursery() as clients:
            for credential in ("red", "blue"):
                make = lambda _client, _round: ask("poison")  # noqa: E731
                clients.start_soon(client, it, poison, 0, 0.2, make, credential)
            clients.start_soon(client, it, tally, 1, 3.0)
            for _ in range(600):
                await trio.sleep(0.1)
                states.update(backend.state for backend in it.backends)
            clients.cancel_scope.cancel()
        assert tally.failures == 0
        assert states.keys() == {"up"}


# A key manager that crashes -------------------------------------------------------------------------------------------


def crash(it: Deployment, place: int) -> None:
    """Reset every connection to a key manager, and refuse new ones."""
    key_manager = it.key_managers[place]
    key_manager.refuse()
    for connection in key_manager.open_connections:
        connection._said.clear()
        connection.say(StreamClosedError("ECONNRESET"))


@pytest.mark.parametrize("clients", [20, 240])
@in_virtual_time
async def test_reads_survive_the_crash_of_one_of_two_key_managers(clients: int) -> None:
    async with deployment("atlanta", "london", max_sessions=256, pool=WARM) as it:
        for key_manager in it.key_managers:
            key_manager.operation_cost = 0.2
        maintain(it)
        tally = Tally()
        async with trio.open_nursery() as nursery:
            for number in range(clients):
                nursery.start_soon(client, it, tally, number, 0.01)
            await trio.sleep(10.05)
            tally.clear()
            crash(it, 0)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        assert tally.failures == 0
        assert tally.outcomes["ok"] >= clients


# A key manager that answers health checks only ------------------------------------------------------------------------


def answers_probes_only(connection: Connection, request: Request) -> None:
    """Answer health checks only, as a key manager whose database hangs."""
    if name_in(request):
        connection.execute(request)
    else:
        connection.answer(request)


@pytest.mark.parametrize("creates", [0, 10, 100], ids=lambda share: f"{share}% creates")
@in_virtual_time
async def test_a_half_dead_key_manager_is_hardly_noticed_after_a_minute(creates: int) -> None:
    def request(number: int, turn: int) -> Request:
        return ask("key", Operation.CREATE if (number * 7 + turn) % 100 < creates else Operation.GET)

    async with deployment("atlanta", "london", max_sessions=64, pool=WARM) as it:
        maintain(it)
        tally = Tally()
        async with trio.open_nursery() as clients:
            for number in range(20):
                clients.start_soon(client, it, tally, number, 0.4 + number * 0.001, request)
            await trio.sleep(60)
            healthy = tally.outcomes["ok"]
            it.key_managers[0].behaviour = answers_probes_only
            await trio.sleep(60)
            for _minute in range(3):
                tally.clear()
                await trio.sleep(60)
                assert tally.outcomes.keys() <= {"ok", "outcome_unknown"}
                assert tally.outcomes["outcome_unknown"] <= (2 if creates == 100 else 0)
                assert tally.outcomes["ok"] > 0.95 * healthy
                assert it.backends[0].state in {"ejected", "half_open"}

            it.key_managers[0].recover()
            await trio.sleep(70)
            assert it.backends[0].state == "up"
            before = [len(key_manager.executed) for key_manager in it.key_managers]
            await trio.sleep(60)
            clients.cancel_scope.cancel()
        atlanta, london = (len(one.executed) - number for one, number in zip(it.key_managers, before, strict=True))
        assert 0.9 < atlanta / london < 1.1


@in_virtual_time
async def test_a_read_that_hangs_once_does_not_keep_a_backend_from_its_share() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].behaviour = never_answers
        await it.ask(ask("key"))
        it.key_managers[0].recover()

        await trio.sleep(30)

        answers = Counter([(await it.ask(ask("key"))).backend for _ in range(20)])
        assert min(answers[backend] for backend in it.backends) >= 9
        assert it.backends[0].state == "up"


# Sessions that are dead -----------------------------------------------------------------------------------------------


async def opens_dead_sessions(it: Deployment, number: int) -> None:
    """Open idle sessions to each key manager, which a firewall then forgets: requests on them are lost."""
    for key_manager in it.key_managers:
        key_manager.operation_cost = 0.2
    await opens_sessions(it, number * len(it.key_managers))
    await trio.sleep(20)
    dead = [connection for key_manager in it.key_managers for connection in key_manager.connections]
    assert len(dead) == number * len(it.key_managers)

    def swallows(connection: Connection, request: Request) -> None:
        if connection not in dead:
            answers(connection, request)

    for key_manager in it.key_managers:
        key_manager.operation_cost = 0.005
        key_manager.behaviour = swallows


@pytest.mark.parametrize("names", [["atlanta"], ["atlanta", "london"]], ids=len)
@in_virtual_time
async def test_a_dead_session_costs_a_read_a_second_and_the_others_are_validated(names: list[str]) -> None:
    async with deployment(*names, max_sessions=8) as it:
        await opens_dead_sessions(it, 4)

        tally = Tally()
        await tally.ask(it, ask("key"))
        assert tally.outcomes == {"ok": 1}
        assert 1 < tally.slowest < 1.2

        await trio.sleep(4)  # longer than a validation may take
        pool = it.backends[0].pools["red"]
        assert (pool.statistics().idle, pool.statistics().busy) == (
            1,
            1,
        )  # a fresh session, and the first, which still waits for its answer
        await trio.sleep(30)
        assert it.has_only_idle_sessions()


@in_virtual_time
async def test_dead_sessions_do_not_eject_a_backend_that_answers_on_others() -> None:
    async with deployment("atlanta", max_sessions=8) as it:
        await opens_dead_sessions(it, 4)

        tally = Tally()
        async with trio.open_nursery() as clients:
            for number in range(4):
                clients.start_soon(tally.ask, it, ask("key"), "red", f"client-{number}")
        await trio.sleep(40)

        assert tally.outcomes == {"ok": 4}
        assert tally.slowest < 1.5
        assert not it.observers[0].ejections
        assert it.backends[0].state == "up"


@in_virtual_time
async def test_a_dead_session_costs_a_change_its_validation() -> None:
    async with deployment("atlanta", max_sessions=8) as it:
        await opens_dead_sessions(it, 4)
        tally = Tally()
        await tally.ask(it, ask("key", Operation.CREATE))
        assert tally.outcomes == {"ok": 1}
        assert tally.slowest < 6.5
        assert it.executed.count(("red", "key")) == 4 + 1


# A process that stood still -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [Operation.CREATE, Operation.GET])
@in_virtual_time
async def test_an_answer_that_arrived_while_the_process_stood_still_counts(operation: Operation) -> None:
    async with deployment("atlanta") as it:
        await it.ask(ask("key"))
        it.key_managers[0].operation_cost = 1.0
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        tally = Tally()
        for _ in range(20):
            async with trio.open_nursery() as clients:
                clients.start_soon(tally.ask, it, ask("key", operation))
                await trio.sleep(0.5)
                clock.jump(31)
        assert tally.outcomes == {"ok": 20}


# Clients that left ----------------------------------------------------------------------------------------------------


class Leaver:
    """A client that disconnects when the test says so, and its answer."""

    def __init__(self) -> None:
        self.has_left = False
        self.answer: Answer | None = None

    async def ask(self, it: Deployment, request: Request) -> None:
        self.answer = await it.dispatcher.dispatch(request, principal("red", "leaver"), lambda: self.has_left)


@pytest.mark.parametrize("leaves_first", [True, False])
@pytest.mark.parametrize("names", [["atlanta"], ["atlanta", "london"]], ids=len)
@in_virtual_time
async def test_a_read_whose_client_left_gives_its_session_to_a_request_that_waits(
    names: list[str], leaves_first: bool
) -> None:
    async with deployment(*names, max_sessions=1) as it:
        maintain(it)
        for key_manager in it.key_managers:
            key_manager.behaviour = never_answers_clients
        leavers = [Leaver() for _ in names]
        tally = Tally()
        async with trio.open_nursery() as clients:
            for leaver in leavers:
                clients.start_soon(leaver.ask, it, ask("key-1"))
            await trio.sleep(0.5)
            for key_manager in it.key_managers:
                key_manager.recover()
            if not leaves_first:
                clients.start_soon(tally.ask, it, ask("key-2"), "blue")
                await trio.sleep(0.5)
                assert not tally.outcomes
            for leaver in leavers:
                leaver.has_left = True
            if leaves_first:
                clients.start_soon(tally.ask, it, ask("key-2"), "blue")
            await trio.sleep(1)
            assert tally.outcomes == {"ok": 1}
            left = [leaver.answer.refusal for leaver in leavers if leaver.answer is not None]
            assert set(left) == {Refusal.CLIENT_DISCONNECTED}
            clients.cancel_scope.cancel()
        assert it.executed.count(("red", "key-1")) == len(names)


def never_answers_clients(connection: Connection, request: Request) -> None:
    """Never answer, except health checks."""
    if name_in(request):
        never_answers(connection, request)
    else:
        answers(connection, request)


@in_virtual_time
async def test_a_change_whose_client_left_keeps_its_session() -> None:
    async with deployment("atlanta", max_sessions=1) as it:
        maintain(it)
        it.key_managers[0].operation_cost = 3.0
        leaver, tally = Leaver(), Tally()
        async with trio.open_nursery() as clients:
            clients.start_soon(leaver.ask, it, ask("key-1", Operation.CREATE))
            await trio.sleep(0.5)
            leaver.has_left = True
            await tally.ask(it, ask("key-2"), "blue")
        assert leaver.answer is not None
        assert leaver.answer.backend is it.backends[0]
        assert tally.outcomes == {"ok": 1}
