"""Operations that read: Get, Get Attributes, Get Attribute List, Locate, Check."""

from collections.abc import Iterable
from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, ObjectGroupMember, ObjectType, ResultReason, Tag
from kmip_lab.keymanager import attributes, keys
from kmip_lab.keymanager.call import Call, Done, identified
from kmip_lab.keymanager.numbers import CryptographicUsageMask, State, StorageStatusMask
from kmip_lab.keymanager.objects import Attribute, ManagedObject
from kmip_lab.keymanager.refusals import Refusal
from kmip_lab.keymanager.store import Criterion, Match
from kmip_lab.keymanager.tree import Node

_YES: Final = attributes.of_number("Fresh", True).value


def get(call: Call) -> Done:
    """Get (1.4 section 4.11): the object as it is, or with its key wrapped. A first Get ends its being Fresh."""
    found = call.living()
    _check_format(call, found)
    specification = call.payload.structure(Tag.KEY_WRAPPING_SPECIFICATION)
    _check_extractable(found, wrapped=specification is not None)
    material = found.material or b""
    if specification is not None:
        material = keys.wrap(material, specification, _wrapping_key(call, specification))
    _used(call, found)
    done = identified(found, material)
    return Done(ttlv.enumeration(Tag.OBJECT_TYPE, found.object_type) + done.payload, done.uids)


def _check_format(call: Call, found: ManagedObject) -> None:
    if call.payload.find(Tag.KEY_COMPRESSION_TYPE) is not None:
        raise Refusal(ResultReason.KEY_COMPRESSION_TYPE_NOT_SUPPORTED, "keys are not compressed here")
    asked = call.payload.enumeration(Tag.KEY_FORMAT_TYPE)
    block = None if asked is None else Node.of(found.material or b"").structure(Tag.KEY_BLOCK)
    if asked is not None and (block is None or block.enumeration(Tag.KEY_FORMAT_TYPE) != asked):
        raise Refusal(ResultReason.KEY_FORMAT_TYPE_NOT_SUPPORTED, "keys are given in the format that they have")


def _check_extractable(found: ManagedObject, *, wrapped: bool) -> None:
    """Sensitive keys leave wrapped only, others not at all (1.4 sections 3.48 and 3.50)."""
    if attributes.number_of(found.instance("Extractable")) == 0:
        raise Refusal(ResultReason.NOT_EXTRACTABLE, "this object is not extractable")
    if attributes.number_of(found.instance("Sensitive")) and not wrapped:
        raise Refusal(ResultReason.SENSITIVE, "this object is sensitive: it is given only wrapped")


def _wrapping_key(call: Call, specification: Node) -> bytes:
    uid = call.placeholders.resolve(keys.wrapping_key_name(specification).find(Tag.UNIQUE_IDENTIFIER))
    found = call.store.get(uid)
    if found is None or found.owner != call.owner:
        raise Refusal(ResultReason.WRAPPING_OBJECT_NOT_FOUND, f"there is no wrapping key {uid}")
    if found.material is None:
        raise Refusal(ResultReason.WRAPPING_OBJECT_DESTROYED, f"wrapping key {uid} is destroyed")
    key = keys.key_bytes(found.material) if found.object_type == ObjectType.SYMMETRIC_KEY else None
    if key is None:
        raise Refusal(ResultReason.ILLEGAL_OPERATION, f"object {uid} is not a key that wraps")
    if found.state != State.ACTIVE:
        raise Refusal(ResultReason.WRONG_KEY_LIFECYCLE_STATE, f"wrapping key {uid} is not active")
    if not (attributes.number_of(found.instance("Cryptographic Usage Mask")) or 0) & CryptographicUsageMask.WRAP_KEY:
        raise Refusal(ResultReason.INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK, f"key {uid} is not for wrapping")
    return key


def _used(call: Call, found: ManagedObject) -> None:
    """Take Fresh away. The object is read again, since Get itself keeps nobody from writing.

    Not on a standby: what is written there would not reach the master.
    """
    fresh = found.instance("Fresh")
    if fresh is not None and fresh.value == _YES and not call.standby:
        with call.store.transaction():
            call.store.save(call.owned(found.uid).put((attributes.of_number("Fresh", False),)))


def get_attributes(call: Call) -> Done:
    """Get Attributes (1.4 section 4.12): those that are named, or all. Destroyed objects still have theirs."""
    found = call.named()
    names = _asked_names(call)
    chosen = [one for one in attributes.shown(_all(found), call.version) if not names or one.name in names]
    return identified(found, attributes.encode_all(chosen, call.version))


def get_attribute_list(call: Call) -> Done:
    """Get Attribute List (1.4 section 4.13): the names."""
    found = call.named()
    names = dict.fromkeys(one.name for one in attributes.shown(_all(found), call.version))
    return identified(found, *(attributes.encode_reference(name, call.version) for name in names))


def _asked_names(call: Call) -> set[str]:
    if not call.is_2_x:
        return {node.as_text() for node in call.payload.find_all(Tag.ATTRIBUTE_NAME)}
    return {attributes.read_reference(node) for node in call.payload.find_all(Tag.ATTRIBUTE_REFERENCE)}


def _all(found: ManagedObject) -> list[Attribute]:
    """An object's attributes, with those that are fields of its own."""
    own = [attributes.of_text("Unique Identifier", found.uid), attributes.of_number("Object Type", found.object_type)]
    if found.state is not None:
        own.append(attributes.of_number("State", found.state))
    return [*own, *found.attributes]


def locate(call: Call) -> Done:
    """Locate (1.4 section 4.9): the client's objects that have all these attributes, the newest first."""
    mask = call.payload.integer(Tag.STORAGE_STATUS_MASK)
    storage = StorageStatusMask(StorageStatusMask.ON_LINE if mask is None else mask)
    found = call.store.locate(
        call.owner,
        _criteria(call),
        living=StorageStatusMask.ON_LINE in storage,
        destroyed=StorageStatusMask.DESTROYED in storage,
    )
    first = max(0, call.payload.integer(Tag.OFFSET_ITEMS) or 0)
    most = call.payload.integer(Tag.MAXIMUM_ITEMS)
    chosen = found[first:] if most is None else found[first : first + most]
    count = ttlv.integer(Tag.LOCATED_ITEMS, len(found)) if call.version >= (1, 3) else b""
    return Done(count + b"".join(ttlv.text(Tag.UNIQUE_IDENTIFIER, uid) for uid in chosen), tuple(chosen))


def _criteria(call: Call) -> list[Criterion]:
    """One for each attribute; of a date, the first and the last make a range (1.4 section 4.9)."""
    wanted: dict[tuple[str, int], list[bytes]] = {}
    for position, one in enumerate(_wanted(call)):
        # Dates of one name belong together; everything else stands for itself.
        wanted.setdefault((one.name, -1 if one.type == ItemType.DATE_TIME else position), []).append(one.value)
    return [_criterion(name, values) for (name, _), values in wanted.items()]


def _wanted(call: Call) -> list[Attribute]:
    nodes: Iterable[Node] = call.payload.find_all(Tag.ATTRIBUTE)
    if call.is_2_x:
        structure = call.payload.structure(Tag.ATTRIBUTES)
        nodes = () if structure is None else structure.children
    wanted = [attributes.read(node, call.version) for node in nodes]
    if call.payload.enumeration(Tag.OBJECT_GROUP_MEMBER) == ObjectGroupMember.GROUP_MEMBER_FRESH:
        wanted.append(attributes.of_number("Fresh", True))
    return wanted


def _criterion(name: str, values: list[bytes]) -> Criterion:
    if len(values) > 1:
        return Criterion(name, (min(values), max(values)), Match.BETWEEN)
    return Criterion(name, (values[0],), Match.ALL_BITS if name == "Cryptographic Usage Mask" else Match.EQUAL)


def check(call: Call) -> Done:
    """Check (1.4 section 4.10): whether the key may be used so. Where not, the answer names what stands against it."""
    found = call.living()
    asked = call.payload.integer(Tag.CRYPTOGRAPHIC_USAGE_MASK) or 0
    mask = attributes.number_of(found.instance("Cryptographic Usage Mask")) or 0
    if asked & ~mask:
        against = ttlv.integer(Tag.CRYPTOGRAPHIC_USAGE_MASK, asked)
        raise Refusal(ResultReason.PERMISSION_DENIED, "the key is not for this usage", payload=against)
    return identified(found)
