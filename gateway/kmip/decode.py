"""Reading a message, once, down to its batch items (KMIP 1.4 section 7).

Reading is strict here, since the gateway decides by what it reads and the key manager executes what *it* reads: both
must find the same operations in a message, however carelessly the key manager looks. So these are errors: a known tag
with a wrong type, a field that may stand once and stands twice, a length that its type does not have, a Batch Count
that does not count the items, and anything else where a batch item or its Operation should stand. Unknown tags and
types pass.
"""

import struct
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.messages import Fields, Request, RequestItem, Response, ResponseItem, Version
from gateway.kmip.spec import FIXED_LENGTH, ItemType, Tag

MAX_DEPTH: Final = 32
MAX_BATCH_ITEMS: Final = 1000
MAX_FIELDS: Final = 5000  # in a request
MAX_RESPONSE_FIELDS: Final = 50_000  # a Locate may list as many objects as max_response_size has room for
_FIELDS_PER_ITEM: Final = 20  # that a batch item may have besides

_SIZE: Final = ttlv.HEADER_SIZE
_STRUCTURE: Final = ttlv.STRUCTURE
_BIG_INTEGER: Final = int(ItemType.BIG_INTEGER)
_CHECKED: Final = 1 << 30  # the depth of a message whose depth was checked
_OUTER_DEPTH: Final = 3  # message, header or batch item, and what that holds: the levels that are walked here

#: What every message opens with: the heads of message and header, that of Protocol Version, Major, and Minor.
_OPENING: Final = struct.Struct(">IIII16si4x8si4x")
_VERSION_SPAN: Final = (3 * _SIZE, _OPENING.size)
_VERSION_HEADS: Final = ttlv.HEAD.pack(ttlv.word(Tag.PROTOCOL_VERSION, ItemType.STRUCTURE), 4 * _SIZE) + ttlv.HEAD.pack(
    ttlv.word(Tag.PROTOCOL_VERSION_MAJOR, ItemType.INTEGER), 4
)
_MINOR_HEAD: Final = ttlv.HEAD.pack(ttlv.word(Tag.PROTOCOL_VERSION_MINOR, ItemType.INTEGER), 4)
_BATCH_ITEM_WORD: Final = ttlv.word(Tag.BATCH_ITEM, ItemType.STRUCTURE)

# A member of an enumeration is slow to come by; these are needed in every message.
_LENGTHS: Final = {int(item_type): length for item_type, length in FIXED_LENGTH.items()}
_unpack_opening = _OPENING.unpack_from
_unpack_head = ttlv.HEAD.unpack_from
_PROTOCOL_VERSION: Final = int(Tag.PROTOCOL_VERSION)
_BATCH_COUNT: Final = int(Tag.BATCH_COUNT)
_AUTHENTICATION: Final = int(Tag.AUTHENTICATION)

_HEADER_LENGTH: Final = 15  # where the header's length stands, in messages whose header is short enough for one byte
_SHAPES: Final = 500  # beginnings that are remembered; answers have a new one every second, by their Time Stamp


class _Form(NamedTuple):
    """The fields that the gateway reads in one kind of structure: each with its type, as a word, and their tags."""

    words: frozenset[int]
    tags: frozenset[int]


class _Shape(NamedTuple):
    """What was read of a message up to its payload, and where that lies: the same for all that begin alike."""

    version: Version
    header: Fields
    fields: Fields
    payload: tuple[int, int]


class _Side(NamedTuple):
    """How messages of one direction are made up."""

    message: int  # their first word, and their second
    opening: int
    header: _Form
    item: _Form
    required: int  # the field without which a batch item is none, and whether it leads
    leading: bool
    rest: _Form  # what may not stand behind the batch items
    payload: int
    before_payload: int  # bytes before the payload's value, besides the header's, in the shortest message of one item
    shapes: dict[bytes, _Shape]  # by those bytes


def _form(*fields: tuple[Tag, ItemType]) -> _Form:
    return _Form(frozenset(ttlv.word(*field) for field in fields), frozenset(int(tag) for tag, _ in fields))


#: Requests, 1.4 sections 6, 7.1 and 9.1.3.
_REQUEST: Final = _Side(
    ttlv.word(Tag.REQUEST_MESSAGE, ItemType.STRUCTURE),
    ttlv.word(Tag.REQUEST_HEADER, ItemType.STRUCTURE),
    _form(
        (Tag.PROTOCOL_VERSION, ItemType.STRUCTURE),
        (Tag.MAXIMUM_RESPONSE_SIZE, ItemType.INTEGER),
        (Tag.CLIENT_CORRELATION_VALUE, ItemType.TEXT_STRING),
        (Tag.ASYNCHRONOUS_INDICATOR, ItemType.BOOLEAN),  # in 1.x
        (Tag.ASYNCHRONOUS_INDICATOR, ItemType.ENUMERATION),  # since 2.0
        (Tag.AUTHENTICATION, ItemType.STRUCTURE),
        (Tag.BATCH_ERROR_CONTINUATION_OPTION, ItemType.ENUMERATION),
        (Tag.BATCH_ORDER_OPTION, ItemType.BOOLEAN),
        (Tag.TIME_STAMP, ItemType.DATE_TIME),
        (Tag.BATCH_COUNT, ItemType.INTEGER),
    ),
    _form(
        (Tag.OPERATION, ItemType.ENUMERATION),
        (Tag.UNIQUE_BATCH_ITEM_ID, ItemType.BYTE_STRING),
        (Tag.REQUEST_PAYLOAD, ItemType.STRUCTURE),
    ),
    int(Tag.OPERATION),
    True,
    _Form(frozenset(), frozenset({int(Tag.REQUEST_HEADER), int(Tag.BATCH_ITEM)})),
    int(Tag.REQUEST_PAYLOAD),
    4 * _SIZE + 2 * _SIZE,  # four heads, and Operation
    {},
)

#: Responses, 1.4 sections 6, 7.2 and 9.1.3.
_RESPONSE: Final = _Side(
    ttlv.word(Tag.RESPONSE_MESSAGE, ItemType.STRUCTURE),
    ttlv.word(Tag.RESPONSE_HEADER, ItemType.STRUCTURE),
    _form(
        (Tag.PROTOCOL_VERSION, ItemType.STRUCTURE),
        (Tag.TIME_STAMP, ItemType.DATE_TIME),
        (Tag.BATCH_COUNT, ItemType.INTEGER),
    ),
    _form(
        (Tag.OPERATION, ItemType.ENUMERATION),
        (Tag.UNIQUE_BATCH_ITEM_ID, ItemType.BYTE_STRING),
        (Tag.RESULT_STATUS, ItemType.ENUMERATION),
        (Tag.RESULT_REASON, ItemType.ENUMERATION),
        (Tag.RESULT_MESSAGE, ItemType.TEXT_STRING),
        (Tag.ASYNCHRONOUS_CORRELATION_VALUE, ItemType.BYTE_STRING),
        (Tag.RESPONSE_PAYLOAD, ItemType.STRUCTURE),
    ),
    int(Tag.RESULT_STATUS),
    False,
    _Form(frozenset(), frozenset({int(Tag.RESPONSE_HEADER), int(Tag.BATCH_ITEM)})),
    int(Tag.RESPONSE_PAYLOAD),
    4 * _SIZE + 4 * _SIZE,  # four heads, Operation and Result Status
    {},
)


def decode_request(
    frame: bytes, max_depth: int = MAX_DEPTH, max_items: int = MAX_BATCH_ITEMS, max_fields: int = MAX_FIELDS
) -> Request:
    """Read a request down to its batch items, in one pass, in time linear in its size.

    ``frame`` is one whole message, as FrameReader gives it. It may have ``max_fields`` fields at any depth, and 20 more
    for each batch item. Raises ProtocolError, with the version where that could be read; MessageTooLargeError for too
    many fields.
    """
    if len(frame) > max_fields * _SIZE:  # a shorter message can't have so many
        for _ in _check_size(frame, _REQUEST, max_depth, max_items, max_fields):
            pass
        max_depth = _CHECKED
    version, header, items = _decode(frame, _REQUEST, max_depth, max_items)
    return Request(frame, header, version, [RequestItem(frame, fields) for fields in items])


def decode_request_in_steps(
    frame: bytes, max_depth: int = MAX_DEPTH, max_items: int = MAX_BATCH_ITEMS, max_fields: int = MAX_FIELDS
) -> Generator[None, None, Request]:
    """Decode as decode_request, and yield wherever other work may come between: see ``ttlv.check_size_in_steps``."""
    if len(frame) > ttlv.ITEMS_PER_STEP * _SIZE:
        yield from _check_size(frame, _REQUEST, max_depth, max_items, max_fields)
        max_depth, max_fields = _CHECKED, len(frame)
        yield
    return decode_request(frame, max_depth, max_items, max_fields)


def decode_response(
    frame: bytes, max_depth: int = MAX_DEPTH, max_items: int = MAX_BATCH_ITEMS, max_fields: int = MAX_RESPONSE_FIELDS
) -> Response:
    """Read a response down to its batch items; as decode_request."""
    if len(frame) > max_fields * _SIZE:
        for _ in _check_size(frame, _RESPONSE, max_depth, max_items, max_fields):
            pass
        max_depth = _CHECKED
    version, header, items = _decode(frame, _RESPONSE, max_depth, max_items)
    return Response(frame, header, version, [ResponseItem(frame, fields) for fields in items])


def _decode(frame: bytes, side: _Side, max_depth: int, max_items: int) -> tuple[Version, Fields, list[Fields]]:
    """The version, and the fields of the header and of every batch item."""
    beginning = frame[: side.before_payload + frame[_HEADER_LENGTH]] if len(frame) > _HEADER_LENGTH else b""
    shape = side.shapes.get(beginning)
    if shape is not None and shape.payload[1] == len(frame):
        version, header, fields, payload = shape
        if payload[1] - payload[0] > (max_depth - _OUTER_DEPTH) * _SIZE:
            _check_payload(frame, shape, max_depth)
        return version, header, [fields]
    version, header, items = _read(frame, side, max_depth, max_items)
    if len(items) == 1:
        _remember(beginning, frame, side, _Shape(version, header, items[0], items[0].get(side.payload, (0, 0))))
    return version, header, items


def _check_size(frame: bytes, side: _Side, max_depth: int, max_items: int, max_fields: int) -> Iterator[None]:
    """Check depth and number of all fields of a large message, in one walk that ends at the first field too many.

    Afterwards no depth is left to check: decode with ``_CHECKED``. Yields as ``ttlv.check_size_in_steps``.
    """
    version, _end = _read_opening(frame, side)
    items = ttlv.Group(_BATCH_ITEM_WORD, max_items, _FIELDS_PER_ITEM, "batch items")
    try:
        yield from ttlv.check_size_in_steps(
            frame, 0, len(frame), max_depth=max_depth, max_fields=max_fields, group=items
        )
    except ProtocolError as error:
        error.version = version
        raise


def _check_payload(frame: bytes, shape: _Shape, max_depth: int) -> None:
    try:
        ttlv.check_depth(frame, *shape.payload, max_depth - _OUTER_DEPTH)
    except ProtocolError as error:
        error.version = shape.version
        raise


def _remember(beginning: bytes, frame: bytes, side: _Side, shape: _Shape) -> None:
    """Remember what a message of one item begins with, if nothing but numbers stands before its payload.

    Whatever begins with the same bytes, and is as long, reads the same: all but the payload's depth hangs on these
    bytes alone. They hold no key, no name and no credential.
    """
    header_length = frame[_HEADER_LENGTH]
    numbers = 5 * _SIZE + 2 * _SIZE * (len(shape.header) - 1)  # Protocol Version, and the others
    if (
        shape.payload != (len(beginning), len(frame))
        or len(beginning) != side.before_payload + header_length
        or header_length != numbers
        or _AUTHENTICATION in shape.header
    ):
        return
    if len(side.shapes) >= _SHAPES:
        side.shapes.clear()
    side.shapes[beginning] = shape


def _read(frame: bytes, side: _Side, max_depth: int, max_items: int) -> tuple[Version, Fields, list[Fields]]:
    """As _decode, from the bytes alone."""
    version, position = _read_opening(frame, side)
    header = {_PROTOCOL_VERSION: _VERSION_SPAN}
    try:
        _read_fields(frame, _OPENING.size, position, header, side.header, max_depth)
        items = _read_items(frame, position, side, max_depth, max_items)
        _check_count(frame, header.get(_BATCH_COUNT), len(items), version)
    except ProtocolError as error:
        error.version = version
        raise
    return version, header, items


def _read_opening(frame: bytes, side: _Side) -> tuple[Version, int]:
    """The version, which stands first in every header with Major and Minor in that order; and where the header ends."""
    if len(frame) < _OPENING.size:
        raise ProtocolError("a message too short for a header")
    message, size, opening, length, version_heads, major, minor_head, minor = _unpack_opening(frame)
    if message != side.message or size != len(frame) - _SIZE or size & 7:
        raise ProtocolError("not one whole message of its kind")
    end: int = 2 * _SIZE + length
    if opening != side.opening or end > len(frame) or length & 7:
        raise ProtocolError("a message that does not begin with its header")
    if version_heads != _VERSION_HEADS or minor_head != _MINOR_HEAD or end < _OPENING.size:
        raise ProtocolError("a header that does not begin with Protocol Version")
    return (major, minor), end


def _read_items(frame: bytes, position: int, side: _Side, max_depth: int, max_items: int) -> list[Fields]:
    """The fields of every batch item. What is none may stand behind the last of them, and nowhere else."""
    end = len(frame)
    items: list[Fields] = []
    while position < end:
        word, length = _unpack_head(frame, position)
        if word != _BATCH_ITEM_WORD:
            _read_fields(frame, position, end, {}, side.rest, max_depth + 1)
            break
        start = position + _SIZE
        position = start + length
        if position > end or length & 7:
            raise ProtocolError(f"a batch item of length {length}, where {end - start} bytes are left")
        if len(items) == max_items:
            raise ProtocolError(f"more than {max_items} batch items")
        fields: Fields = {}
        _read_fields(frame, start, position, fields, side.item, max_depth)
        if side.required not in fields:
            raise ProtocolError(f"a batch item without {Tag(side.required).name}")
        if side.leading and fields[side.required][0] != start + _SIZE:
            raise ProtocolError(f"a batch item that does not begin with {Tag(side.required).name}")
        items.append(fields)
    return items


def _check_count(frame: bytes, count: tuple[int, int] | None, items: int, version: Version) -> None:
    if not items:
        raise ProtocolError("a message without a batch item")
    if count is None:
        if version < (3, 0):
            raise ProtocolError("a header without Batch Count")
    elif int.from_bytes(frame[count[0] : count[1]], "big") != items:
        raise ProtocolError("Batch Count does not count the batch items")


def _read_fields(frame: bytes, position: int, end: int, fields: Fields, form: _Form, max_depth: int) -> None:
    """Add to ``fields`` where the known fields of one structure lie; each of its type, and none twice.

    Both positions are multiples of eight, so that a whole head is left wherever an item begins.
    """
    words, tags = form
    while position < end:
        word, length = _unpack_head(frame, position)
        position += _SIZE
        value_end = position + length
        if value_end > end:
            raise ProtocolError(f"field {ttlv.tag_name(word >> 8)} overruns its structure")
        if word in words:
            if word >> 8 in fields:
                raise ProtocolError(f"field {ttlv.tag_name(word >> 8)} stands twice")
            fields[word >> 8] = (position, value_end)
        elif word >> 8 in tags:
            raise ProtocolError(f"field {ttlv.tag_name(word >> 8)} where it may not stand, or of a wrong type")
        item_type = word & 0xFF
        if item_type == _STRUCTURE:
            if length & 7:
                raise ProtocolError(f"structure {ttlv.tag_name(word >> 8)} has a wrong length")
            if length > (max_depth - _OUTER_DEPTH) * _SIZE:
                ttlv.check_depth(frame, position, value_end, max_depth - _OUTER_DEPTH)
        elif _LENGTHS.get(item_type, length) != length or (item_type == _BIG_INTEGER and length & 7):
            raise ProtocolError(f"field {ttlv.tag_name(word >> 8)} has a wrong length")
        position = (value_end + 7) & ~7
