"""Marks: correlation values and tickets find the way back to the key manager that issued them."""

import pytest
import trio

from gateway.dispatcher import ReplicationPolicy
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request
from gateway.kmip.spec import CredentialType, Operation, ResultReason, ResultStatus, Tag
from gateway.policy import Refusal
from gateway.upstream.affinity import Affinity
from gateway.upstream.marks import SIZE, Marks
from tests.kit.deployment import deployment, refusal
from tests.kit.fake_backends import (
    Connection,
    FakeKeyManager,
    ask,
    in_virtual_time,
)
from tests.kit.marked import asynchronous, begin, begins_and_polls, poll, value_in, with_marks
from tests.kit.messages import authentication, credential, ticket_credential
from tests.kit.replicas import (
    FOUND,
    answers_for_itself,
    goes_down,
    late_deployment,
    replicas,
    state_in,
    status,
)

# Marks ----------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_poll_through_any_gateway_reaches_the_backend_of_its_value() -> None:
    key_managers = asynchronous("atlanta", "london", "paris")
    async with (
        deployment(*key_managers, replication=with_marks) as one,
        deployment(*key_managers, replication=with_marks) as other,
    ):
        values = [value_in(await one.ask(begin(f"key-{number}"))) for number in range(6)]
        assert len({value[SIZE:] for value in values}) == 3
        for value in values:
            assert status(await other.ask(poll(value))) == FOUND


@in_virtual_time
async def test_without_marks_values_pass_unchanged_and_follow_the_affinity() -> None:
    key_managers = asynchronous("atlanta", "london", "paris")
    async with deployment(*key_managers, replication=lambda _: ReplicationPolicy(Affinity(10.0))) as it:
        for value in [b"later at atlanta"] * 3:
            await it.ask(poll(value))
        assert [len(one.connections) for one in key_managers] == [1, 0, 0]


@in_virtual_time
@pytest.mark.parametrize("operation", [Operation.CREATE, Operation.GET], ids=str)
@pytest.mark.parametrize("is_shared", [False, True])
async def test_without_marks_a_poll_follows_the_pending_request(operation: Operation, is_shared: bool) -> None:
    key_managers = asynchronous("atlanta", "london", "paris")
    knows = ReplicationPolicy(Affinity(10.0, is_shared=is_shared))
    later = (ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True),)
    async with deployment(*key_managers, replication=lambda _: knows) as it:
        for number in range(6):
            value = value_in(await it.ask(ask(f"key-{number}", operation, header=later)))
            assert status(await it.ask(poll(value))) == FOUND


@in_virtual_time
async def test_without_marks_a_ticket_goes_to_the_backend_that_issued_it() -> None:
    key_managers = [FakeKeyManager("atlanta"), FakeKeyManager("london")]
    for one in key_managers:
        one.behaviour = logs_in_and_makes
    shown = (authentication(ticket_credential(b"mine")),)
    async with deployment(*key_managers, replication=lambda _: ReplicationPolicy(Affinity(10.0))) as it:
        await it.ask(ask("", Operation.LOGIN, version=(2, 1)))
        for _ in range(3):
            assert (await it.ask(ask("key-1", version=(2, 1), header=shown))).backend is it.backends[0]


@in_virtual_time
async def test_a_poll_that_reports_a_change_begins_the_window() -> None:
    key_managers = replicas("atlanta", "london", lag=1e9)
    knows = ReplicationPolicy(Affinity(10.0, is_shared=False), Marks([bytes(32)]))
    async with late_deployment(key_managers, knows) as it:
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
    """Answer a Poll as a Locate without a match."""
    connection.execute(request)
    connection.say(compose.encode_response(request.version, [compose.Result(ResultStatus.SUCCESS, Operation.LOCATE)]))


@in_virtual_time
async def test_a_password_creates_no_affinity() -> None:
    """It is good at every backend, so that a Poll at another backend leads no request away from the last change."""
    key_managers = replicas("atlanta", "london", lag=5.0)
    knows = ReplicationPolicy(Affinity(10.0, is_shared=False), Marks([bytes(32)]))
    header = (authentication(credential(CredentialType.USERNAME_AND_PASSWORD)),)
    async with late_deployment(key_managers, knows) as it:
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
async def test_a_forged_or_foreign_mark_is_refused_without_a_backend() -> None:
    (key_manager,) = asynchronous("atlanta")
    async with deployment(key_manager, replication=with_marks) as it:
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
async def test_a_batch_with_marks_of_two_backends_is_refused() -> None:
    async with deployment(*asynchronous("atlanta", "london"), replication=with_marks) as it:
        values = [value_in(await it.ask(begin(f"key-{number}"))) for number in range(2)]
        answer = await it.ask(poll(*values))
        assert answer.refusal is Refusal.SEVERAL_BACKENDS
        assert len(decode_response(answer.frame).items) == 2


@in_virtual_time
async def test_a_poll_whose_backend_is_down_is_refused_without_asking_others() -> None:
    key_managers = asynchronous("atlanta", "london")
    async with deployment(*key_managers, replication=with_marks) as it:
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
    (key_manager,) = asynchronous("atlanta")
    async with deployment(key_manager, replication=with_marks) as it:
        whole = len((await it.ask(begin("key-1"))).frame)
        most = ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, whole)
        fits = await it.ask(begin("key-1", most))
        sent = decode_request(key_manager.connections[0].sent[-1])
        too_long = await it.ask(begin("key-1", ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, whole - 1)))

        assert (len(fits.frame), sent.maximum_response_size) == (whole, whole - SIZE)
        assert refusal(too_long)[0] is Refusal.RESPONSE_TOO_LARGE


def logs_in_and_makes(connection: Connection, request: Request) -> None:
    """Answer each Login with a ticket; refuse, before execution, a request whose answer is over the size limit."""
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
async def test_room_for_marks_is_left_in_a_batch_with_a_change() -> None:
    key_manager = FakeKeyManager("atlanta")
    key_manager.behaviour = logs_in_and_makes
    async with deployment(key_manager, replication=with_marks) as it:
        both = (Operation.LOGIN, Operation.CREATE)
        whole = len((await it.ask(ask("key-1", *both, numbered=True))).frame)
        key_manager.executed.clear()
        most = ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, whole - 1)
        await it.ask(ask("key-1", *both, numbered=True, header=(most,)))
        assert key_manager.executed == []


@in_virtual_time
async def test_an_answer_over_the_size_limit_even_without_marks_is_passed_on() -> None:
    (key_manager,) = asynchronous("atlanta")  # it ignores Maximum Response Size
    async with deployment(key_manager, replication=with_marks) as it:
        assert value_in(await it.ask(begin("key-1", ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 0))))


@in_virtual_time
async def test_a_ticket_of_a_backend_that_is_down_goes_to_another() -> None:
    """The other backend may know the ticket, or asks for a new login."""
    key_managers = [FakeKeyManager("atlanta"), FakeKeyManager("london")]
    for one in key_managers:
        one.behaviour = logs_in_and_makes
    async with deployment(*key_managers, replication=with_marks) as it:
        frame = (await it.ask(ask("", Operation.LOGIN, version=(2, 1)))).frame
        ticket = frame[frame.index(b"kgw") :][: SIZE + 4]
        shown = (authentication(ticket_credential(ticket)),)
        for _ in range(3):
            assert (await it.ask(ask("key-1", version=(2, 1), header=shown))).backend is it.backends[0]
        goes_down(key_managers[0])
        assert (await it.ask(ask("key-1", version=(2, 1), header=shown))).backend is it.backends[1]


@in_virtual_time
@pytest.mark.parametrize("seconds", [3.0, 6.0])
async def test_a_ticket_waits_for_its_backend_while_that_is_busy_or_slow(seconds: float) -> None:
    key_managers = [FakeKeyManager("atlanta"), FakeKeyManager("london")]
    for one in key_managers:
        one.behaviour = logs_in_and_makes
    async with deployment(*key_managers, replication=with_marks, max_sessions=1) as it, trio.open_nursery() as nursery:
        frame = (await it.ask(ask("", Operation.LOGIN, version=(2, 1)))).frame
        ticket = frame[frame.index(b"kgw") :][: SIZE + 4]
        shown = (authentication(ticket_credential(ticket)),)

        def takes_its_time(connection: Connection, request: Request) -> None:
            connection.execute(request)
            answer = compose.encode_response(request.version, [compose.Result(ResultStatus.SUCCESS, Operation.GET)])
            connection.say(answer, at=trio.current_time() + seconds)

        key_managers[0].behaviour = takes_its_time
        if seconds < 5:  # the only session is in use meanwhile
            nursery.start_soon(it.ask, ask("key-0", version=(2, 1), header=shown))
            await trio.sleep(0.01)
        answer = await it.ask(ask("key-1", version=(2, 1), header=shown))
        assert answer.backend is it.backends[0]


def knows_its_own_tickets(connection: Connection, request: Request) -> None:
    """Answer a Login with a ticket that only this key manager knows, and a Locate with this ticket without a match."""
    own = connection.key_manager.name.encode()
    (item,) = request.items
    connection.execute(request)
    if item.operation == Operation.LOGIN:
        value = ttlv.octets(Tag.TICKET_VALUE, own)
        ticket = ttlv.structure(Tag.TICKET, ttlv.enumeration(Tag.TICKET_TYPE, 1), value)
        result = compose.Result(ResultStatus.SUCCESS, item.operation, payload=ticket)
    elif own in request.frame:
        result = compose.Result(ResultStatus.SUCCESS, item.operation)
    else:
        result = compose.Result(
            ResultStatus.OPERATION_FAILED, item.operation, None, ResultReason.INVALID_TICKET, "no such ticket"
        )
    connection.say(compose.encode_response(request.version, [result], now=0))


@in_virtual_time
async def test_no_match_stands_if_a_backend_of_another_login_refuses_the_ticket() -> None:
    """A login leaves no object behind: its backend has no better answer, and may not know this ticket."""
    key_managers = [FakeKeyManager("atlanta"), FakeKeyManager("london")]
    for one in key_managers:
        one.behaviour = knows_its_own_tickets
    marks = Marks([bytes(32)])

    def late(_: object) -> ReplicationPolicy:
        return ReplicationPolicy(Affinity(10.0, is_shared=False), marks, fallback_on_not_found=True)

    async with (
        deployment(*key_managers, replication=late) as here,
        deployment(*key_managers, replication=late) as there,
    ):
        answer = await here.ask(ask("", Operation.LOGIN, version=(2, 1)))
        assert answer.backend is here.backends[0]
        ticket = answer.frame[answer.frame.index(b"kgw") :][: SIZE + len("atlanta")]
        await there.ask(ask("", Operation.LOGIN, version=(2, 1)), name="bob")  # takes atlanta's turn
        assert (await there.ask(ask("", Operation.LOGIN, version=(2, 1)))).backend is there.backends[1]
        shown = (authentication(ticket_credential(ticket)),)
        answer = await there.ask(ask("", Operation.LOCATE, version=(2, 1), header=shown))
        assert answer.backend is there.backends[0]
        assert status(answer) == FOUND
