"""The results of the experiment: points as the page shows them, and the file that keeps them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from gateway.errors import GatewayError

#: The parts of the experiment: the note's, more clients than ten, and replication.
NOTE: Final = "note"
BEYOND: Final = "beyond"
REPLICATION: Final = "replication"


class UnreadableResultsError(GatewayError):
    """A file does not hold results."""


@dataclass(frozen=True, slots=True)
class ReportPoint:
    """One measurement: operations a minute, and latencies in seconds, multiplied back from the scale.

    ``part`` is that of the experiment; ``variant`` is the kind of replication. ``cpu`` is the share of this machine's
    processors that was busy, from 0 to 1; ``seconds`` is how long the measurement took, at the scale. Of a gateway:
    ``gateway_cpu`` is the share of one processor that it used, ``opened`` is the number of sessions that it opened.
    """

    part: str
    operation: str
    case: str
    clients: int
    per_minute: float
    p50: float | None
    p99: float | None
    cpu: float
    seconds: float
    errors: int = 0
    variant: str = ""
    gateway_cpu: float | None = None
    opened: int | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """A whole experiment.

    ``factors`` has, by operation, the factor that costs were divided by; ``repeat`` is how often each client does an
    operation, at the least; ``environment`` is printed on the page.
    """

    scale: float
    repeat: int
    factors: dict[str, float]
    environment: dict[str, str]
    points: list[ReportPoint] = field(default_factory=list)

    def all(self, part: str, operation: str | None = None, case: str | None = None) -> list[ReportPoint]:
        """Return the points of a part, of this operation and this case only if they are given."""
        return [
            point
            for point in self.points
            if point.part == part and operation in {None, point.operation} and case in {None, point.case}
        ]

    def rates(self, operation: str, case: str) -> dict[int, float]:
        """Return the operations a minute by number of clients, of the note's part."""
        return {point.clients: point.per_minute for point in self.all(NOTE, operation, case)}

    def write(self, path: Path) -> None:
        """Write a JSON file. Raises OSError."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of ``write``. Raises UnreadableResultsError."""
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            return cls(**(found | {"points": [ReportPoint(**point) for point in found["points"]]}))
        except OSError as error:
            raise UnreadableResultsError(f"{path}: {error.strerror}; give a file that --save has written") from None
        except (ValueError, TypeError, KeyError):
            raise UnreadableResultsError(f"{path}: holds no results; give a file that --save has written") from None
