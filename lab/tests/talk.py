"""Talking to a key manager without TLS: requests from the specification's parts, answers as trees."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kmip_lab.keymanager.batch import Engine
from kmip_lab.keymanager.tree import Node

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.decode import decode_response
from gateway.kmip.messages import ResponseItem, Version
from gateway.kmip.spec import ObjectType, Operation, ResultReason, ResultStatus, Tag

AES, RSA, EC = 3, 4, 0x1A
WRAP = 0x30
USE = 0x0C

VERSIONS: tuple[Version, ...] = ((1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1))


class Fact(NamedTuple):
    """An attribute, to be written as each version writes it."""

    name: str
    tag: Tag
    encode: Callable[[int, Any], bytes]
    value: Any

    def item(self, version: Version) -> bytes:
        """As it stands in a template (1.x) or in Attributes (2.x)."""
        if version >= (2, 0):
            return self.encode(self.tag, self.value)
        value = self.encode(Tag.ATTRIBUTE_VALUE, self.value)
        return ttlv.structure(Tag.ATTRIBUTE, ttlv.text(Tag.ATTRIBUTE_NAME, self.name), value)


def algorithm(number: int) -> Fact:
    return Fact("Cryptographic Algorithm", Tag.CRYPTOGRAPHIC_ALGORITHM, ttlv.enumeration, number)


def length(bits: int) -> Fact:
    return Fact("Cryptographic Length", Tag.CRYPTOGRAPHIC_LENGTH, ttlv.integer, bits)


def mask(bits: int) -> Fact:
    return Fact("Cryptographic Usage Mask", Tag.CRYPTOGRAPHIC_USAGE_MASK, ttlv.integer, bits)


def date(name: str, tag: Tag, seconds: int) -> Fact:
    return Fact(name, tag, ttlv.date_time, seconds)


def group(text: str) -> Fact:
    return Fact("Object Group", Tag.OBJECT_GROUP, ttlv.text, text)


def contact(text: str) -> Fact:
    return Fact("Contact Information", Tag.CONTACT_INFORMATION, ttlv.text, text)


def flag(name: str, tag: Tag, value: bool) -> Fact:
    return Fact(name, tag, ttlv.boolean, value)


def number(name: str, tag: Tag, value: int) -> Fact:
    return Fact(name, tag, ttlv.enumeration, value)


def name(text: str) -> Fact:
    def encode(tag: int, value: str) -> bytes:
        return ttlv.structure(tag, ttlv.text(Tag.NAME_VALUE, value), ttlv.enumeration(Tag.NAME_TYPE, 1))

    return Fact("Name", Tag.NAME, encode, text)


def own(text: str) -> Fact:
    """An attribute of the client's own, "x-colour"; not to be written in 2.x this way."""
    return Fact("x-colour", Tag.ATTRIBUTE, ttlv.text, text)


AES_256 = (algorithm(AES), length(256), mask(USE))


def uid_of(answer: "Answer | str") -> bytes:
    """A Unique Identifier item, of an answer's object or of a text."""
    return ttlv.text(Tag.UNIQUE_IDENTIFIER, answer if isinstance(answer, str) else answer.uid)


def key_block(key: bytes, key_format: int = 1, bits: int | None = None) -> bytes:
    return ttlv.structure(
        Tag.KEY_BLOCK,
        ttlv.enumeration(Tag.KEY_FORMAT_TYPE, key_format),
        ttlv.structure(Tag.KEY_VALUE, ttlv.octets(Tag.KEY_MATERIAL, key)),
        ttlv.enumeration(Tag.CRYPTOGRAPHIC_ALGORITHM, AES),
        ttlv.integer(Tag.CRYPTOGRAPHIC_LENGTH, 8 * len(key) if bits is None else bits),
    )


def given(version: Version, *facts: Fact, kind: str = "") -> bytes:
    """Attributes for a new object; ``kind`` is COMMON, PRIVATE_KEY or PUBLIC_KEY for a key pair's."""
    prefix = f"{kind}_" if kind else ""
    tag = Tag[f"{prefix}ATTRIBUTES"] if version >= (2, 0) else Tag[f"{prefix}TEMPLATE_ATTRIBUTE"]
    return ttlv.structure(tag, *(fact.item(version) for fact in facts))


def creation(version: Version, *facts: Fact) -> Ask:
    """A Create, of an AES-256 key by default."""
    payload = ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY) + given(version, *(facts or AES_256))
    return Ask(Operation.CREATE, payload)


CERTIFICATE = ttlv.structure(
    Tag.CERTIFICATE, ttlv.enumeration(Tag.CERTIFICATE_TYPE, 1), ttlv.octets(Tag.CERTIFICATE_VALUE, b"DER")
)
SECRET = ttlv.structure(Tag.SECRET_DATA, ttlv.enumeration(Tag.SECRET_DATA_TYPE, 1), key_block(b"password", 2))
OPAQUE = ttlv.structure(
    Tag.OPAQUE_OBJECT, ttlv.enumeration(Tag.OPAQUE_DATA_TYPE, 0x80000001), ttlv.octets(Tag.OPAQUE_DATA_VALUE, b"?")
)
SYMMETRIC = ttlv.structure(Tag.SYMMETRIC_KEY, key_block(bytes(range(32))))


class Answer:
    """The answer to one operation."""

    def __init__(self, item: ResponseItem, version: Version) -> None:
        self.item = item
        self.version = version
        span = item.fields.get(Tag.RESPONSE_PAYLOAD)
        head = ttlv.Item(Tag.RESPONSE_PAYLOAD, ttlv.STRUCTURE, *(span or (0, 0)))
        self.payload = Node.grow(item.frame, head)

    def __repr__(self) -> str:
        return f"<Answer {self.item.status} {self.item.reason} {self.item.message}>"

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
    def facts(self) -> dict[str, list[bytes]]:
        """Attributes by name, with their values as encoded."""
        assert self.ok, self
        facts: dict[str, list[bytes]] = {}
        if self.version >= (2, 0):
            attributes = self.payload.structure(Tag.ATTRIBUTES)
            assert attributes is not None
            for node in attributes.children:
                facts.setdefault(Tag(node.tag).name.replace("_", " ").title(), []).append(node.value)
            return facts
        for node in self.payload.find_all(Tag.ATTRIBUTE):
            value = node.find(Tag.ATTRIBUTE_VALUE)
            assert value is not None
            facts.setdefault(node.text(Tag.ATTRIBUTE_NAME) or "", []).append(value.value)
        return facts

    def fact(self, name: str) -> int:
        """The one value of an attribute that is a number."""
        (value,) = self.facts[name]
        return int.from_bytes(value, "big")


class Talk:
    """A client of an engine: one owner, one protocol version."""

    def __init__(self, engine: Engine, version: Version = (1, 4), owner: str = "alice") -> None:
        self.engine = engine
        self.version = version
        self.owner = owner

    def ask(self, operation: int, *items: bytes, header: Sequence[bytes] = ()) -> Answer:
        """Ask for one operation."""
        (answer,) = self.batch(Ask(operation, b"".join(items)), header=header)
        return answer

    def batch(self, *asks: Ask, header: Sequence[bytes] = ()) -> list[Answer]:
        """Ask for several in one message."""
        frame = encode_request(self.version, asks, header=header)
        response = decode_response(self.engine.handle(frame, self.owner))
        assert response.version == self.version
        return [Answer(item, self.version) for item in response.items]

    # What tests do all the time.

    def given(self, *facts: Fact, kind: str = "") -> bytes:
        """Attributes for a new object, in this client's version."""
        return given(self.version, *facts, kind=kind)

    def create(self, *facts: Fact) -> Answer:
        (answer,) = self.batch(creation(self.version, *facts))
        return answer

    def register(self, object_type: ObjectType, encoded: bytes, *facts: Fact) -> Answer:
        payload = ttlv.enumeration(Tag.OBJECT_TYPE, object_type), self.given(*facts), encoded
        return self.ask(Operation.REGISTER, *payload)

    def get(self, which: Answer | str, *items: bytes) -> Answer:
        return self.ask(Operation.GET, uid_of(which), *items)

    def attributes(self, which: Answer | str, *names: str) -> Answer:
        """Get Attributes; in 2.x ``names`` are tags' names."""
        if self.version >= (2, 0):
            asked = [ttlv.enumeration(Tag.ATTRIBUTE_REFERENCE, Tag[one.replace(" ", "_").upper()]) for one in names]
        else:
            asked = [ttlv.text(Tag.ATTRIBUTE_NAME, one) for one in names]
        return self.ask(Operation.GET_ATTRIBUTES, uid_of(which), *asked)

    def locate(self, *facts: Fact, items: Sequence[bytes] = ()) -> Answer:
        wanted = [fact.item(self.version) for fact in facts]
        if self.version >= (2, 0):
            wanted = [ttlv.structure(Tag.ATTRIBUTES, *wanted)]
        return self.ask(Operation.LOCATE, *items, *wanted)

    def activate(self, which: Answer | str) -> Answer:
        return self.ask(Operation.ACTIVATE, uid_of(which))

    def revoke(self, which: Answer | str, code: int = 1) -> Answer:
        reason = ttlv.structure(Tag.REVOCATION_REASON, ttlv.enumeration(Tag.REVOCATION_REASON_CODE, code))
        return self.ask(Operation.REVOKE, uid_of(which), reason)

    def destroy(self, which: Answer | str) -> Answer:
        return self.ask(Operation.DESTROY, uid_of(which))


def refused(answer: Answer, in_1_x: ResultReason, in_2_x: ResultReason | None = None) -> None:
    """Expect a failure, by what each version calls it."""
    assert not answer.ok, answer
    assert answer.item.reason == (in_2_x if in_2_x and answer.version >= (2, 0) else in_1_x), answer
    assert answer.item.message


def make_pair(talk: Talk, number_of_algorithm: int, bits: int) -> Answer:
    return talk.ask(
        Operation.CREATE_KEY_PAIR,
        talk.given(algorithm(number_of_algorithm), length(bits), kind="COMMON"),
        talk.given(mask(1), name("private"), kind="PRIVATE_KEY"),
        talk.given(mask(2), name("public"), kind="PUBLIC_KEY"),
    )
