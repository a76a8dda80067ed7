"""Attributes: which there are, what a client may do to each, and how they are written in 1.x and in 2.x.

In 1.x an attribute is a structure of name, index and value (1.4 section 2.1.1); from 2.0 on it is an item with a tag of
its own, without an index (2.1 section 4).
"""

import struct
from collections.abc import Iterable
from enum import Flag, auto
from typing import Final, NamedTuple

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.messages import Version
from gateway.kmip.spec import ItemType, ResultReason, Tag
from kmip_lab.keymanager.objects import Attribute
from kmip_lab.keymanager.refusals import Refusal
from kmip_lab.keymanager.tree import Node, encode_item


class Right(Flag):
    """What a client may do to an attribute: give it with a new object or add it, modify it, delete it."""

    NONE = 0
    GIVE = auto()
    MODIFY = auto()
    DELETE = auto()
    ALL = GIVE | MODIFY | DELETE


class Kind(NamedTuple):
    """A row of 1.4 section 3: name, tag, type, whether there may be several, rights, and in which versions it is."""

    name: str
    tag: int
    type: ItemType
    rights: Right = Right.NONE
    multiple: bool = False
    since: Version = (1, 0)
    until: Version = (2, 1)


_GIVE_MODIFY: Final = Right.GIVE | Right.MODIFY

KINDS: Final = (
    Kind("Unique Identifier", Tag.UNIQUE_IDENTIFIER, ItemType.TEXT_STRING),
    Kind("Name", Tag.NAME, ItemType.STRUCTURE, Right.ALL, multiple=True),
    Kind("Object Type", Tag.OBJECT_TYPE, ItemType.ENUMERATION),
    Kind("Cryptographic Algorithm", Tag.CRYPTOGRAPHIC_ALGORITHM, ItemType.ENUMERATION, Right.GIVE),
    Kind("Cryptographic Length", Tag.CRYPTOGRAPHIC_LENGTH, ItemType.INTEGER, Right.GIVE),
    Kind("Cryptographic Parameters", Tag.CRYPTOGRAPHIC_PARAMETERS, ItemType.STRUCTURE, Right.ALL, multiple=True),
    Kind("Cryptographic Domain Parameters", Tag.CRYPTOGRAPHIC_DOMAIN_PARAMETERS, ItemType.STRUCTURE, Right.GIVE),
    Kind("Certificate Type", Tag.CERTIFICATE_TYPE, ItemType.ENUMERATION),
    Kind("Certificate Length", Tag.CERTIFICATE_LENGTH, ItemType.INTEGER, since=(1, 1)),
    Kind("Operation Policy Name", Tag.OPERATION_POLICY_NAME, ItemType.TEXT_STRING, Right.GIVE, until=(1, 4)),
    Kind("Cryptographic Usage Mask", Tag.CRYPTOGRAPHIC_USAGE_MASK, ItemType.INTEGER, Right.GIVE),
    Kind("Usage Limits", Tag.USAGE_LIMITS, ItemType.STRUCTURE, Right.ALL),
    Kind("State", Tag.STATE, ItemType.ENUMERATION),
    Kind("Initial Date", Tag.INITIAL_DATE, ItemType.DATE_TIME),
    Kind("Activation Date", Tag.ACTIVATION_DATE, ItemType.DATE_TIME, _GIVE_MODIFY),
    Kind("Process Start Date", Tag.PROCESS_START_DATE, ItemType.DATE_TIME, _GIVE_MODIFY),
    Kind("Protect Stop Date", Tag.PROTECT_STOP_DATE, ItemType.DATE_TIME, _GIVE_MODIFY),
    Kind("Deactivation Date", Tag.DEACTIVATION_DATE, ItemType.DATE_TIME, _GIVE_MODIFY),
    Kind("Destroy Date", Tag.DESTROY_DATE, ItemType.DATE_TIME),
    Kind("Compromise Occurrence Date", Tag.COMPROMISE_OCCURRENCE_DATE, ItemType.DATE_TIME),
    Kind("Compromise Date", Tag.COMPROMISE_DATE, ItemType.DATE_TIME),
    Kind("Revocation Reason", Tag.REVOCATION_REASON, ItemType.STRUCTURE),
    Kind("Archive Date", Tag.ARCHIVE_DATE, ItemType.DATE_TIME),
    Kind("Object Group", Tag.OBJECT_GROUP, ItemType.TEXT_STRING, Right.ALL, multiple=True),
    Kind("Fresh", Tag.FRESH, ItemType.BOOLEAN, since=(1, 1)),
    Kind("Link", Tag.LINK, ItemType.STRUCTURE, Right.ALL, multiple=True),
    Kind(
        "Application Specific Information",
        Tag.APPLICATION_SPECIFIC_INFORMATION,
        ItemType.STRUCTURE,
        Right.ALL,
        multiple=True,
    ),
    Kind("Contact Information", Tag.CONTACT_INFORMATION, ItemType.TEXT_STRING, Right.ALL),
    Kind("Last Change Date", Tag.LAST_CHANGE_DATE, ItemType.DATE_TIME),
    Kind("Alternative Name", Tag.ALTERNATIVE_NAME, ItemType.STRUCTURE, Right.ALL, multiple=True, since=(1, 2)),
    Kind("Original Creation Date", Tag.ORIGINAL_CREATION_DATE, ItemType.DATE_TIME, Right.GIVE, since=(1, 2)),
    Kind("Description", Tag.DESCRIPTION, ItemType.TEXT_STRING, Right.ALL, since=(1, 4)),
    Kind("Comment", Tag.COMMENT, ItemType.TEXT_STRING, Right.ALL, since=(1, 4)),
    Kind("Sensitive", Tag.SENSITIVE, ItemType.BOOLEAN, _GIVE_MODIFY, since=(1, 4)),
    Kind("Extractable", Tag.EXTRACTABLE, ItemType.BOOLEAN, _GIVE_MODIFY, since=(1, 4)),
)
_BY_NAME: Final = {kind.name: kind for kind in KINDS}
_BY_TAG: Final[dict[int, Kind]] = {kind.tag: kind for kind in KINDS}
_ORDER: Final = {kind.name: order for order, kind in enumerate(KINDS)}

_PACK: Final = {
    ItemType.INTEGER: struct.Struct(">i").pack,
    ItemType.ENUMERATION: struct.Struct(">I").pack,
    ItemType.BOOLEAN: struct.Struct(">q").pack,
    ItemType.DATE_TIME: struct.Struct(">q").pack,
}


def kind_of(name: str) -> Kind:
    """The row for a name. Vendors' attributes, "x-own" and "y-ours", are free for the client. Raises Refusal."""
    kind = _BY_NAME.get(name)
    if kind is not None:
        return kind
    vendor, hyphen, own = name.partition("-")
    if not (vendor and hyphen and own):
        raise Refusal(ResultReason.UNSUPPORTED_ATTRIBUTE, f"no attribute is called {name!r}")
    return Kind(name, Tag.ATTRIBUTE, ItemType.STRUCTURE, Right.ALL, multiple=True)


def kind_by_tag(tag: int) -> Kind:
    """The row for a tag. Raises Refusal."""
    kind = _BY_TAG.get(tag)
    if kind is None:
        raise Refusal(ResultReason.UNSUPPORTED_ATTRIBUTE, f"no attribute has the tag {tag:06X}")
    return kind


def of_number(name: str, number: int) -> Attribute:
    """An attribute whose value is a number, a date or a truth value."""
    kind = _BY_NAME[name]
    return Attribute(name, 0, kind.type, _PACK[kind.type](number))


def of_text(name: str, text: str) -> Attribute:
    """An attribute whose value is a text."""
    return Attribute(name, 0, ItemType.TEXT_STRING, text.encode())


def of_structure(name: str, *items: bytes) -> Attribute:
    """An attribute whose value is a structure of these encoded items."""
    return Attribute(name, 0, ItemType.STRUCTURE, b"".join(items))


def number_of(attribute: Attribute | None) -> int | None:
    """The number that an attribute has for its value; None for none."""
    return None if attribute is None else int.from_bytes(attribute.value, "big", signed=True)


# Reading ------------------------------------------------------------------------------------------------------------


def read(node: Node, version: Version) -> Attribute:
    """An attribute as a client wrote it; without an index it is at position 0. Raises Refusal, ProtocolError."""
    attribute = _read_named(node) if version < (2, 0) else _read_tagged(node)
    kind = kind_of(attribute.name)
    if kind.tag != Tag.ATTRIBUTE and kind.type != attribute.type:
        raise Refusal(ResultReason.INVALID_DATA_TYPE, f"{kind.name} is a {kind.type.name}")
    return attribute


def _read_named(node: Node) -> Attribute:
    name, value = node.text(Tag.ATTRIBUTE_NAME), node.find(Tag.ATTRIBUTE_VALUE)
    if name is None or value is None:
        raise ProtocolError("an Attribute without name or value")
    return Attribute(name, node.integer(Tag.ATTRIBUTE_INDEX) or 0, value.type, value.value)


def _read_tagged(node: Node) -> Attribute:
    if node.tag != Tag.ATTRIBUTE:
        return Attribute(kind_by_tag(node.tag).name, 0, node.type, node.value)
    value = node.find(Tag.ATTRIBUTE_VALUE)
    if value is None:
        raise ProtocolError("a vendor's attribute without value")
    return Attribute(read_vendor_name(node), 0, value.type, value.value)


def read_vendor_name(node: Node) -> str:
    """The name of a vendor's attribute, from Vendor Identification and Attribute Name (2.1 section 4.61)."""
    vendor, name = node.text(Tag.VENDOR_IDENTIFICATION), node.text(Tag.ATTRIBUTE_NAME)
    if not vendor or not name or "-" in vendor:
        raise ProtocolError("a vendor's attribute without vendor or name")
    return f"{vendor}-{name}"


def read_reference(node: Node) -> str:
    """The name that an Attribute Reference gives: by tag, or by vendor and name (2.1 section 7.3). Raises Refusal."""
    if node.type == ItemType.ENUMERATION:
        return kind_by_tag(node.as_number()).name
    return read_vendor_name(node)


def given(attributes: Iterable[Attribute]) -> tuple[Attribute, ...]:
    """What a client gives a new object, with the positions counted. Raises Refusal for what it may not give."""
    counted: list[Attribute] = []
    counts: dict[str, int] = {}
    for attribute in attributes:
        kind = kind_of(attribute.name)
        if Right.GIVE not in kind.rights:
            raise Refusal(ResultReason.READ_ONLY_ATTRIBUTE, f"{kind.name} is not the client's to give")
        position = counts.get(kind.name, 0)
        if position and not kind.multiple:
            raise Refusal(ResultReason.ATTRIBUTE_SINGLE_VALUED, f"{kind.name} is given twice")
        counts[kind.name] = position + 1
        counted.append(attribute._replace(position=position))
    return tuple(counted)


# Writing ------------------------------------------------------------------------------------------------------------


def shown(attributes: Iterable[Attribute], version: Version) -> list[Attribute]:
    """The attributes that this version knows, in the order of KINDS; vendors' come last."""
    known = (one for one in attributes if kind_of(one.name).since <= version <= kind_of(one.name).until)
    return sorted(known, key=lambda one: (_ORDER.get(one.name, len(_ORDER)), one.name, one.position))


def encode(attribute: Attribute, version: Version) -> bytes:
    """One attribute: an Attribute structure in 1.x, the item itself from 2.0 on."""
    kind = kind_of(attribute.name)
    if version >= (2, 0):
        if kind.tag != Tag.ATTRIBUTE:
            return encode_item(kind.tag, attribute.type, attribute.value)
        return ttlv.structure(Tag.ATTRIBUTE, vendor_name(attribute.name), _encode_value(attribute))
    index = ttlv.integer(Tag.ATTRIBUTE_INDEX, attribute.position) if kind.multiple else b""
    name = ttlv.text(Tag.ATTRIBUTE_NAME, attribute.name)
    return ttlv.structure(Tag.ATTRIBUTE, name, index, _encode_value(attribute))


def encode_all(attributes: Iterable[Attribute], version: Version) -> bytes:
    """Side by side in 1.x, in one Attributes structure from 2.0 on."""
    items = [encode(attribute, version) for attribute in attributes]
    return ttlv.structure(Tag.ATTRIBUTES, *items) if version >= (2, 0) else b"".join(items)


def encode_reference(name: str, version: Version) -> bytes:
    """An attribute's name: a text in 1.x, an Attribute Reference from 2.0 on (2.1 section 7.3)."""
    if version < (2, 0):
        return ttlv.text(Tag.ATTRIBUTE_NAME, name)
    kind = kind_of(name)
    if kind.tag == Tag.ATTRIBUTE:
        return ttlv.structure(Tag.ATTRIBUTE_REFERENCE, vendor_name(name))
    return ttlv.enumeration(Tag.ATTRIBUTE_REFERENCE, kind.tag)


def vendor_name(name: str) -> bytes:
    """Vendor Identification and Attribute Name of a vendor's attribute."""
    vendor, _, own = name.partition("-")
    return ttlv.text(Tag.VENDOR_IDENTIFICATION, vendor) + ttlv.text(Tag.ATTRIBUTE_NAME, own)


def _encode_value(attribute: Attribute) -> bytes:
    return encode_item(Tag.ATTRIBUTE_VALUE, attribute.type, attribute.value)
