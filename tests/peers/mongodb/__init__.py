"""See README.md."""

from pathlib import Path
from typing import Final

from tests.peers.python_peer import python_client

CLIENT: Final = python_client(
    Path(__file__).parent,
    "MongoDB (libmongocrypt)",
    "pymongocrypt",
    "data keys under a key that the client registers, names or leaves in the key manager; encryption and decryption",
)
