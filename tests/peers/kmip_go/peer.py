"""kmip-go: its client and its server, each with a driver in Go."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.kit.processes import Certificates, ended, free_port, is_listening, wait_until
from tests.peers.build import BUILD_TIMEOUT, Software
from tests.peers.peer import ClientPeer, KnownDifference, ServerPeer, Target, lacking
from tests.peers.run import run

_HERE: Final = Path(__file__).parent


def _fetch(_: Path) -> None:
    run(["go", "mod", "download"], _HERE, BUILD_TIMEOUT)


def _build(directory: Path) -> None:
    command = ["go", "build", "-mod=readonly", "-o", f"{directory}/", "./client", "./server"]
    run(command, _HERE, BUILD_TIMEOUT, **{**os.environ, "GOFLAGS": "-buildvcs=false"})


def _command(target: Target, build: Path) -> list[str]:
    certificates = ["-ca", str(target.ca), "-certificate", str(target.certificate), "-key", str(target.key)]
    return [str(build / "client"), *certificates, *target.addresses]


@contextmanager
def _running(certificates: Certificates, build: Path) -> Iterator[Sequence[int]]:
    port = free_port()
    certificate, key = certificates.pair("kms")
    ca = certificates.path("kms_clients_ca.pem")
    command = [str(build / "server"), "-certificate", str(certificate), "-key", str(key), "-client-ca", str(ca)]
    with certificates.path(f"kmip-go-{port}.log").open("wb") as log:
        process = subprocess.Popen([*command, f"127.0.0.1:{port}"], stdout=log, stderr=log)
    with ended(process):
        wait_until(lambda: process.poll() is not None or is_listening(port), "the start of kmip-go's server")
        assert process.poll() is None, certificates.path(f"kmip-go-{port}.log").read_text()
        yield [port]


_SOURCES: Final = tuple(_HERE / name for name in ("go.mod", "go.sum", "client/main.go", "server/main.go"))
SOFTWARE: Final = Software("kmip-go", "0.8.0", "Go", lacking("go"), _fetch, _build, _SOURCES)
CLIENT: Final = ClientPeer(
    SOFTWARE,
    "KMIP 1.0 to 1.4, forced and negotiated; life of a key; values up to 900 KB; batches with ID Placeholder, Stop and"
    " Continue; Correlation Values; 20 clients at once; time-outs and cancelled requests; a cluster dial over two"
    " gateways",
    _command,
    (
        KnownDifference(
            "encrypt in parts: first part: correlation value of 16 bytes",
            "encrypt in parts: first part: correlation value of 32 bytes",
            "the gateway marks Correlation Values with 16 bytes (docs/replication.md)",
        ),
    ),
)
SERVER: Final = ServerPeer(SOFTWARE, _running)
