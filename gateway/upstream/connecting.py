"""Connecting: from the addresses of a backend to a connected socket."""

import os
import socket
from collections.abc import Sequence
from typing import Any, Final

import trio

from gateway.config import Address
from gateway.errors import OUT_OF_RESOURCES

#: s until the next address is tried beside one that has not answered: RFC 8305 section 5, "Connection Attempt Delay".
_HEAD_START: Final = 0.25


async def look_up(address: Address) -> list[str]:
    """Return the IP addresses of a host, in the order in which the resolver would have them tried (RFC 6724).

    Raises OSError if the resolver fails.
    """
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        socket.socket().close()  # a lack of descriptors also fails the lookup: raise that error instead
        raise
    if not found:
        raise OSError("the name has no address")
    return list(dict.fromkeys(_host(sockaddr) for *_, sockaddr in found))


async def connect(address: Address, hosts: Sequence[str] = ()) -> socket.socket:
    """Connect to one of ``hosts``, or of the addresses that ``address`` resolves to, and return the socket.

    The hosts are tried in their order, by happy eyeballs (RFC 8305): each has a head start of 250 ms before the next is
    tried beside it. `trio.open_tcp_stream` is not used: it looks the name up each time, and so fails with the resolver.
    Raises OSError, whose ``strerror`` names every host. The caller sets the deadline.
    """
    hosts = hosts or await look_up(address)
    connected: list[socket.socket] = []
    failures: dict[str, OSError] = {}

    async def attempt(host: str, ended: trio.Event) -> None:
        try:
            connected.append(await _connect_to(host, address.port))
            attempts.cancel_scope.cancel()
        except OSError as error:
            failures[host] = error
        ended.set()

    try:
        async with trio.open_nursery() as attempts:
            for host in hosts:
                ended = trio.Event()
                attempts.start_soon(attempt, host, ended)
                with trio.move_on_after(_HEAD_START):
                    await ended.wait()
    except BaseException:
        _close(connected)
        raise
    _close(connected[1:])  # two hosts may have answered at once
    if not connected:
        raise _failure(address, failures)
    return connected[0]


async def _connect_to(host: str, port: int) -> socket.socket:
    ((family, kind, protocol, _name, sockaddr), *_) = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    sock = trio.socket.socket(family, kind, protocol)
    try:
        await sock.connect(sockaddr)
    except BaseException:
        sock.close()
        raise
    return socket.socket(fileno=sock.detach())


def peer_of(sock: socket.socket) -> str:
    """Return the IP address at the other end, written as `look_up` does; "" if the peer has disconnected."""
    try:
        return _host(sock.getpeername())
    except OSError:
        return ""


def _host(sockaddr: tuple[Any, ...]) -> str:
    """Return the IP address of a socket's address; a link-local address with the zone, else it is ambiguous."""
    host, scope = str(sockaddr[0]), sockaddr[3] if len(sockaddr) > 3 else 0
    return f"{host}%{scope}" if scope and "%" not in host else host


def _failure(address: Address, failures: dict[str, OSError]) -> OSError:
    """Return an error that names all hosts; its number is that of a lack of descriptors or memory here, if any."""
    errors = list(failures.values())
    first = next((error for error in errors if error.errno in OUT_OF_RESOURCES), errors[0])
    messages = [
        _words(error) if host == address.host else f"{host}: {_words(error)}" for host, error in failures.items()
    ]
    return OSError(first.errno, "; ".join(messages))


def _words(error: OSError) -> str:
    """Return the operating system's message; trio's message repeats the address."""
    is_system = error.errno is not None and not isinstance(error, socket.gaierror)
    return os.strerror(error.errno) if is_system and error.errno is not None else str(error)


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
