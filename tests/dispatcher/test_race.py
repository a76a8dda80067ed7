"""Races: a read that is overdue is also sent to another backend, and the first good answer wins."""

import pytest
import trio

from gateway.config import FailoverConfig
from gateway.dispatcher import DispatcherSettings
from gateway.dispatcher.race import Race
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation
from gateway.policy import Refusal
from gateway.upstream.backend import Backend
from gateway.upstream.health import Verdict
from tests.kit.clients import WARM, Tally, client, failures_of, maintain
from tests.kit.deployment import deployment, name_of
from tests.kit.fake_backends import (
    Behaviour,
    Connection,
    answers,
    ask,
    hangs_up_after,
    in_virtual_time,
    lease,
    name_in,
    never_answers,
)


def hangs_up_in(seconds: float) -> Behaviour:
    """Return the behaviour of a key manager that works for some time, and then hangs up."""

    def behaviour(connection: Connection, request: Request) -> None:
        connection.execute(request)
        connection.say(b"", at=trio.current_time() + seconds)

    return behaviour


# The winner -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_overdue_read_is_hedged_and_the_first_good_answer_wins() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].operation_cost = 12.0

        answer = await it.ask(ask("key"))

        assert (name_of(answer), answer.backend) == ("key", it.backends[1])
        assert 5 <= trio.current_time() < 6
        assert len(it.executed) == 2
        assert it.metrics.retries.labels("overdue", "answered").value == 1


@in_virtual_time
async def test_an_overdue_read_is_hedged_as_soon_as_another_backend_is_up() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].behaviour = never_answers
        turn_down(it.backends[1])

        async def london_comes_back() -> None:
            await trio.sleep(8)
            turn_up(it.backends[1])

        it.nursery.start_soon(london_comes_back)
        answer = await it.ask(ask("key"))

        assert answer.backend is it.backends[1]
        assert 8 <= trio.current_time() < 10


@in_virtual_time
async def test_the_first_try_wins_if_it_is_answered_before_the_hedge() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].operation_cost = 6.0
        it.key_managers[1].operation_cost = 10.0

        answer = await it.ask(ask("key"))

        assert answer.backend is it.backends[0]
        assert 6 <= trio.current_time() < 7


@pytest.mark.parametrize(("first", "second"), [(12.0, 0.005), (6.0, 10.0)], ids=["the first try", "the hedge"])
@in_virtual_time
async def test_the_loser_ends_in_the_background_and_keeps_its_session(first: float, second: float) -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].operation_cost = first
        it.key_managers[1].operation_cost = second
        await it.ask(ask("key"))
        assert not it.has_only_idle_sessions()

        await trio.sleep(10)

        assert it.has_only_idle_sessions()
        assert [len(key_manager.open_connections) for key_manager in it.key_managers] == [1, 1]
        assert [observer.results["answered"] for observer in it.observers[::2]] == [1, 1]
        assert [failures_of(backend) for backend in it.backends] == [0, 0]


@in_virtual_time
async def test_the_loser_goes_on_though_its_backend_answers_nothing() -> None:
    """The timer of the loser ends its exchange: if it came early, slowness would eject the backend."""
    async with deployment("atlanta", "london", max_sessions=16) as it:
        it.key_managers[0].operation_cost = 12.0
        async with trio.open_nursery() as clients:
            for name in ("key-1", "key-2", "key-3", "key-4", "key-5", "key-6"):
                clients.start_soon(it.ask, ask(name))
        assert it.backends[0].pools["red"].statistics().busy == 3

        it.backends[0].pools["red"].hedge_repeatable()
        await trio.sleep(10)

        assert it.has_only_idle_sessions()
        assert it.observers[0].results["answered"] == 3
        assert failures_of(it.backends[0]) == 0


@in_virtual_time
async def test_a_hedges_wait_is_not_taken_off_the_requests_queue_time() -> None:
    """The read is sent again after its first try broke, though the hedge has waited for all of ``queue_timeout``."""
    async with deployment("atlanta", "london", max_sessions=1) as it:
        atlanta, london = it.key_managers
        atlanta.behaviour = hangs_up_in(12)
        london.operation_cost = 28.0
        found = []

        async def read() -> None:
            found.append(name_of(await it.ask(ask("key"))))

        async with trio.open_nursery() as clients:
            clients.start_soon(read)
            await trio.sleep(0.1)
            clients.start_soon(it.ask, ask("slow"), "red", "bob")  # takes London's only slot
            await trio.sleep(11)
            atlanta.behaviour = answers

        assert found == ["key"]


@in_virtual_time
async def test_the_loser_is_closed_as_soon_as_a_request_waits_for_its_slot() -> None:
    async with deployment("atlanta", "london", max_sessions=1) as it:
        atlanta = it.key_managers[0]
        atlanta.behaviour = never_answers
        await it.ask(ask("key"))
        atlanta.recover()
        assert it.backends[0].pools["red"].statistics().busy == 1

        turn_down(it.backends[1])
        began = trio.current_time()
        answer = await it.ask(ask("key"), "blue")

        assert answer.backend is it.backends[0]
        assert trio.current_time() - began < 0.5
        assert it.observers[0].results == {"wait_interrupted": 1}
        assert failures_of(it.backends[0]) == 0


def turn_down(backend: Backend) -> None:
    """Let the health checks of a backend fail."""
    for _ in range(3):
        backend.health.checked(Verdict.FAILS)


def turn_up(backend: Backend) -> None:
    """Let the health checks of a backend succeed."""
    for _ in range(2):
        backend.health.checked(Verdict.SERVES)


# The budget -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_read_is_not_hedged_without_a_token_and_waits_on() -> None:
    async with deployment(
        "atlanta", "london", times=DispatcherSettings(failover=FailoverConfig(retry_ratio=0.0, min_retries=0))
    ) as it:
        it.key_managers[0].operation_cost = 12.0

        answer = await it.ask(ask("key"))

        assert answer.backend is it.backends[0]
        assert 12 <= trio.current_time() < 13
        assert len(it.executed) == 1


@in_virtual_time
async def test_a_hedge_waits_for_the_token_that_another_one_holds() -> None:
    async with deployment(
        "atlanta", "london", times=DispatcherSettings(failover=FailoverConfig(retry_ratio=0.0, min_retries=1))
    ) as it:
        it.key_managers[0].behaviour = never_answers
        it.key_managers[1].operation_cost = 3.0
        ended = []

        async def read(number: int) -> None:
            answer = await it.ask(ask(f"key-{number}"))
            ended.append((answer.backend, round(trio.current_time())))

        turn_down(it.backends[1])  # so that both ask atlanta first
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, 1)
            nursery.start_soon(read, 2)
            await trio.sleep(1)
            turn_up(it.backends[1])

        assert ended == [(it.backends[1], 8), (it.backends[1], 11)]
        assert it.dispatcher._budgets.retries["red"].held == 0


@in_virtual_time
async def test_a_change_is_never_hedged() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].operation_cost = 12.0
        answer = await it.ask(ask("key", Operation.CREATE))
        assert answer.backend is it.backends[0]
        assert len(it.executed) == 1


# Tries that break -----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_hedge_is_used_if_the_first_try_breaks_meanwhile() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].behaviour = hangs_up_in(6.0)
        it.key_managers[1].operation_cost = 3.0

        answer = await it.ask(ask("key"))

        assert answer.backend is it.backends[1]
        assert 8 <= trio.current_time() < 9
        assert len(it.executed) == 2


@in_virtual_time
async def test_the_first_try_is_used_if_the_hedge_breaks() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].operation_cost = 12.0
        it.key_managers[1].behaviour = hangs_up_after

        answer = await it.ask(ask("key"))

        assert answer.backend is it.backends[0]
        assert 12 <= trio.current_time() < 13
        assert len(it.executed) == 2
        assert [failures_of(backend) for backend in it.backends] == [0, 1]


@in_virtual_time
async def test_a_read_whose_tries_both_break_counts_against_no_backend() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].behaviour = hangs_up_in(6.0)
        it.key_managers[1].behaviour = hangs_up_in(3.0)

        answer = await it.ask(ask("key"))

        assert answer.refusal is Refusal.BACKEND_FAILED
        assert 8 <= trio.current_time() < 9
        assert len(it.executed) == 2
        assert [failures_of(backend) for backend in it.backends] == [0, 0]
        assert it.dispatcher._budgets.retries["red"].held == 0


# Slow everywhere ------------------------------------------------------------------------------------------------------


def takes_six_seconds(connection: Connection, request: Request) -> None:
    """Take six seconds for each request, as a busy HSM; answer health checks at once."""
    connection.key_manager.operation_cost = 6.0 if name_in(request) else 0.005
    answers(connection, request)


@pytest.mark.parametrize("key_managers", [1, 2, 4])
@in_virtual_time
async def test_slow_reads_do_not_fail_and_eject_no_backend(key_managers: int) -> None:
    names = ["atlanta", "london", "paris", "tokyo"][:key_managers]
    async with deployment(*names, max_sessions=64, pool=WARM) as it:
        for key_manager in it.key_managers:
            key_manager.behaviour = takes_six_seconds
        maintain(it)
        await trio.sleep(3)
        tally = Tally()
        async with trio.open_nursery() as clients:
            for number in range(50):
                clients.start_soon(client, it, tally, number, 0.0)
                await trio.sleep(0.1)
            await trio.sleep(120)
            clients.cancel_scope.cancel()

        assert tally.failures == 0
        assert tally.outcomes["ok"] > 900
        assert tally.slowest < 8
        assert sum(len(observer.ejections) for observer in it.observers) == 0
        asked = tally.outcomes["ok"] + 50  # these are under way
        assert len(it.executed) <= 1.3 * asked  # a hedge that is overdue itself gives its token back


# Answered, or only over -----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_race_is_answered_unless_the_first_try_and_all_hedges_fail() -> None:
    async with deployment("atlanta") as it:
        session = await lease(it.backends[0].pools["red"])
        answered, failed = Race(session), Race(session)
        answered.over()
        await failed.outcome(trio.current_time())
        failed.over()
        for race, is_answered in ((answered, True), (failed, False)):
            race.over()  # once more, as after each later try of the request
            assert (race.is_over, race.is_answered) == (True, is_answered)


@in_virtual_time
async def test_a_hedge_that_began_late_has_the_whole_time_for_its_answer() -> None:
    """London's answer would take 20 s as well: with 15 s left of the request's 30, it was taken for a failure."""
    async with deployment("atlanta", "london") as it:
        turn_down(it.backends[1])
        for key_manager in it.key_managers:
            key_manager.operation_cost = 20.0
        async with trio.open_nursery() as clients:
            clients.start_soon(it.ask, ask("key"))
            await trio.sleep(15)
            for _ in range(2):
                it.backends[1].health.checked(Verdict.SERVES)
        await trio.sleep(30)
        assert it.observers[2].results == {"answered": 1}
        assert failures_of(it.backends[1]) == 0
