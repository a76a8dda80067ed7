"""Get Attributes, Get Attribute List, Add, Modify, Set and Delete Attribute, in 1.x and in 2.x."""

import pytest

from gateway.kmip import ttlv
from gateway.kmip.spec import Operation, ResultReason, Tag
from lab.tests.kit.engine_client import (
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
    """Modify the instance at ``position`` (1.x) or with the value of ``before`` (2.x)."""
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


def test_attribute_is_added_modified_and_deleted(client: EngineClient) -> None:
    made = client.create()
    assert add(client, made, contact("Ada")).uid == made.uid
    assert client.attributes(made).attribute_values["Contact Information"] == [b"Ada"]
    assert modify(client, made, contact("Ada"), contact("Grace")).uid == made.uid
    assert client.attributes(made).attribute_values["Contact Information"] == [b"Grace"]
    assert delete(client, made, contact("Grace")).uid == made.uid
    assert "Contact Information" not in client.attributes(made).attribute_values


def test_instances_of_an_attribute_are_changed_one_by_one(client: EngineClient) -> None:
    made = client.create()
    for text in ("a", "b", "c"):
        assert add(client, made, group(text)).ok
    assert groups(client, made) == [b"a", b"b", b"c"]
    assert modify(client, made, group("b"), group("B"), 1).ok
    assert delete(client, made, group("a"), 0).ok
    assert groups(client, made) == [b"B", b"c"]
    assert modify(client, made, group("c"), group("C"), 2).ok  # deleting an instance does not move later instances
    assert groups(client, made) == [b"B", b"C"]


def test_1_x_answer_has_the_attribute(client_1_2: EngineClient) -> None:
    made = client_1_2.create()
    add(client_1_2, made, name("first"))
    added = add(client_1_2, made, name("second")).payload.structure(Tag.ATTRIBUTE)
    assert added is not None
    assert added.text(Tag.ATTRIBUTE_NAME) == "Name"
    assert added.integer(Tag.ATTRIBUTE_INDEX) == 1
    deleted = delete(client_1_2, made, name("second"), 1).payload.structure(Tag.ATTRIBUTE)
    assert deleted is not None
    assert deleted.encoded == added.encoded


def test_2_x_answer_has_no_attribute(client_2_1: EngineClient) -> None:
    answer = add(client_2_1, client_2_1.create(), name("mine"))
    assert [node.tag for node in answer.payload.children] == [Tag.UNIQUE_IDENTIFIER]


def test_adding_a_second_value_of_a_single_valued_attribute_fails(client: EngineClient) -> None:
    made = client.create()
    add(client, made, contact("Ada"))
    assert_failed(add(client, made, contact("Grace")), ResultReason.INVALID_FIELD, ResultReason.ATTRIBUTE_SINGLE_VALUED)


@pytest.mark.parametrize(
    "attribute", [number("State", Tag.STATE, 2), length(128)], ids=lambda attribute: attribute.name
)
def test_changing_a_read_only_attribute_fails(client: EngineClient, attribute: AttributeValue) -> None:
    made = client.create()
    before = client.attributes(made).attribute_values
    for answer in (modify(client, made, attribute, attribute), delete(client, made, attribute)):
        assert not answer.ok
    assert client.attributes(made).attribute_values == before


def test_changing_a_missing_attribute_fails(client: EngineClient) -> None:
    made = client.create()
    missing = ResultReason.ITEM_NOT_FOUND, ResultReason.ATTRIBUTE_NOT_FOUND
    assert_failed(modify(client, made, contact("Ada"), contact("Grace")), *missing)
    assert_failed(delete(client, made, contact("Ada")), *missing)
    add(client, made, group("a"))
    assert_failed(modify(client, made, group("b"), group("c"), 7), *missing)


def test_adding_a_value_of_the_wrong_type_fails(client: EngineClient) -> None:
    wrong = AttributeValue("Contact Information", Tag.CONTACT_INFORMATION, ttlv.integer, 7)
    assert_failed(add(client, client.create(), wrong), ResultReason.INVALID_FIELD, ResultReason.INVALID_DATA_TYPE)


def test_adding_an_unknown_attribute_fails(client: EngineClient) -> None:
    unknown = AttributeValue("Colour", Tag.NONCE, ttlv.text, "red")
    assert_failed(add(client, client.create(), unknown), ResultReason.INVALID_FIELD, ResultReason.UNSUPPORTED_ATTRIBUTE)


def test_a_change_sets_last_change_date(client: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made = client.create()
    monkeypatch.setattr("time.time", lambda: 4_000_000_000.5)
    add(client, made, contact("Ada"))
    assert client.attributes(made).number("Last Change Date") == 4_000_000_000
    assert client.attributes(made).number("Initial Date") < 4_000_000_000


def test_2_x_set_attribute_is_for_single_valued_attributes(client_2_1: EngineClient) -> None:
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


def test_2_x_modify_needs_current_attribute_if_there_are_several(client_2_1: EngineClient) -> None:
    made = client_2_1.create()
    add(client_2_1, made, group("a"))
    which = client_2_1.ask(Operation.MODIFY_ATTRIBUTE, uid_of(made), new(client_2_1, group("b")))
    assert_failed(which, ResultReason.ATTRIBUTE_INSTANCE_NOT_FOUND)
    other = modify(client_2_1, made, group("a"), contact("Ada"))
    assert_failed(other, ResultReason.INVALID_FIELD)


def test_2_x_delete_by_reference_deletes_every_instance(client_2_1: EngineClient) -> None:
    made = client_2_1.create()
    add(client_2_1, made, group("a"))
    add(client_2_1, made, group("b"))
    reference = ttlv.enumeration(Tag.ATTRIBUTE_REFERENCE, Tag.OBJECT_GROUP)
    assert client_2_1.ask(Operation.DELETE_ATTRIBUTE, uid_of(made), reference).ok
    assert groups(client_2_1, made) == []
    assert_failed(client_2_1.ask(Operation.DELETE_ATTRIBUTE, uid_of(made), reference), ResultReason.ATTRIBUTE_NOT_FOUND)


def test_get_attributes_by_name_and_get_attribute_list(client: EngineClient) -> None:
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
