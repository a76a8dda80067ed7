"""Keys: generating them, the objects that hold them, and wrapping them (1.4 sections 2.1.3 to 2.1.6)."""

import os
from collections.abc import Callable
from itertools import cycle
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap, aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, ObjectType, ResultReason, Tag
from kmip_lab.keymanager.numbers import (
    BlockCipherMode,
    CryptographicAlgorithm,
    EncodingOption,
    KeyFormatType,
    WrappingMethod,
)
from kmip_lab.keymanager.refusals import Refusal
from kmip_lab.keymanager.tree import Node

#: What each kind of object is called where it stands in a payload (1.4 section 2.2).
OBJECT_TAGS: Final[dict[int, Tag]] = {
    ObjectType.CERTIFICATE: Tag.CERTIFICATE,
    ObjectType.SYMMETRIC_KEY: Tag.SYMMETRIC_KEY,
    ObjectType.PUBLIC_KEY: Tag.PUBLIC_KEY,
    ObjectType.PRIVATE_KEY: Tag.PRIVATE_KEY,
    ObjectType.SECRET_DATA: Tag.SECRET_DATA,
    ObjectType.OPAQUE_OBJECT: Tag.OPAQUE_OBJECT,
}
_AES_LENGTHS: Final = (128, 192, 256)
_PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class KeyPair(NamedTuple):
    """Two encoded objects."""

    private: bytes
    public: bytes


def new_symmetric_key(algorithm: int, length: int) -> bytes:
    """A Symmetric Key object with fresh random bits. Raises Refusal for anything but AES of 128, 192 or 256 bits."""
    if algorithm != CryptographicAlgorithm.AES or length not in _AES_LENGTHS:
        raise Refusal(
            ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS, "only AES keys of 128, 192 and 256 bits are created here"
        )
    block = _key_block(KeyFormatType.RAW, os.urandom(length // 8), algorithm, length)
    return ttlv.structure(Tag.SYMMETRIC_KEY, block)


def new_key_pair(algorithm: int, length: int) -> KeyPair:
    """A Private Key (PKCS #8) and its Public Key (X.509 SubjectPublicKeyInfo), really generated: RSA takes its time.

    Raises Refusal for anything but RSA of 2048 bits and the curve P-256.
    """
    generate = _GENERATORS.get((algorithm, length))
    if generate is None:
        raise Refusal(
            ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS, "only RSA-2048 and P-256 key pairs are created here"
        )
    key = generate()
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return KeyPair(
        ttlv.structure(Tag.PRIVATE_KEY, _key_block(KeyFormatType.PKCS_8, private, algorithm, length)),
        ttlv.structure(Tag.PUBLIC_KEY, _key_block(KeyFormatType.X_509, public, algorithm, length)),
    )


MakeKeyPair = Callable[[int, int], KeyPair]
"""Makes a key pair of an algorithm and a length, as new_key_pair does."""


class KeyPairPool:
    """Makes RSA key pairs without taking their time: the few that it has generated beforehand come again and again.

    For measurements, where the HSM's cost stands for that time. Other pairs are generated as always.
    """

    def __init__(self, size: int = 4) -> None:
        rsa_2048 = int(CryptographicAlgorithm.RSA), 2048
        self._pairs = {rsa_2048: cycle([new_key_pair(*rsa_2048) for _ in range(size)])}

    def __repr__(self) -> str:
        return "<KeyPairPool>"

    def __call__(self, algorithm: int, length: int) -> KeyPair:
        """A key pair. Raises Refusal as new_key_pair does."""
        pairs = self._pairs.get((algorithm, length))
        return new_key_pair(algorithm, length) if pairs is None else next(pairs)


def _new_rsa() -> _PrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _new_p256() -> _PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


_GENERATORS: Final[dict[tuple[int, int], Callable[[], _PrivateKey]]] = {
    (CryptographicAlgorithm.RSA, 2048): _new_rsa,
    (CryptographicAlgorithm.EC, 256): _new_p256,
    (CryptographicAlgorithm.ECDSA, 256): _new_p256,
    (CryptographicAlgorithm.ECDH, 256): _new_p256,
}


def _key_block(key_format: int, material: bytes, algorithm: int, length: int) -> bytes:
    return ttlv.structure(
        Tag.KEY_BLOCK,
        ttlv.enumeration(Tag.KEY_FORMAT_TYPE, key_format),
        ttlv.structure(Tag.KEY_VALUE, ttlv.octets(Tag.KEY_MATERIAL, material)),
        ttlv.enumeration(Tag.CRYPTOGRAPHIC_ALGORITHM, algorithm),
        ttlv.integer(Tag.CRYPTOGRAPHIC_LENGTH, length),
    )


def key_bytes(material: bytes) -> bytes | None:
    """The bytes of a key that an encoded object holds plainly; None where it holds something else."""
    block = Node.of(material).structure(Tag.KEY_BLOCK)
    value = None if block is None else block.find(Tag.KEY_VALUE)
    found = None if value is None else value.find(Tag.KEY_MATERIAL)
    return found.value if found is not None and found.type == ItemType.BYTE_STRING else None


# Wrapping -----------------------------------------------------------------------------------------------------------

_WRAPPINGS: Final[dict[int, Callable[[bytes, bytes], bytes]]] = {
    BlockCipherMode.NIST_KEY_WRAP: aes_key_wrap,  # RFC 3394
    BlockCipherMode.AES_KEY_WRAP_PADDING: aes_key_wrap_with_padding,  # RFC 5649
}


def wrapping_key_name(specification: Node) -> Node:
    """Encryption Key Information of a Key Wrapping Specification: it names the key to wrap with. Raises Refusal."""
    information = specification.structure(Tag.ENCRYPTION_KEY_INFORMATION)
    if specification.enumeration(Tag.WRAPPING_METHOD) != WrappingMethod.ENCRYPT or information is None:
        raise Refusal(ResultReason.KEY_WRAP_TYPE_NOT_SUPPORTED, "keys are wrapped by encryption only")
    if specification.find(Tag.ATTRIBUTE_NAME) or specification.find(Tag.ATTRIBUTE_REFERENCE):
        raise Refusal(ResultReason.FEATURE_NOT_SUPPORTED, "attributes are not wrapped together with keys")
    return information


def wrap(material: bytes, specification: Node, key: bytes) -> bytes:
    """An encoded object with its key wrapped under ``key`` as the Key Wrapping Specification asks (1.4 section 2.1.6).

    Without an Encoding Option the whole Key Value is wrapped, in its TTLV encoding. Raises Refusal.
    """
    found = Node.of(material)
    block = found.structure(Tag.KEY_BLOCK)
    if block is None or block.find(Tag.KEY_WRAPPING_DATA) is not None:
        raise Refusal(ResultReason.ILLEGAL_OPERATION, "this object holds no key that could be wrapped")
    value = block.structure(Tag.KEY_VALUE)
    if value is None:
        raise Refusal(ResultReason.KEY_VALUE_NOT_PRESENT, "the key value is not here")
    option = specification.find(Tag.ENCODING_OPTION)
    data = ttlv.structure(
        Tag.KEY_WRAPPING_DATA,
        ttlv.enumeration(Tag.WRAPPING_METHOD, WrappingMethod.ENCRYPT),
        wrapping_key_name(specification).encoded,
        b"" if option is None else option.encoded,
    )
    wrapped = ttlv.structure(Tag.KEY_BLOCK, _with(block, Tag.KEY_VALUE, _wrap_value(value, specification, key)), data)
    return ttlv.structure(found.tag, _with(found, Tag.KEY_BLOCK, wrapped))


def _with(node: Node, tag: Tag, encoded: bytes) -> bytes:
    """A structure's items with another one in the place of those with this tag."""
    return b"".join(encoded if item.tag == tag else item.encoded for item in node.children)


def _wrap_value(value: Node, specification: Node, key: bytes) -> bytes:
    """A wrapped Key Value, by Encoding Option (1.4 sections 2.1.4 and 9.1.3.2.32).

    Where the TTLV encoding is wrapped, the Key Value is a Byte String. Without encoding it is the Key Material that is
    wrapped, within its structure, as PyKMIP's server and client have it; 1.4 could be read otherwise.
    """
    option = specification.enumeration(Tag.ENCODING_OPTION) or EncodingOption.TTLV_ENCODING
    if option == EncodingOption.TTLV_ENCODING:
        return ttlv.octets(Tag.KEY_VALUE, _wrap_bytes(value.encoded, specification, key))
    found = value.find(Tag.KEY_MATERIAL)
    if option != EncodingOption.NO_ENCODING or found is None or found.type != ItemType.BYTE_STRING:
        raise Refusal(ResultReason.ENCODING_OPTION_ERROR, "this key can't be wrapped with that Encoding Option")
    wrapped = ttlv.octets(Tag.KEY_MATERIAL, _wrap_bytes(found.value, specification, key))
    return ttlv.structure(Tag.KEY_VALUE, _with(value, Tag.KEY_MATERIAL, wrapped))


def _wrap_bytes(plain: bytes, specification: Node, key: bytes) -> bytes:
    parameters = wrapping_key_name(specification).structure(Tag.CRYPTOGRAPHIC_PARAMETERS)
    mode = None if parameters is None else parameters.enumeration(Tag.BLOCK_CIPHER_MODE)
    encrypt = _WRAPPINGS.get(BlockCipherMode.NIST_KEY_WRAP if mode is None else mode)
    if encrypt is None:
        raise Refusal(ResultReason.KEY_WRAP_TYPE_NOT_SUPPORTED, "keys are wrapped with AES key wrap only")
    try:
        return encrypt(key, plain)
    except ValueError as error:
        raise Refusal(ResultReason.CRYPTOGRAPHIC_FAILURE, f"this key can't be wrapped: {error}") from None
