"""Operations on attributes: Add, Modify, Delete, and from 2.0 on Set."""

from typing import Final

from gateway.kmip.spec import ResultReason, Tag
from kmip_lab.keymanager import attributes
from kmip_lab.keymanager.attributes import Kind, Right
from kmip_lab.keymanager.call import Call, Done, identified, required
from kmip_lab.keymanager.objects import Attribute, ManagedObject
from kmip_lab.keymanager.refusals import Refusal

_VERBS: Final = {Right.GIVE: "added", Right.MODIFY: "modified", Right.DELETE: "deleted"}


def add_attribute(call: Call) -> Done:
    """Add Attribute (1.4 section 4.14). An index that the client gives is passed over: the next free one is taken."""
    found, new = call.named(), _new(call)
    kind = _permit(new, Right.GIVE)
    if not kind.multiple and found.instance(kind.name) is not None:
        raise Refusal(ResultReason.ATTRIBUTE_SINGLE_VALUED, f"there is a {kind.name} already")
    return _changed(call, found, new._replace(position=found.next_position(kind.name)))


def modify_attribute(call: Call) -> Done:
    """Modify Attribute (1.4 section 4.15): the instance of that index, or from 2.0 on the one with that value."""
    found, new = call.named(), _new(call)
    kind = _permit(new, Right.MODIFY)
    current = _current(call, found)
    if current is None and call.is_2_x and kind.multiple:
        raise Refusal(ResultReason.ATTRIBUTE_INSTANCE_NOT_FOUND, f"which {kind.name} is to be modified?")
    if current is not None and current.name != new.name:
        raise Refusal(ResultReason.INVALID_FIELD, "Current Attribute and New Attribute are not the same")
    position = new.position if current is None else current.position
    _existing(found, new.name, position)
    return _changed(call, found, new._replace(position=position))


def set_attribute(call: Call) -> Done:
    """Set Attribute (2.1 section 6.1.52): add it or modify it, where there can be one only."""
    found, new = call.named(), _new(call)
    kind = _permit(new, Right.MODIFY)
    if kind.multiple:
        raise Refusal(ResultReason.MULTI_VALUED_ATTRIBUTE, f"there may be several {kind.name}")
    return _changed(call, found, new)


def delete_attribute(call: Call) -> Done:
    """Delete Attribute (1.4 section 4.16). From 2.0 on, a reference instead of a value means every instance."""
    found = call.named()
    if call.is_2_x:
        dropped = _referred(call, found)
    else:
        name = required(call.payload.text(Tag.ATTRIBUTE_NAME), "Attribute Name")
        dropped = [_existing(found, name, call.payload.integer(Tag.ATTRIBUTE_INDEX) or 0)]
    for attribute in dropped:
        _permit(attribute, Right.DELETE)
    call.save(found.drop(dropped))
    return identified(found, b"" if call.is_2_x else attributes.encode(dropped[0], call.version))


def _new(call: Call) -> Attribute:
    """The attribute as it is to be."""
    node = call.payload.structure(Tag.NEW_ATTRIBUTE if call.is_2_x else Tag.ATTRIBUTE)
    if call.is_2_x and node is not None:
        node = next(iter(node.children), None)
    return attributes.read(required(node, "the attribute"), call.version)


def _current(call: Call, found: ManagedObject) -> Attribute | None:
    """The instance that Current Attribute describes; None where the payload has none."""
    node = call.payload.structure(Tag.CURRENT_ATTRIBUTE) if call.is_2_x else None
    if node is None:
        return None
    described = attributes.read(required(next(iter(node.children), None), "Current Attribute"), call.version)
    for one in found.instances(described.name):
        if one.value == described.value:
            return one
    raise Refusal(ResultReason.ATTRIBUTE_NOT_FOUND, f"there is no such {described.name}")


def _referred(call: Call, found: ManagedObject) -> list[Attribute]:
    current = _current(call, found)
    if current is not None:
        return [current]
    name = attributes.read_reference(required(call.payload.find(Tag.ATTRIBUTE_REFERENCE), "the attribute"))
    instances = found.instances(name)
    if not instances:
        raise Refusal(ResultReason.ATTRIBUTE_NOT_FOUND, f"there is no {name}")
    return instances


def _existing(found: ManagedObject, name: str, position: int) -> Attribute:
    existing = found.instance(name, position)
    if existing is None:
        reason = ResultReason.ATTRIBUTE_INSTANCE_NOT_FOUND if position else ResultReason.ATTRIBUTE_NOT_FOUND
        raise Refusal(reason, f"there is no {name} of index {position}")
    return existing


def _permit(attribute: Attribute, right: Right) -> Kind:
    kind = attributes.kind_of(attribute.name)
    if right not in kind.rights:
        raise Refusal(ResultReason.READ_ONLY_ATTRIBUTE, f"{kind.name} can't be {_VERBS[right]} by a client")
    return kind


def _changed(call: Call, found: ManagedObject, new: Attribute) -> Done:
    """Keep the object with the attribute; 1.x answers with the attribute, 2.x without."""
    call.save(found, new)
    return identified(found, b"" if call.is_2_x else attributes.encode(new, call.version))
