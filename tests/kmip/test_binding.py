"""Correlation values and tickets are found at every place that a key manager reads, and at no other place."""

import pytest
from hypothesis import given as with_any

from gateway.kmip import compose, ttlv
from gateway.kmip.binding import ValueKind, ValueSpan, given, presented
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Operation, ResultStatus, Tag
from tests.kit.messages import (
    Letter,
    authentication,
    batch_item,
    credential,
    identifier,
    letters,
    operation,
    payload,
    raw,
    request,
    ticket_credential,
)

LATER = ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, b"later")
STREAM = ttlv.octets(Tag.CORRELATION_VALUE, b"stream")
TICKET = ttlv.structure(Tag.TICKET, ttlv.enumeration(Tag.TICKET_TYPE, 1), ttlv.octets(Tag.TICKET_VALUE, b"mine"))
LIST = ttlv.structure(0x42016A, LATER, ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, b"too"))


def asked(number: int, *fields: bytes) -> Request:
    return decode_request(request(batch_item(operation(number), payload(*fields)), version=(2, 1)))


def answered(number: int, *fields: bytes, pending: bytes | None = None) -> Response:
    status = ResultStatus.SUCCESS if pending is None else ResultStatus.OPERATION_PENDING
    result = compose.Result(status, number, payload=b"".join(fields), asynchronous_correlation_value=pending)
    return decode_response(compose.encode_response((2, 1), [result]))


def texts(frame: bytes, values: list[ValueSpan]) -> list[tuple[ValueKind, bytes]]:
    return [(value.kind, frame[value.start : value.end]) for value in values]


def shown(read: Request) -> list[tuple[ValueKind, bytes]]:
    return texts(read.frame, presented(read))


def got(read: Response) -> list[tuple[ValueKind, bytes]]:
    return texts(read.frame, given(read, asked(read.items[0].operation)))


@pytest.mark.parametrize("number", [Operation.POLL, Operation.CANCEL, Operation.PROCESS])
def test_a_poll_and_its_kind_show_the_asynchronous_value(number: int) -> None:
    assert shown(asked(number, LATER)) == [(ValueKind.ASYNCHRONOUS, b"later")]


def test_a_query_has_its_values_one_structure_deeper() -> None:
    both = [(ValueKind.ASYNCHRONOUS, b"later"), (ValueKind.ASYNCHRONOUS, b"too")]

    assert shown(asked(Operation.QUERY_ASYNCHRONOUS_REQUESTS, LIST)) == both
    assert got(answered(Operation.QUERY_ASYNCHRONOUS_REQUESTS, LIST)) == both


@pytest.mark.parametrize("number", [Operation.ENCRYPT, Operation.HASH, Operation.PKCS_11, 0x80000001])
def test_a_part_of_a_stream_shows_and_gets_its_value(number: int) -> None:
    assert shown(asked(number, identifier(), STREAM)) == [(ValueKind.STREAM, b"stream")]
    assert got(answered(number, identifier(), STREAM)) == [(ValueKind.STREAM, b"stream")]


def test_a_ticket_is_shown_in_the_header_and_by_logout() -> None:
    headed = decode_request(request(batch_item(operation()), header=[authentication(ticket_credential(b"mine"))]))

    assert shown(headed) == shown(asked(Operation.LOGOUT, TICKET)) == [(ValueKind.TICKET, b"mine")]


def test_login_gives_a_ticket_and_delegated_login_one_for_others() -> None:
    assert got(answered(Operation.LOGIN, TICKET)) == [(ValueKind.TICKET, b"mine")]
    assert got(answered(Operation.DELEGATED_LOGIN, TICKET)) == [(ValueKind.DELEGATED, b"mine")]


def test_a_pending_answer_has_its_value_beside_the_payload() -> None:
    assert got(answered(Operation.CREATE, pending=b"later")) == [(ValueKind.ASYNCHRONOUS, b"later")]


def test_the_requests_operation_counts_if_the_answer_has_none() -> None:
    bare = compose.Result(ResultStatus.SUCCESS, payload=TICKET)
    answer = decode_response(compose.encode_response((2, 1), [bare]))

    assert texts(answer.frame, given(answer, asked(Operation.DELEGATED_LOGIN))) == [(ValueKind.DELEGATED, b"mine")]


def test_other_fields_hold_no_values() -> None:
    password = credential(1, ttlv.text(Tag.USERNAME, "me"), TICKET)

    assert shown(decode_request(request(batch_item(operation()), header=[authentication(password)]))) == []
    assert shown(asked(Operation.GET, identifier(), LATER, TICKET)) == []
    assert shown(asked(Operation.POLL, ttlv.text(Tag.ASYNCHRONOUS_CORRELATION_VALUE, "later"))) == []
    assert got(answered(Operation.GET, identifier())) == []


def test_an_unreadable_payload_holds_no_values() -> None:
    overrun = raw(0x540001, 8, 80, bytes(16))

    assert shown(asked(Operation.ENCRYPT, STREAM, overrun)) == []
    assert got(answered(Operation.LOGIN, TICKET, overrun)) == []


@with_any(letters)
def test_every_value_that_is_found_can_be_replaced(letter: Letter) -> None:
    """The spans are positions that ``ttlv.splice`` accepts, in every message that decodes."""
    read = decode_request(letter.encode())
    values = presented(read)

    changed = decode_request(ttlv.splice(read.frame, {value.start: b"longer " * 3 for value in values}))

    assert [text for _kind, text in shown(changed)] == [b"longer " * 3] * len(values)
    back = dict(zip((value.start for value in presented(changed)), (text for _kind, text in shown(read)), strict=True))
    assert ttlv.splice(changed.frame, back) == read.frame
