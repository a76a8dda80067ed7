"""Four simulated key managers and a gateway, as programs of their own, for the demo and the measurements."""

import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from types import MappingProxyType
from typing import Final

import click
import trio

from gateway.config import Address
from kmip_lab.certs import write_development_set
from kmip_lab.keymanager import Member, write_roles

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
    """The process numbers of the programs.

    ``by_name`` has the one of each key manager: where they don't replicate, all are in one process, ``key_managers``.
    """

    key_managers: int
    gateway: int
    by_name: dict[str, int]


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
async def programs(
    place: Place,
    *,
    handshake_cost: float = 0.0,
    costs: Mapping[str, float] = MappingProxyType({}),
    roles: Mapping[str, Member] | None = None,
) -> AsyncIterator[Running]:
    """Key managers and gateway, ready, for the length of a block.

    ``handshake_cost`` is in seconds, as are ``costs`` by the names of costs.COST_NAMES. With ``roles``, such as
    two_plus_two(), each key manager is a process and has a store of its own, and they replicate; they meet in the
    directory ``cluster`` of the place. Without, all are one process, and share a store in memory.
    """
    groups = [list(place.key_managers)]
    options = ["--handshake-cost", str(handshake_cost)]
    options += [word for name, seconds in costs.items() for word in ("--cost", f"{name}={seconds}")]
    if roles is not None:
        groups = [[name] for name in place.key_managers]
        cluster = place.file("cluster")
        cluster.mkdir(exist_ok=True)
        write_roles(cluster, roles)
        options += ["--cluster", str(cluster)]
    async with AsyncExitStack() as stack:
        by_name: dict[str, int] = {}
        for names in groups:
            addresses = [place.key_managers[name] for name in names]
            running = program(_key_managers(place, names, options), addresses)
            by_name |= dict.fromkeys(names, await stack.enter_async_context(running))
        gateway = ["run", str(place.file("gateway.toml"))]
        gateway_id = await stack.enter_async_context(program(gateway, [place.gateway, place.admin]))
        yield Running(next(iter(by_name.values())), gateway_id, by_name)


def _key_managers(place: Place, names: Sequence[str], options: Sequence[str]) -> list[str]:
    """The command of one process of key managers."""
    return [
        "keymanager",
        *(word for name in names for word in ("--name", name, "--bind", str(place.key_managers[name]))),
        *("--certificate", str(place.file("kms.pem")), "--private-key", str(place.file("kms.key"))),
        *("--client-ca", str(place.file("kms-clients-ca.pem")), *options),
    ]


@asynccontextmanager
async def program(arguments: Sequence[str], addresses: Sequence[Address]) -> AsyncIterator[int]:
    """Start ``kmip-gateway run``, or a command of ``kmip-lab``, for a block that begins when all addresses are served.

    Gives its process number. Raises ClickException where it does not start.
    """
    module = "gateway" if arguments[0] == "run" else "kmip_lab"
    command = [sys.executable, "-m", module, *arguments]
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
