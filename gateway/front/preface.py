"""The bytes before TLS: they are looked at in the kernel's buffer, so that a waiting connection costs no TLS state.

A connection with an OpenSSL object and a read buffer takes 58 KiB, one that is only waited for takes 6 KiB.
"""

import select
import socket
from collections.abc import Callable
from typing import Final

import trio

from gateway.errors import StreamClosedError
from gateway.front.proxy_protocol import MAX_V2, ProxyHeader, ProxyHeaderError, parse

_TLS_RECORD_HEADER: Final = 5  # bytes: type, version (2), length (2); RFC 8446, section 5.1
_TLS_HANDSHAKE: Final = 0x16
_LARGEST_HELLO: Final = 16384  # bytes of one record; OpenSSL refuses what claims more
_RETRY: Final = 0.01  # s between two looks on a kernel that reports fewer bytes than SO_RCVLOWAT asks for


def bytes_of_hello(data: bytes) -> int:
    """Return how many bytes of a connection must be there before its TLS handshake can begin.

    That is the first record, which a client sends at once. Bytes that are no handshake record of TLS are OpenSSL's to
    refuse; no more of them are needed.
    """
    if not data:
        return _TLS_RECORD_HEADER
    if data[0] != _TLS_HANDSHAKE:
        return len(data)
    if len(data) < _TLS_RECORD_HEADER:
        return _TLS_RECORD_HEADER
    length = int.from_bytes(data[3:5], "big")
    return _TLS_RECORD_HEADER + length if length <= _LARGEST_HELLO else len(data)


async def wait_for_hello(sock: socket.socket) -> bytes:
    """Wait until the first TLS record of a client is complete, or the client has left. Returns its first bytes."""
    return await _peek_until(sock, bytes_of_hello)


def hello_is_there(sock: socket.socket) -> bool:
    """Return True if the first TLS record of a client has arrived, or the client has left: no more waiting is needed.

    A reset may have arrived, too, that the connection's own task has not seen yet.
    """
    try:
        data = _peek(sock, _TLS_RECORD_HEADER)
        if data is None:
            return False
        needed = bytes_of_hello(data)
        return not data or (len(data) == _TLS_RECORD_HEADER and len(_peek(sock, needed) or b"") >= needed)
    except OSError:
        return True


async def read_proxy_header(sock: socket.socket) -> ProxyHeader:
    """Take a PROXY header off a connection, and not a byte more.

    Raises ProxyHeaderError if there is none, if it is malformed, or if the peer leaves within it; StreamClosedError if
    the peer leaves without a byte, as a balancer's plain health check does. The caller sets the deadline.
    """

    def needed(data: bytes) -> int:
        parsed = parse(data)
        return parsed if isinstance(parsed, int) else parsed.size

    data = await _peek_until(sock, needed, most=MAX_V2)
    header = parse(data)
    if isinstance(header, int):
        if not data:
            raise StreamClosedError("closed before a PROXY header")
        raise ProxyHeaderError("the connection ended within a PROXY header")
    try:
        sock.recv(header.size)
    except OSError:
        raise StreamClosedError("reset after a PROXY header") from None
    return header


async def _peek_until(sock: socket.socket, needed: Callable[[bytes], int], most: int = 64 + _LARGEST_HELLO) -> bytes:
    """Wait for as many bytes as ``needed`` says of those that are there; return them. They stay unread.

    Returns fewer if the peer has closed or reset. The kernel wakes nobody before the bytes are there (SO_RCVLOWAT), so
    that a client that sends one byte after the other costs nothing until then.
    """
    wanted = 1
    try:
        while True:
            data = _peek(sock, most)
            if data is not None:
                if len(data) >= (size := needed(data)) or _has_left(sock):
                    return data
                if wanted == size:
                    await trio.sleep(_RETRY)
                wanted = size
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            await trio.lowlevel.wait_readable(sock)
    except OSError:  # a reset; whoever reads next is told
        return b""
    finally:
        if wanted > 1 and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def _peek(sock: socket.socket, most: int) -> bytes | None:
    """Return the bytes that are there; None if there are none yet, and empty if the peer has closed."""
    try:
        return sock.recv(most, socket.MSG_PEEK)
    except BlockingIOError:
        return None


def _has_left(sock: socket.socket) -> bool:
    """True if the peer has closed its sending side, or reset the connection."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
