"""Four simulated key managers and a gateway, as programs of their own, for the demo and the measurements."""

import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Final

import click
import trio

from gateway.config import Address
from gateway.lab.certs import write_development_set

_KEY_MANAGERS: Final = {"atlanta-001": 15696, "atlanta-002": 15697, "london-001": 15698, "london-002": 15699}
_GATEWAY_PORT: Final = 5696
_ADMIN_PORT: Final = 9696
_START_TIMEOUT: Final = 20.0  # s
_END_TIMEOUT: Final = 5.0  # s

_CONFIG: Final = """
[[listeners]]
name = "kmip"
bind = "{gateway}"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients-ca.pem"

[[identities]]
name = "everyone"
match = {{ subject_cn = "*" }}
shared = true
certificate = "gateway-client.pem"
private_key = "gateway-client.key"

[admin]
bind = "{admin}"

[log]
level = "error"
"""
_CONFIG_BACKEND: Final = """
[[backends]]
name = "{name}"
address = "{address}"
ca = "kms-ca.pem"
server_name = "localhost"
"""


@dataclass(frozen=True)
class Place:
    """A directory of certificates, and an address for each of the programs."""

    directory: Path
    key_managers: dict[str, Address]
    gateway: Address
    admin: Address

    def file(self, name: str) -> Path:
        """A file of the directory."""
        return self.directory / name

    def pair(self, name: str) -> tuple[Path, Path]:
        """Certificate and private key of this name."""
        return self.file(f"{name}.pem"), self.file(f"{name}.key")


@dataclass(frozen=True)
class Running:
    """The process numbers of the programs."""

    key_managers: int
    gateway: int


def prepare(directory: Path) -> Place:
    """Write certificates and the gateway's configuration; take the usual ports, and free ones where those are taken."""
    write_development_set(directory, force=True)
    place = Place(
        directory,
        {name: free_address(port) for name, port in _KEY_MANAGERS.items()},
        free_address(_GATEWAY_PORT),
        free_address(_ADMIN_PORT),
    )
    backends = (_CONFIG_BACKEND.format(name=name, address=address) for name, address in place.key_managers.items())
    text = _CONFIG.format(gateway=place.gateway, admin=place.admin) + "".join(backends)
    place.file("gateway.toml").write_text(text)
    return place


def free_address(preferred: int = 0) -> Address:
    """An address of this machine's own that nobody listens on: with this port, if it is free."""
    for port in (preferred, 0):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return Address("127.0.0.1", sock.getsockname()[1])
    raise click.ClickException("no port is free on 127.0.0.1")


@asynccontextmanager
async def programs(place: Place, *, handshake_cost: float = 0.0) -> AsyncIterator[Running]:
    """Key managers and gateway, ready, for the length of a block. ``handshake_cost`` is in seconds."""
    key_managers = [
        "keymanager",
        *(word for name, address in place.key_managers.items() for word in ("--name", name, "--bind", str(address))),
        *("--certificate", str(place.file("kms.pem")), "--private-key", str(place.file("kms.key"))),
        *("--client-ca", str(place.file("kms-clients-ca.pem")), "--handshake-cost", str(handshake_cost)),
    ]
    gateway = ["run", str(place.file("gateway.toml"))]
    async with (
        program(key_managers, list(place.key_managers.values())) as key_managers_id,
        program(gateway, [place.gateway, place.admin]) as gateway_id,
    ):
        yield Running(key_managers_id, gateway_id)


@asynccontextmanager
async def program(arguments: Sequence[str], addresses: Sequence[Address]) -> AsyncIterator[int]:
    """``kmip-gateway`` with these arguments, for the length of a block, from when it listens on all of the addresses.

    Gives its process number. Raises ClickException where it does not start.
    """
    command = [sys.executable, "-m", "gateway", *arguments]
    process = await trio.lowlevel.open_process(command, stdin=DEVNULL, stdout=DEVNULL, start_new_session=True)
    try:
        with trio.fail_after(_START_TIMEOUT):
            for address in addresses:
                await _until_listening(address, lambda: process.poll() is not None)
        yield process.pid
    finally:
        process.terminate()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _END_TIMEOUT):
            await process.wait()
        if process.returncode is None:
            process.kill()


async def _until_listening(address: Address, has_ended: Callable[[], bool]) -> None:
    while True:
        with suppress(OSError):
            stream = await trio.open_tcp_stream(address.host, address.port)
            await stream.aclose()
            return
        if has_ended():
            raise click.ClickException(f"a program that should listen on {address} did not start")
        await trio.sleep(0.05)
