"""Attributes added, modified, set and deleted, as 1.x writes it and as 2.x does."""

import pytest
from kmip_lab.keymanager.engine import Engine

from gateway.kmip import ttlv
from gateway.kmip.spec import Operation, ResultReason, Tag
from lab.tests.kit.engine_client import (
    AES_256,
    AttributeValue,
    EngineClient,
    OperationResult,
    assert_failed,
    contact,
    group,
    length,
    name,
    number,
    uid_of,
    vendor_colour,
)


def new(client: EngineClient, attribute: AttributeValue) -> bytes:
    item = attribute.item(client.version)
    return ttlv.structure(Tag.NEW_ATTRIBUTE, item) if client.version >= (2, 0) else item


def add(client: EngineClient, made: OperationResult, attribute: AttributeValue) -> OperationResult:
    return client.ask(Operation.ADD_ATTRIBUTE, uid_of(made), new(client, attribute))


def modify(
    client: EngineClient,
    made: OperationResult,
    before: AttributeValue,
    after: AttributeValue,
    position: int | None = None,
) -> OperationResult:
    """Modify one instance: by its value in 2.x, by its position in 1.x."""
    if client.version >= (2, 0):
        current = ttlv.structure(Tag.CURRENT_ATTRIBUTE, before.item(client.version))
        return client.ask(Operation.MODIFY_ATTRIBUTE, uid_of(made), current, new(client, after))
    index = b"" if position is None else ttlv.integer(Tag.ATTRIBUTE_INDEX, position)
    value = after.encode(Tag.ATTRIBUTE_VALUE, after.value)
    item = ttlv.structure(Tag.ATTRIBUTE, ttlv.text(Tag.ATTRIBUTE_NAME, after.name), index, value)
    return client.ask(Operation.MODIFY_ATTRIBUTE, uid_of(made), item)


def delete(
    client: EngineClient, made: OperationResult, attribute: AttributeValue, position: int | None = None
) -> OperationResult:
    if client.version >= (2, 0):
        current = ttlv.structure(Tag.CURRENT_ATTRIBUTE, attribute.item(client.version))
        return client.ask(Operation.DELETE_ATTRIBUTE, uid_of(made), current)
    index = b"" if position is None else ttlv.integer(Tag.ATTRIBUTE_INDEX, position)
    return client.ask(Operation.DELETE_ATTRIBUTE, uid_of(made), ttlv.text(Tag.ATTRIBUTE_NAME, attribute.name), index)


def groups(client: EngineClient, made: OperationResult) -> list[bytes]:
    return client.attributes(made).attribute_values.get("Object Group", [])


def test_an_attribute_comes_changes_and_goes(client: EngineClient) -> None:
    made = client.create()
    assert add(client, made, contact("Ada")).uid == made.uid
    assert client.attributes(made).attribute_values["Contact Information"] == [b"Ada"]
    assert modify(client, made, contact("Ada"), contact("Grace")).uid == made.uid
    assert client.attributes(made).attribute_values["Contact Information"] == [b"Grace"]
    assert delete(client, made, contact("Grace")).uid == made.uid
    assert "Contact Information" not in client.attributes(made).attribute_values


def test_several_instances_are_told_apart(client: EngineClient) -> None:
    made = client.create()
    for text in ("a", "b", "c"):
        assert add(client, made, group(text)).ok
    assert groups(client, made) == [b"a", b"b", b"c"]
    assert modify(client, made, group("b"), group("B"), 1).ok
    assert delete(client, made, group("a"), 0).ok
    assert groups(client, made) == [b"B", b"c"]
    assert modify(client, made, group("c"), group("C"), 2).ok  # positions stay when others go
    assert groups(client, made) == [b"B", b"C"]


def test_1_x_answers_with_the_attribute(client_1_2: EngineClient) -> None:
    made = client_1_2.create()
    add(client_1_2, made, name("first"))
    added = add(client_1_2, made, name("second")).payload.structure(Tag.ATTRIBUTE)
    assert added is not None
    assert added.text(Tag.ATTRIBUTE_NAME) == "Name"
    assert added.integer(Tag.ATTRIBUTE_INDEX) == 1
    deleted = delete(client_1_2, made, name("second"), 1).payload.structure(Tag.ATTRIBUTE)
    assert deleted is not None
    assert deleted.encoded == added.encoded


def test_2_x_answers_without_the_attribute(client_2_1: EngineClient) -> None:
    answer = add(client_2_1, client_2_1.create(), name("mine"))
    assert [node.tag for node in answer.payload.children] == [Tag.UNIQUE_IDENTIFIER]


def test_what_may_be_there_once_is_not_added_twice(client: EngineClient) -> None:
    made = client.create()
    add(client, made, contact("Ada"))
    assert_failed(add(client, made, contact("Grace")), ResultReason.INVALID_FIELD, ResultReason.ATTRIBUTE_SINGLE_VALUED)


@pytest.mark.parametrize(
    "attribute", [number("State", Tag.STATE, 2), length(128)], ids=lambda attribute: attribute.name
)
def test_what_is_not_the_clients_to_change(client: EngineClient, attribute: AttributeValue) -> None:
    made = client.create()
    before = client.attributes(made).attribute_values
    for answer in (modify(client, made, attribute, attribute), delete(client, made, attribute)):
        assert not answer.ok
    assert client.attributes(made).attribute_values == before


def test_what_is_not_there_can_not_be_changed(client: EngineClient) -> None:
    made = client.create()
    missing = ResultReason.ITEM_NOT_FOUND, ResultReason.ATTRIBUTE_NOT_FOUND
    assert_failed(modify(client, made, contact("Ada"), contact("Grace")), *missing)
    assert_failed(delete(client, made, contact("Ada")), *missing)
    add(client, made, group("a"))
    assert_failed(modify(client, made, group("b"), group("c"), 7), *missing)


def test_an_attribute_of_the_wrong_type(client: EngineClient) -> None:
    wrong = AttributeValue("Contact Information", Tag.CONTACT_INFORMATION, ttlv.integer, 7)
    assert_failed(add(client, client.create(), wrong), ResultReason.INVALID_FIELD, ResultReason.INVALID_DATA_TYPE)


def test_an_attribute_that_does_not_exist(client: EngineClient) -> None:
    unknown = AttributeValue("Colour", Tag.NONCE, ttlv.text, "red")
    assert_failed(add(client, client.create(), unknown), ResultReason.INVALID_FIELD, ResultReason.UNSUPPORTED_ATTRIBUTE)


def test_a_change_is_dated(client: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made = client.create()
    monkeypatch.setattr("time.time", lambda: 4_000_000_000.5)
    add(client, made, contact("Ada"))
    assert client.attributes(made).number("Last Change Date") == 4_000_000_000
    assert client.attributes(made).number("Initial Date") < 4_000_000_000


def test_2_x_sets_what_there_is_one_of(client_2_1: EngineClient) -> None:
    made = client_2_1.create()
    for text in ("Ada", "Grace"):
        answer = client_2_1.ask(Operation.SET_ATTRIBUTE, uid_of(made), new(client_2_1, contact(text)))
        assert answer.uid == made.uid
        assert client_2_1.attributes(made).attribute_values["Contact Information"] == [text.encode()]
    several = client_2_1.ask(Operation.SET_ATTRIBUTE, uid_of(made), new(client_2_1, group("a")))
    assert_failed(several, ResultReason.MULTI_VALUED_ATTRIBUTE)


def test_1_x_has_no_set_attribute(client_1_2: EngineClient) -> None:
    answer = client_1_2.ask(Operation.SET_ATTRIBUTE, uid_of(client_1_2.create()), new(client_1_2, contact("Ada")))
    assert_failed(answer, ResultReason.OPERATION_NOT_SUPPORTED)


def test_2_x_wants_to_know_which_of_several(client_2_1: EngineClient) -> None:
    made = client_2_1.create()
    add(client_2_1, made, group("a"))
    which = client_2_1.ask(Operation.MODIFY_ATTRIBUTE, uid_of(made), new(client_2_1, group("b")))
    assert_failed(which, ResultReason.ATTRIBUTE_INSTANCE_NOT_FOUND)
    other = modify(client_2_1, made, group("a"), contact("Ada"))
    assert_failed(other, ResultReason.INVALID_FIELD)


def test_2_x_deletes_by_reference_all_that_there_are(client_2_1: EngineClient) -> None:
    made = client_2_1.create()
    add(client_2_1, made, group("a"))
    add(client_2_1, made, group("b"))
    reference = ttlv.enumeration(Tag.ATTRIBUTE_REFERENCE, Tag.OBJECT_GROUP)
    assert client_2_1.ask(Operation.DELETE_ATTRIBUTE, uid_of(made), reference).ok
    assert groups(client_2_1, made) == []
    assert_failed(client_2_1.ask(Operation.DELETE_ATTRIBUTE, uid_of(made), reference), ResultReason.ATTRIBUTE_NOT_FOUND)


def test_attributes_by_name_and_their_list(client: EngineClient) -> None:
    made = client.create()
    add(client, made, group("a"))
    add(client, made, group("b"))
    asked = client.attributes(made, "Object Group", "State", "Contact Information")
    assert asked.attribute_values == {"State": [b"\0\0\0\1"], "Object Group": [b"a", b"b"]}
    listed = client.ask(Operation.GET_ATTRIBUTE_LIST, uid_of(made)).payload.children[1:]
    if client.version >= (2, 0):
        names = [Tag(node.as_number()).name.replace("_", " ").title() for node in listed]
    else:
        names = [node.as_text() for node in listed]
    assert sorted(names) == sorted(client.attributes(made).attribute_values)
    assert names.count("Object Group") == 1


def test_a_version_sees_no_attributes_of_later_ones(engine: Engine) -> None:
    made = EngineClient(engine, (2, 1)).create()
    assert "Fresh" in EngineClient(engine, (1, 1)).attributes(made).attribute_values
    assert "Fresh" not in EngineClient(engine, (1, 0)).attributes(made).attribute_values


def test_2_x_sees_no_attributes_that_it_has_dropped(engine: Engine) -> None:
    client_1_2 = EngineClient(engine, (1, 4))
    made = client_1_2.create(
        *AES_256, AttributeValue("Operation Policy Name", Tag.OPERATION_POLICY_NAME, ttlv.text, "default")
    )
    assert client_1_2.attributes(made).attribute_values["Operation Policy Name"] == [b"default"]
    assert "Operation Policy Name" not in EngineClient(engine, (2, 0)).attributes(made).attribute_values


def test_a_vendors_attribute_is_the_same_in_1_x_and_2_x(engine: Engine) -> None:
    client_1_2, client_2_1 = EngineClient(engine, (1, 2)), EngineClient(engine, (2, 1))
    made = client_1_2.create()
    assert add(client_1_2, made, vendor_colour("red")).ok
    reference = ttlv.structure(
        Tag.ATTRIBUTE_REFERENCE, ttlv.text(Tag.VENDOR_IDENTIFICATION, "x"), ttlv.text(Tag.ATTRIBUTE_NAME, "colour")
    )
    told = client_2_1.ask(Operation.GET_ATTRIBUTES, uid_of(made), reference).payload.structure(Tag.ATTRIBUTES)
    assert told is not None
    (attribute,) = told.children
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
