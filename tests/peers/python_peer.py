"""A peer from PyPI: a virtual environment of its own, with what its requirements.lock pins, and a driver for it."""

import sys
from pathlib import Path

from tests.peers.build import BUILD_TIMEOUT, Software
from tests.peers.peer import ClientPeer, Target
from tests.peers.run import run


def python_client(directory: Path, name: str, package: str, covers: str) -> ClientPeer:
    """Return the client in ``directory``: its requirements, and driver.py with the arguments HOST PORT CA CERT KEY.

    requirements.txt names the peer; ``package`` is its line there that has the peer's version. requirements.lock pins
    all that is installed, with hashes; ``make lock`` makes it.
    """
    pinned = dict(line.split("==") for line in (directory / "requirements.txt").read_text().split())
    lock = directory / "requirements.lock"

    def fetch(environment: Path) -> None:
        run([sys.executable, "-m", "venv", "--clear", str(environment)], directory, BUILD_TIMEOUT)
        install = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--require-hashes"]
        run([str(environment / "bin" / "python"), "-m", *install, "-r", str(lock)], directory, BUILD_TIMEOUT)

    def command(target: Target, environment: Path) -> list[str]:
        host, _, port = target.addresses[0].rpartition(":")
        files = [str(target.ca), str(target.certificate), str(target.key)]
        return [str(environment / "bin" / "python"), "-W", "ignore", str(directory / "driver.py"), host, port, *files]

    software = Software(name, pinned[package], "Python", fetch=fetch, sources=(lock, sys.version, sys.base_prefix))
    return ClientPeer(software, covers, command)
