"""Cryptography: generating and wrapping keys (1.4 sections 2.1.3 to 2.1.6), and encrypting data with AES."""

import os
from collections.abc import Callable
from itertools import cycle
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers import (
    AEADCipherContext,
    AEADDecryptionContext,
    AEADEncryptionContext,
    Cipher,
    CipherContext,
)
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR, GCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap, aes_key_wrap_with_padding
from cryptography.hazmat.primitives.padding import PKCS7, PaddingContext
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, ObjectType, ResultReason, Tag
from kmip_lab.keymanager.protocol import (
    BlockCipherMode,
    CryptographicAlgorithm,
    EncodingOption,
    KeyFormatType,
    Node,
    OperationFailed,
    PaddingMethod,
    WrappingMethod,
)

# Generating keys ------------------------------------------------------------------------------------------------------

#: The tag of each type of object in payloads (1.4 section 2.2).
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
    """Two encoded objects: a Private Key and a Public Key."""

    private: bytes
    public: bytes


def new_symmetric_key(algorithm: int, length: int) -> bytes:
    """Return an encoded Symmetric Key with random bits.

    Raises OperationFailed for anything but AES of 128, 192 or 256 bits.
    """
    if algorithm != CryptographicAlgorithm.AES or length not in _AES_LENGTHS:
        raise OperationFailed(
            ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS, "only AES keys of 128, 192 and 256 bits are supported"
        )
    block = _key_block(KeyFormatType.RAW, os.urandom(length // 8), algorithm, length)
    return ttlv.structure(Tag.SYMMETRIC_KEY, block)


def new_key_pair(algorithm: int, length: int) -> KeyPair:
    """Generate a Private Key (PKCS #8) and its Public Key (X.509 SubjectPublicKeyInfo); slow for RSA.

    Raises OperationFailed for anything but RSA of 2048 bits and the curve P-256.
    """
    generate = _GENERATORS.get((algorithm, length))
    if generate is None:
        raise OperationFailed(
            ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS, "only RSA-2048 and P-256 key pairs are supported"
        )
    key = generate()
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return KeyPair(
        ttlv.structure(Tag.PRIVATE_KEY, _key_block(KeyFormatType.PKCS_8, private, algorithm, length)),
        ttlv.structure(Tag.PUBLIC_KEY, _key_block(KeyFormatType.X_509, public, algorithm, length)),
    )


MakeKeyPair = Callable[[int, int], KeyPair]
"""A function of algorithm and length that returns a key pair, such as new_key_pair."""


class KeyPairPool:
    """Returns the same ``size`` RSA key pairs in rotation; they are generated when the pool is made.

    For measurements: the HSM's cost stands for the time of generating a pair, and the processor is not kept busy. Key
    pairs that are not RSA are generated each time.
    """

    def __init__(self, size: int = 4) -> None:
        rsa_2048 = int(CryptographicAlgorithm.RSA), 2048
        self._pairs = {rsa_2048: cycle([new_key_pair(*rsa_2048) for _ in range(size)])}

    def __repr__(self) -> str:
        return "<KeyPairPool>"

    def __call__(self, algorithm: int, length: int) -> KeyPair:
        """Return a pooled RSA key pair, or generate a pair. Raises OperationFailed as new_key_pair does."""
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
    """Return the key bytes of an encoded object; None if it has no Key Material that is a Byte String."""
    block = Node.of(material).structure(Tag.KEY_BLOCK)
    value = None if block is None else block.find(Tag.KEY_VALUE)
    found = None if value is None else value.find(Tag.KEY_MATERIAL)
    return found.value if found is not None and found.type == ItemType.BYTE_STRING else None


# Wrapping -----------------------------------------------------------------------------------------------------------

_WRAPPINGS: Final[dict[int, Callable[[bytes, bytes], bytes]]] = {
    BlockCipherMode.NIST_KEY_WRAP: aes_key_wrap,  # RFC 3394
    BlockCipherMode.AES_KEY_WRAP_PADDING: aes_key_wrap_with_padding,  # RFC 5649
}


def wrapping_key_information(specification: Node) -> Node:
    """Return a Key Wrapping Specification's Encryption Key Information, which names the wrapping key.

    Raises OperationFailed if the specification asks for anything that is not supported.
    """
    information = specification.structure(Tag.ENCRYPTION_KEY_INFORMATION)
    if specification.enumeration(Tag.WRAPPING_METHOD) != WrappingMethod.ENCRYPT or information is None:
        raise OperationFailed(ResultReason.KEY_WRAP_TYPE_NOT_SUPPORTED, "the only supported Wrapping Method is Encrypt")
    if specification.find(Tag.ATTRIBUTE_NAME) or specification.find(Tag.ATTRIBUTE_REFERENCE):
        raise OperationFailed(
            ResultReason.FEATURE_NOT_SUPPORTED, "wrapping attributes together with a key is not supported"
        )
    return information


def wrap(material: bytes, specification: Node, key: bytes) -> bytes:
    """Return an encoded object with its key wrapped under ``key`` by a Key Wrapping Specification (1.4 section 2.1.6).

    Without an Encoding Option the whole Key Value is wrapped, in its TTLV encoding. Raises OperationFailed if the
    object or the specification can't be wrapped.
    """
    found = Node.of(material)
    block = found.structure(Tag.KEY_BLOCK)
    if block is None or block.find(Tag.KEY_WRAPPING_DATA) is not None:
        raise OperationFailed(ResultReason.ILLEGAL_OPERATION, "this object has no key that could be wrapped")
    value = block.structure(Tag.KEY_VALUE)
    if value is None:
        raise OperationFailed(ResultReason.KEY_VALUE_NOT_PRESENT, "the object has no Key Value")
    option = specification.find(Tag.ENCODING_OPTION)
    data = ttlv.structure(
        Tag.KEY_WRAPPING_DATA,
        ttlv.enumeration(Tag.WRAPPING_METHOD, WrappingMethod.ENCRYPT),
        wrapping_key_information(specification).encoded,
        b"" if option is None else option.encoded,
    )
    wrapped = ttlv.structure(Tag.KEY_BLOCK, _with(block, Tag.KEY_VALUE, _wrap_value(value, specification, key)), data)
    return ttlv.structure(found.tag, _with(found, Tag.KEY_BLOCK, wrapped))


def _with(node: Node, tag: Tag, encoded: bytes) -> bytes:
    """Return a structure's items, encoded; ``encoded`` replaces those with this tag."""
    return b"".join(encoded if item.tag == tag else item.encoded for item in node.children)


def _wrap_value(value: Node, specification: Node, key: bytes) -> bytes:
    """Wrap a Key Value by Encoding Option (1.4 sections 2.1.4 and 9.1.3.2.32).

    TTLV Encoding: the Key Value becomes a Byte String, the wrapped encoding. No Encoding: only the Key Material is
    wrapped, within its structure, as PyKMIP's server and client do; 1.4 could be read differently.
    """
    option = specification.enumeration(Tag.ENCODING_OPTION) or EncodingOption.TTLV_ENCODING
    if option == EncodingOption.TTLV_ENCODING:
        return ttlv.octets(Tag.KEY_VALUE, _wrap_bytes(value.encoded, specification, key))
    found = value.find(Tag.KEY_MATERIAL)
    if option != EncodingOption.NO_ENCODING or found is None or found.type != ItemType.BYTE_STRING:
        raise OperationFailed(ResultReason.ENCODING_OPTION_ERROR, "this key can't be wrapped with this Encoding Option")
    wrapped = ttlv.octets(Tag.KEY_MATERIAL, _wrap_bytes(found.value, specification, key))
    return ttlv.structure(Tag.KEY_VALUE, _with(value, Tag.KEY_MATERIAL, wrapped))


def _wrap_bytes(plain: bytes, specification: Node, key: bytes) -> bytes:
    parameters = wrapping_key_information(specification).structure(Tag.CRYPTOGRAPHIC_PARAMETERS)
    mode = None if parameters is None else parameters.enumeration(Tag.BLOCK_CIPHER_MODE)
    encrypt = _WRAPPINGS.get(BlockCipherMode.NIST_KEY_WRAP if mode is None else mode)
    if encrypt is None:
        raise OperationFailed(
            ResultReason.KEY_WRAP_TYPE_NOT_SUPPORTED,
            "the only supported Block Cipher Modes for wrapping are those of AES key wrap",
        )
    try:
        return encrypt(key, plain)
    except ValueError as error:
        raise OperationFailed(ResultReason.CRYPTOGRAPHIC_FAILURE, f"this key can't be wrapped: {error}") from None


# Encryption -----------------------------------------------------------------------------------------------------------

_MODES: Final[dict[int, type[CBC] | type[CTR] | type[GCM]]] = {
    BlockCipherMode.CBC: CBC,
    BlockCipherMode.CTR: CTR,
    BlockCipherMode.GCM: GCM,
}
_TAG_SIZE: Final = 16  # bytes


class CipherParameters(NamedTuple):
    """The Block Cipher Mode and the Padding Method of an encryption with AES; padding is for CBC only."""

    mode: int = BlockCipherMode.CBC
    padding: int = PaddingMethod.PKCS5

    def iv_size(self) -> int:
        """Return the size, in bytes, of an IV that the key manager makes."""
        return 12 if self.mode == BlockCipherMode.GCM else 16


class CipherStream:
    """An encryption or decryption with AES whose data may come in parts. All methods raise OperationFailed."""

    def __init__(self, context: CipherContext, padding: PaddingContext | None, *, encrypts: bool) -> None:
        self.encrypts = encrypts
        self._context = context
        self._padding = padding

    def __repr__(self) -> str:
        return f"<Stream that {'en' if self.encrypts else 'de'}crypts>"

    @classmethod
    def begin(
        cls, parameters: CipherParameters, key: bytes, iv: bytes, additional: bytes, *, encrypts: bool
    ) -> "CipherStream":
        """Start a stream. ``additional`` is authenticated together with the data; for GCM only."""
        mode = _MODES.get(parameters.mode)
        if mode is None or parameters.padding not in (PaddingMethod.NONE, PaddingMethod.PKCS5):
            raise OperationFailed(
                ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS,
                "only CBC, CTR and GCM are supported, with PKCS5 padding or none",
            )
        try:
            cipher = Cipher(AES(key), mode(iv))
            context = cipher.encryptor() if encrypts else cipher.decryptor()
        except ValueError as error:
            raise OperationFailed(ResultReason.CRYPTOGRAPHIC_FAILURE, str(error)) from None
        padding: PaddingContext | None = None
        if mode is CBC and parameters.padding == PaddingMethod.PKCS5:
            padding = PKCS7(128).padder() if encrypts else PKCS7(128).unpadder()
        if isinstance(context, AEADCipherContext):
            context.authenticate_additional_data(additional)
        return cls(context, padding, encrypts=encrypts)

    def update(self, data: bytes) -> bytes:
        """Process a part of the data and return the output that is complete."""
        if self._padding is None:
            return self._context.update(data)
        if self.encrypts:
            return self._context.update(self._padding.update(data))
        return self._padding.update(self._context.update(data))

    def finish(self, tag: bytes | None) -> tuple[bytes, bytes | None]:
        """Return the rest of the output, and GCM's tag if it encrypts. GCM verifies ``tag`` if it decrypts."""
        try:
            return self._finish(tag)
        except (ValueError, InvalidTag):
            message = "the data is not a multiple of the block size, or was not encrypted with this key"
            raise OperationFailed(ResultReason.CRYPTOGRAPHIC_FAILURE, message) from None

    def _finish(self, tag: bytes | None) -> tuple[bytes, bytes | None]:
        context = self._context
        if self.encrypts:
            rest = b"" if self._padding is None else context.update(self._padding.finalize())
            rest += context.finalize()
            return rest, context.tag if isinstance(context, AEADEncryptionContext) else None
        if isinstance(context, AEADDecryptionContext):
            if tag is None or len(tag) != _TAG_SIZE:
                raise OperationFailed(
                    ResultReason.INVALID_FIELD, f"Authenticated Encryption Tag must have {_TAG_SIZE} bytes"
                )
            return context.finalize_with_tag(tag), None
        rest = context.finalize()
        return rest if self._padding is None else self._padding.update(rest) + self._padding.finalize(), None
