"""Operations on objects: Create, Create Key Pair, Register, Get, Check, Activate, Revoke, Destroy."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, ObjectType, ResultReason, Tag
from kmip_lab.keymanager import attributes, crypto
from kmip_lab.keymanager.attributes import Attribute, ManagedObject
from kmip_lab.keymanager.context import OperationContext, Success, required, success_for
from kmip_lab.keymanager.protocol import (
    CryptographicUsageMask,
    LinkType,
    Node,
    ObjectState,
    OperationFailed,
    RecommendedCurve,
    RevocationReasonCode,
)

# Create, Create Key Pair, Register ------------------------------------------------------------------------------------

#: Objects that have no State (1.4 section 3.22).
_STATELESS: Final = frozenset({ObjectType.OPAQUE_OBJECT})

#: Fields of a Key Block, and the attributes with the same meaning.
_KEY_BLOCK_ATTRIBUTES: Final = (
    (Tag.CRYPTOGRAPHIC_ALGORITHM, ItemType.ENUMERATION, "Cryptographic Algorithm"),
    (Tag.CRYPTOGRAPHIC_LENGTH, ItemType.INTEGER, "Cryptographic Length"),
)
_CURVE_LENGTHS: Final[dict[int, int]] = {RecommendedCurve.P_256: 256}


def create(context: OperationContext) -> Success:
    """Create (1.4 section 4.1): a symmetric key with random bits."""
    object_type = required(context.payload.enumeration(Tag.OBJECT_TYPE), "Object Type")
    if object_type != ObjectType.SYMMETRIC_KEY:
        raise OperationFailed(ResultReason.INVALID_OBJECT_TYPE, "Create makes symmetric keys only")
    new = context.new_attributes(Tag.TEMPLATE_ATTRIBUTE)
    _require_usage_mask(new)
    material = crypto.new_symmetric_key(_number(new, "Cryptographic Algorithm"), _number(new, "Cryptographic Length"))
    return _with_object_type(_save_new(context, object_type, material, new))


def create_key_pair(context: OperationContext) -> Success:
    """Create Key Pair (1.4 section 4.2): two objects, linked to each other."""
    common = context.new_attributes(Tag.COMMON_TEMPLATE_ATTRIBUTE, Tag.COMMON_ATTRIBUTES)
    for_private = _merge(common, context.new_attributes(Tag.PRIVATE_KEY_TEMPLATE_ATTRIBUTE, Tag.PRIVATE_KEY_ATTRIBUTES))
    for_public = _merge(common, context.new_attributes(Tag.PUBLIC_KEY_TEMPLATE_ATTRIBUTE, Tag.PUBLIC_KEY_ATTRIBUTES))
    parameters = _pair_parameters(for_private)
    if parameters != _pair_parameters(for_public):
        raise OperationFailed(
            ResultReason.INVALID_FIELD, "the keys of a pair must have the same algorithm and the same length"
        )
    _require_usage_mask(for_private)
    _require_usage_mask(for_public)
    pair = context.make_key_pair(*parameters)
    private, public = str(uuid.uuid4()), str(uuid.uuid4())
    to_public, to_private = _link(LinkType.PUBLIC_KEY, public), _link(LinkType.PRIVATE_KEY, private)
    _save_new(context, ObjectType.PRIVATE_KEY, pair.private, _merge(for_private, (to_public,)), private)
    _save_new(context, ObjectType.PUBLIC_KEY, pair.public, _merge(for_public, (to_private,)), public)
    payload = ttlv.text(Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER, private) + ttlv.text(
        Tag.PUBLIC_KEY_UNIQUE_IDENTIFIER, public
    )
    return Success(payload, (private, public))


def register(context: OperationContext) -> Success:
    """Register (1.4 section 4.3): store an object of the client byte by byte."""
    object_type = required(context.payload.enumeration(Tag.OBJECT_TYPE), "Object Type")
    tag = crypto.OBJECT_TAGS.get(object_type)
    if tag is None:
        raise OperationFailed(
            ResultReason.INVALID_OBJECT_TYPE, f"objects of type {object_type} are not supported by this key manager"
        )
    registered = required(context.payload.structure(tag), "the object")
    new = context.new_attributes(Tag.TEMPLATE_ATTRIBUTE)
    return success_for(_save_new(context, object_type, registered.encoded, _with_derived(registered, new)))


def _save_new(
    context: OperationContext, object_type: int, material: bytes, new: Sequence[Attribute], uid: str | None = None
) -> ManagedObject:
    activation = attributes.number_of(_find(new, "Activation Date"))
    state = ObjectState.PRE_ACTIVE if activation is None or activation > context.now else ObjectState.ACTIVE
    made = ManagedObject(
        uid=uid or str(uuid.uuid4()),
        owner=context.owner,
        object_type=object_type,
        state=None if object_type in _STATELESS else state,
        material=material,
        attributes=tuple(new),
    )
    context.save(made, attributes.of_number("Initial Date", context.now), attributes.of_number("Fresh", True))
    return made


def _with_derived(registered: Node, new: tuple[Attribute, ...]) -> tuple[Attribute, ...]:
    """Return the client's attributes, and those that the object's Key Block or certificate implies."""
    names = {attribute.name for attribute in new}
    block = registered.structure(Tag.KEY_BLOCK)
    derived = [
        attributes.of_number(name, number)
        for tag, item_type, name in _KEY_BLOCK_ATTRIBUTES
        if name not in names and block is not None and (number := block.number(tag, item_type)) is not None
    ]
    certificate_type, value = registered.enumeration(Tag.CERTIFICATE_TYPE), registered.find(Tag.CERTIFICATE_VALUE)
    if certificate_type is not None and value is not None:
        derived.append(attributes.of_number("Certificate Type", certificate_type))
        derived.append(attributes.of_number("Certificate Length", len(value.value)))
    return (*new, *derived)


def _merge(first: tuple[Attribute, ...], second: tuple[Attribute, ...]) -> tuple[Attribute, ...]:
    """Return the attributes of both; a single-valued attribute of ``second`` replaces that of ``first``."""
    replaced = {attribute.name for attribute in second if not attributes.rule_for(attribute.name).multiple}
    kept = (attribute for attribute in first if attribute.name not in replaced)
    return attributes.of_new_object((*kept, *second))


def _pair_parameters(new: Sequence[Attribute]) -> tuple[int, int]:
    """Return the algorithm and length of a key pair; a Recommended Curve implies the length."""
    domain = _find(new, "Cryptographic Domain Parameters")
    length = None
    if domain is not None:
        curve = Node.of(attributes.encode(domain, (2, 0))).enumeration(Tag.RECOMMENDED_CURVE)
        length = None if curve is None else _CURVE_LENGTHS.get(curve)
    algorithm = _number(new, "Cryptographic Algorithm")
    return algorithm, _number(new, "Cryptographic Length") if length is None else length


def _find(new: Sequence[Attribute], name: str) -> Attribute | None:
    return next((attribute for attribute in new if attribute.name == name), None)


def _number(new: Sequence[Attribute], name: str) -> int:
    number = attributes.number_of(_find(new, name))
    if number is None:
        raise OperationFailed(ResultReason.INVALID_FIELD, f"{name} must be given")
    return number


def _require_usage_mask(new: Sequence[Attribute]) -> None:
    _number(new, "Cryptographic Usage Mask")


def _link(link_type: LinkType, uid: str) -> Attribute:
    return attributes.of_structure(
        "Link", ttlv.enumeration(Tag.LINK_TYPE, link_type), ttlv.text(Tag.LINKED_OBJECT_IDENTIFIER, uid)
    )


def _with_object_type(found: ManagedObject, *items: bytes) -> Success:
    success = success_for(found, *items)
    return Success(ttlv.enumeration(Tag.OBJECT_TYPE, found.object_type) + success.payload, success.uids)


# Get, Check -----------------------------------------------------------------------------------------------------------

_FRESH: Final = attributes.of_number("Fresh", True).value


def get(context: OperationContext) -> Success:
    """Get (1.4 section 4.11): the object as stored, or with its key wrapped. The first Get sets Fresh to false."""
    found = context.living_object()
    _check_format(context, found)
    specification = context.payload.structure(Tag.KEY_WRAPPING_SPECIFICATION)
    _check_extractable(found, wrapped=specification is not None)
    material = found.material or b""
    if specification is not None:
        material = crypto.wrap(material, specification, _wrapping_key(context, specification))
    _clear_fresh(context, found)
    return _with_object_type(found, material)


def _check_format(context: OperationContext, found: ManagedObject) -> None:
    if context.payload.find(Tag.KEY_COMPRESSION_TYPE) is not None:
        raise OperationFailed(ResultReason.KEY_COMPRESSION_TYPE_NOT_SUPPORTED, "key compression is not supported")
    asked = context.payload.enumeration(Tag.KEY_FORMAT_TYPE)
    block = None if asked is None else Node.of(found.material or b"").structure(Tag.KEY_BLOCK)
    if asked is not None and (block is None or block.enumeration(Tag.KEY_FORMAT_TYPE) != asked):
        raise OperationFailed(
            ResultReason.KEY_FORMAT_TYPE_NOT_SUPPORTED, "a key can be returned only in the format in which it is stored"
        )


def _check_extractable(found: ManagedObject, *, wrapped: bool) -> None:
    """Check that a sensitive key is wrapped, and that an object is extractable (1.4 sections 3.48 and 3.50)."""
    if attributes.number_of(found.instance("Extractable")) == 0:
        raise OperationFailed(ResultReason.NOT_EXTRACTABLE, "this object is not extractable")
    if attributes.number_of(found.instance("Sensitive")) and not wrapped:
        raise OperationFailed(ResultReason.SENSITIVE, "this object is sensitive: it can be returned wrapped only")


def _wrapping_key(context: OperationContext, specification: Node) -> bytes:
    uid = context.placeholders.resolve(crypto.wrapping_key_information(specification).find(Tag.UNIQUE_IDENTIFIER))
    found = context.store.get(uid)
    if found is None or found.owner != context.owner:
        raise OperationFailed(ResultReason.WRAPPING_OBJECT_NOT_FOUND, f"there is no wrapping key {uid}")
    if found.material is None:
        raise OperationFailed(ResultReason.WRAPPING_OBJECT_DESTROYED, f"wrapping key {uid} is destroyed")
    key = crypto.key_bytes(found.material) if found.object_type == ObjectType.SYMMETRIC_KEY else None
    if key is None:
        raise OperationFailed(ResultReason.ILLEGAL_OPERATION, f"object {uid} is not a symmetric key and can't wrap")
    if found.state != ObjectState.ACTIVE:
        raise OperationFailed(ResultReason.WRONG_KEY_LIFECYCLE_STATE, f"wrapping key {uid} is not active")
    if not (attributes.number_of(found.instance("Cryptographic Usage Mask")) or 0) & CryptographicUsageMask.WRAP_KEY:
        raise OperationFailed(
            ResultReason.INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK,
            f"the Cryptographic Usage Mask of key {uid} does not allow wrapping",
        )
    return key


def _clear_fresh(context: OperationContext, found: ManagedObject) -> None:
    """Set Fresh to false, except on a standby: its writes are not replicated to the master.

    The object is read again in a transaction, because Get itself is not executed in a transaction.
    """
    fresh = found.instance("Fresh")
    if fresh is not None and fresh.value == _FRESH and not context.standby:
        with context.store.transaction():
            context.store.save(context.owned_object(found.uid).put((attributes.of_number("Fresh", False),)))


def check(context: OperationContext) -> Success:
    """Check (1.4 section 4.10): success if the key may be used as asked; the failure returns the refused usage mask."""
    found = context.living_object()
    asked = context.payload.integer(Tag.CRYPTOGRAPHIC_USAGE_MASK) or 0
    mask = attributes.number_of(found.instance("Cryptographic Usage Mask")) or 0
    if asked & ~mask:
        refused = ttlv.integer(Tag.CRYPTOGRAPHIC_USAGE_MASK, asked)
        raise OperationFailed(
            ResultReason.PERMISSION_DENIED,
            "the key's Cryptographic Usage Mask does not allow this usage",
            payload=refused,
        )
    return success_for(found)


# Activate, Revoke, Destroy (1.4 section 3.22) -------------------------------------------------------------------------


class LifecycleEvent(Enum):
    """An event that changes an object's state; its name is also the verb in error messages."""

    ACTIVATED = auto()
    REVOKED = auto()
    COMPROMISED = auto()
    DESTROYED = auto()


#: By event: the new state for each state in which the event is allowed (1.4 section 3.22, figure 1).
_TRANSITIONS: Final = {
    LifecycleEvent.ACTIVATED: {ObjectState.PRE_ACTIVE: ObjectState.ACTIVE},
    LifecycleEvent.REVOKED: {ObjectState.ACTIVE: ObjectState.DEACTIVATED},
    LifecycleEvent.COMPROMISED: {
        ObjectState.PRE_ACTIVE: ObjectState.COMPROMISED,
        ObjectState.ACTIVE: ObjectState.COMPROMISED,
        ObjectState.DEACTIVATED: ObjectState.COMPROMISED,
        ObjectState.DESTROYED: ObjectState.DESTROYED_COMPROMISED,
    },
    LifecycleEvent.DESTROYED: {
        ObjectState.PRE_ACTIVE: ObjectState.DESTROYED,
        ObjectState.DEACTIVATED: ObjectState.DESTROYED,
        ObjectState.COMPROMISED: ObjectState.DESTROYED_COMPROMISED,
    },
}
_COMPROMISES: Final = frozenset({RevocationReasonCode.KEY_COMPROMISE, RevocationReasonCode.CA_COMPROMISE})


def activate(context: OperationContext) -> Success:
    """Activate (1.4 section 4.19): from Pre-Active only."""
    found = context.living_object()
    activated = _change_state(found, LifecycleEvent.ACTIVATED)
    context.save(activated, attributes.of_number("Activation Date", context.now))
    return success_for(found)


def revoke(context: OperationContext) -> Success:
    """Revoke (1.4 section 4.20): for a compromise from any state, for other reasons from Active only."""
    found = context.named_object()
    reason = required(context.payload.structure(Tag.REVOCATION_REASON), "Revocation Reason")
    code = required(reason.enumeration(Tag.REVOCATION_REASON_CODE), "Revocation Reason Code")
    compromised = code in _COMPROMISES
    revoked = _change_state(found, LifecycleEvent.COMPROMISED if compromised else LifecycleEvent.REVOKED)
    text = reason.text(Tag.REVOCATION_MESSAGE)
    message = b"" if text is None else ttlv.text(Tag.REVOCATION_MESSAGE, text)
    new = [
        attributes.of_structure("Revocation Reason", ttlv.enumeration(Tag.REVOCATION_REASON_CODE, code), message),
        attributes.of_number("Compromise Date" if compromised else "Deactivation Date", context.now),
    ]
    if compromised:
        new.append(_compromise_occurrence(context))
    context.save(revoked, *new)
    return success_for(found)


def _compromise_occurrence(context: OperationContext) -> Attribute:
    """Return the date since which the key may be known to others; now if the client gives none."""
    date = context.payload.number(Tag.COMPROMISE_OCCURRENCE_DATE, ItemType.DATE_TIME)
    return attributes.of_number("Compromise Occurrence Date", context.now if date is None else date)


def destroy(context: OperationContext) -> Success:
    """Destroy (1.4 section 4.21): delete the key material, keep the attributes. Fails for an active object."""
    found = context.living_object()
    destroyed = found if found.state is None else _change_state(found, LifecycleEvent.DESTROYED)
    context.save(replace(destroyed, material=None), attributes.of_number("Destroy Date", context.now))
    return success_for(found)


def _change_state(found: ManagedObject, event: LifecycleEvent) -> ManagedObject:
    """Return the object in its state after ``event``. Raises OperationFailed if its state does not allow the event."""
    if found.state is None:
        raise OperationFailed(ResultReason.ILLEGAL_OPERATION, "this object has no state")
    state = ObjectState(found.state)
    after = _TRANSITIONS[event].get(state)
    if after is None:
        adjective = state.name.lower().replace("_", "-")
        raise OperationFailed(
            ResultReason.WRONG_KEY_LIFECYCLE_STATE, f"an object that is {adjective} can't be {event.name.lower()}"
        )
    return replace(found, state=after)
