"""PyKMIP's client and a simulated key manager, over mutual TLS on the loopback interface."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key
from kmip.core import enums
from kmip.core import objects as core
from kmip.core.enums import KMIPVersion
from kmip.core.factories.attributes import AttributeFactory
from kmip.core.messages.contents import ProtocolVersion
from kmip.pie import objects
from kmip.pie.client import ProxyKmipClient
from kmip.pie.exceptions import KmipOperationFailure
from kmip_lab.keymanager import KeyManager

from lab.tests.kit.key_managers import Start, pykmip_client

T = TypeVar("T")
AES = enums.CryptographicAlgorithm.AES
Mask = enums.CryptographicUsageMask
NOT_THERE = {
    enums.ResultReason.ITEM_NOT_FOUND,
    enums.ResultReason.OBJECT_NOT_FOUND,
    enums.ResultReason.OBJECT_DESTROYED,
}
pytestmark = pytest.mark.parametrize("version", list(KMIPVersion), ids=lambda version: version.name)


@pytest.fixture
async def key_manager(start: Start) -> KeyManager:
    return await start()


@pytest.fixture
def with_client(certificates: Path, key_manager: KeyManager, version: KMIPVersion) -> Callable[..., Any]:
    """Return a function that runs a test with PyKMIP's client in a thread, because the client blocks."""

    async def run(use: Callable[[ProxyKmipClient], T]) -> T:
        def run_blocking() -> T:
            with pykmip_client(certificates, key_manager.port, version) as client:
                return use(client)

        return await trio.to_thread.run_sync(run_blocking)

    return run


async def test_a_key_is_created_activated_revoked_and_destroyed(with_client: Any) -> None:
    def use(client: ProxyKmipClient) -> None:
        uid = client.create(AES, 256, name="mine")
        key = client.get(uid)
        assert isinstance(key, objects.SymmetricKey)
        assert len(key.value) == 32
        assert client.get(uid).value == key.value
        client.activate(uid)
        with pytest.raises(KmipOperationFailure):
            client.destroy(uid)
        with pytest.raises(KmipOperationFailure):
            client.activate(uid)
        client.revoke(enums.RevocationReasonCode.CESSATION_OF_OPERATION, uid)
        client.destroy(uid)
        with pytest.raises(KmipOperationFailure) as failure:
            client.get(uid)
        assert failure.value.reason in NOT_THERE

    await with_client(use)


async def test_registered_objects_are_returned(with_client: Any) -> None:
    masks = [Mask.ENCRYPT, Mask.DECRYPT]
    registered = [
        objects.SymmetricKey(AES, 128, bytes(range(16)), masks),
        objects.SecretData(b"password", enums.SecretDataType.PASSWORD),
        objects.OpaqueObject(b"whatever", enums.OpaqueDataType.NONE),
        objects.X509Certificate(b"DER", name="certificate"),
    ]

    def use(client: ProxyKmipClient) -> None:
        for each in registered:
            got = client.get(client.register(each))
            assert type(got) is type(each)
            assert got.value == each.value

    await with_client(use)


@pytest.mark.parametrize("algorithm", ["RSA", "EC"])
async def test_a_key_pair_is_created(with_client: Any, algorithm: str) -> None:
    def use(client: ProxyKmipClient) -> None:
        bits = 2048 if algorithm == "RSA" else 256
        public, private = client.create_key_pair(
            enums.CryptographicAlgorithm[algorithm],
            bits,
            public_usage_mask=[Mask.VERIFY],
            private_usage_mask=[Mask.SIGN],
        )
        ours, theirs = client.get(private), client.get(public)
        assert isinstance(ours, objects.PrivateKey)
        assert isinstance(theirs, objects.PublicKey)
        assert load_der_private_key(ours.value, None).public_key() == load_der_public_key(theirs.value)
        assert ours.cryptographic_length == bits

    await with_client(use)


async def test_a_key_is_wrapped(with_client: Any) -> None:
    def use(client: ProxyKmipClient) -> None:
        wrapping = client.create(AES, 256, cryptographic_usage_mask=[Mask.WRAP_KEY, Mask.UNWRAP_KEY])
        client.activate(wrapping)
        uid = client.create(AES, 128)
        specification = {
            "wrapping_method": enums.WrappingMethod.ENCRYPT,
            "encryption_key_information": {
                "unique_identifier": wrapping,
                "cryptographic_parameters": {"block_cipher_mode": enums.BlockCipherMode.NIST_KEY_WRAP},
            },
            "encoding_option": enums.EncodingOption.NO_ENCODING,
        }
        wrapped = client.get(uid, key_wrapping_specification=specification)
        assert aes_key_unwrap(client.get(wrapping).value, wrapped.value) == client.get(uid).value
        assert wrapped.key_wrapping_data["encryption_key_information"]["unique_identifier"] == wrapping

    await with_client(use)


async def test_data_is_encrypted_and_decrypted(with_client: Any, version: KMIPVersion) -> None:
    def use(client: ProxyKmipClient) -> None:
        uid = client.create(AES, 256, cryptographic_usage_mask=[Mask.ENCRYPT, Mask.DECRYPT])
        client.activate(uid)
        how = {
            "cryptographic_algorithm": AES,
            "block_cipher_mode": enums.BlockCipherMode.CBC,
            "padding_method": enums.PaddingMethod.PKCS5,
        }
        secret, nonce = client.encrypt(b"attack at dawn", uid, cryptographic_parameters=how)
        assert secret != b"attack at dawn"
        assert client.decrypt(secret, uid, cryptographic_parameters=how, iv_counter_nonce=nonce) == b"attack at dawn"

    if version in (KMIPVersion.KMIP_1_0, KMIPVersion.KMIP_1_1):
        with pytest.raises(KmipOperationFailure, match="OPERATION_NOT_SUPPORTED"):
            await with_client(use)
    else:
        await with_client(use)


def attribute(kind: enums.AttributeType, value: object) -> Any:
    return AttributeFactory().create_attribute(kind, value)


async def test_keys_are_located(with_client: Any) -> None:
    kind = enums.AttributeType

    def use(client: ProxyKmipClient) -> None:
        small, large = client.create(AES, 128, name="small"), client.create(AES, 256, name="large")
        client.activate(large)
        assert client.locate() == [large, small]
        assert client.locate(maximum_items=1) == [large]
        assert client.locate(maximum_items=1, offset_items=1) == [small]
        assert client.locate(attributes=[attribute(kind.NAME, "small")]) == [small]
        assert client.locate(attributes=[attribute(kind.NAME, "other")]) == []
        assert client.locate(attributes=[attribute(kind.CRYPTOGRAPHIC_LENGTH, 256)]) == [large]
        assert client.locate(attributes=[attribute(kind.STATE, enums.State.PRE_ACTIVE)]) == [small]
        symmetric = attribute(kind.OBJECT_TYPE, enums.ObjectType.SYMMETRIC_KEY)
        assert client.locate(attributes=[symmetric, attribute(kind.CRYPTOGRAPHIC_ALGORITHM, AES)]) == [large, small]

    await with_client(use)


async def test_attributes_are_read(with_client: Any) -> None:
    def use(client: ProxyKmipClient) -> None:
        uid = client.create(AES, 256, name="mine")
        _, everything = client.get_attributes(uid)
        values = {each.attribute_name.value: each.attribute_value for each in everything}
        assert values["Cryptographic Length"].value == 256
        assert values["State"].value == enums.State.PRE_ACTIVE
        assert values["Name"].name_value.value == "mine"
        _, some = client.get_attributes(uid, ["State", "Cryptographic Algorithm"])
        assert {each.attribute_name.value for each in some} == {"State", "Cryptographic Algorithm"}
        assert set(client.get_attribute_list(uid)) == set(values)

    await with_client(use)


async def test_attributes_are_changed(with_client: Any, version: KMIPVersion) -> None:
    def in_1_x(client: ProxyKmipClient, uid: str) -> None:
        new = attribute(enums.AttributeType.NAME, "yours")
        _, changed = client.modify_attribute(unique_identifier=uid, attribute=new)
        assert changed.attribute_value.name_value.value == "yours"
        client.delete_attribute(unique_identifier=uid, attribute_name="Name", attribute_index=0)

    def in_2_x(client: ProxyKmipClient, uid: str) -> None:
        mine, yours = (
            client.attribute_value_factory.create_attribute_value_by_enum(enums.Tags.NAME, name)
            for name in ("mine", "yours")
        )
        client.modify_attribute(
            unique_identifier=uid,
            current_attribute=core.CurrentAttribute(attribute=mine),
            new_attribute=core.NewAttribute(attribute=yours),
        )
        assert client.locate(attributes=[attribute(enums.AttributeType.NAME, "yours")]) == [uid]
        client.delete_attribute(unique_identifier=uid, current_attribute=core.CurrentAttribute(attribute=yours))
        client.set_attribute(unique_identifier=uid, attribute_name="Contact Information", attribute_value="Ada")
        assert "Contact Information" in client.get_attribute_list(uid)

    def use(client: ProxyKmipClient) -> None:
        uid = client.create(AES, 256, name="mine")
        (in_2_x if version == KMIPVersion.KMIP_2_0 else in_1_x)(client, uid)
        assert "Name" not in client.get_attribute_list(uid)

    await with_client(use)


async def test_query_and_discover_versions(with_client: Any, version: KMIPVersion) -> None:
    def use(client: ProxyKmipClient) -> None:
        functions = [
            enums.QueryFunction.QUERY_OPERATIONS,
            enums.QueryFunction.QUERY_OBJECTS,
            enums.QueryFunction.QUERY_SERVER_INFORMATION,
        ]
        returned = client.proxy.query(query_functions=functions)
        assert enums.Operation.CREATE in returned.operations
        assert enums.ObjectType.SYMMETRIC_KEY in returned.object_types
        assert "not for production" in returned.vendor_identification
        if version != KMIPVersion.KMIP_1_0:  # 1.0 has no Discover Versions, and PyKMIP's client fails on the refusal
            versions = client.proxy.discover_versions().protocol_versions
            assert versions[0] == ProtocolVersion(2, 1)
            assert versions[-1] == ProtocolVersion(1, 0)

    await with_client(use)


async def test_check_allows_and_refuses_usages(with_client: Any) -> None:
    def use(client: ProxyKmipClient) -> None:
        uid = client.create(AES, 256, cryptographic_usage_mask=[Mask.ENCRYPT])
        assert client.check(uid, cryptographic_usage_mask=[Mask.ENCRYPT]) == uid
        with pytest.raises(KmipOperationFailure):
            client.check(uid, cryptographic_usage_mask=[Mask.SIGN])

    await with_client(use)
