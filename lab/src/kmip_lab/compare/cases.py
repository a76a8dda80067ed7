"""The cases of the comparison: what clients do, how many of them, and what stands behind the proxies."""

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Backends(Enum):
    """Two key managers: that cost nothing, or whose HSM takes its time, one thing after the other.

    Those that are FULL resume no session: every handshake is one in full.
    """

    FREE = "free"
    FREE_FULL = "free-full"
    HSM = "hsm"
    HSM_FULL = "hsm-full"

    @property
    def is_free(self) -> bool:
        """Whether they cost nothing."""
        return self in {Backends.FREE, Backends.FREE_FULL}

    @property
    def resumes(self) -> bool:
        """Whether they resume sessions."""
        return self in {Backends.FREE, Backends.HSM}


HANDSHAKE_COST: Final = 0.06  # s
OPERATION_COST: Final = 0.007  # s
#: Gets a second of all clients of an even load together: less than half of what the slowest proxy can do.
EVEN_RATE: Final = 4000


@dataclass(frozen=True)
class Case:
    """``work`` is the load's. ``ceiling`` names the case whose direct run shows what load and backends can do alone.

    ``rate`` is how many Gets a second all clients together send; 0 is as many as they can.
    """

    name: str
    title: str
    work: str
    clients: int
    backends: Backends
    ceiling: str
    warm_up: float = 0.3  # s
    rate: float = 0.0

    @property
    def is_latency(self) -> bool:
        """Whether one client waits, so that the throughput says nothing that its time does not."""
        return self.clients == 1

    @property
    def compares_rates(self) -> bool:
        """Whether the throughput is the proxies' to decide."""
        return not self.is_latency and not self.rate


_HSM_WARM_UP: Final = 0.7  # s: ten clients begin with five handshakes at each backend, 60 ms each

_TABLE: Final = (
    Case("fresh", "new connection + 1 Get", "fresh", 8, Backends.FREE, "fresh"),
    Case("fresh-full", "the same, backends that resume nothing", "fresh", 8, Backends.FREE_FULL, "fresh"),
    Case("resumed", "resumed connection + 1 Get", "resumed", 8, Backends.FREE, "resumed"),
    Case("kept", "Get on a kept connection", "kept", 8, Backends.FREE, "kept"),
    Case("kept-even", "Get on a kept connection, same rate for all", "kept", 8, Backends.FREE, "kept", rate=EVEN_RATE),
    Case("fresh-1", "one client, new connection + 1 Get", "fresh", 1, Backends.FREE, "fresh"),
    Case("kept-1", "one client, Get on a kept connection", "kept", 1, Backends.FREE, "kept"),
    Case("hsm", "HSM, new connection + 1 Get", "fresh", 10, Backends.HSM, "fresh", _HSM_WARM_UP),
    Case(
        "hsm-full", "HSM, the same, backends that resume nothing", "fresh", 10, Backends.HSM_FULL, "fresh", _HSM_WARM_UP
    ),
    Case("hsm-kept", "HSM, Get on a kept connection", "kept", 10, Backends.HSM, "kept", _HSM_WARM_UP),
    Case("idle", "idle client connections", "idle", 1000, Backends.FREE, "idle"),
)
#: By name; in the order in which they are run and shown.
CASES: Final = {case.name: case for case in _TABLE}
