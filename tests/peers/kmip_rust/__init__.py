"""The crate kmip-protocol, with which Krill and other software of NLnet Labs speak KMIP."""

from pathlib import Path
from typing import Final

from tests.peers.build import BUILD_TIMEOUT, Software
from tests.peers.peer import ClientPeer, Target, lacking
from tests.peers.run import PeerError, run

_HERE: Final = Path(__file__).parent


def _missing() -> str | None:
    if (absent := lacking("cargo", "pkg-config")()) is not None:
        return absent
    try:
        run(["pkg-config", "--exists", "openssl"], _HERE, 10)
    except PeerError:
        return "OpenSSL's headers (libssl-dev) are not installed"
    return None


def _fetch(_: Path) -> None:
    run(["cargo", "fetch", "--quiet", "--locked"], _HERE, BUILD_TIMEOUT)


def _build(directory: Path) -> None:
    command = ["cargo", "build", "--quiet", "--locked", "--offline", "--target-dir", str(directory)]
    run(command, _HERE, BUILD_TIMEOUT)


def _command(target: Target, build: Path) -> list[str]:
    host, _, port = target.addresses[0].rpartition(":")
    files = [str(target.ca), str(target.certificate), str(target.key)]
    return [str(build / "debug" / "kmip_rust"), host, port, *files]


_SOURCES: Final = tuple(_HERE / name for name in ("Cargo.toml", "Cargo.lock", "src/main.rs"))
CLIENT: Final = ClientPeer(
    Software("kmip-protocol (Krill)", "0.4.3", "Rust", _missing, _fetch, _build, _SOURCES),
    "a key pair made, renamed, used for signatures and destroyed; random numbers; Username and Password",
    _command,
)
