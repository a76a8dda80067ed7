"""Resumption of TLS sessions: a bound on the sessions that a server stores, and an end that no resumption extends."""

import time
from collections import deque
from typing import Final

from OpenSSL import SSL

_STORED_SESSIONS: Final = 1000  # of TLS 1.2 clients without tickets, some 10 KiB each
_TLS_1_3: Final = 0x304
_STORING: Final = SSL.SESS_CACHE_SERVER
_NOT_STORING: Final = SSL.SESS_CACHE_SERVER | SSL.SESS_CACHE_NO_INTERNAL_STORE  # stored sessions can be resumed


class ServerContext(SSL.Context):
    """A server's context that stores at most ``max_stored`` sessions, each for ``lifetime`` seconds.

    A ticket holds its session itself. Sessions of TLS 1.2 clients without tickets are stored in the context, by
    OpenSSL's default 20,480 of them. pyOpenSSL can't set that bound, so that storing is turned off at ``max_stored``
    sessions until the oldest expire; clients shake hands in full meanwhile.

    ``made_at`` is the time of the monotonic clock, which all processes share. The keys of tickets are as old.
    """

    def __init__(self, lifetime: float, max_stored: int = _STORED_SESSIONS) -> None:
        super().__init__(SSL.TLS_METHOD)
        self.made_at = time.monotonic()
        self._lifetime = lifetime
        self._max_stored = max_stored
        self._expiry: deque[float] = deque()  # of the stored sessions, the oldest first
        self._is_storing = True
        self.set_session_cache_mode(SSL.SESS_CACHE_SERVER)

    def completed(self, connection: SSL.Connection) -> None:
        """Count the session of a full handshake that was just completed, if OpenSSL stores it."""
        if connection.get_protocol_version() >= _TLS_1_3 or not _has_session_id(connection):
            return
        now = time.monotonic()
        while self._expiry and self._expiry[0] <= now:
            self._expiry.popleft()
        if self._is_storing:
            self._expiry.append(now + self._lifetime)
        is_storing = len(self._expiry) < self._max_stored
        if is_storing is not self._is_storing:
            self._is_storing = is_storing
            _set_session_cache_mode(self, _STORING if is_storing else _NOT_STORING)


def _set_session_cache_mode(context: SSL.Context, mode: int) -> None:
    """Set the mode of a context in use. pyOpenSSL refuses to, since that is unsafe with several threads."""
    SSL._lib.SSL_CTX_set_session_cache_mode(context._context, mode)  # type: ignore[attr-defined]  # noqa: SLF001


def _has_session_id(connection: SSL.Connection) -> bool:
    """Return True if the session has an ID, which a session with a ticket does not have before TLS 1.3.

    In DER, a session begins with its format (3 bytes), version (4), cipher (4) and ID (OpenSSL's ssl_asn1.c).
    """
    library, foreign = SSL._lib, SSL._ffi  # type: ignore[attr-defined]  # noqa: SLF001 - pyOpenSSL shows no more
    session = library.SSL_get_session(connection._ssl)  # noqa: SLF001
    encoded = foreign.new("unsigned char[]", library.i2d_SSL_SESSION(session, foreign.NULL))
    library.i2d_SSL_SESSION(session, foreign.new("unsigned char **", encoded))
    length = encoded[1]
    head = 2 + (length & 0x7F if length & 0x80 else 0)
    return bool(encoded[head + 12])


def issue_no_further_ticket(connection: SSL.Connection) -> None:
    """Issue no new ticket for a resumed session; OpenSSL calls this once it knows the session to resume.

    In TLS 1.3 every handshake issues tickets, each with a whole lifetime: a client that resumes in time could avoid a
    full handshake for ever. The client keeps the ticket of its full handshake.
    """
    if SSL._lib.SSL_session_reused(connection._ssl):  # type: ignore[attr-defined]  # noqa: SLF001 - as above
        connection.set_options(SSL.OP_NO_TICKET)
