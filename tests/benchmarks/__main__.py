"""Instructions per request: against the committed baseline, and how they grow with what is large."""

import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Final, NamedTuple

import click
from OpenSSL import SSL
from rich.console import Console
from rich.table import Table

from tests.benchmarks.counting import CASES, count
from tests.benchmarks.serving import Size

_BASELINE: Final = Path(__file__).with_name("baseline.json")


class Growth(NamedTuple):
    """A field of Size, the sizes at which a Get is counted, and whether it must cost the same at all of them."""

    field: str
    sizes: tuple[int, ...]
    is_flat: bool = True
    case: str = "kept"


_GROWTH: Final = {
    "message": Growth("message", (0, 16_000, 200_000), is_flat=False, case="large"),
    "items": Growth("items", (1, 10, 100), is_flat=False, case="large"),
    "backends": Growth("backends", (1, 2, 4, 8, 16)),
    "identities": Growth("identities", (1, 20, 200), case="crowded"),
    "idle_clients": Growth("idle_clients", (0, 50, 200), case="crowded"),
    "pool": Growth("pool", (1, 20, 60), case="crowded"),
    "limits": Growth("limits", (0, 1)),
    "core_clients": Growth("idle_clients", (0, 200), case="crowded_core"),
    "worker_clients": Growth("idle_clients", (0, 200), case="crowded_worker"),
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
@click.option("--tolerance", default=3.0, show_default=True, help="Per cent by which costs that must be flat may grow.")
@click.argument("names", nargs=-1, type=click.Choice(list(_GROWTH)))
def growth(tolerance: float, names: tuple[str, ...]) -> None:
    """Count a Get on a kept connection at several sizes of everything that may be large.

    The exit status is 1 if the cost depends on a size on which it must not depend.
    """
    wanted = {
        f"{name}={size}": (grown.case, Size()._replace(**{grown.field: size}))
        for name, grown in _GROWTH.items()
        if not names or name in names
        for size in grown.sizes
    }
    counts = count(wanted)
    table = Table("size", "instructions per request", "change")
    not_flat = []
    for name, grown in _GROWTH.items():
        found = [counts[key] for key in wanted if key.startswith(f"{name}=")]
        for size, counted in zip(grown.sizes, found, strict=bool(found)):
            table.add_row(f"{name}={size}", f"{counted:,.0f}", f"{100 * (counted / found[0] - 1):+.1f} %")
        if found and grown.is_flat and max(found) > found[0] * (1 + tolerance / 100):
            not_flat.append(name)
    Console().print(table)
    if not_flat:
        sys.exit(f"growth: the cost of a Get depends on {', '.join(not_flat)}, by more than {tolerance:g} %")


def _build() -> str:
    """Return the versions of Python and OpenSSL, on which the counts depend."""
    openssl = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()
    return f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}, {openssl}"


if __name__ == "__main__":
    main()
