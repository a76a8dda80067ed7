"""The result of a measurement: counts, durations, and errors; and the table that shows it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich import box
from rich.console import Console

from kmip_lab.tools.statistics import percentile
from kmip_lab.tools.tables import fixed, terminal

_SESSIONS: Final = {
    "kept": "sessions kept (cached)",
    "fresh": "a fresh session for every operation (not cached)",
    "resumed": "a fresh session for every operation, resuming the TLS session before it",
}


@dataclass(slots=True)
class Tally:
    """The counts of one client. Times are seconds of the machine's monotonic clock; all clients begin together.

    ``durations`` are of the operations that succeeded, each with its session if sessions are not kept. ``errors``
    counts by kind; ``examples`` has the text of the first error of each kind. ``left_out``: operations not tried.
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
        """Count an error of this kind, and keep the text of the first."""
        self.errors[kind] += 1
        self.examples.setdefault(kind, words)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One operation, measured with ``clients`` clients at once.

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
        """Add up the counts of the clients, of which there is at least one."""
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
        """True if every operation succeeded."""
        return not self.errors and not self.left_out

    def percentile(self, share: float) -> float | None:
        """Return the duration, in seconds, that this share of operations stays within; None if none succeeded."""
        return percentile(self.durations, share)

    @property
    def title(self) -> str:
        """Operation and number of clients, for messages."""
        return f"{self.operation}, {self.clients} {'client' if self.clients == 1 else 'clients'}"

    def row(self) -> tuple[str, ...]:
        """Return the cells of a table."""
        return (
            self.operation,
            str(self.clients),
            f"{self.per_minute:,.0f}",
            fixed(self.percentile(0.5), 2, 1e3),
            fixed(self.percentile(0.99), 2, 1e3),
            str(len(self.durations)),
            str(sum(self.errors.values())),
            str(self.full_handshakes),
            str(self.resumed_handshakes),
        )

    def faults(self) -> list[str]:
        """Return a line for each kind of error, and for operations that were left out."""
        lines = [f"{count} x {kind} ({self.examples[kind]})" for kind, count in self.errors.items()]
        if self.left_out:
            lines.append(f"{self.left_out} operations not tried, after 10 failures in a row")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return the measurement as ``--json`` prints it; durations are in milliseconds, rounded."""
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


def show(console: Console, measurements: Sequence[Measurement]) -> None:
    """Print a row for each measurement, of which there is at least one, and below them the errors by kind."""
    columns = ("operation", "clients", "per minute", "p50 ms", "p99 ms", "done", "errors", "handshakes", "resumed")
    title = _SESSIONS[measurements[0].sessions]
    rows = [measurement.row() for measurement in measurements]
    console.print(terminal(columns, rows, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0))
    for measurement in measurements:
        for fault in measurement.faults():
            console.print(f"{measurement.title}: {fault}", style="red", highlight=False, markup=False, soft_wrap=True)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
