"""See README.md."""

from pathlib import Path
from typing import Final

from tests.peers.python_peer import python_client

CLIENT: Final = python_client(
    Path(__file__).parent,
    "OpenStack Barbican (KMIP secret store)",
    "barbican",
    "keys and key pairs generated, secrets of each type stored, read and deleted",
)
