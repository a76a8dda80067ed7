"""Attributes added, modified, set and deleted, as 1.x writes it and as 2.x does."""

import pytest
from kmip_lab.keymanager.batch import Engine

from gateway.kmip import ttlv
from gateway.kmip.spec import Operation, ResultReason, Tag
from lab.tests.talk import AES_256, Answer, Fact, Talk, contact, group, length, name, number, own, refused, uid_of


def new(talk: Talk, fact: Fact) -> bytes:
    item = fact.item(talk.version)
    return ttlv.structure(Tag.NEW_ATTRIBUTE, item) if talk.version >= (2, 0) else item


def add(talk: Talk, made: Answer, fact: Fact) -> Answer:
    return talk.ask(Operation.ADD_ATTRIBUTE, uid_of(made), new(talk, fact))


def modify(talk: Talk, made: Answer, before: Fact, after: Fact, position: int | None = None) -> Answer:
    """Modify one instance: by its value in 2.x, by its position in 1.x."""
    if talk.version >= (2, 0):
        current = ttlv.structure(Tag.CURRENT_ATTRIBUTE, before.item(talk.version))
        return talk.ask(Operation.MODIFY_ATTRIBUTE, uid_of(made), current, new(talk, after))
    index = b"" if position is None else ttlv.integer(Tag.ATTRIBUTE_INDEX, position)
    value = after.encode(Tag.ATTRIBUTE_VALUE, after.value)
    item = ttlv.structure(Tag.ATTRIBUTE, ttlv.text(Tag.ATTRIBUTE_NAME, after.name), index, value)
    return talk.ask(Operation.MODIFY_ATTRIBUTE, uid_of(made), item)


def delete(talk: Talk, made: Answer, fact: Fact, position: int | None = None) -> Answer:
    if talk.version >= (2, 0):
        current = ttlv.structure(Tag.CURRENT_ATTRIBUTE, fact.item(talk.version))
        return talk.ask(Operation.DELETE_ATTRIBUTE, uid_of(made), current)
    index = b"" if position is None else ttlv.integer(Tag.ATTRIBUTE_INDEX, position)
    return talk.ask(Operation.DELETE_ATTRIBUTE, uid_of(made), ttlv.text(Tag.ATTRIBUTE_NAME, fact.name), index)


def groups(talk: Talk, made: Answer) -> list[bytes]:
    return talk.attributes(made).facts.get("Object Group", [])


def test_an_attribute_comes_changes_and_goes(talk: Talk) -> None:
    made = talk.create()
    assert add(talk, made, contact("Ada")).uid == made.uid
    assert talk.attributes(made).facts["Contact Information"] == [b"Ada"]
    assert modify(talk, made, contact("Ada"), contact("Grace")).uid == made.uid
    assert talk.attributes(made).facts["Contact Information"] == [b"Grace"]
    assert delete(talk, made, contact("Grace")).uid == made.uid
    assert "Contact Information" not in talk.attributes(made).facts


def test_several_instances_are_told_apart(talk: Talk) -> None:
    made = talk.create()
    for text in ("a", "b", "c"):
        assert add(talk, made, group(text)).ok
    assert groups(talk, made) == [b"a", b"b", b"c"]
    assert modify(talk, made, group("b"), group("B"), 1).ok
    assert delete(talk, made, group("a"), 0).ok
    assert groups(talk, made) == [b"B", b"c"]
    assert modify(talk, made, group("c"), group("C"), 2).ok  # positions stay when others go
    assert groups(talk, made) == [b"B", b"C"]


def test_1_x_answers_with_the_attribute(classic: Talk) -> None:
    made = classic.create()
    add(classic, made, name("first"))
    added = add(classic, made, name("second")).payload.structure(Tag.ATTRIBUTE)
    assert added is not None
    assert added.text(Tag.ATTRIBUTE_NAME) == "Name"
    assert added.integer(Tag.ATTRIBUTE_INDEX) == 1
    deleted = delete(classic, made, name("second"), 1).payload.structure(Tag.ATTRIBUTE)
    assert deleted is not None
    assert deleted.encoded == added.encoded


def test_2_x_answers_without_the_attribute(modern: Talk) -> None:
    answer = add(modern, modern.create(), name("mine"))
    assert [node.tag for node in answer.payload.children] == [Tag.UNIQUE_IDENTIFIER]


def test_what_may_be_there_once_is_not_added_twice(talk: Talk) -> None:
    made = talk.create()
    add(talk, made, contact("Ada"))
    refused(add(talk, made, contact("Grace")), ResultReason.INVALID_FIELD, ResultReason.ATTRIBUTE_SINGLE_VALUED)


@pytest.mark.parametrize("fact", [number("State", Tag.STATE, 2), length(128)], ids=lambda fact: fact.name)
def test_what_is_not_the_clients_to_change(talk: Talk, fact: Fact) -> None:
    made = talk.create()
    before = talk.attributes(made).facts
    for answer in (modify(talk, made, fact, fact), delete(talk, made, fact)):
        assert not answer.ok
    assert talk.attributes(made).facts == before


def test_what_is_not_there_can_not_be_changed(talk: Talk) -> None:
    made = talk.create()
    missing = ResultReason.ITEM_NOT_FOUND, ResultReason.ATTRIBUTE_NOT_FOUND
    refused(modify(talk, made, contact("Ada"), contact("Grace")), *missing)
    refused(delete(talk, made, contact("Ada")), *missing)
    add(talk, made, group("a"))
    refused(modify(talk, made, group("b"), group("c"), 7), *missing)


def test_an_attribute_of_the_wrong_type(talk: Talk) -> None:
    wrong = Fact("Contact Information", Tag.CONTACT_INFORMATION, ttlv.integer, 7)
    refused(add(talk, talk.create(), wrong), ResultReason.INVALID_FIELD, ResultReason.INVALID_DATA_TYPE)


def test_an_attribute_that_does_not_exist(talk: Talk) -> None:
    unknown = Fact("Colour", Tag.NONCE, ttlv.text, "red")
    refused(add(talk, talk.create(), unknown), ResultReason.INVALID_FIELD, ResultReason.UNSUPPORTED_ATTRIBUTE)


def test_a_change_is_dated(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    made = talk.create()
    monkeypatch.setattr("time.time", lambda: 4_000_000_000.5)
    add(talk, made, contact("Ada"))
    assert talk.attributes(made).fact("Last Change Date") == 4_000_000_000
    assert talk.attributes(made).fact("Initial Date") < 4_000_000_000


def test_2_x_sets_what_there_is_one_of(modern: Talk) -> None:
    made = modern.create()
    for text in ("Ada", "Grace"):
        answer = modern.ask(Operation.SET_ATTRIBUTE, uid_of(made), new(modern, contact(text)))
        assert answer.uid == made.uid
        assert modern.attributes(made).facts["Contact Information"] == [text.encode()]
    several = modern.ask(Operation.SET_ATTRIBUTE, uid_of(made), new(modern, group("a")))
    refused(several, ResultReason.MULTI_VALUED_ATTRIBUTE)


def test_1_x_has_no_set_attribute(classic: Talk) -> None:
    answer = classic.ask(Operation.SET_ATTRIBUTE, uid_of(classic.create()), new(classic, contact("Ada")))
    refused(answer, ResultReason.OPERATION_NOT_SUPPORTED)


def test_2_x_wants_to_know_which_of_several(modern: Talk) -> None:
    made = modern.create()
    add(modern, made, group("a"))
    which = modern.ask(Operation.MODIFY_ATTRIBUTE, uid_of(made), new(modern, group("b")))
    refused(which, ResultReason.ATTRIBUTE_INSTANCE_NOT_FOUND)
    other = modify(modern, made, group("a"), contact("Ada"))
    refused(other, ResultReason.INVALID_FIELD)


def test_2_x_deletes_by_reference_all_that_there_are(modern: Talk) -> None:
    made = modern.create()
    add(modern, made, group("a"))
    add(modern, made, group("b"))
    reference = ttlv.enumeration(Tag.ATTRIBUTE_REFERENCE, Tag.OBJECT_GROUP)
    assert modern.ask(Operation.DELETE_ATTRIBUTE, uid_of(made), reference).ok
    assert groups(modern, made) == []
    refused(modern.ask(Operation.DELETE_ATTRIBUTE, uid_of(made), reference), ResultReason.ATTRIBUTE_NOT_FOUND)


def test_attributes_by_name_and_their_list(talk: Talk) -> None:
    made = talk.create()
    add(talk, made, group("a"))
    add(talk, made, group("b"))
    asked = talk.attributes(made, "Object Group", "State", "Contact Information")
    assert asked.facts == {"State": [b"\0\0\0\1"], "Object Group": [b"a", b"b"]}
    listed = talk.ask(Operation.GET_ATTRIBUTE_LIST, uid_of(made)).payload.children[1:]
    if talk.version >= (2, 0):
        names = [Tag(node.as_number()).name.replace("_", " ").title() for node in listed]
    else:
        names = [node.as_text() for node in listed]
    assert sorted(names) == sorted(talk.attributes(made).facts)
    assert names.count("Object Group") == 1


def test_a_version_sees_no_attributes_of_later_ones(engine: Engine) -> None:
    made = Talk(engine, (2, 1)).create()
    assert "Fresh" in Talk(engine, (1, 1)).attributes(made).facts
    assert "Fresh" not in Talk(engine, (1, 0)).attributes(made).facts


def test_2_x_sees_no_attributes_that_it_has_dropped(engine: Engine) -> None:
    classic = Talk(engine, (1, 4))
    made = classic.create(*AES_256, Fact("Operation Policy Name", Tag.OPERATION_POLICY_NAME, ttlv.text, "default"))
    assert classic.attributes(made).facts["Operation Policy Name"] == [b"default"]
    assert "Operation Policy Name" not in Talk(engine, (2, 0)).attributes(made).facts


def test_a_vendors_attribute_is_the_same_in_1_x_and_2_x(engine: Engine) -> None:
    classic, modern = Talk(engine, (1, 2)), Talk(engine, (2, 1))
    made = classic.create()
    assert add(classic, made, own("red")).ok
    reference = ttlv.structure(
        Tag.ATTRIBUTE_REFERENCE, ttlv.text(Tag.VENDOR_IDENTIFICATION, "x"), ttlv.text(Tag.ATTRIBUTE_NAME, "colour")
    )
    told = modern.ask(Operation.GET_ATTRIBUTES, uid_of(made), reference).payload.structure(Tag.ATTRIBUTES)
    assert told is not None
    (attribute,) = told.children
    assert attribute.text(Tag.VENDOR_IDENTIFICATION) == "x"
    assert attribute.text(Tag.ATTRIBUTE_NAME) == "colour"
    assert attribute.text(Tag.ATTRIBUTE_VALUE) == "red"
    listed = modern.ask(Operation.GET_ATTRIBUTE_LIST, uid_of(made)).payload.children
    assert reference in [node.encoded for node in listed]
    changed = ttlv.structure(
        Tag.ATTRIBUTE,
        ttlv.text(Tag.VENDOR_IDENTIFICATION, "x"),
        ttlv.text(Tag.ATTRIBUTE_NAME, "colour"),
        ttlv.text(Tag.ATTRIBUTE_VALUE, "blue"),
    )
    current = ttlv.structure(Tag.CURRENT_ATTRIBUTE, attribute.encoded)
    blue = ttlv.structure(Tag.NEW_ATTRIBUTE, changed)
    assert modern.ask(Operation.MODIFY_ATTRIBUTE, uid_of(made), current, blue).ok
    assert classic.attributes(made).facts["x-colour"] == [b"blue"]
