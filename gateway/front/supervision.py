"""Messages between the core and the supervisor, over a Unix socket pair that keeps their boundaries.

core --> supervisor    PREPARE: check the file, open what is missing; USE: start new workers with it; FORGET; DRAIN
supervisor --> core    a worker has started: its index, and its socket
                       the answer to PREPARE: mistakes, or the listening sockets that were opened
"""

import json
import socket
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

from gateway.config import Address

_SIZE: Final = 160 * 1024  # bytes of a message, at most; a character of a mistake takes up to six
_DESCRIPTORS: Final = 253  # in one message, at most (SCM_MAX_FD)
_MISTAKES: Final = 20  # that are told
_TEXT: Final = 1000  # characters of a mistake that are told


class Order(Enum):
    """Orders of the core to the supervisor."""

    PREPARE = b"prepare"  # read the file again, and open what new workers need; an answer follows
    USE = b"use"  # start new workers with what was prepared
    FORGET = b"forget"  # close what was prepared
    DRAIN = b"drain"  # start no worker any more; the supervisor closes its sending side


class News(NamedTuple):
    """A message of the supervisor: the index and the generation of a worker that has started, or the answer to PREPARE.

    ``generation`` is the number of USE orders that the supervisor has obeyed before. ``sockets`` are the worker's, by
    the name "", or the listening sockets that were opened, by their listeners. ``number`` is that of the PREPARE order,
    and ``binds`` are the addresses of all listeners, by their names. ``lost`` is the number of sockets that the kernel
    has closed instead of giving them to this process, which is out of descriptors.
    """

    worker: int | None
    generation: int
    mistakes: Sequence[str]
    sockets: Mapping[str, socket.socket]
    number: int = 0
    binds: Mapping[str, str] = {}
    lost: int = 0

    def close(self) -> None:
        """Close the sockets: they are not used."""
        for sock in self.sockets.values():
            sock.close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the supervisor's and the core's end."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_order(sock: socket.socket, order: Order, number: int = 0) -> None:
    """Send an order to the supervisor. Raises OSError if it has ended.

    The answer to PREPARE has the order's ``number``.
    """
    sock.send(b"%s %d" % (order.value, number))


def receive_order(sock: socket.socket) -> tuple[Order, int] | None:
    """Return the core's next order and its number, or None if the core has ended."""
    try:
        data = sock.recv(_SIZE)
    except OSError:
        return None
    if not data:
        return None
    order, _, number = data.partition(b" ")
    return Order(order), int(number)


def send_worker(sock: socket.socket, index: int, generation: int, worker: socket.socket) -> None:
    """Hand a worker's socket to the core. Raises OSError if the core has ended."""
    _send(sock, {"worker": index, "generation": generation, "names": [""]}, [worker])


def send_prepared(
    sock: socket.socket,
    number: int,
    mistakes: Sequence[str],
    binds: Mapping[str, Address],
    opened: Mapping[str, socket.socket],
) -> None:
    """Answer the PREPARE order with this number. Raises OSError if the core has ended."""
    told = [mistake[:_TEXT] for mistake in mistakes[:_MISTAKES]]
    addresses = {name: str(bind) for name, bind in binds.items()}
    _send(sock, {"number": number, "mistakes": told, "binds": addresses, "names": [*opened]}, [*opened.values()])


def _send(sock: socket.socket, message: Mapping[str, object], sockets: Sequence[socket.socket]) -> None:
    data = json.dumps(message, ensure_ascii=False).encode("utf-8", "backslashreplace")
    socket.send_fds(sock, [data], [each.fileno() for each in sockets])


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
        dict(zip(message["names"], sockets, strict=False)),
        message.get("number", 0),
        message.get("binds", {}),
        lost=len(message["names"]) - len(sockets),
    )
