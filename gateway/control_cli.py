"""The commands to a gateway that runs: ``kmip-gateway status``, ``drain`` and so on, over its control socket.

The exit status is 0 if the command was carried out, 1 if the gateway refused it or can't be reached, and 2 for a
mistake in the command line or in the configuration file that names the socket.
"""

import json
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import click
import trio

from gateway.admin.control import request
from gateway.config.model import LogConfig
from gateway.errors import ControlError

REFUSED: Final = 1
_INSTEAD: Final = "correct it, or give --socket PATH instead of --config"
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_LEVELS: Final = get_args(LogConfig.model_fields["level"].annotation)

#: Returns the lines that stand for a result, for people.
Show = Callable[[Any], Sequence[str]]


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name the control socket, and the form of the output."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the gateway's answer as JSON."),
        click.option(
            "--config", type=click.Path(path_type=Path), help="The gateway's configuration, whose admin.socket is used."
        ),
        click.option(
            "--socket", type=click.Path(path_type=Path, readable=False), help="The control socket of the gateway."
        ),
    ):
        command = option(command)
    return command


def _run(
    name: str,
    arguments: Mapping[str, Any],
    show: Show,
    *,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Send a command, print its result, and end the process with the status."""
    path = socket_of(socket, config)
    try:
        result = trio.run(partial(request, path, name, arguments))
    except ControlError as error:
        if as_json:
            click.echo(json.dumps({"error": str(error)}))
        else:
            click.echo(str(error), err=True)
        sys.exit(REFUSED)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        for line in show(result):
            click.echo(line)


def socket_of(socket: Path | None, config: Path | None) -> Path:
    """Return the path of the control socket. Raises UsageError.

    Only this setting of the file is read, so that the rest may be in the middle of a change.
    """
    if socket is not None and config is None:
        return socket
    if socket is not None or config is None:
        raise click.UsageError("give either the control socket, --socket PATH, or the configuration, --config FILE")
    try:
        document = tomllib.loads(config.read_text())
        path = document["admin"]["socket"]
    except OSError as error:
        raise click.UsageError(f"{config}: {error.strerror}; {_INSTEAD}") from None
    except ValueError as error:
        raise click.UsageError(f"{config}: is not TOML: {error}; {_INSTEAD}") from None
    except (KeyError, TypeError):
        path = ""
    if not isinstance(path, str) or not path:
        raise click.UsageError(f"{config}: [admin] socket is missing, so that this gateway has no control socket")
    return config.absolute().parent / path


def _duration(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Return the seconds of a time such as ``90s``, ``10m`` or ``2h``. Raises BadParameter."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6})([smh])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time; give a number with s, m or h, such as 90s, 10m or 2h")
    return int(found[1]) * _SECONDS[found[2]]


@click.command()
@_options
def status(**options: Any) -> None:
    """Show backends, pools, clients, workers and certificates."""
    _run("status", {}, _show_status, **options)


@click.command()
@click.argument("backend")
@_options
def drain(backend: str, **options: Any) -> None:
    """Send BACKEND no new requests; requests in flight finish.

    BACKEND is the name of a backend, or of a [[backends]] table: then all its backends.
    """
    _run("drain", {"backend": backend}, _show_backends, **options)


@click.command()
@click.argument("backend")
@_options
def enable(backend: str, **options: Any) -> None:
    """Send BACKEND requests again after a drain.

    BACKEND as for drain.
    """
    _run("enable", {"backend": backend}, _show_backends, **options)


@click.command()
@click.argument("backend")
@click.argument("weight", type=click.IntRange(1, 100))
@_options
def weight(backend: str, weight: int, **options: Any) -> None:
    """Change the share of BACKEND to WEIGHT, from 1 to 100.

    BACKEND as for drain. The change lasts until the gateway ends, or until a reload finds another weight in the file.
    """
    _run("weight", {"backend": backend, "weight": weight}, _show_backends, **options)


@click.command()
@click.argument("backend")
@_options
def reconnect(backend: str, **options: Any) -> None:
    """Replace all sessions to BACKEND, four a second.

    BACKEND as for drain.
    """
    _run("reconnect", {"backend": backend}, _show_reconnect, **options)


@click.command("reload")
@_options
def reload_config(**options: Any) -> None:
    """Read the configuration file again, and use what has changed."""
    _run("reload", {}, _show_reload, **options)


@click.command("log")
@click.argument("level", type=click.Choice(_LEVELS), required=False)
@click.option("--identity", help="With debug: only lines about this identity.")
@click.option("--backend", help="With debug: only lines about this backend, or those of this table.")
@click.option("--address", help="With debug: only lines about clients with this IP address, or in this network.")
@click.option(
    "--for",
    "seconds",
    metavar="TIME",
    callback=_duration,
    help="With debug: how long, such as 90s, 10m (the default) or 2h.",
)
@_options
def log_level(level: str | None, **options: Any) -> None:
    """Change the log level to LEVEL until the gateway ends; show it if no LEVEL is given.

    LEVEL debug is for a while only: client connections, requests and sessions are logged, never payloads. With
    --identity, --backend or --address, only lines that fit them all are, and all other lines are logged as before. Any
    other LEVEL ends that.
    """
    names = ("identity", "backend", "address", "seconds")
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    if level != "debug" and given:
        raise click.UsageError("--identity, --backend, --address and --for belong to: log debug")
    if level is None:
        _run("log-state", {}, _show_log, **options)
    else:
        _run("log", {"level": level, **given}, _show_log, **options)


@click.command("config")
@_options
def show_config(config: Path | None, **options: Any) -> None:
    """Show the configuration as loaded, with all defaults."""
    _run("config", {}, _show_config, config=config, **options)


@click.command("reopen")
@_options
def reopen_audit_file(**options: Any) -> None:
    """Begin a new audit file, after the file in use was moved away, as by logrotate."""
    _run("audit-reopen", {}, lambda result: [f"{result['file']} opened"], **options)


CONTROL_COMMANDS: Final = (status, drain, enable, weight, reconnect, reload_config, log_level, show_config)


# Output for people ---------------------------------------------------------------------------------------------------


def _show_backends(result: Any) -> list[str]:
    return [
        f"{backend['name']}: {backend['state']}, weight {backend['weight']}, {backend['in_flight']} requests in flight,"
        f" {_counts(backend['sessions'])}"
        for backend in result["backends"]
    ]


def _show_reconnect(result: Any) -> list[str]:
    return [
        f"sessions to be replaced: {result['sessions']}, within {result['seconds']:g} s; busy ones after their request"
    ]


def _show_reload(result: Any) -> list[str]:
    lines = [f"changed: {each}" for each in result["changed"]] or ["nothing has changed"]
    return lines + [f"needs a restart: {each}" for each in result["needs_restart"]]


def _show_log(result: Any) -> list[str]:
    lines = [f"log level {result['level']}"]
    if result["debug"] is not None:
        given = dict(result["debug"])
        minutes, seconds = divmod(round(given.pop("seconds")), 60)
        about = ", ".join(f"{name} {value}" for name, value in given.items())
        lines.append(f"debug for {minutes} min {seconds} s more: {about or 'everything'}")
    return lines


def _counts(sessions: Mapping[str, int]) -> str:
    return (
        f"sessions: {sessions['idle']} idle, {sessions['busy']} busy, {sessions['opening']} opening"
        f" of {sessions['limit']}"
    )


def _show_status(result: Any) -> list[str]:
    gateway, clients = result["gateway"], result["clients"]
    process = f"process {gateway['process']}"
    if gateway["supervisor"] is not None:
        process = f"processes {gateway['supervisor']} (supervisor) and {gateway['process']} (core)"
    lines = [f"kmip-gateway {gateway['version']}, {process}, started {gateway['started']}"]
    lines += ["", "backends"]
    for backend in result["backends"]:
        lines.append(
            f"  {backend['name']} at {backend['address']}: {backend['state']} since {backend['since']},"
            f" {backend['role']}, priority {backend['priority']}, weight {backend['weight']}"
        )
        lines.append(f"    {_counts(backend['sessions'])}; {backend['in_flight']} requests in flight")
        if (error := backend["last_error"]) is not None:
            lines.append(f"    last error {error['time']}: {error['text']}")
    lines += ["", "pools, by identity"]
    lines += [
        f"  {identity}: {counts['idle']} idle, {counts['busy']} busy, {counts['opening']} opening,"
        f" {counts['waiting']} requests waiting"
        for identity, counts in result["pools"].items()
    ]
    lines += [
        "",
        (
            f"clients: {clients['connections']} connections of {clients['identities']} identities from"
            f" {clients['addresses']} addresses; {clients['requests_in_flight']} requests in flight"
        ),
    ]
    lines += [f"  {each['connections']} {each['identity']} {each['address']}" for each in clients["most"]]
    if result["workers"]:
        lines += ["", "TLS workers"]
        lines += [
            f"  {worker['worker']}: {worker['clients']} clients{', replaced by a reload' * worker['replaced']}"
            for worker in result["workers"]
        ]
    lines += ["", "certificates"]
    lines += [f"  {each['ends']} {each['role']} {each['name']}" for each in result["certificates"]]
    return lines


def _show_config(result: Any) -> list[str]:
    lines: list[str] = []
    for section, value in result.items():
        for table in value if isinstance(value, list) else [value]:
            lines.append(f"[[{section}]]" if isinstance(value, list) else f"[{section}]")
            lines += [f"{key} = {_toml(each)}" for key, each in table.items()]
            lines.append("")
    return lines[:-1]


def _toml(value: Any) -> str:
    """Return a value as TOML has it; "" for None. A table within a table has its settings that are not empty."""
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{key} = {_toml(each)}" for key, each in value.items() if each)
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps("" if value is None else value, ensure_ascii=False)
