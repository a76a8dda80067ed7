"""Marks: put on and taken off without a trace, good for one client, one backend and one value, and for nothing else."""

import hmac
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Address
from gateway.identity import Identity, OwnNames, Principal
from gateway.kmip import binding, compose, ttlv
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.policy import Refusal
from gateway.upstream.backend import Backend
from gateway.upstream.fleet import ConfiguredBackend
from gateway.upstream.marks import SIZE, Marks
from gateway.upstream.slots import Slots
from tests.kit.messages import (
    Letter,
    authentication,
    batch_item,
    letters,
    operation,
    payload,
    request,
    ticket_credential,
)

KEY, OTHER_KEY = bytes(32), b"\1" * 32
BACKENDS = ("atlanta", "london")


def client(subject: str = "CN=alice", identity: str = "apps", issuer: str = "CN=ca") -> Principal:
    return Principal(Identity(identity, shared=True), issuer, subject, 0, 10.0)


ANY = decode_request(request(batch_item(operation())))  # the request, if only the answer matters
ALICE, BOB, STRANGER, NAMESAKE = client(), client("CN=bob"), client(identity="others"), client(issuer="CN=other ca")


def pending(value: bytes = b"later") -> Response:
    result = compose.Result(ResultStatus.OPERATION_PENDING, Operation.CREATE, asynchronous_correlation_value=value)
    return decode_response(compose.encode_response((2, 1), [result]))


def part(value: bytes = b"stream", number: int = Operation.ENCRYPT) -> Response:
    result = compose.Result(ResultStatus.SUCCESS, number, payload=ttlv.octets(Tag.CORRELATION_VALUE, value))
    return decode_response(compose.encode_response((2, 1), [result]))


def login(number: int = Operation.LOGIN) -> Response:
    ticket = ttlv.structure(Tag.TICKET, ttlv.enumeration(Tag.TICKET_TYPE, 1), ttlv.octets(Tag.TICKET_VALUE, b"mine"))
    return decode_response(
        compose.encode_response((2, 1), [compose.Result(ResultStatus.SUCCESS, number, payload=ticket)])
    )


def poll(*values: bytes, most: int | None = None) -> Request:
    items = [
        batch_item(operation(Operation.POLL), payload(ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, value)))
        for value in values
    ]
    header = [] if most is None else [ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, most)]
    return decode_request(request(*items, version=(2, 1), header=header))


def next_part(value: bytes) -> Request:
    correlated = payload(ttlv.octets(Tag.CORRELATION_VALUE, value))
    return decode_request(request(batch_item(operation(Operation.ENCRYPT), correlated), version=(2, 1)))


def with_ticket(value: bytes) -> Request:
    return decode_request(
        request(batch_item(operation()), version=(2, 1), header=[authentication(ticket_credential(value))])
    )


def put(marks: Marks, response: Response, principal: Principal, backend: str) -> bytes:
    """Return the frame of an answer with marks."""
    return marks.put(response, binding.given(response, ANY), principal, backend)


def marked(marks: Marks, value: bytes = b"later", principal: Principal = ALICE, backend: str = "atlanta") -> bytes:
    """Return the marked asynchronous correlation value of a pending request."""
    answer = decode_response(put(marks, pending(value), principal, backend))
    return answer.items[0].asynchronous_correlation_value or b""


def refusal(
    marks: Marks, read: Request, principal: Principal = ALICE, backends: Collection[str] = BACKENDS
) -> Refusal | None:
    return marks.take(read, principal, backends).refusal


@pytest.mark.parametrize("value", [b"", b"later", b"x" * 8, b"y" * 1000])
def test_a_value_comes_back_as_it_was_given_and_names_its_backend(value: bytes) -> None:
    marks = Marks([KEY])

    taken = marks.take(poll(marked(marks, value)), ALICE, BACKENDS)

    assert taken.request.frame == poll(value).frame
    assert (taken.backend, taken.refusal) == ("atlanta", None)


def test_a_mark_adds_sixteen_bytes_and_changes_nothing_else() -> None:
    before = pending().frame

    after = put(Marks([KEY]), pending(), ALICE, "atlanta")

    assert (SIZE, len(after) - len(before)) == (16, 16)
    value = after[-24:]
    assert ttlv.splice(after, {len(after) - 24: value[16 : 16 + 5]}) == before


def test_another_gateway_with_the_same_key_accepts_the_mark() -> None:
    taken = Marks([KEY]).take(poll(marked(Marks([KEY]))), ALICE, ("london", "atlanta", "paris"))

    assert taken.backend == "atlanta"


def test_keys_can_be_changed_in_two_steps() -> None:
    """Add the new key behind the old, then put it first, then remove the old key."""
    old, both = Marks([KEY]), Marks([OTHER_KEY, KEY])

    assert both.take(poll(marked(old)), ALICE, BACKENDS).backend == "atlanta"
    assert Marks([KEY, OTHER_KEY]).take(poll(marked(both)), ALICE, BACKENDS).backend == "atlanta"
    assert refusal(old, poll(marked(both))) is Refusal.UNKNOWN_ASYNCHRONOUS_VALUE


@pytest.mark.parametrize("principal", [BOB, STRANGER, NAMESAKE])
def test_a_mark_is_good_for_its_client_only(principal: Principal) -> None:
    marks = Marks([KEY])
    assert refusal(marks, poll(marked(marks)), principal) is Refusal.UNKNOWN_ASYNCHRONOUS_VALUE


def test_a_mark_is_good_for_its_minted_names_only() -> None:
    alice, alias = (ALICE._replace(names=OwnNames(f"apps/{digest}", b"")) for digest in ("01", "02"))
    value = marked(Marks([KEY]), principal=alice)
    assert refusal(Marks([KEY]), poll(value), alice) is None
    assert refusal(Marks([KEY]), poll(value), alias) is Refusal.UNKNOWN_ASYNCHRONOUS_VALUE


def test_a_mark_is_good_for_its_value_and_kind_only() -> None:
    marks = Marks([KEY])
    mark = marked(marks)[:SIZE]

    assert refusal(marks, poll(mark + b"other")) is Refusal.UNKNOWN_ASYNCHRONOUS_VALUE
    assert refusal(marks, next_part(mark + b"later")) is Refusal.UNKNOWN_CORRELATION_VALUE
    assert refusal(marks, with_ticket(mark + b"later")) is Refusal.UNKNOWN_TICKET


def test_a_valid_mark_of_an_unknown_backend_is_no_forgery() -> None:
    """The backend's address may come back, so that the client should try again; with a ticket, it can log in again."""
    marks = Marks([KEY])
    gone = "kms/192.0.2.1"
    ticket = ticket_in(put(marks, login(), ALICE, gone))

    assert refusal(marks, poll(marked(marks, backend=gone))) is Refusal.NO_BACKEND
    assert refusal(marks, poll(marked(marks, backend=gone), marked(marks))) is Refusal.SEVERAL_BACKENDS
    assert refusal(marks, with_ticket(ticket)) is Refusal.UNKNOWN_TICKET


def test_a_mark_of_an_address_outlives_the_addresses_beside_it() -> None:
    def build(name: str, _address: Address) -> Backend:
        return Backend(name, Slots(1), {})

    member, marks = ConfiguredBackend("kms", Address("kms.example.com", 5696), build, addresses="auto"), Marks([KEY])
    member.update(["192.0.2.1"])
    alone = poll(marked(marks, backend=member.backends["192.0.2.1"].stable_id))
    member.update(["192.0.2.1", "192.0.2.2"])
    beside = poll(marked(marks, backend=member.backends["192.0.2.1"].stable_id))

    def names() -> list[str]:
        return [one.stable_id for one in member.backends.values()]

    assert refusal(marks, alone, backends=names()) is None
    member.update(["192.0.2.1"])
    assert refusal(marks, beside, backends=names()) is None


def test_the_same_value_many_times_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    marks, names = Marks([KEY, OTHER_KEY]), [f"kms-{number}" for number in range(20)]
    value = ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, marked(marks, b"", backend=names[-1]))
    item = batch_item(operation(Operation.QUERY_ASYNCHRONOUS_REQUESTS), payload(value * 5_000))
    read = decode_request(request(item, version=(2, 1)))
    calls, digest = [], hmac.digest

    def counted(*arguments: Any) -> bytes:
        calls.append(arguments)
        return digest(*arguments)

    monkeypatch.setattr(hmac, "digest", counted)

    assert marks.take(read, ALICE, names).backend == names[-1]
    assert len(calls) < 1000


def test_a_mark_with_one_wrong_bit_or_cut_short_is_refused() -> None:
    """If it is cut within its first four bytes, it is no mark: the key manager refuses the value."""
    marks = Marks([KEY])
    whole = marked(marks)

    for bit in range(8 * 4, 8 * len(whole)):
        bent = (int.from_bytes(whole, "big") ^ 1 << 8 * len(whole) - 1 - bit).to_bytes(len(whole), "big")
        assert refusal(marks, poll(bent)) is Refusal.UNKNOWN_ASYNCHRONOUS_VALUE
    for length in range(4, len(whole)):
        assert refusal(marks, poll(whole[:length])) is Refusal.UNKNOWN_ASYNCHRONOUS_VALUE
    for length in range(4):
        assert marks.take(poll(whole[:length]), ALICE, BACKENDS).request.frame == poll(whole[:length]).frame


def test_a_value_without_a_mark_passes_unchanged() -> None:
    read = poll(b"from before")

    assert Marks([KEY]).take(read, ALICE, BACKENDS) == (read, "", None, False)


def test_a_batch_may_use_the_values_of_one_backend_and_not_of_two() -> None:
    marks = Marks([KEY])
    one, same, other = marked(marks, b"1"), marked(marks, b"2"), marked(marks, b"3", backend="london")

    taken = marks.take(poll(one, same, b"bare"), ALICE, BACKENDS)
    assert (taken.request.frame, taken.backend) == (poll(b"1", b"2", b"bare").frame, "atlanta")
    assert refusal(marks, poll(one, other)) is Refusal.SEVERAL_BACKENDS


def test_streams_are_marked_part_by_part() -> None:
    marks = Marks([KEY])
    frame = put(marks, part(), ALICE, "london")
    value = decode_response(frame).items[0].correlation_value or b""

    taken = marks.take(next_part(value), ALICE, BACKENDS)

    assert (taken.request.frame, taken.backend) == (next_part(b"stream").frame, "london")


def ticket_in(frame: bytes) -> bytes:
    at = frame.index(b"kgw")
    return frame[at : at + SIZE + 4]


def test_a_ticket_is_good_for_its_client_only() -> None:
    marks = Marks([KEY])
    ticket = ticket_in(put(marks, login(), ALICE, "london"))

    taken = marks.take(with_ticket(ticket), ALICE, BACKENDS)

    assert (taken.request.frame, taken.backend) == (with_ticket(b"mine").frame, "london")
    assert refusal(marks, with_ticket(ticket), BOB) is Refusal.UNKNOWN_TICKET


def test_a_ticket_for_others_is_good_for_others_of_the_same_identity() -> None:
    marks = Marks([KEY])
    ticket = ticket_in(put(marks, login(Operation.DELEGATED_LOGIN), ALICE, "london"))

    assert marks.take(with_ticket(ticket), BOB, BACKENDS).backend == "london"
    assert refusal(marks, with_ticket(ticket), STRANGER) is Refusal.UNKNOWN_TICKET


def test_room_is_left_in_the_maximum_response_size_for_each_item() -> None:
    taken = Marks([KEY]).take(poll(b"1", b"2", most=1000), ALICE, BACKENDS, leave_room=True)
    assert taken.request.frame == poll(b"1", b"2", most=1000 - 2 * SIZE).frame

    assert Marks([KEY]).take(poll(b"1", most=1000), ALICE, BACKENDS).request.maximum_response_size == 1000


@pytest.mark.parametrize("most", [0, 3, SIZE])
def test_a_small_maximum_response_size_is_not_lowered_to_zero(most: int) -> None:
    taken = Marks([KEY]).take(poll(b"1", most=most), ALICE, BACKENDS, leave_room=True)
    assert taken.request.maximum_response_size == most


@given(letters, st.binary(max_size=40))
def test_any_request_can_be_searched_for_marks(letter: Letter, noise: bytes) -> None:
    """No request that decodes raises an error."""
    read = decode_request(letter.encode())

    taken = Marks([KEY]).take(read, ALICE, BACKENDS, leave_room=True)

    assert taken.refusal is None or b"kgw" in read.frame
    assert Marks([KEY]).take(poll(noise), ALICE, BACKENDS).request.frame == poll(noise).frame or b"kgw" in noise
