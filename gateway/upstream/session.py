"""Session: one authenticated connection to a key manager, one request at a time.

A session is IDLE only before its first exchange and after an exchange that ended properly. An error, a deadline and a
shutdown leave the session BUSY, and a session that is given back BUSY is closed. So no client gets the answer to the
request of a different client.
"""

from collections.abc import Callable, Hashable
from enum import Enum
from typing import Final, Protocol

import trio

from gateway.config import LimitsConfig
from gateway.errors import (
    BackendError,
    MessageTooLargeError,
    ProtocolError,
    Stage,
    StreamClosedError,
    StreamInterruptedError,
    TlsError,
)
from gateway.kmip.answers import MadeObjects, is_answer_to
from gateway.kmip.decode import decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Tag
from gateway.timers import Timer


class SessionState(Enum):
    """State of a session; the value is printed in logs."""

    IDLE = "idle"
    BUSY = "busy"
    CLOSED = "closed"


# Access to an enum member is slow, and every exchange needs these.
_IDLE: Final = SessionState.IDLE
_BUSY: Final = SessionState.BUSY
_CONNECT: Final = Stage.CONNECT
_SEND: Final = Stage.SEND
_WAIT: Final = Stage.WAIT
_READ: Final = Stage.READ
_MAX_UNPAID: Final = 65536  # bytes of an answer to the gateway's own requests


class Stream(Protocol):
    """The part of a connection that a session uses. TlsStream implements it.

    ``is_flooded`` is True once the peer has sent more TLS records without data than it may. ``spoke_unasked`` is True
    once ``is_quiet`` has found bytes that no request asked for.
    """

    is_flooded: bool
    spoke_unasked: bool

    async def receive_some(self) -> bytes:
        """Wait for bytes, and return them; empty at the end of the stream."""

    async def send_all(self, data: bytes) -> None:
        """Send all bytes. Raises StreamClosedError or TlsError."""

    def is_quiet(self) -> bool:
        """Return True if the peer has neither sent bytes nor closed."""

    def is_readable(self) -> bool:
        """Return True if bytes have arrived that were not read."""

    def is_unacknowledged(self, seconds: float) -> bool:
        """Return True if bytes were sent, and the peer's kernel has acknowledged nothing for so many seconds."""

    def interrupt(self) -> None:
        """Make ``receive_some`` or ``send_all`` raise StreamInterruptedError, if a task waits in it."""

    def close(self) -> None:
        """Close at once, without a TLS close_notify."""

    def close_politely(self) -> None:
        """Send a TLS close_notify, and close."""


class Payer(Protocol):
    """Counts the bytes of an answer while the answer is received."""

    def hold(self, size: int) -> object:
        """Count ``size`` more bytes, or fewer if negative. Over a limit, count nothing and return the limit."""


class SupersededError(Exception):
    """Another session has answered the request first. The interrupted exchange may be continued and finished."""


class Session:
    """An authenticated connection to the backend named ``backend``; ``peer`` is the IP address at the other end.

    The session keeps ``state``, ``stage`` (how far the exchange has come), ``requests`` (the number of exchanges that
    ended properly, without those of validation at the start), ``opened_at``, and ``fault``: "unasked" if the key
    manager sent bytes that no request asked for, "mismatch" if the key manager answered a different request, else
    empty. A session with a fault must be closed: each further answer may be the answer to the previous request.

    The pool, which lends the session, keeps ``expires_at`` and ``idle_since`` (trio's time), ``principal`` (the last
    borrower), ``is_reused`` (True once the session was idle or has served a request), and ``is_abandoned`` (True while
    nobody awaits the answer).

    The borrower keeps ``is_repeatable`` (the request under way may be repeated on a different backend),
    ``exchanging_since`` (the time at which the request was sent), ``client_disconnected`` (returns True once the client
    has disconnected) and ``timer`` (the deadline of the exchange).
    """

    __slots__ = (
        "_is_expired",
        "_is_superseded",
        "_made",
        "_max_fields",
        "_paid",
        "_payer",
        "_reader",
        "_stream",
        "backend",
        "client_disconnected",
        "exchanging_since",
        "expires_at",
        "fault",
        "idle_since",
        "is_abandoned",
        "is_repeatable",
        "is_reused",
        "opened_at",
        "peer",
        "principal",
        "requests",
        "stage",
        "state",
        "timer",
    )

    def __init__(
        self,
        stream: Stream,
        backend: str,
        *,
        limits: LimitsConfig,
        peer: str = "",
    ) -> None:
        self._stream = stream
        self.peer = peer
        self._reader = FrameReader(Tag.RESPONSE_MESSAGE, limits.max_response_size)
        self._max_fields = limits.max_response_fields
        self.backend = backend
        self.state = SessionState.IDLE
        self.stage = Stage.CONNECT
        self.requests = 0
        self.fault = ""
        self._made: MadeObjects | None = None
        self.principal: Hashable = None
        self.is_reused = False
        self.is_abandoned = False
        self.is_repeatable = False
        self.client_disconnected: Callable[[], bool] = _never_disconnected
        self.exchanging_since = float("inf")
        self.timer = Timer()
        self._is_expired = False
        self._is_superseded = False
        self._payer: Payer | None = None
        self._paid = 0  # bytes that the payer holds
        self.opened_at = self.idle_since = trio.current_time()
        self.expires_at = float("inf")

    def __repr__(self) -> str:
        return f"<Session {self.backend} {self.state.value}, {self.requests} requests>"

    @property
    def is_idle(self) -> bool:
        """True if the last exchange ended properly, so that the next may begin."""
        return self.state is _IDLE

    def is_quiet(self) -> bool:
        """Return True if the key manager has neither closed this idle session nor sent bytes. Bytes are a fault."""
        if not self._reader.beginning and self._stream.is_quiet():
            return True
        if self._reader.beginning or self._stream.spoke_unasked:
            self.fault = "unasked"
        return False

    @property
    def is_flooded(self) -> bool:
        """True if the key manager has sent more TLS records without data than it may."""
        return self._stream.is_flooded

    def has_unread_data(self) -> bool:
        """Return True if bytes have arrived that were not read."""
        return self.state is not SessionState.CLOSED and self._stream.is_readable()

    def is_cut_off(self, seconds: float) -> bool:
        """Return True if the peer's kernel has not acknowledged the request for so long: the path is dead."""
        return self.state is not SessionState.CLOSED and self._stream.is_unacknowledged(seconds)

    async def exchange(self, request: Request, *, is_sent: bool = False, payer: Payer | None = None) -> Response:
        """Send a request, unchanged, and return its answer. With ``is_sent``, continue a superseded exchange.

        ``payer`` counts the bytes of an answer that comes in parts, until the answer is whole or the session is closed.
        Without a payer, an answer may have 64 KiB at most. Raises SupersededError, or BackendError with ``stage``. The
        caller sets the deadline. A session whose exchange did not end properly stays BUSY, and must be closed.
        """
        try:
            if not is_sent:
                self.state = _BUSY
                is_first = self.stage is _CONNECT
                self.stage = _CONNECT
                if not is_first and not self.is_quiet():  # bytes that have arrived would be taken for the answer
                    raise self._error(
                        "closed by the key manager, or it sent bytes unasked",
                        "records" if self.is_flooded else "closed",
                    )
                self.stage = _SEND
                await self._stream.send_all(request.frame)
                self.stage = _WAIT
            frame = None
            while frame is None:
                if self._is_superseded:
                    raise StreamInterruptedError  # noqa: TRY301 - as the stream does while it waits
                data = await self._stream.receive_some()
                if not data:
                    raise self._error("closed without an answer" if self.stage is _WAIT else "closed", "closed")
                self.stage = _READ
                frame = self._reader.feed(data)
                if frame is not data:
                    self._pay(payer, frame)
            response = decode_response(frame, max_fields=self._max_fields)
        except StreamInterruptedError:
            self._is_superseded = False
            raise SupersededError from None
        except (StreamClosedError, TlsError) as error:
            raise self._broken(error) from None
        except ProtocolError as mistake:
            raise self._unreadable(mistake) from None
        if not is_answer_to(response, request) or not (self.is_repeatable or self._is_new(response, request)):
            self.fault = "mismatch"
            raise self._error("the answer belongs to another request", "mismatch")
        self._is_superseded = False
        self.requests += 1
        if self._reader.beginning:
            self.fault = "unasked"
            return response  # whole and right, but more bytes follow that no request asked for: the session stays BUSY
        self.state = _IDLE
        return response

    def _is_new(self, response: Response, request: Request) -> bool:
        """Return False if the response creates an object that this session has created before. Reads create none."""
        if self._made is None:
            self._made = MadeObjects()
        return not self._made.were_made_before(response, request)

    def _unreadable(self, error: ProtocolError) -> BackendError:
        if isinstance(error, MessageTooLargeError):
            return self._error(str(error), "too_large")
        return self._error(f"not an answer: {error}", "protocol")

    def _pay(self, payer: Payer | None, frame: bytes | None) -> None:
        """Count the received bytes of an answer until it is whole. Raises BackendError over a limit.

        The caller of ``exchange`` counts the whole answer again before other tasks run, so that the limit has room.
        """
        size = len(self._reader) if frame is None else len(self._reader) + len(frame)
        if payer is None:
            if size > _MAX_UNPAID:
                raise self._error(
                    f"an answer of more than {_MAX_UNPAID} bytes to a request of the gateway itself", "too_large"
                )
            return
        limit = payer.hold(size - self._paid)
        if limit is not None:
            raise self._error("the gateway already holds too many bytes to receive the answer", "max_buffered")
        self._payer, self._paid = payer, size
        if frame is not None:
            self._repay()

    def _repay(self) -> None:
        """Release all bytes that the payer counts for this session."""
        if self._payer is not None:
            self._payer.hold(-self._paid)
        self._payer, self._paid = None, 0

    def supersede(self) -> None:
        """Make the exchange under way raise SupersededError: another session has answered the request."""
        self._is_superseded = True
        self._stream.interrupt()

    def expire(self) -> None:
        """Close at the deadline: the exchange under way raises BackendError with the reason "timeout"."""
        self._is_expired = True
        self._stream.close()

    def _broken(self, error: StreamClosedError | TlsError) -> BackendError:
        if self._is_expired:
            return self._error("no answer in time", "timeout")
        if self.state is SessionState.CLOSED:
            return self._error(
                "closed by the gateway, so that the request is repeated on another backend", "interrupted"
            )
        if self.stage is Stage.SEND and isinstance(error, StreamClosedError) and error.nothing_sent:
            self.stage = Stage.CONNECT  # TLS accepted no byte: the key manager has not seen the request
        is_flooded = isinstance(error, TlsError) and error.reason == "records"
        return self._error(str(error), "records" if is_flooded else "closed")

    def _error(self, message: str, reason: str) -> BackendError:
        return BackendError(message, backend=self.backend, stage=self.stage, reason=reason)

    def close(self) -> None:
        """Close; with a TLS close_notify if the session is idle. May be called again."""
        if self.state is SessionState.IDLE:
            self._stream.close_politely()
        else:
            self._stream.close()
        self._repay()
        self.state = SessionState.CLOSED


def _never_disconnected() -> bool:
    """Return False: a session that was never lent to a client has none that could disconnect."""
    return False
