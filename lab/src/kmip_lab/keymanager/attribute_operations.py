"""Operations on attributes: Get Attributes, Get Attribute List, Locate, Add, Modify, Delete, and since 2.0 Set."""

from collections.abc import Iterable
from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, ObjectGroupMember, ResultReason, Tag
from kmip_lab.keymanager import attributes
from kmip_lab.keymanager.attributes import Attribute, AttributeRule, ManagedObject, Right
from kmip_lab.keymanager.context import OperationContext, Success, required, success_for
from kmip_lab.keymanager.protocol import Node, OperationFailed, StorageStatusMask
from kmip_lab.keymanager.store import Criterion, Match

_VERBS: Final = {Right.SET: "set", Right.MODIFY: "modified", Right.DELETE: "deleted"}

# Reading --------------------------------------------------------------------------------------------------------------


def get_attributes(context: OperationContext) -> Success:
    """Get Attributes (1.4 section 4.12): the named attributes, or all; also of destroyed objects."""
    found = context.named_object()
    names = _requested_names(context)
    shown = attributes.of_version(_all_attributes(found), context.version)
    chosen = [attribute for attribute in shown if not names or attribute.name in names]
    return success_for(found, attributes.encode_all(chosen, context.version))


def get_attribute_list(context: OperationContext) -> Success:
    """Get Attribute List (1.4 section 4.13): the names of an object's attributes."""
    found = context.named_object()
    shown = attributes.of_version(_all_attributes(found), context.version)
    names = dict.fromkeys(attribute.name for attribute in shown)
    return success_for(found, *(attributes.encode_reference(name, context.version) for name in names))


def _requested_names(context: OperationContext) -> set[str]:
    if not context.is_2_x:
        return {node.as_text() for node in context.payload.find_all(Tag.ATTRIBUTE_NAME)}
    return {attributes.decode_reference(node) for node in context.payload.find_all(Tag.ATTRIBUTE_REFERENCE)}


def _all_attributes(found: ManagedObject) -> list[Attribute]:
    """Return an object's attributes, and as attributes its fields ``uid``, ``object_type`` and ``state``."""
    own = [attributes.of_text("Unique Identifier", found.uid), attributes.of_number("Object Type", found.object_type)]
    if found.state is not None:
        own.append(attributes.of_number("State", found.state))
    return [*own, *found.attributes]


def locate(context: OperationContext) -> Success:
    """Locate (1.4 section 4.9): the client's objects that have all given attributes, the newest first."""
    mask = context.payload.integer(Tag.STORAGE_STATUS_MASK)
    storage = StorageStatusMask(StorageStatusMask.ON_LINE if mask is None else mask)
    found = context.store.locate(
        context.owner,
        _criteria(context),
        living=StorageStatusMask.ON_LINE in storage,
        destroyed=StorageStatusMask.DESTROYED in storage,
    )
    first = max(0, context.payload.integer(Tag.OFFSET_ITEMS) or 0)
    limit = context.payload.integer(Tag.MAXIMUM_ITEMS)
    chosen = found[first:] if limit is None else found[first : first + limit]
    count = ttlv.integer(Tag.LOCATED_ITEMS, len(found)) if context.version >= (1, 3) else b""
    return Success(count + b"".join(ttlv.text(Tag.UNIQUE_IDENTIFIER, uid) for uid in chosen), tuple(chosen))


def _criteria(context: OperationContext) -> list[Criterion]:
    """Return a criterion for each attribute; two dates of one name are a range (1.4 section 4.9)."""
    values: dict[tuple[str, int], list[bytes]] = {}
    for position, attribute in enumerate(_located_attributes(context)):
        # Dates of one name share a key; every other attribute has a key of its own.
        key = attribute.name, -1 if attribute.type == ItemType.DATE_TIME else position
        values.setdefault(key, []).append(attribute.value)
    return [_criterion(name, of_name) for (name, _), of_name in values.items()]


def _located_attributes(context: OperationContext) -> list[Attribute]:
    nodes: Iterable[Node] = context.payload.find_all(Tag.ATTRIBUTE)
    if context.is_2_x:
        structure = context.payload.structure(Tag.ATTRIBUTES)
        nodes = () if structure is None else structure.children
    located = [attributes.decode(node, context.version) for node in nodes]
    if context.payload.enumeration(Tag.OBJECT_GROUP_MEMBER) == ObjectGroupMember.GROUP_MEMBER_FRESH:
        located.append(attributes.of_number("Fresh", True))
    return located


def _criterion(name: str, values: list[bytes]) -> Criterion:
    if len(values) > 1:
        return Criterion(name, (min(values), max(values)), Match.BETWEEN)
    return Criterion(name, (values[0],), Match.ALL_BITS if name == "Cryptographic Usage Mask" else Match.EQUAL)


# Changing -------------------------------------------------------------------------------------------------------------


def add_attribute(context: OperationContext) -> Success:
    """Add Attribute (1.4 section 4.14). A given Attribute Index is ignored: the next free index is taken."""
    found, new = context.named_object(), _new_attribute(context)
    rule = _check_right(new, Right.SET)
    if not rule.multiple and found.instance(rule.name) is not None:
        raise OperationFailed(ResultReason.ATTRIBUTE_SINGLE_VALUED, f"the object has a {rule.name} already")
    return _save(context, found, new._replace(position=found.next_position(rule.name)))


def modify_attribute(context: OperationContext) -> Success:
    """Modify Attribute (1.4 section 4.15): the instance with the given index; in 2.x, with the current value."""
    found, new = context.named_object(), _new_attribute(context)
    rule = _check_right(new, Right.MODIFY)
    current = _current_attribute(context, found)
    if current is None and context.is_2_x and rule.multiple:
        raise OperationFailed(
            ResultReason.ATTRIBUTE_INSTANCE_NOT_FOUND, f"Current Attribute must say which {rule.name} to modify"
        )
    if current is not None and current.name != new.name:
        raise OperationFailed(
            ResultReason.INVALID_FIELD, "Current Attribute and New Attribute must be the same attribute"
        )
    position = new.position if current is None else current.position
    _existing_attribute(found, new.name, position)
    return _save(context, found, new._replace(position=position))


def set_attribute(context: OperationContext) -> Success:
    """Set Attribute (2.1 section 6.1.52): add or modify a single-valued attribute."""
    found, new = context.named_object(), _new_attribute(context)
    rule = _check_right(new, Right.MODIFY)
    if rule.multiple:
        raise OperationFailed(ResultReason.MULTI_VALUED_ATTRIBUTE, f"{rule.name} may have several values")
    return _save(context, found, new)


def delete_attribute(context: OperationContext) -> Success:
    """Delete Attribute (1.4 section 4.16). In 2.x, an Attribute Reference deletes every instance."""
    found = context.named_object()
    if context.is_2_x:
        dropped = _referenced_attributes(context, found)
    else:
        name = required(context.payload.text(Tag.ATTRIBUTE_NAME), "Attribute Name")
        dropped = [_existing_attribute(found, name, context.payload.integer(Tag.ATTRIBUTE_INDEX) or 0)]
    for attribute in dropped:
        _check_right(attribute, Right.DELETE)
    context.save(found.drop(dropped))
    return success_for(found, b"" if context.is_2_x else attributes.encode(dropped[0], context.version))


def _new_attribute(context: OperationContext) -> Attribute:
    """Return the payload's Attribute (1.x) or New Attribute (2.x)."""
    node = context.payload.structure(Tag.NEW_ATTRIBUTE if context.is_2_x else Tag.ATTRIBUTE)
    if context.is_2_x and node is not None:
        node = next(iter(node.children), None)
    return attributes.decode(required(node, "the attribute"), context.version)


def _current_attribute(context: OperationContext, found: ManagedObject) -> Attribute | None:
    """Return the instance whose value Current Attribute has; None if the payload has no Current Attribute.

    Raises OperationFailed if no instance has this value.
    """
    node = context.payload.structure(Tag.CURRENT_ATTRIBUTE) if context.is_2_x else None
    if node is None:
        return None
    described = attributes.decode(required(next(iter(node.children), None), "Current Attribute"), context.version)
    for instance in found.instances(described.name):
        if instance.value == described.value:
            return instance
    raise OperationFailed(ResultReason.ATTRIBUTE_NOT_FOUND, f"the object has no {described.name} with this value")


def _referenced_attributes(context: OperationContext, found: ManagedObject) -> list[Attribute]:
    current = _current_attribute(context, found)
    if current is not None:
        return [current]
    name = attributes.decode_reference(required(context.payload.find(Tag.ATTRIBUTE_REFERENCE), "the attribute"))
    instances = found.instances(name)
    if not instances:
        raise OperationFailed(ResultReason.ATTRIBUTE_NOT_FOUND, f"the object has no {name}")
    return instances


def _existing_attribute(found: ManagedObject, name: str, position: int) -> Attribute:
    existing = found.instance(name, position)
    if existing is None:
        reason = ResultReason.ATTRIBUTE_INSTANCE_NOT_FOUND if position else ResultReason.ATTRIBUTE_NOT_FOUND
        raise OperationFailed(reason, f"the object has no {name} of index {position}")
    return existing


def _check_right(attribute: Attribute, right: Right) -> AttributeRule:
    rule = attributes.rule_for(attribute.name)
    if right not in rule.rights:
        raise OperationFailed(ResultReason.READ_ONLY_ATTRIBUTE, f"{rule.name} can't be {_VERBS[right]} by a client")
    return rule


def _save(context: OperationContext, found: ManagedObject, new: Attribute) -> Success:
    """Store the object with the attribute. In 1.x, the answer has the attribute; in 2.x, it does not."""
    context.save(found, new)
    return success_for(found, b"" if context.is_2_x else attributes.encode(new, context.version))
