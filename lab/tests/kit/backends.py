"""Backends of the comparison, which answer at once."""

import sys
from pathlib import Path

from gateway.config import Address


def backend_command(certificates: Path, address: Address) -> list[str]:
    """Return the command line of a backend on this address."""
    files = [str(certificates / name) for name in ("kms.pem", "kms.key", "kms-clients-ca.pem")]
    return [sys.executable, "-m", "kmip_lab.compare.backend", *files, str(address.port)]
