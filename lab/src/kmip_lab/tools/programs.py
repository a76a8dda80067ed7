"""Start gateways and simulated key managers as processes, for the demo, the measurements and the tests."""

import os
import socket
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from types import MappingProxyType
from typing import Final

import click
import trio

from gateway.config import Address
from kmip_lab.certs import DevelopmentSet, write_development_set
from kmip_lab.keymanager import Member, Store, write_roles
from kmip_lab.tools.configurations import gateway_toml

START_TIMEOUT: Final = 20.0  # s
_KEY_MANAGERS: Final = {"atlanta-001": 15696, "atlanta-002": 15697, "london-001": 15698, "london-002": 15699}
_GATEWAY_PORT: Final = 5696
_ADMIN_PORT: Final = 9696
_END_TIMEOUT: Final = 5.0  # s
_KEPT_OUTPUT: Final = 4096  # bytes of a program's standard error


class Program:
    """A process in a session of its own: the process number is the session's number, too."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name = name
        self._process = process
        self._is_stopping = False
        self._said = bytearray()

    def __repr__(self) -> str:
        return f"<Program {self.name}, process {self.number}>"

    @property
    def number(self) -> int:
        """The process number."""
        return self._process.pid

    async def watch(self) -> None:
        """Wait for the end. Raises ClickException with the program's last words if nobody has stopped it."""
        assert self._process.stderr is not None  # noqa: S101 - a pipe was asked for
        async for data in self._process.stderr:
            self._said += data
            del self._said[:-_KEPT_OUTPUT]
        if not self._is_stopping:
            raise click.ClickException(f"{self.name} ended by itself: {last_line(bytes(self._said))}")

    def kill(self) -> None:
        """End the program at once, as a crash would."""
        self._is_stopping = True
        self._process.kill()

    async def end(self) -> None:
        """Ask the program to end, and kill it if that takes more than 5 s."""
        self._is_stopping = True
        self._process.terminate()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_END_TIMEOUT):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()


@asynccontextmanager
async def program(name: str, command: Sequence[str], *, processors: set[int] | None = None) -> AsyncIterator[Program]:
    """Run a command for the length of a block, on these processors.

    Raises ClickException, which cancels the block, if the program can't be started or ends by itself.
    """
    try:
        process = await trio.lowlevel.open_process(
            list(command), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, start_new_session=True
        )
    except OSError as error:
        raise click.ClickException(f"{name} can't be started: {error}") from None
    if processors is not None:
        os.sched_setaffinity(process.pid, processors)  # before it has begun any thread or process
    running = Program(name, process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.watch)
            try:
                yield running
            finally:
                nursery.cancel_scope.cancel()
    finally:
        await running.end()


async def wait_until_listening(addresses: Iterable[Address]) -> None:
    """Wait until each address accepts a connection. Raises ClickException if one does not within 20 s."""
    for address in addresses:
        with trio.move_on_after(START_TIMEOUT):
            while not await _is_listening(address):  # noqa: ASYNC110 - another process must listen
                await trio.sleep(0.05)
            continue
        raise click.ClickException(f"the program for {address} does not listen {START_TIMEOUT:g} s after its start")


async def _is_listening(address: Address) -> bool:
    with suppress(OSError):
        stream = await trio.open_tcp_stream(address.host, address.port)
        await stream.aclose()
        return True
    return False


def gateway_command(configuration: Path) -> list[str]:
    """Return the command line that runs a gateway."""
    return [sys.executable, "-m", "gateway", "run", str(configuration)]


def key_manager_command(files: DevelopmentSet, key_managers: Mapping[str, Address], *options: str) -> list[str]:
    """Return the command line that runs these simulated key managers in one process."""
    return [
        *(sys.executable, "-m", "kmip_lab", "keymanager"),
        *(word for name, address in key_managers.items() for word in ("--name", name, "--bind", str(address))),
        *("--certificate", str(files.file("kms.pem")), "--private-key", str(files.file("kms.key"))),
        *("--client-ca", str(files.file("kms-clients-ca.pem")), *options),
    ]


def last_line(text: bytes) -> str:
    """Return the last line that a program printed."""
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"


# Addresses ------------------------------------------------------------------------------------------------------------


def free_address(preferred: int = 0) -> Address:
    """Return an address of this machine that no program listens on: with the preferred port, if that is free."""
    for port in (preferred, 0):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return Address("127.0.0.1", sock.getsockname()[1])
    raise click.ClickException("no port is free on 127.0.0.1")


def free_addresses(count: int) -> list[Address]:
    """Return free addresses. All ports are held before the first is released, so that none comes twice."""
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [Address(*sock.getsockname()[:2]) for sock in socks]


# Four key managers and a gateway --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """The files and addresses of four key managers and a gateway."""

    files: DevelopmentSet
    key_managers: dict[str, Address]
    gateway: Address
    admin: Address


@dataclass(frozen=True)
class Running:
    """The programs of a site, started; the key managers by their names."""

    key_managers: dict[str, Program]
    gateway: Program


def prepare(directory: Path) -> Site:
    """Write certificates and the gateway's configuration; take the usual ports, or free ports if those are taken."""
    site = Site(
        write_development_set(directory, force=True),
        {name: free_address(port) for name, port in _KEY_MANAGERS.items()},
        free_address(_GATEWAY_PORT),
        free_address(_ADMIN_PORT),
    )
    site.files.file("gateway.toml").write_text(gateway_toml(site.gateway, site.admin, site.key_managers))
    return site


@asynccontextmanager
async def programs(
    site: Site,
    *,
    handshake_cost: float = 0.0,
    costs: Mapping[str, float] = MappingProxyType({}),
    roles: Mapping[str, Member] | None = None,
) -> AsyncIterator[Running]:
    """Run key managers, each a process, and the gateway for the length of a block that begins when all are ready.

    ``handshake_cost`` is in seconds, as are ``costs`` by the names of costs.COST_NAMES. With ``roles``, such as
    two_plus_two(), each key manager has a store of its own, and they replicate; they meet in the directory ``cluster``
    of the site. Without roles they share a store, a file.
    """
    options = ["--handshake-cost", str(handshake_cost)]
    options += [word for name, seconds in costs.items() for word in ("--cost", f"{name}={seconds}")]
    if roles is not None:
        cluster = site.files.file("cluster")
        cluster.mkdir(exist_ok=True)
        write_roles(cluster, roles)
        options += ["--cluster", str(cluster)]
    else:
        store = site.files.file("store.db")
        Store(store).close()  # two processes that create the file at once get in each other's way
        options += ["--store", str(store)]
    async with AsyncExitStack() as stack:
        key_managers = {
            name: await stack.enter_async_context(
                program(name, key_manager_command(site.files, {name: address}, *options))
            )
            for name, address in site.key_managers.items()
        }
        gateway = await stack.enter_async_context(
            program("the gateway", gateway_command(site.files.file("gateway.toml")))
        )
        await wait_until_listening([*site.key_managers.values(), site.gateway, site.admin])
        yield Running(key_managers, gateway)
