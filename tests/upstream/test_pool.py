"""Tests of a pool: lending, waiting, opening, validation and closing of sessions."""

import socket
from functools import partial
from itertools import pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.config import FailoverConfig
from gateway.errors import BackendError, StreamClosedError, TlsError
from gateway.kmip.messages import Request
from gateway.upstream.backend import Backend
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import (
    DEADLINES,
    FAILOVER,
    SETTINGS,
    Behaviour,
    Connection,
    FakeKeyManager,
    WaitingClient,
    answer_to,
    answers,
    ask,
    breaks_while_it_is_asked,
    in_virtual_time,
    kept_warm,
    lease,
    make_pool,
    never_answers,
    use,
    waiting,
)

PAUSE = 0.1  # s, the longest first pause of the gate
LONGEST_PAUSE = 2.0  # s


@pytest.fixture
def atlanta() -> FakeKeyManager:
    return FakeKeyManager()


# Lending -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_first_request_opens_a_session_and_the_next_one_finds_it(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon)
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=0 opening=0 waiting=0>"

    session = await lease(pool)
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=1 opening=0 waiting=0>"

    pool.give_back(session)
    assert repr(pool) == "<Pool atlanta as red: idle=1 busy=0 opening=0 waiting=0>"

    assert await lease(pool) is session
    assert observer.opened == len(atlanta.attempts) == 1


@in_virtual_time
async def test_the_session_used_last_is_lent_first(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    first, second = await lease(pool), await lease(pool)

    pool.give_back(first)
    pool.give_back(second)

    assert pool.take() is second
    assert pool.take() is first
    assert pool.take() is None


@in_virtual_time
async def test_waiting_requests_are_served_in_turn(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    session = await lease(pool)
    waiters = await waiting(pool, nursery, 3)
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=1 opening=0 waiting=3>"

    for waiter in waiters:
        pool.give_back(session)
        await wait_all_tasks_blocked()
        assert [other.session for other in waiters if other.session is not None] == [session]
        waiter.session = None

    assert pool.take() is None
    assert len(atlanta.attempts) == 1


@in_virtual_time
async def test_waits_are_timed_and_the_longest_is_known(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    session = await lease(pool)
    observer.waits.clear()
    assert pool.waiters.longest_wait(trio.current_time()) == 0
    await waiting(pool, nursery, 1)
    await trio.sleep(1.5)
    assert pool.waiters.longest_wait(trio.current_time()) == pytest.approx(1.5)

    pool.give_back(session)
    await wait_all_tasks_blocked()

    assert observer.waits == [pytest.approx(1.5)]
    assert pool.waiters.longest_wait(trio.current_time()) == 0


@in_virtual_time
async def test_a_waiting_request_gets_a_session_that_is_given_back_first(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    session = await lease(pool)
    atlanta.handshake_cost = 1.0
    (waiter,) = await waiting(pool, nursery, 1)
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=1 opening=1 waiting=1>"

    await trio.sleep(0.5)
    pool.give_back(session)
    await wait_all_tasks_blocked()
    assert waiter.session is session

    await trio.sleep(1)
    assert repr(pool) == "<Pool atlanta as red: idle=1 busy=1 opening=0 waiting=0>"


@in_virtual_time
async def test_a_waiting_request_gets_a_session_that_is_opened_first(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    session = await lease(pool)
    (waiter,) = await waiting(pool, nursery, 1)

    await trio.sleep(1)

    assert waiter.session not in {session, None}
    assert waiter.ended_at == pytest.approx(2 * atlanta.handshake_cost)


@in_virtual_time
async def test_the_gate_bounds_handshakes_at_once(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(100))

    waiters = await waiting(pool, nursery, 20)
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=0 opening=4 waiting=20>"

    await trio.sleep(1)
    assert {waiter.session is None for waiter in waiters} == {False}
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=20 opening=0 waiting=0>"


@in_virtual_time
async def test_sessions_stay_within_the_slots_under_load(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    slots = Slots(3)
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=slots)
    most = 0

    async def client(name: str) -> None:
        nonlocal most
        for _ in range(20):
            assert await use(pool, name) == name
            most = max(most, len(atlanta.open_connections), slots.used)

    async with trio.open_nursery() as clients:
        for number in range(30):
            clients.start_soon(client, f"key-{number}")

    assert most == 3
    assert repr(slots) == "<Slots 3 of 3>"
    assert len(atlanta.executed) == 600
    assert len(atlanta.attempts) == 3


@in_virtual_time
async def test_a_session_given_back_twice_is_an_error_and_not_lent_twice(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    session = await lease(pool)
    pool.give_back(session)

    with pytest.raises(KeyError):
        pool.give_back(session)

    assert repr(pool) == "<Pool atlanta as red: idle=1 busy=0 opening=0 waiting=0>"


@in_virtual_time
async def test_one_busy_client_does_not_keep_another_waiting(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    session = await lease(pool)
    busy = await waiting(pool, nursery, 5, "alice")
    (modest,) = await waiting(pool, nursery, 1, "bob")

    for _ in range(2):
        pool.give_back(session)
        await wait_all_tasks_blocked()

    assert busy[0].session is session
    assert modest.session is session
    assert pool.statistics().waiting == 4


# Clients that disconnect ---------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_session_opened_for_a_client_that_left_is_kept(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    (waiter,) = await waiting(pool, nursery, 1)

    waiter.scope.cancel()
    await trio.sleep(1)

    assert waiter.session is None
    assert repr(pool) == "<Pool atlanta as red: idle=1 busy=0 opening=0 waiting=0>"


@in_virtual_time
async def test_a_client_that_left_the_queue_is_passed_over(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    session = await lease(pool)
    leaver, stayer = await waiting(pool, nursery, 2)

    leaver.scope.cancel()
    await wait_all_tasks_blocked()
    pool.give_back(session)
    await wait_all_tasks_blocked()

    assert (leaver.session, stayer.session) == (None, session)


@in_virtual_time
async def test_a_client_that_leaves_just_before_its_turn_keeps_no_session(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    """The client is cancelled, then gets a session before it runs: the session must go to the next client."""
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    session = await lease(pool)
    leaver, stayer = await waiting(pool, nursery, 2)

    leaver.scope.cancel()
    pool.give_back(session)
    await wait_all_tasks_blocked()

    assert (leaver.session, stayer.session) == (None, session)
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=1 opening=0 waiting=0>"


@in_virtual_time
async def test_a_client_that_leaves_just_after_its_turn_has_the_session(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    """The client gets a session, then is cancelled before it runs: it has the session, and must give it back."""
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    session = await lease(pool)
    leaver, stayer = await waiting(pool, nursery, 2)

    pool.give_back(session)
    leaver.scope.cancel()
    await wait_all_tasks_blocked()

    assert (leaver.session, stayer.session) == (session, None)
    pool.give_back(session)
    await wait_all_tasks_blocked()
    assert stayer.session is session


@in_virtual_time
async def test_a_session_is_idle_after_all_clients_left_in_their_turn(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    session = await lease(pool)
    waiters = await waiting(pool, nursery, 3)

    for waiter in waiters:
        waiter.scope.cancel()
    pool.give_back(session)
    await wait_all_tasks_blocked()

    assert [waiter.session for waiter in waiters] == [None, None, None]
    assert repr(pool) == "<Pool atlanta as red: idle=1 busy=0 opening=0 waiting=0>"


@in_virtual_time
async def test_a_client_that_leaves_during_a_refusal_is_not_served_later(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    atlanta.refuse()
    (waiter,) = await waiting(pool, nursery, 1)

    waiter.scope.cancel()
    await trio.sleep(1)

    assert (waiter.session, waiter.error) == (None, None)
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=0 opening=0 waiting=0 failing>"


# Sessions that must not be lent again --------------------------------------------------------------------------------


@in_virtual_time
async def test_a_session_whose_exchange_failed_is_closed_and_frees_its_slot(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    slots = Slots(1)
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=slots)
    atlanta.behaviour = lambda connection, _request: connection.hang_up()

    with pytest.raises(BackendError):
        await use(pool, "key-1")

    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=0 opening=0 waiting=0>"
    assert repr(slots) == "<Slots 0 of 1>"
    assert observer.closed == {"error": 1}
    assert atlanta.connections[0].closed == ["at once"]


@in_virtual_time
async def test_a_session_whose_exchange_was_cancelled_is_never_lent_again(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    """The answer may still come, and would be taken for the answer to the next request."""
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    atlanta.operation_cost = 2.0

    with trio.move_on_after(1):
        await use(pool, "slow")
    atlanta.operation_cost = 0.0

    assert await use(pool, "fast") == "fast"
    assert [len(connection.sent) for connection in atlanta.connections] == [1, 1]
    assert atlanta.connections[0].closed == ["at once"]


def speaks_unasked(connection: Connection, request: Request) -> None:
    """Answer rightly, and then send an answer about a different object, in a record of its own."""
    connection.execute(request)
    connection.answer(request, answer_to(ask("of-another")))


@in_virtual_time
async def test_an_unasked_answer_reaches_no_client(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    """Neither the next borrower gets it, nor a request that waits for the session."""
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    atlanta.behaviour = speaks_unasked
    got = {}

    async def client(name: str) -> None:
        got[name] = await use(pool, name)

    async with trio.open_nursery() as clients:
        for number in range(5):
            clients.start_soon(client, f"key-{number}")
    assert await use(pool, "key-5") == "key-5"

    assert got == {f"key-{number}": f"key-{number}" for number in range(5)}
    assert observer.closed == {"unasked": 5}
    assert observer.learned == []  # the idle limit learns nothing from these sessions


@in_virtual_time
async def test_a_new_session_with_unasked_bytes_is_not_lent(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=Slots(1))

    def talkative(connection: Connection) -> None:
        if len(atlanta.connections) == 1:
            connection.say(answer_to(ask("of-another")))

    atlanta.greeting = talkative

    assert await use(pool, "key-1") == "key-1"
    assert observer.closed == {"unasked": 1}


@in_virtual_time
async def test_an_idle_session_flooded_with_records_is_closed(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon)
    sessions = [await lease(pool) for _ in range(4)]
    for session in sessions:
        pool.give_back(session)
    for connection in atlanta.connections:
        connection.is_flooded = True
        connection.hang_up()

    pool.take()
    assert observer.closed["records"] == 4

    session = await lease(pool)
    pool.give_back(session)
    atlanta.connections[-1].is_flooded = True
    atlanta.connections[-1].hang_up()
    pool.maintain()
    assert observer.closed == {"records": 5}


@in_virtual_time
async def test_unasked_bytes_make_the_key_manager_distrusted(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    endpoint = Endpoint()
    pool, observer = make_pool(atlanta, nursery.start_soon, endpoint=endpoint)
    assert not endpoint.is_distrusted
    atlanta.behaviour = speaks_unasked
    await use(pool, "key-1")
    pool.maintain()

    assert observer.closed == {"unasked": 1}
    assert endpoint.is_distrusted
    await trio.sleep(599)
    pool.maintain()
    assert endpoint.is_distrusted
    await trio.sleep(2)
    pool.maintain()
    assert not endpoint.is_distrusted


@in_virtual_time
@pytest.mark.parametrize("answer", ["key-2", "key-1 twice"])
async def test_a_wrong_answer_closes_the_session_and_makes_distrusted(
    nursery: trio.Nursery, atlanta: FakeKeyManager, answer: str
) -> None:
    endpoint = Endpoint()
    pool, observer = make_pool(atlanta, nursery.start_soon, endpoint=endpoint)

    def is_wrong(connection: Connection, request: Request) -> None:
        if answer == "key-2":
            connection.say(answer_to(ask(answer)))
        else:
            connection.answer(request, answer_to(request))

    atlanta.behaviour = is_wrong
    if answer == "key-2":
        with pytest.raises(BackendError):
            await use(pool, "key-1")
    else:
        assert await use(pool, "key-1") == "key-1"
        assert pool.take() is None

    assert observer.closed == {"mismatch" if answer == "key-2" else "unasked": 1}
    assert endpoint.is_distrusted


@in_virtual_time
async def test_a_session_that_the_peer_closed_is_not_lent(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    slots = Slots(4)
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=slots)
    sessions = [await lease(pool) for _ in range(3)]
    for session in sessions:
        pool.give_back(session)

    atlanta.connections[1].hang_up()
    atlanta.connections[2].hang_up()

    assert pool.take() is sessions[0]
    assert observer.closed == {"remote_idle": 2}
    assert observer.stale == {"checkout": 2}
    assert slots.used == 1


# A key manager that can't be reached ---------------------------------------------------------------------------------


@in_virtual_time
async def test_waiting_requests_fail_at_once_if_no_session_opens(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    slots = Slots(4)
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=slots)
    atlanta.refuse()

    with pytest.raises(BackendError, match="refused") as caught:
        await pool.wait()

    assert caught.value.reason == "connect"
    assert trio.current_time() == pytest.approx(atlanta.handshake_cost)
    assert len(atlanta.attempts) == 1
    assert observer.failed == ["connect"]
    assert pool.is_failing
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=0 opening=0 waiting=0 failing>"
    assert repr(slots) == "<Slots 0 of 4>"


@in_virtual_time
async def test_after_a_failure_one_attempt_decides_for_all_requests(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(100))
    atlanta.refuse()
    with pytest.raises(BackendError):
        await pool.wait()

    with pytest.raises(BackendError):
        await pool.wait()  # fails at once, during the pause
    await trio.sleep(PAUSE)
    waiters = await waiting(pool, nursery, 50)
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=0 opening=1 waiting=50 failing>"
    await trio.sleep(1)

    assert len(atlanta.attempts) == 2
    assert {type(waiter.error) for waiter in waiters} == {BackendError}
    assert len({id(waiter.error) for waiter in waiters}) == 50  # an error for each: a raised error keeps its traceback


@in_virtual_time
async def test_a_successful_attempt_opens_sessions_for_all_requests(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    atlanta.refuse()
    with pytest.raises(BackendError):
        await pool.wait()
    atlanta.recover()
    await trio.sleep(PAUSE)

    waiters = await waiting(pool, nursery, 3)
    await trio.sleep(1)

    assert {waiter.session is None for waiter in waiters} == {False}
    assert not pool.is_failing


@in_virtual_time
async def test_a_silent_key_manager_costs_the_connect_deadline_at_most(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon)
    atlanta.is_reachable = False

    with pytest.raises(BackendError, match="no session within 3 s"):
        await pool.wait()

    assert trio.current_time() == DEADLINES.connect
    assert observer.failed == ["timeout"]


@in_virtual_time
async def test_each_wait_ends_with_the_attempt_that_it_began(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    atlanta.is_reachable = False

    waiters = []
    for principal in ("alice", "alice", "bob"):
        waiters.append(WaitingClient(pool, nursery, principal))
        await trio.sleep(1)
    await trio.sleep(10)

    assert [waiter.ended_at for waiter in waiters] == [3, 4, 5]


@in_virtual_time
async def test_attempts_that_fail_together_are_one_failure(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    slots = Slots(8)
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=slots)
    atlanta.refuse()

    waiters = await waiting(pool, nursery, 8)
    await trio.sleep(atlanta.handshake_cost + PAUSE)

    assert observer.failed == ["connect"] * 4
    assert {type(waiter.error) for waiter in waiters} == {BackendError}  # also of pools without an attempt
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=0 opening=0 waiting=0 failing>"
    assert slots.gate.pause.is_over(trio.current_time())
    assert slots.gate.limit == 2


@in_virtual_time
async def test_an_unreachable_key_manager_is_tried_again_after_growing_pauses(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    atlanta.refuse()

    async with kept_warm(pool):
        with pytest.raises(BackendError):
            await pool.wait()
        await trio.sleep(600)

    times = atlanta.attempts
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(PAUSE * 0.75 <= gap <= LONGEST_PAUSE + 0.25 + atlanta.handshake_cost for gap in gaps)
    assert max(gaps[:3]) < 1
    assert min(gaps[-10:]) >= LONGEST_PAUSE * 0.75
    assert 600 / (LONGEST_PAUSE + 0.5) <= len(times) <= 600 / (LONGEST_PAUSE * 0.75) + 5


@in_virtual_time
async def test_a_refused_credential_is_tried_once_a_pause(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon)
    atlanta.refused.add("red")
    waits = []

    async def client() -> None:
        while True:
            began = trio.current_time()
            with pytest.raises(BackendError, match="refused"):
                await pool.wait()
            waits.append(trio.current_time() - began)
            await trio.sleep(0.25)

    async with kept_warm(pool):
        for _ in range(5):
            nursery.start_soon(client)
        await trio.sleep(600)

    gaps = [later - earlier for earlier, later in pairwise(atlanta.attempts)]
    assert max(waits) <= atlanta.handshake_cost + 0.001
    assert 0.75 * FAILOVER.max_ejection_time <= min(gaps[-10:])
    assert max(gaps) <= FAILOVER.max_ejection_time + 0.25 + atlanta.handshake_cost
    assert len(atlanta.attempts) == len(observer.failed) <= 40


@in_virtual_time
async def test_a_recovery_is_noticed_without_a_request(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"min_idle": 3}))
    atlanta.refuse()

    async with kept_warm(pool):
        await trio.sleep(300)
        assert pool.is_failing

        atlanta.recover()
        await trio.sleep(LONGEST_PAUSE + 0.25 + atlanta.handshake_cost)
        assert not pool.is_failing

        await trio.sleep(0.25 + atlanta.handshake_cost)  # the other sessions do not wait for a pause
        assert repr(pool) == "<Pool atlanta as red: idle=3 busy=0 opening=0 waiting=0>"


@in_virtual_time
async def test_requests_wait_as_long_as_a_lent_session_may_come_back(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    session = await lease(pool)
    atlanta.refuse()

    async with kept_warm(pool):
        (waiter,) = await waiting(pool, nursery, 1)
        await trio.sleep(4)
        assert waiter.ended_at is None
        assert len(atlanta.attempts) < 10  # pauses hold: a waiting request causes no further attempts

        pool.give_back(session)
        await wait_all_tasks_blocked()
        assert waiter.session is session


@in_virtual_time
async def test_when_the_last_lent_session_breaks_waits_fail(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    session = await lease(pool)
    atlanta.refuse()
    waiters = await waiting(pool, nursery, 2)
    await trio.sleep(0.1)

    atlanta.behaviour = lambda connection, _request: connection.hang_up()
    with pytest.raises(BackendError):
        await session.exchange(ask("key-1"))
    pool.give_back(session)
    await trio.sleep(1)

    assert [type(waiter.error) for waiter in waiters] == [BackendError, BackendError]
    assert repr(pool).startswith("<Pool atlanta as red: idle=0 busy=0 opening=0 waiting=0 failing")


@pytest.mark.parametrize("reason", ["connect", "credential"])
@in_virtual_time
async def test_when_the_last_lent_session_ends_in_a_pause_waits_fail(
    nursery: trio.Nursery, atlanta: FakeKeyManager, reason: str
) -> None:
    """The pause may last 30 s, in which requests can try a different key manager."""
    pool, _ = make_pool(atlanta, nursery.start_soon)
    first, last = await lease(pool), await lease(pool)
    atlanta.refuse(reason)
    async with kept_warm(pool):
        waiters = await waiting(pool, nursery, 3)
        await trio.sleep(10)
        for _ in range(400):
            if pool.opening.known_failure(trio.current_time()) is not None:
                break
            await trio.sleep(0.01)

        for session in (first, last):
            assert [waiter.ended_at for waiter in waiters] == [None] * 3
            session.close()
            pool.give_back(session)
        await wait_all_tasks_blocked()

    assert [waiter.error.reason for waiter in waiters if waiter.error is not None] == [reason] * 3


@in_virtual_time
async def test_an_unreachable_backend_fails_the_waits_of_every_pool(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    slots = Slots(20)
    pools = [make_pool(atlanta, nursery.start_soon, credential=f"id{n}", slots=slots)[0] for n in range(10)]
    atlanta.refuse()

    waiters = [waiter for pool in pools for waiter in await waiting(pool, nursery, 2)]
    await trio.sleep(atlanta.handshake_cost)
    await wait_all_tasks_blocked()

    assert len(atlanta.attempts) == 4
    assert {type(waiter.error) for waiter in waiters} == {BackendError}
    for pool in pools:
        with pytest.raises(BackendError, match="refused"):
            await pool.wait()
    assert len(atlanta.attempts) == 4


@in_virtual_time
async def test_a_refused_credential_fails_the_waits_of_its_own_pool_only(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    slots = Slots(4)
    red, blue = (make_pool(atlanta, nursery.start_soon, credential=name, slots=slots)[0] for name in ("red", "blue"))
    atlanta.refused.add("red")

    for _ in range(3):
        with pytest.raises(BackendError, match="refused"):
            await use(red, "key-1")
    assert await use(blue, "key-2") == "key-2"
    assert len(atlanta.attempts) == 2


ODDITIES = [
    OSError("too many open files"),
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    TlsError("handshake failed"),
    StreamClosedError("gone"),
    UnicodeError("label too long"),
    ValueError("error parsing asn1 value"),
    ExceptionGroup("several", [OSError("one"), OSError("other")]),
]


@pytest.mark.parametrize("oddity", ODDITIES, ids=lambda oddity: type(oddity).__name__)
@in_virtual_time
async def test_an_odd_error_of_one_key_manager_does_not_end_the_gateway(
    nursery: trio.Nursery, atlanta: FakeKeyManager, oddity: Exception
) -> None:
    slots = Slots(1)
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=slots)
    atlanta.refusal = oddity

    with pytest.raises(BackendError) as caught:
        await pool.wait()

    assert caught.value.reason == "unexpected"
    assert observer.failed == ["unexpected"]
    assert slots.used == 0

    atlanta.recover()
    await trio.sleep(PAUSE)
    assert await use(pool, "key-1") == "key-1"


@in_virtual_time
async def test_a_recovered_key_manager_gets_few_handshakes_at_once(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    """The bound on handshakes grows by one with each that succeeds."""
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(100))
    atlanta.refuse()
    with pytest.raises(BackendError):
        await pool.wait()
    atlanta.recover()
    await trio.sleep(PAUSE)

    await waiting(pool, nursery, 80)
    opening = []
    while pool.statistics().waiting:
        opening.append(pool.statistics().opening)
        await trio.sleep(atlanta.handshake_cost + 0.001)

    assert opening[:4] == [1, 3, 6, 12]
    assert set(opening[4:-1]) == {16}


# Exchanges that fail -------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_only_requests_that_may_be_repeated_are_interrupted(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    atlanta.behaviour = never_answers
    ended = []

    async def client(name: str, *, is_repeatable: bool) -> None:
        session = await lease(pool)
        session.is_repeatable = is_repeatable
        try:
            await session.exchange(ask(name))
        except BackendError as error:
            ended.append((name, error.reason))
        finally:
            pool.give_back(session)

    nursery.start_soon(partial(client, "read", is_repeatable=True))
    nursery.start_soon(partial(client, "mutation", is_repeatable=False))
    await trio.sleep(1)
    pool.interrupt_repeatable()
    await trio.sleep(1)

    assert ended == [("read", "interrupted")]
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=1 opening=0 waiting=0>"
    assert len(atlanta.open_connections) == 1


@in_virtual_time
async def test_a_read_whose_client_has_disconnected_is_closed_and_no_other(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    here, left, change = [await lease(pool) for _ in range(3)]
    for session in (here, left):
        session.is_repeatable = True
        session.exchanging_since = trio.current_time() - 1
    for session in (left, change):
        session.client_disconnected = lambda: True

    pool.close_disconnected()

    assert [bool(connection.closed) for connection in atlanta.connections] == [False, True, False]
    for session in (here, left, change):
        pool.give_back(session)
    assert repr(pool) == "<Pool atlanta as red: idle=2 busy=0 opening=0 waiting=0>"


# Abandoned sessions ---------------------------------------------------------------------------------------------------


class Exchange:
    """An exchange that continues although no client awaits the answer."""

    def __init__(self, pool: Pool, session: Session, nursery: trio.Nursery) -> None:
        self.error: str | None = None
        self._pool, self._session = pool, session
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        try:
            await self._session.exchange(ask("slow"))
        except BackendError as error:
            self.error = error.reason
        finally:
            self._pool.give_back(self._session)


@in_virtual_time
async def test_an_abandoned_session_is_kept_if_nobody_needs_its_slot(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=Slots(1))
    atlanta.operation_cost = 10.0
    session = await lease(pool)
    exchange = Exchange(pool, session, nursery)
    await wait_all_tasks_blocked()

    pool.abandon(session)
    await trio.sleep(11)

    assert exchange.error is None
    assert pool.take() is session


@pytest.mark.parametrize("whose", ["red", "blue"])
@pytest.mark.parametrize("waits_first", [True, False])
@in_virtual_time
async def test_an_abandoned_session_is_closed_at_once_for_a_waiting_request(
    nursery: trio.Nursery, atlanta: FakeKeyManager, whose: str, waits_first: bool
) -> None:
    slots = Slots(1)
    pools = {name: make_pool(atlanta, nursery.start_soon, credential=name, slots=slots)[0] for name in ("red", "blue")}
    red = pools["red"]
    atlanta.operation_cost = 10.0
    session = await lease(red)
    exchange = Exchange(red, session, nursery)
    await wait_all_tasks_blocked()
    began = trio.current_time()

    if not waits_first:
        red.abandon(session)
    (waiter,) = await waiting(pools[whose], nursery, 1)
    if waits_first:
        red.abandon(session)
    await trio.sleep(1)

    assert exchange.error == "interrupted"
    assert waiter.session is not None
    assert waiter.ended_at == pytest.approx(began + atlanta.handshake_cost)
    assert slots.used == 1
    assert not slots.abandoned


@in_virtual_time
async def test_one_abandoned_session_is_closed_for_each_pool_that_waits(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    slots = Slots(12)
    red = make_pool(atlanta, nursery.start_soon, slots=slots)[0]
    others = [make_pool(atlanta, nursery.start_soon, credential=f"id{n}", slots=slots)[0] for n in range(2)]
    atlanta.operation_cost = 10.0
    exchanges = []
    for session in [await lease(red) for _ in range(12)]:
        exchanges.append(Exchange(red, session, nursery))
        await wait_all_tasks_blocked()
        if len(exchanges) <= 3:
            red.abandon(session)

    waiters = [waiter for pool in others for waiter in await waiting(pool, nursery, 1)]
    await trio.sleep(1)

    assert [exchange.error for exchange in exchanges] == [None, "interrupted", "interrupted"] + [None] * 9  # the newest
    assert all(waiter.session is not None for waiter in waiters)


@in_virtual_time
async def test_abandoned_sessions_hold_a_quarter_of_the_slots_at_most(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    red = make_pool(atlanta, nursery.start_soon, slots=Slots(8))[0]
    atlanta.operation_cost = 10.0
    exchanges = []
    for session in [await lease(red) for _ in range(5)]:
        exchanges.append(Exchange(red, session, nursery))
        await wait_all_tasks_blocked()
        red.abandon(session)
    await trio.sleep(1)

    assert [exchange.error for exchange in exchanges] == [None] * 2 + ["interrupted"] * 3


@in_virtual_time
async def test_an_abandoned_session_of_a_closed_pool_is_closed(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    slots = Slots(4)
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=slots)
    atlanta.operation_cost = 10.0
    before, after = await lease(pool), await lease(pool)
    exchanges = [Exchange(pool, session, nursery) for session in (before, after)]
    await wait_all_tasks_blocked()

    pool.abandon(before)
    pool.close()
    pool.abandon(after)
    await wait_all_tasks_blocked()

    assert [exchange.error for exchange in exchanges] == ["interrupted"] * 2
    assert slots.used == 0
    assert not slots.abandoned


# Validation of idle sessions ------------------------------------------------------------------------------------------


@in_virtual_time
async def test_sessions_idle_as_long_are_lent_for_validation(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon)
    sessions = [await lease(pool) for _ in range(3)]
    for session in sessions:
        pool.give_back(session)
        await trio.sleep(1)

    doubtful = pool.lend_for_validation(sessions[1].idle_since)

    assert doubtful == sessions[:2]
    assert repr(pool) == "<Pool atlanta as red: idle=1 busy=2 opening=0 waiting=0>"
    sessions[0].close()
    for session in doubtful:
        pool.give_back(session)
    assert repr(pool) == "<Pool atlanta as red: idle=2 busy=0 opening=0 waiting=0>"


@in_virtual_time
async def test_drop_closed_closes_only_sessions_closed_by_the_peer(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    """A request that breaks its session must not cost an identity all sessions."""
    pool, observer = make_pool(atlanta, nursery.start_soon)
    sessions = [await lease(pool) for _ in range(4)]
    for session in sessions:
        pool.give_back(session)
    for connection in atlanta.connections[1:3]:
        connection.hang_up()

    pool.drop_closed()

    assert observer.closed == {"remote_idle": 2}
    assert [pool.take(), pool.take(), pool.take()] == [sessions[3], sessions[0], None]


# Maintenance ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_min_idle_sessions_are_opened_before_any_request(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"min_idle": 2}))

    async with kept_warm(pool):
        await trio.sleep(1)
        assert repr(pool) == "<Pool atlanta as red: idle=2 busy=0 opening=0 waiting=0>"

        atlanta.hang_up()
        await trio.sleep(1)
        assert repr(pool) == "<Pool atlanta as red: idle=2 busy=0 opening=0 waiting=0>"

    assert len(atlanta.attempts) == 4


@in_virtual_time
async def test_warm_sessions_are_validated_before_the_peer_closes_them(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"min_idle": 2}))
    used_at = []

    def notes_when(connection: Connection, request: Request) -> None:
        used_at.append(trio.current_time())
        answers(connection, request)

    atlanta.behaviour = notes_when
    async with kept_warm(pool):
        await trio.sleep(300)

    assert len(atlanta.attempts) == 2
    assert [len(connection.sent) for connection in atlanta.connections] == [14, 14]
    assert set(map(len, (used_at, set(used_at)))) == {28, 14}
    assert atlanta.executed == []


@in_virtual_time
async def test_a_surplus_session_is_closed_after_the_idle_timeout(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"min_idle": 1}))

    async with kept_warm(pool):
        sessions = [await lease(pool) for _ in range(4)]
        for session in sessions:
            pool.give_back(session)
        await trio.sleep(SETTINGS.idle_timeout - 1)
        assert pool.statistics().idle == 4

        await trio.sleep(1.5)
        assert repr(pool) == "<Pool atlanta as red: idle=1 busy=0 opening=0 waiting=0>"

    assert observer.closed == {"idle": 3}
    assert [connection.closed for connection in atlanta.connections] == [["politely"]] * 3 + [[]]


@in_virtual_time
async def test_slow_validation_keeps_no_surplus_session(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"min_idle": 1}))

    async with kept_warm(pool):
        sessions = [await lease(pool) for _ in range(4)]
        for session in sessions:
            pool.give_back(session)
        atlanta.operation_cost = 2.0
        await trio.sleep(SETTINGS.idle_timeout + 3)

    assert observer.closed == {"idle": 3}
    assert pool.statistics().idle == 1


@in_virtual_time
async def test_a_steady_load_needs_no_idle_session_beside_it(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"min_idle": 1}))

    async with kept_warm(pool):
        await lease(pool)
        await trio.sleep(60)
        assert repr(pool) == "<Pool atlanta as red: idle=0 busy=1 opening=0 waiting=0>"


@pytest.mark.parametrize(
    "behaviour",
    [
        never_answers,
        breaks_while_it_is_asked,
        lambda connection, _request: connection.hang_up(),
        lambda connection, _request: connection.say(b"garbage!"),
        lambda connection, request: connection.answer(request, b"garbage!"),
    ],
    ids=["never answers", "breaks", "hangs up", "talks garbage", "says more"],
)
@in_virtual_time
async def test_a_warm_session_that_does_not_answer_properly_is_replaced(
    nursery: trio.Nursery, atlanta: FakeKeyManager, behaviour: Behaviour
) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"min_idle": 1}))
    atlanta.behaviour = behaviour

    async with kept_warm(pool):
        await trio.sleep(20 + 3 + 1)
        assert observer.closed.total() == 1
        assert repr(pool) == "<Pool atlanta as red: idle=1 busy=0 opening=0 waiting=0>"
        assert len(atlanta.open_connections) == 1
    assert len(atlanta.attempts) == 2


@in_virtual_time
async def test_a_session_under_validation_serves_a_waiting_request(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"min_idle": 1}), slots=Slots(1))
    atlanta.operation_cost = 0.2

    async with kept_warm(pool):
        await trio.sleep(20.35)
        assert repr(pool) == "<Pool atlanta as red: idle=0 busy=1 opening=0 waiting=0>"
        assert await use(pool, "key-1") == "key-1"

    assert len(atlanta.attempts) == 1


@in_virtual_time
async def test_idle_sessions_that_the_peer_closed_are_noticed(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon)
    async with kept_warm(pool):
        pool.give_back(await lease(pool))
        atlanta.hang_up()
        await trio.sleep(0.5)

    assert observer.closed == {"remote_idle": 1}
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=0 opening=0 waiting=0>"


@in_virtual_time
async def test_idle_sessions_are_closed_before_the_peer_closes_them(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon)
    async with kept_warm(pool):
        for _ in range(3):
            pool.give_back(await lease(pool))
            await trio.sleep(10)
            atlanta.hang_up()
            await trio.sleep(2)
        assert observer.closed == {"remote_idle": 3}
        assert observer.idle_at_close == pytest.approx([10.0] * 3, abs=0.3)

        pool.give_back(await lease(pool))
        await trio.sleep(9)

    assert observer.closed == {"remote_idle": 3, "idle": 1}
    assert observer.learned == [pytest.approx(8.0, abs=0.3)]


@in_virtual_time
async def test_sessions_that_began_together_do_not_end_together(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    settings = SETTINGS.model_copy(update={"max_lifetime": 1000.0, "lifetime_spread": 0.5, "idle_timeout": 2000.0})
    pool, observer = make_pool(atlanta, nursery.start_soon, settings, slots=Slots(40))
    for session in [await lease(pool) for _ in range(40)]:
        pool.give_back(session)
    opened_at = trio.current_time()

    ends = []
    async with kept_warm(pool):
        while pool.statistics().idle:
            before = pool.statistics().idle
            await trio.sleep(0.25)
            ends += [trio.current_time() - opened_at] * (before - pool.statistics().idle)

    assert observer.closed == {"lifetime": 40}
    assert 500 - 3 <= min(ends) < 600
    assert 900 < max(ends) <= 1000 + 0.5


@in_virtual_time
async def test_an_old_session_is_neither_lent_nor_kept(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    """Maintenance closes it, four times a second, or ``give_back`` does."""
    pool, observer = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"max_lifetime": 100.0}))
    kept, lent = await lease(pool), await lease(pool)
    pool.give_back(kept)

    await trio.sleep(100)

    assert pool.maintain() == []
    assert pool.take() is None
    pool.give_back(lent)
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=0 opening=0 waiting=0>"
    assert observer.closed == {"lifetime": 2}


# Closing -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_closing_closes_idle_sessions_and_fails_waits(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    slots = Slots(2)
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=slots)
    lent, idle = await lease(pool), await lease(pool)
    pool.give_back(idle)
    taken = pool.take()
    assert taken is not None
    (waiter,) = await waiting(pool, nursery, 1)
    pool.give_back(taken)
    await wait_all_tasks_blocked()
    assert waiter.session is idle
    (other,) = await waiting(pool, nursery, 1)

    pool.close()
    await wait_all_tasks_blocked()

    assert isinstance(other.error, BackendError)
    assert other.error.reason == "drain"
    assert repr(pool) == "<Pool atlanta as red: idle=0 busy=2 opening=0 waiting=0>"

    pool.give_back(lent)
    pool.give_back(idle)
    assert observer.closed == {"drain": 2}
    assert slots.used == 0
    assert atlanta.open_connections == []


@in_virtual_time
async def test_a_session_to_an_old_address_is_not_lent(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    endpoint, slots = Endpoint(), Slots(4)
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=slots, endpoint=endpoint)
    backend = Backend("kms", slots, {"red": pool}, endpoint=endpoint)
    atlanta.host = "192.0.2.1"
    stays = await lease(pool)
    atlanta.host = "192.0.2.2"
    lent, idle = await lease(pool), await lease(pool)
    pool.give_back(idle)

    backend.set_hosts(("192.0.2.1",))

    assert pool.take() is None
    pool.give_back(lent)
    assert observer.closed == {"removed": 1, "lifetime": 1}
    pool.give_back(stays)
    assert pool.take() is stays


@in_virtual_time
async def test_a_session_opened_to_an_old_address_is_replaced(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    endpoint, slots = Endpoint(), Slots(4)
    pool, observer = make_pool(atlanta, nursery.start_soon, slots=slots, endpoint=endpoint)
    atlanta.host = "192.0.2.2"
    (waiter,) = await waiting(pool, nursery, 1)

    Backend("kms", slots, {"red": pool}, endpoint=endpoint).set_hosts(("192.0.2.1",))
    atlanta.host = "192.0.2.1"
    await trio.sleep(1)

    assert waiter.session is not None
    assert waiter.session.peer == "192.0.2.1"
    assert observer.closed == {"removed": 1}
    assert slots.used == 1


@in_virtual_time
async def test_a_lack_of_descriptors_is_no_failure_of_the_backend(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    """A request waits for a lent session; ten attempts a second are made at most."""
    pool, observer = make_pool(atlanta, nursery.start_soon)
    lent = await lease(pool)
    atlanta.refuse("resources")
    (waiter,) = await waiting(pool, nursery, 1)
    async with kept_warm(pool):
        await trio.sleep(10)
        assert not pool.is_failing
        assert waiter.error is None
        assert 20 <= len(observer.failed) <= 100
        pool.give_back(lent)
        await wait_all_tasks_blocked()
        assert waiter.session is lent

        (waiter,) = await waiting(pool, nursery, 1)
        atlanta.recover()
        await trio.sleep(1)
    assert waiter.session is not None


@in_virtual_time
async def test_a_request_fails_with_the_lack_of_descriptors(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _observer = make_pool(atlanta, nursery.start_soon)
    atlanta.refuse("resources")
    async with kept_warm(pool):
        for _ in range(5):
            with pytest.raises(BackendError) as short, trio.fail_after(1):
                await pool.wait()
            assert short.value.reason == "resources"
    assert not pool.is_failing


@in_virtual_time
async def test_a_closed_pool_lends_nothing_and_opens_nothing(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool, _ = make_pool(atlanta, nursery.start_soon, SETTINGS.model_copy(update={"min_idle": 2}))
    pool.give_back(await lease(pool))

    pool.close()
    pool.close()
    attempts = len(atlanta.attempts)

    assert pool.take() is None
    with pytest.raises(BackendError, match="shutting down"):
        await pool.wait()
    async with kept_warm(pool):
        await trio.sleep(60)
    assert len(atlanta.attempts) == attempts
    assert atlanta.open_connections == []


@in_virtual_time
async def test_a_session_that_is_opened_after_closing_is_closed_too(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    slots = Slots(1)
    pool, _ = make_pool(atlanta, nursery.start_soon, slots=slots)
    (waiter,) = await waiting(pool, nursery, 1)

    pool.close()
    await trio.sleep(1)

    assert isinstance(waiter.error, BackendError)
    assert atlanta.connections[0].closed == ["politely"]
    assert slots.used == 0


@in_virtual_time
async def test_attempts_that_are_cancelled_give_back_their_slots(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    atlanta.is_reachable = False
    slots = Slots(20)
    async with trio.open_nursery() as pool_nursery:
        pools = [
            make_pool(atlanta, pool_nursery.start_soon, credential=name, slots=slots)[0] for name in ("red", "blue")
        ]
        waiters = [await waiting(pool, nursery, 5) for pool in pools]
        assert slots.used == slots.gate.under_way == 4
        pool_nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked()

    assert slots.used == slots.gate.under_way == 0
    assert {pool.statistics() for pool in pools} == {(0, 0, 0, 0)}
    assert {type(waiter.error) for queue in waiters for waiter in queue} == {BackendError}


@in_virtual_time
async def test_a_pool_does_not_outlive_the_nursery_that_opens_its_sessions(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    slots = Slots(2)
    async with trio.open_nursery() as pool_nursery:
        pool, _ = make_pool(atlanta, pool_nursery.start_soon, slots=slots)
        pool.give_back(await lease(pool))
        session = pool.take()
        (waiter,) = await waiting(pool, nursery, 1)
        pool_nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked()

    assert isinstance(waiter.error, BackendError)
    assert session is not None
    pool.give_back(session)
    assert slots.used == slots.gate.under_way == 0
    assert atlanta.open_connections == []


@in_virtual_time
async def test_a_session_is_not_closed_for_the_client_that_used_it_before(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool = make_pool(atlanta, nursery.start_soon, slots=Slots(1))[0]
    session = await lease(pool)
    session.is_repeatable = True
    session.client_disconnected = lambda: True
    session.exchanging_since = trio.current_time()
    (waiter,) = await waiting(pool, nursery, 1)
    await trio.sleep(1)

    pool.give_back(session)
    pool.close_disconnected()

    await wait_all_tasks_blocked()
    assert waiter.session is session
    assert repr(session) == "<Session atlanta idle, 0 requests>"


@in_virtual_time
async def test_an_exchange_that_has_just_begun_is_left_to_end(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    pool = make_pool(atlanta, nursery.start_soon, slots=Slots(1))[0]
    atlanta.operation_cost = 10.0
    session = await lease(pool)
    exchange = Exchange(pool, session, nursery)
    await wait_all_tasks_blocked()
    session.is_repeatable = True
    session.client_disconnected = lambda: True
    session.exchanging_since = trio.current_time()

    pool.close_disconnected()
    await wait_all_tasks_blocked()
    assert exchange.error is None
    await trio.sleep(0.25)
    pool.close_disconnected()
    await wait_all_tasks_blocked()
    assert exchange.error == "interrupted"


@in_virtual_time
async def test_a_renewed_pool_replaces_its_sessions_one_after_the_other(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon)
    sessions = [await lease(pool) for _ in range(3)]
    for session in sessions:
        pool.give_back(session)
    opener = atlanta.opener("red")
    assert pool.renew(opener, FailoverConfig(), 0.1) == pytest.approx(0.3)
    for replaced in (1, 2, 3):
        pool.maintain()
        assert observer.closed["lifetime"] == replaced
        await trio.sleep(0.1)
    assert pool.opener is opener


@in_virtual_time
async def test_a_session_that_was_being_opened_is_replaced_as_well(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    pool, observer = make_pool(atlanta, nursery.start_soon)
    may_open = trio.Event()

    async def open_late() -> Session:
        await may_open.wait()
        return await atlanta.opener("red")()

    async def use() -> None:
        pool.give_back(await pool.wait())

    pool.renew(open_late, FailoverConfig(), 0.1)
    nursery.start_soon(use)
    await wait_all_tasks_blocked()
    assert pool.statistics().opening == 1
    pool.renew(atlanta.opener("red"), FailoverConfig(), 0.1)
    may_open.set()
    await trio.sleep(1.0)
    assert observer.closed["lifetime"] == 1
