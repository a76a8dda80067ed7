"""Bounds on the TLS records of one connection, so that no peer can occupy the event loop.

OpenSSL reads on until it has a whole handshake message, or application data. A peer that sends a message in records of
one byte, or records without application data, would keep a single call busy for seconds. So:

* A handshake reads from memory. ``record_feed`` gives OpenSSL one record at a time, and counts records and bytes.
* After the handshake OpenSSL reads the socket itself, and returns after each message that is not application data
  (SSL_MODE_AUTO_RETRY is off). From the head of such a message on, OpenSSL reads memory again until the message is
  complete, so that a message in several records is bounded as a handshake is.

The functions here use OpenSSL calls that pyOpenSSL does not offer in public; such calls for session resumption are in
``resumption``.
"""

import errno
from typing import Any, Final

from OpenSSL import SSL

from gateway.errors import TlsError
from gateway.tls.openssl import READ_BUFFER, RECORD, allocate, to_bytes

HEAD_SIZE: Final = 5  # bytes of a record's head: type, version (two bytes), length (two bytes); RFC 8446, 5.1
MAX_LENGTH: Final = 16384 + 2048  # of a record in TLS 1.2 and below, the highest of all versions; RFC 5246, 6.2.3

_MAX_HANDSHAKE_BYTES: Final = 128 * 1024  # OpenSSL takes certificate chains of at most 100 KiB
_SMALL_RECORDS: Final = 64  # records that a handshake may have, besides one for each _FAIR_LENGTH bytes
_FAIR_LENGTH: Final = 512  # the shortest limit that a client can negotiate for its records; RFC 6066, 4

_BURST: Final = 64  # records without data at once; a server may send some tickets at the beginning
_INTERVAL: Final = 1.0  # s for each further record

_ffi: Final = SSL._ffi  # type: ignore[attr-defined]  # noqa: SLF001 - see above
_lib: Final = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001
_TYPES: Final = frozenset({20, 21, 22, 23})  # of records; RFC 8446, 5.1
_CB_LOOP: Final = 0x01  # SSL_CB_* of OpenSSL's ssl.h
_CB_EXIT: Final = 0x02


class HandshakeBudget:
    """The records and bytes that a handshake, or a message after it, may still take.

    ``prefix`` begins the text of the TlsError, and ``reason`` is its reason.
    """

    __slots__ = ("_prefix", "_reason", "_records", "size")

    def __init__(self, prefix: str, reason: str) -> None:
        self._prefix = prefix
        self._reason = reason
        self.size = 0  # bytes taken so far
        self._records = 0

    def __repr__(self) -> str:
        return f"<HandshakeBudget: {self._records} records, {self.size} bytes used>"

    def take(self, size: int) -> None:
        """Count a record of ``size`` bytes before it is read. Raises TlsError above the bounds."""
        self.size += size
        self._records += 1
        if self.size > _MAX_HANDSHAKE_BYTES:
            raise TlsError(f"{self._prefix}: more than {_MAX_HANDSHAKE_BYTES} bytes", reason=self._reason)
        if self._records > _SMALL_RECORDS + self.size // _FAIR_LENGTH:
            raise TlsError(f"{self._prefix}: {self._records} records for {self.size} bytes", reason=self._reason)


class RecordAllowance:
    """The records without application data that a peer may still send: 64 at once, then one a second."""

    __slots__ = ("_paid_until",)

    def __init__(self) -> None:
        self._paid_until = float("-inf")

    def __repr__(self) -> str:
        return f"<RecordAllowance: used until {self._paid_until:g}>"

    def take(self, now: float) -> None:
        """Count a record that arrived at ``now``, in seconds. Raises TlsError (records) above the bound."""
        self._paid_until = max(self._paid_until, now) + _INTERVAL
        if self._paid_until > now + _BURST * _INTERVAL:
            raise TlsError(f"connection broken: more than {_BURST} records without data", reason="records")


def body_length(head: bytes) -> int:
    """Return the number of bytes after a record's head; 0 if that is no head of TLS: OpenSSL fails on it alone."""
    length = head[3] << 8 | head[4]
    return length if head[0] in _TYPES and head[1] == 3 and length <= MAX_LENGTH else 0


def return_after_each_message(connection: SSL.Connection) -> None:
    """Clear SSL_MODE_AUTO_RETRY, which pyOpenSSL sets, so that a read returns after a message without data."""
    _lib.SSL_clear_mode(_ssl(connection), _lib.SSL_MODE_AUTO_RETRY)


def attach(connection: SSL.Connection, descriptor: int) -> None:
    """Have OpenSSL read and write a socket from now on. The memory BIOs must be empty."""
    first = connection._from_ssl is not None  # noqa: SLF001
    _use_socket(connection, descriptor)
    if first:
        _lib.SSL_set_info_callback(_ssl(connection), _on_state)


def give(connection: SSL.Connection, data: bytes) -> None:
    """Give OpenSSL bytes to read from memory."""
    if _lib.BIO_write(connection._into_ssl, data, len(data)) != len(data):  # noqa: SLF001
        raise MemoryError


def take_written(connection: SSL.Connection) -> bytes:
    """Return the bytes that OpenSSL has written to memory since the last call."""
    written = b""
    buffer = allocate(READ_BUFFER)
    while (size := _lib.BIO_read(connection._from_ssl, buffer, RECORD)) > 0:  # noqa: SLF001
        written += to_bytes(buffer, size)
    return written


def was_partial() -> bool:
    """Return True if the last read, which raised WantReadError, found the socket empty, or only a part of a record.

    Return False if it read a message without application data, after which OpenSSL does not read on. cffi keeps the
    errno of the last call; OpenSSL sets it to 0 before it reads a socket.
    """
    return bool(_ffi.errno == errno.EAGAIN)


def is_detached(connection: SSL.Connection) -> bool:
    """Return True if a message without application data was read since the last ``attach``: call that again."""
    return connection._from_ssl is not None  # noqa: SLF001


def write_answer(connection: SSL.Connection) -> None:
    """Have OpenSSL write its answer to a key update now, instead of before the next data."""
    _lib.SSL_write(_ssl(connection), _ffi.NULL, 0)


def _use_socket(connection: SSL.Connection, descriptor: int) -> None:
    if _lib.SSL_set_fd(_ssl(connection), descriptor) != 1:
        raise MemoryError
    connection._into_ssl = connection._from_ssl = None  # noqa: SLF001 - SSL_set_fd has freed them


def _use_memory(connection: SSL.Connection) -> None:
    memory = _lib.BIO_s_mem()
    connection._into_ssl, connection._from_ssl = _lib.BIO_new(memory), _lib.BIO_new(memory)  # noqa: SLF001
    _lib.SSL_set_bio(_ssl(connection), connection._into_ssl, connection._from_ssl)  # noqa: SLF001


def _ssl(connection: SSL.Connection) -> Any:
    return connection._ssl  # noqa: SLF001


@_ffi.callback("void (*)(const SSL *, int, int)")  # type: ignore[untyped-decorator]
def _on_state(ssl: Any, where: int, result: int) -> None:
    """Follow a message after the handshake: its head was read (LOOP); it was complete, or not (EXIT)."""
    connection = SSL.Connection._reverse_mapping[ssl]  # noqa: SLF001
    if where & _CB_LOOP and connection._from_ssl is None:  # noqa: SLF001
        _use_memory(connection)
    elif where & _CB_EXIT:
        connection.get_app_data().is_whole = result == 1
