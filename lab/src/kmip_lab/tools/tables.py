"""Tables for a terminal and for Markdown pages, and the numbers in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from kmip_lab.tools.statistics import Spread

NONE: Final = "-"


@dataclass(frozen=True)
class TextTable:
    """One table: a title, the columns' names, the rows, and lines below. All columns but the first hold numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def as_markdown(self) -> str:
        """Return the table as a section of a Markdown page."""
        lines = markdown(self.columns, self.rows).rstrip("\n")
        return "\n".join([f"**{self.title}**", "", lines, *(f"\n{note}" for note in self.notes)])


def terminal(columns: Sequence[str], rows: Iterable[Sequence[str]], **options: Any) -> Table:
    """Return a table for a terminal; ``options`` are those of rich's Table."""
    table = Table(**options)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def show(console: Console, tables: Iterable[TextTable]) -> None:
    """Print tables to a terminal."""
    for table in tables:
        console.print(f"\n[bold]{table.title}[/bold]", highlight=False)
        console.print(terminal(table.columns, table.rows))
        for note in table.notes:
            console.print(note, highlight=False)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, with a line end behind every row."""
    lines = [columns, ["---", *(["---:"] * (len(columns) - 1))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float | None) -> str:
    """Round to a whole number, with commas between thousands; a dash for None."""
    return NONE if value is None else f"{value:,.0f}"


def fixed(value: float | None, digits: int, factor: float = 1) -> str:
    """Multiply by ``factor`` and round to so many digits behind the point; a dash for None."""
    return NONE if value is None else f"{value * factor:.{digits}f}"


def ranged(spread: Spread | None, digits: int, factor: float = 1) -> str:
    """Return the median, and behind it in parentheses the least and the greatest, rounded as by ``fixed``."""
    if spread is None:
        return NONE
    shown = spread.times(factor)
    return f"{shown.median:.{digits}f} ({shown.least:.{digits}f} to {shown.greatest:.{digits}f})"


def milliseconds(seconds: float | None) -> str:
    """Convert seconds to milliseconds, with the unit; a dash for None."""
    return NONE if seconds is None else f"{1000 * seconds:,.1f} ms"
