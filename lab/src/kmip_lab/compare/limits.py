"""The limits that the gateway is held to: ratios and differences within one comparison, or within several.

A limit is met if the whole range of what was measured meets it, and missed if none of the range does: a median alone
would turn one lucky day into a promise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from kmip_lab.compare.cases import CASES, EVEN_RATE
from kmip_lab.compare.figures import Figures, Value, core_cpu, cpu, memory, p50, rate
from kmip_lab.compare.proxies import COMPILED, DIRECT, GATEWAY, HAPROXY, NGINX, tls_workers
from kmip_lab.tools.statistics import Spread
from kmip_lab.tools.tables import NONE

_LEAST: Final = 3  # values whose range decides something
_IN_TIME: Final = 1e-3  # s; a proxy whose p50 at a given rate is longer works on several Gets at a time, at less CPU


class Outcome(Enum):
    """The outcome of a limit: the range is on one side of it, or on both, or was not measured."""

    MET = "met"
    MISSED = "missed"
    NOT_DECIDED = "not decided"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class FigureLimit:
    """One limit, and how to find the value. ``needs`` says which runs are missing if there is no value.

    The value is multiplied by ``factor`` to have the unit of the limit.
    """

    title: str
    value: Callable[[Figures], Spread | None]
    bound: float
    unit: str
    needs: str
    is_floor: bool = False
    factor: float = 1.0

    def check(self, figures: Figures) -> "LimitCheck":
        """Compare the range of the value with the limit."""
        measured = self.value(figures)
        found = None if measured is None else measured.times(self.factor)
        return LimitCheck(self, found, self._outcome(found))

    def _outcome(self, found: Spread | None) -> Outcome:
        if found is None:
            return Outcome.NOT_CHECKED
        if found.count < _LEAST:
            return Outcome.NOT_DECIDED
        best, worst = (found.greatest, found.least) if self.is_floor else (found.least, found.greatest)
        if self._meets(worst):
            return Outcome.MET
        return Outcome.NOT_DECIDED if self._meets(best) else Outcome.MISSED

    def _meets(self, value: float) -> bool:
        return value >= self.bound if self.is_floor else value <= self.bound


@dataclass(frozen=True)
class LimitCheck:
    """A limit, the spread of what was measured in the limit's unit, and the outcome."""

    limit: FigureLimit
    found: Spread | None
    outcome: Outcome

    def words(self) -> tuple[str, str, str, str, str]:
        """Return title, median, range, bound and outcome as text."""
        limit, found = self.limit, self.found
        bound = f"{'>=' if limit.is_floor else '<='} {limit.bound:g}{limit.unit}"
        if found is None:
            return limit.title, NONE, NONE, bound, f"{self.outcome.value}: {limit.needs}"
        outcome = self.outcome.value
        if found.count < _LEAST:
            outcome += f": {found.count} of {_LEAST} measurements"
        return limit.title, f"{found.median:.3g}{limit.unit}", _range(found), bound, outcome


def _range(found: Spread) -> str:
    return f"{found.least:.3g} to {found.greatest:.3g}"


def _added(figures: Figures, gateway: str) -> Spread | None:
    return figures.difference("kept-1", gateway, DIRECT, p50)


def _kept_even(figures: Figures, gateway: str) -> Spread | None:
    times = [figures.spread("kept-even", name, p50) for name in (gateway, NGINX)]
    if not all(time is not None and time.greatest <= _IN_TIME for time in times):
        return None
    return figures.ratio("kept-even", gateway, (NGINX,), cpu)


def _hsm(figures: Figures, gateway: str) -> Spread | None:
    return figures.ratio("hsm", gateway, (DIRECT,), rate) if figures.rates_count("hsm") else None


def _limits(gateway: str, build: str = "") -> tuple[FigureLimit, ...]:
    """Return the limits of a gateway of one process; ``build`` is a part of their titles."""

    def against(case: str, *others: str) -> Callable[[Figures], Spread | None]:
        return lambda figures: figures.ratio(case, gateway, others, cpu)

    return (
        FigureLimit(
            f"fresh{build}: CPU per Get / best of HAProxy and nginx",
            against("fresh", HAPROXY, NGINX),
            0.6,
            "",
            "case fresh, HAProxy or nginx",
        ),
        FigureLimit(
            f"resumed{build}: CPU per Get / best of HAProxy and nginx",
            against("resumed", HAPROXY, NGINX),
            0.5,
            "",
            "case resumed, HAProxy or nginx",
        ),
        FigureLimit(f"kept{build}: CPU per Get / nginx", against("kept", NGINX), 3.0, "", "case kept, nginx"),
        FigureLimit(
            f"kept-even{build}: CPU per Get / nginx at {EVEN_RATE:,} a second",
            lambda figures: _kept_even(figures, gateway),
            2.2,
            "",
            "case kept-even, nginx, and every p50 at most 1 ms",
        ),
        FigureLimit(
            f"kept-1{build}: p50 added by the gateway",
            lambda figures: _added(figures, gateway),
            0.09,
            " ms",
            "case kept-1",
            factor=1e3,
        ),
        FigureLimit(
            f"hsm{build}: uncached clients' rate / direct",
            lambda figures: _hsm(figures, gateway),
            8,
            " x",
            "case hsm, and a rate that counts",
            is_floor=True,
        ),
        FigureLimit(
            f"idle{build}: memory per client connection",
            lambda figures: figures.spread("idle", gateway, memory),
            36,
            " KiB",
            "case idle",
            factor=1 / 1024,
        ),
    )


def _workers(case: str, part: Value) -> Callable[[Figures], Spread | None]:
    """Return the ratio of ``part`` of the gateways with TLS workers to the CPU of one process: the greatest median."""

    def value(figures: Figures) -> Spread | None:
        names = [name for name in figures.proxies(case) if tls_workers(name)]
        spreads = [figures.ratio(case, name, (GATEWAY,), part, whole=cpu) for name in names]
        found = [spread for spread in spreads if spread is not None]
        return max(found, key=lambda spread: spread.median, default=None)

    return value


_NEEDS_WORKERS: Final = "--tls-workers 0,1,2"

LIMITS: Final = (
    *_limits(GATEWAY),
    FigureLimit("fresh: CPU of the core / one process", _workers("fresh", core_cpu), 0.15, "", _NEEDS_WORKERS),
    FigureLimit("kept: CPU of the core / one process", _workers("kept", core_cpu), 0.6, "", _NEEDS_WORKERS),
    FigureLimit("kept: CPU with TLS workers / one process", _workers("kept", cpu), 1.7, "", _NEEDS_WORKERS),
)


_LIMITS_COMPILED: Final = _limits(COMPILED, ", compiled")


def checks(figures: Figures) -> list[LimitCheck]:
    """Check all limits; those of the compiled build if it was measured."""
    has_compiled = any(COMPILED in figures.proxies(case) for case in CASES)
    return [limit.check(figures) for limit in (*LIMITS, *(_LIMITS_COMPILED if has_compiled else ()))]
