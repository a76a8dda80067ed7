"""``kmip-lab speed``: the application note's s_speed, for any KMIP server."""

import json
import sys
from collections.abc import Callable
from typing import Any, Final

import click
from rich.console import Console

from gateway.errors import ConfigError
from kmip_lab.speed.campaign import Campaign
from kmip_lab.speed.errors import OperationError
from kmip_lab.speed.operations import OPERATIONS
from kmip_lab.speed.options import clients_option, target_of, target_options
from kmip_lab.speed.processes import ClientDiedError
from kmip_lab.speed.result import show
from kmip_lab.tools.interrupts import interrupted_by_sigterm

_MISTAKE: Final = 2  # exit status for wrong options or files


def _operation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, measurable in reversed(OPERATIONS.items()):
        option = click.option(f"--{name}", is_flag=True, help=f"{measurable.title}.")
        command = option(command)
    return command


@click.command()
@_operation_options
@click.option("--repeat", default=100, show_default=True, type=click.IntRange(1), help="Operations of each client.")
@click.option("--no-reuse", is_flag=True, help='A fresh session for every operation (the note\'s "not cached").')
@click.option("--resume", is_flag=True, help="As --no-reuse, but each session resumes the TLS session before it.")
@clients_option("1")
@target_options
@click.option(
    "--keep", is_flag=True, help="Leave the keys that were made; by default they are destroyed after measuring."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def speed(
    *,
    repeat: int,
    no_reuse: bool,
    resume: bool,
    clients: list[int],
    keep: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure operations a minute against a KMIP server, or a gateway, as the application note's s_speed does.

    The server and the client's certificate come from options, or from a qClient configuration file, given as @FILE;
    options override the file. Clients are processes; they begin together, and each repeats the operation.
    Sessions are kept open between operations unless --no-reuse or --resume is given. The keys that --get and --wrap
    need are made before. Operations a minute are those of all clients, from the common start to the end of the last.
    Ctrl-C and SIGTERM end the command: finished measurements are shown, and keys are destroyed.

    Exit status: 0; 1 if an operation failed or not everything was measured; 2 if options or files are wrong.
    """
    names = [name for name in OPERATIONS if given.pop(name.replace("-", "_"))]
    if not names:
        options = ", ".join(f"--{name}" for name in OPERATIONS)
        raise click.UsageError(f"nothing to measure; give one or more of {options}")
    try:
        target = target_of(given.pop("configuration"), **given)
    except ConfigError as error:
        for mistake in error.mistakes:
            click.echo(mistake, err=True)
        sys.exit(_MISTAKE)
    sessions = "resumed" if resume else "fresh" if no_reuse else "kept"
    campaign = Campaign(target, sessions, repeat, keep=keep)
    broken_off = None
    try:
        with interrupted_by_sigterm():
            campaign.all(names, clients)
    except KeyboardInterrupt:
        broken_off = "ended before everything was measured"
    except (OperationError, ClientDiedError) as error:
        broken_off = str(error)
    if as_json and (campaign.measurements or not broken_off):
        click.echo(json.dumps(campaign.as_json(), indent=2))
    elif campaign.measurements:
        show(Console(), campaign.measurements)
    for warning in campaign.warnings:
        click.echo(warning, err=True)
    if broken_off:
        raise click.ClickException(broken_off)
    sys.exit(0 if all(measurement.faultless for measurement in campaign.measurements) else 1)
