"""The project's own simulated key managers, as the second side of a client that is not the project's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.kit.processes import Certificates, running_key_managers
from tests.peers.build import Software
from tests.peers.peer import ServerPeer


@contextmanager
def _running(certificates: Certificates, _: Path) -> Iterator[Sequence[int]]:
    with running_key_managers(certificates) as ports:
        yield ports


SERVER: Final = ServerPeer(Software("simulated key managers", "this revision", "Python"), _running)
