"""What was measured, and what may be said of it: medians over rounds, ratios within rounds, and which rates count.

Times move by a fifth from run to run on a shared machine, so that two proxies are compared round by round, where they
ran one after the other, and the median of these ratios counts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from kmip_lab.compare.cases import CASES
from kmip_lab.compare.load import Measured
from kmip_lab.compare.proxies import DIRECT

#: How much faster load generator and backends must be alone than the fastest proxy, for its rate to be its own.
HEADROOM: Final = 2.0


@dataclass(frozen=True)
class Sample:
    """One run: ``proxy`` did ``case`` in this round."""

    case: str
    proxy: str
    round: int
    measured: Measured


Value = Callable[[Measured], float | None]


def rate(measured: Measured) -> float | None:
    """Operations a second."""
    return measured.operations / measured.seconds if measured.seconds else None


def cpu(measured: Measured) -> float | None:
    """The proxy's CPU seconds for one operation; None without a proxy."""
    return measured.cpu / measured.operations if measured.operations and measured.cpu else None


def p50(measured: Measured) -> float | None:
    """Seconds that half of the operations were faster than."""
    return measured.p50 or None


def p99(measured: Measured) -> float | None:
    """Seconds that 99 of 100 operations were faster than."""
    return measured.p99 or None


def memory(measured: Measured) -> float | None:
    """Bytes for one idle client connection."""
    return measured.memory or None


class Figures:
    """All samples of one comparison."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._found = {(sample.case, sample.proxy, sample.round): sample.measured for sample in samples}
        self._rounds = sorted({sample.round for sample in samples})

    def proxies(self, case: str) -> list[str]:
        """Who took part in a case, in the order of their first run."""
        return list(dict.fromkeys(sample.proxy for sample in self.samples if sample.case == case))

    def median(self, case: str, proxy: str, value: Value) -> float | None:
        """Over the rounds; None where it was not measured."""
        return _median(self._value(case, proxy, number, value) for number in self._rounds)

    def ratio(self, case: str, proxy: str, others: Iterable[str], value: Value, *, best: str = "min") -> float | None:
        """To the best of the others, which is their least value or, with "max", their greatest."""
        names = tuple(others)
        choose = min if best == "min" else max
        ratios = []
        for number in self._rounds:
            mine = self._value(case, proxy, number, value)
            theirs = [found for name in names if (found := self._value(case, name, number, value))]
            if mine is not None and theirs:
                ratios.append(mine / choose(theirs))
        return _median(ratios)

    def difference(self, case: str, proxy: str, other: str, value: Value) -> float | None:
        """Proxy less other."""
        pairs = [(self._value(case, proxy, n, value), self._value(case, other, n, value)) for n in self._rounds]
        return _median(mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None)

    def ceiling(self, case: str) -> float | None:
        """Operations a second of load generator and free backends alone."""
        return self.median(CASES[case].ceiling, DIRECT, rate)

    def rates_count(self, case: str) -> bool:
        """Whether the rates of a case are the proxies' own: whether load and backends are twice as fast alone."""
        alone = self.ceiling(case)
        rates = [self.median(case, proxy, rate) for proxy in self.proxies(case) if proxy != DIRECT]
        fastest = max((found for found in rates if found is not None), default=None)
        return alone is not None and fastest is not None and alone >= HEADROOM * fastest

    def times_count(self, case: str) -> bool:
        """Whether the times of a case are the proxies' own: of clients that never wait, they are the rate again."""
        return self.rates_count(case) or not CASES[case].compares_rates

    def troubles(self) -> list[str]:
        """What should not have happened, one line each: errors, and full handshakes where sessions are resumed."""
        lines = []
        for sample in self.samples:
            where = f"{sample.case}, {sample.proxy}, round {sample.round + 1}"
            measured = sample.measured
            if measured.errors:
                lines.append(f"{where}: {measured.errors} errors beside {measured.operations} answers")
            if measured.full_handshakes:
                lines.append(f"{where}: {measured.full_handshakes} of {measured.operations} sessions were not resumed")
        return lines

    def _value(self, case: str, proxy: str, number: int, value: Value) -> float | None:
        measured = self._found.get((case, proxy, number))
        return None if measured is None else value(measured)


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return median(found) if found else None
