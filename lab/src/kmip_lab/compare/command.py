"""The command ``compare``: the gateway beside HAProxy, nginx and no proxy at all."""

import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio
from OpenSSL import SSL
from rich.console import Console

from kmip_lab.compare import output, records
from kmip_lab.compare.cases import CASES, LoadCase
from kmip_lab.compare.figures import Figures, Sample
from kmip_lab.compare.proxies import (
    COMPILED,
    DIRECT,
    GATEWAY,
    INSTALL,
    PROXIES,
    build,
    gateway_name,
    interpreter,
    missing,
    program_name,
    version,
)
from kmip_lab.compare.records import Comparison
from kmip_lab.compare.runner import Plan
from kmip_lab.compare.runner import compare as run_all
from kmip_lab.tools.interrupts import run_until_signal
from kmip_lab.tools.progress import progress_bar
from kmip_lab.tools.tables import show
from kmip_lab.tools.usage import MachineUse

_BY_NAME: Final = [name for name in PROXIES if name != COMPILED]  # which are asked for by --proxy
_WORKER_CASES: Final = ("fresh", "resumed", "kept")  # if --tls-workers is given without --only
_QUIET: Final = 0.1  # processors that other programs may take of an idle machine; most of it is the kernel's network
_ABOUT_CASES: Final = "\b\nCases:\n" + "\n".join(f"  {case.name:10} {case.title}" for case in CASES.values())
_ABOUT_BY_NAME: Final = f"""\b
HAProxy and nginx come from Debian's packages. A proxy that is missing is left out:
  {INSTALL}
Their services may be stopped and disabled; both are run with configurations of
this command's own, on free ports, and end with it."""


def _numbers(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Return the numbers of a list with commas, each once. Raises BadParameter."""
    words = [] if text is None else text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise click.BadParameter(f"{text!r} is no list of numbers such as 0,1,2")
    return tuple(dict.fromkeys(int(word) for word in words))


@click.command(epilog=f"{_ABOUT_CASES}\n\n{_ABOUT_BY_NAME}")
@click.option(
    "--seconds", default=1.8, show_default=True, type=click.FloatRange(0.2), help="Measured time of each run."
)
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Runs of each case; medians are shown."
)
@click.option("--only", "names", multiple=True, type=click.Choice(list(CASES)), help="This case; may be repeated.")
@click.option(
    "--proxy",
    "proxies",
    multiple=True,
    type=click.Choice([*_BY_NAME, DIRECT]),
    help="This proxy, beside direct connections; may be repeated.",
)
@click.option(
    "--tls-workers",
    metavar="N,N,...",
    callback=_numbers,
    help="Run the gateway with each of these numbers of TLS workers, 0 for one process, side by side; by default the "
    "cases fresh, resumed and kept, and no other proxy.",
)
@click.option(
    "--compiled",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="Also run the compiled build of the gateway that is in this directory, such as build/compiled after "
    "`make wheel-compiled`.",
)
@click.option("--idle", default=1000, show_default=True, type=click.IntRange(1, 3000), help="Clients of the case idle.")
@click.option(
    "--tls", type=click.Choice(["1.2", "1.3"]), default="1.3", show_default=True, help="The clients' version of TLS."
)
@click.option("--pin/--no-pin", default=True, show_default=True, help="Give each proxy a processor of its own.")
@click.option("--json", "as_json", is_flag=True, help="Print every run, the ratios and the limits as JSON.")
@click.option("--markdown", is_flag=True, help="Print the tables in Markdown.")
@click.option(
    "--gather",
    is_flag=True,
    help="Measure nothing: read FILES that --json has written on several days or machines, and show the range of their "
    "medians.",
)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def compare(
    seconds: float,
    rounds: int,
    names: tuple[str, ...],
    proxies: tuple[str, ...],
    tls_workers: tuple[int, ...],
    compiled: Path | None,
    idle: int,
    tls: str,
    pin: bool,
    as_json: bool,
    markdown: bool,
    gather: bool,
    files: tuple[Path, ...],
) -> None:
    """Measure the gateway beside HAProxy, nginx and direct connections, on the same work.

    One process or thread each, mutual TLS on both sides, two key managers behind. Rates, times, and the proxies' own
    CPU time for each Get, on kept connections (kept) and on a new connection each (fresh), as medians over rounds and
    as ratios within them; then the limits that the gateway is held to.
    """
    if gather != bool(files):
        raise click.UsageError("--gather and files that --json has written belong together.")
    if gather:
        _show(records.read(files), as_json=as_json, markdown=markdown)
        return
    if tls_workers:
        names = names or _WORKER_CASES
        asked = [*map(gateway_name, tls_workers), *(name for name in proxies if name != GATEWAY), DIRECT]
    else:
        asked = [*(proxies or _BY_NAME), DIRECT]
    if compiled is not None:
        if "compiled" not in build(compiled).split(", "):
            raise click.BadParameter(f"{compiled} contains no compiled build of the gateway", param_hint="--compiled")
        asked.insert(1, COMPILED)
    absent = {name: why for name in asked if (why := missing(name)) is not None}
    installed = [name for name in dict.fromkeys(asked) if name not in absent]
    plan = Plan(
        _cases(names), installed, rounds, seconds, idle, is_tls_1_3=tls == "1.3", is_pinned=pin, compiled=compiled
    )
    about, use = _about(plan, absent), MachineUse()
    samples = _run(plan)
    others = use.of_others()
    about.append(f"Other programs took {others:.2f} of {os.cpu_count()} processors meanwhile.")
    if others > _QUIET:
        about.append("The machine was not idle: a limit that was met or missed may be otherwise on an idle machine.")
    _show([Comparison(about, samples)], as_json=as_json, markdown=markdown)


def _show(comparisons: Sequence[Comparison], *, as_json: bool, markdown: bool) -> None:
    """Print one comparison, or several gathered; and their problems to standard error."""
    figures = Figures(*(comparison.samples for comparison in comparisons))
    told = Counter(" ".join(comparison.about) for comparison in comparisons)
    about = [text if number == 1 else f"{number} comparisons. {text}" for text, number in told.items()]
    if as_json:
        click.echo(records.as_json(comparisons), nl=False)
    elif markdown:
        click.echo("\n\n".join(about) + "\n\n" + output.markdown(output.tables(figures)))
    else:
        console = Console()
        for line in about:
            console.print(line, highlight=False, soft_wrap=True)
        show(console, output.tables(figures))
    for line in figures.problems():
        click.echo(line, err=True)


def _cases(names: Sequence[str]) -> list[LoadCase]:
    """Return the cases of these names, or all, in the order of the table."""
    return [case for case in CASES.values() if not names or case.name in names]


def _run(plan: Plan) -> list[Sample]:
    with progress_bar(is_sparing=True) as progress:
        task = progress.add_task("starting", total=plan.steps())
        begun = 0

        def on_run(description: str) -> None:
            nonlocal begun
            progress.update(task, description=description, completed=begun)
            begun += 1

        samples = trio.run(run_until_signal, partial(run_all, plan, on_run))
    if samples is None:
        raise click.Abort
    return samples


def _about(plan: Plan, absent: dict[str, str]) -> list[str]:
    """Return lines about the machine and the programs, and about proxies that are missing."""
    programs = [program_name(name) for name in plan.proxies]
    library = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode().split()[1]
    versions = [f"gateway on {interpreter()}, OpenSSL {library}"] if GATEWAY in programs else []
    versions += [version(name) for name in programs if name not in {GATEWAY, COMPILED, DIRECT}]
    rounds = f"{plan.rounds} rounds, {plan.seconds:g} s for each run"
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} processors{_model()}; {'; '.join(versions)}.",
        f"TLS 1.{3 if plan.is_tls_1_3 else 2}, ECDSA P-256; {rounds}.",
    ]
    lines += [f"{why}: it is left out. To install it: {INSTALL}" for why in absent.values()]
    return lines


def _model() -> str:
    """Return the name of the processors in parentheses, as the kernel has it, or nothing if it has none."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f" ({names[0]})" if names else ""
