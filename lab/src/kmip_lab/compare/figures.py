"""The figures of comparisons: medians and ranges over rounds, ratios within rounds, and which rates count.

Times move by a fifth from run to run on a shared machine, so that two proxies are compared round by round, where they
ran one after the other, and the median of these ratios counts. From one day to the next even ratios move, so that
several comparisons can be gathered: then the range is that of their medians.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from kmip_lab.compare.cases import CASES
from kmip_lab.compare.load import LoadResult
from kmip_lab.compare.proxies import DIRECT
from kmip_lab.tools.statistics import Spread

#: A proxy's rate counts if load generator and backends alone are faster than the fastest proxy by this factor.
HEADROOM: Final = 2.0


@dataclass(frozen=True)
class Sample:
    """One run of a case on a proxy."""

    case: str
    proxy: str
    round: int
    measured: LoadResult


Value = Callable[[LoadResult], float | None]


def rate(measured: LoadResult) -> float | None:
    """Return operations a second."""
    return measured.operations / measured.seconds if measured.seconds else None


def cpu(measured: LoadResult) -> float | None:
    """Return the proxy's CPU seconds for one operation; None without a proxy."""
    return measured.cpu / measured.operations if measured.operations and measured.cpu else None


def core_cpu(measured: LoadResult) -> float | None:
    """Return the CPU seconds of the core of a gateway with TLS workers for one operation; None without workers."""
    return measured.core_cpu / measured.operations if measured.operations and measured.core_cpu else None


def worker_cpu(measured: LoadResult) -> float | None:
    """Return the CPU seconds of all TLS workers together for one operation; None without workers."""
    return measured.worker_cpu / measured.operations if measured.operations and measured.worker_cpu else None


def p50(measured: LoadResult) -> float | None:
    """Return the median duration in seconds."""
    return measured.p50 or None


def p99(measured: LoadResult) -> float | None:
    """Return the duration in seconds that 99 of 100 operations stay within."""
    return measured.p99 or None


def memory(measured: LoadResult) -> float | None:
    """Return bytes for one idle client connection."""
    return measured.memory or None


class _Comparison:
    """The samples of one comparison. Each method returns a number for each round that measured it."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._found = {(sample.case, sample.proxy, sample.round): sample.measured for sample in samples}
        self._rounds = sorted({sample.round for sample in samples})

    def values(self, case: str, proxy: str, value: Value) -> list[float]:
        """Return a proxy's values."""
        found = (self._value(case, proxy, number, value) for number in self._rounds)
        return [each for each in found if each is not None]

    def ratios(
        self, case: str, proxy: str, others: Sequence[str], value: Value, whole: Value, *, best: str
    ) -> list[float]:
        """Return the ratios of a proxy's ``value`` to ``whole`` of the best of ``others``."""
        choose = min if best == "min" else max
        ratios = []
        for number in self._rounds:
            mine = self._value(case, proxy, number, value)
            theirs = [found for name in others if (found := self._value(case, name, number, whole))]
            if mine is not None and theirs:
                ratios.append(mine / choose(theirs))
        return ratios

    def differences(self, case: str, proxy: str, other: str, value: Value) -> list[float]:
        """Return the values of ``proxy`` less those of ``other``."""
        pairs = [(self._value(case, proxy, n, value), self._value(case, other, n, value)) for n in self._rounds]
        return [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]

    def _value(self, case: str, proxy: str, number: int, value: Value) -> float | None:
        measured = self._found.get((case, proxy, number))
        return None if measured is None else value(measured)


class Figures:
    """All samples of one comparison, or of several comparisons that are gathered.

    A spread is that over the rounds of one comparison; or that over the medians of several comparisons.
    """

    def __init__(self, *comparisons: Sequence[Sample]) -> None:
        self.samples = [sample for samples in comparisons for sample in samples]
        self._comparisons = [_Comparison(samples) for samples in comparisons]

    def proxies(self, case: str) -> list[str]:
        """Return the proxies that ran a case, in the order of their first runs."""
        return list(dict.fromkeys(sample.proxy for sample in self.samples if sample.case == case))

    def spread(self, case: str, proxy: str, value: Value) -> Spread | None:
        """Return the spread of a value; None if it was not measured."""
        return self._spread(lambda comparison: comparison.values(case, proxy, value))

    def median(self, case: str, proxy: str, value: Value) -> float | None:
        """Return the median of a value; None if it was not measured."""
        spread = self.spread(case, proxy, value)
        return None if spread is None else spread.median

    def ratio(
        self,
        case: str,
        proxy: str,
        others: Sequence[str],
        value: Value,
        *,
        whole: Value | None = None,
        best: str = "min",
    ) -> Spread | None:
        """Return the ratio of a value to the best of ``others`` in each round: the least, or with "max" the greatest.

        ``whole`` is the value of the others, if it is another one.
        """
        return self._spread(lambda comparison: comparison.ratios(case, proxy, others, value, whole or value, best=best))

    def difference(self, case: str, proxy: str, other: str, value: Value) -> Spread | None:
        """Return the difference: the value of ``proxy`` less that of ``other``."""
        return self._spread(lambda comparison: comparison.differences(case, proxy, other, value))

    def _spread(self, repeated: Callable[[_Comparison], list[float]]) -> Spread | None:
        found = [values for comparison in self._comparisons if (values := repeated(comparison))]
        return Spread.of(found[0] if len(self._comparisons) == 1 and found else map(statistics.median, found))

    def ceiling(self, case: str) -> float | None:
        """Return operations a second of load generator and free backends alone."""
        return self.median(CASES[case].ceiling, DIRECT, rate)

    def rates_count(self, case: str) -> bool:
        """True if the rates of a case are the proxies' own: if load and backends alone are twice as fast."""
        alone = self.ceiling(case)
        rates = [self.median(case, proxy, rate) for proxy in self.proxies(case) if proxy != DIRECT]
        fastest = max((found for found in rates if found is not None), default=None)
        return alone is not None and fastest is not None and alone >= HEADROOM * fastest

    def times_count(self, case: str) -> bool:
        """True if the times of a case are the proxies' own: of clients that never wait, times only repeat the rate."""
        return self.rates_count(case) or not CASES[case].compares_rates

    def problems(self) -> list[str]:
        """Return a line for each run with errors, or with full handshakes although sessions are resumed."""
        lines = []
        for sample in self.samples:
            run = f"{sample.case}, {sample.proxy}, round {sample.round + 1}"
            measured = sample.measured
            if measured.errors:
                lines.append(f"{run}: {measured.errors} errors beside {measured.operations} answers")
            if measured.full_handshakes:
                lines.append(f"{run}: {measured.full_handshakes} of {measured.operations} sessions were not resumed")
        return lines
