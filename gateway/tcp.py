"""TCP: keep-alive and user timeout of connections, and the kernel's record of data that was sent."""

import socket
import struct
from contextlib import suppress
from typing import Final, Protocol

_PROBES: Final = 3  # keep-alive probes that must stay unanswered: a single lost packet must not end a connection
#: ``tcpi_unacked`` (segments) and ``tcpi_last_ack_recv`` (milliseconds) of Linux's struct tcp_info.
_TCP_INFO: Final = struct.Struct("@24xI28xI")


class TcpTimeouts(Protocol):
    """Settings after which a connection ends because its peer is unreachable, both in seconds.

    ``tcp_keepalive`` is the silence after which the kernel probes the peer. ``tcp_user_timeout`` is how long data or
    probes may stay unacknowledged. Linux ends a connection at the first unanswered probe if the peer has been silent
    for longer than ``tcp_user_timeout``, so that ``tcp_user_timeout`` should be at least twice ``tcp_keepalive``: then
    three probes are sent.
    """

    @property
    def tcp_keepalive(self) -> int:
        """Whole seconds."""

    @property
    def tcp_user_timeout(self) -> float:
        """Seconds."""


def set_timeouts(sock: socket.socket, timeouts: TcpTimeouts) -> None:
    """Set these times on a connection, or on a listening socket: accepted connections inherit them.

    A dead peer of a silent connection is noticed after about twice ``tcp_keepalive``. Does nothing if the connection
    has ended already.
    """
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, timeouts.tcp_keepalive)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(timeouts.tcp_keepalive / _PROBES)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeouts.tcp_user_timeout * 1000))


def acknowledge(sock: socket.socket) -> None:
    """Have the kernel acknowledge the received bytes at once: the peer may wait for that before it sends more.

    Clients that write header and body apart without TCP_NODELAY would wait 40 ms. The option is set each time, since
    the kernel resets it; bytes that are sent need no option, since they carry the acknowledgement.
    """
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def is_unacknowledged(sock: socket.socket, seconds: float) -> bool:
    """Return True if data was sent, and the peer's kernel has acknowledged nothing for so many seconds.

    Call no earlier than ``seconds`` after sending: on a connection that was idle before, the last acknowledgement is
    already old in the moment of sending. Costs one system call.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return False
    unacknowledged, last_acknowledgement = _TCP_INFO.unpack(info)
    return bool(unacknowledged) and last_acknowledgement >= seconds * 1000
