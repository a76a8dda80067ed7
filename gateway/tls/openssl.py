"""OpenSSL: its own functions, its version, and its errors in words: a text for the log, a short reason for metrics."""

import errno
from typing import Final

from OpenSSL import SSL

from gateway.errors import StreamClosedError, TlsError

CLOSED_HERE: Final = "closed on this side"
RECORD: Final = 16384  # bytes in one TLS record, and so in one read

_ffi: Final = SSL._ffi  # type: ignore[attr-defined]  # noqa: SLF001 - see below
_lib: Final = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001
# OpenSSL's own functions for the hot path, without pyOpenSSL, which costs as much as OpenSSL does. The result of a read
# or write is a number of bytes; if it is not positive, ``raise_error`` raises pyOpenSSL's exception for it.
ssl_read: Final = _lib.SSL_read
ssl_write: Final = _lib.SSL_write
ssl_pending: Final = _lib.SSL_pending
ssl_do_handshake: Final = _lib.SSL_do_handshake
ssl_get_error: Final = _lib.SSL_get_error
WANT_READ: Final = _lib.SSL_ERROR_WANT_READ
ZERO_RETURN: Final = _lib.SSL_ERROR_ZERO_RETURN
raise_error: Final = SSL.Connection._raise_ssl_error  # noqa: SLF001
to_bytes: Final = _ffi.unpack
from_buffer: Final = _ffi.from_buffer
#: Makes the buffer of one ``ssl_read``. No buffer is kept: two threads may read at a time.
allocate: Final = _ffi.new_allocator(should_clear_after_alloc=False)
READ_BUFFER: Final = _ffi.typeof(f"char[{RECORD}]")

_OPENSSL_4: Final = 0x4000_0000


def openssl_version() -> str:
    """Return the name, the version and the date of the OpenSSL in use, as ``OpenSSL 4.0.0 14 Apr 2026``."""
    return SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()


def check_openssl() -> None:
    """Raise TlsError if OpenSSL is so old that a client that disconnects could break other sessions.

    An error that was not fetched stays on the thread's queue. Before 4.0, OpenSSL took it for the outcome of the next
    call of the thread, which serves all clients and key managers.
    """
    if SSL.OPENSSL_VERSION_NUMBER < _OPENSSL_4:
        raise TlsError(
            f"{openssl_version()} is too old: a client that disconnects could break other sessions; install"
            " cryptography's own wheel, which brings OpenSSL 4 (`pip install --only-binary :all: 'cryptography>=48'`)"
        )


#: Parts of OpenSSL's texts, and the reason of a TlsError for each; the first part that is found counts.
_REASONS: Final = (
    ("peer did not return a certificate", "no_certificate"),
    ("no shared cipher", "no_shared_cipher"),
    ("no suitable signature", "no_shared_cipher"),
    ("unsupported protocol", "version"),
    ("http request", "not_tls"),
    ("https proxy request", "not_tls"),
    ("wrong version number", "not_tls"),
    ("packet length too long", "not_tls"),
    ("alert protocol version", "version"),
    ("alert", "alert"),
    ("certificate verify failed", "certificate"),
)
#: X509_V_ERR_* of OpenSSL's x509_vfy.h for which "certificate" would tell the operator too little.
_VERIFY_REASONS: Final = {
    2: "unknown_ca",
    18: "unknown_ca",
    19: "unknown_ca",
    20: "unknown_ca",
    21: "unknown_ca",
    9: "not_yet_valid",
    10: "expired",
    23: "revoked",
    26: "purpose",
}


def handshake_reason(error: SSL.Error, verification_error: int) -> str:
    """Return the reason of a failed handshake; ``verification_error`` is the number of the certificate's, or 0."""
    text = text_of(error)
    reason = next((reason for part, reason in _REASONS if part in text), "tls")
    return _VERIFY_REASONS.get(verification_error, reason) if reason == "certificate" else reason


def is_about_certificate(alert: str) -> bool:
    """Return True if OpenSSL's text of an alert says that the peer refuses this side's certificate (RFC 8446, 6.2)."""
    return "certificate" in alert or "unknown ca" in alert


def record_reason(error: SSL.Error) -> str:
    """Return the reason of an error after the handshake: an alert of the peer's, or any other."""
    return "alert" if "alert" in text_of(error) else "tls"


def connection_lost(context: str, error: OSError) -> StreamClosedError:
    """Return the error for a socket that failed; its text begins with ``context``."""
    return StreamClosedError(f"{context}: {errno.errorcode.get(error.errno or 0, str(error))}")


def text_of(error: Exception) -> str:
    """Return OpenSSL's own text of an error."""
    if isinstance(error, SSL.SysCallError):
        number, text = error.args
        return "closed by the peer" if number == -1 else errno.errorcode.get(number, str(text))
    if error.args and isinstance(error.args[0], list):
        reasons = [reason for _library, _function, reason in error.args[0]]  # "" if a system call has failed
        return "; ".join(filter(None, reasons)) or ("reset by the peer" if reasons else "unknown")
    return "closed by the peer" if isinstance(error, SSL.ZeroReturnError) else CLOSED_HERE
