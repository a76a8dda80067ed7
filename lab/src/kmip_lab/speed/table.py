"""How measurements are shown: a table, and what went wrong below it."""

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from kmip_lab.speed.result import Measurement

_SESSIONS: Final = {
    "kept": "sessions kept (cached)",
    "fresh": "a fresh session for every operation (not cached)",
    "resumed": "a fresh session for every operation, resuming the TLS session before it",
}


def show(console: Console, measurements: Sequence[Measurement]) -> None:
    """Print a row for each measurement, of which there is at least one, and the errors of all of them, by kind."""
    table = Table(title=_SESSIONS[measurements[0].sessions], title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("operation", no_wrap=True)
    for name in ("clients", "per minute", "p50 ms", "p99 ms", "done", "errors", "handshakes", "resumed"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in measurements:
        table.add_row(*_row(one))
    console.print(table)
    for one in measurements:
        for trouble in _troubles(one):
            console.print(f"{_about(one)}: {trouble}", style="red", highlight=False, markup=False, soft_wrap=True)


def _row(one: Measurement) -> tuple[str, ...]:
    return (
        one.operation,
        str(one.clients),
        f"{one.per_minute:,.0f}",
        _milliseconds(one.percentile(0.5)),
        _milliseconds(one.percentile(0.99)),
        str(len(one.durations)),
        str(sum(one.errors.values())),
        str(one.full_handshakes),
        str(one.resumed_handshakes),
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f}"


def _about(one: Measurement) -> str:
    return f"{one.operation}, {one.clients} {'client' if one.clients == 1 else 'clients'}"


def _troubles(one: Measurement) -> list[str]:
    lines = [f"{count} x {kind} ({one.examples[kind]})" for kind, count in one.errors.items()]
    if one.left_out:
        lines.append(f"{one.left_out} operations not tried, after 10 failures in a row")
    return lines
