"""Command line: ``kmip-gateway run`` and ``check``; further commands are in control_cli.py and decode_cli.py."""

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import click

from gateway import connection_check, explain, log, tls
from gateway.audit_cli import audit
from gateway.build_check import build_mistakes
from gateway.config import Config, advice, load_apart, summary, warnings
from gateway.confinement import harden
from gateway.control_cli import CONTROL_COMMANDS
from gateway.decode_cli import decode
from gateway.errors import ConfigError, TlsError
from gateway.launch import MISTAKE, launch
from gateway.tap_cli import tap

_NOT_WELL = 1  # exit status if a session can't be opened


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    version("kmip-gateway"), prog_name="kmip-gateway", message=f"%(prog)s, version %(version)s, {tls.openssl_version()}"
)
def main() -> None:
    """A load-balancing KMIP proxy that pools mutual-TLS sessions to key managers."""


@main.command()
@click.argument("config", type=click.Path(path_type=Path, readable=False))
def run(config: Path) -> None:
    """Run the gateway with the configuration file CONFIG.

    SIGTERM and SIGINT end it after the requests in flight were answered, or after deadlines.drain; a second signal ends
    the waiting. The exit status is 2 if the configuration has mistakes.
    """
    settings = _load(config)
    log.configure(settings.log.level, settings.log.format)
    log.get("gateway").info(
        "starting",
        version=version("kmip-gateway"),
        python=platform.python_version(),
        openssl=tls.openssl_version(),
        configuration=str(config.absolute()),
        sha256=_digest_of(config),
        listeners=[f"{listener.name} {listener.bind}" for listener in settings.listeners],
        backends=[f"{backend.name} {backend.address}" for backend in settings.backends],
        identities=len(settings.identities),
    )
    sys.exit(launch(settings, partial(_show_mistakes, config), config))


@main.command()
@click.option(
    "--explain",
    "certificate",
    metavar="CERT.pem",
    type=click.Path(path_type=Path, readable=False),
    help="Print which identity a client with this certificate gets, and why no earlier rule matches it.",
)
@click.option(
    "--connect",
    is_flag=True,
    help="Open a session to every address of every backend with every identity's credential, and print a table.",
)
@click.option(
    "--certificate",
    "client",
    metavar="CLIENT.pem",
    type=click.Path(path_type=Path, readable=False),
    help="With --connect: a client's certificate, whose names are shown for identities with minted credentials.",
)
@click.option("--strict", is_flag=True, help="Take warnings for mistakes, also those of --connect.")
@click.option("--json", "as_json", is_flag=True, help="With --explain or --connect: print JSON.")
@click.argument("config", type=click.Path(path_type=Path, readable=False))
def check(
    config: Path,
    certificate: Path | None,
    client: Path | None,
    *,
    connect: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Check the configuration file CONFIG.

    Prints a summary and warnings; or every mistake, with exit status 2. With --explain, the exit status is 0 if a
    listener serves a client with the certificate, and 1 if none does; CERT.pem may also hold the chain that the client
    sends. With --connect, the exit status is 1 if a session can't be opened.
    """
    _check_options(certificate, client, connect=connect, strict=strict, as_json=as_json)
    settings = _load(config)
    if certificate is not None:
        _explain(settings, certificate, as_json=as_json)
        return
    if mistakes := build_mistakes(settings):
        _exit_with([f"{config}: {mistake}" for mistake in mistakes])
    now = datetime.now(UTC)
    found = [*advice(settings, now), *warnings(settings, now)]
    if connect:
        sys.exit(_connect(settings, client, found, strict=strict, as_json=as_json))
    for line in summary(settings):
        click.echo(line)
    click.echo(
        f"{config}: {'no mistakes' if not (found and strict) else 'warnings, which --strict takes for mistakes'}"
    )
    _show_warnings(found)
    if found and strict:
        sys.exit(MISTAKE)


def _check_options(
    certificate: Path | None, client: Path | None, *, connect: bool, strict: bool, as_json: bool
) -> None:
    """Raise UsageError for options of ``check`` that don't go together."""
    if certificate is not None and (connect or strict):
        raise click.UsageError("give --explain alone, or with --json")
    if as_json and certificate is None and not connect:
        raise click.UsageError("--json needs --explain or --connect")
    if client is not None and not connect:
        raise click.UsageError("--certificate needs --connect; did you mean --explain?")


def _connect(settings: Config, client: Path | None, found: Sequence[str], *, strict: bool, as_json: bool) -> int:
    """Try all backends, and print the outcome. Return the exit status."""
    try:
        chain = [] if client is None else explain.read_chain(client)
        attempts = connection_check.check_connections(settings, chain)
    except ConfigError as error:
        _exit_with(error.mistakes)
    counts = connection_check.counts(attempts)
    if as_json:
        tries = [attempt.as_json() for attempt in attempts]
        click.echo(json.dumps({"counts": counts, "attempts": tries, "warnings": found}, indent=2))
    else:
        for line in connection_check.table(attempts):
            click.echo(line)
        click.echo("sessions: " + ", ".join(f"{count} {result}" for result, count in counts.items()))
        _show_warnings(found)
    is_well = counts[connection_check.OK] == len(attempts) and not found
    return 0 if is_well or (not strict and not counts[connection_check.FAILED]) else _NOT_WELL


def _show_warnings(found: Sequence[str]) -> None:
    for warning in found:
        click.echo(f"warning: {warning}")


for _command in (decode, audit, tap, *CONTROL_COMMANDS):
    main.add_command(_command)


def _explain(settings: Config, certificate: Path, *, as_json: bool) -> None:
    try:
        found = explain.explain(settings, explain.read_chain(certificate))
    except ConfigError as error:
        _exit_with(error.mistakes)
    if as_json:
        click.echo(json.dumps(explain.as_json(found), indent=2))
    else:
        for line in explain.lines(found):
            click.echo(line)
    sys.exit(not found.is_served)


def _load(config: Path) -> Config:
    """Return the configuration of a file. Prints every mistake and exits if it has any, or if OpenSSL is too old."""
    try:
        harden()  # before any key is read
        tls.check_openssl()
        return load_apart(config)
    except TlsError as error:
        _exit_with([str(error)])
    except ConfigError as error:
        _exit_with(error.mistakes)


def _digest_of(config: Path) -> str:
    """Return the beginning of a file's SHA-256, as the metric ``config_info`` has it; "" for a pipe or a lost file."""
    try:
        return hashlib.sha256(config.read_bytes()).hexdigest()[:16] if config.is_file() else ""
    except OSError:
        return ""


def _show_mistakes(config: Path, mistakes: Sequence[str]) -> None:
    for mistake in mistakes:
        click.echo(f"{config}: {mistake}", err=True)


def _exit_with(mistakes: Sequence[str]) -> NoReturn:
    for mistake in mistakes:
        click.echo(mistake, err=True)
    sys.exit(MISTAKE)
