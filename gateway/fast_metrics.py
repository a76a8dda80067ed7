"""Counters and histograms that cost the hot path an addition, and metrics that are read only when they are scraped.

The classes of prometheus-client take a lock at each call, for threads that this process does not have, and check their
arguments. The classes here keep plain numbers, and turn them into prometheus-client's samples during a scrape. All of
them are made with the arguments of the library's classes: name, help text, names of labels, and the registry.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

_INFINITY: Final = float("inf")


class FastCounter:
    """A counter of a FastCounterFamily; ``value`` begins at 0."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """Add 1."""
        self.value += 1


class FastHistogram:
    """A histogram of a FastHistogramFamily, in seconds; each bucket includes its upper bound."""

    __slots__ = ("_bounds", "_buckets", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Add a duration to its bucket and to the sum."""
        self._buckets[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return each upper bound, as Prometheus writes it, and how many durations did not exceed it."""
        bounds = (*self._bounds, _INFINITY)
        return [(_written(bound), count) for bound, count in zip(bounds, accumulate(self._buckets), strict=True)]


def _written(bound: float) -> str:
    text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
    return text


_Child = TypeVar("_Child")


class _Family(Collector, Generic[_Child]):
    """The metrics of one name: a child for each combination of label values, made at the first ``labels`` call."""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str], *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = labelnames
        self._children: dict[tuple[str, ...], _Child] = {}
        registry.register(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}: {len(self._children)} children>"

    def labels(self, *values: str) -> _Child:
        """Return the child with these label values, in the order of the labels' names. Keep it on the hot path."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make()
        return child

    def _make(self) -> _Child:
        raise NotImplementedError


class FastCounterFamily(_Family[FastCounter]):
    """The fast counters of a name, by label values."""

    def _make(self) -> FastCounter:
        return FastCounter()

    def collect(self) -> Iterator[Metric]:
        """Yield the counters as prometheus-client's samples."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for values, counter in self._children.items():
            family.add_metric(values, counter.value)
        yield family


class FastHistogramFamily(_Family[FastHistogram]):
    """The fast histograms of a name, by label values; ``buckets`` are upper bounds in seconds, without infinity."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        *,
        registry: CollectorRegistry,
        buckets: Sequence[float],
    ) -> None:
        self._buckets = buckets
        super().__init__(name, documentation, labelnames, registry=registry)

    def _make(self) -> FastHistogram:
        return FastHistogram(self._buckets)

    def collect(self) -> Iterator[Metric]:
        """Yield the histograms as prometheus-client's samples."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for values, histogram in self._children.items():
            family.add_metric(values, histogram.buckets(), histogram.sum)
        yield family


#: Label values, in the order of the labels' names, and the number that belongs to them.
Reading = tuple[Sequence[str], float]


class _Function(Collector):
    """A metric whose numbers are kept elsewhere, and read during a scrape. It has no samples before set_function."""

    _family: type[CounterMetricFamily | GaugeMetricFamily]

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = labelnames
        self._read: Callable[[], Iterable[Reading]] = tuple
        registry.register(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    def set_function(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Call ``read`` at each scrape for all samples of this metric."""
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield what the function returns as prometheus-client's samples."""
        family = self._family(self._name, self._documentation, labels=self._labelnames)
        for values, number in self._read():
            family.add_metric(values, number)
        yield family


class FunctionCounter(_Function):
    """A counter that is kept elsewhere: prometheus-client's own Counter has no ``set_function``."""

    _family = CounterMetricFamily


class FunctionGauge(_Function):
    """A gauge that is read for all its labels at once, so that a label disappears with the thing it stands for."""

    _family = GaugeMetricFamily
