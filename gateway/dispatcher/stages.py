"""Stages: the times of one request on its way, for the log and for taps."""

from collections.abc import Sequence
from typing import NamedTuple


class Stages(NamedTuple):
    """The stages of a request, once it has ended; times are in seconds.

    ``tries`` at backends; ``tried``, the names of the backends in this order; ``queue``, waits for a session that was
    in use; ``connect``, waits until a session was opened or validated, or failed to; ``exchanging``, the time with the
    request at key managers.
    """

    tries: int
    tried: Sequence[str]
    queue: float
    connect: float
    exchanging: float


class StageTimes:
    """Adds up the times of a request that is under way; ``exchanges`` has the begin and the end of each."""

    __slots__ = ("connect", "exchanges", "queue")

    def __init__(self) -> None:
        self.queue = 0.0
        self.connect = 0.0
        self.exchanges: list[tuple[float, float]] = []

    def __repr__(self) -> str:
        return f"<StageTimes, {len(self.exchanges)} exchanges>"

    @property
    def exchanging(self) -> float:
        """The seconds with an exchange under way: exchanges that overlap, as hedges do, count once."""
        total, until = 0.0, float("-inf")
        for began, ended in sorted(self.exchanges):
            if ended > until:
                total += ended - max(began, until)
                until = ended
        return total
