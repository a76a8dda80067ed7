"""A tree of nodes as text, and as the JSON and the XML of the specification "KMIP Profiles" (JSON and XML encoding)."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gateway.decoding.names import Names, tag_identifier, value_identifier
from gateway.decoding.redaction import is_secret
from gateway.decoding.tree import Node, type_name
from gateway.kmip.spec import ItemType, Tag

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SAFE_IN_JSON: Final = 1 << 52  # a JSON number beyond may lose digits: such a Long Integer is written in hexadecimal
_DECIMAL: Final = 8  # bytes of a Big Integer up to which people read it as a decimal number
_TIMES: Final = {ItemType.DATE_TIME: "seconds", ItemType.DATE_TIME_EXTENDED: "microseconds"}


class Renderer:
    """Writes nodes; values that may be secrets are left out unless ``secrets`` is true."""

    def __init__(self, names: Names, *, secrets: bool = False) -> None:
        self._names = names
        self._secrets = secrets

    # Text

    def text(self, node: Node) -> Iterator[str]:
        """Yield the lines of a tree: the name, the type and the value of each item, below the name of its structure."""
        for each, depth, attribute in _walk(node):
            head = "  " * depth + (self._names.tag(each.tag) or f"Tag {each.tag:06X}")
            if each.is_structure:
                yield head
            else:
                yield f"{head}: {self._plain_value(each, attribute)}  ({type_name(each.type)})"

    def _plain_value(self, node: Node, attribute: str | None) -> str:
        value: Any = node.value
        if self._is_hidden(node, attribute):
            return f"[redacted, {node.length} bytes]"
        if (bits := self._bits(node, attribute)) is not None:
            return f"{', '.join(bits) or 'none'} ({value:#x})"
        if node.type == ItemType.ENUMERATION:
            name = self._name(node, attribute)
            return f"{name} ({value:#x})" if name is not None else f"{value:#x}"
        if isinstance(value, str):
            value = _printable(f'"{value}"')
        elif isinstance(value, bytes):
            value = value.hex() or "[empty]"
        elif node.type in _TIMES:
            value = _time(node) or value
        elif node.type == ItemType.BIG_INTEGER and node.length > _DECIMAL:
            value = f"0x{_big_hex(node)}"
        return str(value).lower() if node.type == ItemType.BOOLEAN else str(value)

    # JSON

    def json(self, node: Node) -> str:
        """Return a tree as JSON. A redacted value is null, beside the key ``redacted`` with its length."""
        objects: list[dict[str, Any]] = []  # from the outermost structure to the present one
        for each, depth, attribute in _walk(node):
            written: dict[str, Any] = {"tag": self._identifier(each)}
            if each.is_structure:
                written["value"] = []
            else:
                written |= {"type": _type_identifier(each), "value": self._json_value(each, attribute)}
                if self._is_hidden(each, attribute):
                    written["redacted"] = f"{each.length} bytes"
            del objects[depth:]
            if objects:
                objects[-1]["value"].append(written)
            objects.append(written)
        text = json.dumps(objects[0], indent=2, ensure_ascii=False)
        return _escaped(text, lambda char: json.dumps(char)[1:-1])

    def _json_value(self, node: Node, attribute: str | None) -> object:
        value = node.value
        if self._is_hidden(node, attribute):
            return None
        if node.type == ItemType.LONG_INTEGER and isinstance(value, int):
            return value if abs(value) < _SAFE_IN_JSON else f"0x{value & (1 << 64) - 1:016x}"
        if node.type == ItemType.BIG_INTEGER:
            return f"0x{_big_hex(node)}"
        if (bits := self._bits(node, attribute)) is not None:
            return "|".join(map(value_identifier, bits))
        if node.type in {ItemType.BOOLEAN, ItemType.INTEGER, ItemType.INTERVAL}:
            return value
        return self._string_value(node, attribute)

    # XML

    def xml(self, node: Node) -> ET.Element:
        """Return a tree as an element of XML. A redacted value is empty, beside the attribute ``redacted``."""
        elements: list[ET.Element] = []  # from the outermost structure to the present one
        for each, depth, attribute in _walk(node):
            identifier = self._identifier(each)
            known = not identifier.startswith("0x")
            element = ET.Element(identifier) if known else ET.Element("TTLV", {"tag": identifier})
            if not each.is_structure:
                element.set("type", _type_identifier(each))
                element.set("value", self._xml_value(each, attribute))
                if self._is_hidden(each, attribute):
                    element.set("redacted", f"{each.length} bytes")
            del elements[depth:]
            if elements:
                elements[-1].append(element)
            elements.append(element)
        return elements[0]

    def _xml_value(self, node: Node, attribute: str | None) -> str:
        if self._is_hidden(node, attribute):
            return ""
        if node.type == ItemType.BIG_INTEGER:
            return _big_hex(node)
        if (bits := self._bits(node, attribute)) is not None:
            return " ".join(map(value_identifier, bits))
        if node.type == ItemType.BOOLEAN:
            return str(node.value).lower()
        return "".join(
            char if _is_xml(char) else "\N{REPLACEMENT CHARACTER}" for char in self._string_value(node, attribute)
        )

    # All forms

    def _string_value(self, node: Node, attribute: str | None) -> str:
        """Return a value that JSON and XML write alike, as a string."""
        value = node.value
        if isinstance(value, bytes):
            return value.hex()
        if node.type == ItemType.ENUMERATION:
            name = self._name(node, attribute)
            return f"0x{value:08x}" if name is None else value_identifier(name)
        if node.type in _TIMES:
            return _time(node) or f"0x{int(value or 0) & (1 << 64) - 1:016x}"
        return str(value)

    def _is_hidden(self, node: Node, attribute: str | None) -> bool:
        return not self._secrets and is_secret(node, self._names, attribute)

    def _identifier(self, node: Node) -> str:
        name = self._names.tag(node.tag)
        return f"0x{node.tag:06x}" if name is None else tag_identifier(name)

    def _name(self, node: Node, attribute: str | None) -> str | None:
        if node.type != ItemType.ENUMERATION or not isinstance(node.value, int):
            return None
        return self._names.enumerated(attribute or self._names.tag(node.tag) or "", node.value)

    def _bits(self, node: Node, attribute: str | None) -> list[str] | None:
        if node.type != ItemType.INTEGER or not isinstance(node.value, int):
            return None
        return self._names.bits(attribute or self._names.tag(node.tag) or "", node.value)


def _walk(root: Node) -> Iterator[tuple[Node, int, str | None]]:
    """Yield each node of a tree in order, its depth, and, of an Attribute Value, the name of the attribute."""
    waiting: list[tuple[Node, int, str | None]] = [(root, 0, None)]
    while waiting:
        node, depth, attribute = waiting.pop()
        yield node, depth, attribute
        named = next((item.value for item in node.items if item.tag == Tag.ATTRIBUTE_NAME), None)
        waiting += [
            (item, depth + 1, named if item.tag == Tag.ATTRIBUTE_VALUE and isinstance(named, str) else None)
            for item in reversed(node.items)
        ]


def xml_text(element: ET.Element) -> str:
    """Return an element as indented XML, in which a character that a terminal would obey is a reference."""
    ET.indent(element)
    return _escaped(ET.tostring(element, encoding="unicode"), lambda char: f"&#{ord(char)};")


def _printable(text: str) -> str:
    return _escaped(text, lambda char: char.encode("unicode_escape").decode(), kept="")


def _escaped(text: str, escape: Callable[[str], str], kept: str = "\n") -> str:
    """Return a text with its control characters escaped, and those that change the direction of writing."""
    return "".join(char if char.isprintable() or char in kept else escape(char) for char in text)


def _type_identifier(node: Node) -> str:
    return type_name(node.type).replace(" ", "").replace("-", "")


def _time(node: Node) -> str | None:
    """Return a time as ISO 8601 in UTC, or None for a year that Python does not know."""
    try:
        return (_EPOCH + timedelta(**{_TIMES[node.type]: int(node.value or 0)})).isoformat()
    except OverflowError:
        return None


def _big_hex(node: Node) -> str:
    return (int(node.value or 0) & (1 << 8 * node.length) - 1).to_bytes(node.length, "big").hex()


def _is_xml(char: str) -> bool:
    """Return True if XML 1.0 can contain a character."""
    return char in "\t\n\r" or (char >= " " and not "\ud800" <= char <= "\udfff" and char not in "\ufffe\uffff")
