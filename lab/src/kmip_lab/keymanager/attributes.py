"""Managed objects and their attributes: the table of attributes, and their encodings in 1.x and 2.x.

In 1.x an attribute is a structure of name, index and value (1.4 section 2.1.1); in 2.x it is an item with a tag of its
own and without an index (2.1 section 4).
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Flag, auto
from typing import Final, NamedTuple, Self

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.messages import Version
from gateway.kmip.spec import ItemType, ResultReason, Tag
from kmip_lab.keymanager.protocol import Node, OperationFailed, encode_item


class Attribute(NamedTuple):
    """One instance of an attribute.

    ``name`` is the name in KMIP 1.x ("Cryptographic Length", "x-own"); ``position`` is the Attribute Index, which
    counts the instances of a name from 0; ``type`` is the item type; ``value`` is encoded, without header and padding.
    """

    name: str
    position: int
    type: int
    value: bytes


@dataclass(frozen=True, slots=True)
class ManagedObject:
    """A key, a certificate or secret data, as a frozen value: a change makes a new value, which the store saves whole.

    ``owner`` is the common name of the certificate of the client that made the object. ``state`` is None for objects
    without a state. ``material`` is the whole object as encoded in an answer to Get, and None once it is destroyed.
    ``attributes`` does not repeat the other fields.
    """

    uid: str
    owner: str
    object_type: int
    state: int | None
    material: bytes | None
    attributes: tuple[Attribute, ...]

    def __repr__(self) -> str:
        # Without the material: a log line must not show a key, not even by mistake.
        return f"<ManagedObject {self.uid} of {self.owner}: type {self.object_type}, state {self.state}>"

    def instances(self, name: str) -> list[Attribute]:
        """Return all instances of an attribute, ordered by position."""
        return sorted(attribute for attribute in self.attributes if attribute.name == name)

    def instance(self, name: str, position: int = 0) -> Attribute | None:
        """Return the instance of an attribute at this position, or None."""
        return next((found for found in self.instances(name) if found.position == position), None)

    def next_position(self, name: str) -> int:
        """Return the position for a new instance. Deleting an instance does not move later instances."""
        return max((attribute.position for attribute in self.instances(name)), default=-1) + 1

    def put(self, attributes: Iterable[Attribute]) -> Self:
        """Return the object with these attributes, which replace attributes of the same name and position."""
        new = {(attribute.name, attribute.position): attribute for attribute in (*self.attributes, *attributes)}
        return replace(self, attributes=tuple(new.values()))

    def drop(self, attributes: Iterable[Attribute]) -> Self:
        """Return the object without the attributes of these names and positions."""
        dropped = {(attribute.name, attribute.position) for attribute in attributes}
        kept = (attribute for attribute in self.attributes if (attribute.name, attribute.position) not in dropped)
        return replace(self, attributes=tuple(kept))


class Right(Flag):
    """The rights of a client on an attribute: to set it with a new object or add it, to modify it, to delete it."""

    NONE = 0
    SET = auto()
    MODIFY = auto()
    DELETE = auto()
    ALL = SET | MODIFY | DELETE


class AttributeRule(NamedTuple):
    """A row of 1.4 section 3: ``multiple`` allows several instances; the attribute is in versions since to until."""

    name: str
    tag: int
    type: ItemType
    rights: Right = Right.NONE
    multiple: bool = False
    since: Version = (1, 0)
    until: Version = (2, 1)


_SET_MODIFY: Final = Right.SET | Right.MODIFY

ATTRIBUTES: Final = (
    AttributeRule("Unique Identifier", Tag.UNIQUE_IDENTIFIER, ItemType.TEXT_STRING),
    AttributeRule("Name", Tag.NAME, ItemType.STRUCTURE, Right.ALL, multiple=True),
    AttributeRule("Object Type", Tag.OBJECT_TYPE, ItemType.ENUMERATION),
    AttributeRule("Cryptographic Algorithm", Tag.CRYPTOGRAPHIC_ALGORITHM, ItemType.ENUMERATION, Right.SET),
    AttributeRule("Cryptographic Length", Tag.CRYPTOGRAPHIC_LENGTH, ItemType.INTEGER, Right.SET),
    AttributeRule(
        "Cryptographic Parameters", Tag.CRYPTOGRAPHIC_PARAMETERS, ItemType.STRUCTURE, Right.ALL, multiple=True
    ),
    AttributeRule(
        "Cryptographic Domain Parameters", Tag.CRYPTOGRAPHIC_DOMAIN_PARAMETERS, ItemType.STRUCTURE, Right.SET
    ),
    AttributeRule("Certificate Type", Tag.CERTIFICATE_TYPE, ItemType.ENUMERATION),
    AttributeRule("Certificate Length", Tag.CERTIFICATE_LENGTH, ItemType.INTEGER, since=(1, 1)),
    AttributeRule("Operation Policy Name", Tag.OPERATION_POLICY_NAME, ItemType.TEXT_STRING, Right.SET, until=(1, 4)),
    AttributeRule("Cryptographic Usage Mask", Tag.CRYPTOGRAPHIC_USAGE_MASK, ItemType.INTEGER, Right.SET),
    AttributeRule("Usage Limits", Tag.USAGE_LIMITS, ItemType.STRUCTURE, Right.ALL),
    AttributeRule("State", Tag.STATE, ItemType.ENUMERATION),
    AttributeRule("Initial Date", Tag.INITIAL_DATE, ItemType.DATE_TIME),
    AttributeRule("Activation Date", Tag.ACTIVATION_DATE, ItemType.DATE_TIME, _SET_MODIFY),
    AttributeRule("Process Start Date", Tag.PROCESS_START_DATE, ItemType.DATE_TIME, _SET_MODIFY),
    AttributeRule("Protect Stop Date", Tag.PROTECT_STOP_DATE, ItemType.DATE_TIME, _SET_MODIFY),
    AttributeRule("Deactivation Date", Tag.DEACTIVATION_DATE, ItemType.DATE_TIME, _SET_MODIFY),
    AttributeRule("Destroy Date", Tag.DESTROY_DATE, ItemType.DATE_TIME),
    AttributeRule("Compromise Occurrence Date", Tag.COMPROMISE_OCCURRENCE_DATE, ItemType.DATE_TIME),
    AttributeRule("Compromise Date", Tag.COMPROMISE_DATE, ItemType.DATE_TIME),
    AttributeRule("Revocation Reason", Tag.REVOCATION_REASON, ItemType.STRUCTURE),
    AttributeRule("Archive Date", Tag.ARCHIVE_DATE, ItemType.DATE_TIME),
    AttributeRule("Object Group", Tag.OBJECT_GROUP, ItemType.TEXT_STRING, Right.ALL, multiple=True),
    AttributeRule("Fresh", Tag.FRESH, ItemType.BOOLEAN, since=(1, 1)),
    AttributeRule("Link", Tag.LINK, ItemType.STRUCTURE, Right.ALL, multiple=True),
    AttributeRule(
        "Application Specific Information",
        Tag.APPLICATION_SPECIFIC_INFORMATION,
        ItemType.STRUCTURE,
        Right.ALL,
        multiple=True,
    ),
    AttributeRule("Contact Information", Tag.CONTACT_INFORMATION, ItemType.TEXT_STRING, Right.ALL),
    AttributeRule("Last Change Date", Tag.LAST_CHANGE_DATE, ItemType.DATE_TIME),
    AttributeRule("Alternative Name", Tag.ALTERNATIVE_NAME, ItemType.STRUCTURE, Right.ALL, multiple=True, since=(1, 2)),
    AttributeRule("Original Creation Date", Tag.ORIGINAL_CREATION_DATE, ItemType.DATE_TIME, Right.SET, since=(1, 2)),
    AttributeRule("Description", Tag.DESCRIPTION, ItemType.TEXT_STRING, Right.ALL, since=(1, 4)),
    AttributeRule("Comment", Tag.COMMENT, ItemType.TEXT_STRING, Right.ALL, since=(1, 4)),
    AttributeRule("Sensitive", Tag.SENSITIVE, ItemType.BOOLEAN, _SET_MODIFY, since=(1, 4)),
    AttributeRule("Extractable", Tag.EXTRACTABLE, ItemType.BOOLEAN, _SET_MODIFY, since=(1, 4)),
)
_BY_NAME: Final = {rule.name: rule for rule in ATTRIBUTES}
_BY_TAG: Final[dict[int, AttributeRule]] = {rule.tag: rule for rule in ATTRIBUTES}
_ORDER: Final = {rule.name: order for order, rule in enumerate(ATTRIBUTES)}

_PACK: Final = {
    ItemType.INTEGER: struct.Struct(">i").pack,
    ItemType.ENUMERATION: struct.Struct(">I").pack,
    ItemType.BOOLEAN: struct.Struct(">q").pack,
    ItemType.DATE_TIME: struct.Struct(">q").pack,
}


def rule_for(name: str) -> AttributeRule:
    """Return the row for a name. A client has all rights on vendors' attributes ("x-own", "y-ours").

    Raises OperationFailed for an unknown name.
    """
    rule = _BY_NAME.get(name)
    if rule is not None:
        return rule
    vendor, hyphen, own = name.partition("-")
    if not (vendor and hyphen and own):
        raise OperationFailed(ResultReason.UNSUPPORTED_ATTRIBUTE, f"there is no attribute {name!r}")
    return AttributeRule(name, Tag.ATTRIBUTE, ItemType.STRUCTURE, Right.ALL, multiple=True)


def rule_for_tag(tag: int) -> AttributeRule:
    """Return the row for a tag. Raises OperationFailed for an unknown tag."""
    rule = _BY_TAG.get(tag)
    if rule is None:
        raise OperationFailed(ResultReason.UNSUPPORTED_ATTRIBUTE, f"there is no attribute with tag {tag:06X}")
    return rule


def of_number(name: str, number: int) -> Attribute:
    """Return an attribute whose type is Integer, Enumeration, Boolean or Date-Time."""
    rule = _BY_NAME[name]
    return Attribute(name, 0, rule.type, _PACK[rule.type](number))


def of_text(name: str, text: str) -> Attribute:
    """Return an attribute whose type is Text String."""
    return Attribute(name, 0, ItemType.TEXT_STRING, text.encode())


def of_structure(name: str, *items: bytes) -> Attribute:
    """Return an attribute whose type is Structure; ``items`` are encoded."""
    return Attribute(name, 0, ItemType.STRUCTURE, b"".join(items))


def number_of(attribute: Attribute | None) -> int | None:
    """Return the value of an attribute as a number; None if ``attribute`` is None."""
    return None if attribute is None else int.from_bytes(attribute.value, "big", signed=True)


# Decoding -----------------------------------------------------------------------------------------------------------


def decode(node: Node, version: Version) -> Attribute:
    """Decode an attribute; without an Attribute Index, its position is 0.

    Raises OperationFailed for an unknown attribute or a wrong type, ProtocolError for a malformed structure.
    """
    attribute = _decode_1_x(node) if version < (2, 0) else _decode_2_x(node)
    rule = rule_for(attribute.name)
    if rule.tag != Tag.ATTRIBUTE and rule.type != attribute.type:
        raise OperationFailed(ResultReason.INVALID_DATA_TYPE, f"{rule.name} must have type {rule.type.name}")
    return attribute


def _decode_1_x(node: Node) -> Attribute:
    name, value = node.text(Tag.ATTRIBUTE_NAME), node.find(Tag.ATTRIBUTE_VALUE)
    if name is None or value is None:
        raise ProtocolError("an Attribute has no name or no value")
    return Attribute(name, node.integer(Tag.ATTRIBUTE_INDEX) or 0, value.type, value.value)


def _decode_2_x(node: Node) -> Attribute:
    if node.tag != Tag.ATTRIBUTE:
        return Attribute(rule_for_tag(node.tag).name, 0, node.type, node.value)
    value = node.find(Tag.ATTRIBUTE_VALUE)
    if value is None:
        raise ProtocolError("a vendor's attribute has no value")
    return Attribute(decode_vendor_name(node), 0, value.type, value.value)


def decode_vendor_name(node: Node) -> str:
    """Return a vendor attribute's name, made of Vendor Identification and Attribute Name (2.1 section 4.61)."""
    vendor, name = node.text(Tag.VENDOR_IDENTIFICATION), node.text(Tag.ATTRIBUTE_NAME)
    if not vendor or not name or "-" in vendor:
        raise ProtocolError("a vendor's attribute has no Vendor Identification or no name")
    return f"{vendor}-{name}"


def decode_reference(node: Node) -> str:
    """Return the name that an Attribute Reference means, by tag, or by vendor and name (2.1 section 7.3).

    Raises OperationFailed for an unknown tag.
    """
    if node.type == ItemType.ENUMERATION:
        return rule_for_tag(node.as_number()).name
    return decode_vendor_name(node)


def of_new_object(attributes: Iterable[Attribute]) -> tuple[Attribute, ...]:
    """Return a new object's attributes with their positions counted.

    Raises OperationFailed if the client may not set an attribute, or sets a single-valued attribute twice.
    """
    counted: list[Attribute] = []
    counts: dict[str, int] = {}
    for attribute in attributes:
        rule = rule_for(attribute.name)
        if Right.SET not in rule.rights:
            raise OperationFailed(ResultReason.READ_ONLY_ATTRIBUTE, f"{rule.name} can't be set by a client")
        position = counts.get(rule.name, 0)
        if position and not rule.multiple:
            raise OperationFailed(
                ResultReason.ATTRIBUTE_SINGLE_VALUED, f"{rule.name} has a single value but is given twice"
            )
        counts[rule.name] = position + 1
        counted.append(attribute._replace(position=position))
    return tuple(counted)


# Encoding -----------------------------------------------------------------------------------------------------------


def of_version(attributes: Iterable[Attribute], version: Version) -> list[Attribute]:
    """Return the attributes that exist in this version, in the order of ATTRIBUTES, vendors' attributes last."""
    known = (each for each in attributes if rule_for(each.name).since <= version <= rule_for(each.name).until)
    return sorted(known, key=lambda each: (_ORDER.get(each.name, len(_ORDER)), each.name, each.position))


def encode(attribute: Attribute, version: Version) -> bytes:
    """Encode an attribute: as an Attribute structure in 1.x, as an item with its own tag in 2.x."""
    rule = rule_for(attribute.name)
    if version >= (2, 0):
        if rule.tag != Tag.ATTRIBUTE:
            return encode_item(rule.tag, attribute.type, attribute.value)
        return ttlv.structure(Tag.ATTRIBUTE, vendor_name(attribute.name), _encode_value(attribute))
    index = ttlv.integer(Tag.ATTRIBUTE_INDEX, attribute.position) if rule.multiple else b""
    name = ttlv.text(Tag.ATTRIBUTE_NAME, attribute.name)
    return ttlv.structure(Tag.ATTRIBUTE, name, index, _encode_value(attribute))


def encode_all(attributes: Iterable[Attribute], version: Version) -> bytes:
    """Encode attributes: side by side in 1.x, in one Attributes structure in 2.x."""
    items = [encode(attribute, version) for attribute in attributes]
    return ttlv.structure(Tag.ATTRIBUTES, *items) if version >= (2, 0) else b"".join(items)


def encode_reference(name: str, version: Version) -> bytes:
    """Encode an attribute's name: as Attribute Name in 1.x, as Attribute Reference in 2.x (2.1 section 7.3)."""
    if version < (2, 0):
        return ttlv.text(Tag.ATTRIBUTE_NAME, name)
    rule = rule_for(name)
    if rule.tag == Tag.ATTRIBUTE:
        return ttlv.structure(Tag.ATTRIBUTE_REFERENCE, vendor_name(name))
    return ttlv.enumeration(Tag.ATTRIBUTE_REFERENCE, rule.tag)


def vendor_name(name: str) -> bytes:
    """Encode a vendor attribute's name as Vendor Identification and Attribute Name."""
    vendor, _, own = name.partition("-")
    return ttlv.text(Tag.VENDOR_IDENTIFICATION, vendor) + ttlv.text(Tag.ATTRIBUTE_NAME, own)


def _encode_value(attribute: Attribute) -> bytes:
    return encode_item(Tag.ATTRIBUTE_VALUE, attribute.type, attribute.value)
