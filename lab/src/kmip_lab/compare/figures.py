"""The figures of a comparison: medians over rounds, ratios within rounds, and which rates count.

Times move by a fifth from run to run on a shared machine, so that two proxies are compared round by round, where they
ran one after the other, and the median of these ratios counts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from kmip_lab.compare.cases import CASES
from kmip_lab.compare.load import LoadResult
from kmip_lab.compare.proxies import DIRECT
from kmip_lab.tools.statistics import median

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


class Figures:
    """All samples of one comparison."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._found = {(sample.case, sample.proxy, sample.round): sample.measured for sample in samples}
        self._rounds = sorted({sample.round for sample in samples})

    def proxies(self, case: str) -> list[str]:
        """Return the proxies that ran a case, in the order of their first runs."""
        return list(dict.fromkeys(sample.proxy for sample in self.samples if sample.case == case))

    def median(self, case: str, proxy: str, value: Value) -> float | None:
        """Return the median over the rounds; None if the value was not measured."""
        return median(self._value(case, proxy, number, value) for number in self._rounds)

    def ratio(self, case: str, proxy: str, others: Iterable[str], value: Value, *, best: str = "min") -> float | None:
        """Return the median ratio of a value to the best of ``others``: the least, or with "max" the greatest."""
        names = tuple(others)
        choose = min if best == "min" else max
        ratios = []
        for number in self._rounds:
            mine = self._value(case, proxy, number, value)
            theirs = [found for name in names if (found := self._value(case, name, number, value))]
            if mine is not None and theirs:
                ratios.append(mine / choose(theirs))
        return median(ratios)

    def ratios_of_parts(self, case: str, proxy: str, other: str, part: Value, whole: Value) -> list[float]:
        """Return each round's ratio of ``part`` of a proxy to ``whole`` of ``other``, the least first."""
        pairs = [(self._value(case, proxy, n, part), self._value(case, other, n, whole)) for n in self._rounds]
        return sorted(mine / theirs for mine, theirs in pairs if mine is not None and theirs)

    def difference(self, case: str, proxy: str, other: str, value: Value) -> float | None:
        """Return the median difference: the value of ``proxy`` less that of ``other``."""
        pairs = [(self._value(case, proxy, n, value), self._value(case, other, n, value)) for n in self._rounds]
        return median(mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None)

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

    def _value(self, case: str, proxy: str, number: int, value: Value) -> float | None:
        measured = self._found.get((case, proxy, number))
        return None if measured is None else value(measured)
