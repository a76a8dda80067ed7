"""See README.md."""

from pathlib import Path
from typing import Final

from tests.peers.python_peer import python_client

CLIENT: Final = python_client(
    Path(__file__).parent,
    "cyphera-kmip",
    "cyphera-kmip",
    "KMIP 1.4; tries each of its 27 operations, of which about half are errors at every key manager here",
)
