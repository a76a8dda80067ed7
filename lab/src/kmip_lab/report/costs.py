"""The costs of the simulated key managers' work, derived from the note's single-server columns.

The model of a key manager is one HSM that does one thing at a time: from two clients on, it does 60/t operations a
minute, if an operation costs t seconds, with its session if that is opened for it. So

* an operation costs 60 / (the note's mean over two to ten clients, single server, cached);
* a handshake costs the difference without caching: the median over the five operations, since a key manager's handshake
  costs the same, whatever operation follows.

A resumed handshake costs nothing, since nothing is signed in it.
"""

from statistics import median
from typing import Final, NamedTuple

from kmip_lab.report import note
from kmip_lab.report.cases import OPERATIONS, Case


class Costs(NamedTuple):
    """Seconds in which a key manager does nothing else."""

    handshake: float
    operations: dict[str, float]

    def faster(self, factor: float) -> "Costs":
        """Return the costs divided by a factor."""
        return Costs(self.handshake / factor, {name: cost / factor for name, cost in self.operations.items()})


def _handshake(operation: str) -> float:
    return 60 / note.saturated(operation, "single_fresh") - 60 / note.saturated(operation, "single_kept")


#: Seconds that a handshake adds in each of the note's tables; they differ as measurements on a laptop do.
HANDSHAKES: Final = {operation: _handshake(operation) for operation in OPERATIONS}

#: The costs that the report is measured with, before --scale; rounded to a tenth of a millisecond.
COSTS: Final = Costs(
    round(median(HANDSHAKES.values()), 4),
    {operation: round(60 / note.saturated(operation, "single_kept"), 4) for operation in OPERATIONS},
)


def bound(operation: str, case: Case, costs: Costs = COSTS) -> float:
    """Return the most operations a minute that the costs allow in a case; the gateway needs no handshakes for them."""
    spent = costs.operations[operation]
    if case.sessions == "fresh" and not case.gateway:
        spent += costs.handshake
    return 60 * case.servers / spent


#: Operations a second, each in a fresh session through the gateway, that leave two cores time to spare for clients,
#: gateway and key managers: a read takes some 4 ms of processor time, a write, which is replicated, some 6 ms.
_READS_A_SECOND: Final = 280
_WRITES_A_SECOND: Final = 120


def factor(operation: str, scale: float) -> float:
    """Return the factor that costs are divided by at this scale: at least 1, and at most what this machine can follow.

    If every operation costs little, more operations a second would measure the machine's processors.
    """
    most = _WRITES_A_SECOND if operation.startswith("create") else _READS_A_SECOND
    fastest = 2 / COSTS.operations[operation]  # operations a second of the gateway with two servers
    return max(1.0, min(scale, most / fastest))
