"""Enumerations that only a key manager needs, as gateway/kmip/spec.py has those of the gateway.

Facts only; sections are those of the OASIS specification 1.4, or of 2.1 where a number is newer.
"""

from enum import IntEnum, IntFlag


class State(IntEnum):
    """State, 1.4 section 9.1.3.2.18."""

    PRE_ACTIVE = 0x1
    ACTIVE = 0x2
    DEACTIVATED = 0x3
    COMPROMISED = 0x4
    DESTROYED = 0x5
    DESTROYED_COMPROMISED = 0x6


class CryptographicAlgorithm(IntEnum):
    """Cryptographic Algorithm, 1.4 section 9.1.3.2.13: those that are generated here. EC since 1.2."""

    AES = 0x03
    RSA = 0x04
    ECDSA = 0x06
    ECDH = 0x0E
    EC = 0x1A


class CryptographicUsageMask(IntFlag):
    """Cryptographic Usage Mask, 1.4 section 9.1.3.3.1: the bits that are acted on here."""

    ENCRYPT = 0x04
    DECRYPT = 0x08
    WRAP_KEY = 0x10


class KeyFormatType(IntEnum):
    """Key Format Type, 1.4 section 9.1.3.2.3: those that keys are generated in."""

    RAW = 0x01
    PKCS_8 = 0x04
    X_509 = 0x05


class WrappingMethod(IntEnum):
    """Wrapping Method, 1.4 section 9.1.3.2.4."""

    ENCRYPT = 0x1


class EncodingOption(IntEnum):
    """Encoding Option, 1.4 section 9.1.3.2.32; since 1.1."""

    NO_ENCODING = 0x1
    TTLV_ENCODING = 0x2


class BlockCipherMode(IntEnum):
    """Block Cipher Mode, 1.4 section 9.1.3.2.14: those that encrypt here, and those that wrap keys."""

    CBC = 0x01
    CTR = 0x06
    GCM = 0x09
    AES_KEY_WRAP_PADDING = 0x0C
    NIST_KEY_WRAP = 0x0D


class PaddingMethod(IntEnum):
    """Padding Method, 1.4 section 9.1.3.2.15: those that are known here."""

    NONE = 0x1
    PKCS5 = 0x3


class TicketType(IntEnum):
    """Ticket Type, 2.1 section 11.60."""

    LOGIN = 0x1


class RecommendedCurve(IntEnum):
    """Recommended Curve, 1.4 section 9.1.3.2.5: those that keys are generated on."""

    P_256 = 0x7


class LinkType(IntEnum):
    """Link Type, 1.4 section 9.1.3.2.20."""

    PUBLIC_KEY = 0x102
    PRIVATE_KEY = 0x103


class RevocationReasonCode(IntEnum):
    """Revocation Reason Code, 1.4 section 9.1.3.2.19."""

    UNSPECIFIED = 0x1
    KEY_COMPROMISE = 0x2
    CA_COMPROMISE = 0x3
    AFFILIATION_CHANGED = 0x4
    SUPERSEDED = 0x5
    CESSATION_OF_OPERATION = 0x6
    PRIVILEGE_WITHDRAWN = 0x7


class QueryFunction(IntEnum):
    """Query Function, 1.4 section 9.1.3.2.24: those that are answered here."""

    QUERY_OPERATIONS = 0x1
    QUERY_OBJECTS = 0x2
    QUERY_SERVER_INFORMATION = 0x3


class CancellationResult(IntEnum):
    """Cancellation Result, 1.4 section 9.1.3.2.25."""

    CANCELED = 0x1
    UNABLE_TO_CANCEL = 0x2
    COMPLETED = 0x3
    FAILED = 0x4
    UNAVAILABLE = 0x5


class StorageStatusMask(IntFlag):
    """Storage Status Mask, 1.4 section 9.1.3.3.2; DESTROYED since 2.0."""

    ON_LINE = 0x1
    ARCHIVAL = 0x2
    DESTROYED = 0x4


class UniqueIdentifier(IntEnum):
    """What a Unique Identifier stands for where it is an Enumeration, since 2.0: 2.1 section 11.61."""

    ID_PLACEHOLDER = 0x1
    CREATE = 0x3
    CREATE_KEY_PAIR = 0x4
    CREATE_KEY_PAIR_PRIVATE_KEY = 0x5
    CREATE_KEY_PAIR_PUBLIC_KEY = 0x6
    LOCATE = 0xB
    REGISTER = 0xC
