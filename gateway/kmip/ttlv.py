"""The encoding TTLV: Tag, Type, Length, Value (KMIP 1.4 section 9.1).

An item is a tag of three bytes, a type of one byte, a length of four, and a value padded with zeros to a multiple of
eight bytes. Tag and type are read as a single number of 32 bits, the *word*, since the same tag with a wrong type is
a different field.

Items are read in place, by positions in the bytes of the message. Reading is strict in the structures that the gateway
walks, and all other bytes are opaque: a value that ends beyond its parent is an error only in a structure that is
walked. Missing padding is accepted at the end of a structure. Before a further item it is an error, since readers would
disagree on the position of that item.
"""

import struct
from bisect import bisect_right
from collections.abc import Container, Iterator, Mapping
from typing import Final, NamedTuple

from gateway.errors import MessageTooLargeError, ProtocolError
from gateway.kmip.spec import FIXED_LENGTH, ItemType, Tag

HEADER_SIZE: Final = 8
STRUCTURE: Final = int(ItemType.STRUCTURE)

#: Types whose length is always a multiple of eight (section 9.1.1.3), so that some readers skip no padding.
UNPADDED: Final = frozenset({int(ItemType.STRUCTURE), int(ItemType.BIG_INTEGER)})
_LENGTHS: Final = {int(item_type): length for item_type, length in FIXED_LENGTH.items()}

#: Word and length: the first eight bytes of every item.
HEAD: Final = struct.Struct(">II")
_INT: Final = struct.Struct(">i")
_UINT: Final = struct.Struct(">I")
_LONG: Final = struct.Struct(">q")
HEAD_INT: Final = struct.Struct(">IIi4x")
_HEAD_UINT: Final = struct.Struct(">III4x")
_HEAD_LONG: Final = struct.Struct(">IIq")


_KNOWN_TAGS: Final = frozenset(Tag)
_IN_OUTERMOST: Final = 2  # open ends within an outermost structure: the end of the span, and that of the structure
unpack_head = HEAD.unpack_from


class Item(NamedTuple):
    """An item in its buffer; ``start`` and ``end`` are the positions of its value, without head and padding."""

    tag: int
    type: int
    start: int
    end: int


def tag_name(tag: int) -> str:
    """Return a tag's name for an error or the log; unknown tags may be bytes of a secret, and are not written."""
    return Tag(tag).name if tag in _KNOWN_TAGS else "of an unknown tag"


def word(tag: int, item_type: int) -> int:
    """Return the word with which an item begins: tag and type."""
    return tag << 8 | item_type


def padded(length: int) -> int:
    """Return a value's length with its padding (section 9.1.1.4)."""
    return (length + 7) & ~7


class _Anything:
    """Contains every tag."""

    def __contains__(self, tag: object) -> bool:
        return True


def walk(buffer: bytes, start: int, end: int, tags: Container[int] = _Anything()) -> Iterator[Item]:
    """Yield the items with these tags between two positions, at the first level.

    Raises ProtocolError for an item that ends beyond ``end``, for a length that its type does not have, and for a
    length after which readers may disagree on the position of the next item.
    """
    position = start
    while position < end:
        if end - position < HEADER_SIZE:
            raise ProtocolError(f"{end - position} bytes are too few for an item")
        tag_and_type, length = unpack_head(buffer, position)
        position += HEADER_SIZE
        item_type = tag_and_type & 0xFF
        if length > end - position:
            raise ProtocolError(f"item {tag_name(tag_and_type >> 8)} ends beyond its structure")
        if _LENGTHS.get(item_type, length) != length:
            raise ProtocolError(f"item {tag_name(tag_and_type >> 8)} has a wrong length")
        next_position = position + padded(length)
        if length & 7 and item_type in UNPADDED and next_position < end:
            raise ProtocolError(f"item {tag_name(tag_and_type >> 8)} has a wrong length, and items follow it")
        if tag_and_type >> 8 in tags:
            yield Item(tag_and_type >> 8, item_type, position, position + length)
        position = next_position


def find(buffer: bytes, start: int, end: int, tag: int) -> Item | None:
    """Return the first item with this tag between two positions, or None. Raises as ``walk`` does."""
    return next((item for item in walk(buffer, start, end) if item.tag == tag), None)


def check_depth(buffer: bytes, start: int, end: int, limit: int) -> None:
    """Raise ProtocolError if structures between two positions nest deeper than ``limit`` levels.

    Each level takes eight bytes, so that a short span is not examined, nor a span in which at most ``limit`` words
    could be the head of a structure. All other spans are checked as by ``check_size``.
    """
    if _may_be_deeper(buffer, start, end, limit):
        check_size(buffer, start, end, max_depth=limit, max_fields=end - start)


def check_depth_in_steps(buffer: bytes, start: int, end: int, limit: int) -> Iterator[None]:
    """Check as ``check_depth`` does, and yield as ``check_size_in_steps`` does."""
    if _may_be_deeper(buffer, start, end, limit):
        yield from check_size_in_steps(buffer, start, end, max_depth=limit, max_fields=end - start)


def _may_be_deeper(buffer: bytes, start: int, end: int, limit: int) -> bool:
    return end - start > limit * HEADER_SIZE and buffer[start + 3 : end : HEADER_SIZE].count(STRUCTURE) > limit


class Group(NamedTuple):
    """A structure that may occur ``at_most`` times in the outermost structure; each allows ``fields`` more items."""

    word: int
    at_most: int
    fields: int
    name: str


ITEMS_PER_STEP: Final = 250  # some 0.1 ms
_NO_GROUP: Final = Group(-1, 0, 0, "")


def check_size(
    buffer: bytes, start: int, end: int, *, max_depth: int, max_fields: int, group: Group = _NO_GROUP
) -> None:
    """Raise an error if the items between two positions nest too deeply, or if they are too many, at any depth.

    The error is ProtocolError if structures nest deeper than ``max_depth`` levels, or if a ``group`` occurs too often;
    it is MessageTooLargeError if there are more than ``max_fields`` items.

    The time is linear in the number of items, without recursion; the check ends at the first item too many. Bytes that
    can't be read as items are skipped.
    """
    for _ in check_size_in_steps(buffer, start, end, max_depth=max_depth, max_fields=max_fields, group=group):
        pass


def check_size_in_steps(
    buffer: bytes, start: int, end: int, *, max_depth: int, max_fields: int, group: Group = _NO_GROUP
) -> Iterator[None]:
    """Check as ``check_size`` does, and yield after every ITEMS_PER_STEP items, so that other tasks may run."""
    open_ends = [end]
    resume_at = [end]
    position = start
    left = max_fields
    groups = 0
    while open_ends:
        end = open_ends[-1]
        if end - position < HEADER_SIZE:
            open_ends.pop()
            position = resume_at.pop()
            continue
        tag_and_type, length = unpack_head(buffer, position)
        position += HEADER_SIZE
        left -= 1
        if left < 0:
            raise MessageTooLargeError(f"more than {max_fields} fields")
        if not left % ITEMS_PER_STEP:
            yield
        if length > end - position:
            position = end
        elif tag_and_type & 0xFF != STRUCTURE:
            position += padded(length)
        elif len(open_ends) > max_depth:
            raise ProtocolError("structures are nested too deeply")
        else:
            if tag_and_type == group.word and len(open_ends) == _IN_OUTERMOST:
                groups += 1
                left += group.fields
                if groups > group.at_most:
                    raise ProtocolError(f"more than {group.at_most} {group.name}")
            open_ends.append(position + length)
            resume_at.append(position + padded(length))


# Reading a value ----------------------------------------------------------------------------------------------------


def read_integer(buffer: bytes, item: Item) -> int:
    """Read an Integer: 32 bits, signed. ``walk`` has checked the item's length."""
    _expect(item, ItemType.INTEGER)
    value: int = _INT.unpack_from(buffer, item.start)[0]
    return value


def read_enumeration(buffer: bytes, item: Item) -> int:
    """Read an Enumeration: 32 bits, unsigned."""
    _expect(item, ItemType.ENUMERATION)
    value: int = _UINT.unpack_from(buffer, item.start)[0]
    return value


def read_long_integer(buffer: bytes, item: Item) -> int:
    """Read a Long Integer: 64 bits, signed."""
    _expect(item, ItemType.LONG_INTEGER)
    value: int = _LONG.unpack_from(buffer, item.start)[0]
    return value


def read_date_time(buffer: bytes, item: Item) -> int:
    """Read a Date-Time: seconds since 1970 UTC, 64 bits, signed."""
    _expect(item, ItemType.DATE_TIME)
    value: int = _LONG.unpack_from(buffer, item.start)[0]
    return value


def read_interval(buffer: bytes, item: Item) -> int:
    """Read an Interval: seconds, 32 bits, unsigned."""
    _expect(item, ItemType.INTERVAL)
    value: int = _UINT.unpack_from(buffer, item.start)[0]
    return value


def read_boolean(buffer: bytes, item: Item) -> bool:
    """Read a Boolean: 64 bits, true if they are not zero."""
    _expect(item, ItemType.BOOLEAN)
    return any(buffer[item.start : item.end])


def read_big_integer(buffer: bytes, item: Item) -> int:
    """Read a Big Integer: two's complement, any multiple of eight bytes."""
    _expect(item, ItemType.BIG_INTEGER)
    return int.from_bytes(buffer[item.start : item.end], "big", signed=True)


def read_text(buffer: bytes, item: Item) -> str:
    """Read a Text String: UTF-8, without padding that some clients count in the length. Raises ProtocolError."""
    _expect(item, ItemType.TEXT_STRING)
    try:
        return buffer[item.start : item.end].rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"item {tag_name(item.tag)} is not UTF-8") from None


def read_bytes(buffer: bytes, item: Item) -> bytes:
    """Read a Byte String, of any length."""
    _expect(item, ItemType.BYTE_STRING)
    return buffer[item.start : item.end]


def _expect(item: Item, item_type: ItemType) -> None:
    if item.type != item_type:
        raise ProtocolError(f"item {tag_name(item.tag)} is not of type {item_type.name}")


# Changing a value ---------------------------------------------------------------------------------------------------


def splice(buffer: bytes, values: Mapping[int, bytes]) -> bytes:
    """Return a copy with new values, and with the lengths of all structures around them corrected.

    ``values`` maps the positions at which values begin, as ``walk`` yields them, to the new values. All other bytes
    stay the same. Raises ProtocolError if a structure around a value can't be walked.
    """
    return _splice(buffer, 0, len(buffer), sorted(values), values)


def _splice(buffer: bytes, start: int, end: int, positions: list[int], values: Mapping[int, bytes]) -> bytes:
    parts = []
    copied = start
    for item in walk(buffer, start, end):
        if item.start in values:
            value = values[item.start]
        elif item.type == STRUCTURE and bisect_right(positions, item.end) > bisect_right(positions, item.start):
            value = _splice(buffer, item.start, item.end, positions, values)
        else:
            continue
        parts += [buffer[copied : item.start - HEADER_SIZE], _string(item.tag << 8 | item.type, value)]
        copied = min(end, item.start + padded(item.end - item.start))
    return b"".join((*parts, buffer[copied:end]))


# Writing an item ----------------------------------------------------------------------------------------------------


def structure(tag: int, *parts: bytes) -> bytes:
    """Encode a Structure of encoded items."""
    value = b"".join(parts)
    return HEAD.pack(tag << 8 | STRUCTURE, len(value)) + value


def integer(tag: int, value: int) -> bytes:
    """Encode an Integer, -2^31 to 2^31-1."""
    return HEAD_INT.pack(tag << 8 | ItemType.INTEGER, 4, value)


def enumeration(tag: int, value: int) -> bytes:
    """Encode an Enumeration, 0 to 2^32-1."""
    return _HEAD_UINT.pack(tag << 8 | ItemType.ENUMERATION, 4, value)


def long_integer(tag: int, value: int) -> bytes:
    """Encode a Long Integer, -2^63 to 2^63-1."""
    return _HEAD_LONG.pack(tag << 8 | ItemType.LONG_INTEGER, 8, value)


def date_time(tag: int, value: int) -> bytes:
    """Encode a Date-Time, in seconds since 1970 UTC."""
    return _HEAD_LONG.pack(tag << 8 | ItemType.DATE_TIME, 8, value)


def interval(tag: int, value: int) -> bytes:
    """Encode an Interval, in seconds."""
    return _HEAD_UINT.pack(tag << 8 | ItemType.INTERVAL, 4, value)


def boolean(tag: int, value: bool) -> bytes:
    """Encode a Boolean, in eight bytes."""
    return _HEAD_LONG.pack(tag << 8 | ItemType.BOOLEAN, 8, int(value))


def big_integer(tag: int, value: int) -> bytes:
    """Encode a Big Integer, in the fewest multiples of eight bytes that hold the number and its sign."""
    bits = value.bit_length() if value >= 0 else (value + 1).bit_length()
    encoded = value.to_bytes((bits // 64 + 1) * 8, "big", signed=True)
    return HEAD.pack(tag << 8 | ItemType.BIG_INTEGER, len(encoded)) + encoded


def text(tag: int, value: str) -> bytes:
    """Encode a Text String, in UTF-8."""
    return _string(tag << 8 | ItemType.TEXT_STRING, value.encode())


def octets(tag: int, value: bytes) -> bytes:
    """Encode a Byte String, with its padding."""
    return _string(tag << 8 | ItemType.BYTE_STRING, value)


def _string(tag_and_type: int, value: bytes) -> bytes:
    return HEAD.pack(tag_and_type, len(value)) + value + bytes(-len(value) % 8)
