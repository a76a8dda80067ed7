"""A simulated key manager in a process, with faults, and the options of ``speed`` for it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kmip_lab.speed.target import Target

from gateway.config import Address
from lab.tests.kit.keymanager_process import options, ready_port


@dataclass(frozen=True)
class SpeedServer:
    """A key manager's address, the certificates, and its journal."""

    address: str
    certificates: Path
    journal: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def target(self) -> Target:
        """The target that ``options`` describe."""
        certificate, private_key = (self.certificates / f"gateway-client.{end}" for end in ("pem", "key"))
        return Target((Address.parse(self.address),), certificate, private_key, self.certificates / "kms-ca.pem")

    @property
    def options(self) -> list[str]:
        """The options of ``speed`` for this server."""
        return [
            f"--address={self.address}",
            *self.credential("gateway-client"),
            f"--ca={self.certificates / 'kms-ca.pem'}",
        ]

    def credential(self, name: str) -> list[str]:
        return [f"--certificate={self.certificates / name}.pem", f"--private-key={self.certificates / name}.key"]


Serve = Callable[..., AbstractContextManager[SpeedServer]]


@contextmanager
def served(certificates: Path, directory: Path, *faults: dict[str, object]) -> Iterator[SpeedServer]:
    """Run a key manager with these faults for the length of a block; its journal is in the directory."""
    file = directory / "faults.json"
    file.write_text(json.dumps({"atlanta-001": list(faults)}))
    command = [sys.executable, "-m", "kmip_lab", "keymanager", "--bind=127.0.0.1:0", "--name=atlanta-001"]
    whole = [*command, *options(certificates), f"--faults={file}", f"--journal={directory / 'journal'}"]
    with subprocess.Popen(whole, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield SpeedServer(f"127.0.0.1:{ready_port(process, 'atlanta-001')}", certificates, directory / "journal")
        finally:
            process.terminate()
