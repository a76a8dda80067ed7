"""Processes of ``kmip-lab keymanager``."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "from kmip_lab.keymanager.command import keymanager; keymanager()"


def options(certificates: Path) -> list[str]:
    """Return the options for a key manager's certificates."""
    return [
        f"--certificate={certificates / 'kms.pem'}",
        f"--private-key={certificates / 'kms.key'}",
        f"--client-ca={certificates / 'kms-clients-ca.pem'}",
    ]


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run key managers in a process that is killed at the end of the block; its output is a pipe."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready_port(process: subprocess.Popen[str], name: str) -> int:
    """Return the port in the next line of output, which must say that this key manager listens."""
    assert process.stdout is not None
    line = process.stdout.readline()
    begin, end = f"key manager {name} listening on 127.0.0.1:", " (simulated: not for production)\n"
    assert line.startswith(begin), line
    assert line.endswith(end), line
    return int(line.removeprefix(begin).removesuffix(end))
