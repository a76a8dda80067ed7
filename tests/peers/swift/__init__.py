"""See README.md."""

from pathlib import Path
from typing import Final

from tests.peers.python_peer import python_client

CLIENT: Final = python_client(
    Path(__file__).parent,
    "OpenStack Swift (kmip_keymaster)",
    "swift",
    "the start of the middleware: several root secrets, and the errors for a missing and a wrong key",
)
