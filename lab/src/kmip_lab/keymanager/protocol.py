"""The parts of KMIP that only a key manager needs: enumerations, failures of operations, payloads read whole.

Enumerations are facts, in addition to gateway/kmip/spec.py; sections are those of the OASIS specification 1.4, or of
2.1 if a value is newer.
"""

from enum import IntEnum, IntFlag
from typing import Final, Self

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.messages import Version
from gateway.kmip.spec import ItemType, ResultReason

# Enumerations ---------------------------------------------------------------------------------------------------------


class ObjectState(IntEnum):
    """State, 1.4 section 9.1.3.2.18."""

    PRE_ACTIVE = 0x1
    ACTIVE = 0x2
    DEACTIVATED = 0x3
    COMPROMISED = 0x4
    DESTROYED = 0x5
    DESTROYED_COMPROMISED = 0x6


class CryptographicAlgorithm(IntEnum):
    """Cryptographic Algorithm, 1.4 section 9.1.3.2.13: the supported algorithms. EC since 1.2."""

    AES = 0x03
    RSA = 0x04
    ECDSA = 0x06
    ECDH = 0x0E
    EC = 0x1A


class CryptographicUsageMask(IntFlag):
    """Cryptographic Usage Mask, 1.4 section 9.1.3.3.1: the bits that this key manager checks."""

    ENCRYPT = 0x04
    DECRYPT = 0x08
    WRAP_KEY = 0x10


class KeyFormatType(IntEnum):
    """Key Format Type, 1.4 section 9.1.3.2.3: the formats of generated keys."""

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
    """Block Cipher Mode, 1.4 section 9.1.3.2.14: the supported modes, for encryption and for key wrapping."""

    CBC = 0x01
    CTR = 0x06
    GCM = 0x09
    AES_KEY_WRAP_PADDING = 0x0C
    NIST_KEY_WRAP = 0x0D


class PaddingMethod(IntEnum):
    """Padding Method, 1.4 section 9.1.3.2.15: the supported methods."""

    NONE = 0x1
    PKCS5 = 0x3


class TicketType(IntEnum):
    """Ticket Type, 2.1 section 11.60."""

    LOGIN = 0x1


class RecommendedCurve(IntEnum):
    """Recommended Curve, 1.4 section 9.1.3.2.5: the supported curves."""

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
    """Query Function, 1.4 section 9.1.3.2.24: the supported functions."""

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
    """The values of a Unique Identifier that is an Enumeration, since 2.0: 2.1 section 11.61."""

    ID_PLACEHOLDER = 0x1
    CREATE = 0x3
    CREATE_KEY_PAIR = 0x4
    CREATE_KEY_PAIR_PRIVATE_KEY = 0x5
    CREATE_KEY_PAIR_PUBLIC_KEY = 0x6
    LOCATE = 0xB
    REGISTER = 0xC


# Failures -------------------------------------------------------------------------------------------------------------


class OperationFailed(Exception):  # noqa: N818 - an answer to the client, not an error of this program
    """The result Operation Failed of one operation.

    ``reason`` is the most precise Result Reason of 2.1; the message is the Result Message. ``payload``, if given, is
    the encoded Response Payload that the specification demands in some failures.
    """

    def __init__(self, reason: ResultReason, message: str, *, payload: bytes | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.payload = payload

    def reason_in(self, version: Version) -> ResultReason:
        """Return the Result Reason for this protocol version."""
        return self.reason if version >= (2, 0) else _IN_1_X.get(self.reason, self.reason)


#: The Result Reasons that 2.0 added (2.1 section 11.48), and for each the Result Reason of 1.4 section 9.1.3.2.29.
_IN_1_X: Final[dict[ResultReason, ResultReason]] = {
    ResultReason.ATTRIBUTE_INSTANCE_NOT_FOUND: ResultReason.ITEM_NOT_FOUND,
    ResultReason.ATTRIBUTE_NOT_FOUND: ResultReason.ITEM_NOT_FOUND,
    ResultReason.ATTRIBUTE_SINGLE_VALUED: ResultReason.INVALID_FIELD,
    ResultReason.INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK: ResultReason.PERMISSION_DENIED,
    ResultReason.INTERNAL_SERVER_ERROR: ResultReason.GENERAL_FAILURE,
    ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE: ResultReason.ITEM_NOT_FOUND,
    ResultReason.INVALID_ATTRIBUTE_VALUE: ResultReason.INVALID_FIELD,
    ResultReason.INVALID_CORRELATION_VALUE: ResultReason.INVALID_FIELD,
    ResultReason.INVALID_DATA_TYPE: ResultReason.INVALID_FIELD,
    ResultReason.INVALID_OBJECT_TYPE: ResultReason.INVALID_FIELD,
    ResultReason.INVALID_TICKET: ResultReason.AUTHENTICATION_NOT_SUCCESSFUL,
    ResultReason.KEY_WRAP_TYPE_NOT_SUPPORTED: ResultReason.FEATURE_NOT_SUPPORTED,
    ResultReason.MISSING_INITIALIZATION_VECTOR: ResultReason.INVALID_FIELD,
    ResultReason.MULTI_VALUED_ATTRIBUTE: ResultReason.INVALID_FIELD,
    ResultReason.OBJECT_DESTROYED: ResultReason.ITEM_NOT_FOUND,
    ResultReason.OBJECT_NOT_FOUND: ResultReason.ITEM_NOT_FOUND,
    ResultReason.READ_ONLY_ATTRIBUTE: ResultReason.PERMISSION_DENIED,
    ResultReason.UNSUPPORTED_ATTRIBUTE: ResultReason.INVALID_FIELD,
    ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS: ResultReason.INVALID_FIELD,
    ResultReason.WRAPPING_OBJECT_DESTROYED: ResultReason.ITEM_NOT_FOUND,
    ResultReason.WRAPPING_OBJECT_NOT_FOUND: ResultReason.ITEM_NOT_FOUND,
    ResultReason.WRONG_KEY_LIFECYCLE_STATE: ResultReason.PERMISSION_DENIED,
}


# Payloads -------------------------------------------------------------------------------------------------------------


class Node:
    """An item with its child items: unlike the gateway, a key manager reads every item of a payload.

    ``value`` is encoded, without header and padding. Parsing checks the structure, the accessors check types; both
    raise ProtocolError.
    """

    __slots__ = ("children", "item", "value")

    def __init__(self, item: ttlv.Item, value: bytes, children: "tuple[Node, ...]") -> None:
        self.item = item
        self.value = value
        self.children = children

    @classmethod
    def parse(cls, frame: bytes, item: ttlv.Item) -> Self:
        """Parse an item and its children. ``frame`` has passed decode_request, which bounds the depth."""
        children: tuple[Node, ...] = ()
        if item.type == ItemType.STRUCTURE:
            children = tuple(cls.parse(frame, child) for child in ttlv.walk(frame, item.start, item.end))
        return cls(item, frame[item.start : item.end], children)

    @classmethod
    def of(cls, encoded: bytes) -> Self:
        """Parse the item that ``encoded`` holds."""
        for item in ttlv.walk(encoded, 0, len(encoded)):
            return cls.parse(encoded, item)
        raise ProtocolError("an empty encoding")

    def __repr__(self) -> str:
        return f"<Node {self.tag:06X}: {len(self.children)} items, {len(self.value)} bytes>"

    @property
    def tag(self) -> int:
        """The tag, a number: tags of extensions are not in Tag."""
        return self.item.tag

    @property
    def type(self) -> int:
        """The item type, a number of ItemType."""
        return self.item.type

    @property
    def encoded(self) -> bytes:
        """The item's encoding, with header and padding."""
        return encode_item(self.tag, self.type, self.value)

    def find(self, tag: int) -> "Node | None":
        """Return the first child with this tag, or None."""
        return next((child for child in self.children if child.tag == tag), None)

    def find_all(self, tag: int) -> "list[Node]":
        """Return all children with this tag."""
        return [child for child in self.children if child.tag == tag]

    def text(self, tag: int) -> str | None:
        """Return the text of the first child with this tag, a Text String; None if there is none."""
        child = self._typed(tag, ItemType.TEXT_STRING)
        return None if child is None else child.as_text()

    def number(self, tag: int, item_type: ItemType) -> int | None:
        """Return the number of the first child with this tag, of any fixed-length type; None if there is none."""
        child = self._typed(tag, item_type)
        return None if child is None else child.as_number()

    def enumeration(self, tag: int) -> int | None:
        """Return the number of the first child with this tag, an Enumeration; None if there is none."""
        return self.number(tag, ItemType.ENUMERATION)

    def octets(self, tag: int) -> bytes | None:
        """Return the bytes of the first child with this tag, a Byte String; None if there is none."""
        child = self._typed(tag, ItemType.BYTE_STRING)
        return None if child is None else child.value

    def flag(self, tag: int) -> bool:
        """Return the value of the first child with this tag, a Boolean; False if there is none."""
        return bool(self.number(tag, ItemType.BOOLEAN))

    def integer(self, tag: int) -> int | None:
        """Return the number of the first child with this tag, an Integer; None if there is none."""
        return self.number(tag, ItemType.INTEGER)

    def structure(self, tag: int) -> "Node | None":
        """Return the first child with this tag, a Structure; None if there is none."""
        return self._typed(tag, ItemType.STRUCTURE)

    def as_text(self) -> str:
        """Return the item's text, without trailing zeros: some clients count the padding as text."""
        _expect(self, ItemType.TEXT_STRING)
        try:
            return self.value.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise ProtocolError(f"item {self.tag:06X} is not UTF-8") from None

    def as_number(self) -> int:
        """Return the item's number; Enumerations and Intervals are unsigned, the other types signed."""
        signed = self.type not in (ItemType.ENUMERATION, ItemType.INTERVAL)
        return int.from_bytes(self.value, "big", signed=signed)

    def _typed(self, tag: int, item_type: ItemType) -> "Node | None":
        child = self.find(tag)
        if child is not None:
            _expect(child, item_type)
        return child


def encode_item(tag: int, item_type: int, value: bytes) -> bytes:
    """Encode an item of any type from its encoded value."""
    return ttlv.HEAD.pack(tag << 8 | item_type, len(value)) + value + bytes(-len(value) % 8)


def _expect(node: Node, item_type: ItemType) -> None:
    if node.type != item_type:
        raise ProtocolError(f"item {node.tag:06X} has type {node.type}, not {item_type.name}")
