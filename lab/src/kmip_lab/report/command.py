"""The command ``report``: measure, and write the page."""

import os
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio
from OpenSSL import SSL

from gateway.errors import GatewayError
from kmip_lab.report import charts, page
from kmip_lab.report.cases import CASES, OPERATIONS
from kmip_lab.report.costs import factor
from kmip_lab.report.experiment import Settings, Step, run
from kmip_lab.report.results import ReportPoint, Results
from kmip_lab.speed.options import clients_option
from kmip_lab.tools.interrupts import run_until_signal
from kmip_lab.tools.progress import progress_bar

_FILE: Final = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--scale",
    default=6.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Divide costs and repeats by this; 1 is the note's own size, and takes four hours with all ten clients.",
)
@clients_option("1-10")
@click.option(
    "--only",
    "operations",
    multiple=True,
    type=click.Choice(list(OPERATIONS)),
    help="Measure this operation; may be repeated. More than ten clients are measured with get in any case, and "
    "replication with create, unless --note-only is given.",
)
@click.option("--note-only", is_flag=True, help="Leave out more than ten clients, and replication.")
@click.option(
    "--directory",
    default="docs",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for speed-report.md; its charts are written into charts/.",
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep the results in this JSON file, from the first result on.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Measure nothing, and write the page from such a file.",
)
def report(
    scale: float,
    clients: list[int],
    operations: tuple[str, ...],
    *,
    note_only: bool,
    directory: Path,
    save: Path | None,
    source: Path | None,
) -> None:
    """Repeat the application note's experiment on simulated key managers, and write a page with tables and charts.

    Two masters and two standbys that replicate, and gateways before them; five operations, the note's four
    configurations and two with the gateway. Then more than ten clients, and kinds of replication. Nothing else should
    run on the machine meanwhile.
    """
    settings = Settings(
        scale, operations or list(OPERATIONS), clients, **({"beyond": (), "replication": ()} if note_only else {})
    )
    try:
        results = Results.read(source) if source is not None else None
        charts.check()
        results = results or _measure(settings, save)
        charts.write(results, directory / "charts")
        (directory / "speed-report.md").write_text(page.write(results))
    except GatewayError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}; choose another directory") from None
    click.echo(directory / "speed-report.md")
    errors = sum(point.errors for point in results.points)
    if errors:
        click.echo(f"{errors} operations failed: see the page", err=True)
        sys.exit(1)


def _measure(settings: Settings, save: Path | None) -> Results:
    """Measure everything, with progress on stderr; the file ``save`` holds the results so far at any time."""
    results = Results(
        scale=settings.scale,
        repeat=settings.least_repeat,
        factors={name: factor(name, settings.scale) for name in settings.measured()},
        environment=_environment(),
    )
    if save is not None:
        results.write(save)  # fails before the first measurement, not after it
    click.echo(f"This takes about {_about(settings.seconds())}, and some more to start and end programs.", err=True)
    with progress_bar() as progress:
        task = progress.add_task("starting", total=len(settings.plan()))

        def begin(step: Step) -> None:
            words = f"{step.operation}, {CASES[step.case].title}, {step.clients} clients {step.variant}"
            progress.update(task, description=words)

        def keep(point: ReportPoint) -> None:
            results.points.append(point)
            if save is not None:
                results.write(save)
            progress.advance(task)

        if trio.run(run_until_signal, partial(run, settings, begin, keep)) is None:
            raise click.Abort
    return results


def _about(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return "a minute" if minutes == 1 else f"{minutes} minutes"


def _environment() -> dict[str, str]:
    """Return the properties of the machine that the numbers depend on, without a name or a date."""
    return {
        "processors": str(os.cpu_count()),
        "Python": platform.python_version(),
        "OpenSSL": SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode().split()[1],
        "system": f"{platform.system()} {platform.machine()}",
    }
