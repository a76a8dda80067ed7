"""What a measurement gives: counts, times, and what went wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Tally:
    """What one client has counted. Times are seconds of the machine's monotonic clock; it begins with all others.

    ``durations`` are of the operations that succeeded, each with its session where sessions are not kept. ``errors``
    counts by kind; ``examples`` has the words of the first of each kind. ``left_out``: operations not tried any more.
    ``made``: unique identifiers of new keys.
    """

    began: float = 0.0
    ended: float = 0.0
    cpu: float = 0.0
    durations: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    left_out: int = 0
    full_handshakes: int = 0
    resumed_handshakes: int = 0
    made: list[str] = field(default_factory=list)

    def note(self, kind: str, words: str) -> None:
        """Count an error."""
        self.errors[kind] += 1
        self.examples.setdefault(kind, words)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One operation, measured with so many clients at once.

    ``sessions`` is "kept", "fresh" or "resumed". ``seconds`` are from the common start to the end of the last client;
    ``cpu`` the clients' processor seconds. ``durations`` are sorted.
    """

    operation: str
    sessions: str
    clients: int
    repeat: int
    seconds: float
    cpu: float
    durations: tuple[float, ...]
    errors: dict[str, int]
    examples: dict[str, str]
    left_out: int
    full_handshakes: int
    resumed_handshakes: int

    @classmethod
    def of(cls, operation: str, sessions: str, repeat: int, tallies: Sequence[Tally]) -> "Measurement":
        """Put together what the clients have counted; there is at least one."""
        examples: dict[str, str] = {}
        errors: Counter[str] = Counter()
        for tally in tallies:
            errors.update(tally.errors)
            examples = tally.examples | examples
        return cls(
            operation=operation,
            sessions=sessions,
            clients=len(tallies),
            repeat=repeat,
            seconds=max(tally.ended for tally in tallies) - min(tally.began for tally in tallies),
            cpu=sum(tally.cpu for tally in tallies),
            durations=tuple(sorted(duration for tally in tallies for duration in tally.durations)),
            errors=dict(errors.most_common()),
            examples=examples,
            left_out=sum(tally.left_out for tally in tallies),
            full_handshakes=sum(tally.full_handshakes for tally in tallies),
            resumed_handshakes=sum(tally.resumed_handshakes for tally in tallies),
        )

    @property
    def per_minute(self) -> float:
        """Operations a minute that succeeded, of all clients together."""
        return 60 * len(self.durations) / self.seconds if self.seconds else 0.0

    @property
    def faultless(self) -> bool:
        """Whether every operation succeeded."""
        return not self.errors and not self.left_out

    def percentile(self, share: float) -> float | None:
        """The duration, in seconds, that this share of operations stays within; None where none succeeded."""
        if not self.durations:
            return None
        return self.durations[min(int(share * len(self.durations)), len(self.durations) - 1)]

    def as_json(self) -> dict[str, Any]:
        """The measurement as ``--json`` writes it; durations are in milliseconds, rounded."""
        return {
            "operation": self.operation,
            "sessions": self.sessions,
            "clients": self.clients,
            "repeat": self.repeat,
            "operations": len(self.durations),
            "operations_per_minute": round(self.per_minute, 1),
            "seconds": round(self.seconds, 6),
            "p50_ms": _milliseconds(self.percentile(0.5)),
            "p99_ms": _milliseconds(self.percentile(0.99)),
            "full_handshakes": self.full_handshakes,
            "resumed_handshakes": self.resumed_handshakes,
            "left_out": self.left_out,
            "errors": [
                {"kind": kind, "count": count, "example": self.examples.get(kind, "")}
                for kind, count in self.errors.items()
            ],
        }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
