"""Messages between the core and the supervisor, over a Unix socket pair that keeps their boundaries.

core --> supervisor    PREPARE: check the file, open what is missing; USE: start new workers with it; DRAIN
supervisor --> core    a worker has started: its index, and its socket
                       the answer to PREPARE: mistakes, or the listening sockets that were opened
"""

import json
import socket
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

_SIZE: Final = 64 * 1024  # bytes of a message, at most
_DESCRIPTORS: Final = 253  # in one message, at most (SCM_MAX_FD)
_MISTAKES: Final = 20  # that are told
_TEXT: Final = 1000  # characters of a mistake that are told


class Order(Enum):
    """Orders of the core to the supervisor."""

    PREPARE = b"prepare"  # read the file again, and open what new workers need; an answer follows
    USE = b"use"  # start new workers with what was prepared
    DRAIN = b"drain"  # start no worker any more


class News(NamedTuple):
    """A message of the supervisor: the index and the generation of a worker that has started, or the answer to PREPARE.

    ``generation`` is the number of USE orders that the supervisor has obeyed before. ``sockets`` are the worker's, by
    the name "", or the listening sockets that were opened, by their listeners.
    """

    worker: int | None
    generation: int
    mistakes: Sequence[str]
    sockets: Mapping[str, socket.socket]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the supervisor's and the core's end."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_order(sock: socket.socket, order: Order) -> None:
    """Send an order to the supervisor. Raises OSError if it has ended."""
    sock.send(order.value)


def receive_order(sock: socket.socket) -> Order | None:
    """Return the core's next order, or None if the core has ended."""
    try:
        data = sock.recv(_SIZE)
    except OSError:
        return None
    return Order(data) if data else None


def send_worker(sock: socket.socket, index: int, generation: int, worker: socket.socket) -> None:
    """Hand a worker's socket to the core. Raises OSError if the core has ended."""
    _send(sock, {"worker": index, "generation": generation, "names": [""]}, [worker])


def send_prepared(sock: socket.socket, mistakes: Sequence[str], opened: Mapping[str, socket.socket]) -> None:
    """Answer PREPARE. Raises OSError if the core has ended."""
    told = [mistake[:_TEXT] for mistake in mistakes[:_MISTAKES]]
    _send(sock, {"mistakes": told, "names": [*opened]}, [*opened.values()])


def _send(sock: socket.socket, message: Mapping[str, object], sockets: Sequence[socket.socket]) -> None:
    socket.send_fds(sock, [json.dumps(message).encode()], [each.fileno() for each in sockets])


def receive_news(sock: socket.socket) -> News | None:
    """Return the supervisor's next message, or None if the supervisor has ended. Raises BlockingIOError."""
    try:
        data, descriptors, _flags, _address = socket.recv_fds(sock, _SIZE, _DESCRIPTORS)
    except ConnectionError:
        return None
    if not data:
        return None
    message = json.loads(data)
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    return News(
        message.get("worker"),
        message.get("generation", 0),
        message.get("mistakes", ()),
        dict(zip(message["names"], sockets, strict=True)),
    )
