"""The output of a comparison: tables for a terminal, the same in Markdown, and the figures as JSON."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final

from kmip_lab.compare.cases import CASES, LoadCase
from kmip_lab.compare.figures import HEADROOM, Figures, core_cpu, cpu, memory, p50, p99, rate, worker_cpu
from kmip_lab.compare.limits import checks
from kmip_lab.compare.proxies import COMPILED, DIRECT, GATEWAY, HAPROXY, NGINX, tls_workers
from kmip_lab.tools.statistics import Spread
from kmip_lab.tools.tables import NONE, TextTable, fixed, ranged

_NOT_COUNTED: Final = (
    "Figures in brackets are limited by the load generator or the backends, not by the proxy; times of clients that "
    "never wait only repeat the rates."
)
_COUNTS: Final = f"A proxy's rate counts if the fastest proxy reaches 1/{HEADROOM:g} of this at the most."
_ALONE: Final = (
    "Alone, load and backends do both ends of each handshake, on one processor if the machine has two. Behind the "
    "gateway the backends do none, so that the rule is stricter than it must be."
)
_QUEUES: Final = (
    "Each key manager does one thing at a time: p50 depends on how the ten clients happen to be split between the two, "
    "and says nothing if the rates are the same."
)

_RANGES: Final = (
    "Medians of the ratios of each round, and their range in parentheses; of several comparisons, the median and the "
    "range of their medians."
)


def tables(figures: Figures) -> list[TextTable]:
    """Return all tables that are not empty."""
    cases = [_case(figures, case) for case in CASES.values()]
    made = [_alone(figures), *cases, _workers(figures), _ratios(figures), _limits(figures)]
    return [table for table in made if table.rows]


def markdown(shown: Iterable[TextTable]) -> str:
    """Return the tables as a part of a Markdown page."""
    return "\n\n".join(table.as_markdown() for table in shown)


def summary(figures: Figures) -> dict[str, Any]:
    """Return the ratios with their ranges and the limits as data for JSON; times are in seconds, as all figures."""
    limits = [
        {
            "limit": check.limit.title,
            "found": None if check.found is None else asdict(check.found),
            "bound": check.limit.bound,
            "outcome": check.outcome.value,
        }
        for check in checks(figures)
    ]
    ratios = {
        title: {column: asdict(spread) for column, spread in zip(_AGAINST, spreads, strict=True) if spread is not None}
        for case in CASES.values()
        for title, spreads in _case_ratios(figures, case)
    }
    counts = {case: figures.rates_count(case) for case in CASES if figures.proxies(case)}
    return {"rates_count": counts, "ratios": ratios, "limits": limits}


def _alone(figures: Figures) -> TextTable:
    names = [name for name in ("fresh", "resumed", "kept") if figures.ceiling(name)]
    rows = [[CASES[name].title, fixed(figures.ceiling(name), 0)] for name in names]
    return TextTable("Load generator and free backends alone", ("case", "Gets/s"), rows, [_COUNTS, _ALONE])


def _case(figures: Figures, case: LoadCase) -> TextTable:
    names = figures.proxies(case.name)
    title = f"{case.name}: {case.title}"
    if case.work == "idle":
        return TextTable(
            title,
            ("", "KiB each"),
            [[name, ranged(figures.spread(case.name, name, memory), 1, 1 / 1024)] for name in names],
        )
    rows = [_row(figures, case, name) for name in names]
    notes = []
    if names != [DIRECT] and not figures.times_count(case.name):
        notes.append(_NOT_COUNTED)
    if not case.backends.is_free:
        notes.append(_QUEUES)
    return TextTable(title, ("", "Gets/s", "p50 ms", "p99 ms", "CPU us/Get"), rows, notes)


def _row(figures: Figures, case: LoadCase, name: str) -> list[str]:
    """Return a proxy's figures; those that do not count are in brackets."""
    rate_counts = name == DIRECT or figures.rates_count(case.name)
    times_count = name == DIRECT or figures.times_count(case.name)
    return [
        name,
        _bracketed(fixed(figures.median(case.name, name, rate), 0), counts=rate_counts),
        _bracketed(fixed(figures.median(case.name, name, p50), 2, 1e3), counts=times_count),
        _bracketed(fixed(figures.median(case.name, name, p99), 2, 1e3), counts=times_count),
        ranged(figures.spread(case.name, name, cpu), 0 if case.work != "kept" else 1, 1e6),
    ]


def _workers(figures: Figures) -> TextTable:
    """Return the CPU time of core and TLS workers apart, beside that of one process that does all."""
    rows = []
    for case in CASES.values():
        for name in figures.proxies(case.name):
            if tls_workers(name) and case.work != "idle":
                digits = 0 if case.work != "kept" else 1
                parts = [fixed(figures.median(case.name, name, part), digits, 1e6) for part in _PARTS]
                alone = fixed(figures.median(case.name, GATEWAY, cpu), digits, 1e6)
                against = [
                    ranged(figures.ratio(case.name, name, (GATEWAY,), part, whole=cpu), 2) for part in (core_cpu, cpu)
                ]
                rows.append([f"{case.name}: {name}", *parts, alone, *against])
    columns = ("CPU us/Get", "core", "workers", "all", "one process", "core / one process", "all / one process")
    notes = ["Ratios are medians of the rounds' ratios, with their range. All: supervisor, core and TLS workers."]
    return TextTable("TLS workers", columns, rows, notes)


_PARTS: Final = (core_cpu, worker_cpu, cpu)


def _bracketed(found: str, *, counts: bool) -> str:
    return found if counts or found == NONE else f"({found})"


_AGAINST: Final = {
    "/ nginx": (NGINX,),
    "/ HAProxy": (HAPROXY,),
    "/ the best of both": (NGINX, HAPROXY),
    "/ direct": (DIRECT,),
    "compiled / source": (GATEWAY,),
}


def _ratios(figures: Figures) -> TextTable:
    rows = [
        [title, *(ranged(spread, 2) for spread in spreads)]
        for case in CASES.values()
        for title, spreads in _case_ratios(figures, case)
    ]
    notes = [_RANGES, "Less than 1 is better for CPU, times and memory, more for rates."]
    return TextTable("Ratios", ("the gateway's", *_AGAINST), rows, notes)


def _case_ratios(figures: Figures, case: LoadCase) -> Iterator[tuple[str, list[Spread | None]]]:
    """Yield title and ratios, in the order of _AGAINST, of each value of a case that is compared."""
    if case.work == "idle":
        kinds = [("memory", memory, "min")]
    else:
        kinds = [("CPU per Get", cpu, "min")]
        if figures.times_count(case.name):
            kinds += [("p50", p50, "min"), ("p99", p99, "min")]
        if figures.rates_count(case.name) and case.compares_rates:
            kinds.append(("rate", rate, "max"))
    for gateway, build in ((GATEWAY, ""), (COMPILED, ", compiled")):
        for title, value, best in kinds:
            found = [
                None if others == (gateway,) else figures.ratio(case.name, gateway, others, value, best=best)
                for others in _AGAINST.values()
            ]
            if any(each is not None for each in found):
                yield f"{case.name}{build}: {title}", found


def _limits(figures: Figures) -> TextTable:
    return TextTable("Limits", ("", "median", "range", "limit", ""), [check.words() for check in checks(figures)])
