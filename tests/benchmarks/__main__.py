"""Instructions per request: against the committed baseline, and how they grow with what is large."""

import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Final

import click
from OpenSSL import SSL
from rich.console import Console
from rich.table import Table

from tests.benchmarks.counting import CASES, count
from tests.benchmarks.serving import Size

_BASELINE: Final = Path(__file__).with_name("baseline.json")

#: Quantities that may be large, and the sizes at which a Get on a kept connection is counted.
_GROWTH: Final[dict[str, tuple[int, ...]]] = {
    "message": (0, 16_000, 200_000),
    "items": (1, 10, 100),
    "backends": (1, 2, 4, 8),
    "identities": (1, 5, 20),
    "idle_clients": (0, 50),
    "pool": (1, 20),
}


@click.group()
def main() -> None:
    """Count instructions under valgrind. Absolute counts depend on the build of Python; compare them on one build."""
    if shutil.which("valgrind") is None:
        raise click.ClickException("valgrind is not installed")


@main.command()
@click.option("--update", is_flag=True, help="Take what is counted as the new baseline.")
@click.option("--tolerance", default=3.0, show_default=True, help="Per cent that a case may cost more.")
@click.argument("names", nargs=-1, type=click.Choice(list(CASES)))
def instructions(update: bool, tolerance: float, names: tuple[str, ...]) -> None:
    """Count each case, and fail if a case costs more than the baseline and the tolerance."""
    counts = count({name: (name, Size()) for name in names or CASES})
    baseline = json.loads(_BASELINE.read_text()) if _BASELINE.exists() else {}
    table = Table("case", "instructions", "baseline", "change")
    for name, counted in counts.items():
        before = baseline.get(name)
        change = f"{100 * (counted / before - 1):+.1f} %" if before else "new"
        table.add_row(name, f"{counted:,.0f}", f"{before:,}" if before else "", change)
    Console().print(table)
    if update:
        baseline.update({name: round(counted) for name, counted in counts.items()}, counted_on=_build())
        _BASELINE.write_text(json.dumps(baseline, indent=2) + "\n")
        return
    grown = [name for name, counted in counts.items() if counted > baseline.get(name, counted) * (1 + tolerance / 100)]
    if grown:
        elsewhere = (
            "" if baseline.get("counted_on") == _build() else f"; the baseline is that of {baseline['counted_on']}"
        )
        sys.exit(f"instructions: {', '.join(grown)} cost more than the baseline and {tolerance:g} %{elsewhere}")


@main.command()
@click.argument("names", nargs=-1, type=click.Choice(list(_GROWTH)))
def growth(names: tuple[str, ...]) -> None:
    """Count a Get on a kept connection at several sizes of everything that may be large."""
    wanted = {
        f"{name}={number}": ("large" if name in {"message", "items"} else "kept", Size()._replace(**{name: number}))
        for name, numbers in _GROWTH.items()
        if not names or name in names
        for number in numbers
    }
    table = Table("size", "instructions per request")
    for key, counted in count(wanted).items():
        table.add_row(key, f"{counted:,.0f}")
    Console().print(table)


def _build() -> str:
    """Return the versions of Python and OpenSSL, on which the counts depend."""
    openssl = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()
    return f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}, {openssl}"


if __name__ == "__main__":
    main()
