"""The marks that the gateway is held to: ratios and differences within one comparison, and their limits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kmip_lab.compare.cases import EVEN_RATE
from kmip_lab.compare.figures import Figures, cpu, memory, p50, rate
from kmip_lab.compare.proxies import DIRECT, GATEWAY, HAPROXY, NGINX


@dataclass(frozen=True)
class Mark:
    """One mark: how to find its value, and the limit. ``needs`` says what is missing where there is no value."""

    title: str
    value: Callable[[Figures], float | None]
    limit: float
    unit: str
    needs: str
    is_floor: bool = False

    def verdict(self, figures: Figures) -> "Verdict":
        """Whether it is met."""
        value = self.value(figures)
        met = None if value is None else (value >= self.limit if self.is_floor else value <= self.limit)
        return Verdict(self, value, met)


@dataclass(frozen=True)
class Verdict:
    """A mark, its value, and whether it is met; None is for what was not measured."""

    mark: Mark
    value: float | None
    met: bool | None

    def words(self) -> tuple[str, str, str, str]:
        """Title, value, limit and outcome, to be read."""
        mark = self.mark
        found = "-" if self.value is None else f"{self.value:.3g}{mark.unit}"
        limit = f"{'>=' if mark.is_floor else '<='} {mark.limit:g}{mark.unit}"
        outcome = {True: "met", False: "NOT met", None: f"not checked: {mark.needs}"}[self.met]
        return mark.title, found, limit, outcome


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


MARKS: Final = (
    Mark("fresh: CPU per Get / best of HAProxy and nginx", _fresh, 0.75, "", "case fresh, HAProxy or nginx"),
    Mark("hsm: uncached clients' rate / direct", _hsm, 8, " x", "case hsm, and a rate that counts", is_floor=True),
    Mark("kept: CPU per Get / nginx", _kept, 3.0, "", "case kept, nginx"),
    Mark(f"kept-even: CPU per Get / nginx at {EVEN_RATE:,} a second", _kept_even, 3.0, "", "case kept-even, nginx"),
    Mark("kept-1: p50 added by the gateway", _added, 0.4, " ms", "case kept-1"),
    Mark("idle: memory per client connection", _idle, 45, " KiB", "case idle"),
)


def verdicts(figures: Figures) -> list[Verdict]:
    """Of all marks."""
    return [mark.verdict(figures) for mark in MARKS]
