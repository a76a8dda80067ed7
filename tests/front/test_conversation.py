"""Conversations: the order of requests and answers, deadlines, and ends."""

import socket
import ssl
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio
from kmip_lab.tools.clients import Client
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.errors import StreamClosedError, TlsError
from gateway.front.admission import Admission
from gateway.front.turns import Share, Turns
from gateway.kmip import compose, ttlv
from gateway.kmip.messages import Response, Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from tests.kit.front import NO_CLIENT, Front, number_of, open_front, padded, request, until
from tests.kit.processes import Certificates
from tests.kit.settings import make_admission
from tests.kit.streams import TLS_1_2, TLS_1_3

pytestmark = pytest.mark.usefixtures("tls_ends_in")

VERSIONS: list[Version] = [(1, 0), (1, 4), (2, 0), (2, 1), (3, 0)]


#: Not through a TLS worker's relay: the bytes that it holds, and its waits, are tested in test_relay.
in_core = pytest.mark.parametrize("tls_ends_in", ["core"], indirect=True)


@pytest.fixture
async def front(certificates: Certificates) -> AsyncIterator[Front]:
    async with open_front(certificates) as front:
        yield front


@asynccontextmanager
async def error_then_end(client: Client) -> AsyncIterator[list[Response]]:
    """Expect, after the block, an answer, which is appended to the list, and then the end."""
    answers: list[Response] = []
    yield answers
    with trio.fail_after(5):
        answers.append(await client.read_response())
        assert await client.stream.receive_some() == b""


async def is_closed(client: Client) -> None:
    """Expect the end, and no bytes before it."""
    with suppress(StreamClosedError):
        assert await client.stream.receive_some() == b""


async def trickle(client: Client, data: bytes) -> None:
    """Send the bytes, with a second after each."""
    for byte in data:
        await client.stream.send_all(bytes([byte]))
        await trio.sleep(1)


async def all_answers(client: Client) -> list[Response]:
    """Return all answers until the end of the connection."""
    answers: list[Response] = []
    with trio.fail_after(5), suppress(StreamClosedError):
        while True:
            answers.append(await client.read_response())
    return answers


# Requests and answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_requests_are_answered_one_after_the_other(front: Front, version: Version) -> None:
    async with front.client() as client:
        for number in range(3):
            answer = await client.ask(request(number, version))
            assert number_of(answer) == number
            assert answer.version == version
    assert [bytes(asked.frame) for asked in front.dispatcher.asked] == [request(number, version) for number in range(3)]


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
async def test_pipelined_requests_are_answered_in_their_order(front: Front, version: str) -> None:
    async with front.client(version=version) as client:
        await client.stream.send_all(b"".join(request(number) for number in range(50)))
        assert [number_of(await client.read_response()) for number in range(50)] == list(range(50))


async def test_a_request_may_come_byte_by_byte(front: Front) -> None:
    async with front.client() as client:
        for byte in request(7):
            await client.stream.send_all(bytes([byte]))
        assert number_of(await client.read_response()) == 7


async def test_requests_may_be_cut_anywhere(front: Front) -> None:
    """Two requests arrive in two records, cut at every position."""
    both = request(1) + request(2)
    async with front.client() as client:
        for cut in range(1, len(both)):
            await client.stream.send_all(both[:cut])
            await client.stream.send_all(both[cut:])
            assert [number_of(await client.read_response()) for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("size", [16384, 16392, 1 << 20])
async def test_a_request_may_be_as_large_as_the_limit(front: Front, size: int) -> None:
    async with front.client() as client:
        assert number_of(await client.ask(padded(size, 5))) == 5
    assert len(front.dispatcher.asked[0].frame) == size


@pytest.mark.parametrize("size", [16384, 100_000, 1 << 20])
async def test_large_answers_arrive(front: Front, size: int) -> None:
    front.dispatcher.answer_size = size
    async with front.client() as client:
        answer = await client.ask(request())
        assert len(answer.frame) > size


async def test_a_batch_is_one_request(front: Front) -> None:
    async with front.client() as client:
        answer = await client.ask(request(3, operations=[Operation.GET, Operation.LOCATE]))
        assert [item.operation for item in answer.items] == [Operation.GET, Operation.LOCATE]
    assert front.count("requests_total", operation="Batch", result="success", protocol_version="1.2") == 1


async def test_answers_are_counted_by_operation_result_and_version(front: Front) -> None:
    async with front.client() as client:
        await client.ask(request(version=(1, 4)))
    assert front.count("requests_total", operation="Get", result="success", protocol_version="1.4") == 1
    assert front.count("client_requests_per_connection_sum") == 1


async def test_a_client_that_half_closes_after_its_request_is_answered(front: Front) -> None:
    async with front.client() as client:
        await client.stream.send_all(request(4))
        client.stream.connection.shutdown()
        client.stream._socket.shutdown(socket.SHUT_WR)
        assert number_of(await client.read_response()) == 4
        assert await client.stream.receive_some() == b""
    await until(lambda: front.clients == 0)
    assert front.errors == {}


# Turns ----------------------------------------------------------------------------------------------------------------


def with_steady_clock(admission: Admission) -> Admission:
    """Stop the clock of turns, so that a busy machine does not end a tick early."""
    admission.turns = Turns(clock=lambda: 0.0)
    return admission


async def test_principal_with_one_connection_passes_a_busy_principal(
    certificates: Certificates,
) -> None:
    """All requests arrive in the same tick; their conversations run in random order."""
    admission = with_steady_clock(make_admission())
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as clients:
        busy = [await clients.enter_async_context(front.client()) for _ in range(40)]
        calm = await clients.enter_async_context(front.client("bob"))
        for round_ in range(5):
            front.dispatcher.asked.clear()
            for number, client in enumerate(busy):
                assert client.stream.send_now(request(number))
            assert calm.stream.send_now(request(1000))
            assert number_of(await calm.read_response()) == 1000
            places = [asked.items[0].unique_batch_item_id for asked in front.dispatcher.asked]
            assert places.index((1000).to_bytes(8, "big")) <= 20, round_
            for number, client in enumerate(busy):
                assert number_of(await client.read_response()) == number


async def test_pipelined_requests_of_one_record_take_a_turn_each(certificates: Certificates) -> None:
    """Refusals do not wait, so that all requests of a record could be answered in one step."""
    admission = with_steady_clock(make_admission(max_requests=0))
    async with (
        open_front(certificates, admission=admission) as front,
        front.client() as busy,
        front.client("bob") as calm,
    ):
        for _ in range(5):
            before = sum(front.refusals.values())
            assert busy.stream.send_now(b"".join(request(number) for number in range(100)))
            assert calm.stream.send_now(request(1000))
            assert number_of(await calm.read_response()) == 1000
            assert sum(front.refusals.values()) - before <= 40
            assert [number_of(await busy.read_response()) for _ in range(100)] == list(range(100))


async def test_a_request_that_waits_for_its_turn_is_answered_in_a_drain(certificates: Certificates) -> None:
    admission = with_steady_clock(make_admission())
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as clients:
        busy = [await clients.enter_async_context(front.client()) for _ in range(30)]
        for client in busy:
            await client.ask(request())
        front.dispatcher.asked.clear()
        for number, client in enumerate(busy):
            assert client.stream.send_now(request(number))
        while not front.dispatcher.asked:
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()  # every conversation has run
        assert len(front.dispatcher.asked) < 30
        front.drain()
        for number, client in enumerate(busy):
            assert number_of(await client.read_response()) == number


# Ends that are no errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("polite", [True, False])
async def test_a_connection_without_a_request_is_not_an_error(front: Front, version: str, *, polite: bool) -> None:
    """Some clients check the port from time to time; in TLS 1.3 a close with unread tickets is a reset."""
    async with front.client(version=version) as client:
        await wait_all_tasks_blocked(0.01)
        if not polite:
            client.stream.close()
    await until(lambda: front.clients == 0 and front.count("client_requests_per_connection_count") == 1)
    assert front.count("client_requests_per_connection_bucket", le="0.0") == 1
    assert front.errors == {}
    assert front.log.entries == []


async def test_a_client_may_be_idle_for_an_hour_and_no_longer(certificates: Certificates, clock: MockClock) -> None:
    async with open_front(certificates) as front, front.client() as client:
        await client.ask(request())
        began = clock.current_time()
        await trio.sleep(3599)
        await client.ask(request())
        await is_closed(client)
        assert clock.current_time() - began == pytest.approx(3599 + 3600, abs=1)
    assert front.errors == {}


# Deadlines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 8, 100])
async def test_half_a_request_has_its_deadline(certificates: Certificates, clock: MockClock, size: int) -> None:
    async with open_front(certificates) as front, front.client() as client:
        began = clock.current_time()
        await client.stream.send_all(request()[:size])
        await is_closed(client)
        assert clock.current_time() - began == pytest.approx(10, abs=0.5)
    assert front.errors == {"reading_timeout": 1}


async def test_half_a_request_behind_a_whole_one_has_its_deadline(certificates: Certificates, clock: MockClock) -> None:
    async with open_front(certificates) as front, front.client() as client:
        began = clock.current_time()
        await client.stream.send_all(request(1) + request(2)[:20])
        assert number_of(await client.read_response()) == 1
        await is_closed(client)
        assert clock.current_time() - began == pytest.approx(10, abs=0.5)
    assert front.errors == {"reading_timeout": 1}


async def test_a_byte_a_second_does_not_stretch_the_deadline(certificates: Certificates, clock: MockClock) -> None:
    async with open_front(certificates) as front, front.client() as client:
        began = clock.current_time()
        with pytest.raises(StreamClosedError):
            await trickle(client, request())
        assert 10 <= clock.current_time() - began < 15
    assert front.errors == {"reading_timeout": 1}
    assert front.dispatcher.asked == []


async def test_a_client_that_never_reads_has_its_deadline(certificates: Certificates, clock: MockClock) -> None:
    async with open_front(certificates) as front, front.client() as client:
        front.dispatcher.answer_size = 1 << 20
        began = clock.current_time()
        await client.stream.send_all(b"".join(request(number) for number in range(50)))
        await trio.sleep(9)
        assert front.errors == {}
        await trio.sleep(2)
        assert front.errors == {"sending_timeout": 1}
        assert clock.current_time() - began < 12
        assert front.dispatcher.answered < 20  # the answers fit into the kernel's buffers


@in_core
async def test_an_answer_may_take_its_time(certificates: Certificates, clock: MockClock) -> None:
    """Only the dispatcher limits the time of an answer."""
    async with open_front(certificates) as front, front.client() as client, trio.open_nursery() as nursery:
        front.dispatcher.close_gate()
        nursery.start_soon(client.stream.send_all, request(9))
        await trio.sleep(5000)
        front.dispatcher.gate.set()
        assert number_of(await client.read_response()) == 9
        assert clock.current_time() >= 5000


# Refused requests and clients -----------------------------------------------------------------------------------------

GET = request(1, (1, 4))
GET_2_1 = request(1, (2, 1))


def with_bytes(frame: bytes, position: int, new: bytes) -> bytes:
    return frame[:position] + new + frame[position + len(new) :]


REFUSED: dict[str, tuple[bytes, Version, int]] = {
    "garbage": (bytes(range(64)), (1, 0), ResultReason.INVALID_MESSAGE),
    "a response": (with_bytes(GET, 0, b"\x42\x00\x7b"), (1, 0), ResultReason.INVALID_MESSAGE),
    "an odd length": (with_bytes(GET, 7, b"\x01"), (1, 0), ResultReason.INVALID_MESSAGE),
    "four gibibytes": (with_bytes(GET, 4, b"\xff\xff\xff\xf8"), (1, 0), ResultReason.INVALID_MESSAGE),
    "one byte over": (with_bytes(GET, 4, struct.pack(">I", 1 << 20)), (1, 0), ResultReason.INVALID_MESSAGE),
    "HTTP": (b"POST /kmip HTTP/1.1\r\nHost: gateway\r\n\r\n", (1, 0), ResultReason.INVALID_MESSAGE),
    "an operation of another type": (
        GET.replace(b"\x42\x00\x5c\x05", b"\x42\x00\x5c\x02"),
        (1, 4),
        ResultReason.INVALID_MESSAGE,
    ),
    "the same in 2.1": (GET_2_1.replace(b"\x42\x00\x5c\x05", b"\x42\x00\x5c\x02"), (2, 1), ResultReason.CODEC_ERROR),
    "a wrong count": (
        GET.replace(ttlv.integer(Tag.BATCH_COUNT, 1), ttlv.integer(Tag.BATCH_COUNT, 2)),
        (1, 4),
        ResultReason.INVALID_MESSAGE,
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_invalid_message_is_answered_and_the_connection_closed(front: Front, what: str) -> None:
    sent, version, reason = REFUSED[what]
    async with front.client() as client:
        await client.ask(request())
        async with error_then_end(client) as answers:
            await client.stream.send_all(sent)
    (answer,) = answers
    (item,) = answer.items
    assert answer.version == version
    assert (item.operation, item.status, item.reason) == (-1, ResultStatus.OPERATION_FAILED, reason)
    assert len(front.dispatcher.asked) == 1
    assert front.errors == {"protocol": 1}
    assert sum(front.refusals.values()) == 1


async def test_error_for_http_names_http(front: Front) -> None:
    async with front.client() as client, error_then_end(client) as answers:
        await client.stream.send_all(REFUSED["HTTP"][0])
    assert "HTTP" in (answers[0].items[0].message or "")


async def test_too_large_a_request_is_refused_by_its_head_alone(front: Front) -> None:
    """The answer arrives although the client goes on sending bytes that are not read."""
    async with front.client() as client:
        await client.stream.send_all(with_bytes(GET, 4, struct.pack(">I", 1 << 20)))
        answer = await client.read_response()
        assert "limit" in (answer.items[0].message or "")
        await client.stream.send_all(bytes(200_000))
    assert front.refusals == {"too_large": 1}


@pytest.mark.parametrize(
    ("version", "reason"),
    [((1, 4), ResultReason.INVALID_MESSAGE), ((2, 1), ResultReason.SERVER_LIMIT_EXCEEDED)],
)
async def test_a_request_of_too_many_fields_is_refused_in_its_own_version(
    front: Front, version: Version, reason: ResultReason
) -> None:
    payload = ttlv.octets(Tag.DATA, b"") * 130_000
    flood = compose.encode_request(version, [compose.Ask(Operation.ENCRYPT, payload)])
    async with front.client() as client, error_then_end(client) as answers:
        await client.stream.send_all(flood)
    assert (answers[0].version, answers[0].items[0].reason) == (version, reason)
    assert "5000 fields" in (answers[0].items[0].message or "")
    assert front.refusals == {"too_large": 1}
    assert front.dispatcher.asked == []


@in_core
async def test_a_request_of_many_structures_is_decoded_in_turns(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other conversations may run between the turns."""
    taken: list[Share] = []
    take = Turns.take

    def count(turns: Turns, share: Share) -> Awaitable[None] | None:
        taken.append(share)
        return take(turns, share)

    monkeypatch.setattr(Turns, "take", count)
    request = compose.encode_request((1, 4), [compose.Ask(Operation.ENCRYPT, ttlv.structure(Tag.DATA) * 4900)])
    reads = len(request) // 16384 + 2
    async with front.client() as client:
        await client.stream.send_all(request)
        await client.read_response()
    assert len(taken) >= reads + 4900 // 250


@pytest.mark.parametrize("cut", [1, 7, 8, 20, len(GET) - 1])
async def test_client_that_half_closes_within_a_request_gets_an_error(front: Front, cut: int) -> None:
    async with front.client() as client, error_then_end(client) as answers:
        await client.stream.send_all(GET[:cut])
        client.stream.connection.shutdown()
    assert answers[0].items[0].reason == ResultReason.INVALID_MESSAGE
    assert front.errors == {"protocol": 1}
    assert front.dispatcher.asked == []


async def test_request_after_garbage_is_ignored(front: Front) -> None:
    async with front.client() as client, error_then_end(client) as answers:
        await client.stream.send_all(request(1) + bytes(64) + request(2))
        assert number_of(await client.read_response()) == 1
    assert answers[0].items[0].reason == ResultReason.INVALID_MESSAGE
    assert len(front.dispatcher.asked) == 1


async def test_a_broken_record_ends_the_connection(front: Front) -> None:
    async with front.client() as client:
        client.stream._socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(TlsError):
            await client.stream.receive_some()
    await until(lambda: front.errors == {"client_closed": 1})


@pytest.mark.parametrize("version", VERSIONS)
async def test_client_without_identity_gets_an_error(certificates: Certificates, version: Version) -> None:
    asked = request(1, version, operations=[Operation.GET, Operation.DESTROY])
    async with open_front(certificates, match=NO_CLIENT) as front, front.client() as client:
        async with error_then_end(client) as answers:
            await client.stream.send_all(asked)
        (answer,) = answers
        assert answer.version == version
        assert [item.operation for item in answer.items] == [Operation.GET, Operation.DESTROY]
        assert {item.reason for item in answer.items} == {ResultReason.AUTHENTICATION_NOT_SUCCESSFUL}
        assert {item.unique_batch_item_id for item in answer.items} == {bytes([0] * 7 + [1])}
    assert front.errors == {"not_authenticated": 1}
    assert front.refusals == {"not_authenticated": 1}
    assert front.count("local_errors_total", identity="unidentified", reason="not_authenticated") == 1
    assert front.count("identity_requests_total", identity="unidentified", result="gateway_error") == 1
    assert front.count("identity_connections", identity="unidentified") == 0
    assert front.dispatcher.asked == []


async def test_silent_client_without_identity_is_closed_after_3_s(certificates: Certificates, clock: MockClock) -> None:
    async with open_front(certificates, match=NO_CLIENT) as front, front.client() as client:
        await is_closed(client)
        assert 2.5 < clock.current_time() < 5
    assert front.errors == {"not_authenticated": 1}
    assert front.count("limit_rejections_total", limit="max_clients") == 0


async def test_silent_client_over_max_clients_is_closed_after_3_s(certificates: Certificates, clock: MockClock) -> None:
    admission = make_admission(max_clients=1)
    async with open_front(certificates, admission=admission) as front, front.client(), front.client() as client:
        await is_closed(client)
        assert 2.5 < clock.current_time() < 5
    assert front.errors == {"limit": 1}
    assert front.count("limit_rejections_total", limit="max_clients") == 1


async def test_refused_client_that_sends_slowly_is_closed_after_3_s(
    certificates: Certificates, clock: MockClock
) -> None:
    async def drip(client: Client) -> None:
        with suppress(StreamClosedError):
            for byte in request():
                await client.stream.send_all(bytes([byte]))
                await trio.sleep(1)

    async with (
        open_front(certificates, match=NO_CLIENT) as front,
        front.client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(drip, client)
        await is_closed(client)
        assert clock.current_time() < 5
        nursery.cancel_scope.cancel()
    assert front.errors == {"not_authenticated": 1}


@pytest.mark.parametrize(("max_requests", "answered"), [(0, 0), (1, 3)])
async def test_answered_request_is_not_kept_in_memory(
    certificates: Certificates, max_requests: int, answered: int
) -> None:
    admission = make_admission(max_requests=max_requests)
    async with open_front(certificates, admission=admission) as front, front.client() as client:
        for number in range(3):
            assert number_of(await client.ask(padded(100_000, number))) == number
            await wait_all_tasks_blocked(0.01)
            assert admission.buffered == 0
            assert all(
                sys.getrefcount(asked) == 3 for asked in front.dispatcher.asked
            )  # the dispatcher's, and two for the question
    assert front.dispatcher.answered == answered


@in_core
@pytest.mark.parametrize("most", [3, 10])
async def test_unread_answers_are_held_up_to_a_limit(
    certificates: Certificates,
    most: int,
    clock: MockClock,  # noqa: ARG001 - pytest-trio uses the clock of an argument only
) -> None:
    """At the limit a client that reads no answers is closed; clients that read theirs are served."""
    admission = make_admission(max_buffered=(most * (8 << 20) + (1 << 20)) * 5 // 4)  # a client may hold 4/5 of them
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as clients:
        front.dispatcher.answer_size = 8 << 20
        for number in range(5):
            client = await clients.enter_async_context(front.client())
            await client.stream.send_all(padded(100_000))
            await until(lambda: front.dispatcher.answered > number)  # noqa: B023 - it is over before the next
            await wait_all_tasks_blocked(0.01)
        held = min(most, 5)
        assert held * (8 << 20) < admission.buffered < held * (8 << 20) + (1 << 20)
        assert front.count("limit_rejections_total", limit="principal_max_buffered") == 5 - held
        assert front.errors == ({"unread": 5 - held} if held < 5 else {})
        front.dispatcher.answer_size = 100
        async with front.client() as client:
            assert number_of(await client.ask(request(7))) == 7
        await trio.sleep(11)
        assert admission.buffered == 0


@in_core
async def test_client_that_fills_its_share_leaves_room_for_another(certificates: Certificates) -> None:
    admission = make_admission(max_buffered=8 << 20)
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as clients:
        for number in range(1, 8):
            client = await clients.enter_async_context(front.client())
            await client.stream.send_all(padded(1 << 20)[:1_000_000])
            await until(lambda: admission.buffered >= min(6, number) * 1_000_000)  # noqa: B023 - as above
        await until(lambda: front.count("limit_rejections_total", limit="principal_max_buffered") == 1)
        async with front.client("bob") as calm:
            assert number_of(await calm.ask(padded(20_000, 7))) == 7
            assert number_of(await calm.ask(padded(800_000, 8))) == 8
        assert front.count("limit_rejections_total", limit="max_buffered") == 0


@in_core
async def test_requests_above_1_kib_are_counted_as_held(certificates: Certificates) -> None:
    admission = make_admission()
    async with open_front(certificates, admission=admission) as front:
        front.dispatcher.close_gate()
        async with front.client() as first, front.client() as second:
            await first.stream.send_all(padded(2048))
            await until(lambda: admission.buffered == 2048)
            await second.stream.send_all(request() + padded(8000))
            await until(lambda: admission.buffered == 2048 + len(request()) + 8000)
            front.dispatcher.gate.set()
            await until(lambda: admission.buffered == 0)


@in_core
@pytest.mark.parametrize("end", ["answered", "left", "cut", "refused"])
async def test_held_bytes_are_released_at_the_end(certificates: Certificates, end: str) -> None:
    admission = make_admission()
    async with open_front(certificates, admission=admission) as front:
        front.dispatcher.close_gate()
        async with front.client() as client:
            await client.stream.send_all(padded(100_000)[: 50_000 if end in ("left", "cut") else 100_000])
            await until(lambda: admission.buffered >= 50_000)
            if end == "left":
                client.stream.connection.shutdown()
            elif end == "cut":
                client.stream.close()
            front.dispatcher.fault = ZeroDivisionError() if end == "refused" else None
            front.dispatcher.gate.set()
        assert admission.buffered == 0
        assert admission.clients == 0


async def test_client_is_rejected_once_its_certificate_expires(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    async with front.client() as client:
        await client.ask(request())
        a_year_on = time.time() + 366 * 86400
        monkeypatch.setattr("time.time", lambda: a_year_on)
        async with error_then_end(client) as answers:
            await client.stream.send_all(request())
    assert answers[0].items[0].reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
    assert "not valid" in (answers[0].items[0].message or "")
    assert front.errors == {"not_authenticated": 1}


# Drain ----------------------------------------------------------------------------------------------------------------


async def test_drain_ends_idle_clients_at_once(front: Front) -> None:
    async with front.client() as client, front.client() as fresh:
        await client.ask(request())
        front.drain()
        with trio.fail_after(5):
            for each in (client, fresh):
                assert await each.stream.receive_some() == b""
    assert front.errors == {}


async def test_drain_lets_a_request_that_is_begun_be_read_and_answered(front: Front) -> None:
    async with front.client() as client:
        await client.stream.send_all(request(1)[:20])
        await until(lambda: front.is_reading)
        front.drain()
        async with error_then_end(client) as answers:
            await client.stream.send_all(request(1)[20:])
    assert number_of(answers[0]) == 1


async def test_drain_lets_a_request_that_has_just_arrived_be_answered(front: Front) -> None:
    async with front.client() as client:
        await client.ask(request())
        assert client.stream.send_now(request(1)) == len(request(1))
        front.drain()  # in the same step: nothing has read the request yet
        async with error_then_end(client) as answers:
            pass
    assert number_of(answers[0]) == 1


async def test_drain_lets_a_request_in_flight_be_answered(front: Front) -> None:
    front.dispatcher.close_gate()
    async with front.client() as client:
        await client.stream.send_all(request(1))
        await until(lambda: front.served.requests_in_flight == 1)
        front.drain()
        await wait_all_tasks_blocked(0.01)
        assert front.served.requests_in_flight == 1
        async with error_then_end(client) as answers:
            front.dispatcher.gate.set()
    assert number_of(answers[0]) == 1
    assert front.dispatcher.answered == 1


async def test_drain_does_not_begin_pipelined_requests(front: Front) -> None:
    front.dispatcher.close_gate()
    async with front.client() as client:
        await client.stream.send_all(request(1) + request(2) + request(3))
        await until(lambda: front.served.requests_in_flight == 1)
        front.drain()
        async with error_then_end(client) as answers:
            front.dispatcher.gate.set()
    assert number_of(answers[0]) == 1
    assert len(front.dispatcher.asked) == 1


async def test_drain_does_not_cut_an_answer_in_two(front: Front) -> None:
    front.dispatcher.answer_size = 1 << 20
    async with front.client() as client:
        await client.stream.send_all(b"".join(request(number) for number in range(10)))
        await until(lambda: front.is_sending)
        front.drain()
        answers = await all_answers(client)
    assert [number_of(answer) for answer in answers] == list(range(front.dispatcher.answered))


# Clients that leave ---------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_does_not_cancel_its_request(front: Front) -> None:
    front.dispatcher.close_gate()
    async with front.client() as client:
        await client.stream.send_all(request())
        await until(lambda: front.served.requests_in_flight == 1)
        client.stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.stream.close()
        await wait_all_tasks_blocked(0.01)
        assert front.served.requests_in_flight == 1
        front.dispatcher.gate.set()
    assert front.dispatcher.answered == 1
    assert front.errors == {"client_closed": 1}


@pytest.mark.parametrize(("early", "expected"), [(0.1, {True}), (0.0, {True, False}), (-0.1, {False})])
async def test_the_last_bytes_and_the_deadline_may_coincide(
    certificates: Certificates, clock: MockClock, early: float, expected: set[bool]
) -> None:
    """Either the request is dispatched and answered, or it is not dispatched at all."""
    async with open_front(certificates) as front, front.client() as client:
        await client.stream.send_all(request(1)[:-8])
        await wait_all_tasks_blocked(0.01)
        began = clock.current_time()
        await trio.sleep(10 - early)
        answered = True
        try:
            assert number_of(await client.ask(request(1)[-8:])) == 1
        except StreamClosedError:
            answered = False
        assert answered in expected
        assert clock.current_time() - began < 11
    assert (len(front.dispatcher.asked), front.dispatcher.answered) == (answered, answered)


async def test_a_plain_client_of_the_standard_library_is_served(front: Front) -> None:
    context = ssl.create_default_context(cafile=str(front.certificates.path("gateway_ca.pem")))
    context.load_cert_chain(*front.certificates.client("alice"))

    def talk() -> bytes:
        with (
            socket.create_connection((front.address.host, front.address.port), timeout=5) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as talking,
        ):
            talking.sendall(request(6))
            return talking.recv(65536)

    answer = await trio.to_thread.run_sync(talk)
    assert answer.startswith(b"\x42\x00\x7b\x01")
