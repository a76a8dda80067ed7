"""PyKMIP 0.11: client and server, from the development dependencies."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.kit.processes import Certificates, running_pykmip_server
from tests.peers.build import Software
from tests.peers.peer import ClientPeer, ServerPeer, Target

_DRIVER: Final = Path(__file__).with_name("driver.py")


def _command(target: Target, _: Path) -> list[str]:
    host, _colon, port = target.addresses[0].rpartition(":")
    paths = [str(target.ca), str(target.certificate), str(target.key)]
    return [sys.executable, "-W", "ignore", str(_DRIVER), host, port, *paths]


@contextmanager
def _running(certificates: Certificates, _: Path) -> Iterator[Sequence[int]]:
    database = certificates.path("shared.db")
    with ExitStack() as running:
        yield [running.enter_context(running_pykmip_server(certificates, database)) for _ in range(2)]


SOFTWARE: Final = Software("PyKMIP", version("pykmip"), "Python")
CLIENT: Final = ClientPeer(
    SOFTWARE,
    "KMIP 1.0 to 2.0; each operation of the client, and all that the server knows: Query, Discover Versions, keys, key"
    " pairs, all object types, derived and wrapped keys, attributes, Locate with limits, encryption, signatures, MACs;"
    " Username and Password",
    _command,
)
SERVER: Final = ServerPeer(SOFTWARE, _running)
