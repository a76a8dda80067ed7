"""Create, Create Key Pair, Register, Activate, Revoke, Destroy."""

import sqlite3
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key
from kmip_lab.keymanager import Store
from kmip_lab.keymanager.attributes import ManagedObject

from gateway.kmip import ttlv
from gateway.kmip.spec import ObjectType, Operation, ResultReason, Tag
from lab.tests.kit.engine_client import (
    AES,
    CERTIFICATE,
    EC,
    OPAQUE,
    RSA,
    SECRET,
    SYMMETRIC,
    USE,
    EngineClient,
    OperationResult,
    algorithm,
    assert_failed,
    date,
    key_block,
    length,
    make_pair,
    mask,
    name,
    number,
    uid_of,
)

PRE_ACTIVE, ACTIVE = 1, 2


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_a_key_is_created(client: EngineClient, bits: int) -> None:
    made = client.create(algorithm(AES), length(bits), mask(USE), name("mine"))
    assert made.payload.enumeration(Tag.OBJECT_TYPE) == ObjectType.SYMMETRIC_KEY
    assert len(client.get(made).key) == bits // 8
    assert client.attributes(made).number("Cryptographic Length") == bits
    assert client.attributes(made).number("State") == PRE_ACTIVE


def test_keys_and_identifiers_are_unique(client_2_1: EngineClient) -> None:
    made = [client_2_1.create() for _ in range(50)]
    assert len({each.uid for each in made}) == 50
    assert len({client_2_1.get(each).key for each in made}) == 50


@pytest.mark.parametrize("missing", range(3))
def test_create_needs_algorithm_length_and_usage_mask(client: EngineClient, missing: int) -> None:
    attributes = [algorithm(AES), length(256), mask(USE)]
    del attributes[missing]
    assert_failed(client.create(*attributes), ResultReason.INVALID_FIELD)
    assert client.engine.store.count() == 0


@pytest.mark.parametrize("attributes", [(algorithm(AES), length(200)), (algorithm(RSA), length(2048))])
def test_create_of_an_unsupported_key_fails(client: EngineClient, attributes: Any) -> None:
    in_2_x = ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS
    assert_failed(client.create(*attributes, mask(USE)), ResultReason.INVALID_FIELD, in_2_x)


def test_create_with_a_read_only_attribute_fails(client: EngineClient) -> None:
    state = number("State", Tag.STATE, ACTIVE)
    answer = client.create(algorithm(AES), length(256), mask(USE), state)
    assert_failed(answer, ResultReason.PERMISSION_DENIED, ResultReason.READ_ONLY_ATTRIBUTE)


def test_create_with_two_values_of_a_single_valued_attribute_fails(client: EngineClient) -> None:
    answer = client.create(algorithm(AES), length(128), length(256), mask(USE))
    assert_failed(answer, ResultReason.INVALID_FIELD, ResultReason.ATTRIBUTE_SINGLE_VALUED)


def test_a_key_with_an_activation_date_in_the_past_is_active(client: EngineClient) -> None:
    attributes = algorithm(AES), length(256), mask(USE)
    past = client.create(*attributes, date("Activation Date", Tag.ACTIVATION_DATE, 1_000_000_000))
    future = client.create(*attributes, date("Activation Date", Tag.ACTIVATION_DATE, 4_000_000_000))
    assert client.attributes(past).number("State") == ACTIVE
    assert client.attributes(future).number("State") == PRE_ACTIVE


def test_a_key_pair_on_a_curve_is_created_and_linked(client: EngineClient) -> None:
    made = make_pair(client, EC, 256)
    private = made.payload.text(Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER) or ""
    public = made.payload.text(Tag.PUBLIC_KEY_UNIQUE_IDENTIFIER) or ""
    key = load_der_private_key(client.get(private).key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == load_der_public_key(client.get(public).key)
    (to_public,), (to_private,) = (
        client.attributes(private).attribute_values["Link"],
        client.attributes(public).attribute_values["Link"],
    )
    assert public.encode() in to_public
    assert private.encode() in to_private
    assert client.attributes(private).number("Cryptographic Usage Mask") == 1
    assert client.locate(name("public")).uids == [public]


def test_an_rsa_key_pair_is_created(client_2_1: EngineClient) -> None:
    made = make_pair(client_2_1, RSA, 2048)
    private = client_2_1.get(made.payload.text(Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER) or "")
    key = load_der_private_key(private.key, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 2048


def test_create_of_an_unsupported_key_pair_fails(client: EngineClient) -> None:
    answer = make_pair(client, RSA, 1024)
    assert_failed(answer, ResultReason.INVALID_FIELD, ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS)


def test_a_key_pair_with_two_algorithms_fails(client: EngineClient) -> None:
    answer = client.ask(
        Operation.CREATE_KEY_PAIR,
        client.given(length(256), mask(1), kind="COMMON"),
        client.given(algorithm(EC), kind="PRIVATE_KEY"),
        client.given(algorithm(RSA), kind="PUBLIC_KEY"),
    )
    assert_failed(answer, ResultReason.INVALID_FIELD)


def test_a_failure_stores_neither_key_of_a_pair(client_2_1: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Store.save

    def fail_for_public_keys(store: Store, saved: ManagedObject) -> None:
        if saved.object_type == ObjectType.PUBLIC_KEY:
            raise sqlite3.OperationalError("disk full")
        save(store, saved)

    monkeypatch.setattr(Store, "save", fail_for_public_keys)
    assert_failed(make_pair(client_2_1, EC, 256), ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR)
    assert client_2_1.engine.store.count() == 0


@pytest.mark.parametrize(
    ("object_type", "encoded"),
    [
        (ObjectType.SYMMETRIC_KEY, SYMMETRIC),
        (ObjectType.SECRET_DATA, SECRET),
        (ObjectType.CERTIFICATE, CERTIFICATE),
        (ObjectType.OPAQUE_OBJECT, OPAQUE),
        (ObjectType.PUBLIC_KEY, ttlv.structure(Tag.PUBLIC_KEY, key_block(b"public", 5, 2048))),
        (ObjectType.PRIVATE_KEY, ttlv.structure(Tag.PRIVATE_KEY, key_block(b"private", 4, 2048))),
    ],
)
def test_get_returns_a_registered_object_byte_by_byte(
    client: EngineClient, object_type: ObjectType, encoded: bytes
) -> None:
    made = client.register(object_type, encoded, name("mine"))
    got = client.get(made)
    assert got.payload.enumeration(Tag.OBJECT_TYPE) == object_type
    assert got.payload.children[-1].encoded == encoded
    assert client.locate(name("mine")).uids == [made.uid]


def test_a_registered_key_has_the_attributes_of_its_key_block(client: EngineClient) -> None:
    made = client.register(ObjectType.SYMMETRIC_KEY, SYMMETRIC)
    returned = client.attributes(made, "Cryptographic Algorithm", "Cryptographic Length")
    assert returned.number("Cryptographic Algorithm") == AES
    assert returned.number("Cryptographic Length") == 256


def test_register_of_a_wrong_or_unsupported_type_fails(client: EngineClient) -> None:
    assert_failed(client.register(ObjectType.SYMMETRIC_KEY, CERTIFICATE), ResultReason.MISSING_DATA)
    answer = client.register(ObjectType.PGP_KEY, CERTIFICATE)
    assert_failed(answer, ResultReason.INVALID_FIELD, ResultReason.INVALID_OBJECT_TYPE)


# Activate, Revoke, Destroy --------------------------------------------------------------------------------------------


PRE_ACTIVE, ACTIVE, DEACTIVATED, COMPROMISED, DESTROYED, DESTROYED_COMPROMISED = range(1, 7)
KEY_COMPROMISE = 2


def state(client: EngineClient, which: OperationResult) -> int:
    return client.attributes(which, "State").number("State")


def test_a_key_is_activated_revoked_and_destroyed(client: EngineClient) -> None:
    made = client.create()
    assert client.activate(made).uid == made.uid
    assert state(client, made) == ACTIVE
    assert_failed(client.destroy(made), ResultReason.PERMISSION_DENIED, ResultReason.WRONG_KEY_LIFECYCLE_STATE)
    assert_failed(client.activate(made), ResultReason.PERMISSION_DENIED, ResultReason.WRONG_KEY_LIFECYCLE_STATE)
    assert client.revoke(made).uid == made.uid
    assert state(client, made) == DEACTIVATED
    assert client.get(made).ok
    assert client.destroy(made).uid == made.uid
    assert_failed(client.get(made), ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_DESTROYED)
    assert_failed(client.destroy(made), ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_DESTROYED)
    attributes = client.attributes(made)
    assert attributes.number("State") == DESTROYED
    assert {"Activation Date", "Deactivation Date", "Destroy Date", "Revocation Reason"} <= set(
        attributes.attribute_values
    )
    assert client.locate().uids == []


def test_a_key_is_compromised_before_activation(client: EngineClient) -> None:
    made = client.create()
    assert_failed(client.revoke(made), ResultReason.PERMISSION_DENIED, ResultReason.WRONG_KEY_LIFECYCLE_STATE)
    assert client.revoke(made, KEY_COMPROMISE).ok
    assert state(client, made) == COMPROMISED
    assert "Compromise Occurrence Date" in client.attributes(made).attribute_values
    assert client.destroy(made).ok
    assert state(client, made) == DESTROYED_COMPROMISED


def test_a_destroyed_key_can_be_compromised(client: EngineClient) -> None:
    made = client.create()
    client.destroy(made)
    assert client.revoke(made, KEY_COMPROMISE).ok
    assert state(client, made) == DESTROYED_COMPROMISED


def test_an_opaque_object_has_no_state(client: EngineClient) -> None:
    made = client.register(ObjectType.OPAQUE_OBJECT, OPAQUE)
    assert "State" not in client.attributes(made).attribute_values
    assert_failed(client.activate(made), ResultReason.ILLEGAL_OPERATION)
    assert client.destroy(made).ok
    assert not client.get(made).ok


def test_a_revocation_needs_a_reason(client: EngineClient) -> None:
    made = client.create()
    client.activate(made)
    assert_failed(client.ask(Operation.REVOKE, uid_of(made)), ResultReason.MISSING_DATA)
    assert state(client, made) == ACTIVE


def test_destroy_deletes_the_key_material_from_the_store(client_2_1: EngineClient) -> None:
    made = client_2_1.create()
    client_2_1.destroy(made)
    kept = client_2_1.engine.store.get(made.uid)
    assert kept is not None
    assert kept.material is None
