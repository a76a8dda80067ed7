"""Requests that clients send, in KMIP 1.0 to 2.1, and the parts of answers that clients read."""

from collections.abc import Callable, Sequence
from typing import Final

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.messages import Response, ResponseItem, Version
from gateway.kmip.spec import ItemType, ObjectType, Operation, Tag

#: Cryptographic Usage Mask, 1.4 section 9.1.3.3.1.
SIGN, VERIFY, ENCRYPT, DECRYPT, WRAP_KEY, UNWRAP_KEY = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
_AES, _RSA, _ECDSA = 0x3, 0x4, 0x6  # Cryptographic Algorithm, 1.4 section 9.1.3.2.13
_P_256: Final = 0x7  # Recommended Curve, 1.4 section 9.1.3.2.5
_BY_ENCRYPTION: Final = 0x1  # Wrapping Method, 1.4 section 9.1.3.2.4
_NIST_KEY_WRAP: Final = 0xD  # Block Cipher Mode, 1.4 section 9.1.3.2.14
_NO_ENCODING: Final = 0x1  # Encoding Option, 1.4 section 9.1.3.2.32; since 1.1
_UNSPECIFIED: Final = 0x1  # Revocation Reason Code, 1.4 section 9.1.3.2.19
_DEFAULT: Final[Version] = (1, 2)


def create_key(version: Version = _DEFAULT, *, contact: str = "", usage: int = ENCRYPT | DECRYPT) -> bytes:
    """Create an AES-256 key (1.4 section 4.1) with this Contact Information and usage mask."""
    attributes = [
        _number(version, Tag.CRYPTOGRAPHIC_ALGORITHM, _AES),
        _length(version, 256),
        _mask(version, usage),
    ]
    if contact:
        attributes.append(_attribute(version, Tag.CONTACT_INFORMATION, lambda tag: ttlv.text(tag, contact)))
    payload = ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY) + _template(version, "", *attributes)
    return encode_request(version, [Ask(Operation.CREATE, payload)])


def create_rsa_pair(version: Version = _DEFAULT) -> bytes:
    """Create an RSA-2048 key pair (1.4 section 4.2)."""
    return _create_pair(version, _RSA, 2048)


def create_ecdsa_pair(version: Version = _DEFAULT) -> bytes:
    """Create an ECDSA key pair on the curve P-256 (1.4 section 4.2)."""
    curve = ttlv.enumeration(Tag.RECOMMENDED_CURVE, _P_256)
    domain = _attribute(version, Tag.CRYPTOGRAPHIC_DOMAIN_PARAMETERS, lambda tag: ttlv.structure(tag, curve))
    return _create_pair(version, _ECDSA, 256, domain)


def get_key(unique_identifier: str, version: Version = _DEFAULT) -> bytes:
    """Get a key as it is, not wrapped (1.4 section 4.11)."""
    return _about(Operation.GET, unique_identifier, version)


def wrap_key(unique_identifier: str, wrapping_key: str, version: Version = _DEFAULT) -> bytes:
    """Get a key wrapped by NIST AES key wrap, RFC 3394, under an active key that may wrap (1.4 section 2.1.6)."""
    parameters = ttlv.structure(Tag.CRYPTOGRAPHIC_PARAMETERS, ttlv.enumeration(Tag.BLOCK_CIPHER_MODE, _NIST_KEY_WRAP))
    specification = ttlv.structure(
        Tag.KEY_WRAPPING_SPECIFICATION,
        ttlv.enumeration(Tag.WRAPPING_METHOD, _BY_ENCRYPTION),
        ttlv.structure(Tag.ENCRYPTION_KEY_INFORMATION, ttlv.text(Tag.UNIQUE_IDENTIFIER, wrapping_key), parameters),
        ttlv.enumeration(Tag.ENCODING_OPTION, _NO_ENCODING) if version >= (1, 1) else b"",
    )
    return _about(Operation.GET, unique_identifier, version, specification)


def activate(unique_identifier: str, version: Version = _DEFAULT) -> bytes:
    """Activate a key (1.4 section 4.19): a wrapping key must be active."""
    return _about(Operation.ACTIVATE, unique_identifier, version)


def revoke(unique_identifier: str, version: Version = _DEFAULT) -> bytes:
    """Revoke a key (1.4 section 4.20): an active key can't be destroyed."""
    reason = ttlv.structure(Tag.REVOCATION_REASON, ttlv.enumeration(Tag.REVOCATION_REASON_CODE, _UNSPECIFIED))
    return _about(Operation.REVOKE, unique_identifier, version, reason)


def destroy(unique_identifier: str, version: Version = _DEFAULT) -> bytes:
    """Destroy a key (1.4 section 4.21)."""
    return _about(Operation.DESTROY, unique_identifier, version)


_FIRST_WITH_DISCOVERY: Final[Version] = (1, 1)


def discover_versions(wanted: Sequence[Version]) -> bytes:
    """Ask which of these versions the server speaks (1.4 section 4.26), in the lowest that has the operation."""
    payload = b"".join(map(_encode_version, wanted))
    return encode_request(max(min(wanted), _FIRST_WITH_DISCOVERY), [Ask(Operation.DISCOVER_VERSIONS, payload)])


def versions_in(answer: ResponseItem) -> list[Version]:
    """Return the versions in an answer to Discover Versions. Raises ProtocolError if they can't be read."""
    span = answer.fields.get(Tag.RESPONSE_PAYLOAD, (0, 0))
    found = []
    for version in ttlv.walk(answer.frame, *span):
        if version.tag == Tag.PROTOCOL_VERSION and version.type == ItemType.STRUCTURE:
            numbers = list(ttlv.walk(answer.frame, version.start, version.end))
            if len(numbers) != 2:
                raise ProtocolError("a Protocol Version without its two numbers")
            major, minor = (ttlv.read_integer(answer.frame, number) for number in numbers)
            found.append((major, minor))
    return found


def key_value(response: Response) -> bytes:
    """Return the key material in the answer to a Get of a symmetric key. Raises ProtocolError if there is none."""
    span = response.items[0].fields.get(Tag.RESPONSE_PAYLOAD, (0, 0))
    item = ttlv.Item(Tag.RESPONSE_PAYLOAD, ItemType.STRUCTURE, *span)
    for tag in (Tag.SYMMETRIC_KEY, Tag.KEY_BLOCK, Tag.KEY_VALUE, Tag.KEY_MATERIAL):
        found = ttlv.find(response.frame, item.start, item.end, tag)
        if found is None:
            raise ProtocolError(f"there is no {tag.name} in the answer")
        item = found
    return ttlv.read_bytes(response.frame, item)


def _about(operation: Operation, unique_identifier: str, version: Version, *fields: bytes) -> bytes:
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, unique_identifier) + b"".join(fields)
    return encode_request(version, [Ask(operation, payload)])


def _create_pair(version: Version, algorithm: int, length: int, *more: bytes) -> bytes:
    common = (_number(version, Tag.CRYPTOGRAPHIC_ALGORITHM, algorithm), _length(version, length), *more)
    payload = (
        _template(version, "COMMON_", *common)
        + _template(version, "PRIVATE_KEY_", _mask(version, SIGN))
        + _template(version, "PUBLIC_KEY_", _mask(version, VERIFY))
    )
    return encode_request(version, [Ask(Operation.CREATE_KEY_PAIR, payload)])


def _encode_version(version: Version) -> bytes:
    major, minor = version
    return ttlv.structure(
        Tag.PROTOCOL_VERSION,
        ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, major),
        ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, minor),
    )


# Attributes: 1.x names each in a text, 2.x has a tag for each ---------------------------------------------------------


def _template(version: Version, prefix: str, *attributes: bytes) -> bytes:
    tag = Tag[f"{prefix}{'ATTRIBUTES' if version >= (2, 0) else 'TEMPLATE_ATTRIBUTE'}"]
    return ttlv.structure(tag, *attributes)


def _number(version: Version, tag: Tag, number: int) -> bytes:
    return _attribute(version, tag, lambda as_tag: ttlv.enumeration(as_tag, number))


def _length(version: Version, length: int) -> bytes:
    return _attribute(version, Tag.CRYPTOGRAPHIC_LENGTH, lambda tag: ttlv.integer(tag, length))


def _mask(version: Version, mask: int) -> bytes:
    return _attribute(version, Tag.CRYPTOGRAPHIC_USAGE_MASK, lambda tag: ttlv.integer(tag, mask))


def _attribute(version: Version, tag: Tag, encode: Callable[[int], bytes]) -> bytes:
    if version >= (2, 0):
        return encode(tag)
    name = ttlv.text(Tag.ATTRIBUTE_NAME, tag.name.replace("_", " ").title())
    return ttlv.structure(Tag.ATTRIBUTE, name, encode(Tag.ATTRIBUTE_VALUE))
