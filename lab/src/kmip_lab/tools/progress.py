"""A bar on standard error that shows how far a measurement has come."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def progress_bar(*, is_sparing: bool = False) -> Progress:
    """Return a bar, to be shown for a block.

    A sparing bar is drawn once a second, only on a terminal, and removed at the end: drawing takes processor time from
    the measurement.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    if is_sparing:
        is_off = not console.is_terminal
        return Progress(*columns, console=console, transient=True, refresh_per_second=1, disable=is_off)
    return Progress(*columns, console=console)
