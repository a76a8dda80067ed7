"""Operations that make objects: Create, Create Key Pair, Register."""

import uuid
from collections.abc import Sequence
from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, ObjectType, ResultReason, Tag
from kmip_lab.keymanager import attributes, keys
from kmip_lab.keymanager.call import Call, Done, identified, required
from kmip_lab.keymanager.numbers import LinkType, RecommendedCurve, State
from kmip_lab.keymanager.objects import Attribute, ManagedObject
from kmip_lab.keymanager.refusals import Refusal
from kmip_lab.keymanager.tree import Node

#: Objects that have no State (1.4 section 3.22).
_STATELESS: Final = frozenset({ObjectType.OPAQUE_OBJECT})

#: What a Key Block says of its key, and the attributes that say the same.
_IN_KEY_BLOCK: Final = (
    (Tag.CRYPTOGRAPHIC_ALGORITHM, ItemType.ENUMERATION, "Cryptographic Algorithm"),
    (Tag.CRYPTOGRAPHIC_LENGTH, ItemType.INTEGER, "Cryptographic Length"),
)
_CURVE_LENGTHS: Final[dict[int, int]] = {RecommendedCurve.P_256: 256}


def create(call: Call) -> Done:
    """Create (1.4 section 4.1): a symmetric key, with a key value that nobody else has."""
    object_type = required(call.payload.enumeration(Tag.OBJECT_TYPE), "Object Type")
    if object_type != ObjectType.SYMMETRIC_KEY:
        raise Refusal(ResultReason.INVALID_OBJECT_TYPE, "Create makes symmetric keys only")
    given = call.given(Tag.TEMPLATE_ATTRIBUTE)
    _usage_mask(given)
    material = keys.new_symmetric_key(_number(given, "Cryptographic Algorithm"), _number(given, "Cryptographic Length"))
    made = _keep(call, object_type, material, given)
    return _typed(made)


def create_key_pair(call: Call) -> Done:
    """Create Key Pair (1.4 section 4.2): two objects, linked to each other."""
    common = call.given(Tag.COMMON_TEMPLATE_ATTRIBUTE, Tag.COMMON_ATTRIBUTES)
    for_private = _merge(common, call.given(Tag.PRIVATE_KEY_TEMPLATE_ATTRIBUTE, Tag.PRIVATE_KEY_ATTRIBUTES))
    for_public = _merge(common, call.given(Tag.PUBLIC_KEY_TEMPLATE_ATTRIBUTE, Tag.PUBLIC_KEY_ATTRIBUTES))
    parameters = _pair_parameters(for_private)
    if parameters != _pair_parameters(for_public):
        raise Refusal(ResultReason.INVALID_FIELD, "the two keys of a pair have one algorithm and one length")
    _usage_mask(for_private)
    _usage_mask(for_public)
    pair = call.make_key_pair(*parameters)
    private, public = str(uuid.uuid4()), str(uuid.uuid4())
    to_public, to_private = _link(LinkType.PUBLIC_KEY, public), _link(LinkType.PRIVATE_KEY, private)
    _keep(call, ObjectType.PRIVATE_KEY, pair.private, _merge(for_private, (to_public,)), private)
    _keep(call, ObjectType.PUBLIC_KEY, pair.public, _merge(for_public, (to_private,)), public)
    payload = ttlv.text(Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER, private) + ttlv.text(
        Tag.PUBLIC_KEY_UNIQUE_IDENTIFIER, public
    )
    return Done(payload, (private, public))


def register(call: Call) -> Done:
    """Register (1.4 section 4.3): an object of the client's own, kept as it is, byte by byte."""
    object_type = required(call.payload.enumeration(Tag.OBJECT_TYPE), "Object Type")
    tag = keys.OBJECT_TAGS.get(object_type)
    if tag is None:
        raise Refusal(ResultReason.INVALID_OBJECT_TYPE, f"objects of type {object_type} are not kept here")
    found = required(call.payload.structure(tag), "the object")
    given = call.given(Tag.TEMPLATE_ATTRIBUTE)
    made = _keep(call, object_type, found.encoded, _described(found, given))
    return identified(made)


def _keep(
    call: Call, object_type: int, material: bytes, given: Sequence[Attribute], uid: str | None = None
) -> ManagedObject:
    activation = attributes.number_of(next((one for one in given if one.name == "Activation Date"), None))
    state = State.PRE_ACTIVE if activation is None or activation > call.now else State.ACTIVE
    made = ManagedObject(
        uid=uid or str(uuid.uuid4()),
        owner=call.owner,
        object_type=object_type,
        state=None if object_type in _STATELESS else state,
        material=material,
        attributes=tuple(given),
    )
    dates = attributes.of_number("Initial Date", call.now), attributes.of_number("Fresh", True)
    call.save(made, *dates)
    return made


def _described(found: Node, given: tuple[Attribute, ...]) -> tuple[Attribute, ...]:
    """What was given, and what the object says of itself."""
    names = {attribute.name for attribute in given}
    block = found.structure(Tag.KEY_BLOCK)
    told = [
        attributes.of_number(name, number)
        for tag, item_type, name in _IN_KEY_BLOCK
        if name not in names and block is not None and (number := block.number(tag, item_type)) is not None
    ]
    certificate_type, value = found.enumeration(Tag.CERTIFICATE_TYPE), found.find(Tag.CERTIFICATE_VALUE)
    if certificate_type is not None and value is not None:
        told.append(attributes.of_number("Certificate Type", certificate_type))
        told.append(attributes.of_number("Certificate Length", len(value.value)))
    return (*given, *told)


def _merge(first: tuple[Attribute, ...], second: tuple[Attribute, ...]) -> tuple[Attribute, ...]:
    """Both, with single-valued ones of the second in the place of the first's."""
    replaced = {attribute.name for attribute in second if not attributes.kind_of(attribute.name).multiple}
    return attributes.given((*(one for one in first if one.name not in replaced), *second))


def _pair_parameters(given: Sequence[Attribute]) -> tuple[int, int]:
    """Algorithm and length of a key pair; a curve's length may be told by its name alone."""
    domain = next((one for one in given if one.name == "Cryptographic Domain Parameters"), None)
    length = None
    if domain is not None:
        curve = Node.of(attributes.encode(domain, (2, 0))).enumeration(Tag.RECOMMENDED_CURVE)
        length = None if curve is None else _CURVE_LENGTHS.get(curve)
    algorithm = _number(given, "Cryptographic Algorithm")
    return algorithm, _number(given, "Cryptographic Length") if length is None else length


def _number(given: Sequence[Attribute], name: str) -> int:
    number = attributes.number_of(next((one for one in given if one.name == name), None))
    if number is None:
        raise Refusal(ResultReason.INVALID_FIELD, f"{name} must be given")
    return number


def _usage_mask(given: Sequence[Attribute]) -> None:
    _number(given, "Cryptographic Usage Mask")


def _link(link_type: LinkType, uid: str) -> Attribute:
    return attributes.of_structure(
        "Link", ttlv.enumeration(Tag.LINK_TYPE, link_type), ttlv.text(Tag.LINKED_OBJECT_IDENTIFIER, uid)
    )


def _typed(made: ManagedObject) -> Done:
    done = identified(made)
    return Done(ttlv.enumeration(Tag.OBJECT_TYPE, made.object_type) + done.payload, done.uids)
