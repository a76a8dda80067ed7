"""The programs of the comparison: two backends, and the proxies before them, each a process of its own.

All of them end with the block that began them.
"""

import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Final

import click
import trio

from gateway.config import Address
from gateway.errors import GatewayError
from gateway.kmip.spec import ResultStatus
from kmip_lab.client import client_context, connect, create_key, get_key
from kmip_lab.compare import wire
from kmip_lab.compare.cases import HANDSHAKE_COST, OPERATION_COST, Backends
from kmip_lab.compare.configurations import Setting
from kmip_lab.compare.proxies import DIRECT, GATEWAY, PROXIES

_BACKENDS: Final = 2
_START_TIMEOUT: Final = 20.0  # s
_END_TIMEOUT: Final = 5.0  # s
_LAST_WORDS: Final = 4096  # bytes


@dataclass(frozen=True)
class Target:
    """Where a load goes: addresses, the names of credential and CA, and the sessions of the proxy's processes.

    ``admin`` is where the gateway tells its metrics.
    """

    name: str
    addresses: list[Address]
    credential: str
    ca: str
    sessions: list[int]
    admin: Address | None = None


@dataclass(frozen=True)
class Cores:
    """Which processors each side may use; None is any of them."""

    proxy: set[int] | None = None
    load: set[int] | None = None
    backends: set[int] | None = None


def cores(numbers: Sequence[int]) -> Cores:
    """A proxy has a processor of its own; load and backends share what is left, apart where there are three or more."""
    if len(numbers) < 2:
        return Cores()
    return Cores({numbers[0]}, {numbers[1]}, set(numbers[2:]) or {numbers[1]})


@asynccontextmanager
async def place(
    directory: Path, kind: Backends, proxies: Sequence[str], mine: Cores
) -> AsyncIterator[tuple[dict[str, Target], bytes]]:
    """Backends of a kind, and every proxy before them, all serving; and the request that they answer."""
    async with AsyncExitStack() as stack:
        backends = _free_addresses(_BACKENDS)
        await stack.enter_async_context(_program("the backends", _backends(directory, kind, backends), mine.backends))
        targets = {DIRECT: Target(DIRECT, backends, "gateway-client", "kms-ca.pem", [])}
        request = await _request(directory, kind, targets[DIRECT])
        for name in proxies:
            if name != DIRECT:
                front, spare = _free_addresses(2)
                command = PROXIES[name](Setting(directory, front, spare, backends)).run
                session = await stack.enter_async_context(_program(name, command, mine.proxy))
                admin = spare if name == GATEWAY else None
                targets[name] = Target(name, [front], "client", "gateway-ca.pem", [session], admin)
                await _until_serving(directory, targets[name], request)
        yield targets, request


def _backends(directory: Path, kind: Backends, addresses: Sequence[Address]) -> list[str]:
    files = [str(directory / name) for name in ("kms.pem", "kms.key", "kms-clients-ca.pem")]
    resumption = "--resumption" if kind.resumes else "--no-resumption"
    if kind.is_free:
        ports = [str(address.port) for address in addresses]
        return [sys.executable, "-m", "kmip_lab.compare.backend", resumption, *files, *ports]
    options = ("--certificate", "--private-key", "--client-ca")
    return [
        *(sys.executable, "-m", "kmip_lab", "keymanager"),
        *(word for pair in zip(options, files, strict=True) for word in pair),
        *(word for address in addresses for word in ("--bind", str(address))),
        *("--handshake-cost", str(HANDSHAKE_COST), "--operation-cost", str(OPERATION_COST)),
        resumption,
    ]


async def _request(directory: Path, kind: Backends, direct: Target) -> bytes:
    """The Get that the backends will answer; simulated key managers need a key to give."""
    await _until_serving(directory, direct, wire.REQUEST, must_succeed=kind.is_free)
    if kind.is_free:
        return wire.REQUEST
    context = client_context(*_pair(directory, direct.credential), directory / direct.ca)
    async with connect(direct.addresses[0], context, server_name="localhost") as client:
        created = await client.ask(create_key())
    return get_key(created.items[0].unique_identifiers[0].decode())


async def _until_serving(directory: Path, target: Target, request: bytes, *, must_succeed: bool = True) -> None:
    context = client_context(*_pair(directory, target.credential), directory / target.ca)
    with trio.move_on_after(_START_TIMEOUT):
        while True:
            with suppress(OSError, GatewayError):
                async with connect(target.addresses[0], context, server_name="localhost") as client:
                    answer = await client.ask(request)
                if answer.items[0].status == ResultStatus.SUCCESS or not must_succeed:
                    return
            await trio.sleep(0.05)
    raise click.ClickException(f"{target.name}: no answer to a Get within {_START_TIMEOUT:g} s of its start")


@asynccontextmanager
async def _program(name: str, command: list[str], processors: set[int] | None) -> AsyncIterator[int]:
    """A program in a session of its own, whose number is given; it ends with the block.

    Raises ClickException, with its last words, where it ends before that.
    """
    try:
        process = await trio.lowlevel.open_process(
            command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, start_new_session=True
        )
    except OSError as error:
        raise click.ClickException(f"{name} can't be started: {error}") from None
    if processors is not None:
        os.sched_setaffinity(process.pid, processors)  # before it has begun any thread or process
    said = bytearray()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, name, process, said)
            try:
                yield process.pid
            finally:
                nursery.cancel_scope.cancel()
    finally:
        await _end(process)


async def _listen(name: str, process: trio.Process, said: bytearray) -> None:
    assert process.stderr is not None  # noqa: S101 - a pipe was asked for
    async for data in process.stderr:
        said += data
        del said[:-_LAST_WORDS]
    raise click.ClickException(f"{name} ended by itself: {last_line(bytes(said))}")


async def _end(process: trio.Process) -> None:
    process.terminate()
    with trio.CancelScope(shield=True):
        with trio.move_on_after(_END_TIMEOUT):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


def last_line(text: bytes) -> str:
    """What a program said last."""
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"


def _pair(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}.pem", directory / f"{name}.key"


def _free_addresses(count: int) -> list[Address]:
    """Ports that nobody listens on; all are held before the first is let go, so that none comes twice."""
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [Address(*sock.getsockname()[:2]) for sock in socks]
