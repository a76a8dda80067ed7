"""The command line: ``kmip-gateway run`` and ``check``."""

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

_MISTAKE: Final = 2  # exit status where the configuration is to blame
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_IGNORED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # what others send by habit must not end it


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("kmip-gateway"), prog_name="kmip-gateway")
def main() -> None:
    """A load-balancing KMIP proxy that pools mutual-TLS sessions to key managers."""


@main.command()
@click.argument("config", type=click.Path(path_type=Path, readable=False))
def run(config: Path) -> None:
    """Run the gateway of the configuration file CONFIG, until SIGTERM or SIGINT."""
    settings = _load(config)
    log.configure(settings.log.level, settings.log.format)
    core = Core(settings)
    mistakes: list[str] = []
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)  # until the core listens to signals, and after
    try:
        trio.run(_run, core)
    except* ConfigError as errors:
        mistakes = _mistakes(errors)  # to exit here would raise a group
    if mistakes:
        _give_up([f"{config}: {mistake}" for mistake in mistakes])


@main.command()
@click.argument("config", type=click.Path(path_type=Path, readable=False))
def check(config: Path) -> None:
    """Check the configuration file CONFIG: a summary and warnings, or every mistake and exit status 2."""
    settings = _load(config)
    for line in summary(settings):
        click.echo(line)
    click.echo(f"{config}: no mistakes")
    for warning in warnings(settings, datetime.now(UTC)):
        click.echo(f"warning: {warning}")


def _load(config: Path) -> Config:
    """Read a configuration; end with what keeps the gateway from running it."""
    try:
        tls.check_openssl()
        return load(config)
    except TlsError as error:
        _give_up([str(error)])
    except ConfigError as error:
        _give_up(error.mistakes)


async def _run(core: Core) -> None:
    """Run a core until it has drained; a signal begins that, a second one ends the process at once."""
    gc.collect()
    gc.freeze()  # what was imported lives as long as the process: a collection that looks at it stops all clients
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
            log.get("core").warning("signal ignored: to take a new configuration, restart", signal=name)
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_DFL)
    core.drain()


def _mistakes(error: BaseException) -> list[str]:
    """The mistakes of a ConfigError, out of the groups in which nurseries wrap it."""
    if isinstance(error, BaseExceptionGroup):
        return [mistake for inner in error.exceptions for mistake in _mistakes(inner)]
    return error.mistakes if isinstance(error, ConfigError) else []


def _give_up(mistakes: Sequence[str]) -> NoReturn:
    for mistake in mistakes:
        click.echo(mistake, err=True)
    sys.exit(_MISTAKE)
