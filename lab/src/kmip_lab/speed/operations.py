"""What can be measured: a table of operations, and the requests that they are, in KMIP 1.0 to 2.1."""

from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.kmip import compose, ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.messages import Version
from gateway.kmip.spec import ObjectType, Operation, Tag

_AES, _RSA, _ECDSA = 0x3, 0x4, 0x6  # Cryptographic Algorithm, 1.4 section 9.1.3.2.13
_SIGN, _VERIFY, _ENCRYPT_DECRYPT, _WRAP_UNWRAP = 0x1, 0x2, 0xC, 0x30  # Usage Mask, 1.4 section 9.1.3.3.1
_P_256: Final = 0x7  # Recommended Curve, 1.4 section 9.1.3.2.5
_BY_ENCRYPTION: Final = 0x1  # Wrapping Method, 1.4 section 9.1.3.2.4
_NIST_KEY_WRAP: Final = 0xD  # Block Cipher Mode, 1.4 section 9.1.3.2.14
_NO_ENCODING: Final = 0x1  # Encoding Option, 1.4 section 9.1.3.2.32; since 1.1
_UNSPECIFIED: Final = 0x1  # Revocation Reason Code, 1.4 section 9.1.3.2.19


class Keys(NamedTuple):
    """Unique identifiers of the keys that Get and Wrap need."""

    key: str = ""
    wrapping_key: str = ""


NO_KEYS: Final = Keys()


class Measurable(NamedTuple):
    """An operation that can be measured: its title, the request, and what must be there before it."""

    title: str
    request: Callable[[Version, Keys], bytes]
    needs_key: bool = False
    needs_wrapping_key: bool = False
    makes_keys: bool = False


def get(version: Version, keys: Keys) -> bytes:
    """Get a key (1.4 section 4.11)."""
    return encode_request(version, [Ask(Operation.GET, ttlv.text(Tag.UNIQUE_IDENTIFIER, keys.key))])


def wrap(version: Version, keys: Keys) -> bytes:
    """Get a key wrapped under another, by NIST AES key wrap (1.4 section 2.1.6)."""
    information = ttlv.structure(
        Tag.ENCRYPTION_KEY_INFORMATION,
        ttlv.text(Tag.UNIQUE_IDENTIFIER, keys.wrapping_key),
        ttlv.structure(Tag.CRYPTOGRAPHIC_PARAMETERS, ttlv.enumeration(Tag.BLOCK_CIPHER_MODE, _NIST_KEY_WRAP)),
    )
    specification = ttlv.structure(
        Tag.KEY_WRAPPING_SPECIFICATION,
        ttlv.enumeration(Tag.WRAPPING_METHOD, _BY_ENCRYPTION),
        information,
        ttlv.enumeration(Tag.ENCODING_OPTION, _NO_ENCODING) if version >= (1, 1) else b"",
    )
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, keys.key) + specification
    return encode_request(version, [Ask(Operation.GET, payload)])


def create(version: Version, _keys: Keys = NO_KEYS, *, wraps: bool = False) -> bytes:
    """Create an AES-256 key (1.4 section 4.1); ``wraps``: one that others are wrapped with."""
    facts = _facts(version, _AES, 256, _WRAP_UNWRAP if wraps else _ENCRYPT_DECRYPT)
    payload = ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY) + _given(version, "", *facts)
    return encode_request(version, [Ask(Operation.CREATE, payload)])


def create_rsa(version: Version, _keys: Keys = NO_KEYS) -> bytes:
    """Create an RSA-2048 key pair (1.4 section 4.2)."""
    return _create_pair(version, _RSA, 2048)


def create_ecc(version: Version, _keys: Keys = NO_KEYS) -> bytes:
    """Create an ECDSA key pair on the curve P-256."""
    curve = ttlv.enumeration(Tag.RECOMMENDED_CURVE, _P_256)
    domain = _fact(version, Tag.CRYPTOGRAPHIC_DOMAIN_PARAMETERS, lambda tag: ttlv.structure(tag, curve))
    return _create_pair(version, _ECDSA, 256, domain)


def server(version: Version, _keys: Keys = NO_KEYS) -> bytes:
    """Query who the server is."""
    return compose.query(version)


def versions(version: Version, _keys: Keys = NO_KEYS) -> bytes:
    """Discover Versions; 1.0 does not have it."""
    return compose.discover_versions(max(version, (1, 1)))


def activate(version: Version, uid: str) -> bytes:
    """Activate (1.4 section 4.19): a wrapping key must be active."""
    return encode_request(version, [Ask(Operation.ACTIVATE, ttlv.text(Tag.UNIQUE_IDENTIFIER, uid))])


def revoke(version: Version, uid: str) -> bytes:
    """Revoke (1.4 section 4.20): an active key can't be destroyed."""
    reason = ttlv.structure(Tag.REVOCATION_REASON, ttlv.enumeration(Tag.REVOCATION_REASON_CODE, _UNSPECIFIED))
    return encode_request(version, [Ask(Operation.REVOKE, ttlv.text(Tag.UNIQUE_IDENTIFIER, uid) + reason)])


def destroy(version: Version, uid: str) -> bytes:
    """Destroy (1.4 section 4.21)."""
    return encode_request(version, [Ask(Operation.DESTROY, ttlv.text(Tag.UNIQUE_IDENTIFIER, uid))])


#: By the options' names of the note's s_speed, in its order of tests.
OPERATIONS: Final[dict[str, Measurable]] = {
    "get": Measurable("Get AES-256 key", get, needs_key=True),
    "wrap": Measurable("Wrap key (NIST AES key wrap)", wrap, needs_key=True, needs_wrapping_key=True),
    "create": Measurable("Create AES-256 key", create, makes_keys=True),
    "create-rsa": Measurable("Create RSA-2048 key pair", create_rsa, makes_keys=True),
    "create-ecc": Measurable("Create ECDSA P-256 key pair", create_ecc, makes_keys=True),
    "server": Measurable("Query server", server),
    "versions": Measurable("Discover versions", versions),
}


def _create_pair(version: Version, algorithm: int, length: int, *more: bytes) -> bytes:
    common = (_number(version, Tag.CRYPTOGRAPHIC_ALGORITHM, algorithm), _length(version, length), *more)
    payload = (
        _given(version, "COMMON_", *common)
        + _given(version, "PRIVATE_KEY_", _mask(version, _SIGN))
        + _given(version, "PUBLIC_KEY_", _mask(version, _VERIFY))
    )
    return encode_request(version, [Ask(Operation.CREATE_KEY_PAIR, payload)])


# Attributes, which 2.0 writes otherwise -----------------------------------------------------------------------------


def _facts(version: Version, algorithm: int, length: int, mask: int) -> tuple[bytes, ...]:
    return (
        _number(version, Tag.CRYPTOGRAPHIC_ALGORITHM, algorithm),
        _length(version, length),
        _mask(version, mask),
    )


def _given(version: Version, whose: str, *facts: bytes) -> bytes:
    return ttlv.structure(Tag[f"{whose}{'ATTRIBUTES' if version >= (2, 0) else 'TEMPLATE_ATTRIBUTE'}"], *facts)


def _number(version: Version, tag: Tag, number: int) -> bytes:
    return _fact(version, tag, lambda as_tag: ttlv.enumeration(as_tag, number))


def _length(version: Version, length: int) -> bytes:
    return _fact(version, Tag.CRYPTOGRAPHIC_LENGTH, lambda tag: ttlv.integer(tag, length))


def _mask(version: Version, mask: int) -> bytes:
    return _fact(version, Tag.CRYPTOGRAPHIC_USAGE_MASK, lambda tag: ttlv.integer(tag, mask))


def _fact(version: Version, tag: Tag, encode: Callable[[int], bytes]) -> bytes:
    if version >= (2, 0):
        return encode(tag)
    name = ttlv.text(Tag.ATTRIBUTE_NAME, tag.name.replace("_", " ").title())
    return ttlv.structure(Tag.ATTRIBUTE, name, encode(Tag.ATTRIBUTE_VALUE))
