"""Options for the server, the client's credential, and the number of clients."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from gateway.config import Address
from gateway.errors import ConfigError
from gateway.kmip.messages import Version
from kmip_lab.speed import qclient
from kmip_lab.speed.target import KNOWN_VERSIONS, Target

_MOST_CLIENTS: Final = 1000
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
#: The attributes that a target needs, and the options that set them.
_NEEDED: Final = {
    "addresses": "--address",
    "certificate": "--certificate",
    "private_key": "--private-key",
    "ca": "--ca",
}


def _configuration(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Path | None:
    if value is not None and not value.startswith("@"):
        raise click.BadParameter(f"{value!r} is no command and no configuration file; write a file as @{value}")
    return None if value is None else Path(value[1:])


def _addresses(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> tuple[Address, ...]:
    try:
        return tuple(map(Address.parse, values))
    except ValueError as error:
        raise click.BadParameter(f"it {error}") from None


def _server_name(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return Address.parse(f"[{value}]:0" if ":" in value else f"{value}:0").host
    except ValueError:
        raise click.BadParameter(f"{value!r} is no host name, and no IP address") from None


def _versions(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> tuple[Version, ...]:
    named = {"{}.{}".format(*version): version for version in KNOWN_VERSIONS}
    unknown = [value for value in values if value not in named]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not supported; choose from {', '.join(sorted(named))}")
    return tuple(named[value] for value in values)


def _clients(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    counts: list[int] = []
    for part in value.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        if found is None:
            raise click.BadParameter(f"{value!r} is no number of clients; write 5, 1-10 or 1,2,5")
        low, high = int(found[1]), int(found[2] or found[1])
        if not 1 <= low <= high <= _MOST_CLIENTS:
            raise click.BadParameter(f"{part.strip()!r} is not within 1 to {_MOST_CLIENTS}, the lower number first")
        counts += range(low, high + 1)
    return counts


_OPTIONS: Final = (
    click.argument("configuration", metavar="[@FILE]", required=False, callback=_configuration),
    click.option(
        "--address",
        "addresses",
        metavar="HOST:PORT",
        multiple=True,
        callback=_addresses,
        help="The server, or the gateway. Sessions go to several addresses in turn, as behind a load balancer.",
    ),
    click.option("--certificate", type=_FILE, help="The client's certificate, PEM."),
    click.option("--private-key", type=_FILE, help="The certificate's private key, PEM."),
    click.option(
        "--password",
        envvar="KMIP_PASSWORD",
        show_envvar=True,
        help="The private key's password. As an option, other users can see it in the list of processes.",
    ),
    click.option("--ca", type=_FILE, help="The CA that issued the server's certificate, PEM."),
    click.option(
        "--server-name",
        callback=_server_name,
        help="Name in the server's certificate  [default: the address's host].",
    ),
    click.option(
        "--kmip-version",
        "kmip_versions",
        metavar="VERSION",
        multiple=True,
        callback=_versions,
        help="Acceptable versions, the preferred version first  [default: 1.4 to 1.0].",
    ),
    click.option(
        "--no-discover", is_flag=True, help="Don't begin each session with Discover Versions, as qClient does."
    ),
    click.option("--timeout", type=click.FloatRange(0.1), help="Seconds to wait for an answer  [default: 30]."),
)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name the server; target_of takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def clients_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option for numbers of clients."""
    return click.option(
        "--clients",
        default=default,
        show_default=True,
        callback=_clients,
        metavar="N|N-N|N,N",
        help="Clients at once, each a process of its own: one measurement for each number, as 5, 1-10 or 1,2,5.",
    )


def target_of(configuration: Path | None, *, no_discover: bool, **given: Any) -> Target:
    """Return the target of a configuration file, of options, or of a file some of whose settings options override.

    Raises ConfigError, a line for each mistake.
    """
    values = {name: value for name, value in given.items() if value not in (None, ())}
    if "kmip_versions" in values:
        values["versions"] = values.pop("kmip_versions")
    if no_discover:
        values["discover"] = False
    if configuration is not None:
        target = qclient.read(configuration)
        named_by = {name: place for name, place in target.named_by.items() if name not in values}
        target = replace(target, **values, named_by=named_by)
    else:
        missing = [option for name, option in _NEEDED.items() if name not in values]
        if missing:
            raise ConfigError(
                [f"{option} is missing; give it, or a qClient configuration file as @FILE" for option in missing]
            )
        target = Target(**values)
    target.context()  # finds mistakes in the files
    return target
