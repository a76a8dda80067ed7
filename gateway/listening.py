"""Listening sockets: opened before anything else, kept when connections are refused, and changed by a reload."""

import errno
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Final, NamedTuple

from gateway.config import Address, ListenerConfig
from gateway.errors import ConfigError
from gateway.tcp import TcpTimeouts, set_timeouts

_NOTHING_INHERITED: Final[Mapping[str, socket.socket]] = {}
_UNPRIVILEGED: Final = 1024  # the first port that any user may bind
BACKLOG: Final = 1024  # connections that the kernel keeps until they are accepted


def refuse_connections(sock: socket.socket) -> None:
    """Have the kernel refuse new connections (ECONNREFUSED); the port stays bound, and clients stay connected.

    ``shutdown`` leaves the LISTEN state on Linux (HAProxy pauses its listeners so), in every process that shares the
    socket; connections in the kernel's backlog are reset. Both processes set SO_REUSEADDR, so that a second process
    could now listen on the port; the option is cleared until ``accept_connections``.
    """
    stop_listening(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def accept_connections(sock: socket.socket) -> None:
    """Listen again after ``refuse_connections``. Raises OSError if the kernel refuses to, as for a port in use."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # clients hold the port, too
    sock.listen(BACKLOG)


def stop_listening(sock: socket.socket) -> None:
    """Have the kernel refuse new connections for good, in every process that shares the socket.

    Unlike ``refuse_connections``, this leaves the port to others: a listener that a reload adds may bind it.
    """
    with suppress(OSError):  # it listens no more
        sock.shutdown(socket.SHUT_RD)


class NextSockets(NamedTuple):
    """The listening sockets of a configuration that is not in use yet.

    ``binds`` are the addresses of its listeners by their names; ``opened`` the sockets that the present configuration
    does not have, or has under another name.
    """

    binds: Mapping[str, Address]
    opened: Mapping[str, socket.socket]

    def close(self) -> None:
        """Close what was opened: the configuration is not taken."""
        for sock in self.opened.values():
            sock.close()


class ListeningSockets(Mapping[str, socket.socket]):
    """The listening sockets by the names of their listeners. A reload changes them in two steps: ``prepare``, ``use``.

    A socket in ``inherited``, by the name of a listener, takes the place of the listener's bind. It is the service
    manager's, and listens on when the gateway has ended, so that clients wait for the next gateway.
    """

    def __init__(self, inherited: Mapping[str, socket.socket] = _NOTHING_INHERITED) -> None:
        self.inherited = inherited
        self._sockets: dict[str, socket.socket] = {}
        self._binds: Mapping[str, Address] = {}  # as configured

    def __getitem__(self, name: str) -> socket.socket:
        return self._sockets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sockets)

    def __len__(self) -> int:
        return len(self._sockets)

    def __repr__(self) -> str:
        return f"<ListeningSockets {', '.join(self)}>"

    def prepare(self, listeners: Sequence[ListenerConfig]) -> NextSockets:
        """Open the sockets that these listeners lack. Raises ConfigError, and opens none, if any can't be had."""
        _check_inherited(listeners, self.inherited)
        opened: dict[str, socket.socket] = {}
        mistakes: list[str] = []
        with ExitStack() as stack:
            for listener in listeners:
                try:
                    sock = self._opened_for(listener)
                except ConfigError as error:
                    mistakes += error.mistakes
                    continue
                if sock is not None:
                    opened[listener.name] = stack.enter_context(sock)
            if mistakes:
                raise ConfigError(mistakes)
            stack.pop_all()
        return NextSockets({listener.name: listener.bind for listener in listeners}, opened)

    def _opened_for(self, listener: ListenerConfig) -> socket.socket | None:
        """Return the socket that a listener lacks: that of a listener that leaves its address, or a new one."""
        name, bind = listener.name, listener.bind
        if name in self.inherited:
            return None if name in self._sockets else _taken_over(self.inherited[name], listener)
        if self._binds.get(name) == bind:
            return None
        former = next((other for other in self._sockets if self._binds[other] == bind and bind.port), None)
        if former is not None and former not in self.inherited:
            sock = self._sockets[former].dup()
            set_timeouts(sock, listener)
            return sock
        try:
            return listen_for_clients(listener)
        except ConfigError as error:
            own = next((other for other, address in self._binds.items() if address.port == bind.port), None)
            if own is None:
                raise
            raise ConfigError(
                [
                    f'{mistake}, or restart the gateway: its own listener "{own}" has the port'
                    for mistake in error.mistakes
                ]
            ) from None

    def use(self, following: NextSockets) -> list[socket.socket]:
        """Have the sockets of another configuration. Return the previous ones that are in use no more, still open."""
        before = self._sockets
        self._sockets = {name: following.opened.get(name) or before[name] for name in following.binds}
        self._binds = following.binds
        return [sock for name, sock in before.items() if self._sockets.get(name) is not sock]

    def listens_on(self, sock: socket.socket) -> bool:
        """Return True if one of the sockets is this socket, or a copy of it."""
        return any(os.path.sameopenfile(sock.fileno(), own.fileno()) for own in self._sockets.values())

    def close(self) -> None:
        """Close all sockets; those of the service manager listen on."""
        for sock in self._sockets.values():
            sock.close()
        for sock in self.inherited.values():
            _listen_again(sock)


@contextmanager
def listening_sockets(
    listeners: Sequence[ListenerConfig], inherited: Mapping[str, socket.socket] = _NOTHING_INHERITED
) -> Iterator[ListeningSockets]:
    """Yield the sockets of these listeners; close them after the block. Raises ConfigError."""
    with closing(ListeningSockets(inherited)) as sockets:
        sockets.use(sockets.prepare(listeners))
        yield sockets


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


def _taken_over(sock: socket.socket, listener: ListenerConfig) -> socket.socket:
    """Return a copy of an inherited socket, which listens."""
    set_timeouts(sock, listener)
    _listen_again(sock)  # a gateway that was killed may have left the socket refusing connections
    return sock.dup()


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
        raise ConfigError([f"{setting}: cannot listen on {address}: {reason}; {_remedy(error, address)}"]) from None
    return sock


def _remedy(error: OSError, address: Address) -> str:
    """Return advice for an address that can't be had."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"stop the process that has this port (`ss -ltnp 'sport = :{address.port}'` names it; perhaps the gateway"
            " runs already), or give another port"
        )
    if isinstance(error, PermissionError) and 0 < address.port < _UNPRIVILEGED:
        return f"give a port from {_UNPRIVILEGED} on, or grant CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities)"
    if isinstance(error, socket.gaierror):
        return "give an IP address of this machine instead of the name"
    return "give an address of this machine (`ip address` lists them), or 0.0.0.0 for every IPv4 address"


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
