"""One operation being executed: who asks for what, and what the batch has come upon so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from gateway.kmip import ttlv
from gateway.kmip.compose import Result
from gateway.kmip.messages import Version
from gateway.kmip.spec import ItemType, Operation, ResultReason, Tag
from kmip_lab.keymanager import attributes
from kmip_lab.keymanager.keys import MakeKeyPair, new_key_pair
from kmip_lab.keymanager.local import Local
from kmip_lab.keymanager.numbers import UniqueIdentifier
from kmip_lab.keymanager.objects import Attribute, ManagedObject
from kmip_lab.keymanager.refusals import Refusal
from kmip_lab.keymanager.store import Store
from kmip_lab.keymanager.tree import Node

_T = TypeVar("_T")


class Done(NamedTuple):
    """An operation that succeeded: its answer's items, encoded, and the unique identifiers that it was about.

    ``result`` is another operation's, where that is the answer.
    """

    payload: bytes
    uids: tuple[str, ...] = ()
    result: Result | None = None


#: What a Unique Identifier given as an Enumeration stands for: position in Done's uids (2.1 section 11.61).
_MAKERS: Final[dict[int, dict[UniqueIdentifier, int]]] = {
    Operation.CREATE: {UniqueIdentifier.CREATE: 0},
    Operation.CREATE_KEY_PAIR: {
        UniqueIdentifier.CREATE_KEY_PAIR: 0,
        UniqueIdentifier.CREATE_KEY_PAIR_PRIVATE_KEY: 0,
        UniqueIdentifier.CREATE_KEY_PAIR_PUBLIC_KEY: 1,
    },
    Operation.LOCATE: {UniqueIdentifier.LOCATE: 0},
    Operation.REGISTER: {UniqueIdentifier.REGISTER: 0},
}


class Placeholders:
    """The ID Placeholder of one batch (1.4 section 4), and what 2.x has besides.

    It stands for what the last Create, Create Key Pair (the private key), Register or Locate (of exactly one) gave.
    """

    def __init__(self) -> None:
        self._named: dict[int, str] = {}
        self._all: list[str] = []

    def __repr__(self) -> str:
        return f"<Placeholders {self._named.get(UniqueIdentifier.ID_PLACEHOLDER)}>"

    def note(self, operation: int, uids: tuple[str, ...]) -> None:
        """Remember what an operation gave; none where it failed."""
        makes = _MAKERS.get(operation)
        if makes is None:
            return
        if operation == Operation.LOCATE and len(uids) != 1:
            uids = ()
        self._named.pop(UniqueIdentifier.ID_PLACEHOLDER, None)
        if uids:
            self._named[UniqueIdentifier.ID_PLACEHOLDER] = uids[0]
            self._named |= {name: uids[position] for name, position in makes.items()}
            self._all += uids

    def resolve(self, node: Node | None) -> str:
        """The unique identifier that a payload's item stands for, or that is meant where there is none."""
        if node is not None and node.type == ItemType.TEXT_STRING:
            return node.as_text()
        if node is not None and node.type == ItemType.INTEGER:
            try:
                return self._all[node.as_number()]
            except IndexError:
                raise Refusal(ResultReason.OBJECT_NOT_FOUND, "the batch has given no such identifier") from None
        name = UniqueIdentifier.ID_PLACEHOLDER if node is None else node.as_number()
        uid = self._named.get(name)
        if uid is None:
            raise Refusal(ResultReason.OBJECT_NOT_FOUND, "the ID Placeholder stands for nothing")
        return uid


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler is given.

    ``now`` is in Unix seconds; ``standby``: the key manager is not master; ``in_step``: the replicas that have all that
    is here; ``make_key_pair`` and ``local`` are the engine's.
    """

    store: Store
    server: str
    owner: str
    version: Version
    payload: Node
    placeholders: Placeholders
    now: int
    standby: bool = False
    in_step: tuple[str, ...] = ()
    make_key_pair: MakeKeyPair = new_key_pair
    local: Local = field(default_factory=Local)

    @property
    def is_2_x(self) -> bool:
        """Whether the client speaks 2.0 or later, where attributes are written differently."""
        return self.version >= (2, 0)

    def named(self) -> ManagedObject:
        """The client's object that the payload names. Raises Refusal: what another owns does not exist."""
        return self.owned(self.placeholders.resolve(self.payload.find(Tag.UNIQUE_IDENTIFIER)))

    def living(self) -> ManagedObject:
        """As ``named``, and not destroyed."""
        found = self.named()
        if found.material is None:
            raise Refusal(ResultReason.OBJECT_DESTROYED, f"object {found.uid} is destroyed")
        return found

    def owned(self, uid: str) -> ManagedObject:
        """The client's object with this unique identifier. Raises Refusal."""
        found = self.store.get(uid)
        if found is None or found.owner != self.owner:
            raise Refusal(ResultReason.OBJECT_NOT_FOUND, f"there is no object {uid}")
        return found

    def save(self, changed: ManagedObject, *new: Attribute) -> None:
        """Keep an object, with these attributes and a new Last Change Date."""
        date = attributes.of_number("Last Change Date", self.now)
        self.store.save(changed.put((*new, date)))

    def given(self, tag_1_x: Tag, tag_2_x: Tag = Tag.ATTRIBUTES) -> tuple[Attribute, ...]:
        """The attributes for a new object: a Template-Attribute in 1.x, an Attributes structure from 2.0 on.

        Raises Refusal, also where a template is named: there are none here.
        """
        structure = self.payload.structure(tag_2_x if self.is_2_x else tag_1_x)
        if structure is None:
            return ()
        nodes = structure.children
        if not self.is_2_x:
            if structure.find(Tag.NAME) is not None:
                raise Refusal(ResultReason.ITEM_NOT_FOUND, "there are no templates here")
            nodes = tuple(structure.find_all(Tag.ATTRIBUTE))
        return attributes.given(attributes.read(node, self.version) for node in nodes)


def required(value: _T | None, what: str) -> _T:
    """The value, which the payload must have. Raises Refusal."""
    if value is None:
        raise Refusal(ResultReason.MISSING_DATA, f"{what} is missing")
    return value


def identified(found: ManagedObject, *items: bytes) -> Done:
    """The answer that begins with the Unique Identifier, as most do."""
    return Done(b"".join((ttlv.text(Tag.UNIQUE_IDENTIFIER, found.uid), *items)), (found.uid,))


Handler = Callable[[Call], Done]
