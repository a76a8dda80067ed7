"""A structure, read whole: unlike the gateway, a key manager needs to know everything that it is asked.

Shape is checked when a tree is grown; types when a value is asked for. Both raise ProtocolError.
"""

from typing import Self

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType


class Node:
    """One item of a frame, with the items that it holds; ``value`` is encoded, without head and padding."""

    __slots__ = ("children", "item", "value")

    def __init__(self, item: ttlv.Item, value: bytes, children: "tuple[Node, ...]") -> None:
        self.item = item
        self.value = value
        self.children = children

    @classmethod
    def grow(cls, frame: bytes, item: ttlv.Item) -> Self:
        """Read an item and all that lies in it. Frames come from decode_request, which has bounded their depth."""
        children: tuple[Node, ...] = ()
        if item.type == ItemType.STRUCTURE:
            children = tuple(cls.grow(frame, child) for child in ttlv.walk(frame, item.start, item.end))
        return cls(item, frame[item.start : item.end], children)

    @classmethod
    def of(cls, encoded: bytes) -> Self:
        """The one item that these bytes encode."""
        for item in ttlv.walk(encoded, 0, len(encoded)):
            return cls.grow(encoded, item)
        raise ProtocolError("an empty encoding")

    def __repr__(self) -> str:
        return f"<Node {self.tag:06X}: {len(self.children)} items, {len(self.value)} bytes>"

    @property
    def tag(self) -> int:
        """The item's tag."""
        return self.item.tag

    @property
    def type(self) -> int:
        """The item's type."""
        return self.item.type

    @property
    def encoded(self) -> bytes:
        """The item as it is encoded, head and padding included."""
        return encode_item(self.tag, self.type, self.value)

    def find(self, tag: int) -> "Node | None":
        """The first item with this tag, or None."""
        return next((child for child in self.children if child.tag == tag), None)

    def find_all(self, tag: int) -> "list[Node]":
        """All items with this tag."""
        return [child for child in self.children if child.tag == tag]

    def text(self, tag: int) -> str | None:
        """The first Text String with this tag, or None."""
        child = self._typed(tag, ItemType.TEXT_STRING)
        return None if child is None else child.as_text()

    def number(self, tag: int, item_type: ItemType) -> int | None:
        """The first number of any fixed length with this tag, or None."""
        child = self._typed(tag, item_type)
        return None if child is None else child.as_number()

    def enumeration(self, tag: int) -> int | None:
        """The first Enumeration with this tag, or None."""
        return self.number(tag, ItemType.ENUMERATION)

    def octets(self, tag: int) -> bytes | None:
        """The first Byte String with this tag, or None."""
        child = self._typed(tag, ItemType.BYTE_STRING)
        return None if child is None else child.value

    def flag(self, tag: int) -> bool:
        """Whether the first Boolean with this tag is true; False where there is none."""
        return bool(self.number(tag, ItemType.BOOLEAN))

    def integer(self, tag: int) -> int | None:
        """The first Integer with this tag, or None."""
        return self.number(tag, ItemType.INTEGER)

    def structure(self, tag: int) -> "Node | None":
        """The first Structure with this tag, or None."""
        return self._typed(tag, ItemType.STRUCTURE)

    def as_text(self) -> str:
        """This item's text, without the padding that some clients count in."""
        _expect(self, ItemType.TEXT_STRING)
        try:
            return self.value.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise ProtocolError(f"item {self.tag:06X} is not UTF-8") from None

    def as_number(self) -> int:
        """This item's number; Enumerations and Intervals are unsigned, the others signed."""
        signed = self.type not in (ItemType.ENUMERATION, ItemType.INTERVAL)
        return int.from_bytes(self.value, "big", signed=signed)

    def _typed(self, tag: int, item_type: ItemType) -> "Node | None":
        child = self.find(tag)
        if child is not None:
            _expect(child, item_type)
        return child


def encode_item(tag: int, item_type: int, value: bytes) -> bytes:
    """An item of any type whose value is encoded already."""
    return ttlv.HEAD.pack(tag << 8 | item_type, len(value)) + value + bytes(-len(value) % 8)


def _expect(node: Node, item_type: ItemType) -> None:
    if node.type != item_type:
        raise ProtocolError(f"item {node.tag:06X} has type {node.type}, not {item_type.name}")
