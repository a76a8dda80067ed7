"""Decode a message in one pass, down to its batch items (KMIP 1.4 section 7).

Decoding is strict, since the gateway decides by its own reading of a message and the key manager executes its own: both
must find the same operations, however carelessly the key manager reads. So these are errors: a known tag with a wrong
type, a field that may occur once and occurs twice, a length that its type does not have, a Batch Count that does not
count the items, and anything but a batch item, or but its Operation, at their positions. Unknown tags and types pass.

Most messages begin like a message before: see ``prefix_cache``.
"""

import struct
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.messages import Fields, Request, RequestItem, Response, ResponseItem, Version
from gateway.kmip.prefix_cache import OUTER_DEPTH, PrefixCache, check_payload_in_steps
from gateway.kmip.spec import FIXED_LENGTH, ItemType, Tag

MAX_DEPTH: Final = 32
MAX_BATCH_ITEMS: Final = 1000
MAX_FIELDS: Final = 5000  # in a request
MAX_RESPONSE_FIELDS: Final = 50_000  # a Locate may list as many objects as max_response_size has room for
_FIELDS_PER_ITEM: Final = 20  # further fields that each batch item allows

_SIZE: Final = ttlv.HEADER_SIZE
_STRUCTURE: Final = ttlv.STRUCTURE
_BIG_INTEGER: Final = int(ItemType.BIG_INTEGER)
_CHECKED: Final = 1 << 30  # max_depth for bytes whose depth has been checked already
_ITEMS_PER_STEP: Final = 40  # batch items that take as long as the fields of one step of ``ttlv.check_size_in_steps``
_STEP: Final = ttlv.ITEMS_PER_STEP * _SIZE  # bytes of the longest batch item whose depth is checked in one step

#: The opening of every message: the heads of message, header and Protocol Version, then Major and Minor.
_OPENING: Final = struct.Struct(">IIII16si4x8si4x")
_VERSION_SPAN: Final = (3 * _SIZE, _OPENING.size)
_VERSION_HEADS: Final = ttlv.HEAD.pack(ttlv.word(Tag.PROTOCOL_VERSION, ItemType.STRUCTURE), 4 * _SIZE) + ttlv.HEAD.pack(
    ttlv.word(Tag.PROTOCOL_VERSION_MAJOR, ItemType.INTEGER), 4
)
_MINOR_HEAD: Final = ttlv.HEAD.pack(ttlv.word(Tag.PROTOCOL_VERSION_MINOR, ItemType.INTEGER), 4)
_BATCH_ITEM_WORD: Final = ttlv.word(Tag.BATCH_ITEM, ItemType.STRUCTURE)

# To look up a member of an enumeration is slow, and every message needs these.
_LENGTHS: Final = {int(item_type): length for item_type, length in FIXED_LENGTH.items()}
_unpack_opening = _OPENING.unpack_from
_unpack_head = ttlv.HEAD.unpack_from
_PROTOCOL_VERSION: Final = int(Tag.PROTOCOL_VERSION)
_BATCH_COUNT: Final = int(Tag.BATCH_COUNT)
_AUTHENTICATION: Final = int(Tag.AUTHENTICATION)


class _KnownFields(NamedTuple):
    """The fields that the gateway reads in one kind of structure: each as a word (tag and type), and their tags."""

    words: frozenset[int]
    tags: frozenset[int]


class _Direction(NamedTuple):
    """The structure of requests, or that of responses."""

    message: int  # the word of the message, and that of its header
    opening: int
    header: _KnownFields
    item: _KnownFields
    required: int  # the field that every batch item must have, and whether it must be the first
    leading: bool
    rest: _KnownFields  # fields that must not follow the batch items
    prefixes: PrefixCache


def _known(*fields: tuple[Tag, ItemType]) -> _KnownFields:
    return _KnownFields(frozenset(ttlv.word(*field) for field in fields), frozenset(int(tag) for tag, _ in fields))


#: Requests, 1.4 sections 6, 7.1 and 9.1.3.
_REQUEST: Final = _Direction(
    ttlv.word(Tag.REQUEST_MESSAGE, ItemType.STRUCTURE),
    ttlv.word(Tag.REQUEST_HEADER, ItemType.STRUCTURE),
    _known(
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
    _known(
        (Tag.OPERATION, ItemType.ENUMERATION),
        (Tag.UNIQUE_BATCH_ITEM_ID, ItemType.BYTE_STRING),
        (Tag.REQUEST_PAYLOAD, ItemType.STRUCTURE),
    ),
    int(Tag.OPERATION),
    True,
    _KnownFields(frozenset(), frozenset({int(Tag.REQUEST_HEADER), int(Tag.BATCH_ITEM)})),
    PrefixCache(Tag.REQUEST_PAYLOAD, 4 * _SIZE + 2 * _SIZE),  # four heads, and Operation
)

#: Responses, 1.4 sections 6, 7.2 and 9.1.3.
_RESPONSE: Final = _Direction(
    ttlv.word(Tag.RESPONSE_MESSAGE, ItemType.STRUCTURE),
    ttlv.word(Tag.RESPONSE_HEADER, ItemType.STRUCTURE),
    _known(
        (Tag.PROTOCOL_VERSION, ItemType.STRUCTURE),
        (Tag.TIME_STAMP, ItemType.DATE_TIME),
        (Tag.BATCH_COUNT, ItemType.INTEGER),
    ),
    _known(
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
    _KnownFields(frozenset(), frozenset({int(Tag.RESPONSE_HEADER), int(Tag.BATCH_ITEM)})),
    PrefixCache(Tag.RESPONSE_PAYLOAD, 4 * _SIZE + 4 * _SIZE),  # four heads, Operation and Result Status
)


_Decoded = tuple[Version, Fields, list[Fields]]
"""The version, and the fields of the header and of every batch item."""


def decode_request(
    frame: bytes, max_depth: int = MAX_DEPTH, max_items: int = MAX_BATCH_ITEMS, max_fields: int = MAX_FIELDS
) -> Request:
    """Decode a request down to its batch items, in time linear in its size.

    ``frame`` is one whole message, as FrameReader returns it. It may have ``max_fields`` fields at any depth, and 20
    more for each batch item. Raises ProtocolError, with the version if that could be read; MessageTooLargeError for too
    many fields.
    """
    if len(frame) > max_fields * _SIZE:  # a shorter message can't have so many
        for _ in _check_size(frame, _REQUEST, max_depth, max_items, max_fields):
            pass
        max_depth = _CHECKED
    prefix = _REQUEST.prefixes.find(frame, max_depth)
    if prefix is not None:
        return Request(frame, prefix.header, prefix.version, [RequestItem(frame, prefix.item)])
    version, header, items = _at_once(_decode(frame, _REQUEST, max_depth, max_items))
    return Request(frame, header, version, [RequestItem(frame, fields) for fields in items])


def decode_request_in_steps(
    frame: bytes, max_depth: int = MAX_DEPTH, max_items: int = MAX_BATCH_ITEMS, max_fields: int = MAX_FIELDS
) -> Generator[None, None, Request]:
    """Decode as ``decode_request``, and yield after each step, some 0.1 ms of work, so that other tasks may run."""
    if len(frame) > max_fields * _SIZE:
        yield from _check_size(frame, _REQUEST, max_depth, max_items, max_fields)
        max_depth = _CHECKED
    prefix = _REQUEST.prefixes.find(frame, _CHECKED)
    if prefix is not None:
        yield from check_payload_in_steps(frame, prefix, max_depth)
        return Request(frame, prefix.header, prefix.version, [RequestItem(frame, prefix.item)])
    version, header, items = yield from _decode(frame, _REQUEST, max_depth, max_items)
    return Request(frame, header, version, [RequestItem(frame, fields) for fields in items])


def decode_response(
    frame: bytes, max_depth: int = MAX_DEPTH, max_items: int = MAX_BATCH_ITEMS, max_fields: int = MAX_RESPONSE_FIELDS
) -> Response:
    """Decode a response down to its batch items; bounds and errors are those of ``decode_request``."""
    if len(frame) > max_fields * _SIZE:
        for _ in _check_size(frame, _RESPONSE, max_depth, max_items, max_fields):
            pass
        max_depth = _CHECKED
    prefix = _RESPONSE.prefixes.find(frame, max_depth)
    if prefix is not None:
        return Response(frame, prefix.header, prefix.version, [ResponseItem(frame, prefix.item)])
    version, header, items = _at_once(_decode(frame, _RESPONSE, max_depth, max_items))
    return Response(frame, header, version, [ResponseItem(frame, fields) for fields in items])


def _check_size(frame: bytes, direction: _Direction, max_depth: int, max_items: int, max_fields: int) -> Iterator[None]:
    """Check depth and number of all fields of a large message, in one walk that ends at the first field too many.

    The depth need not be checked again: decode with ``_CHECKED``. Yields as ``ttlv.check_size_in_steps`` does.
    """
    version, _end = _read_opening(frame, direction)
    items = ttlv.Group(_BATCH_ITEM_WORD, max_items, _FIELDS_PER_ITEM, "batch items")
    try:
        yield from ttlv.check_size_in_steps(
            frame, 0, len(frame), max_depth=max_depth, max_fields=max_fields, group=items
        )
    except ProtocolError as error:
        error.version = version
        raise


def _at_once(steps: Generator[None, None, _Decoded]) -> _Decoded:
    """Return the result of a generator, without a pause between its steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            decoded: _Decoded = end.value
            return decoded


def _decode(frame: bytes, direction: _Direction, max_depth: int, max_items: int) -> Generator[None, None, _Decoded]:
    """Return the version, and the fields of the header and of every batch item; keep the prefix for the next frame.

    Yields after each step.
    """
    version, position = _read_opening(frame, direction)
    header = {_PROTOCOL_VERSION: _VERSION_SPAN}
    try:
        yield from ttlv.check_depth_in_steps(frame, _OPENING.size, position, max_depth - OUTER_DEPTH + 1)
        _read_fields(frame, _OPENING.size, position, header, direction.header, _CHECKED)
        items = yield from _read_items(frame, position, direction, max_depth, max_items)
        _check_count(frame, header.get(_BATCH_COUNT), len(items), version)
    except ProtocolError as error:
        error.version = version
        raise
    if len(items) == 1:
        direction.prefixes.add(frame, version, header, items[0])
    return version, header, items


def _read_opening(frame: bytes, direction: _Direction) -> tuple[Version, int]:
    """Return the version, and the position at which the header ends.

    Protocol Version is the first field of every header, with Major and Minor in that order.
    """
    if len(frame) < _OPENING.size:
        raise ProtocolError("the message is too short for a header")
    message, size, opening, length, version_heads, major, minor_head, minor = _unpack_opening(frame)
    if message != direction.message or size != len(frame) - _SIZE or size & 7:
        raise ProtocolError("the message has a wrong tag or a wrong length")
    end: int = 2 * _SIZE + length
    if opening != direction.opening or end > len(frame) or length & 7:
        raise ProtocolError("the message does not begin with its header")
    if version_heads != _VERSION_HEADS or minor_head != _MINOR_HEAD or end < _OPENING.size:
        raise ProtocolError("the header does not begin with Protocol Version")
    return (major, minor), end


def _read_items(
    frame: bytes, position: int, direction: _Direction, max_depth: int, max_items: int
) -> Generator[None, None, list[Fields]]:
    """Return the fields of every batch item. Other items may only follow the last batch item."""
    end = len(frame)
    known, required, leading = direction.item, direction.required, direction.leading
    items: list[Fields] = []
    while position < end:
        word, length = _unpack_head(frame, position)
        if word != _BATCH_ITEM_WORD:
            yield from ttlv.check_depth_in_steps(frame, position, end, max_depth - OUTER_DEPTH + 2)
            _read_fields(frame, position, end, {}, direction.rest, _CHECKED)
            break
        start = position + _SIZE
        position = start + length
        if position > end or length & 7:
            raise ProtocolError(f"a batch item has length {length}, but {end - start} bytes are left")
        if len(items) == max_items:
            raise ProtocolError(f"more than {max_items} batch items")
        if items and len(items) % _ITEMS_PER_STEP == 0:
            yield
        fields: Fields = {}
        if length > _STEP:
            yield from ttlv.check_depth_in_steps(frame, start, position, max_depth - OUTER_DEPTH + 1)
        _read_fields(frame, start, position, fields, known, _CHECKED if length > _STEP else max_depth)
        if required not in fields:
            raise ProtocolError(f"a batch item has no {Tag(required).name}")
        if leading and fields[required][0] != start + _SIZE:
            raise ProtocolError(f"a batch item does not begin with {Tag(required).name}")
        items.append(fields)
    return items


def _check_count(frame: bytes, count: tuple[int, int] | None, items: int, version: Version) -> None:
    if not items:
        raise ProtocolError("the message has no batch item")
    if count is None:
        if version < (3, 0):
            raise ProtocolError("the header has no Batch Count")
    elif int.from_bytes(frame[count[0] : count[1]], "big") != items:
        raise ProtocolError("Batch Count is not the number of batch items")


def _read_fields(frame: bytes, position: int, end: int, fields: Fields, known: _KnownFields, max_depth: int) -> None:
    """Add the spans of the known fields of one structure to ``fields``.

    Raises ProtocolError for a known field of a wrong type, or for a second field of the same tag. Both positions are
    multiples of eight, so that there is a whole head at the beginning of every item.
    """
    words, tags = known
    while position < end:
        word, length = _unpack_head(frame, position)
        position += _SIZE
        value_end = position + length
        if value_end > end:
            raise ProtocolError(f"field {ttlv.tag_name(word >> 8)} ends beyond its structure")
        tag = word >> 8
        if word in words:
            if tag in fields:
                raise ProtocolError(f"field {ttlv.tag_name(tag)} occurs twice")
            fields[tag] = (position, value_end)
        elif tag in tags:
            raise ProtocolError(f"field {ttlv.tag_name(tag)} is not allowed here, or has a wrong type")
        item_type = word & 0xFF
        if item_type == _STRUCTURE:
            if length & 7:
                raise ProtocolError(f"structure {ttlv.tag_name(tag)} has a wrong length")
            if length > (max_depth - OUTER_DEPTH) * _SIZE:
                ttlv.check_depth(frame, position, value_end, max_depth - OUTER_DEPTH)
        elif _LENGTHS.get(item_type, length) != length or (item_type == _BIG_INTEGER and length & 7):
            raise ProtocolError(f"field {ttlv.tag_name(tag)} has a wrong length")
        position = (value_end + 7) & ~7
