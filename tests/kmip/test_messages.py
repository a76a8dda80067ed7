"""Views of requests and responses."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kmip.core import enums
from kmip.core.messages import contents

from gateway.errors import ProtocolError
from gateway.kmip import compose, ttlv
from gateway.kmip.answers import is_answer_to
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, RequestItem, ResponseItem, Version, operation_name, reason_name
from gateway.kmip.spec import (
    FIXED_LENGTH,
    AsynchronousIndicator,
    CredentialType,
    ItemType,
    ObjectGroupMember,
    ObjectType,
    Operation,
    ResultReason,
    ResultStatus,
    Tag,
)
from tests.kit import pykmip_peer
from tests.kit.messages import (
    VENDOR_TAG,
    VERSIONS,
    WITHOUT_COUNT,
    Letter,
    Reply,
    authentication,
    batch_item,
    broken,
    credential,
    get,
    identifier,
    letters,
    operation,
    payload,
    properties,
    raw,
    read_if_possible,
    replies,
    request,
    response,
    steps,
    success,
    ticket_credential,
    tickets_of,
    versions,
)


def asked(*fields: bytes, number: int = Operation.GET) -> RequestItem:
    """Return the view of an operation with these fields in its payload."""
    return decode_request(request(batch_item(operation(number), payload(*fields)))).items[0]


def answered(*fields: bytes) -> ResponseItem:
    """Return the view of a successful answer with these fields in its payload."""
    return decode_response(response(success(Operation.GET, None, *fields))).items[0]


def headed(*fields: bytes, version: Version = (1, 4)) -> Request:
    """Return the view of a request with these fields in its header."""
    return decode_request(request(get(), version=version, header=fields))


# Composed messages are read -------------------------------------------------------------------------------------------


@given(letters)
def test_a_request_decodes_to_what_it_was_composed_of(letter: Letter) -> None:
    read = decode_request(letter.encode())

    given_name = letter.client_correlation_value
    assert read.version == letter.version
    assert read.batch_count == (None if letter.version >= (3, 0) else len(letter.wishes))
    assert read.maximum_response_size == letter.maximum_response_size
    assert read.client_correlation_value == (None if given_name is None else given_name.encode())
    assert read.batch_error_continuation_option == letter.batch_error_continuation_option
    assert read.batch_order_option == (letter.version >= (2, 0) if letter.batch_order is None else letter.batch_order)
    assert read.time_stamp == letter.time_stamp
    assert read.has_authentication == bool(letter.tickets)
    assert tickets_of(read) == letter.tickets
    assert len(read.items) == len(letter.wishes)
    for item, wish in zip(read.items, letter.wishes, strict=True):
        assert item.operation == wish.operation
        assert item.unique_batch_item_id == wish.unique_batch_item_id
        assert item.unique_identifiers == [text.encode() for text in wish.unique_identifiers]
        assert item.correlation_value == wish.correlation_value
        assert item.init_indicator == wish.init_indicator
        assert item.final_indicator == wish.final_indicator
        assert item.object_type == wish.object_type
        assert item.object_group_member == wish.object_group_member


@given(versions, st.lists(replies(), min_size=1, max_size=4), st.integers(-(2**63), 2**63 - 1))
def test_a_response_decodes_to_what_it_was_composed_of(version: Version, sent: list[Reply], now: int) -> None:
    read = decode_response(compose.encode_response(version, [reply.result for reply in sent], now=now))

    assert read.version == version
    assert read.batch_count == (None if version >= (3, 0) else len(sent))
    assert read.time_stamp == now
    for item, reply in zip(read.items, sent, strict=True):
        assert item.operation == (-1 if reply.result.operation is None else reply.result.operation)
        assert item.unique_batch_item_id == reply.result.unique_batch_item_id
        assert item.status == reply.result.status
        assert item.reason == reply.result.reason
        assert item.message == reply.result.message
        assert item.asynchronous_correlation_value == reply.result.asynchronous_correlation_value
        assert item.correlation_value == reply.correlation_value
        assert item.unique_identifiers == [text.encode() for text in reply.unique_identifiers]


@given(letters)
def test_a_generated_request_is_answered_by_its_refusal(letter: Letter) -> None:
    read = decode_request(letter.encode())

    refusal = decode_response(compose.failure(read, ResultReason.GENERAL_FAILURE, "no"))

    assert is_answer_to(refusal, read)
    assert refusal.version == read.version


# The header -----------------------------------------------------------------------------------------------------------


def test_a_bare_header_has_nothing() -> None:
    read = headed()

    assert read.maximum_response_size is None
    assert read.client_correlation_value is None
    assert read.asynchronous_indicator is AsynchronousIndicator.PROHIBITED
    assert read.batch_error_continuation_option is None
    assert read.time_stamp is None
    assert not read.has_authentication
    assert tickets_of(read) == []


def test_batches_keep_their_order_by_default_from_2_0_on() -> None:
    assert [headed(version=version).batch_order_option for version in [(1, 0), (1, 4), (2, 0), (2, 1), (3, 0)]] == [
        False,
        False,
        True,
        True,
        True,
    ]
    for value in (True, False):
        option = ttlv.boolean(Tag.BATCH_ORDER_OPTION, value)
        assert [headed(option, version=version).batch_order_option for version in [(1, 0), (2, 0)]] == [value, value]


@pytest.mark.parametrize(
    ("version", "indicator", "meaning"),
    [
        ((1, 4), ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True), AsynchronousIndicator.OPTIONAL),
        ((1, 4), ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=False), AsynchronousIndicator.PROHIBITED),
        ((2, 0), ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True), AsynchronousIndicator.OPTIONAL),
        ((2, 0), ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 2), AsynchronousIndicator.OPTIONAL),
        ((2, 1), ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 1), AsynchronousIndicator.MANDATORY),
        ((3, 0), ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 3), AsynchronousIndicator.PROHIBITED),
        ((2, 1), ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 0), AsynchronousIndicator.MANDATORY),
        ((2, 1), ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 0x80000001), AsynchronousIndicator.MANDATORY),
        # A server of 1.x that looks for a Boolean finds the eight bytes of this number true.
        ((1, 4), ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 3), AsynchronousIndicator.MANDATORY),
    ],
)
def test_asynchronous_indicator_in_every_version(
    version: Version, indicator: bytes, meaning: AsynchronousIndicator
) -> None:
    assert headed(indicator, version=version).asynchronous_indicator is meaning


def test_a_time_before_1970_is_negative() -> None:
    assert headed(ttlv.date_time(Tag.TIME_STAMP, -1)).time_stamp == -1


# Tickets --------------------------------------------------------------------------------------------------------------

PASSWORD = credential(
    CredentialType.USERNAME_AND_PASSWORD, ttlv.text(Tag.USERNAME, "fred"), ttlv.text(Tag.PASSWORD, "secret")
)
#: Credentials without a ticket: of another type, of a vendor, and broken credentials.
_NO_TICKETS = {
    "password": PASSWORD,
    "ticket under another type": credential(
        0x80000001, ttlv.structure(Tag.TICKET, ttlv.octets(Tag.TICKET_VALUE, b"x"))
    ),
    "vendor": credential(0x80000001, ttlv.octets(VENDOR_TAG, b"\xff" * 9)),
    "vendor, bytes": ttlv.structure(
        Tag.CREDENTIAL,
        ttlv.enumeration(Tag.CREDENTIAL_TYPE, 0x80000001),
        ttlv.octets(Tag.CREDENTIAL_VALUE, b"\xff" * 9),
    ),
    "garbage": ttlv.structure(Tag.CREDENTIAL, b"\xff" * 16),
    "empty": ttlv.structure(Tag.CREDENTIAL),
    "not a structure": ttlv.octets(Tag.CREDENTIAL, ticket_credential(b"x")[8:]),
    "something else": ttlv.structure(VENDOR_TAG, ticket_credential(b"x")[8:]),
    "type that is no enumeration": ttlv.structure(Tag.CREDENTIAL, ttlv.integer(Tag.CREDENTIAL_TYPE, 6)),
    "no value": ttlv.structure(Tag.CREDENTIAL, ttlv.enumeration(Tag.CREDENTIAL_TYPE, CredentialType.TICKET)),
    "value in bytes": ttlv.structure(
        Tag.CREDENTIAL,
        ttlv.enumeration(Tag.CREDENTIAL_TYPE, CredentialType.TICKET),
        ttlv.octets(Tag.CREDENTIAL_VALUE, ttlv.structure(Tag.TICKET, ttlv.octets(Tag.TICKET_VALUE, b"x"))),
    ),
    "no ticket": credential(CredentialType.TICKET, ttlv.octets(VENDOR_TAG, b"x")),
    "ticket without value": credential(CredentialType.TICKET, ttlv.structure(Tag.TICKET)),
    "value that is text": credential(
        CredentialType.TICKET, ttlv.structure(Tag.TICKET, ttlv.text(Tag.TICKET_VALUE, "x"))
    ),
    "garbage inside": credential(CredentialType.TICKET, ttlv.structure(Tag.TICKET, b"\xff" * 16)),
}


def test_tickets_are_found_in_order() -> None:
    read = headed(authentication(ticket_credential(b"one"), PASSWORD, ticket_credential(b"two")), version=(2, 0))

    assert tickets_of(read) == [b"one", b"two"]


@pytest.mark.parametrize("other", _NO_TICKETS.values(), ids=_NO_TICKETS)
def test_tickets_beside_a_credential_without_ticket_are_found(other: bytes) -> None:
    read = headed(authentication(other, ticket_credential(b"mine"), other), version=(2, 1))

    assert tickets_of(read) == [b"mine"]
    assert tickets_of(headed(authentication(other))) == []


def test_an_authentication_of_garbage_has_no_tickets() -> None:
    read = headed(authentication(ticket_credential(b"mine"), b"\xff" * 24))

    assert read.has_authentication
    assert tickets_of(read) == []


# Batch items ----------------------------------------------------------------------------------------------------------


def test_a_bare_item_has_nothing() -> None:
    for item in (decode_request(request(batch_item(operation()))).items[0], asked()):
        assert item.unique_batch_item_id is None
        assert item.unique_identifiers == []
        assert item.correlation_value is None
        assert (item.init_indicator, item.final_indicator) == (None, None)
        assert (item.object_type, item.object_group_member) == (None, None)


def test_unique_identifiers_of_every_kind_are_found_in_order() -> None:
    item = answered(
        ttlv.text(Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER, "private"),
        ttlv.octets(VENDOR_TAG, b"between"),
        ttlv.text(Tag.PUBLIC_KEY_UNIQUE_IDENTIFIER, "public"),
        identifier("plain"),
    )

    assert item.unique_identifiers == [b"private", b"public", b"plain"]


def test_a_unique_identifier_may_be_a_number_since_2_0() -> None:
    numbers = ttlv.enumeration(Tag.UNIQUE_IDENTIFIER, 1), ttlv.integer(Tag.UNIQUE_IDENTIFIER, 256)

    assert asked(*numbers).unique_identifiers == [b"\0\0\0\1", b"\0\0\1\0"]


def test_a_unique_identifier_is_the_same_with_its_padding_counted_in() -> None:
    sloppy = raw(Tag.UNIQUE_IDENTIFIER, ItemType.TEXT_STRING, 8, b"key-1\0\0\0")

    assert asked(sloppy).unique_identifiers == asked(identifier("key-1")).unique_identifiers == [b"key-1"]


def test_identifiers_deeper_down_are_not_the_items_own() -> None:
    wrapping = ttlv.structure(
        Tag.KEY_WRAPPING_SPECIFICATION, ttlv.structure(Tag.ENCRYPTION_KEY_INFORMATION, identifier("wrapping key"))
    )

    assert asked(identifier("key-1"), wrapping).unique_identifiers == [b"key-1"]


_ONCE = {
    "correlation_value": ttlv.octets(Tag.CORRELATION_VALUE, b"a"),
    "init_indicator": ttlv.boolean(Tag.INIT_INDICATOR, value=True),
    "final_indicator": ttlv.boolean(Tag.FINAL_INDICATOR, value=True),
    "object_type": ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY),
    "object_group_member": ttlv.enumeration(Tag.OBJECT_GROUP_MEMBER, ObjectGroupMember.GROUP_MEMBER_DEFAULT),
}
once = pytest.mark.parametrize(("name", "field"), _ONCE.items(), ids=_ONCE)


@once
def test_field_that_occurs_twice_raises_when_read(name: str, field: bytes) -> None:
    """A key manager might use the second, and the gateway the first."""
    between = identifier()

    assert getattr(asked(between, field), name) is not None
    with pytest.raises(ProtocolError, match="twice"):
        getattr(asked(field, between, field), name)


@once
def test_a_field_of_the_wrong_type_is_refused(name: str, field: bytes) -> None:
    for wrong in {*ItemType, ItemType.IDENTIFIER} - {field[3]}:
        bent = raw(int.from_bytes(field[:3], "big"), wrong, FIXED_LENGTH.get(wrong, 8), bytes(8))
        with pytest.raises(ProtocolError, match="type"):
            getattr(asked(bent), name)


def test_a_payload_that_cannot_be_walked_is_refused_when_it_is_asked() -> None:
    item = asked(raw(VENDOR_TAG, ItemType.BYTE_STRING, 80, bytes(16)))
    refused = []
    for name in properties(item):
        try:
            getattr(item, name)
        except ProtocolError:
            refused.append(name)

    assert refused == sorted([*_ONCE, "has_unique_identifier", "unique_identifiers"])
    assert item.operation == Operation.GET


@pytest.mark.parametrize("size", [1, 1000])
def test_a_payload_is_walked_once_however_often_it_is_asked(size: int) -> None:
    whole = asked(ttlv.octets(VENDOR_TAG, b"") * size)
    broken = asked(ttlv.octets(VENDOR_TAG, b"") * size, raw(VENDOR_TAG, ItemType.BYTE_STRING, 80, b""))

    def ask(item: RequestItem) -> None:
        for name in _ONCE:
            with suppress(ProtocolError):
                getattr(item, name)

    for item in (whole, broken):
        ask(item)
        assert steps(lambda item=item: ask(item)) < 150  # type: ignore[misc]


def test_an_answer_to_a_locate_is_walked_up_to_its_first_identifier() -> None:
    def found(size: int) -> ResponseItem:
        (item,) = decode_response(
            response(success(Operation.LOCATE, None, ttlv.text(Tag.UNIQUE_IDENTIFIER, "key") * size))
        ).items
        return item

    few, many = found(1), found(1000)
    assert few.has_unique_identifier
    assert steps(lambda: few.has_unique_identifier) == steps(lambda: many.has_unique_identifier)


def test_a_stream_is_told_by_its_fields() -> None:
    first = asked(ttlv.boolean(Tag.INIT_INDICATOR, value=True), number=Operation.ENCRYPT)
    last = asked(
        ttlv.octets(Tag.CORRELATION_VALUE, b"stream"),
        ttlv.boolean(Tag.FINAL_INDICATOR, value=True),
        ttlv.boolean(Tag.INIT_INDICATOR, value=False),
        number=Operation.ENCRYPT,
    )

    assert (first.init_indicator, first.final_indicator, first.correlation_value) == (True, None, None)
    assert (last.init_indicator, last.final_indicator, last.correlation_value) == (False, True, b"stream")
    assert answered(ttlv.octets(Tag.CORRELATION_VALUE, b"stream")).correlation_value == b"stream"


def test_an_asynchronous_value_is_found_beside_operation_pending() -> None:
    pending = compose.Result(ResultStatus.OPERATION_PENDING, Operation.CREATE, asynchronous_correlation_value=b"later")
    answer = decode_response(compose.encode_response((1, 4), [pending])).items[0]

    assert (answer.status, answer.asynchronous_correlation_value) == (ResultStatus.OPERATION_PENDING, b"later")


def test_result_message_of_any_bytes_can_be_read() -> None:
    latin = raw(Tag.RESULT_MESSAGE, ItemType.TEXT_STRING, 8, b"caf\xe9\0\0\0\0")
    item = decode_response(response(batch_item(ttlv.enumeration(Tag.RESULT_STATUS, 1), latin))).items[0]

    assert item.message == "caf\N{REPLACEMENT CHARACTER}"
    assert item.operation == -1


@pytest.mark.parametrize("version", [*VERSIONS, WITHOUT_COUNT])
def test_a_batch_is_read_in_every_version(version: Version) -> None:
    frame = request(*(get(str(number)) for number in range(5)), version=version)

    read = decode_request(frame)

    assert [item.unique_identifiers for item in read.items] == [[b"0"], [b"1"], [b"2"], [b"3"], [b"4"]]
    assert read.batch_count == (None if version == WITHOUT_COUNT else 5)


def test_repr_of_views() -> None:
    read = decode_request(request(get(), batch_item(operation(0x80000001))))
    answer = decode_response(response(success(), success(None), version=(2, 1)))

    assert repr(read) == f"<Request 1.4 Get, Unknown: {len(read.frame)} bytes>"
    assert repr(answer) == f"<Response 2.1 Get=0, Unknown=0: {len(answer.frame)} bytes>"


def test_names_are_the_specifications_without_spaces() -> None:
    assert operation_name(Operation.CREATE_KEY_PAIR) == "CreateKeyPair"
    assert operation_name(Operation.MAC_VERIFY) == "MACVerify"
    assert operation_name(Operation.RNG_SEED) == "RNGSeed"
    assert operation_name(Operation.PKCS_11) == "PKCS11"
    assert reason_name(ResultReason.ITEM_NOT_FOUND) == "ItemNotFound"
    assert (operation_name(-1), reason_name(0x7FFFFFFF)) == ("Unknown", "Unknown")


# PyKMIP's messages, read by us ----------------------------------------------------------------------------------------

peer_versions = pytest.mark.parametrize(
    "version", pykmip_peer.VERSIONS, ids=lambda version: f"{version[0]}.{version[1]}"
)


@peer_versions
@pytest.mark.parametrize("name", pykmip_peer.REQUESTS)
def test_reads_what_pykmip_asks(name: str, version: Version) -> None:
    speech = pykmip_peer.REQUESTS[name]

    read = decode_request(pykmip_peer.write_request(version, [speech]))

    assert read.version == version
    assert [item.operation for item in read.items] == [speech.operation.value]
    assert read.items[0].unique_identifiers == speech.identifiers
    assert read.items[0].unique_batch_item_id is None
    if name in ("create", "register"):
        assert read.items[0].object_type == ObjectType.SYMMETRIC_KEY
    if name == "locate":
        assert read.items[0].object_group_member == ObjectGroupMember.GROUP_MEMBER_FRESH


@peer_versions
@pytest.mark.parametrize("name", pykmip_peer.RESPONSES)
def test_reads_what_pykmip_answers(name: str, version: Version) -> None:
    speech = pykmip_peer.RESPONSES[name]

    read = decode_response(pykmip_peer.write_response(version, [speech], [b"7"]))

    item = read.items[0]
    assert (read.version, read.time_stamp, read.batch_count) == (version, 1_700_000_000, 1)
    assert (item.operation, item.status) == (speech.operation.value, ResultStatus.SUCCESS)
    assert (item.unique_batch_item_id, item.reason, item.message) == (b"7", None, None)
    assert item.unique_identifiers == speech.identifiers
    assert is_answer_to(read, decode_request(pykmip_peer.write_request(version, [pykmip_peer.REQUESTS[name]], [b"7"])))


@peer_versions
def test_reads_pykmips_batches_and_header(version: Version) -> None:
    speeches = list(pykmip_peer.REQUESTS.values())
    ids = [b"item %d" % index for index in range(len(speeches))]
    frame = pykmip_peer.write_request(
        version,
        speeches,
        ids,
        maximum_response_size=contents.MaximumResponseSize(4096),
        asynchronous_indicator=contents.AsynchronousIndicator(value=True),
        authentication=pykmip_peer.password(),
        batch_error_cont_option=contents.BatchErrorContinuationOption(enums.BatchErrorContinuationOption.UNDO),
        batch_order_option=contents.BatchOrderOption(value=True),
        time_stamp=contents.TimeStamp(1_700_000_000),
    )

    read = decode_request(frame)

    assert [item.operation for item in read.items] == [speech.operation.value for speech in speeches]
    assert [item.unique_batch_item_id for item in read.items] == ids
    assert [item.unique_identifiers for item in read.items] == [speech.identifiers for speech in speeches]
    assert read.batch_count == len(speeches)
    assert read.maximum_response_size == 4096
    assert read.asynchronous_indicator is AsynchronousIndicator.OPTIONAL
    assert read.has_authentication
    assert tickets_of(read) == []
    assert read.batch_error_continuation_option == enums.BatchErrorContinuationOption.UNDO.value
    assert read.batch_order_option is True
    assert read.time_stamp == 1_700_000_000
    assert read.frame is frame


@peer_versions
@pytest.mark.parametrize("operation_", [enums.Operation.GET, None], ids=["get", "undecodable"])
def test_reads_pykmips_refusals(version: Version, operation_: Any) -> None:
    frame = pykmip_peer.write_failure(version, operation_, enums.ResultReason.PERMISSION_DENIED, "not yours")

    item = decode_response(frame).items[0]

    assert item.operation == (-1 if operation_ is None else Operation.GET)
    assert (item.status, item.reason) == (ResultStatus.OPERATION_FAILED, ResultReason.PERMISSION_DENIED)
    assert item.message == "not yours"


_PEER_REQUESTS = [
    pykmip_peer.write_request(
        (1, 2), [pykmip_peer.REQUESTS[name] for name in ("get", "activate", "destroy")], [b"1", b"2", b"3"]
    ),
    pykmip_peer.write_request(
        (1, 0), [pykmip_peer.REQUESTS["locate"], pykmip_peer.REQUESTS["query"]], authentication=pykmip_peer.password()
    ),
    pykmip_peer.write_request((2, 0), [pykmip_peer.REQUESTS["create"], pykmip_peer.REQUESTS["revoke"]]),
]


@settings(max_examples=400)
@given(broken(_PEER_REQUESTS))
def test_messages_that_pykmip_reads_too_are_read_alike(frame: bytes) -> None:
    """Of a broken message, PyKMIP's server reads and executes only operations that the gateway sees."""
    ours = read_if_possible(frame)
    try:
        theirs = pykmip_peer.read_request(frame)
    except Exception:  # noqa: BLE001 - PyKMIP has no one error of its own
        return

    if isinstance(ours, Request):
        version = theirs.request_header.protocol_version
        assert ours.version == (version.major, version.minor)
        assert [(item.operation, item.unique_batch_item_id) for item in ours.items] == [
            (item.operation.value.value, item.unique_batch_item_id and item.unique_batch_item_id.value)
            for item in theirs.batch_items
        ]
