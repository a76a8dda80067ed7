"""Get, plain and wrapped, and Check."""

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_unwrap_with_padding
from kmip_lab.keymanager.engine import Engine
from kmip_lab.keymanager.protocol import Node

from gateway.kmip import ttlv
from gateway.kmip.spec import ObjectType, Operation, ResultReason, Tag
from lab.tests.kit.engine_client import (
    AES,
    CERTIFICATE,
    USE,
    WRAP,
    EngineClient,
    OperationResult,
    algorithm,
    assert_failed,
    flag,
    key_block,
    length,
    mask,
    uid_of,
)

ACTIVE = 2


def test_a_client_can_not_use_an_object_of_another_owner(engine: Engine, client: EngineClient) -> None:
    made, mallory = client.create(), EngineClient(engine, client.version, "mallory")
    not_found = ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND
    assert_failed(mallory.get(made), *not_found)
    assert_failed(mallory.attributes(made), *not_found)
    assert_failed(mallory.activate(made), *not_found)
    assert_failed(mallory.destroy(made), *not_found)
    assert mallory.locate().uids == []
    assert client.get(made).ok


def test_get_in_another_format_or_compressed_fails(client: EngineClient) -> None:
    made = client.create()
    raw, pkcs_8 = ttlv.enumeration(Tag.KEY_FORMAT_TYPE, 1), ttlv.enumeration(Tag.KEY_FORMAT_TYPE, 4)
    assert client.get(made, raw).key == client.get(made).key
    assert_failed(client.get(made, pkcs_8), ResultReason.KEY_FORMAT_TYPE_NOT_SUPPORTED)
    compressed = ttlv.enumeration(Tag.KEY_COMPRESSION_TYPE, 1)
    assert_failed(client.get(made, compressed), ResultReason.KEY_COMPRESSION_TYPE_NOT_SUPPORTED)


def test_the_first_get_sets_fresh_to_false(client_2_1: EngineClient) -> None:
    made = client_2_1.create()
    assert client_2_1.attributes(made).number("Fresh") == 1
    assert client_2_1.get(made).ok
    assert client_2_1.attributes(made).number("Fresh") == 0


def wrapping(which: OperationResult | str, *options: bytes, mode: int | None = 0x0D) -> bytes:
    parameters = [] if mode is None else [ttlv.enumeration(Tag.BLOCK_CIPHER_MODE, mode)]
    return ttlv.structure(
        Tag.KEY_WRAPPING_SPECIFICATION,
        ttlv.enumeration(Tag.WRAPPING_METHOD, 1),
        ttlv.structure(
            Tag.ENCRYPTION_KEY_INFORMATION,
            uid_of(which),
            ttlv.structure(Tag.CRYPTOGRAPHIC_PARAMETERS, *parameters),
        ),
        *options,
    )


NO_ENCODING = ttlv.enumeration(Tag.ENCODING_OPTION, 1)
TTLV_ENCODING = ttlv.enumeration(Tag.ENCODING_OPTION, 2)


def wrapping_key(client: EngineClient) -> OperationResult:
    made = client.create(algorithm(AES), length(256), mask(WRAP))
    assert client.activate(made).ok
    return made


def wrapped_block(answer: OperationResult) -> Node:
    assert answer.ok, answer
    block = answer.payload.children[-1].structure(Tag.KEY_BLOCK)
    assert block is not None
    return block


def test_a_key_is_wrapped_without_encoding(client: EngineClient) -> None:
    made, wrapper = client.create(), wrapping_key(client)
    wrapped = client.get(made, wrapping(wrapper, NO_ENCODING))
    block = wrapped_block(wrapped)
    assert aes_key_unwrap(client.get(wrapper).key, wrapped.key) == client.get(made).key
    data = block.structure(Tag.KEY_WRAPPING_DATA)
    assert data is not None
    assert data.enumeration(Tag.WRAPPING_METHOD) == 1
    assert data.enumeration(Tag.ENCODING_OPTION) == 1
    information = data.structure(Tag.ENCRYPTION_KEY_INFORMATION)
    assert information is not None
    assert information.text(Tag.UNIQUE_IDENTIFIER) == wrapper.uid


@pytest.mark.parametrize("options", [(), (TTLV_ENCODING,)], ids=["by default", "on demand"])
def test_a_key_is_wrapped_in_its_ttlv_encoding(client: EngineClient, options: tuple[bytes, ...]) -> None:
    made, wrapper = client.create(), wrapping_key(client)
    value = wrapped_block(client.get(made, wrapping(wrapper, *options, mode=None))).find(Tag.KEY_VALUE)
    assert value is not None
    unwrapped = Node.of(aes_key_unwrap(client.get(wrapper).key, value.value))
    assert unwrapped.tag == Tag.KEY_VALUE
    assert unwrapped.children[0].value == client.get(made).key


def test_a_key_of_odd_length_is_wrapped_with_padding(client_2_1: EngineClient) -> None:
    wrapper, password = wrapping_key(client_2_1), b"not a multiple of 8"
    secret = ttlv.structure(Tag.SECRET_DATA, ttlv.enumeration(Tag.SECRET_DATA_TYPE, 1), key_block(password, 2))
    made = client_2_1.register(ObjectType.SECRET_DATA, secret)
    assert_failed(client_2_1.get(made, wrapping(wrapper, NO_ENCODING)), ResultReason.CRYPTOGRAPHIC_FAILURE)
    wrapped = client_2_1.get(made, wrapping(wrapper, NO_ENCODING, mode=0x0C))
    assert aes_key_unwrap_with_padding(client_2_1.get(wrapper).key, wrapped.key) == password


def test_wrapping_with_an_unfit_key_or_specification_fails(client: EngineClient) -> None:
    made = client.create()
    missing = ResultReason.ITEM_NOT_FOUND, ResultReason.WRAPPING_OBJECT_NOT_FOUND
    assert_failed(client.get(made, wrapping("none")), *missing)
    assert_failed(client.get(made, wrapping(EngineClient(client.engine, client.version, "bob").create())), *missing)
    wrapper = client.create(algorithm(AES), length(256), mask(WRAP))
    inactive = client.get(made, wrapping(wrapper))
    assert_failed(inactive, ResultReason.PERMISSION_DENIED, ResultReason.WRONG_KEY_LIFECYCLE_STATE)
    client.activate(made)
    other_use = client.get(wrapper, wrapping(made))
    assert_failed(other_use, ResultReason.PERMISSION_DENIED, ResultReason.INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK)
    client.activate(wrapper)
    mode = client.get(made, wrapping(wrapper, mode=1))
    assert_failed(mode, ResultReason.FEATURE_NOT_SUPPORTED, ResultReason.KEY_WRAP_TYPE_NOT_SUPPORTED)
    option = client.get(made, wrapping(wrapper, ttlv.enumeration(Tag.ENCODING_OPTION, 9)))
    assert_failed(option, ResultReason.ENCODING_OPTION_ERROR)
    certificate = client.register(ObjectType.CERTIFICATE, CERTIFICATE)
    assert_failed(client.get(certificate, wrapping(wrapper)), ResultReason.ILLEGAL_OPERATION)
    client.revoke(wrapper)
    client.destroy(wrapper)
    destroyed = client.get(made, wrapping(wrapper))
    assert_failed(destroyed, ResultReason.ITEM_NOT_FOUND, ResultReason.WRAPPING_OBJECT_DESTROYED)


def test_a_sensitive_key_is_returned_wrapped_only(client_2_1: EngineClient) -> None:
    wrapper, attributes = wrapping_key(client_2_1), (algorithm(AES), length(256), mask(USE))
    sensitive = client_2_1.create(*attributes, flag("Sensitive", Tag.SENSITIVE, True))
    assert_failed(client_2_1.get(sensitive), ResultReason.SENSITIVE)
    assert client_2_1.get(sensitive, wrapping(wrapper)).ok
    kept = client_2_1.create(*attributes, flag("Extractable", Tag.EXTRACTABLE, False))
    assert_failed(client_2_1.get(kept, wrapping(wrapper)), ResultReason.NOT_EXTRACTABLE)


def test_check_returns_the_refused_usage_mask(client: EngineClient) -> None:
    made = client.create()
    allowed = client.ask(Operation.CHECK, uid_of(made), ttlv.integer(Tag.CRYPTOGRAPHIC_USAGE_MASK, 4))
    assert allowed.uid == made.uid
    forbidden = client.ask(Operation.CHECK, uid_of(made), ttlv.integer(Tag.CRYPTOGRAPHIC_USAGE_MASK, 0x14))
    assert_failed(forbidden, ResultReason.PERMISSION_DENIED)
    assert forbidden.payload.integer(Tag.CRYPTOGRAPHIC_USAGE_MASK) == 0x14
    assert forbidden.payload.find(Tag.UNIQUE_IDENTIFIER) is None
