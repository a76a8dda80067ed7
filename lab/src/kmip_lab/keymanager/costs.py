"""The HSM: what its work costs, and that it does one thing at a time."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import trio

from gateway.kmip.messages import operation_name
from gateway.kmip.spec import Operation, Tag
from kmip_lab.keymanager.numbers import CryptographicAlgorithm
from kmip_lab.keymanager.tree import Node

#: Costs that can be told besides those of the operations, by their names as in ``CreateKeyPair``.
HANDSHAKE: Final = "handshake"
WRAP: Final = "Wrap"
CREATE_RSA: Final = "CreateRSA"
CREATE_ECC: Final = "CreateECC"
COST_NAMES: Final = frozenset({HANDSHAKE, WRAP, CREATE_RSA, CREATE_ECC, *map(operation_name, Operation)})

_NO_COSTS: Final[Mapping[str, float]] = MappingProxyType({})


class Hsm:
    """One HSM of one key manager. Costs are in seconds; whoever comes while it is busy waits in turn.

    ``costs`` are by name (COST_NAMES), and come before the two others: those of a full handshake, and of any operation.
    """

    def __init__(
        self, handshake_cost: float = 0.0, operation_cost: float = 0.0, costs: Mapping[str, float] = _NO_COSTS
    ) -> None:
        self._handshake_cost = costs.get(HANDSHAKE, handshake_cost)
        self._operation_cost = operation_cost
        self._costs = costs
        self._lock = trio.Lock()
        self._free_at = 0.0  # the moment at which the work so far is done

    def __repr__(self) -> str:
        waiting = self._lock.statistics().tasks_waiting
        return f"<Hsm {'busy' if self._lock.locked() else 'idle'}, {waiting} waiting>"

    async def handshake(self) -> None:
        """Spend what a full handshake costs."""
        await self._spend(self._handshake_cost)

    async def operation(self, names: Sequence[str] = (), *, charged: bool = True) -> None:
        """Spend what one operation costs: by the first of its names that has a cost, or what any operation costs.

        One that is not ``charged`` costs nothing unless it has a cost by name.
        """
        default = self._operation_cost if charged else 0.0
        await self._spend(next((self._costs[name] for name in names if name in self._costs), default))

    async def _spend(self, seconds: float) -> None:
        """Take so long, from when the work before is done, or from now.

        What a timer is late by is not added up: timers are late by a millisecond, and a busy HSM would be slower by
        that for everything it does.
        """
        if seconds:
            arrived = trio.current_time()
            async with self._lock:
                self._free_at = max(arrived, self._free_at) + seconds
                await trio.sleep_until(self._free_at)


def cost_names(operation: int, payload: Node) -> tuple[str, ...]:
    """The names under which an operation's cost may stand, the most precise first.

    A Get that wraps is also a ``Wrap``, a Create Key Pair also a ``CreateRSA`` or ``CreateECC``.
    """
    name = operation_name(operation)
    if operation == Operation.GET and payload.find(Tag.KEY_WRAPPING_SPECIFICATION) is not None:
        return WRAP, name
    if operation == Operation.CREATE_KEY_PAIR:
        return CREATE_RSA if CryptographicAlgorithm.RSA in _algorithms(payload) else CREATE_ECC, name
    return (name,)


def _algorithms(node: Node) -> Iterator[int]:
    """Every Cryptographic Algorithm in a payload, in whichever template, as 1.x or 2.x writes it."""
    if node.tag == Tag.CRYPTOGRAPHIC_ALGORITHM:
        yield node.as_number()
    names = node.find_all(Tag.ATTRIBUTE_NAME) if node.tag == Tag.ATTRIBUTE else []
    if any(name.value == b"Cryptographic Algorithm" for name in names):
        yield from (value.as_number() for value in node.find_all(Tag.ATTRIBUTE_VALUE))
    for child in node.children:
        yield from _algorithms(child)
