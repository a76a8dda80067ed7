"""The comparison in words: tables for a terminal, the same in Markdown, and all of it as JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from kmip_lab.compare.cases import CASES, Case
from kmip_lab.compare.figures import HEADROOM, Figures, cpu, memory, p50, p99, rate
from kmip_lab.compare.marks import verdicts
from kmip_lab.compare.proxies import DIRECT, GATEWAY, HAPROXY, NGINX

_NONE: Final = "-"
_NOT_COUNTED: Final = (
    "What is in brackets does not count: the load and the backends limit the rates, and the times of clients that "
    "never wait are the rates in other words."
)
_COUNTS: Final = f"A proxy's rate counts where the fastest proxy reaches 1/{HEADROOM:g} of this at the most."
_ALONE: Final = (
    "Alone, load and backends do both ends of each handshake, on one processor where there are two. Behind the "
    "gateway the backends do none, so that the rule is stricter than it must be."
)
_QUEUES: Final = (
    "Each key manager does one thing at a time: p50 depends on how the ten clients happen to be split between the two, "
    "and says nothing where the rates are the same."
)


@dataclass(frozen=True)
class Sheet:
    """One table: a title, the columns' names, the rows, and lines to stand below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def sheets(figures: Figures) -> list[Sheet]:
    """All that is shown, as tables that are not empty."""
    made = [_alone(figures), *(_case(figures, case) for case in CASES.values()), _ratios(figures), _marks(figures)]
    return [sheet for sheet in made if sheet.rows]


def show(console: Console, shown: Iterable[Sheet]) -> None:
    """To a terminal."""
    for sheet in shown:
        console.print(f"\n[bold]{sheet.title}[/bold]", highlight=False)
        table = Table()
        for number, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
        for note in sheet.notes:
            console.print(note, highlight=False)


def markdown(shown: Iterable[Sheet]) -> str:
    """As tables of a Markdown page."""
    parts = []
    for sheet in shown:
        lines = [f"**{sheet.title}**", "", _line(sheet.columns), _line(["---", *["---:"] * (len(sheet.columns) - 1)])]
        lines += [_line(row) for row in sheet.rows]
        parts.append("\n".join([*lines, *(f"\n{note}" for note in sheet.notes)]))
    return "\n\n".join(parts)


def as_json(figures: Figures, about: Sequence[str]) -> str:
    """Every run as it was measured, in seconds and bytes, and the marks."""
    runs = [
        {"case": one.case, "proxy": one.proxy, "round": one.round, **asdict(one.measured)} for one in figures.samples
    ]
    marks = [
        {"mark": one.mark.title, "value": one.value, "limit": one.mark.limit, "met": one.met}
        for one in verdicts(figures)
    ]
    counts = {case: figures.rates_count(case) for case in CASES if figures.proxies(case)}
    return json.dumps({"about": list(about), "runs": runs, "rates_count": counts, "marks": marks}, indent=1)


def _alone(figures: Figures) -> Sheet:
    names = [name for name in ("fresh", "resumed", "kept") if figures.ceiling(name)]
    rows = [[CASES[name].title, _number(figures.ceiling(name), 1, 0)] for name in names]
    return Sheet("What load generator and free backends do alone", ("case", "Gets/s"), rows, [_COUNTS, _ALONE])


def _case(figures: Figures, case: Case) -> Sheet:
    names = figures.proxies(case.name)
    if case.work == "idle":
        rows = [[name, _number(figures.median(case.name, name, memory), 1 / 1024, 1)] for name in names]
        return Sheet(f"{case.name}: {case.title}", ("", "KiB each"), rows)
    rows = [_row(figures, case, name) for name in names]
    notes = []
    if names != [DIRECT] and not figures.times_count(case.name):
        notes.append(_NOT_COUNTED)
    if not case.backends.is_free:
        notes.append(_QUEUES)
    return Sheet(f"{case.name}: {case.title}", ("", "Gets/s", "p50 ms", "p99 ms", "CPU us/Get"), rows, notes)


def _row(figures: Figures, case: Case, name: str) -> list[str]:
    """What counts as it is, and what does not in brackets."""
    rate_counts = name == DIRECT or figures.rates_count(case.name)
    times_count = name == DIRECT or figures.times_count(case.name)
    return [
        name,
        _bracketed(_number(figures.median(case.name, name, rate), 1, 0), counts=rate_counts),
        _bracketed(_number(figures.median(case.name, name, p50), 1e3, 2), counts=times_count),
        _bracketed(_number(figures.median(case.name, name, p99), 1e3, 2), counts=times_count),
        _number(figures.median(case.name, name, cpu), 1e6, 0 if case.work != "kept" else 1),
    ]


def _bracketed(found: str, *, counts: bool) -> str:
    return found if counts or found == _NONE else f"({found})"


def _ratios(figures: Figures) -> Sheet:
    """The gateway's to the others': less is better for times and CPU, more for rates."""
    rows = []
    for case in CASES.values():
        if GATEWAY in figures.proxies(case.name):
            rows += _ratio_rows(figures, case)
    columns = ("the gateway's", "/ nginx", "/ HAProxy", "/ the best of both", "/ direct")
    notes = [
        "Medians of the ratios of each round. CPU, times and memory: less than 1 is the gateway's favour; rates: more."
    ]
    return Sheet("Ratios", columns, rows, notes)


def _ratio_rows(figures: Figures, case: Case) -> list[list[str]]:
    if case.work == "idle":
        kinds = [("memory", memory, "min")]
    else:
        kinds = [("CPU per Get", cpu, "min")]
        if figures.times_count(case.name):
            kinds += [("p50", p50, "min"), ("p99", p99, "min")]
        if figures.rates_count(case.name) and case.compares_rates:
            kinds.append(("rate", rate, "max"))
    rows = []
    for title, value, best in kinds:
        others = ((NGINX,), (HAPROXY,), (NGINX, HAPROXY), (DIRECT,))
        found = [figures.ratio(case.name, GATEWAY, each, value, best=best) for each in others]
        if any(each is not None for each in found):
            rows.append([f"{case.name}: {title}", *(_number(each, 1, 2) for each in found)])
    return rows


def _marks(figures: Figures) -> Sheet:
    return Sheet("Marks", ("mark", "found", "limit", ""), [verdict.words() for verdict in verdicts(figures)])


def _number(value: float | None, factor: float, digits: int) -> str:
    return _NONE if value is None else f"{value * factor:.{digits}f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
