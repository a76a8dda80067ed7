"""A peer from PyPI: a virtual environment of its own, with what its requirements.txt pins, and a driver for it."""

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.peers.peer import BUILD_TIMEOUT, ClientPeer, Software, Target, run


def python_client(
    directory: Path, name: str, package: str, covers: str, differences: Mapping[str, str] | None = None
) -> ClientPeer:
    """Return the client in ``directory``: requirements.txt, and driver.py with the arguments HOST PORT CA CERT KEY.

    ``package`` is the line of requirements.txt that has the peer's version.
    """
    requirements = directory / "requirements.txt"
    pinned = dict(line.split("==") for line in requirements.read_text().split())

    def build(environment: Path) -> None:
        run([sys.executable, "-m", "venv", str(environment)], directory, BUILD_TIMEOUT)
        install = [str(environment / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "-r"]
        run([*install, str(requirements)], directory, BUILD_TIMEOUT)

    def command(target: Target, environment: Path) -> list[str]:
        host, _, port = target.addresses[0].rpartition(":")
        files = [str(target.ca), str(target.certificate), str(target.key)]
        return [str(environment / "bin" / "python"), "-W", "ignore", str(directory / "driver.py"), host, port, *files]

    software = Software(name, pinned[package], "Python", lambda: None, build)
    return ClientPeer(software, covers, command, differences or {})
