"""Pairs of TLS streams over the loopback interface; checks for leaked descriptors."""

import ctypes
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio
from OpenSSL import SSL

from gateway.tls import TlsStream, client_context, server_context
from tests.kit.processes import Certificates

TLS_1_2, TLS_1_3 = "TLSv1.2", "TLSv1.3"
VERSIONS = {"TLSv1": SSL.TLS1_VERSION, "TLSv1.1": SSL.TLS1_1_VERSION, TLS_1_2: SSL.TLS1_2_VERSION, TLS_1_3: 0x304}


class Pair(NamedTuple):
    """Both ends of a connection."""

    client: TlsStream
    server: TlsStream


def connected() -> tuple[socket.socket, socket.socket]:
    """Return the two sockets of a TCP connection: the client's, and the accepted socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connecting = socket.create_connection(listening.getsockname())
        return connecting, listening.accept()[0]


_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27


def reset(sock: socket.socket) -> None:
    """Close a socket with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def cut_off(sock: socket.socket) -> None:
    """Drop all packets to a socket, as a firewall would, so that not even the kernel answers.

    The filter program (BPF) has a single instruction, "take 0 bytes", and needs no privilege.
    """
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))


def reconnect(sock: socket.socket) -> None:
    """Let packets reach the socket again, after ``cut_off``."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def server_tls(certificates: Certificates, policy: str = "modern") -> SSL.Context:
    """Return the context of the gateway's side."""
    return server_context(*certificates.pair("server"), certificates.path("clients_ca.pem"), policy)


def client_tls(
    certificates: Certificates, name: str = "alice", version: str | None = None, ca: str | None = "gateway_ca.pem"
) -> SSL.Context:
    """Return the context of a client, for ``version`` of TLS only if given."""
    context = client_context(*certificates.client(name), None if ca is None else certificates.path(ca))
    if version is not None:
        context.set_min_proto_version(VERSIONS[version])
        context.set_max_proto_version(VERSIONS[version])
    return context


@asynccontextmanager
async def streams(server: SSL.Context, client: SSL.Context, name: str | None = "localhost") -> AsyncIterator[Pair]:
    """Both ends of a connection, before the handshake; closed with the block."""
    connecting, accepted = connected()
    pair = Pair(
        TlsStream(connecting, client, server_side=False, server_name=name),
        TlsStream(accepted, server, server_side=True),
    )
    try:
        yield pair
    finally:
        for stream in pair:
            stream.close()


async def shake_hands(pair: Pair) -> None:
    """Have both ends shake hands."""
    async with trio.open_nursery() as nursery:
        for stream in pair:
            nursery.start_soon(stream.handshake)


@asynccontextmanager
async def shaken(server: SSL.Context, client: SSL.Context, name: str | None = "localhost") -> AsyncIterator[Pair]:
    """Both ends of a connection, after the handshake; closed with the block."""
    async with streams(server, client, name) as pair:
        await shake_hands(pair)
        yield pair


async def receive_exactly(stream: TlsStream, size: int) -> bytes:
    """Return ``size`` bytes, or fewer if the stream ends before."""
    received = bytearray()
    while len(received) < size and (data := await stream.receive_some()):
        received += data
    return bytes(received)


def descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope after ``step`` steps of any tasks."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - the name is trio's
        """Count the steps."""
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def cancelled_everywhere(story: Callable[[], Awaitable[None]], steps: int = 200) -> int:
    """Run a function repeatedly, each time cancelled a step later, until it ends; return the number of runs."""
    for step in range(1, steps):
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await story()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        if not scope.cancelled_caught:
            return step
    raise AssertionError(f"the story has not ended after {steps} steps")
