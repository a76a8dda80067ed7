"""Key managers that cost next to nothing: one process, one epoll, a fixed answer to a Get over mutual TLS.

``python -m kmip_lab.compare.backend CERTIFICATE KEY CLIENT_CA PORT...`` listens on each port of 127.0.0.1 until it
is killed. The simulated key manager does all that KMIP requires, which costs as much as a proxy does: measured in
front of it, all proxies would look alike.
"""

import select
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

import click
from OpenSSL import SSL

from kmip_lab.compare import wire

_RECORD: Final = 16384
_BACKLOG: Final = 1024


class _Connection:
    """One client: its TLS connection, and the bytes so far of its next request."""

    __slots__ = ("connection", "is_handshaken", "received", "sock")

    def __init__(self, sock: socket.socket, context: SSL.Context) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.connection = SSL.Connection(context, sock)
        self.connection.set_accept_state()
        self.is_handshaken = False
        self.received = b""

    def step(self) -> bool:
        """Continue with the bytes that have arrived. Return False if the connection is over."""
        try:
            if not self.is_handshaken:
                self.connection.do_handshake()
                self.is_handshaken = True
                return True  # epoll reports bytes that came with it
            data = self.received + self.connection.recv(_RECORD)
            while wire.size(data) <= len(data):
                end = wire.size(data)
                self.connection.send(wire.answer(data[:end]))
                data = data[end:]
            self.received = data
        except (SSL.WantReadError, SSL.WantWriteError):
            return True  # an answer is far smaller than a socket's buffer: only a dead client leaves it full
        except (SSL.Error, OSError):
            return False
        return True

    def close(self) -> None:
        with suppress(SSL.Error):
            self.connection.shutdown()
        self.sock.close()


def serve(context: SSL.Context, listeners: list[socket.socket]) -> None:
    """Answer every client of these listening sockets, for ever."""
    poll = select.epoll()
    listening = {listener.fileno(): listener for listener in listeners}
    connections: dict[int, _Connection] = {}
    for number in listening:
        poll.register(number, select.EPOLLIN)
    while True:
        for number, _event in poll.poll():
            if number in listening:
                sock = listening[number].accept()[0]
                connections[sock.fileno()] = _Connection(sock, context)
                poll.register(sock.fileno(), select.EPOLLIN)
            elif not connections[number].step():
                connections.pop(number).close()  # which takes it out of epoll


@click.command()
@click.argument("certificate", type=click.Path(path_type=Path))
@click.argument("private_key", type=click.Path(path_type=Path))
@click.argument("client_ca", type=click.Path(path_type=Path))
@click.argument("ports", type=int, nargs=-1)
@click.option("--resumption/--no-resumption", default=True)
def main(certificate: Path, private_key: Path, client_ca: Path, ports: tuple[int, ...], resumption: bool) -> None:
    """Answer Gets on every port of 127.0.0.1 that is given."""
    context = wire.server_context(certificate, private_key, client_ca, resumes=resumption)
    serve(context, [socket.create_server(("127.0.0.1", port), backlog=_BACKLOG) for port in ports])


if __name__ == "__main__":
    main()
