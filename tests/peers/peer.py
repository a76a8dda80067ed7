"""A peer: software that speaks KMIP and that this project has not written, with the driver that this project has.

A client's driver prints a line for each result. The lines of the same key manager must be the same directly and through
the gateway: a driver prints nothing that the key manager makes up, such as identifiers or key material.
"""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.kit.processes import Certificates, Gateway

DRIVE_TIMEOUT: Final = 180.0  # s
BUILD_TIMEOUT: Final = 900.0  # s


class PeerError(Exception):
    """A peer could not be built, or its driver failed."""


class Target(NamedTuple):
    """The server before which a client is put, and the client's credential. Each address is HOST:PORT."""

    addresses: tuple[str, ...]
    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Software:
    """A peer's name and version, and how it is built in a directory of its own.

    ``missing`` returns the tool that this machine lacks, or None. ``build`` is called once; an earlier build may be
    there.
    """

    name: str
    version: str
    language: str
    missing: Callable[[], str | None]
    build: Callable[[Path], None]


@dataclass(frozen=True)
class ClientPeer:
    """A client. ``command`` returns the command line of its driver.

    ``differences`` maps the beginning of a line that may differ through the gateway to the reason.
    """

    software: Software
    covers: str
    command: Callable[[Target, Path], Sequence[str]]
    differences: Mapping[str, str] = field(default_factory=dict)

    def drive(self, target: Target, build: Path) -> list[str]:
        """Return the lines that the driver prints. Raises PeerError if it fails or takes too long."""
        return run(self.command(target, build), build, DRIVE_TIMEOUT).splitlines()


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


def lacking(*commands: str) -> Callable[[], str | None]:
    """Return a ``missing`` that names the commands that are not installed."""

    def missing() -> str | None:
        absent = [command for command in commands if shutil.which(command) is None]
        return f"{', '.join(absent)} is not installed" if absent else None

    return missing


def run(command: Sequence[str], directory: Path, timeout: float, **environment: str) -> str:
    """Return the standard output of a command. Raises PeerError if it fails, or takes longer than ``timeout`` s."""
    try:
        result = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=environment or None,
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"{command[0]} took longer than {timeout:g} s") from None
    except OSError as error:
        raise PeerError(f"{command[0]}: {error.strerror}") from error
    if result.returncode != 0:
        raise PeerError(f"{' '.join(command[:4])} ended with {result.returncode}: {result.stderr.strip()[-1000:]}")
    return result.stdout
