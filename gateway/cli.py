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

from gateway import connection_check, explain, findings, log, tls
from gateway.audit_cli import audit
from gateway.build_check import build_mistakes
from gateway.compiled import BUILD
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
    version("kmip-gateway"),
    prog_name="kmip-gateway",
    message=f"%(prog)s, version %(version)s, {BUILD}, {tls.openssl_version()}",
)
def main() -> None:
    """A load-balancing KMIP proxy that pools mutual-TLS sessions to key managers."""


@main.command()
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="Format of the log and of mistakes, instead of [log] format; also if CONFIG can't be read.",
)
@click.argument("config", type=click.Path(path_type=Path, readable=False))
def run(config: Path, log_format: str | None) -> None:
    """Run the gateway with the configuration file CONFIG.

    SIGTERM and SIGINT end it after the requests in flight were answered, or after deadlines.drain; a second signal ends
    the waiting. The exit status is 2 if the configuration has mistakes; they are printed to standard error, in the
    format of the log.
    """
    try:
        settings = _load(config)
    except ConfigError as error:
        if (log_format or error.log_format) == "json":
            log.configure("info", "json")
            findings.log_mistakes(error.mistakes, [config])
            sys.exit(MISTAKE)
        _exit_with(error.mistakes)
    form = log_format or settings.log.format
    log.configure(settings.log.level, form)
    log.get("gateway").info(
        "starting",
        version=version("kmip-gateway"),
        build=BUILD,
        python=platform.python_version(),
        openssl=tls.openssl_version(),
        configuration=str(config.absolute()),
        sha256=_digest_of(config),
        listeners=[f"{listener.name} {listener.bind}" for listener in settings.listeners],
        backends=[f"{backend.name} {backend.address}" for backend in settings.backends],
        identities=len(settings.identities),
    )
    sys.exit(launch(settings, partial(_show_mistakes, config, as_json=form == "json"), config))


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
@click.option("--json", "as_json", is_flag=True, help="Print JSON: of mistakes, too.")
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

    Prints a summary and warnings; or every mistake, with exit status 2. With --json, these are the members "warnings"
    and "mistakes" of one object, each finding with its "file", "key" and "message".

    With --explain, the exit status is 0 if a listener serves a client with the certificate, and 1 if none does;
    CERT.pem may also hold the chain that the client sends. With --connect, the exit status is 1 if a session can't be
    opened.
    """
    _check_options(certificate, client, connect=connect, strict=strict)
    try:
        settings = _load(config)
        if certificate is not None:
            sys.exit(_explain(settings, certificate, as_json=as_json))
        found = _warnings_of(config, settings)
        if connect:
            sys.exit(_connect(config, settings, client, found, strict=strict, as_json=as_json))
    except ConfigError as error:
        if not as_json:
            _exit_with(error.mistakes)
        files = [path for path in (config, certificate, client) if path is not None]
        click.echo(findings.document(error.mistakes, [], files))
        sys.exit(MISTAKE)
    if as_json:
        click.echo(findings.document([], _with_file(config, found), [config]))
    else:
        for line in summary(settings):
            click.echo(line)
        verdict = "warnings, which --strict takes for mistakes" if found and strict else "no mistakes"
        click.echo(f"{config}: {verdict}")
        _show_warnings(found)
    if found and strict:
        sys.exit(MISTAKE)


def _warnings_of(config: Path, settings: Config) -> list[str]:
    """Return the warnings about a configuration. Raises ConfigError if the gateway would not run with it."""
    if mistakes := build_mistakes(settings):
        raise ConfigError(_with_file(config, mistakes))
    now = datetime.now(UTC)
    return [*advice(settings, now), *warnings(settings, now)]


def _check_options(certificate: Path | None, client: Path | None, *, connect: bool, strict: bool) -> None:
    """Raise UsageError for options of ``check`` that don't go together."""
    if certificate is not None and (connect or strict):
        raise click.UsageError("give --explain alone, or with --json")
    if client is not None and not connect:
        raise click.UsageError("--certificate needs --connect; did you mean --explain?")


def _connect(
    config: Path, settings: Config, client: Path | None, found: Sequence[str], *, strict: bool, as_json: bool
) -> int:
    """Try all backends, and print the outcome. Return the exit status. Raises ConfigError."""
    chain = [] if client is None else explain.read_chain(client)
    attempts = connection_check.check_connections(settings, chain)
    counts = connection_check.counts(attempts)
    if as_json:
        tries = [attempt.as_json() for attempt in attempts]
        warned = findings.as_json(_with_file(config, found), [config])
        click.echo(json.dumps({"counts": counts, "attempts": tries, "warnings": warned}, indent=2))
    else:
        for line in connection_check.table(attempts):
            click.echo(line)
        click.echo("sessions: " + ", ".join(f"{count} {result}" for result, count in counts.items()))
        _show_warnings(found)
    is_well = counts[connection_check.OK] == len(attempts) and not found
    return 0 if is_well or (not strict and not counts[connection_check.FAILED]) else _NOT_WELL


def _with_file(config: Path, found: Sequence[str]) -> list[str]:
    return [f"{config}: {line}" for line in found]


def _show_warnings(found: Sequence[str]) -> None:
    for warning in found:
        click.echo(f"warning: {warning}")


for _command in (decode, audit, tap, *CONTROL_COMMANDS):
    main.add_command(_command)


def _explain(settings: Config, certificate: Path, *, as_json: bool) -> int:
    """Print what the gateway makes of a certificate. Return the exit status. Raises ConfigError."""
    found = explain.explain(settings, explain.read_chain(certificate))
    if as_json:
        click.echo(json.dumps(explain.as_json(found), indent=2))
    else:
        for line in explain.lines(found):
            click.echo(line)
    return 0 if found.is_served else _NOT_WELL


def _load(config: Path) -> Config:
    """Return the configuration of a file. Raises ConfigError with every mistake, or if OpenSSL is too old."""
    try:
        harden()  # before any key is read
        tls.check_openssl()
    except TlsError as error:
        raise ConfigError([str(error)]) from None
    return load_apart(config)


def _digest_of(config: Path) -> str:
    """Return the beginning of a file's SHA-256, as the metric ``config_info`` has it; "" for a pipe or a lost file."""
    try:
        return hashlib.sha256(config.read_bytes()).hexdigest()[:16] if config.is_file() else ""
    except OSError:
        return ""


def _show_mistakes(config: Path, mistakes: Sequence[str], *, as_json: bool) -> None:
    """Print mistakes that show when the gateway starts, in the format of the log."""
    lines = _with_file(config, mistakes)
    if as_json:
        findings.log_mistakes(lines, [config])
        return
    for line in lines:
        click.echo(line, err=True)


def _exit_with(mistakes: Sequence[str]) -> NoReturn:
    for mistake in mistakes:
        click.echo(mistake, err=True)
    sys.exit(MISTAKE)
