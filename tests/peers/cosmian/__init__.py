"""Cosmian KMS as a key manager, if ``make cosmian`` has built it."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.kit.processes import Certificates, ended, free_port, is_listening, wait_until
from tests.peers.build import Software
from tests.peers.peer import ServerPeer
from tests.peers.run import PeerError, run

VERSION: Final = "5.28.0"
PROGRAM: Final = Path(__file__).parents[3] / ".peers" / "cosmian" / "debug" / "cosmian_kms"


def _missing() -> str | None:
    if not PROGRAM.exists():
        return "not built: make cosmian"
    try:
        found = run([str(PROGRAM), "--version"], PROGRAM.parent, 20).split()[-1:]
    except PeerError as error:
        return f"does not run: {error}; make cosmian builds it anew"
    return None if found == [VERSION] else f"built as version {' '.join(found)}, not {VERSION}: make cosmian"


@contextmanager
def _running(certificates: Certificates, _: Path) -> Iterator[Sequence[int]]:
    port = free_port()
    certificate, key = certificates.pair("kms")
    directory = certificates.path(f"cosmian-{port}")
    directory.mkdir()
    command = [str(PROGRAM), "--database-type", "sqlite", "--sqlite-path", str(directory / "data")]
    command += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    command += ["--clients-ca-cert-file", str(certificates.path("kms_clients_ca.pem"))]
    command += ["--socket-server-hostname", "127.0.0.1", "--socket-server-port", str(port)]
    command += ["--hostname", "127.0.0.1", "--port", str(free_port()), "--socket-server-start"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    with ended(process):
        wait_until(lambda: process.poll() is not None or is_listening(port), "the start of Cosmian KMS")
        assert process.poll() is None, (directory / "log").read_text()
        yield [port]


SERVER: Final = ServerPeer(Software("Cosmian KMS", VERSION, "Rust", _missing), _running)
