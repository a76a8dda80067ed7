"""Tests of a session: one exchange at a time; an exchange that does not end properly leaves the session BUSY."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from gateway.config import LimitsConfig
from gateway.errors import BackendError, Stage, StreamClosedError, TlsError
from gateway.kmip import compose, ttlv
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from gateway.upstream.session import Session, SessionState, SupersededError
from tests.kit.fake_backends import LIMITS, FakeStream, answer_to, ask, in_virtual_time, name_in

MAX_FIELDS = 100
GET = ask("key-1")
ANSWER = answer_to(GET)


def session_over(stream: FakeStream, *, max_response_size: int = LIMITS.max_response_size) -> Session:
    limits = LimitsConfig.model_construct(None, max_response_size=max_response_size, max_response_fields=MAX_FIELDS)
    return Session(stream, "atlanta", limits=limits)


# An exchange that ends properly --------------------------------------------------------------------------------------


async def test_an_exchange_sends_the_request_unchanged_and_returns_its_answer() -> None:
    stream = FakeStream(ANSWER)
    session = session_over(stream)

    response = await session.exchange(GET)

    assert stream.sent == [GET.frame]
    assert response.frame == ANSWER
    assert session.state is SessionState.IDLE
    assert repr(session) == "<Session atlanta idle, 1 requests>"


@given(cuts=st.sets(st.integers(1, len(ANSWER) - 1)))
async def test_it_does_not_matter_in_which_chunks_an_answer_comes(cuts: set[int]) -> None:
    bounds = [0, *sorted(cuts), len(ANSWER)]
    session = session_over(FakeStream(*(ANSWER[begin:end] for begin, end in pairwise(bounds))))

    response = await session.exchange(GET)

    assert response.frame == ANSWER
    assert session.state is SessionState.IDLE


async def test_a_session_carries_one_request_after_the_other() -> None:
    stream = FakeStream()
    session = session_over(stream)

    for name in ("a", "b", "c"):
        stream.next_answer = (answer_to(ask(name)),)
        assert name_in(await session.exchange(ask(name))) == name

    assert session.requests == 3
    assert session.state is SessionState.IDLE
    assert session.is_quiet()


async def test_a_failed_operation_is_an_answer_like_any_other() -> None:
    failure = compose.failure(GET, ResultReason.ITEM_NOT_FOUND, "no such key")
    session = session_over(FakeStream(failure))

    response = await session.exchange(GET)

    assert response.items[0].reason == ResultReason.ITEM_NOT_FOUND
    assert session.state is SessionState.IDLE


# Exchanges that fail -------------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """An event on the other side, and the stage and reason that the session must report."""

    says: tuple[bytes | Exception, ...]
    stage: Stage
    reason: str


FLOOD_OF_FIELDS = compose.encode_response(
    (1, 4),
    [compose.Result(ResultStatus.SUCCESS, Operation.GET, payload=ttlv.octets(Tag.DATA, b"") * (MAX_FIELDS + 20))],
)
OF_ANOTHER = answer_to(ask("key-1", Operation.DESTROY))
FAILURES = {
    "closes without a byte": Failure((b"",), Stage.WAIT, "closed"),
    "is reset without a byte": Failure((StreamClosedError("ECONNRESET"),), Stage.WAIT, "closed"),
    "sends an alert instead": Failure((TlsError("alert", reason="alert"),), Stage.WAIT, "closed"),
    "floods TLS records": Failure((TlsError("too many records", reason="records"),), Stage.WAIT, "records"),
    "floods TLS records in the middle": Failure(
        (ANSWER[:20], TlsError("too many records", reason="records")), Stage.READ, "records"
    ),
    "sends too many fields": Failure((FLOOD_OF_FIELDS,), Stage.READ, "too_large"),
    "closes after one byte": Failure((ANSWER[:1], b""), Stage.READ, "closed"),
    "closes one byte too early": Failure((ANSWER[:-1], b""), Stage.READ, "closed"),
    "is reset in the middle": Failure((ANSWER[:20], StreamClosedError("ECONNRESET")), Stage.READ, "closed"),
    "breaks a record in the middle": Failure((ANSWER[:20], TlsError("bad record mac")), Stage.READ, "closed"),
    "speaks HTTP": Failure((b"HTTP/1.1 400 Bad Request\r\n\r\n",), Stage.READ, "protocol"),
    "echoes the request": Failure((GET.frame,), Stage.READ, "protocol"),
    "sends a response without items": Failure((compose.encode_response((1, 4), []),), Stage.READ, "protocol"),
    "declares four gibibytes": Failure((bytes.fromhex("42007B01FFFFFFF8"),), Stage.READ, "too_large"),
    "answers another operation": Failure((OF_ANOTHER,), Stage.READ, "mismatch"),
    "answers two items where one was asked": Failure(
        (answer_to(ask("key-1", Operation.GET, Operation.GET)),), Stage.READ, "mismatch"
    ),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
async def test_a_failure_has_a_stage_and_leaves_the_session_busy(failure: Failure) -> None:
    session = session_over(FakeStream(*failure.says))

    with pytest.raises(BackendError) as caught:
        await session.exchange(GET)

    assert (caught.value.stage, caught.value.reason) == (failure.stage, failure.reason)
    assert caught.value.backend == "atlanta"
    assert session.stage is failure.stage
    assert session.state is SessionState.BUSY
    assert session.requests == 0


@pytest.mark.parametrize("error", [StreamClosedError("EPIPE"), TlsError("broken")])
async def test_a_request_that_can_not_be_sent_fails_in_sending(error: Exception) -> None:
    class Broken(FakeStream):
        async def send_all(self, _data: bytes) -> None:
            raise error

    session = session_over(Broken(ANSWER))

    with pytest.raises(BackendError) as caught:
        await session.exchange(GET)

    assert (caught.value.stage, caught.value.reason) == (Stage.SEND, "closed")
    assert session.state is SessionState.BUSY


async def test_an_answer_over_the_limit_is_refused_before_it_has_come() -> None:
    session = session_over(FakeStream(ANSWER[:16]), max_response_size=len(ANSWER) - 1)

    with pytest.raises(BackendError, match="over the limit"):
        await session.exchange(GET)

    assert session.state is SessionState.BUSY


async def test_an_answer_with_a_different_item_id_is_a_mismatch() -> None:
    session = session_over(FakeStream(answer_to(ask("key-1", numbered=True))))

    with pytest.raises(BackendError) as caught:
        await session.exchange(ask("key-1"))

    assert caught.value.reason == "mismatch"


@given(garbage=st.binary(min_size=1, max_size=64))
async def test_garbage_is_never_taken_for_an_answer(garbage: bytes) -> None:
    session = session_over(FakeStream(garbage, b""))

    with pytest.raises(BackendError) as caught:
        await session.exchange(GET)

    assert caught.value.stage is Stage.READ
    assert session.state is SessionState.BUSY


@pytest.mark.parametrize(
    "more", [b"\x42", ANSWER, answer_to(ask("key-2")), b"garbage"], ids=["a byte", "again", "another", "garbage"]
)
async def test_bytes_after_an_answer_cost_the_session_but_not_the_answer(more: bytes) -> None:
    session = session_over(FakeStream(ANSWER + more))

    response = await session.exchange(GET)

    assert response.frame == ANSWER
    assert session.state is SessionState.BUSY
    assert session.fault == "unasked"
    assert not session.is_quiet()


async def test_bytes_that_arrive_later_are_noticed_before_the_next_loan() -> None:
    stream = FakeStream(ANSWER)
    session = session_over(stream)
    await session.exchange(GET)
    assert session.is_quiet()

    stream.say(answer_to(ask("key-2")))

    assert session.state is SessionState.IDLE
    assert not session.is_quiet()
    assert session.fault == "unasked"


async def test_a_session_that_was_closed_has_no_fault() -> None:
    stream = FakeStream(ANSWER)
    session = session_over(stream)
    await session.exchange(GET)

    stream.hang_up()

    assert not session.is_quiet()
    assert session.fault == ""


@pytest.mark.parametrize(
    "request_",
    [GET, ask("key-1", Operation.DECRYPT), ask("key-1", Operation.GET, Operation.DESTROY)],
    ids=["get", "decrypt", "batch"],
)
async def test_an_answer_about_another_object_is_never_returned(request_: Request) -> None:
    other = ask("key-2", *(item.operation for item in request_.items))
    session = session_over(FakeStream(answer_to(other)))

    with pytest.raises(BackendError) as caught:
        await session.exchange(request_)

    assert (caught.value.stage, caught.value.reason) == (Stage.READ, "mismatch")
    assert (session.state, session.fault) == (SessionState.BUSY, "mismatch")


async def test_an_object_that_was_made_before_is_never_returned_as_new() -> None:
    """The answer to a Create arrives again while the next Create waits for its answer."""
    create = ask("", Operation.CREATE)
    first = answer_to(ask("key-1", Operation.CREATE))
    stream = FakeStream(first)
    session = session_over(stream)
    assert name_in(await session.exchange(create)) == "key-1"

    stream.next_answer = (first,)
    with pytest.raises(BackendError) as caught:
        await session.exchange(create)

    assert caught.value.reason == "mismatch"
    assert session.fault == "mismatch"


@pytest.mark.parametrize("what", [answer_to(ask("key-2")), b""], ids=["spoken on", "closed"])
async def test_bytes_before_the_request_keep_it_from_being_sent(what: bytes) -> None:
    """Nothing was sent, so that any request may be sent to a different backend."""
    stream = FakeStream(ANSWER)
    session = session_over(stream)
    await session.exchange(GET)
    stream.say(what)

    with pytest.raises(BackendError) as caught:
        await session.exchange(GET)

    assert (caught.value.stage, caught.value.reason) == (Stage.CONNECT, "closed")
    assert stream.sent == [GET.frame]
    assert session.state is SessionState.BUSY


# Cancelled at each await ---------------------------------------------------------------------------------------------


def while_sending(stream: FakeStream) -> None:
    stream.takes_bytes = False


def while_waiting(_stream: FakeStream) -> None:
    pass


def while_reading(stream: FakeStream) -> None:
    stream.say(ANSWER[:-1])


@pytest.mark.parametrize(
    ("where", "stage"), [(while_sending, Stage.SEND), (while_waiting, Stage.WAIT), (while_reading, Stage.READ)]
)
@in_virtual_time
async def test_an_exchange_that_is_cancelled_leaves_the_session_busy(
    where: Callable[[FakeStream], None], stage: Stage
) -> None:
    stream = FakeStream()
    where(stream)
    session = session_over(stream)

    with trio.move_on_after(30) as scope:
        await session.exchange(GET)

    assert scope.cancelled_caught
    assert session.stage is stage
    assert session.state is SessionState.BUSY


async def test_a_session_is_busy_as_soon_as_its_exchange_begins(nursery: trio.Nursery) -> None:
    session = session_over(FakeStream())

    nursery.start_soon(session.exchange, GET)
    await wait_all_tasks_blocked()

    assert session.state is SessionState.BUSY


async def test_an_answer_that_comes_with_the_deadline_is_an_answer(nursery: trio.Nursery) -> None:
    """Bytes and deadline both come before the session runs again: the exchange has ended properly."""
    stream = FakeStream()
    session = session_over(stream)
    answers = []
    scope = trio.CancelScope()

    async def exchange() -> None:
        with scope:
            answers.append((await session.exchange(GET)).frame)

    nursery.start_soon(exchange)
    await wait_all_tasks_blocked()
    stream.say(ANSWER)
    scope.cancel()
    await wait_all_tasks_blocked()

    assert answers == [ANSWER]
    assert session.state is SessionState.IDLE


# The payer of an answer ----------------------------------------------------------------------------------------------


class Purse:
    """A payer that counts up to so many bytes at once."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit
        self.held = 0
        self.most = 0

    def hold(self, size: int) -> str | None:
        if self.held + size > self.limit:
            return "limit"
        self.held += size
        self.most = max(self.most, self.held)
        return None


async def test_an_answer_that_comes_in_parts_is_held_until_it_is_whole() -> None:
    purse = Purse()
    session = session_over(FakeStream(ANSWER[:50], ANSWER[50:60], ANSWER[60:]))

    await session.exchange(GET, payer=purse)

    assert purse.most == len(ANSWER)
    assert purse.held == 0
    assert session.state is SessionState.IDLE


async def test_an_answer_in_one_part_is_not_counted() -> None:
    purse = Purse(limit=0)
    await session_over(FakeStream(ANSWER)).exchange(GET, payer=purse)
    assert purse.most == 0


@pytest.mark.parametrize("limit", [59, len(ANSWER) - 1])
async def test_an_answer_over_the_payers_limit_is_not_received(limit: int) -> None:
    purse = Purse(limit)
    session = session_over(FakeStream(ANSWER[:50], ANSWER[50:60], ANSWER[60:]))

    with pytest.raises(BackendError) as caught:
        await session.exchange(GET, payer=purse)

    assert (caught.value.stage, caught.value.reason) == (Stage.READ, "max_buffered")
    assert session.state is SessionState.BUSY
    session.close()
    assert purse.held == 0


@in_virtual_time
async def test_closing_the_session_releases_a_partial_answer() -> None:
    purse = Purse()
    session = session_over(FakeStream(ANSWER[:50]))

    with trio.move_on_after(30):
        await session.exchange(GET, payer=purse)

    assert purse.held == 50
    session.close()
    session.close()
    assert purse.held == 0


async def test_a_superseded_exchange_keeps_counting_its_bytes(nursery: trio.Nursery) -> None:
    purse = Purse()
    stream = FakeStream(ANSWER[:50])
    session = session_over(stream)

    async def lose() -> None:
        with pytest.raises(SupersededError):
            await session.exchange(GET, payer=purse)

    nursery.start_soon(lose)
    await wait_all_tasks_blocked()
    session.supersede()
    await wait_all_tasks_blocked()
    assert purse.held == 50
    stream.say(ANSWER[50:])
    await session.exchange(GET, is_sent=True, payer=purse)
    assert (purse.most, purse.held) == (len(ANSWER), 0)


async def test_an_answer_without_a_payer_has_64_kib_at_the_most() -> None:
    head = bytes.fromhex("42007B01") + (200_000).to_bytes(4, "big")
    session = session_over(FakeStream(head + bytes(60_000), bytes(10_000)), max_response_size=1 << 20)

    with pytest.raises(BackendError) as caught:
        await session.exchange(GET)

    assert caught.value.reason == "too_large"


# Closing -------------------------------------------------------------------------------------------------------------


async def test_closing_an_idle_session_is_polite_and_a_busy_one_is_not() -> None:
    idle, busy = FakeStream(ANSWER), FakeStream(b"")
    polite, rude = session_over(idle), session_over(busy)
    await polite.exchange(GET)
    with pytest.raises(BackendError):
        await rude.exchange(GET)

    polite.close()
    rude.close()

    assert idle.closed == ["politely"]
    assert busy.closed == ["at once"]
    assert polite.state is rude.state is SessionState.CLOSED


# Answers that come later ---------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_superseded_exchange_may_still_be_finished(nursery: trio.Nursery) -> None:
    stream = FakeStream()
    session = session_over(stream)
    superseded = trio.Event()

    async def exchange() -> None:
        with pytest.raises(SupersededError):
            await session.exchange(ask("key-1"))
        superseded.set()

    nursery.start_soon(exchange)
    await wait_all_tasks_blocked()
    session.supersede()
    await superseded.wait()
    assert not session.is_idle

    stream.say(answer_to(ask("key-1")))

    assert name_in(await session.exchange(ask("key-1"), is_sent=True)) == "key-1"
    assert session.is_idle


@in_virtual_time
async def test_half_an_answer_survives_a_superseded_exchange(nursery: trio.Nursery) -> None:
    stream = FakeStream()
    session = session_over(stream)
    answer = answer_to(ask("key-1"))
    stream.next_answer = (answer[:20],)

    async def exchange() -> None:
        with pytest.raises(SupersededError):
            await session.exchange(ask("key-1"))

    nursery.start_soon(exchange)
    await wait_all_tasks_blocked()
    session.supersede()
    await wait_all_tasks_blocked()
    stream.say(answer[20:])

    assert name_in(await session.exchange(ask("key-1"), is_sent=True)) == "key-1"


@in_virtual_time
async def test_an_exchange_that_expires_has_timed_out(nursery: trio.Nursery) -> None:
    session = session_over(FakeStream())
    failures = []

    async def exchange() -> None:
        try:
            await session.exchange(ask("key-1"))
        except BackendError as error:
            failures.append((error.stage, error.reason))

    nursery.start_soon(exchange)
    await wait_all_tasks_blocked()
    session.expire()
    await wait_all_tasks_blocked()

    assert failures == [(Stage.WAIT, "timeout")]
    assert not session.is_idle


@in_virtual_time
async def test_a_session_has_unread_data_until_it_is_closed() -> None:
    stream = FakeStream()
    session = session_over(stream)
    assert not session.has_unread_data()
    stream.say(b"x")
    assert session.has_unread_data()
    session.close()
    assert not session.has_unread_data()
