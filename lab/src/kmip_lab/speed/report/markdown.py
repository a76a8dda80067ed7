"""Numbers and tables, as the page writes them."""

from collections.abc import Iterable, Sequence


def number(value: float | None) -> str:
    """Rounded, with commas between thousands; a dash for none."""
    return "-" if value is None else f"{value:,.0f}"


def milliseconds(seconds: float | None) -> str:
    """Seconds, told in milliseconds; a dash for none."""
    return "-" if seconds is None else f"{1000 * seconds:,.1f} ms"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *(["---:"] * (len(header) - 1))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
