"""Activate, Revoke, Destroy: the states of a key."""

from gateway.kmip.spec import ObjectType, Operation, ResultReason
from lab.tests.talk import (
    OPAQUE,
    Answer,
    Talk,
    refused,
    uid_of,
)

PRE_ACTIVE, ACTIVE, DEACTIVATED, COMPROMISED, DESTROYED, DESTROYED_COMPROMISED = range(1, 7)
KEY_COMPROMISE = 2


def state(talk: Talk, which: Answer) -> int:
    return talk.attributes(which, "State").fact("State")


def test_a_key_lives_and_dies(talk: Talk) -> None:
    made = talk.create()
    assert talk.activate(made).uid == made.uid
    assert state(talk, made) == ACTIVE
    refused(talk.destroy(made), ResultReason.PERMISSION_DENIED, ResultReason.WRONG_KEY_LIFECYCLE_STATE)
    refused(talk.activate(made), ResultReason.PERMISSION_DENIED, ResultReason.WRONG_KEY_LIFECYCLE_STATE)
    assert talk.revoke(made).uid == made.uid
    assert state(talk, made) == DEACTIVATED
    assert talk.get(made).ok
    assert talk.destroy(made).uid == made.uid
    refused(talk.get(made), ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_DESTROYED)
    refused(talk.destroy(made), ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_DESTROYED)
    facts = talk.attributes(made)
    assert facts.fact("State") == DESTROYED
    assert {"Activation Date", "Deactivation Date", "Destroy Date", "Revocation Reason"} <= set(facts.facts)
    assert talk.locate().uids == []


def test_a_compromised_key(talk: Talk) -> None:
    made = talk.create()
    refused(talk.revoke(made), ResultReason.PERMISSION_DENIED, ResultReason.WRONG_KEY_LIFECYCLE_STATE)
    assert talk.revoke(made, KEY_COMPROMISE).ok
    assert state(talk, made) == COMPROMISED
    assert "Compromise Occurrence Date" in talk.attributes(made).facts
    assert talk.destroy(made).ok
    assert state(talk, made) == DESTROYED_COMPROMISED


def test_a_key_may_turn_out_compromised_after_its_end(talk: Talk) -> None:
    made = talk.create()
    talk.destroy(made)
    assert talk.revoke(made, KEY_COMPROMISE).ok
    assert state(talk, made) == DESTROYED_COMPROMISED


def test_an_opaque_object_has_no_state(talk: Talk) -> None:
    made = talk.register(ObjectType.OPAQUE_OBJECT, OPAQUE)
    assert "State" not in talk.attributes(made).facts
    refused(talk.activate(made), ResultReason.ILLEGAL_OPERATION)
    assert talk.destroy(made).ok
    assert not talk.get(made).ok


def test_a_revocation_needs_a_reason(talk: Talk) -> None:
    made = talk.create()
    talk.activate(made)
    refused(talk.ask(Operation.REVOKE, uid_of(made)), ResultReason.MISSING_DATA)
    assert state(talk, made) == ACTIVE


def test_destroyed_key_material_is_gone_from_the_store(modern: Talk) -> None:
    made = modern.create()
    modern.destroy(made)
    kept = modern.engine.store.get(made.uid)
    assert kept is not None
    assert kept.material is None
