"""The gateway's own messages: errors for clients, and requests; decoded by the gateway and by PyKMIP."""

import time

import pytest
from kmip.core import enums

from gateway.kmip import compose, ttlv
from gateway.kmip.answers import is_answer_to
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from tests.kit import pykmip_peer
from tests.kit.messages import (
    VERSIONS,
    WITHOUT_COUNT,
    batch_item,
    identifier,
    operation,
    payload,
    printed,
    request,
)

every_version = pytest.mark.parametrize(
    "version", [*VERSIONS, WITHOUT_COUNT], ids=lambda version: f"{version[0]}.{version[1]}"
)
peer_versions = pytest.mark.parametrize(
    "version", pykmip_peer.VERSIONS, ids=lambda version: f"{version[0]}.{version[1]}"
)

#: Operations, and their Unique Batch Item IDs.
BATCH = [(Operation.CREATE, b"1"), (Operation.GET, b"22"), (Operation.DESTROY, None)]


def batch(version: Version) -> Request:
    items = (
        batch_item(
            operation(number),
            *([] if batch_id is None else [ttlv.octets(Tag.UNIQUE_BATCH_ITEM_ID, batch_id)]),
            payload(identifier()),
        )
        for number, batch_id in BATCH
    )
    return decode_request(request(*items, version=version))


# Refusals -------------------------------------------------------------------------------------------------------------


@every_version
def test_a_refusal_echoes_version_operation_and_id_of_every_item(version: Version) -> None:
    asked = batch(version)

    refusal = decode_response(compose.failure(asked, ResultReason.PERMISSION_DENIED, "not yours"))

    assert refusal.version == version
    assert refusal.batch_count == (None if version == WITHOUT_COUNT else len(BATCH))
    assert [(item.operation, item.unique_batch_item_id) for item in refusal.items] == BATCH
    assert {(item.status, item.reason, item.message) for item in refusal.items} == {
        (ResultStatus.OPERATION_FAILED, ResultReason.PERMISSION_DENIED, "not yours")
    }
    assert is_answer_to(refusal, asked)


@peer_versions
def test_pykmip_reads_a_refusal(version: Version) -> None:
    message = pykmip_peer.read_response(compose.failure(batch(version), ResultReason.PERMISSION_DENIED, "not yours"))

    header = message.response_header
    assert (header.protocol_version.major, header.protocol_version.minor) == version
    assert header.batch_count.value == len(BATCH)
    assert abs(header.time_stamp.value - time.time()) < 60
    for item, (number, batch_id) in zip(message.batch_items, BATCH, strict=True):
        assert item.operation.value.value == number
        assert (item.unique_batch_item_id and item.unique_batch_item_id.value) == batch_id
        assert item.result_status.value is enums.ResultStatus.OPERATION_FAILED
        assert item.result_reason.value is enums.ResultReason.PERMISSION_DENIED
        assert item.result_message.value == "not yours"
        assert item.response_payload is None


def test_unreadable_message_gets_one_item_without_operation_in_1_0() -> None:
    frame = compose.failure(None, ResultReason.INVALID_MESSAGE, "not KMIP")

    ours = decode_response(frame)
    theirs = pykmip_peer.read_response(frame)

    assert (ours.version, ours.batch_count) == ((1, 0), 1)
    assert [(item.operation, item.unique_batch_item_id) for item in ours.items] == [(-1, None)]
    assert (ours.items[0].reason, ours.items[0].message) == (ResultReason.INVALID_MESSAGE, "not KMIP")
    assert theirs.batch_items[0].operation is None
    assert theirs.batch_items[0].result_reason.value is enums.ResultReason.INVALID_MESSAGE
    assert is_answer_to(ours, batch((1, 4)))


def test_a_message_whose_version_could_be_read_is_refused_in_that_version() -> None:
    frame = compose.failure(None, ResultReason.CODEC_ERROR, "broken", version=(2, 0))

    assert decode_response(frame).version == (2, 0)
    assert pykmip_peer.read_response(frame).batch_items[0].result_reason.value is enums.ResultReason.CODEC_ERROR


@pytest.mark.parametrize("reason", ResultReason, ids=lambda reason: reason.name)
def test_pykmip_reads_every_reason_that_it_knows(reason: ResultReason) -> None:
    frame = compose.failure(batch((1, 2)), reason, "because")

    assert {item.reason for item in decode_response(frame).items} == {reason}
    if reason in {known.value for known in enums.ResultReason}:
        assert pykmip_peer.read_response(frame).batch_items[0].result_reason.value.value == reason


def test_an_unknown_operation_is_echoed_as_it_came() -> None:
    asked = decode_request(request(batch_item(operation(0x8000BEEF), ttlv.octets(Tag.UNIQUE_BATCH_ITEM_ID, b""))))

    item = decode_response(compose.failure(asked, ResultReason.OPERATION_NOT_SUPPORTED, "no")).items[0]

    assert (item.operation, item.unique_batch_item_id) == (0x8000BEEF, b"")


def test_the_smallest_refusal_byte_by_byte() -> None:
    result = compose.Result(ResultStatus.OPERATION_FAILED, reason=ResultReason.INVALID_MESSAGE, message="no")

    assert compose.encode_response((1, 0), [result], now=1_205_495_800) == printed(
        "42 00 7B | 01 | 00 00 00 88"
        " | 42 00 7A | 01 | 00 00 00 48"
        " | 42 00 69 | 01 | 00 00 00 20"
        " | 42 00 6A | 02 | 00 00 00 04 | 00 00 00 01 00 00 00 00"
        " | 42 00 6B | 02 | 00 00 00 04 | 00 00 00 00 00 00 00 00"
        " | 42 00 92 | 09 | 00 00 00 08 | 00 00 00 00 47 DA 67 F8"
        " | 42 00 0D | 02 | 00 00 00 04 | 00 00 00 01 00 00 00 00"
        " | 42 00 0F | 01 | 00 00 00 30"
        " | 42 00 7F | 05 | 00 00 00 04 | 00 00 00 01 00 00 00 00"
        " | 42 00 7E | 05 | 00 00 00 04 | 00 00 00 04 00 00 00 00"
        " | 42 00 7D | 07 | 00 00 00 02 | 6E 6F 00 00 00 00 00 00"
    )


# Responses ------------------------------------------------------------------------------------------------------------


@peer_versions
@pytest.mark.parametrize("name", ["create", "locate", "activate", "destroy"])
def test_pykmip_reads_our_successes(name: str, version: Version) -> None:
    """The payload is PyKMIP's own, from an answer that it encoded."""
    speech = pykmip_peer.RESPONSES[name]
    written = decode_response(pykmip_peer.write_response(version, [speech]))
    start, end = written.items[0].fields[Tag.RESPONSE_PAYLOAD]
    result = compose.Result(ResultStatus.SUCCESS, speech.operation.value, b"7", payload=written.frame[start:end])

    item = pykmip_peer.read_response(compose.encode_response(version, [result])).batch_items[0]

    assert item.operation.value is speech.operation
    assert item.unique_batch_item_id.value == b"7"
    assert item.result_status.value is enums.ResultStatus.SUCCESS
    assert type(item.response_payload) is type(speech.payload())


def test_pykmip_reads_an_asynchronous_correlation_value() -> None:
    pending = compose.Result(ResultStatus.OPERATION_PENDING, Operation.CREATE, asynchronous_correlation_value=b"later")

    item = pykmip_peer.read_response(compose.encode_response((1, 4), [pending])).batch_items[0]

    assert item.result_status.value is enums.ResultStatus.OPERATION_PENDING
    assert item.async_correlation_value.value == b"later"


# Questions ------------------------------------------------------------------------------------------------------------


@peer_versions
def test_pykmip_reads_our_batches(version: Version) -> None:
    asks = [
        compose.Ask(Operation.GET, identifier("key-1"), b"1"),
        compose.Ask(Operation.ACTIVATE, identifier("key-2"), b"2"),
        compose.Ask(Operation.LOCATE, ttlv.integer(Tag.MAXIMUM_ITEMS, 3)),
        compose.Ask(Operation.DESTROY, identifier("key-4")),
    ]
    header = [
        ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 4096),
        ttlv.boolean(Tag.BATCH_ORDER_OPTION, value=True),
        ttlv.date_time(Tag.TIME_STAMP, 1_700_000_000),
    ]

    message = pykmip_peer.read_request(compose.encode_request(version, asks, header=header))

    head = message.request_header
    assert (head.protocol_version.major, head.protocol_version.minor) == version
    assert (head.maximum_response_size.value, head.batch_order_option.value) == (4096, True)
    assert (head.time_stamp.value, head.batch_count.value) == (1_700_000_000, 4)
    assert [item.operation.value.value for item in message.batch_items] == [ask.operation for ask in asks]
    assert [item.unique_batch_item_id and item.unique_batch_item_id.value for item in message.batch_items] == [
        b"1",
        b"2",
        None,
        None,
    ]
    get, activate, locate, destroy = (item.request_payload for item in message.batch_items)
    assert get.unique_identifier == "key-1"
    assert activate.unique_identifier.value == "key-2"
    assert locate.maximum_items == 3
    assert destroy.unique_identifier.value == "key-4"


@every_version
def test_a_request_counts_its_items_up_to_2_1(version: Version) -> None:
    read = decode_request(compose.encode_request(version, [compose.Ask(Operation.QUERY)] * 3))

    assert read.version == version
    assert read.batch_count == (None if version == WITHOUT_COUNT else 3)
    assert len(read.items) == 3


@pytest.mark.parametrize("version", [(1, 1), (1, 2), (1, 3), (1, 4), (2, 0)])
def test_pykmip_is_asked_for_its_versions(version: Version) -> None:
    item = pykmip_peer.read_request(compose.discover_versions(version)).batch_items[0]

    assert item.operation.value is enums.Operation.DISCOVER_VERSIONS
    assert item.request_payload.protocol_versions == []


@peer_versions
def test_pykmip_is_asked_who_it_is(version: Version) -> None:
    item = pykmip_peer.read_request(compose.query(version)).batch_items[0]

    assert item.operation.value is enums.Operation.QUERY
    assert item.request_payload.query_functions == [enums.QueryFunction.QUERY_SERVER_INFORMATION]


def test_a_question_has_the_lowest_version_that_knows_it() -> None:
    assert decode_request(compose.discover_versions()).version == (1, 1)
    assert decode_request(compose.query()).version == (1, 0)
