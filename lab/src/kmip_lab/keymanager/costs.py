"""The HSM of a key manager: the time that its operations cost. It executes one operation at a time."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import trio

from gateway.kmip.messages import operation_name
from gateway.kmip.spec import Operation, Tag
from kmip_lab.keymanager.protocol import CryptographicAlgorithm, Node

#: Names of costs, in addition to the names of operations (as in ``CreateKeyPair``).
HANDSHAKE: Final = "handshake"
WRAP: Final = "Wrap"
CREATE_RSA: Final = "CreateRSA"
CREATE_ECC: Final = "CreateECC"
COST_NAMES: Final = frozenset({HANDSHAKE, WRAP, CREATE_RSA, CREATE_ECC, *map(operation_name, Operation)})

_NO_COSTS: Final[Mapping[str, float]] = MappingProxyType({})


class Hsm:
    """The HSM of one key manager: callers wait in turn, each for the cost of its work, in seconds.

    ``handshake_cost`` is for a full handshake, ``operation_cost`` for any operation; ``costs``, by name (COST_NAMES),
    come before both.
    """

    def __init__(
        self, handshake_cost: float = 0.0, operation_cost: float = 0.0, costs: Mapping[str, float] = _NO_COSTS
    ) -> None:
        self._handshake_cost = costs.get(HANDSHAKE, handshake_cost)
        self._operation_cost = operation_cost
        self._costs = costs
        self._lock = trio.Lock()
        self._free_at = 0.0  # when the work so far is done

    def __repr__(self) -> str:
        waiting = self._lock.statistics().tasks_waiting
        return f"<Hsm {'busy' if self._lock.locked() else 'idle'}, {waiting} waiting>"

    async def handshake(self) -> None:
        """Wait for the cost of a full handshake."""
        await self._spend(self._handshake_cost)

    async def operation(self, names: Sequence[str] = (), *, charged: bool = True) -> None:
        """Wait for the cost of an operation: of the first of its ``names`` that has a cost, or the operation cost.

        Without ``charged``, an operation that has no cost by name is free.
        """
        default = self._operation_cost if charged else 0.0
        await self._spend(next((self._costs[name] for name in names if name in self._costs), default))

    async def _spend(self, seconds: float) -> None:
        """Wait until ``seconds`` after the work before is done, or after now.

        Late timers are not added up: timers are late by a millisecond, and a busy HSM would be slower by that for each
        operation.
        """
        if seconds:
            arrived = trio.current_time()
            async with self._lock:
                self._free_at = max(arrived, self._free_at) + seconds
                await trio.sleep_until(self._free_at)


def cost_names(operation: int, payload: Node) -> tuple[str, ...]:
    """Return the names under which an operation may have a cost, the most precise first.

    A Get that wraps is also a ``Wrap``, a Create Key Pair also a ``CreateRSA`` or ``CreateECC``.
    """
    name = operation_name(operation)
    if operation == Operation.GET and payload.find(Tag.KEY_WRAPPING_SPECIFICATION) is not None:
        return WRAP, name
    if operation == Operation.CREATE_KEY_PAIR:
        return CREATE_RSA if CryptographicAlgorithm.RSA in _algorithms(payload) else CREATE_ECC, name
    return (name,)


def _algorithms(node: Node) -> Iterator[int]:
    """Yield every Cryptographic Algorithm in a payload, in any of its templates, as 1.x or 2.x encodes it."""
    if node.tag == Tag.CRYPTOGRAPHIC_ALGORITHM:
        yield node.as_number()
    names = node.find_all(Tag.ATTRIBUTE_NAME) if node.tag == Tag.ATTRIBUTE else []
    if any(name.value == b"Cryptographic Algorithm" for name in names):
        yield from (value.as_number() for value in node.find_all(Tag.ATTRIBUTE_VALUE))
    for child in node.children:
        yield from _algorithms(child)
