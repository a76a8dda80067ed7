"""The context of one operation: the client, the request's payload, the store, and the results of earlier operations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from gateway.kmip import ttlv
from gateway.kmip.compose import Result
from gateway.kmip.messages import Version
from gateway.kmip.spec import ItemType, Operation, ResultReason, Tag
from kmip_lab.keymanager import attributes
from kmip_lab.keymanager.attributes import Attribute, ManagedObject
from kmip_lab.keymanager.crypto import MakeKeyPair
from kmip_lab.keymanager.protocol import Node, OperationFailed, UniqueIdentifier
from kmip_lab.keymanager.server_state import ServerState
from kmip_lab.keymanager.store import Store

_T = TypeVar("_T")


class Success(NamedTuple):
    """The result of an operation that succeeded.

    ``payload`` has the items of the Response Payload, encoded; ``uids`` are the unique identifiers of the objects that
    the operation was about. ``result``, if given, is sent instead: the result of a deferred operation that Poll
    returns.
    """

    payload: bytes
    uids: tuple[str, ...] = ()
    result: Result | None = None


#: By operation: the Unique Identifier enumerations that stand for its result, as positions in Success.uids
#: (2.1 section 11.61).
_PLACEHOLDER_SOURCES: Final[dict[int, dict[UniqueIdentifier, int]]] = {
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
    """The ID Placeholder of one batch (1.4 section 4), and the enumerations and indexes that 2.x adds to it.

    The ID Placeholder is the unique identifier returned by the last Create, Create Key Pair (the private key), Register
    or Locate (if exactly one object was found).
    """

    def __init__(self) -> None:
        self._named: dict[int, str] = {}
        self._all: list[str] = []

    def __repr__(self) -> str:
        return f"<Placeholders {self._named.get(UniqueIdentifier.ID_PLACEHOLDER)}>"

    def record(self, operation: int, uids: tuple[str, ...]) -> None:
        """Record the unique identifiers that an operation returned; pass none if the operation failed."""
        sources = _PLACEHOLDER_SOURCES.get(operation)
        if sources is None:
            return
        if operation == Operation.LOCATE and len(uids) != 1:
            uids = ()
        self._named.pop(UniqueIdentifier.ID_PLACEHOLDER, None)
        if uids:
            self._named[UniqueIdentifier.ID_PLACEHOLDER] = uids[0]
            self._named |= {name: uids[position] for name, position in sources.items()}
            self._all += uids

    def resolve(self, node: Node | None) -> str:
        """Return the unique identifier that a payload's item means; without an item, the ID Placeholder.

        Raises OperationFailed if the batch has not returned such an identifier.
        """
        if node is not None and node.type == ItemType.TEXT_STRING:
            return node.as_text()
        if node is not None and node.type == ItemType.INTEGER:
            try:
                return self._all[node.as_number()]
            except IndexError:
                raise OperationFailed(
                    ResultReason.OBJECT_NOT_FOUND, "no earlier operation of this batch returned such an identifier"
                ) from None
        name = UniqueIdentifier.ID_PLACEHOLDER if node is None else node.as_number()
        uid = self._named.get(name)
        if uid is None:
            raise OperationFailed(ResultReason.OBJECT_NOT_FOUND, "the ID Placeholder is empty")
        return uid


@dataclass(frozen=True, slots=True)
class OperationContext:
    """The argument of an operation's handler.

    ``server`` is the key manager's name, ``owner`` the common name of the client's certificate, ``now`` is in Unix
    seconds. ``standby`` is True if the key manager is not a master; ``in_step`` names the replicas that have all
    changes of this key manager. ``make_key_pair`` and ``state`` are the engine's.
    """

    store: Store
    server: str
    owner: str
    version: Version
    payload: Node
    placeholders: Placeholders
    now: int
    standby: bool
    in_step: tuple[str, ...]
    make_key_pair: MakeKeyPair
    state: ServerState

    @property
    def is_2_x(self) -> bool:
        """True if the client speaks 2.0 or later, in which attributes are encoded differently."""
        return self.version >= (2, 0)

    def named_object(self) -> ManagedObject:
        """Return the object that the payload's Unique Identifier names. Raises OperationFailed as ``owned_object``."""
        return self.owned_object(self.placeholders.resolve(self.payload.find(Tag.UNIQUE_IDENTIFIER)))

    def living_object(self) -> ManagedObject:
        """As ``named_object``; raises OperationFailed also if the object is destroyed."""
        found = self.named_object()
        if found.material is None:
            raise OperationFailed(ResultReason.OBJECT_DESTROYED, f"object {found.uid} is destroyed")
        return found

    def owned_object(self, uid: str) -> ManagedObject:
        """Return the client's object with this unique identifier.

        Raises OperationFailed if there is none, and equally if the object belongs to a different client.
        """
        found = self.store.get(uid)
        if found is None or found.owner != self.owner:
            raise OperationFailed(ResultReason.OBJECT_NOT_FOUND, f"there is no object {uid}")
        return found

    def save(self, changed: ManagedObject, *new: Attribute) -> None:
        """Store an object with the attributes ``new`` and a new Last Change Date. Call within a transaction."""
        date = attributes.of_number("Last Change Date", self.now)
        self.store.save(changed.put((*new, date)))

    def new_attributes(self, tag_1_x: Tag, tag_2_x: Tag = Tag.ATTRIBUTES) -> tuple[Attribute, ...]:
        """Return the attributes for a new object: of a Template-Attribute in 1.x, of an Attributes structure in 2.x.

        Raises OperationFailed for attributes that a client may not set, and for named templates: they are not
        supported.
        """
        structure = self.payload.structure(tag_2_x if self.is_2_x else tag_1_x)
        if structure is None:
            return ()
        nodes = structure.children
        if not self.is_2_x:
            if structure.find(Tag.NAME) is not None:
                raise OperationFailed(ResultReason.ITEM_NOT_FOUND, "templates are not supported")
            nodes = tuple(structure.find_all(Tag.ATTRIBUTE))
        return attributes.of_new_object(attributes.decode(node, self.version) for node in nodes)


def required(value: _T | None, name: str) -> _T:
    """Return ``value``. Raises OperationFailed (Missing Data) if the payload does not have it."""
    if value is None:
        raise OperationFailed(ResultReason.MISSING_DATA, f"{name} is missing")
    return value


def success_for(found: ManagedObject, *items: bytes) -> Success:
    """Return a Success whose payload is the object's Unique Identifier, followed by ``items``."""
    return Success(b"".join((ttlv.text(Tag.UNIQUE_IDENTIFIER, found.uid), *items)), (found.uid,))


Handler = Callable[[OperationContext], Success]
