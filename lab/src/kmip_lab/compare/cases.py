"""The cases of the comparison: the work of the clients, their number, and the key managers behind the proxies."""

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Backends(Enum):
    """Kinds of two key managers: FREE answer at once, HSM take time and do one thing after the other.

    Key managers that are FULL resume no session: every handshake is a full handshake.
    """

    FREE = "free"
    FREE_FULL = "free-full"
    HSM = "hsm"
    HSM_FULL = "hsm-full"

    @property
    def is_free(self) -> bool:
        """True if their work costs next to nothing."""
        return self in {Backends.FREE, Backends.FREE_FULL}

    @property
    def resumes(self) -> bool:
        """True if they resume TLS sessions."""
        return self in {Backends.FREE, Backends.HSM}


HANDSHAKE_COST: Final = 0.06  # s
OPERATION_COST: Final = 0.007  # s
#: Gets a second of all clients of an even load together: less than half of the slowest proxy's capacity.
EVEN_RATE: Final = 4000


@dataclass(frozen=True)
class LoadCase:
    """``work`` is that of a LoadJob. The direct run of the case ``ceiling`` shows the capacity of load and backends.

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
        """True for a single client, whose throughput says the same as its time."""
        return self.clients == 1

    @property
    def compares_rates(self) -> bool:
        """True if the throughput depends on the proxy."""
        return not self.is_latency and not self.rate


_HSM_WARM_UP: Final = 0.7  # s: ten clients begin with five handshakes at each backend, 60 ms each

_TABLE: Final = (
    LoadCase("fresh", "new connection + 1 Get", "fresh", 8, Backends.FREE, "fresh"),
    LoadCase("fresh-full", "the same, backends that resume nothing", "fresh", 8, Backends.FREE_FULL, "fresh"),
    LoadCase("resumed", "resumed connection + 1 Get", "resumed", 8, Backends.FREE, "resumed"),
    LoadCase("kept", "Get on a kept connection", "kept", 8, Backends.FREE, "kept"),
    LoadCase(
        "kept-even", "Get on a kept connection, same rate for all", "kept", 8, Backends.FREE, "kept", rate=EVEN_RATE
    ),
    LoadCase("fresh-1", "one client, new connection + 1 Get", "fresh", 1, Backends.FREE, "fresh"),
    LoadCase("kept-1", "one client, Get on a kept connection", "kept", 1, Backends.FREE, "kept"),
    LoadCase("hsm", "HSM, new connection + 1 Get", "fresh", 10, Backends.HSM, "fresh", _HSM_WARM_UP),
    LoadCase(
        "hsm-full", "HSM, the same, backends that resume nothing", "fresh", 10, Backends.HSM_FULL, "fresh", _HSM_WARM_UP
    ),
    LoadCase("hsm-kept", "HSM, Get on a kept connection", "kept", 10, Backends.HSM, "kept", _HSM_WARM_UP),
    LoadCase("idle", "idle client connections", "idle", 1000, Backends.FREE, "idle"),
)
#: The cases by name, in the order in which they are run and shown.
CASES: Final = {case.name: case for case in _TABLE}
