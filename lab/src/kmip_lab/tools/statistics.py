"""Percentiles, means and medians of measurements."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of values that were measured repeatedly, and their number."""

    median: float
    least: float
    greatest: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Return the spread of values; None without any."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1], len(found)) if found else None

    def times(self, factor: float) -> "Spread":
        """Return the spread in another unit."""
        return Spread(self.median * factor, self.least * factor, self.greatest * factor, self.count)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value that this share of the sorted values stays within, a value that was measured; None of none."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


def mean(values: Iterable[float]) -> float:
    """Return the mean; 0 of none."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are not None; None without any."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None
