"""Requests and responses: shallow, read-only views of whole messages (KMIP 1.4 sections 6 and 7).

A view has the spans of the fields of header and batch items, as found by ``decode``. Deeper fields are read when a
property needs them. The message itself is never changed.
"""

from typing import ClassVar, Final

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.spec import (
    AsynchronousIndicator,
    ItemType,
    Operation,
    ResultReason,
    ResultStatus,
    Tag,
)

Version = tuple[int, int]

#: The version of an answer to a request whose version could not be read.
FALLBACK_VERSION: Final[Version] = (1, 0)

#: Tags of the identifiers in payloads.
UNIQUE_IDENTIFIERS: Final = frozenset(
    {int(Tag.UNIQUE_IDENTIFIER), int(Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER), int(Tag.PUBLIC_KEY_UNIQUE_IDENTIFIER)}
)
#: The fields of payloads that the gateway reads, for the properties below.
_PAYLOAD_FIELDS: Final = UNIQUE_IDENTIFIERS | {
    int(tag)
    for tag in (
        Tag.CORRELATION_VALUE,
        Tag.INIT_INDICATOR,
        Tag.FINAL_INDICATOR,
        Tag.OBJECT_TYPE,
        Tag.OBJECT_GROUP_MEMBER,
        Tag.LOCATED_ITEMS,
        Tag.TICKET,
    )
}

# To look up a member of an enumeration is slow, and every message needs these.
_OPERATION: Final = int(Tag.OPERATION)
_UNIQUE_BATCH_ITEM_ID: Final = int(Tag.UNIQUE_BATCH_ITEM_ID)
_RESULT_STATUS: Final = int(Tag.RESULT_STATUS)
_AUTHENTICATION: Final = int(Tag.AUTHENTICATION)
_FAILED: Final = int(ResultStatus.OPERATION_FAILED)

Fields = dict[int, tuple[int, int]]
"""The positions at which the value of each known field begins and ends."""


class _Fields:
    """A frame, and the spans of its known fields."""

    __slots__ = ("fields", "frame")

    def __init__(self, frame: bytes, fields: Fields) -> None:
        self.frame = frame
        self.fields = fields

    def _raw(self, tag: int) -> bytes | None:
        span = self.fields.get(tag)
        return None if span is None else self.frame[span[0] : span[1]]

    def _number(self, tag: int) -> int | None:
        raw = self._raw(tag)
        return None if raw is None else int.from_bytes(raw, "big")


class _Item(_Fields):
    """A batch item of a request or a response."""

    __slots__ = ("_payload", "operation")

    PAYLOAD: ClassVar[Tag]
    _payload: list[ttlv.Item] | ProtocolError  # set when the payload is walked

    def __init__(self, frame: bytes, fields: Fields) -> None:
        self.frame = frame
        self.fields = fields
        span = fields.get(_OPERATION)
        self.operation: int = -1 if span is None else int.from_bytes(frame[span[0] : span[1]], "big")

    @property
    def unique_batch_item_id(self) -> bytes | None:
        """Unique Batch Item ID, as the peer wrote it."""
        return self._raw(_UNIQUE_BATCH_ITEM_ID)

    @property
    def unique_identifiers(self) -> list[bytes]:
        """Unique identifiers in the payload, as they are encoded: usually a text, since 2.0 also a number.

        A text is returned without padding that some clients count in its length: it is the same identifier.
        """
        return self.identifiers(UNIQUE_IDENTIFIERS)

    def identifiers(self, tags: frozenset[int]) -> list[bytes]:
        """Return the values of the payload's items with these tags, as ``unique_identifiers`` does."""
        return [_identifier(self.frame, item) for item in self.payload_fields() if item.tag in tags]

    @property
    def has_unique_identifier(self) -> bool:
        """True if the payload has a unique identifier; reads no further than the first."""
        span = self.fields.get(self.PAYLOAD)
        return span is not None and any(True for _ in ttlv.walk(self.frame, *span, UNIQUE_IDENTIFIERS))

    @property
    def correlation_value(self) -> bytes | None:
        """Correlation Value of a cryptographic stream, or of PKCS#11 (1.4 section 4.29; 2.1 section 6.1.43)."""
        return self._payload_bytes(Tag.CORRELATION_VALUE)

    def payload_fields(self) -> list[ttlv.Item]:
        """Return the fields at the payload's first level that the gateway reads.

        The first call walks the payload. Raises ProtocolError if it can't be walked.
        """
        try:
            found = self._payload
        except AttributeError:
            found = self._payload = self._walk_payload()
        if isinstance(found, ProtocolError):
            raise ProtocolError(str(found))
        return found

    def _walk_payload(self) -> list[ttlv.Item] | ProtocolError:
        span = self.fields.get(self.PAYLOAD)
        try:
            return [] if span is None else list(ttlv.walk(self.frame, *span, _PAYLOAD_FIELDS))
        except ProtocolError as error:
            return error

    def _payload_item(self, tag: Tag, item_type: ItemType) -> ttlv.Item | None:
        """Return the item with this tag, or None. Two raise ProtocolError: the key manager might read the second."""
        if tag not in _PAYLOAD_FIELDS:
            raise ValueError(f"{tag.name} is not among the fields that are read")
        found = None
        for item in self.payload_fields():
            if item.tag == tag:
                if item.type != item_type:
                    raise ProtocolError(f"{tag.name} has type {item.type}, not {item_type.name}")
                if found is not None:
                    raise ProtocolError(f"{tag.name} occurs twice")
                found = item
        return found

    def _payload_bytes(self, tag: Tag) -> bytes | None:
        item = self._payload_item(tag, ItemType.BYTE_STRING)
        return None if item is None else self.frame[item.start : item.end]

    def _payload_number(self, tag: Tag, item_type: ItemType) -> int | None:
        item = self._payload_item(tag, item_type)
        return None if item is None else int.from_bytes(self.frame[item.start : item.end], "big")


class RequestItem(_Item):
    """An operation of a request.

    Every property but ``operation`` reads the payload, and raises ProtocolError if it can't be walked.
    """

    __slots__ = ()

    PAYLOAD: ClassVar[Tag] = Tag.REQUEST_PAYLOAD

    @property
    def init_indicator(self) -> bool | None:
        """Init Indicator: the first part of a stream (1.3 and later)."""
        return self._payload_flag(Tag.INIT_INDICATOR)

    @property
    def final_indicator(self) -> bool | None:
        """Final Indicator: the last part of a stream (1.3 and later)."""
        return self._payload_flag(Tag.FINAL_INDICATOR)

    @property
    def object_type(self) -> int | None:
        """Object Type, if it is at the payload's first level."""
        return self._payload_number(Tag.OBJECT_TYPE, ItemType.ENUMERATION)

    @property
    def object_group_member(self) -> int | None:
        """Object Group Member of a Locate: a request for a fresh member may create an object (1.4 section 4.9)."""
        return self._payload_number(Tag.OBJECT_GROUP_MEMBER, ItemType.ENUMERATION)

    def _payload_flag(self, tag: Tag) -> bool | None:
        number = self._payload_number(tag, ItemType.BOOLEAN)
        return None if number is None else bool(number)


class ResponseItem(_Item):
    """The answer to an operation. ``operation`` is -1 if the key manager left it out."""

    __slots__ = ()

    PAYLOAD: ClassVar[Tag] = Tag.RESPONSE_PAYLOAD

    @property
    def status(self) -> int:
        """Result Status, which every decoded response has."""
        span = self.fields.get(_RESULT_STATUS)
        return _FAILED if span is None else int.from_bytes(self.frame[span[0] : span[1]], "big")

    @property
    def reason(self) -> int | None:
        """Result Reason of a failure."""
        return self._number(Tag.RESULT_REASON)

    @property
    def message(self) -> str | None:
        """Result Message, the key manager's text; bytes that are not UTF-8 are replaced."""
        raw = self._raw(Tag.RESULT_MESSAGE)
        return None if raw is None else raw.rstrip(b"\0").decode(errors="replace")

    @property
    def located_items(self) -> int | None:
        """Located Items: the number of objects that a Locate found; it may list fewer (1.3 and later)."""
        return self._payload_number(Tag.LOCATED_ITEMS, ItemType.INTEGER)

    @property
    def asynchronous_correlation_value(self) -> bytes | None:
        """Asynchronous Correlation Value of an Operation Pending."""
        return self._raw(Tag.ASYNCHRONOUS_CORRELATION_VALUE)


class _Message(_Fields):
    __slots__ = ("version",)

    def __init__(self, frame: bytes, fields: Fields, version: Version) -> None:
        self.frame = frame
        self.fields = fields
        self.version = version

    @property
    def batch_count(self) -> int | None:
        """Batch Count; messages of 3.0 have none."""
        return self._number(Tag.BATCH_COUNT)

    @property
    def time_stamp(self) -> int | None:
        """Time Stamp, in seconds since 1970 UTC; signed."""
        raw = self._raw(Tag.TIME_STAMP)
        return None if raw is None else int.from_bytes(raw, "big", signed=True)


class Request(_Message):
    """A request. ``frame`` is the message itself, to be forwarded unchanged."""

    __slots__ = ("items",)

    def __init__(self, frame: bytes, fields: Fields, version: Version, items: list[RequestItem]) -> None:
        self.frame = frame
        self.fields = fields
        self.version = version
        self.items = items

    def __repr__(self) -> str:
        operations = ", ".join(operation_name(item.operation) for item in self.items)
        return f"<Request {self.version[0]}.{self.version[1]} {operations}: {len(self.frame)} bytes>"

    @property
    def maximum_response_size(self) -> int | None:
        """Maximum Response Size that the client accepts, in bytes."""
        return self._number(Tag.MAXIMUM_RESPONSE_SIZE)

    @property
    def client_correlation_value(self) -> bytes | None:
        """Client Correlation Value (1.4 and later)."""
        return self._raw(Tag.CLIENT_CORRELATION_VALUE)

    @property
    def asynchronous_indicator(self) -> AsynchronousIndicator:
        """Asynchronous Indicator; PROHIBITED if missing.

        The Boolean of 1.x is OPTIONAL if true: the server may answer later. An unknown number is MANDATORY, the
        strictest value, as is any number in 1.x: a server that reads the number as a Boolean finds it true.
        """
        span = self.fields.get(Tag.ASYNCHRONOUS_INDICATOR)
        if span is None:
            return AsynchronousIndicator.PROHIBITED
        number = int.from_bytes(self.frame[span[0] : span[1]], "big")
        if span[1] - span[0] == 8:  # a Boolean's length
            return AsynchronousIndicator.OPTIONAL if number else AsynchronousIndicator.PROHIBITED
        if self.version < (2, 0):
            return AsynchronousIndicator.MANDATORY
        try:
            return AsynchronousIndicator(number)
        except ValueError:
            return AsynchronousIndicator.MANDATORY

    @property
    def batch_error_continuation_option(self) -> int | None:
        """Batch Error Continuation Option; None means Stop."""
        return self._number(Tag.BATCH_ERROR_CONTINUATION_OPTION)

    @property
    def batch_order_option(self) -> bool:
        """Batch Order Option; if missing, false in 1.x and true from 2.0 on."""
        number = self._number(Tag.BATCH_ORDER_OPTION)
        return self.version >= (2, 0) if number is None else bool(number)

    @property
    def has_authentication(self) -> bool:
        """True if the header has Authentication."""
        return _AUTHENTICATION in self.fields


class Response(_Message):
    """A key manager's answer. ``frame`` is the message itself, to be passed on unchanged."""

    __slots__ = ("_unsuccessful", "items")

    _unsuccessful: list[ResponseItem]  # set when the items are searched

    def __init__(self, frame: bytes, fields: Fields, version: Version, items: list[ResponseItem]) -> None:
        self.frame = frame
        self.fields = fields
        self.version = version
        self.items = items

    def __repr__(self) -> str:
        statuses = ", ".join(f"{operation_name(item.operation)}={item.status}" for item in self.items)
        return f"<Response {self.version[0]}.{self.version[1]} {statuses}: {len(self.frame)} bytes>"

    @property
    def unsuccessful(self) -> list[ResponseItem]:
        """Items whose Result Status is not Success: usually none. The first call searches the items."""
        try:
            return self._unsuccessful
        except AttributeError:
            self._unsuccessful = [item for item in self.items if item.status]
            return self._unsuccessful


def read_version(frame: bytes, item: ttlv.Item) -> Version:
    """Read a Protocol Version (1.4 section 6.1). Raises ProtocolError for any other item."""
    if item.tag != Tag.PROTOCOL_VERSION or item.type != ItemType.STRUCTURE:
        raise ProtocolError("the item is no Protocol Version")
    major = ttlv.find(frame, item.start, item.end, Tag.PROTOCOL_VERSION_MAJOR)
    minor = ttlv.find(frame, item.start, item.end, Tag.PROTOCOL_VERSION_MINOR)
    if major is None or minor is None:
        raise ProtocolError("the Protocol Version has no Major or no Minor")
    return ttlv.read_integer(frame, major), ttlv.read_integer(frame, minor)


def operation_name(number: int) -> str:
    """Return an operation's name as the specification writes it, without spaces; ``Unknown`` for an unknown number."""
    return _OPERATION_NAMES.get(number, "Unknown")


def reason_name(number: int) -> str:
    """Return a Result Reason's name, without spaces; ``Unknown`` for an unknown number."""
    return _REASON_NAMES.get(number, "Unknown")


def _camel(name: str) -> str:
    words = (word if word in ("MAC", "RNG", "PKCS") else word.title() for word in name.split("_"))
    return "".join(words)


_OPERATION_NAMES: Final = {int(operation): _camel(operation.name) for operation in Operation}
_REASON_NAMES: Final = {int(reason): _camel(reason.name) for reason in ResultReason}


def _identifier(frame: bytes, item: ttlv.Item) -> bytes:
    value = frame[item.start : item.end]
    return value.rstrip(b"\0") if item.type == ItemType.TEXT_STRING else value
