"""What the simulated key managers' work costs, derived once from the note's single-server columns.

A key manager is taken for one HSM that does one thing at a time: then, from two clients on, it does 60/t operations a
minute, where t is what one of them costs in seconds, with its session if that is opened for it. So

* an operation costs 60 / (the note's mean over two to ten clients, single server, cached);
* a handshake costs what is added without caching: the median over the five operations, since one key manager has one
  cost of a handshake, whatever it is asked afterwards.

A resumed handshake costs nothing, since nothing is signed in it.
"""

from statistics import median
from typing import Final, NamedTuple

from kmip_lab.speed.report import note
from kmip_lab.speed.report.cases import OPERATIONS, Case


class Costs(NamedTuple):
    """Seconds in which a key manager does nothing else."""

    handshake: float
    operations: dict[str, float]

    def faster(self, factor: float) -> "Costs":
        """All of them divided."""
        return Costs(self.handshake / factor, {name: cost / factor for name, cost in self.operations.items()})


def _handshake(operation: str) -> float:
    return 60 / note.saturated(operation, "single_fresh") - 60 / note.saturated(operation, "single_kept")


#: What is added by a handshake in each of the note's tables, in seconds; they differ as measurements on a laptop do.
HANDSHAKES: Final = {operation: _handshake(operation) for operation in OPERATIONS}

#: The costs that the report is measured with, before --scale; rounded to a tenth of a millisecond.
COSTS: Final = Costs(
    round(median(HANDSHAKES.values()), 4),
    {operation: round(60 / note.saturated(operation, "single_kept"), 4) for operation in OPERATIONS},
)


def bound(operation: str, case: Case, costs: Costs = COSTS) -> float:
    """The most operations a minute that the costs allow in a case; through the gateway, handshakes are not in them."""
    spent = costs.operations[operation]
    if case.sessions == "fresh" and not case.gateway:
        spent += costs.handshake
    return 60 * case.servers / spent


#: Operations a second, each in a fresh session through the gateway, that leave two cores time to spare for clients,
#: gateway and key managers: a read takes some 4 ms of processor time, a write, which is replicated, some 6 ms.
_READS_A_SECOND: Final = 280
_WRITES_A_SECOND: Final = 120


def factor(operation: str, scale: float) -> float:
    """What costs are divided by at this scale: no more than this machine can follow, and one at the least.

    Where every operation costs little, more of them a second would measure the machine's processors.
    """
    most = _WRITES_A_SECOND if operation.startswith("create") else _READS_A_SECOND
    fastest = 2 / COSTS.operations[operation]  # operations a second of the gateway with two servers
    return max(1.0, min(scale, most / fastest))
