"""The bytes before TLS: peek at them in the kernel's buffer, so that a waiting connection needs no TLS state.

A connection with an OpenSSL object and a read buffer takes 58 KiB; a connection that waits for its first bytes, 6 KiB.
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
_LARGEST_HELLO: Final = 16384  # bytes of one record; OpenSSL refuses longer records
_RETRY: Final = 0.01  # s between two peeks if the kernel reports fewer bytes than SO_RCVLOWAT asks for


def bytes_of_hello(data: bytes) -> int:
    """Return the number of bytes that must have arrived before the TLS handshake begins: the whole first record.

    No further bytes are needed if ``data`` is no handshake record of TLS: OpenSSL refuses it.
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
    """Wait until the first TLS record of a client is complete, or the client has closed. Return the bytes, unread."""
    return await _peek_until(sock, bytes_of_hello)


def hello_is_there(sock: socket.socket) -> bool:
    """Return True if no more waiting is needed: the first TLS record has arrived, or the client has closed or reset."""
    try:
        data = _peek(sock, _TLS_RECORD_HEADER)
        if data is None:
            return False
        needed = bytes_of_hello(data)
        return not data or (len(data) == _TLS_RECORD_HEADER and len(_peek(sock, needed) or b"") >= needed)
    except OSError:
        return True


async def read_proxy_header(sock: socket.socket) -> ProxyHeader:
    """Read a PROXY header from a connection, and no byte after it.

    Raises ProxyHeaderError if there is no header, if it is malformed, or if the peer closes within it. Raises
    StreamClosedError if the peer closes before it, as a balancer's plain health check does. The caller sets the
    deadline.
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
    """Wait for the number of bytes that ``needed`` returns for the bytes so far. Return them; they stay unread.

    Returns fewer bytes if the peer has closed or reset. The kernel does not wake the task earlier (SO_RCVLOWAT): a
    client that sends single bytes costs nothing until then.
    """
    wanted = 1
    try:
        while True:
            data = _peek(sock, most)
            if data is not None:
                if len(data) >= (size := needed(data)) or _has_closed(sock):
                    return data
                if wanted == size:
                    await trio.sleep(_RETRY)
                wanted = size
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            await trio.lowlevel.wait_readable(sock)
    except OSError:  # a reset: the next read raises
        return b""
    finally:
        if wanted > 1 and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def _peek(sock: socket.socket, most: int) -> bytes | None:
    """Return the unread bytes; None if there are none yet, and empty if the peer has closed."""
    try:
        return sock.recv(most, socket.MSG_PEEK)
    except BlockingIOError:
        return None


def _has_closed(sock: socket.socket) -> bool:
    """Return True if the peer has closed its sending side, or reset the connection."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
