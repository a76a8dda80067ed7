"""The tables: each refusal's numbers, each operation's effect, and what follows from them."""

from collections.abc import Sequence

import pytest

from gateway.errors import Stage
from gateway.kmip import compose, ttlv
from gateway.kmip.answers import is_answer_to
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Response, Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from gateway.policy import (
    EFFECTS,
    REASONS,
    Effect,
    Refusal,
    destroyed,
    effect_of,
    has_changed_nothing,
    may_be_given_values,
    may_repeat,
    names_only,
    refuse,
    tells_of_a_change,
)

VERSIONS: list[Version] = [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1), (3, 0)]

#: Result Reasons as the specification numbers them (1.4 section 9.1.3.2.29, 2.1 section 11.48): in 1.x, and since 2.0.
NUMBERS = {
    "invalid_message": (0x04, 0x26),  # Invalid Message; Codec Error
    "too_large": (0x04, 0x3A),  # Invalid Message; Server Limit Exceeded
    "not_authenticated": (0x03, 0x03),  # Authentication Not Successful
    "not_supported": (0x05, 0x05),  # Operation Not Supported
    "not_permitted": (0x0C, 0x0C),  # Permission Denied
    "no_backend": (0x100, 0x2A),  # General Failure; Internal Server Error
    "deadline": (0x100, 0x2A),
    "overloaded": (0x100, 0x3A),  # General Failure; Server Limit Exceeded
    "backend_failed": (0x100, 0x2A),
    "outcome_unknown": (0x100, 0x2A),
    "client_disconnected": (0x100, 0x2A),
    "response_too_large": (0x02, 0x02),  # Response Too Large
    "unknown_asynchronous_value": (0x01, 0x2B),  # Item Not Found; Invalid Asynchronous Correlation Value
    "unknown_correlation_value": (0x07, 0x2E),  # Invalid Field; Invalid Correlation Value
    "unknown_ticket": (0x03, 0x19),  # Authentication Not Successful; Invalid Ticket
    "several_backends": (0x08, 0x08),  # Feature Not Supported
    "client_credential": (0x03, 0x03),
    "not_minted": (0x03, 0x03),
    "audit_unavailable": (0x100, 0x2A),
}


def request(
    *operations: int,
    version: Version = (1, 4),
    payload: bytes = b"",
    numbered: bool = False,
    header: Sequence[bytes] = (),
) -> Request:
    asks = [
        compose.Ask(operation, payload, bytes([index]) if numbered else None)
        for index, operation in enumerate(operations)
    ]
    return decode_request(compose.encode_request(version, asks, header=header))


# Refusals -------------------------------------------------------------------------------------------------------------


def test_every_refusal_has_its_numbers_here() -> None:
    assert {refusal.value for refusal in Refusal} == NUMBERS.keys() == {refusal.value for refusal in REASONS}


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("refusal", Refusal, ids=lambda refusal: refusal.value)
def test_a_refusal_has_the_requests_version_and_its_reason(refusal: Refusal, version: Version) -> None:
    answer = decode_response(refuse(refusal, "because", request(Operation.GET, version=version)))

    (item,) = answer.items
    assert answer.version == version
    assert (item.operation, item.status) == (Operation.GET, ResultStatus.OPERATION_FAILED)
    assert item.reason == NUMBERS[refusal.value][version >= (2, 0)]
    assert item.message == "because"


def test_every_item_is_refused_and_can_be_told_apart() -> None:
    asked = request(Operation.CREATE, Operation.ACTIVATE, Operation.GET, numbered=True)

    answer = decode_response(refuse(Refusal.OVERLOADED, "too much", asked))

    assert [(item.operation, item.unique_batch_item_id) for item in answer.items] == [
        (Operation.CREATE, b"\0"),
        (Operation.ACTIVATE, b"\1"),
        (Operation.GET, b"\2"),
    ]
    assert {item.status for item in answer.items} == {ResultStatus.OPERATION_FAILED}
    assert is_answer_to(answer, asked)


@pytest.mark.parametrize(
    ("readable", "labelled", "reason"),
    [(None, (1, 0), 0x04), ((1, 2), (1, 2), 0x04), ((2, 1), (2, 1), 0x26), ((9, 9), (9, 9), 0x26)],
)
def test_an_undecodable_request_is_refused_without_an_operation(
    readable: Version | None, labelled: Version, reason: int
) -> None:
    answer = decode_response(refuse(Refusal.INVALID_MESSAGE, "unreadable", None, version=readable))

    (item,) = answer.items
    assert answer.version == labelled
    assert Tag.OPERATION not in item.fields
    assert (item.status, item.reason) == (ResultStatus.OPERATION_FAILED, reason)


# Effects --------------------------------------------------------------------------------------------------------------

#: Operations by number. An operation that is not listed counts as Effect.MUTATE.
BY_EFFECT = {
    Effect.READ: [0x08, 0x09, 0x0B, 0x0C, 0x17, 0x18, 0x1E, 0x20, 0x22, 0x24, 0x27, 0x38, 0x3B],
    Effect.TOUCH: [0x0A, 0x10, 0x25, 0x2B],
    Effect.CONSUME: [0x1F, 0x21, 0x23, 0x26, 0x2C],
    Effect.STATEFUL: [0x19, 0x1A, 0x2D, 0x2E, 0x2F, 0x33, 0x39, 0x3A],
}
STREAMING = [0x1F, 0x20, 0x21, 0x22, 0x23, 0x24, 0x27]


def effect_by_number(operation: int) -> Effect:
    return next((effect for effect, operations in BY_EFFECT.items() if operation in operations), Effect.MUTATE)


@pytest.mark.parametrize("operation", [*range(0x50), 0x80000001, 0xFFFFFFFF], ids=hex)
def test_every_operation_has_its_effect_and_unknown_ones_mutate(operation: int) -> None:
    assert effect_of(request(operation)) is effect_by_number(operation)


def test_the_table_names_no_operation_that_mutates() -> None:
    """MUTATE is the default; a row that repeats it would only invite a mistake."""
    assert Effect.MUTATE not in EFFECTS.values()


def test_a_batch_is_as_strict_as_its_strictest_item() -> None:
    assert effect_of(request(Operation.QUERY, Operation.GET)) is Effect.TOUCH
    assert effect_of(request(Operation.GET, Operation.ENCRYPT, Operation.GET)) is Effect.CONSUME
    assert effect_of(request(Operation.POLL, Operation.ENCRYPT)) is Effect.STATEFUL
    assert effect_of(request(Operation.CREATE, Operation.GET)) is Effect.MUTATE
    assert effect_of(request(Operation.GET, 0x80000001)) is Effect.MUTATE


@pytest.mark.parametrize(
    ("member", "effect"), [(None, Effect.READ), (2, Effect.READ), (1, Effect.MUTATE), (7, Effect.MUTATE)]
)
def test_a_locate_that_may_make_an_object_mutates(member: int | None, effect: Effect) -> None:
    """Object Group Member 1 is Fresh, 2 is Default; other values may mean anything."""
    payload = b"" if member is None else ttlv.enumeration(Tag.OBJECT_GROUP_MEMBER, member)

    assert effect_of(request(Operation.LOCATE, payload=payload)) is effect


@pytest.mark.parametrize("operation", STREAMING, ids=hex)
@pytest.mark.parametrize(
    "part",
    [
        ttlv.boolean(Tag.INIT_INDICATOR, True),
        ttlv.boolean(Tag.FINAL_INDICATOR, True),
        ttlv.octets(Tag.CORRELATION_VALUE, b"stream-1"),
    ],
    ids=["first", "last", "between"],
)
def test_a_part_of_a_stream_is_bound_to_its_server(operation: int, part: bytes) -> None:
    assert effect_of(request(operation, payload=part)) is Effect.STATEFUL


@pytest.mark.parametrize("operation", [Operation.LOCATE, *STREAMING], ids=hex)
def test_an_unreadable_payload_counts_as_a_change(operation: int) -> None:
    twice = ttlv.enumeration(Tag.OBJECT_GROUP_MEMBER, 2) * 2 + ttlv.octets(Tag.CORRELATION_VALUE, b"") * 2

    assert effect_of(request(operation, payload=twice)) is Effect.MUTATE


@pytest.mark.parametrize("effect", Effect, ids=lambda effect: effect.name)
def test_an_unsent_request_may_be_repeated_and_a_sent_one_if_it_reads(effect: Effect) -> None:
    harms_nobody = effect in {Effect.READ, Effect.TOUCH}

    assert may_repeat(effect, Stage.CONNECT)
    assert effect.is_read is harms_nobody
    assert {may_repeat(effect, stage) for stage in (Stage.SEND, Stage.WAIT, Stage.READ)} == {harms_nobody}


# Conclusions from an answer -------------------------------------------------------------------------------------------

FAILED, SUCCESS, PENDING = ResultStatus.OPERATION_FAILED, ResultStatus.SUCCESS, ResultStatus.OPERATION_PENDING
FRESH = ttlv.enumeration(Tag.OBJECT_GROUP_MEMBER, 1)
ID = ttlv.text(Tag.UNIQUE_IDENTIFIER, "key-1")


def answer(*results: tuple[int, int, int | None]) -> Response:
    """Return a response of (operation, status, reason)."""
    told = [compose.Result(status, operation, reason=reason) for operation, status, reason in results]
    return decode_response(compose.encode_response((2, 1), told))


@pytest.mark.parametrize("reason", [ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND])
def test_a_change_that_failed_for_a_missing_object_has_not_run(reason: int) -> None:
    asked = request(Operation.LOCATE, Operation.GET, Operation.ACTIVATE, numbered=True)
    missing = (Operation.ACTIVATE, FAILED, reason)
    assert has_changed_nothing(
        asked, answer((Operation.LOCATE, SUCCESS, None), (Operation.GET, SUCCESS, None), missing)
    )
    assert has_changed_nothing(asked, answer((Operation.LOCATE, SUCCESS, None), missing))  # it stopped there


@pytest.mark.parametrize(
    "told",
    [
        answer((Operation.CREATE, SUCCESS, None), (Operation.ACTIVATE, FAILED, ResultReason.ITEM_NOT_FOUND)),
        answer((Operation.CREATE, PENDING, None), (Operation.ACTIVATE, FAILED, ResultReason.ITEM_NOT_FOUND)),
        answer((Operation.CREATE, FAILED, ResultReason.RESPONSE_TOO_LARGE)),
        answer((Operation.CREATE, FAILED, ResultReason.GENERAL_FAILURE)),
        answer((Operation.CREATE, FAILED, None)),
    ],
    ids=["made", "pending", "too large", "who knows", "no reason"],
)
def test_a_change_that_failed_for_another_reason_may_have_run(told: Response) -> None:
    assert not has_changed_nothing(request(Operation.CREATE, Operation.ACTIVATE, numbered=True), told)


def test_a_locate_that_may_have_made_something_is_no_read() -> None:
    asks = [compose.Ask(Operation.LOCATE), compose.Ask(Operation.LOCATE, FRESH), compose.Ask(Operation.ACTIVATE, ID)]
    numbered = [ask._replace(unique_batch_item_id=bytes([index])) for index, ask in enumerate(asks)]
    asked = decode_request(compose.encode_request((1, 4), numbered))
    located = (Operation.LOCATE, SUCCESS, None)
    assert not has_changed_nothing(
        asked, answer(located, located, (Operation.ACTIVATE, FAILED, ResultReason.ITEM_NOT_FOUND))
    )


@pytest.mark.parametrize(
    ("operation", "status", "expected"),
    [
        (Operation.CREATE, SUCCESS, True),  # a Poll is answered as the operation that it asks about
        (Operation.POLL, SUCCESS, True),  # some key managers answer with Poll itself
        (0x80000001, SUCCESS, True),
        (Operation.CREATE, PENDING, False),
        (Operation.CREATE, FAILED, False),
        (Operation.GET, SUCCESS, False),
        (Operation.LOGIN, SUCCESS, False),
    ],
)
def test_an_answer_to_a_poll_may_be_that_of_a_change(operation: int, status: int, expected: bool) -> None:
    assert tells_of_a_change(answer((operation, status, None))) is expected


def test_destroyed_are_the_objects_of_successful_destroys() -> None:
    asked = request(Operation.DESTROY, Operation.GET, Operation.DESTROY, payload=ID, numbered=True)
    gone, there = (Operation.DESTROY, SUCCESS, None), (Operation.GET, SUCCESS, None)
    assert destroyed(asked, answer(gone, there, (Operation.DESTROY, FAILED, None))) == [b"key-1"]
    assert destroyed(asked, answer((Operation.DESTROY, FAILED, None), there, (Operation.DESTROY, FAILED, None))) == []
    assert destroyed(asked, answer(gone)) == []  # it may belong to either Destroy


def test_names_only_is_true_for_these_objects_and_no_others() -> None:
    assert names_only(frozenset({b"key-1", b"key-2"}), request(Operation.GET, payload=ID))
    assert not names_only(frozenset({b"key-1"}), request(Operation.GET, payload=ID + ID.replace(b"key-1", b"key-2")))
    assert not names_only(frozenset({b"key-1"}), request(Operation.GET))
    assert not names_only(frozenset(), request(Operation.GET, payload=ID))


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (request(Operation.CREATE), False),
        (request(Operation.LOGIN), True),
        (request(0x80000001), True),
        (request(Operation.CREATE, header=[ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True)]), True),
        (request(Operation.CREATE, header=[ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=False)]), False),
        (request(Operation.CREATE, header=[ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 3)], version=(2, 1)), False),
    ],
    ids=["create", "login", "vendor", "asynchronous", "not asynchronous", "prohibited"],
)
def test_answers_that_may_hold_a_value_are_known_by_the_request(read: Request, expected: bool) -> None:
    assert may_be_given_values(read) is expected
