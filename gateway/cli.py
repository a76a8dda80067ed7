"""Command line: ``kmip-gateway run`` and ``kmip-gateway check``."""

import gc
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

import click
import trio

from gateway import log, tls
from gateway.config import Config, load, summary, warnings
from gateway.core import Core
from gateway.errors import ConfigError, TlsError

_MISTAKE: Final = 2  # exit status for a mistake in the configuration
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_IGNORED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # scripts send these to have a service reload


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("kmip-gateway"), prog_name="kmip-gateway")
def main() -> None:
    """A load-balancing KMIP proxy that pools mutual-TLS sessions to key managers."""


@main.command()
@click.argument("config", type=click.Path(path_type=Path, readable=False))
def run(config: Path) -> None:
    """Run the gateway with the configuration file CONFIG.

    SIGTERM and SIGINT end it after the requests in flight were answered, or after deadlines.drain; a second signal ends
    it at once. The exit status is 2 if the configuration has mistakes.
    """
    settings = _load(config)
    log.configure(settings.log.level, settings.log.format)
    core = Core(settings)
    mistakes: list[str] = []
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)  # before and after the time in which the core receives signals
    try:
        trio.run(_run, core)
    except* ConfigError as errors:
        mistakes = _mistakes(errors)  # sys.exit here would raise a group of exceptions
    if mistakes:
        _exit_with([f"{config}: {mistake}" for mistake in mistakes])


@main.command()
@click.argument("config", type=click.Path(path_type=Path, readable=False))
def check(config: Path) -> None:
    """Check the configuration file CONFIG.

    Prints a summary and warnings; or every mistake, with exit status 2.
    """
    settings = _load(config)
    for line in summary(settings):
        click.echo(line)
    click.echo(f"{config}: no mistakes")
    for warning in warnings(settings, datetime.now(UTC)):
        click.echo(f"warning: {warning}")


def _load(config: Path) -> Config:
    """Return the configuration of a file. Prints every mistake and exits if it has any, or if OpenSSL is too old."""
    try:
        tls.check_openssl()
        return load(config)
    except TlsError as error:
        _exit_with([str(error)])
    except ConfigError as error:
        _exit_with(error.mistakes)


async def _run(core: Core) -> None:
    """Run a core until it has drained. A first signal starts the drain, a second one ends the process at once."""
    gc.collect()
    gc.freeze()  # imported objects live as long as the process: a collection that examines them delays all clients
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey_signals, core)
        await core.run()
        nursery.cancel_scope.cancel()


async def _obey_signals(core: Core, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(*_ENDING, *_IGNORED) as signals:
        task_status.started()
        async for number in signals:
            if number in _ENDING:
                break
            name = signal.Signals(number).name
            log.get("core").warning("signal ignored: restart the gateway to use a new configuration", signal=name)
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_DFL)
    core.drain()


def _mistakes(error: BaseException) -> list[str]:
    """Return the mistakes of a ConfigError inside the groups in which nurseries wrap it."""
    if isinstance(error, BaseExceptionGroup):
        return [mistake for inner in error.exceptions for mistake in _mistakes(inner)]
    return error.mistakes if isinstance(error, ConfigError) else []


def _exit_with(mistakes: Sequence[str]) -> NoReturn:
    for mistake in mistakes:
        click.echo(mistake, err=True)
    sys.exit(_MISTAKE)
