"""The table of attributes, their encodings in 1.x and 2.x, and managed objects as values."""

import pytest
from kmip_lab.keymanager import attributes
from kmip_lab.keymanager.attributes import ATTRIBUTES, Attribute, AttributeRule, ManagedObject
from kmip_lab.keymanager.engine import Engine
from kmip_lab.keymanager.protocol import Node, OperationFailed

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, Operation, Tag
from lab.tests.kit.engine_client import (
    AES_256,
    AttributeValue,
    EngineClient,
    OperationResult,
    uid_of,
    vendor_colour,
)


def add(client: EngineClient, made: OperationResult, attribute: AttributeValue) -> OperationResult:
    return client.ask(Operation.ADD_ATTRIBUTE, uid_of(made), new(client, attribute))


def new(client: EngineClient, attribute: AttributeValue) -> bytes:
    item = attribute.item(client.version)
    return ttlv.structure(Tag.NEW_ATTRIBUTE, item) if client.version >= (2, 0) else item


def test_a_version_does_not_show_attributes_of_later_versions(engine: Engine) -> None:
    made = EngineClient(engine, (2, 1)).create()
    assert "Fresh" in EngineClient(engine, (1, 1)).attributes(made).attribute_values
    assert "Fresh" not in EngineClient(engine, (1, 0)).attributes(made).attribute_values


def test_2_x_does_not_show_attributes_that_it_has_dropped(engine: Engine) -> None:
    client_1_2 = EngineClient(engine, (1, 4))
    made = client_1_2.create(
        *AES_256, AttributeValue("Operation Policy Name", Tag.OPERATION_POLICY_NAME, ttlv.text, "default")
    )
    assert client_1_2.attributes(made).attribute_values["Operation Policy Name"] == [b"default"]
    assert "Operation Policy Name" not in EngineClient(engine, (2, 0)).attributes(made).attribute_values


def test_a_vendor_attribute_is_the_same_in_1_x_and_2_x(engine: Engine) -> None:
    client_1_2, client_2_1 = EngineClient(engine, (1, 2)), EngineClient(engine, (2, 1))
    made = client_1_2.create()
    assert add(client_1_2, made, vendor_colour("red")).ok
    reference = ttlv.structure(
        Tag.ATTRIBUTE_REFERENCE, ttlv.text(Tag.VENDOR_IDENTIFICATION, "x"), ttlv.text(Tag.ATTRIBUTE_NAME, "colour")
    )
    returned = client_2_1.ask(Operation.GET_ATTRIBUTES, uid_of(made), reference).payload.structure(Tag.ATTRIBUTES)
    assert returned is not None
    (attribute,) = returned.children
    assert attribute.text(Tag.VENDOR_IDENTIFICATION) == "x"
    assert attribute.text(Tag.ATTRIBUTE_NAME) == "colour"
    assert attribute.text(Tag.ATTRIBUTE_VALUE) == "red"
    listed = client_2_1.ask(Operation.GET_ATTRIBUTE_LIST, uid_of(made)).payload.children
    assert reference in [node.encoded for node in listed]
    changed = ttlv.structure(
        Tag.ATTRIBUTE,
        ttlv.text(Tag.VENDOR_IDENTIFICATION, "x"),
        ttlv.text(Tag.ATTRIBUTE_NAME, "colour"),
        ttlv.text(Tag.ATTRIBUTE_VALUE, "blue"),
    )
    current = ttlv.structure(Tag.CURRENT_ATTRIBUTE, attribute.encoded)
    blue = ttlv.structure(Tag.NEW_ATTRIBUTE, changed)
    assert client_2_1.ask(Operation.MODIFY_ATTRIBUTE, uid_of(made), current, blue).ok
    assert client_1_2.attributes(made).attribute_values["x-colour"] == [b"blue"]


@pytest.mark.parametrize("rule", ATTRIBUTES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("version", [(1, 4), (2, 1)], ids=["1.4", "2.1"])
def test_an_attribute_is_encoded_and_decoded(rule: AttributeRule, version: tuple[int, int]) -> None:
    value = ttlv.text(Tag.NAME_VALUE, "value") if rule.type == ItemType.STRUCTURE else bytes(8)
    if rule.type in (ItemType.INTEGER, ItemType.ENUMERATION):
        value = bytes(4)
    attribute = Attribute(rule.name, 0, rule.type, value)
    assert attributes.decode(Node.of(attributes.encode(attribute, version)), version) == attribute
    reference = Node.of(attributes.encode_reference(rule.name, version))
    if version >= (2, 0):
        assert attributes.decode_reference(reference) == rule.name
    else:
        assert reference.as_text() == rule.name


def test_names_that_are_neither_known_nor_of_a_vendor_fail() -> None:
    assert attributes.rule_for("x-colour").multiple
    for name in ("Colour", "x-", "-colour"):
        with pytest.raises(OperationFailed, match="there is no attribute"):
            attributes.rule_for(name)


def test_a_change_of_an_object_is_a_new_value() -> None:
    group = attributes.of_text("Object Group", "a")
    before = ManagedObject("1", "alice", 2, 1, b"key", (group,))
    second = group._replace(position=before.next_position("Object Group"))
    after = before.put([second])
    assert before.instances("Object Group") == [group]
    assert after.instances("Object Group") == [group, second]
    assert after.drop([group]).instance("Object Group") is None
    assert after.drop([group]).next_position("Object Group") == 2
