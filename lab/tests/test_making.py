"""Create, Create Key Pair, Register: what is made, and what is not."""

import sqlite3
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key
from kmip_lab.keymanager import Store
from kmip_lab.keymanager.objects import ManagedObject

from gateway.kmip import ttlv
from gateway.kmip.spec import ObjectType, Operation, ResultReason, Tag
from lab.tests.talk import (
    AES,
    CERTIFICATE,
    EC,
    OPAQUE,
    RSA,
    SECRET,
    SYMMETRIC,
    USE,
    Talk,
    algorithm,
    date,
    key_block,
    length,
    make_pair,
    mask,
    name,
    number,
    refused,
)

PRE_ACTIVE, ACTIVE = 1, 2


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_a_key_is_created(talk: Talk, bits: int) -> None:
    made = talk.create(algorithm(AES), length(bits), mask(USE), name("mine"))
    assert made.payload.enumeration(Tag.OBJECT_TYPE) == ObjectType.SYMMETRIC_KEY
    assert len(talk.get(made).key) == bits // 8
    assert talk.attributes(made).fact("Cryptographic Length") == bits
    assert talk.attributes(made).fact("State") == PRE_ACTIVE


def test_every_key_is_another(modern: Talk) -> None:
    made = [modern.create() for _ in range(50)]
    assert len({one.uid for one in made}) == 50
    assert len({modern.get(one).key for one in made}) == 50


@pytest.mark.parametrize("missing", range(3))
def test_a_key_needs_algorithm_length_and_usage(talk: Talk, missing: int) -> None:
    facts = [algorithm(AES), length(256), mask(USE)]
    del facts[missing]
    refused(talk.create(*facts), ResultReason.INVALID_FIELD)
    assert talk.engine.store.count() == 0


@pytest.mark.parametrize("facts", [(algorithm(AES), length(200)), (algorithm(RSA), length(2048))])
def test_other_keys_are_not_created(talk: Talk, facts: Any) -> None:
    in_2_x = ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS
    refused(talk.create(*facts, mask(USE)), ResultReason.INVALID_FIELD, in_2_x)


def test_what_is_the_servers_to_say_is_not_the_clients_to_give(talk: Talk) -> None:
    state = number("State", Tag.STATE, ACTIVE)
    answer = talk.create(algorithm(AES), length(256), mask(USE), state)
    refused(answer, ResultReason.PERMISSION_DENIED, ResultReason.READ_ONLY_ATTRIBUTE)


def test_what_there_is_one_of_is_not_given_twice(talk: Talk) -> None:
    answer = talk.create(algorithm(AES), length(128), length(256), mask(USE))
    refused(answer, ResultReason.INVALID_FIELD, ResultReason.ATTRIBUTE_SINGLE_VALUED)


def test_a_key_with_an_activation_date_in_the_past_is_active(talk: Talk) -> None:
    facts = algorithm(AES), length(256), mask(USE)
    past = talk.create(*facts, date("Activation Date", Tag.ACTIVATION_DATE, 1_000_000_000))
    future = talk.create(*facts, date("Activation Date", Tag.ACTIVATION_DATE, 4_000_000_000))
    assert talk.attributes(past).fact("State") == ACTIVE
    assert talk.attributes(future).fact("State") == PRE_ACTIVE


def test_a_key_pair_on_a_curve(talk: Talk) -> None:
    made = make_pair(talk, EC, 256)
    private = made.payload.text(Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER) or ""
    public = made.payload.text(Tag.PUBLIC_KEY_UNIQUE_IDENTIFIER) or ""
    key = load_der_private_key(talk.get(private).key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == load_der_public_key(talk.get(public).key)
    (to_public,), (to_private,) = talk.attributes(private).facts["Link"], talk.attributes(public).facts["Link"]
    assert public.encode() in to_public
    assert private.encode() in to_private
    assert talk.attributes(private).fact("Cryptographic Usage Mask") == 1
    assert talk.locate(name("public")).uids == [public]


def test_an_rsa_key_pair(modern: Talk) -> None:
    made = make_pair(modern, RSA, 2048)
    private = modern.get(made.payload.text(Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER) or "")
    key = load_der_private_key(private.key, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 2048


def test_other_key_pairs_are_not_made(talk: Talk) -> None:
    answer = make_pair(talk, RSA, 1024)
    refused(answer, ResultReason.INVALID_FIELD, ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS)


def test_the_keys_of_a_pair_are_of_one_kind(talk: Talk) -> None:
    answer = talk.ask(
        Operation.CREATE_KEY_PAIR,
        talk.given(length(256), mask(1), kind="COMMON"),
        talk.given(algorithm(EC), kind="PRIVATE_KEY"),
        talk.given(algorithm(RSA), kind="PUBLIC_KEY"),
    )
    refused(answer, ResultReason.INVALID_FIELD)


def test_of_a_pair_both_keys_are_kept_or_none(modern: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Store.save

    def fail_for_public_keys(store: Store, saved: ManagedObject) -> None:
        if saved.object_type == ObjectType.PUBLIC_KEY:
            raise sqlite3.OperationalError("disk full")
        save(store, saved)

    monkeypatch.setattr(Store, "save", fail_for_public_keys)
    refused(make_pair(modern, EC, 256), ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR)
    assert modern.engine.store.count() == 0


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
def test_what_is_registered_comes_back_byte_by_byte(talk: Talk, object_type: ObjectType, encoded: bytes) -> None:
    made = talk.register(object_type, encoded, name("mine"))
    got = talk.get(made)
    assert got.payload.enumeration(Tag.OBJECT_TYPE) == object_type
    assert got.payload.children[-1].encoded == encoded
    assert talk.locate(name("mine")).uids == [made.uid]


def test_a_registered_key_is_described_by_its_key_block(talk: Talk) -> None:
    made = talk.register(ObjectType.SYMMETRIC_KEY, SYMMETRIC)
    told = talk.attributes(made, "Cryptographic Algorithm", "Cryptographic Length")
    assert told.fact("Cryptographic Algorithm") == AES
    assert told.fact("Cryptographic Length") == 256


def test_what_can_not_be_registered(talk: Talk) -> None:
    refused(talk.register(ObjectType.SYMMETRIC_KEY, CERTIFICATE), ResultReason.MISSING_DATA)
    answer = talk.register(ObjectType.PGP_KEY, CERTIFICATE)
    refused(answer, ResultReason.INVALID_FIELD, ResultReason.INVALID_OBJECT_TYPE)
