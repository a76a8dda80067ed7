"""The crate kmip-protocol, with which Krill and other software of NLnet Labs speak KMIP."""

import os
from pathlib import Path
from typing import Final

from tests.peers.peer import BUILD_TIMEOUT, ClientPeer, Software, Target, lacking, run

_HERE: Final = Path(__file__).parent


def _build(directory: Path) -> None:
    command = ["cargo", "build", "--quiet", "--locked", "--target-dir", str(directory)]
    run(command, _HERE, BUILD_TIMEOUT, **os.environ)


def _command(target: Target, build: Path) -> list[str]:
    host, _, port = target.addresses[0].rpartition(":")
    files = [str(target.ca), str(target.certificate), str(target.key)]
    return [str(build / "debug" / "kmip_rust"), host, port, *files]


CLIENT: Final = ClientPeer(
    Software("kmip-protocol (Krill)", "0.4.3", "Rust", lacking("cargo"), _build),
    "a key pair made, renamed, used for signatures and destroyed; random numbers; Username and Password",
    _command,
)
