"""Counters and histograms that cost the hot path an addition, and metrics that are read only when they are scraped.

The classes of prometheus-client take a lock at each call, for threads that this process does not have, and check their
arguments. The classes here keep plain numbers. All of them are made with the arguments of the library's classes: name,
help text, names of labels, and the registry.

A scrape has their samples as text from ``text``, the same text as prometheus-client's ``generate_latest``, in a tenth
of its time: labels are written once for each child. The samples of ``collect`` are for everything else.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import ClassVar, Final, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

_INFINITY: Final = float("inf")
_PLAIN: Final = 1e6  # numbers below it are written without an exponent
_LINES: Final = 200  # of one text: some 0.2 ms


class FastCounter:
    """A counter of a FastCounterFamily; ``value`` begins at 0."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``."""
        self.value += amount


class FastHistogram:
    """A histogram of a FastHistogramFamily; each bucket includes its upper bound.

    ``counts`` are the numbers of values by bucket, not added up.
    """

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Add a value to its bucket and to the sum."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: Sequence[float], total: float) -> None:
        """Add values in ascending order, whose sum is ``total``: bounds are looked up among them, not each value."""
        counted = 0
        for index, bound in enumerate(self._bounds):
            reached = bisect_right(values, bound, counted)
            self.counts[index] += reached - counted
            counted = reached
        self.counts[-1] += len(values) - counted
        self.sum += total

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add what another histogram with the same bounds has counted."""
        self.counts = [one + other for one, other in zip(self.counts, counts, strict=True)]
        self.sum += total

    def buckets(self) -> list[tuple[str, float]]:
        """Return each upper bound, as Prometheus writes it, and how many values did not exceed it."""
        bounds = (*self._bounds, _INFINITY)
        return [(_written(bound), count) for bound, count in zip(bounds, accumulate(self.counts), strict=True)]


class ValueBuffer:
    """Values that requests ``append``, which are counted together once a second.

    That costs a request the addition to a list, and in all a quarter of what it would cost to count each value at once:
    sorting, adding up and searching are loops in C. ``counters`` count the values, ``sums`` add them up, and
    ``histograms`` have them all.
    """

    __slots__ = ("_counters", "_histograms", "_sums", "_values", "append")

    def __init__(
        self,
        histograms: Sequence[FastHistogram],
        *,
        counters: Sequence[FastCounter] = (),
        sums: Sequence[FastCounter] = (),
    ) -> None:
        self._histograms = histograms
        self._counters = counters
        self._sums = sums
        self._values: list[float] = []
        self.append = self._values.append

    def flush(self) -> None:
        """Count the values that were appended since the last call."""
        values = self._values
        if not values:
            return
        values.sort()
        total = sum(values)
        for counter in self._counters:
            counter.value += len(values)
        for counter in self._sums:
            counter.value += total
        for histogram in self._histograms:
            histogram.observe_all(values, total)
        values.clear()


def _written(number: float) -> str:
    if 0 <= number < _PLAIN:
        return repr(float(number))
    text: str = floatToGoString(number)  # type: ignore[no-untyped-call]
    return text


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


_Child = TypeVar("_Child")


class Rendered(Collector):
    """A metric that writes the text of its samples itself."""

    kind: ClassVar[str] = ""

    def __init__(self, name: str, documentation: str, labelnames: Sequence[str]) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)

    def text(self) -> Iterator[str]:
        """Yield the text of a scrape, in parts of a few hundred lines."""
        documentation = self._documentation.replace("\\", r"\\").replace("\n", r"\n")
        part = [f"# HELP {self._name} {documentation}\n# TYPE {self._name} {self.kind}\n"]
        for line in self._lines():
            part.append(line)
            if len(part) >= _LINES:
                yield "".join(part)
                part.clear()
        yield "".join(part)

    def _lines(self) -> Iterable[str]:
        raise NotImplementedError

    def _labels(self, values: Sequence[str], *more: tuple[str, str]) -> str:
        """Return the labels of a sample as text, in the order of their names."""
        pairs = sorted([*zip(self._labelnames, values, strict=True), *more])
        return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}" if pairs else ""


class _Family(Rendered, Generic[_Child]):
    """The metrics of one name: a child for each combination of label values, made at the first ``labels`` call."""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str], *, registry: CollectorRegistry
    ) -> None:
        super().__init__(name, documentation, labelnames)
        self._children: dict[tuple[str, ...], _Child] = {}
        registry.register(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}: {len(self._children)} children>"

    def labels(self, *values: str) -> _Child:
        """Return the child with these label values, in the order of the labels' names. Keep it on the hot path."""
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self._labelnames):
                raise ValueError(f"{self._name} has the labels {self._labelnames}, not {values}")
            child = self._children[values] = self._make(values)
        return child

    def forget(self, label: str, value: str) -> None:
        """Forget the children whose label has this value, if the metric has the label."""
        if label in self._labelnames:
            index = self._labelnames.index(label)
            self._children = {key: child for key, child in self._children.items() if key[index] != value}

    def children(self) -> Iterable[tuple[tuple[str, ...], _Child]]:
        """Return the label values and the child of each combination."""
        return self._children.items()

    def _make(self, values: Sequence[str]) -> _Child:
        raise NotImplementedError


class _WrittenCounter(FastCounter):
    """A counter, and the beginning of its line."""

    __slots__ = ("line",)

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line


class FastCounterFamily(_Family[_WrittenCounter]):
    """The fast counters of a name, by label values."""

    kind: ClassVar[str] = "counter"

    def _make(self, values: Sequence[str]) -> _WrittenCounter:
        return _WrittenCounter(f"{self._name}{self._labels(values)} ")

    def _lines(self) -> Iterable[str]:
        return [f"{child.line}{_written(child.value)}\n" for child in self._children.values()]

    def collect(self) -> Iterator[Metric]:
        """Yield the counters as prometheus-client's samples."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for values, counter in self._children.items():
            family.add_metric(values, counter.value)
        yield family


class FastGaugeFamily(FastCounterFamily):
    """The numbers of a name that rise and fall, by label values."""

    kind = "gauge"

    def collect(self) -> Iterator[Metric]:
        """Yield the numbers as prometheus-client's samples."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for values, gauge in self._children.items():
            family.add_metric(values, gauge.value)
        yield family


class _WrittenHistogram(FastHistogram):
    """A histogram, and the beginnings of its lines: of its buckets, of the count and of the sum."""

    __slots__ = ("lines",)

    def __init__(self, bounds: Sequence[float], lines: Sequence[str]) -> None:
        super().__init__(bounds)
        self.lines = lines

    def written(self) -> str:
        """Return its lines."""
        counts = list(accumulate(self.counts))
        numbers = [*map(_written, counts), _written(counts[-1]), _written(self.sum)]
        return "".join(f"{line}{number}\n" for line, number in zip(self.lines, numbers, strict=True))


class FastHistogramFamily(_Family[_WrittenHistogram]):
    """The fast histograms of a name, by label values; ``buckets`` are upper bounds, without infinity."""

    kind: ClassVar[str] = "histogram"

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        registry: CollectorRegistry,
        buckets: Sequence[float],
    ) -> None:
        self._buckets = buckets
        super().__init__(name, documentation, labelnames, registry=registry)

    def _make(self, values: Sequence[str]) -> _WrittenHistogram:
        bounds = [("le", _written(bound)) for bound in (*self._buckets, _INFINITY)]
        lines = [f"{self._name}_bucket{self._labels(values, bound)} " for bound in bounds]
        labels = self._labels(values)
        lines += [f"{self._name}_count{labels} ", f"{self._name}_sum{labels} "]
        return _WrittenHistogram(self._buckets, lines)

    def _lines(self) -> Iterable[str]:
        return (child.written() for child in self._children.values())

    def collect(self) -> Iterator[Metric]:
        """Yield the histograms as prometheus-client's samples."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for values, histogram in self._children.items():
            family.add_metric(values, histogram.buckets(), histogram.sum)
        yield family


#: Label values, in the order of the labels' names, and the number that belongs to them.
Reading = tuple[Sequence[str], float]
_FamilyClass = type[CounterMetricFamily | GaugeMetricFamily]


class _Function(Rendered):
    """A metric whose numbers are kept elsewhere, and read during a scrape. It has no samples before set_function."""

    _family: ClassVar[_FamilyClass]

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        super().__init__(name, documentation, labelnames)
        self._read: Callable[[], Iterable[Reading]] = tuple
        registry.register(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    def set_function(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Call ``read`` at each scrape for all samples of this metric."""
        self._read = read

    def _lines(self) -> Iterable[str]:
        return (f"{self._name}{self._labels(values)} {_written(number)}\n" for values, number in self._read())

    def collect(self) -> Iterator[Metric]:
        """Yield what the function returns as prometheus-client's samples."""
        family = self._family(self._name, self._documentation, labels=self._labelnames)
        for values, number in self._read():
            family.add_metric(values, number)
        yield family


class FunctionCounter(_Function):
    """A counter that is kept elsewhere: prometheus-client's own Counter has no ``set_function``."""

    kind: ClassVar[str] = "counter"
    _family: ClassVar[_FamilyClass] = CounterMetricFamily


class FunctionGauge(_Function):
    """A gauge that is read for all its labels at once, so that a label disappears with the thing it stands for."""

    kind: ClassVar[str] = "gauge"
    _family: ClassVar[_FamilyClass] = GaugeMetricFamily
