"""The tables: each refusal's numbers, each operation's effect, and what follows from them."""

import pytest

from gateway.errors import Stage
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Version
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.policy import (
    EFFECTS,
    REASONS,
    REFUSED_OPERATIONS,
    Effect,
    Refusal,
    effect_of,
    may_repeat,
    refuse,
    refused_operation,
)

VERSIONS: list[Version] = [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1), (3, 0)]

#: Result Reasons as the specification numbers them (1.4 section 9.1.3.2.29, 2.1 section 11.48): in 1.x, and since 2.0.
NUMBERS = {
    "invalid_message": (0x04, 0x26),  # Invalid Message; Codec Error
    "too_large": (0x04, 0x3A),  # Invalid Message; Server Limit Exceeded
    "not_authenticated": (0x03, 0x03),  # Authentication Not Successful
    "not_supported": (0x05, 0x05),  # Operation Not Supported
    "no_backend": (0x100, 0x2A),  # General Failure; Internal Server Error
    "deadline": (0x100, 0x2A),
    "overloaded": (0x100, 0x3A),  # General Failure; Server Limit Exceeded
    "backend_failed": (0x100, 0x2A),
    "outcome_unknown": (0x100, 0x2A),
    "response_too_large": (0x02, 0x02),  # Response Too Large
    "unknown_asynchronous_value": (0x01, 0x2B),  # Item Not Found; Invalid Asynchronous Correlation Value
    "unknown_correlation_value": (0x07, 0x2E),  # Invalid Field; Invalid Correlation Value
    "unknown_ticket": (0x03, 0x19),  # Authentication Not Successful; Invalid Ticket
    "several_backends": (0x08, 0x08),  # Feature Not Supported
}


def request(*operations: int, version: Version = (1, 4), payload: bytes = b"", numbered: bool = False) -> Request:
    asks = [
        compose.Ask(operation, payload, bytes([index]) if numbered else None)
        for index, operation in enumerate(operations)
    ]
    return decode_request(compose.encode_request(version, asks))


# Refusals ------------------------------------------------------------------------------------------------------------


def test_every_refusal_has_its_numbers_here() -> None:
    assert {refusal.value for refusal in Refusal} == NUMBERS.keys() == {refusal.value for refusal in REASONS}


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("refusal", Refusal, ids=lambda refusal: refusal.value)
def test_a_refusal_is_an_answer_of_the_requests_version_with_the_right_number(
    refusal: Refusal, version: Version
) -> None:
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
    assert answer.answers(asked)


@pytest.mark.parametrize(
    ("readable", "labelled", "reason"),
    [(None, (1, 0), 0x04), ((1, 2), (1, 2), 0x04), ((2, 1), (2, 1), 0x26), ((9, 9), (9, 9), 0x26)],
)
def test_what_can_not_be_decoded_is_refused_without_an_operation(
    readable: Version | None, labelled: Version, reason: int
) -> None:
    answer = decode_response(refuse(Refusal.INVALID_MESSAGE, "what is this?", None, version=readable))

    (item,) = answer.items
    assert answer.version == labelled
    assert Tag.OPERATION not in item.fields
    assert (item.status, item.reason) == (ResultStatus.OPERATION_FAILED, reason)


# Operations that are not passed on -----------------------------------------------------------------------------------

NOT_PASSED_ON = {0x1B: "Notify", 0x1C: "Put", 0x32: "Set Endpoint Role", 0x34: "Interop", 0x35: "Re-Provision"}


@pytest.mark.parametrize("operation", NOT_PASSED_ON, ids=NOT_PASSED_ON.values())
def test_what_would_turn_a_shared_session_around_is_not_passed_on(operation: int) -> None:
    assert refused_operation(request(operation)) == operation
    assert refused_operation(request(Operation.GET, operation, Operation.GET)) == operation


def test_everything_else_is_passed_on() -> None:
    others = [operation for operation in Operation if operation not in NOT_PASSED_ON]
    vendors = [0x80000001, 0xFFFFFFFF, 0x7FFF]

    assert frozenset(NOT_PASSED_ON) == REFUSED_OPERATIONS
    assert {refused_operation(request(operation)) for operation in [*others, *vendors]} == {None}


# Effects -------------------------------------------------------------------------------------------------------------

#: By number. What is in none of these lists changes something: it is counted as Effect.MUTATE.
BY_EFFECT = {
    Effect.READ: [0x08, 0x09, 0x0B, 0x0C, 0x17, 0x18, 0x1E, 0x20, 0x22, 0x24, 0x27, 0x38, 0x3B],
    Effect.TOUCH: [0x0A, 0x10, 0x25, 0x2B],
    Effect.CONSUME: [0x1F, 0x21, 0x23, 0x26, 0x2C],
    Effect.BOUND: [0x19, 0x1A, 0x2D, 0x2E, 0x2F, 0x33, 0x39, 0x3A],
}
STREAMING = [0x1F, 0x20, 0x21, 0x22, 0x23, 0x24, 0x27]


def effect_by_number(operation: int) -> Effect:
    return next((effect for effect, operations in BY_EFFECT.items() if operation in operations), Effect.MUTATE)


@pytest.mark.parametrize("operation", [*range(0x50), 0x80000001, 0xFFFFFFFF], ids=hex)
def test_every_operation_has_its_effect_and_what_is_unknown_mutates(operation: int) -> None:
    assert effect_of(request(operation)) is effect_by_number(operation)


def test_the_table_names_no_operation_that_mutates() -> None:
    """Or somebody could weaken one there and believe that it counts."""
    assert Effect.MUTATE not in EFFECTS.values()


def test_a_batch_is_as_strict_as_its_strictest_item() -> None:
    assert effect_of(request(Operation.QUERY, Operation.GET)) is Effect.TOUCH
    assert effect_of(request(Operation.GET, Operation.ENCRYPT, Operation.GET)) is Effect.CONSUME
    assert effect_of(request(Operation.POLL, Operation.ENCRYPT)) is Effect.BOUND
    assert effect_of(request(Operation.CREATE, Operation.GET)) is Effect.MUTATE
    assert effect_of(request(Operation.GET, 0x80000001)) is Effect.MUTATE


@pytest.mark.parametrize(
    ("member", "effect"), [(None, Effect.READ), (2, Effect.READ), (1, Effect.MUTATE), (7, Effect.MUTATE)]
)
def test_a_locate_that_may_make_an_object_mutates(member: int | None, effect: Effect) -> None:
    """Object Group Member 1 is Fresh, 2 is Default; what others mean is not known."""
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
    assert effect_of(request(operation, payload=part)) is Effect.BOUND


@pytest.mark.parametrize("operation", [Operation.LOCATE, *STREAMING], ids=hex)
def test_what_can_not_be_read_can_not_be_judged(operation: int) -> None:
    twice = ttlv.enumeration(Tag.OBJECT_GROUP_MEMBER, 2) * 2 + ttlv.octets(Tag.CORRELATION_VALUE, b"") * 2

    assert effect_of(request(operation, payload=twice)) is Effect.MUTATE


@pytest.mark.parametrize("effect", Effect, ids=lambda effect: effect.name)
def test_what_was_not_sent_may_be_tried_elsewhere_and_what_was_only_if_it_harms_nobody(effect: Effect) -> None:
    harms_nobody = effect in {Effect.READ, Effect.TOUCH}

    assert may_repeat(effect, Stage.CONNECT)
    assert {may_repeat(effect, stage) for stage in (Stage.SEND, Stage.WAIT, Stage.READ)} == {harms_nobody}
