"""Tallies: counters and histograms for what every request counts, at the price of an addition.

Those of prometheus-client lock, for threads that this process does not have, and check what they are, at each call.
These count in plain numbers, and become its samples when they are scraped.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

_INFINITY: Final = float("inf")


class Count:
    """One counter: things that happened."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """One more."""
        self.value += 1


class Times:
    """One histogram, of seconds; ``bounds`` are those of its buckets, each included."""

    __slots__ = ("_bounds", "_buckets", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """One that took so long."""
        self._buckets[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """How many took no longer than each bound, as Prometheus writes them."""
        bounds = (*self._bounds, _INFINITY)
        return [(_written(bound), count) for bound, count in zip(bounds, accumulate(self._buckets), strict=True)]


def _written(bound: float) -> str:
    text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
    return text


_Child = TypeVar("_Child")


class _Family(Collector, Generic[_Child]):
    """All of one name: one for each combination of labels, made when it is asked for."""

    def __init__(self, name: str, about: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._about = about
        self._labels = labels
        self._children: dict[tuple[str, ...], _Child] = {}
        registry.register(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}: {len(self._children)} children>"

    def labels(self, *values: str) -> _Child:
        """The one with these values, in the order of the labels' names."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make()
        return child

    def _make(self) -> _Child:
        raise NotImplementedError


class Counts(_Family[Count]):
    """A family of counters, in a registry."""

    def _make(self) -> Count:
        return Count()

    def collect(self) -> Iterator[Metric]:
        """All of them, as samples."""
        family = CounterMetricFamily(self._name, self._about, labels=self._labels)
        for values, count in self._children.items():
            family.add_metric(values, count.value)
        yield family


class Reading(Collector):
    """A counter that is kept elsewhere, and read when it is scraped."""

    def __init__(self, name: str, about: str, registry: CollectorRegistry) -> None:
        self._name = name
        self._about = about
        self._read: Callable[[], float] = float
        registry.register(self)

    def __repr__(self) -> str:
        return f"<Reading {self._name}: {self._read()}>"

    def set_function(self, read: Callable[[], float]) -> None:
        """Have it read by this."""
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """It, as it is now."""
        yield CounterMetricFamily(self._name, self._about, value=self._read())


class Timings(_Family[Times]):
    """A family of histograms, in a registry; ``bounds`` are their buckets', in seconds."""

    def __init__(
        self, name: str, about: str, labels: Sequence[str], registry: CollectorRegistry, bounds: Sequence[float]
    ) -> None:
        self._bounds = bounds
        super().__init__(name, about, labels, registry)

    def _make(self) -> Times:
        return Times(self._bounds)

    def collect(self) -> Iterator[Metric]:
        """All of them, as samples."""
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        for values, times in self._children.items():
            family.add_metric(values, times.buckets(), times.sum)
        yield family
