"""Reading a message, once, down to its batch items (KMIP 1.4 section 7).

Reading is strict here, since the gateway decides by what it reads and the key manager executes what *it* reads: a
known tag with a wrong type, a field that may stand once and stands twice, or a Batch Count that does not count the
items is an error. Unknown tags pass.
"""

from typing import Final

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.messages import Fields, Request, RequestItem, Response, ResponseItem, Version
from gateway.kmip.spec import FIXED_LENGTH, ItemType, Tag

MAX_DEPTH: Final = 32
MAX_BATCH_ITEMS: Final = 1000

_HEAD = ttlv.HEAD
_SIZE = ttlv.HEADER_SIZE
_MESSAGE_DEPTH = 3  # message, batch item, payload: the levels walked here

#: The fields that the gateway reads, with the one type each has (1.4 sections 6 and 9.1.3). Asynchronous Indicator is a
#: Boolean in 1.x and an Enumeration in 2.x, so that either passes.
_REQUEST_HEADER_TYPES: Final[dict[int, tuple[int, ...]]] = {
    Tag.PROTOCOL_VERSION: (ItemType.STRUCTURE,),
    Tag.MAXIMUM_RESPONSE_SIZE: (ItemType.INTEGER,),
    Tag.CLIENT_CORRELATION_VALUE: (ItemType.TEXT_STRING,),
    Tag.ASYNCHRONOUS_INDICATOR: (ItemType.BOOLEAN, ItemType.ENUMERATION),
    Tag.AUTHENTICATION: (ItemType.STRUCTURE,),
    Tag.BATCH_ERROR_CONTINUATION_OPTION: (ItemType.ENUMERATION,),
    Tag.BATCH_ORDER_OPTION: (ItemType.BOOLEAN,),
    Tag.TIME_STAMP: (ItemType.DATE_TIME,),
    Tag.BATCH_COUNT: (ItemType.INTEGER,),
}
_RESPONSE_HEADER_TYPES: Final[dict[int, tuple[int, ...]]] = {
    Tag.PROTOCOL_VERSION: (ItemType.STRUCTURE,),
    Tag.TIME_STAMP: (ItemType.DATE_TIME,),
    Tag.BATCH_COUNT: (ItemType.INTEGER,),
}
_REQUEST_ITEM_TYPES: Final[dict[int, tuple[int, ...]]] = {
    Tag.OPERATION: (ItemType.ENUMERATION,),
    Tag.UNIQUE_BATCH_ITEM_ID: (ItemType.BYTE_STRING,),
    Tag.REQUEST_PAYLOAD: (ItemType.STRUCTURE,),
}
_RESPONSE_ITEM_TYPES: Final[dict[int, tuple[int, ...]]] = {
    Tag.OPERATION: (ItemType.ENUMERATION,),
    Tag.UNIQUE_BATCH_ITEM_ID: (ItemType.BYTE_STRING,),
    Tag.RESULT_STATUS: (ItemType.ENUMERATION,),
    Tag.RESULT_REASON: (ItemType.ENUMERATION,),
    Tag.RESULT_MESSAGE: (ItemType.TEXT_STRING,),
    Tag.ASYNCHRONOUS_CORRELATION_VALUE: (ItemType.BYTE_STRING,),
    Tag.RESPONSE_PAYLOAD: (ItemType.STRUCTURE,),
}
_BATCH_ITEM_WORD = ttlv.word(Tag.BATCH_ITEM, ItemType.STRUCTURE)
_VERSION_WORD = ttlv.word(Tag.PROTOCOL_VERSION, ItemType.STRUCTURE)
_MAJOR_WORD = ttlv.word(Tag.PROTOCOL_VERSION_MAJOR, ItemType.INTEGER)
_MINOR_WORD = ttlv.word(Tag.PROTOCOL_VERSION_MINOR, ItemType.INTEGER)


def decode_request(frame: bytes, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_BATCH_ITEMS) -> Request:
    """Read a request down to its batch items, in one pass, in time linear in its size.

    ``frame`` is one whole message, as FrameReader gives it. Raises ProtocolError, with the version where that could be
    read.
    """
    fields, version, spans = _split(frame, Tag.REQUEST_HEADER, _REQUEST_HEADER_TYPES, max_depth, max_items)
    items = []
    for start, end in spans:
        item_fields = _read_fields(frame, start, end, _REQUEST_ITEM_TYPES, max_depth - _MESSAGE_DEPTH, version)
        if Tag.OPERATION not in item_fields:
            raise ProtocolError("a batch item without Operation", version=version)
        items.append(RequestItem(frame, item_fields))
    return Request(frame, fields, version, items)


def decode_response(frame: bytes, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_BATCH_ITEMS) -> Response:
    """Read a response down to its batch items; as decode_request."""
    fields, version, spans = _split(frame, Tag.RESPONSE_HEADER, _RESPONSE_HEADER_TYPES, max_depth, max_items)
    items = []
    for start, end in spans:
        item_fields = _read_fields(frame, start, end, _RESPONSE_ITEM_TYPES, max_depth - _MESSAGE_DEPTH, version)
        if Tag.RESULT_STATUS not in item_fields:
            raise ProtocolError("a batch item without Result Status", version=version)
        items.append(ResponseItem(frame, item_fields))
    return Response(frame, fields, version, items)


def _split(
    frame: bytes, header: Tag, types: dict[int, tuple[int, ...]], max_depth: int, max_items: int
) -> tuple[Fields, Version, list[tuple[int, int]]]:
    """Read the header; find where the batch items begin and end."""
    end = len(frame)
    if end < 2 * _SIZE:
        raise ProtocolError("a message without a header")
    tag_and_type, length = _HEAD.unpack_from(frame, _SIZE)
    position = 2 * _SIZE
    if tag_and_type != header << 8 | ttlv.STRUCTURE:
        raise ProtocolError("a message that does not begin with its header")
    if length > end - position:
        raise ProtocolError("the header overruns the message")
    version = _read_version(frame, position, position + length)
    fields = _read_fields(frame, position, position + length, types, max_depth - 2, version)
    spans = _find_items(frame, position + ttlv.padded(length), header, max_depth - 1, version)
    _check_count(fields.get(Tag.BATCH_COUNT), frame, len(spans), max_items, version)
    return fields, version, spans


def _find_items(frame: bytes, position: int, header: Tag, max_depth: int, version: Version) -> list[tuple[int, int]]:
    end = len(frame)
    spans: list[tuple[int, int]] = []
    while position < end:
        if end - position < _SIZE:
            raise ProtocolError("stray bytes behind the last item", version=version)
        tag_and_type, length = _HEAD.unpack_from(frame, position)
        position += _SIZE
        if length > end - position:
            raise ProtocolError(f"item {tag_and_type >> 8:06X} overruns the message", version=version)
        if tag_and_type == _BATCH_ITEM_WORD:
            spans.append((position, position + length))
        elif tag_and_type >> 8 in (Tag.BATCH_ITEM, header):
            raise ProtocolError(f"item {tag_and_type >> 8:06X} where or as it may not stand", version=version)
        else:
            _check_unread(frame, tag_and_type, position, length, max_depth, version)
        position += ttlv.padded(length)
    return spans


def _check_count(span: tuple[int, int] | None, frame: bytes, items: int, max_items: int, version: Version) -> None:
    if not items:
        raise ProtocolError("a message without a batch item", version=version)
    if items > max_items:
        raise ProtocolError(f"{items} batch items, over the limit of {max_items}", version=version)
    if span is None:
        if version < (3, 0):
            raise ProtocolError("a header without Batch Count", version=version)
    elif int.from_bytes(frame[span[0] : span[1]], "big") != items:
        raise ProtocolError("Batch Count does not count the batch items", version=version)


def _read_version(frame: bytes, start: int, end: int) -> Version:
    """Protocol Version stands first in every header (1.4 section 6.1), with Major and Minor in that order."""
    if end - start >= 5 * _SIZE:
        tag_and_type, length = _HEAD.unpack_from(frame, start)
        major_word, major_length, major = ttlv.HEAD_INT.unpack_from(frame, start + _SIZE)
        minor_word, minor_length, minor = ttlv.HEAD_INT.unpack_from(frame, start + 3 * _SIZE)
        if (tag_and_type, length, major_length, minor_length) == (_VERSION_WORD, 4 * _SIZE, 4, 4) and (
            (major_word, minor_word) == (_MAJOR_WORD, _MINOR_WORD)
        ):
            return major, minor
    raise ProtocolError("a header that does not begin with Protocol Version")


def _read_fields(
    frame: bytes, start: int, end: int, types: dict[int, tuple[int, ...]], max_depth: int, version: Version
) -> Fields:
    """Where the known fields of one structure lie; each of its type, and none twice."""
    fields: Fields = {}
    position = start
    while position < end:
        if end - position < _SIZE:
            raise ProtocolError("stray bytes where a field should begin", version=version)
        tag_and_type, length = _HEAD.unpack_from(frame, position)
        position += _SIZE
        tag = tag_and_type >> 8
        if length > end - position:
            raise ProtocolError(f"field {tag:06X} overruns its structure", version=version)
        expected = types.get(tag)
        if expected is not None:
            item_type = tag_and_type & 0xFF
            if item_type not in expected or FIXED_LENGTH.get(item_type, length) != length:
                raise ProtocolError(f"field {tag:06X} has type {item_type} and length {length}", version=version)
            if tag in fields:
                raise ProtocolError(f"field {tag:06X} stands twice", version=version)
            fields[tag] = (position, position + length)
        _check_unread(frame, tag_and_type, position, length, max_depth, version)
        position += ttlv.padded(length)
    return fields


def _check_unread(frame: bytes, tag_and_type: int, start: int, length: int, max_depth: int, version: Version) -> None:
    if tag_and_type & 0xFF == ttlv.STRUCTURE and length > max_depth * _SIZE:
        try:
            ttlv.check_depth(frame, start, start + length, max_depth)
        except ProtocolError as error:
            raise ProtocolError(str(error), version=version) from None
