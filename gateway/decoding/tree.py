"""Bytes of TTLV as a tree of nodes, strictly: each error says at which byte it is (KMIP 1.4 section 9.1)."""

import struct
from typing import Final

from gateway.errors import DecodeError
from gateway.kmip.spec import FIXED_LENGTH, ItemType
from gateway.kmip.ttlv import HEAD, HEADER_SIZE, padded

MAX_ITEMS: Final = 250_000  # which take some hundred megabytes of memory; a large message of KMIP has thousands
MAX_DEPTH: Final = 100  # structures within structures; messages of KMIP need about ten
_FIRST_BYTES: Final = frozenset({0x42, 0x54})  # of a tag: KMIP's own, and extensions
_TYPES: Final = {int(item_type): item_type for item_type in ItemType}
_UNPACK: Final = {
    ItemType.INTEGER: struct.Struct(">i"),
    ItemType.LONG_INTEGER: struct.Struct(">q"),
    ItemType.ENUMERATION: struct.Struct(">I"),
    ItemType.BOOLEAN: struct.Struct(">Q"),
    ItemType.DATE_TIME: struct.Struct(">q"),
    ItemType.INTERVAL: struct.Struct(">I"),
    ItemType.DATE_TIME_EXTENDED: struct.Struct(">q"),
}
#: Texts are those of 3.0, too: Identifier, Reference and Name Reference.
TEXTS: Final = frozenset({ItemType.TEXT_STRING, ItemType.IDENTIFIER, ItemType.REFERENCE, ItemType.NAME_REFERENCE})

Value = int | bool | str | bytes | None


class Node:
    """An item: ``value`` is None for a structure, which has ``items``; ``length`` is in bytes, without padding."""

    __slots__ = ("items", "length", "offset", "tag", "type", "value")

    def __init__(self, tag: int, item_type: ItemType, offset: int, length: int) -> None:
        self.tag = tag
        self.type = item_type
        self.offset = offset
        self.length = length
        self.value: Value = None
        self.items: list[Node] = []

    def __repr__(self) -> str:
        return f"<Node {self.tag:06X} {self.type.name} at {self.offset}>"

    @property
    def is_structure(self) -> bool:
        """True for a structure."""
        return self.type == ItemType.STRUCTURE


def read(data: bytes) -> tuple[list[Node], DecodeError | None]:
    """Return the outermost items of ``data``, such as the messages of a stream, and the first mistake, or None.

    The items end at the mistake. If a structure is longer than the bytes that are left, its beginning is read.
    """
    reader = _Reader(data)
    nodes: list[Node] = []
    position = 0
    try:
        while position < len(data) and reader.mistake is None:
            node = reader.head(position, len(data), "the end of the bytes")
            nodes.append(node)
            reader.inside(node)
            position += HEADER_SIZE + padded(node.length)
    except DecodeError as error:
        reader.note(error)
    return nodes, reader.mistake


class _Reader:
    """Reads items of ``data``; ``mistake`` is the first one after which the reading went on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._items = 0
        self.mistake: DecodeError | None = None

    def note(self, mistake: DecodeError) -> None:
        self.mistake = self.mistake or mistake

    def inside(self, root: Node) -> None:
        """Read the value of ``root``; of a structure, all that is in it, without recursion."""
        if not root.is_structure:
            root.value = self._value(root)
            return
        open_structures = [(root, root.offset + HEADER_SIZE)]
        while open_structures:
            parent, position = open_structures.pop()
            end = parent.offset + HEADER_SIZE + parent.length
            while position < end:
                node = self.head(position, end, f"the end of its structure, which began at byte {parent.offset}")
                parent.items.append(node)
                position += HEADER_SIZE + padded(node.length)
                if not node.is_structure:
                    node.value = self._value(node)
                elif len(open_structures) == MAX_DEPTH:
                    raise DecodeError(f"byte {node.offset}: structures are nested more than {MAX_DEPTH} deep")
                else:
                    open_structures.append((parent, position))
                    parent, position = node, node.offset + HEADER_SIZE
                    end = position + node.length

    def head(self, position: int, end: int, end_name: str) -> Node:
        """Return the item that begins at ``position``, within a structure or a stream that ends at ``end``."""
        self._items += 1
        if self._items > MAX_ITEMS:
            raise DecodeError(f"byte {position}: more than {MAX_ITEMS} items; decode a part of the bytes")
        if end - position < HEADER_SIZE:
            raise DecodeError(
                f"byte {position}: an item begins with {HEADER_SIZE} bytes of tag, type and length; {end - position}"
                f" are left before {end_name}"
            )
        word, length = HEAD.unpack_from(self._data, position)
        if word >> 24 not in _FIRST_BYTES:
            raise DecodeError(f"byte {position}: a tag begins with 42 or 54, not with {word >> 24:02X}")
        item_type = _TYPES.get(word & 0xFF)
        if item_type is None:
            raise DecodeError(f"byte {position + 3}: {word & 0xFF:02X} is no type; types are 01 to {max(_TYPES):02X}")
        fixed = FIXED_LENGTH.get(item_type)
        if fixed is not None and length != fixed:
            raise DecodeError(
                f"byte {position + 4}: the length is {length}, but that of a value of type {type_name(item_type)} is"
                f" {fixed}"
            )
        if item_type == ItemType.BIG_INTEGER and length % 8:
            raise DecodeError(f"byte {position + 4}: the length of a Big Integer is a multiple of 8, not {length}")
        left = end - position - HEADER_SIZE
        if length > left:
            mistake = DecodeError(
                f"byte {position + 4}: the length is {length}, but {left} bytes are left before {end_name}"
            )
            if item_type != ItemType.STRUCTURE:
                raise mistake
            self.note(mistake)
        return Node(word >> 8, item_type, position, min(length, left))

    def _value(self, node: Node) -> Value:
        start = node.offset + HEADER_SIZE
        if (number := _UNPACK.get(node.type)) is not None:
            value: int = number.unpack_from(self._data, start)[0]
            return bool(value) if node.type == ItemType.BOOLEAN else value
        raw = self._data[start : start + node.length]
        if node.type == ItemType.BIG_INTEGER:
            return int.from_bytes(raw, "big", signed=True)
        if node.type not in TEXTS:
            return raw
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"byte {start + error.start}: the text is not UTF-8") from None


def type_name(item_type: ItemType) -> str:
    """Return the specification's name of a type: ``Text String``, ``Date-Time``."""
    return item_type.name.replace("_", " ").title().replace("Date Time", "Date-Time")
