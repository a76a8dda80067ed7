"""A client of a key manager's engine, without TLS: it composes requests item by item and parses answers whole."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kmip_lab.keymanager.engine import Engine
from kmip_lab.keymanager.protocol import Node

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.decode import decode_response
from gateway.kmip.messages import ResponseItem, Version
from gateway.kmip.spec import ObjectType, Operation, ResultReason, ResultStatus, Tag

AES, RSA, EC = 3, 4, 0x1A
WRAP = 0x30
USE = 0x0C

VERSIONS: tuple[Version, ...] = ((1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1))


class AttributeValue(NamedTuple):
    """An attribute and its value, which each version encodes differently."""

    name: str
    tag: Tag
    encode: Callable[[int, Any], bytes]
    value: Any

    def item(self, version: Version) -> bytes:
        """Return the item for a Template-Attribute (1.x) or an Attributes structure (2.x)."""
        if version >= (2, 0):
            return self.encode(self.tag, self.value)
        value = self.encode(Tag.ATTRIBUTE_VALUE, self.value)
        return ttlv.structure(Tag.ATTRIBUTE, ttlv.text(Tag.ATTRIBUTE_NAME, self.name), value)


def algorithm(number: int) -> AttributeValue:
    return AttributeValue("Cryptographic Algorithm", Tag.CRYPTOGRAPHIC_ALGORITHM, ttlv.enumeration, number)


def length(bits: int) -> AttributeValue:
    return AttributeValue("Cryptographic Length", Tag.CRYPTOGRAPHIC_LENGTH, ttlv.integer, bits)


def mask(bits: int) -> AttributeValue:
    return AttributeValue("Cryptographic Usage Mask", Tag.CRYPTOGRAPHIC_USAGE_MASK, ttlv.integer, bits)


def date(name: str, tag: Tag, seconds: int) -> AttributeValue:
    return AttributeValue(name, tag, ttlv.date_time, seconds)


def group(text: str) -> AttributeValue:
    return AttributeValue("Object Group", Tag.OBJECT_GROUP, ttlv.text, text)


def contact(text: str) -> AttributeValue:
    return AttributeValue("Contact Information", Tag.CONTACT_INFORMATION, ttlv.text, text)


def flag(name: str, tag: Tag, value: bool) -> AttributeValue:
    return AttributeValue(name, tag, ttlv.boolean, value)


def number(name: str, tag: Tag, value: int) -> AttributeValue:
    return AttributeValue(name, tag, ttlv.enumeration, value)


def name(text: str) -> AttributeValue:
    def encode(tag: int, value: str) -> bytes:
        return ttlv.structure(tag, ttlv.text(Tag.NAME_VALUE, value), ttlv.enumeration(Tag.NAME_TYPE, 1))

    return AttributeValue("Name", Tag.NAME, encode, text)


def vendor_colour(text: str) -> AttributeValue:
    """Return the vendor attribute "x-colour", as 1.x encodes it."""
    return AttributeValue("x-colour", Tag.ATTRIBUTE, ttlv.text, text)


AES_256 = (algorithm(AES), length(256), mask(USE))


def uid_of(answer: "OperationResult | str") -> bytes:
    """Return a Unique Identifier item: of the object of an answer, or of a text."""
    return ttlv.text(Tag.UNIQUE_IDENTIFIER, answer if isinstance(answer, str) else answer.uid)


def key_block(key: bytes, key_format: int = 1, bits: int | None = None) -> bytes:
    return ttlv.structure(
        Tag.KEY_BLOCK,
        ttlv.enumeration(Tag.KEY_FORMAT_TYPE, key_format),
        ttlv.structure(Tag.KEY_VALUE, ttlv.octets(Tag.KEY_MATERIAL, key)),
        ttlv.enumeration(Tag.CRYPTOGRAPHIC_ALGORITHM, AES),
        ttlv.integer(Tag.CRYPTOGRAPHIC_LENGTH, 8 * len(key) if bits is None else bits),
    )


def given(version: Version, *attributes: AttributeValue, kind: str = "") -> bytes:
    """Return the attributes for a new object; of a key pair, ``kind`` is COMMON, PRIVATE_KEY or PUBLIC_KEY."""
    prefix = f"{kind}_" if kind else ""
    tag = Tag[f"{prefix}ATTRIBUTES"] if version >= (2, 0) else Tag[f"{prefix}TEMPLATE_ATTRIBUTE"]
    return ttlv.structure(tag, *(attribute.item(version) for attribute in attributes))


def creation(version: Version, *attributes: AttributeValue) -> Ask:
    """Return a Create, by default of an AES-256 key."""
    payload = ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY) + given(version, *(attributes or AES_256))
    return Ask(Operation.CREATE, payload)


CERTIFICATE = ttlv.structure(
    Tag.CERTIFICATE, ttlv.enumeration(Tag.CERTIFICATE_TYPE, 1), ttlv.octets(Tag.CERTIFICATE_VALUE, b"DER")
)
SECRET = ttlv.structure(Tag.SECRET_DATA, ttlv.enumeration(Tag.SECRET_DATA_TYPE, 1), key_block(b"password", 2))
OPAQUE = ttlv.structure(
    Tag.OPAQUE_OBJECT, ttlv.enumeration(Tag.OPAQUE_DATA_TYPE, 0x80000001), ttlv.octets(Tag.OPAQUE_DATA_VALUE, b"?")
)
SYMMETRIC = ttlv.structure(Tag.SYMMETRIC_KEY, key_block(bytes(range(32))))


class OperationResult:
    """The answer to one operation of a request, with its payload parsed."""

    def __init__(self, item: ResponseItem, version: Version) -> None:
        self.item = item
        self.version = version
        span = item.fields.get(Tag.RESPONSE_PAYLOAD)
        head = ttlv.Item(Tag.RESPONSE_PAYLOAD, ttlv.STRUCTURE, *(span or (0, 0)))
        self.payload = Node.parse(item.frame, head)

    def __repr__(self) -> str:
        return f"<OperationResult {self.item.status} {self.item.reason} {self.item.message}>"

    @property
    def ok(self) -> bool:
        return self.item.status == ResultStatus.SUCCESS

    @property
    def uid(self) -> str:
        assert self.ok, self
        uid = self.payload.text(Tag.UNIQUE_IDENTIFIER)
        assert uid is not None
        return uid

    @property
    def uids(self) -> list[str]:
        assert self.ok, self
        return [node.as_text() for node in self.payload.find_all(Tag.UNIQUE_IDENTIFIER)]

    @property
    def key(self) -> bytes:
        """The bytes of the key in an answer to Get."""
        assert self.ok, self
        for tag in (Tag.SYMMETRIC_KEY, Tag.PRIVATE_KEY, Tag.PUBLIC_KEY, Tag.SECRET_DATA):
            found = self.payload.find(tag)
            if found is not None:
                material = found.children[-1].structure(Tag.KEY_VALUE)
                assert material is not None
                node = material.find(Tag.KEY_MATERIAL)
                assert node is not None
                return node.value
        raise AssertionError("no key in the answer")

    @property
    def attribute_values(self) -> dict[str, list[bytes]]:
        """The encoded values of the attributes in the answer, by name."""
        assert self.ok, self
        values: dict[str, list[bytes]] = {}
        if self.version >= (2, 0):
            structure = self.payload.structure(Tag.ATTRIBUTES)
            assert structure is not None
            for node in structure.children:
                values.setdefault(Tag(node.tag).name.replace("_", " ").title(), []).append(node.value)
            return values
        for node in self.payload.find_all(Tag.ATTRIBUTE):
            value = node.find(Tag.ATTRIBUTE_VALUE)
            assert value is not None
            values.setdefault(node.text(Tag.ATTRIBUTE_NAME) or "", []).append(value.value)
        return values

    def number(self, name: str) -> int:
        """Return the value of a single-valued attribute as a number."""
        (value,) = self.attribute_values[name]
        return int.from_bytes(value, "big")


class EngineClient:
    """A client of an engine, with the owner's name and a protocol version."""

    def __init__(self, engine: Engine, version: Version = (1, 4), owner: str = "alice") -> None:
        self.engine = engine
        self.version = version
        self.owner = owner

    def ask(self, operation: int, *items: bytes, header: Sequence[bytes] = ()) -> OperationResult:
        """Execute an operation."""
        (answer,) = self.batch(Ask(operation, b"".join(items)), header=header)
        return answer

    def batch(self, *asks: Ask, header: Sequence[bytes] = ()) -> list[OperationResult]:
        """Execute several operations in one request; return the answers, which may be fewer."""
        frame = encode_request(self.version, asks, header=header)
        response = decode_response(self.engine.handle(frame, self.owner))
        assert response.version == self.version
        return [OperationResult(item, self.version) for item in response.items]

    def given(self, *attributes: AttributeValue, kind: str = "") -> bytes:
        """As the function ``given``, in this client's version."""
        return given(self.version, *attributes, kind=kind)

    def create(self, *attributes: AttributeValue) -> OperationResult:
        (answer,) = self.batch(creation(self.version, *attributes))
        return answer

    def register(self, object_type: ObjectType, encoded: bytes, *attributes: AttributeValue) -> OperationResult:
        payload = ttlv.enumeration(Tag.OBJECT_TYPE, object_type), self.given(*attributes), encoded
        return self.ask(Operation.REGISTER, *payload)

    def get(self, which: OperationResult | str, *items: bytes) -> OperationResult:
        return self.ask(Operation.GET, uid_of(which), *items)

    def attributes(self, which: OperationResult | str, *names: str) -> OperationResult:
        """Execute Get Attributes for these names, or for all attributes."""
        if self.version >= (2, 0):
            asked = [ttlv.enumeration(Tag.ATTRIBUTE_REFERENCE, Tag[name.replace(" ", "_").upper()]) for name in names]
        else:
            asked = [ttlv.text(Tag.ATTRIBUTE_NAME, name) for name in names]
        return self.ask(Operation.GET_ATTRIBUTES, uid_of(which), *asked)

    def locate(self, *attributes: AttributeValue, items: Sequence[bytes] = ()) -> OperationResult:
        wanted = [attribute.item(self.version) for attribute in attributes]
        if self.version >= (2, 0):
            wanted = [ttlv.structure(Tag.ATTRIBUTES, *wanted)]
        return self.ask(Operation.LOCATE, *items, *wanted)

    def activate(self, which: OperationResult | str) -> OperationResult:
        return self.ask(Operation.ACTIVATE, uid_of(which))

    def revoke(self, which: OperationResult | str, code: int = 1) -> OperationResult:
        reason = ttlv.structure(Tag.REVOCATION_REASON, ttlv.enumeration(Tag.REVOCATION_REASON_CODE, code))
        return self.ask(Operation.REVOKE, uid_of(which), reason)

    def destroy(self, which: OperationResult | str) -> OperationResult:
        return self.ask(Operation.DESTROY, uid_of(which))


def assert_failed(answer: OperationResult, in_1_x: ResultReason, in_2_x: ResultReason | None = None) -> None:
    """Assert that an operation failed with this Result Reason; ``in_2_x`` is given if 2.x has its own."""
    assert not answer.ok, answer
    assert answer.item.reason == (in_2_x if in_2_x and answer.version >= (2, 0) else in_1_x), answer
    assert answer.item.message


def make_pair(client: EngineClient, number_of_algorithm: int, bits: int) -> OperationResult:
    return client.ask(
        Operation.CREATE_KEY_PAIR,
        client.given(algorithm(number_of_algorithm), length(bits), kind="COMMON"),
        client.given(mask(1), name("private"), kind="PRIVATE_KEY"),
        client.given(mask(2), name("public"), kind="PUBLIC_KEY"),
    )
