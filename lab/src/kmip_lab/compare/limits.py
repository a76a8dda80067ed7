"""The limits that the gateway is held to: ratios and differences within one comparison."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kmip_lab.compare.cases import EVEN_RATE
from kmip_lab.compare.figures import Figures, Value, core_cpu, cpu, memory, p50, rate
from kmip_lab.compare.proxies import DIRECT, GATEWAY, HAPROXY, NGINX, tls_workers
from kmip_lab.tools.statistics import median


@dataclass(frozen=True)
class FigureLimit:
    """One limit, and how to find the value. ``needs`` says which runs are missing if there is no value."""

    title: str
    value: Callable[[Figures], float | None]
    bound: float
    unit: str
    needs: str
    is_floor: bool = False

    def check(self, figures: Figures) -> "LimitCheck":
        """Compare the value with the limit."""
        value = self.value(figures)
        met = None if value is None else (value >= self.bound if self.is_floor else value <= self.bound)
        return LimitCheck(self, value, met)


@dataclass(frozen=True)
class LimitCheck:
    """A limit, the measured value, and the outcome; both are None without measurements."""

    limit: FigureLimit
    value: float | None
    met: bool | None

    def words(self) -> tuple[str, str, str, str]:
        """Return title, value, bound and outcome as text."""
        limit = self.limit
        found = "-" if self.value is None else f"{self.value:.3g}{limit.unit}"
        bound = f"{'>=' if limit.is_floor else '<='} {limit.bound:g}{limit.unit}"
        outcome = {True: "met", False: "NOT met", None: f"not checked: {limit.needs}"}[self.met]
        return limit.title, found, bound, outcome


def _fresh(figures: Figures) -> float | None:
    return figures.ratio("fresh", GATEWAY, (HAPROXY, NGINX), cpu)


def _hsm(figures: Figures) -> float | None:
    return figures.ratio("hsm", GATEWAY, (DIRECT,), rate) if figures.rates_count("hsm") else None


def _kept(figures: Figures) -> float | None:
    return figures.ratio("kept", GATEWAY, (NGINX,), cpu)


def _kept_even(figures: Figures) -> float | None:
    return figures.ratio("kept-even", GATEWAY, (NGINX,), cpu)


def _added(figures: Figures) -> float | None:
    seconds = figures.difference("kept-1", GATEWAY, DIRECT, p50)
    return None if seconds is None else seconds * 1e3


def _idle(figures: Figures) -> float | None:
    size = figures.median("idle", GATEWAY, memory)
    return None if size is None else size / 1024


def _workers(case: str, part: Value) -> Callable[[Figures], float | None]:
    """Return the ratio of ``part`` of the gateways with TLS workers to the CPU of one process: the greatest median."""

    def value(figures: Figures) -> float | None:
        names = [name for name in figures.proxies(case) if tls_workers(name)]
        medians = [median(figures.ratios_of_parts(case, name, GATEWAY, part, cpu)) for name in names]
        return max((found for found in medians if found is not None), default=None)

    return value


_NEEDS_WORKERS: Final = "--tls-workers 0,1,2"

LIMITS: Final = (
    FigureLimit("fresh: CPU per Get / best of HAProxy and nginx", _fresh, 0.75, "", "case fresh, HAProxy or nginx"),
    FigureLimit(
        "hsm: uncached clients' rate / direct", _hsm, 8, " x", "case hsm, and a rate that counts", is_floor=True
    ),
    FigureLimit("kept: CPU per Get / nginx", _kept, 3.0, "", "case kept, nginx"),
    FigureLimit(
        f"kept-even: CPU per Get / nginx at {EVEN_RATE:,} a second", _kept_even, 3.0, "", "case kept-even, nginx"
    ),
    FigureLimit("kept-1: p50 added by the gateway", _added, 0.4, " ms", "case kept-1"),
    FigureLimit("idle: memory per client connection", _idle, 45, " KiB", "case idle"),
    FigureLimit("fresh: CPU of the core / one process", _workers("fresh", core_cpu), 0.15, "", _NEEDS_WORKERS),
    FigureLimit("kept: CPU of the core / one process", _workers("kept", core_cpu), 0.6, "", _NEEDS_WORKERS),
    FigureLimit("kept: CPU with TLS workers / one process", _workers("kept", cpu), 1.7, "", _NEEDS_WORKERS),
)


def checks(figures: Figures) -> list[LimitCheck]:
    """LimitCheck all limits."""
    return [limit.check(figures) for limit in LIMITS]
