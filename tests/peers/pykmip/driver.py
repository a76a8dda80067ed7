"""Drive PyKMIP's client against a KMIP server, and print a line for each result: HOST PORT CA CERTIFICATE KEY.

Identifiers that the server chose are printed as #1, #2 in the order in which they appeared, and values that the server
made up by their length.
"""

import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kmip.core import enums
from kmip.core.factories.attributes import AttributeFactory
from kmip.pie import objects as managed
from kmip.pie.client import ProxyKmipClient

MASK = enums.CryptographicUsageMask
AES = enums.CryptographicAlgorithm.AES
CBC = {
    "cryptographic_algorithm": AES,
    "block_cipher_mode": enums.BlockCipherMode.CBC,
    "padding_method": enums.PaddingMethod.PKCS5,
}
RSA_SIGNATURE = {
    "padding_method": enums.PaddingMethod.PKCS1v15,
    "cryptographic_algorithm": enums.CryptographicAlgorithm.RSA,
    "hashing_algorithm": enums.HashingAlgorithm.SHA_256,
}
PAIR = rsa.generate_private_key(65537, 2048)
PUBLIC_KEY = PAIR.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
PRIVATE_KEY = PAIR.private_bytes(
    serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
CERTIFICATE = bytes.fromhex("308201")  # no server of this project looks into it


class Driver:
    """Calls the client, and prints what it returns."""

    def __init__(self, host: str, port: str, ca: str, certificate: str, key: str) -> None:
        self._settings = {"hostname": host, "port": int(port), "ca": ca, "cert": certificate, "key": key}
        self._names: dict[str, str] = {}
        self._marker = f"pykmip-{time.time_ns()}"

    def client(self, version: enums.KMIPVersion, **further: Any) -> ProxyKmipClient:
        """Return a client, to be opened."""
        return ProxyKmipClient(config_file=os.devnull, kmip_version=version, **self._settings, **further)

    def known(self, identifier: str) -> str:
        """Return the stable name of an identifier."""
        return self._names.setdefault(identifier, f"#{len(self._names) + 1}")

    def show(self, value: Any) -> str:
        """Return a result without anything that the server made up."""
        if isinstance(value, bytes):
            return f"{len(value)} bytes"
        if isinstance(value, str):
            return self.known(value)
        if isinstance(value, list | tuple):
            return f"[{', '.join(sorted(self.show(each) for each in value))}]"
        if isinstance(value, managed.ManagedObject):
            return f"{type(value).__name__} of {len(value.value)} bytes"
        return str(value)

    def call(self, topic: str, function: Callable[[], Any], show: Callable[[Any], str] | None = None) -> Any:
        """Call a method of the client; print and return its result, or print its error and return None."""
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - every error of the peer is a result
            text = f"{type(error).__name__}: {error}"
            for identifier, name in self._names.items():
                text = re.sub(rf"(?<![\w-]){re.escape(identifier)}(?![\w-])", name, text)
            print(f"{topic}: error: {text.replace(self._marker, 'MARKER')}".replace("\n", " "))
            return None
        print(f"{topic}: {(show or self.show)(result)}")
        return result

    def life(self, version: enums.KMIPVersion) -> None:
        """Ask for versions and functions; make, read, change and destroy a key."""
        topic = version.name
        name = f"{self._marker}-{topic}"
        with self.client(version) as client:
            self.call(
                f"{topic} discover versions",
                client.proxy.discover_versions,
                lambda found: f"{found.result_status.value} {sorted(map(str, found.protocol_versions or []))}",
            )
            functions = [enums.QueryFunction.QUERY_OPERATIONS, enums.QueryFunction.QUERY_OBJECTS]
            self.call(
                f"{topic} query",
                partial(client.proxy.query, query_functions=functions),
                lambda found: (
                    f"{found.result_status.value} {len(found.operations)} operations, "
                    f"object types {sorted(map(str, found.object_types))}"
                ),
            )
            uid = self.call(f"{topic} create", lambda: client.create(AES, 256, name=name))
            if uid is None:
                return
            self.call(f"{topic} get", lambda: client.get(uid))
            wanted = AttributeFactory().create_attribute(enums.AttributeType.NAME, name)
            self.call(f"{topic} locate", lambda: client.locate(attributes=[wanted]))
            self.call(
                f"{topic} attribute list", lambda: client.get_attribute_list(uid), lambda found: str(sorted(found))
            )
            names = ["Cryptographic Length", "State", "Cryptographic Usage Mask"]
            self.call(
                f"{topic} attributes",
                lambda: client.get_attributes(uid, names),
                lambda found: (
                    f"{found[0] == uid}, " + ", ".join(sorted(str(each.attribute_value) for each in found[1]))
                ),
            )
            self.call(f"{topic} check", lambda: client.check(uid, usage_limits_count=1))
            self.call(f"{topic} activate", lambda: client.activate(uid))
            self.call(f"{topic} destroy while active", lambda: client.destroy(uid))
            self.call(f"{topic} rekey", lambda: client.rekey(uid))
            self.call(f"{topic} revoke", lambda: client.revoke(enums.RevocationReasonCode.KEY_COMPROMISE, uid))
            self.call(f"{topic} destroy", lambda: client.destroy(uid))
            self.call(f"{topic} get after destroy", lambda: client.get(uid))
            self.call(f"{topic} get of nothing", lambda: client.get("no-such-object"))

    def registered(self) -> None:
        """Register an object of each type, and compare the value that comes back."""
        secret = bytes(range(32))
        values: list[Any] = [
            managed.SymmetricKey(AES, 256, secret, masks=[MASK.ENCRYPT]),
            managed.SecretData(secret, enums.SecretDataType.PASSWORD),
            managed.OpaqueObject(secret * 10_000, enums.OpaqueDataType.NONE),
            managed.X509Certificate(CERTIFICATE),
            managed.PublicKey(enums.CryptographicAlgorithm.RSA, 2048, PUBLIC_KEY, enums.KeyFormatType.PKCS_1),
            managed.PrivateKey(enums.CryptographicAlgorithm.RSA, 2048, PRIVATE_KEY, enums.KeyFormatType.PKCS_8),
            managed.SplitKey(
                cryptographic_algorithm=AES,
                cryptographic_length=256,
                key_value=secret,
                split_key_parts=3,
                key_part_identifier=1,
                split_key_threshold=2,
                split_key_method=enums.SplitKeyMethod.XOR,
            ),
        ]
        for each in values:
            topic = f"register {type(each).__name__}"
            with self.client(enums.KMIPVersion.KMIP_1_2) as client:
                uid = self.call(topic, partial(client.register, each))
            if uid is not None:
                with self.client(enums.KMIPVersion.KMIP_1_2) as client:
                    self.call(f"{topic}, get", partial(client.get, uid), partial(self.compared, each))

    def compared(self, sent: Any, found: Any) -> str:
        """Return a result, and whether its value is the one that was sent."""
        # DER of a private key has one to three bytes more or less with each key.
        shown = type(found).__name__ if isinstance(found, managed.PrivateKey) else self.show(found)
        return f"{shown}, equal {found.value == sent.value}"

    def cryptography(self) -> None:
        """Let the server work with keys."""
        with self.client(enums.KMIPVersion.KMIP_1_4) as client:
            key = self.call(
                "crypto create", lambda: client.create(AES, 256, cryptographic_usage_mask=[MASK.ENCRYPT, MASK.DECRYPT])
            )
            self.call("crypto activate", lambda: client.activate(key))
            iv = bytes(16)
            sealed = self.call(
                "encrypt",
                lambda: client.encrypt(b"plain text", uid=key, cryptographic_parameters=CBC, iv_counter_nonce=iv),
                lambda found: self.show(found[0]),
            )
            if sealed is not None:
                self.call(
                    "decrypt",
                    lambda: client.decrypt(sealed[0], uid=key, cryptographic_parameters=CBC, iv_counter_nonce=iv),
                    lambda found: f"equal {found == b'plain text'}",
                )
            other = self.call(
                "MAC create",
                lambda: client.create(AES, 256, cryptographic_usage_mask=[MASK.MAC_GENERATE, MASK.MAC_VERIFY]),
            )
            self.call("MAC activate", lambda: client.activate(other))
            self.call(
                "MAC",
                lambda: client.mac(b"data", uid=other, algorithm=enums.CryptographicAlgorithm.HMAC_SHA256),
                lambda found: self.show(found[1]),
            )
            self.call("MAC with a key of another use", lambda: client.mac(b"data", uid=key, algorithm=AES))
            pair = self.call(
                "create key pair",
                lambda: client.create_key_pair(
                    enums.CryptographicAlgorithm.RSA,
                    2048,
                    public_usage_mask=[MASK.VERIFY],
                    private_usage_mask=[MASK.SIGN],
                ),
                lambda found: f"{self.known(found[0])} {self.known(found[1])}",
            )
            if pair is None:
                return
            for each in pair:
                self.call("key pair activate", partial(client.activate, each))
            signature = self.call(
                "sign", lambda: client.sign(b"data", uid=pair[1], cryptographic_parameters=RSA_SIGNATURE)
            )
            if signature is not None:
                self.call(
                    "verify",
                    lambda: client.signature_verify(
                        b"data", signature, uid=pair[0], cryptographic_parameters=RSA_SIGNATURE
                    ),
                )

    def attributes(self) -> None:
        """Change attributes, as KMIP 1.x and 2.0 do."""
        with self.client(enums.KMIPVersion.KMIP_1_4) as client:
            uid = self.call("attributes create", lambda: client.create(AES, 128, name=f"{self._marker}-attributes"))
            self.call(
                "modify attribute",
                lambda: client.modify_attribute(
                    uid,
                    attribute=AttributeFactory().create_attribute(
                        enums.AttributeType.NAME, f"{self._marker}-renamed", index=0
                    ),
                ),
                lambda found: self.show(found[0]),
            )
            self.call(
                "delete attribute",
                lambda: client.delete_attribute(uid, attribute_name="Name", attribute_index=0),
                lambda found: self.show(found[0]),
            )
        with self.client(enums.KMIPVersion.KMIP_2_0) as client:
            self.call(
                "set attribute",
                lambda: client.set_attribute(uid, attribute_name="Sensitive", attribute_value=True),
            )

    def password(self) -> None:
        """Send a Username and Password with each request."""
        with self.client(enums.KMIPVersion.KMIP_1_2, username="user", password="a password") as client:
            uid = self.call("password create", lambda: client.create(AES, 128))
            self.call("password get", lambda: client.get(uid))
            self.call("password destroy", lambda: client.destroy(uid))

    def many(self, number: int) -> None:
        """Find many objects: all, some of them, and those after the first."""
        wanted = [
            AttributeFactory().create_attribute(enums.AttributeType.OBJECT_TYPE, enums.ObjectType.SYMMETRIC_KEY),
            AttributeFactory().create_attribute(enums.AttributeType.CRYPTOGRAPHIC_LENGTH, 192),
        ]
        with self.client(enums.KMIPVersion.KMIP_1_4) as client:
            before = self.call("locate before", lambda: client.locate(attributes=wanted), lambda _: "done") or []
            for _ in range(number):
                self.call("locate create", lambda: client.create(AES, 192))
            found = self.call(
                "locate all",
                lambda: client.locate(attributes=wanted),
                lambda found: f"{len(set(found) - set(before))} new ones",
            )
            self.call(
                "locate some",
                lambda: client.locate(attributes=wanted, maximum_items=3),
                lambda some: f"{len(some)}, known {set(some) <= set(found)}",
            )
            self.call(
                "locate from the third on",
                lambda: client.locate(attributes=wanted, offset_items=2),
                lambda some: f"{len(found) - len(some)} fewer",
            )

    def wrapped(self) -> None:
        """Get a key that the server wraps with another one."""
        with self.client(enums.KMIPVersion.KMIP_1_2) as client:
            wrapping = self.call(
                "wrap register",
                lambda: client.register(managed.SymmetricKey(AES, 128, bytes(range(16)), masks=[MASK.WRAP_KEY])),
            )
            self.call("wrap activate", lambda: client.activate(wrapping))
            key = self.call("wrapped register", lambda: client.register(managed.SymmetricKey(AES, 128, bytes(16))))
            specification = {
                "wrapping_method": enums.WrappingMethod.ENCRYPT,
                "encryption_key_information": {
                    "unique_identifier": wrapping,
                    "cryptographic_parameters": {"block_cipher_mode": enums.BlockCipherMode.NIST_KEY_WRAP},
                },
                "encoding_option": enums.EncodingOption.NO_ENCODING,
            }
            self.call(
                "get wrapped",
                lambda: client.get(key, specification),
                lambda found: f"{len(found.value)} bytes, SHA-256 {hashlib.sha256(found.value).hexdigest()[:16]}",
            )

    def derived(self) -> None:
        """Derive a key from a registered one: the same input gives the same key."""
        with self.client(enums.KMIPVersion.KMIP_1_2) as client:
            secret = bytes(range(20))
            base = managed.SecretData(secret, enums.SecretDataType.SEED, masks=[MASK.DERIVE_KEY])
            uid = self.call("derive register", lambda: client.register(base))
            self.call(
                "derive key",
                lambda: client.derive_key(
                    enums.ObjectType.SYMMETRIC_KEY,
                    [uid],
                    enums.DerivationMethod.HMAC,
                    {
                        "cryptographic_parameters": {"hashing_algorithm": enums.HashingAlgorithm.SHA_256},
                        "derivation_data": b"data",
                    },
                    cryptographic_length=128,
                    cryptographic_algorithm=AES,
                ),
            )


def main() -> None:
    """Drive all."""
    logging.disable(logging.CRITICAL)
    driver = Driver(*sys.argv[1:])
    for version in enums.KMIPVersion:
        driver.life(version)
    driver.registered()
    driver.cryptography()
    driver.attributes()
    driver.password()
    driver.many(5)
    driver.wrapped()
    driver.derived()


main()
