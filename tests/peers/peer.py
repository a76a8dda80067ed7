"""A peer: software that speaks KMIP and that this project has not written, with the driver that this project has.

A client's driver prints a line for each result: its topic, ": ", and the result, or "error: " and the error. The lines
of the same key manager must be the same directly and through the gateway: a driver prints nothing that the key manager
makes up, such as identifiers or key material.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tests.kit.processes import Certificates, Gateway
from tests.peers.build import Software
from tests.peers.run import PeerError, run

DRIVE_TIMEOUT: Final = 180.0  # s
_ERROR: Final = ": error: "


class Target(NamedTuple):
    """The server before which a client is put, and the client's credential. Each address is HOST:PORT."""

    addresses: tuple[str, ...]
    ca: Path
    certificate: Path
    key: Path


class KnownDifference(NamedTuple):
    """A line of the direct run, the line that stands in its place through the gateway, and the reason."""

    direct: str
    through: str
    reason: str


@dataclass(frozen=True)
class ClientPeer:
    """A client. ``command`` returns the command line of its driver."""

    software: Software
    covers: str
    command: Callable[[Target, Path], Sequence[str]]
    differences: tuple[KnownDifference, ...] = ()

    def drive(self, target: Target, build: Path) -> list[str]:
        """Return the lines that the driver prints, with control characters escaped.

        Raises PeerError if the driver fails, takes too long, or prints nothing.
        """
        output = run(self.command(target, build), build, DRIVE_TIMEOUT)
        if not output.strip():
            raise PeerError("the driver printed nothing")
        return [_printable(line) for line in output.removesuffix("\n").split("\n")]


@dataclass(frozen=True)
class ServerPeer:
    """A key manager. ``running`` starts it, and gives its ports; they share their objects."""

    software: Software
    running: Callable[[Certificates, Path], AbstractContextManager[Sequence[int]]]


@dataclass(frozen=True)
class Front:
    """A balancer between the client and two gateways. ``running`` gives its port; ``listener`` is for the gateways."""

    software: Software
    running: Callable[[Certificates, Sequence[Gateway]], AbstractContextManager[int]]
    listener: str = ""


def is_error(line: str) -> bool:
    """Return True if a driver's line is an error, and not a result."""
    return _ERROR in line


def lacking(*commands: str) -> Callable[[], str | None]:
    """Return a ``missing`` that names the commands that are not installed."""

    def missing() -> str | None:
        absent = [command for command in commands if shutil.which(command) is None]
        return f"{', '.join(absent)} is not installed" if absent else None

    return missing


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
