"""A simulated key manager in a process of its own, with faults to switch on."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from kmip_lab.speed.target import Target

from gateway.config import Address


@dataclass(frozen=True)
class Server:
    """A key manager's address, the certificates, and its journal."""

    address: str
    certificates: Path
    journal: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def target(self) -> Target:
        """The same as the options."""
        certificate, private_key = (self.certificates / f"gateway-client.{end}" for end in ("pem", "key"))
        return Target((Address.parse(self.address),), certificate, private_key, self.certificates / "kms-ca.pem")

    @property
    def options(self) -> list[str]:
        """What ``speed`` needs to be told."""
        return [
            f"--address={self.address}",
            *self.credential("gateway-client"),
            f"--ca={self.certificates / 'kms-ca.pem'}",
        ]

    def credential(self, name: str) -> list[str]:
        return [f"--certificate={self.certificates / name}.pem", f"--private-key={self.certificates / name}.key"]


Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def serve(certificates: Path, tmp_path: Path) -> Serve:
    """Serves for the length of a block, with these faults."""

    @contextmanager
    def one(*faults: dict[str, object]) -> Iterator[Server]:
        file = tmp_path / "faults.json"
        file.write_text(json.dumps({"atlanta-001": list(faults)}))
        command = [sys.executable, "-m", "kmip_lab", "keymanager", "--bind=127.0.0.1:0", "--name=atlanta-001"]
        files = {"--certificate": "kms.pem", "--private-key": "kms.key", "--client-ca": "kms-clients-ca.pem"}
        options = [f"{option}={certificates / name}" for option, name in files.items()]
        whole = [*command, *options, f"--faults={file}", f"--journal={tmp_path / 'journal'}"]
        with subprocess.Popen(whole, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                words = process.stdout.readline().split()
                yield Server(words[words.index("on") + 1], certificates, tmp_path / "journal")
            finally:
                process.terminate()

    return one
