"""Listening sockets: opened before anything else, and kept when connections are refused for a while."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from gateway.config import Address, ListenerConfig
from gateway.errors import ConfigError
from gateway.tcp import TcpTimeouts, set_timeouts

_NOTHING_INHERITED: Final[Mapping[str, socket.socket]] = {}
BACKLOG: Final = 1024  # connections that the kernel keeps until they are accepted


def refuse_connections(sock: socket.socket) -> None:
    """Have the kernel refuse new connections (ECONNREFUSED); the port stays bound, and clients stay connected.

    ``shutdown`` leaves the LISTEN state on Linux (HAProxy pauses its listeners so), in every process that shares the
    socket; connections in the kernel's backlog are reset. Both processes set SO_REUSEADDR, so that a second process
    could now listen on the port; the option is cleared until ``accept_connections``.
    """
    sock.shutdown(socket.SHUT_RD)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def accept_connections(sock: socket.socket) -> None:
    """Listen again after ``refuse_connections``. Raises OSError if the kernel refuses to, as for a port in use."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # clients hold the port, too
    sock.listen(BACKLOG)


@contextmanager
def listening_sockets(
    listeners: Sequence[ListenerConfig], inherited: Mapping[str, socket.socket] = _NOTHING_INHERITED
) -> Iterator[dict[str, socket.socket]]:
    """Yield the listening sockets by the names of their listeners; close them after the block.

    A socket in ``inherited``, by the name of a listener, takes the place of the listener's bind. It is the service
    manager's, and listens on after the block, so that clients wait for the next gateway. Raises ConfigError.
    """
    _check_inherited(listeners, inherited)
    with ExitStack() as stack:
        yield {
            listener.name: stack.enter_context(
                _taken_over(inherited[listener.name], listener)
                if listener.name in inherited
                else listen_for_clients(listener)
            )
            for listener in listeners
        }


def _check_inherited(listeners: Sequence[ListenerConfig], inherited: Mapping[str, socket.socket]) -> None:
    names = [listener.name for listener in listeners]
    known = ", ".join(f'"{name}"' for name in names)
    mistakes = [
        f'the service manager hands over a socket named "{name}": there is no such listener; set FileDescriptorName to'
        f" one of {known}"
        for name in inherited
        if name not in names
    ]
    mistakes += [
        f'listeners["{name}"]: the service manager hands over a socket that is not of TCP; use ListenStream=PORT'
        for name, sock in inherited.items()
        if name in names and (sock.family not in {socket.AF_INET, socket.AF_INET6} or sock.type != socket.SOCK_STREAM)
    ]
    if mistakes:
        raise ConfigError(mistakes)


@contextmanager
def _taken_over(sock: socket.socket, listener: ListenerConfig) -> Iterator[socket.socket]:
    """Yield a copy of an inherited socket, which listens before and after the block."""
    set_timeouts(sock, listener)
    _listen_again(sock)  # a gateway that was killed may have left the socket refusing connections
    try:
        with sock.dup() as copy:
            yield copy
    finally:
        _listen_again(sock)


def _listen_again(sock: socket.socket) -> None:
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        with suppress(OSError):
            accept_connections(sock)


def listen_for_clients(listener: ListenerConfig) -> socket.socket:
    """Return the socket of a listener, which listens. Raises ConfigError if its address can't be had."""
    setting = f'listeners["{listener.name}"].bind'
    return listen(setting, listener.bind, timeouts=listener, reuse_port=listener.reuse_port)


def listen(
    setting: str,
    address: Address,
    backlog: int = BACKLOG,
    timeouts: TcpTimeouts | None = None,
    *,
    reuse_port: bool = False,
) -> socket.socket:
    """Return a socket that listens. Raises ConfigError, with the setting, if its address can't be had.

    With ``reuse_port``, other processes of the same user may listen on the address, too, if they ask for that.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if timeouts is not None:
            set_timeouts(sock, timeouts)  # before the first connection, which would not inherit them later
        with _port_of(address, family) as port:
            sock.bind((address.host, port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise ConfigError(
            [f"{setting}: cannot listen on {address}: {reason}; give a free address of this machine"]
        ) from None
    return sock


@contextmanager
def _port_of(address: Address, family: socket.AddressFamily) -> Iterator[int]:
    """Yield the port to bind: the port of the address or, for port 0, a free port that is held during the block.

    If the kernel chose the port in the listener's own bind, the port would be lost when the listener stops accepting.
    """
    if address.port:
        yield address.port
        return
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((address.host, 0))
        yield holder.getsockname()[1]


def address_of(sock: socket.socket) -> Address:
    """Return the address to which a socket is bound."""
    host, port = sock.getsockname()[:2]
    return Address(host, port)
