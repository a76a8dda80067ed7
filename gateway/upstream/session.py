"""Session: one authenticated connection to a key manager, one request at a time.

A session is IDLE only before it is lent and after the last line of an exchange. Whatever else happens, an error, a
deadline, a shutdown, leaves it BUSY, and BUSY sessions are thrown away. That is the guard against handing one client
another's key.
"""

import socket
from collections.abc import Awaitable, Callable, Hashable
from datetime import UTC, datetime
from enum import Enum
from typing import Final, NamedTuple, Protocol

import trio
from OpenSSL import SSL

from gateway import tls
from gateway.alarm import Alarm
from gateway.config import Address, OwnCertificate
from gateway.errors import (
    OUT_OF_RESOURCES,
    BackendError,
    MessageTooLargeError,
    ProtocolError,
    Stage,
    StreamClosedError,
    StreamInterruptedError,
    TlsError,
)
from gateway.kmip import compose
from gateway.kmip.answers import MadeObjects, is_answer_to
from gateway.kmip.decode import MAX_RESPONSE_FIELDS, decode_request, decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Tag
from gateway.tcp import TcpTimeouts
from gateway.upstream.connecting import connect, peer_of


class State(Enum):
    """What a session is doing."""

    IDLE = "idle"
    BUSY = "busy"
    CLOSED = "closed"


# A member of an enumeration is slow to come by; these are needed in every exchange.
_IDLE: Final = State.IDLE
_BUSY: Final = State.BUSY
_CONNECT: Final = Stage.CONNECT
_SEND: Final = Stage.SEND
_WAIT: Final = Stage.WAIT
_READ: Final = Stage.READ
_UNPAID: Final = 65536  # bytes of an answer to the gateway's own requests


class Stream(Protocol):
    """The part of a connection that a session uses. TlsStream implements it.

    ``is_flooded`` is True once the peer has sent more records without data than it may.
    """

    is_flooded: bool

    spoke_unasked: bool
    """True once ``is_quiet`` has found bytes that nobody asked for."""

    async def receive_some(self) -> bytes:
        """Wait for bytes; empty at the end."""

    async def send_all(self, data: bytes) -> None:
        """Send everything."""

    def is_quiet(self) -> bool:
        """Whether the peer neither spoke nor closed."""

    def is_readable(self) -> bool:
        """Return True if something has arrived that was not read."""

    def is_unacknowledged(self, seconds: float) -> bool:
        """Return True if bytes were sent, and nothing was acknowledged for so long."""

    def interrupt(self) -> None:
        """Have ``receive_some`` or ``send_all`` raise StreamInterruptedError, if a task waits in it."""

    def close(self) -> None:
        """Close at once."""

    def close_politely(self) -> None:
        """Close with a word."""


class Payer(Protocol):
    """The account that pays for the bytes of an answer while it is received."""

    def hold(self, size: int) -> object:
        """Hold so many bytes more, or, if negative, fewer. Over a limit, hold no more and return the limit."""


class SupersededError(Exception):
    """Another session has answered the request first. The exchange that raises this may still be finished."""


class Session:
    """A connection that the key manager has accepted.

    ``backend`` is its name, ``peer`` the IP address that it leads to. ``expires_at`` and ``idle_since`` are in trio's
    time and belong to the pool, which lends the session, as do ``principal``, the last borrower, and ``is_reused``,
    True once the session was idle or has served a request, and ``is_abandoned``, True while nobody awaits its answer.
    ``is_repeatable`` is True if the request under way may be repeated elsewhere, ``exchanging_since`` is the time at
    which it was sent, ``client_has_left`` tells if its client has disconnected; ``alarm`` is for its deadline.

    ``fault`` is "unasked" if the key manager sent bytes that nobody asked for, "mismatch" if it answered something
    else, and else empty. A session with a fault is of no further use: each answer may be that of the request before.
    """

    __slots__ = (
        "_is_overdue",
        "_is_superseded",
        "_made",
        "_max_fields",
        "_paid",
        "_payer",
        "_reader",
        "_stream",
        "alarm",
        "backend",
        "client_has_left",
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
    )

    def __init__(
        self,
        stream: Stream,
        backend: str,
        *,
        max_response_size: int,
        max_fields: int = MAX_RESPONSE_FIELDS,
        peer: str = "",
    ) -> None:
        self._stream = stream
        self.peer = peer
        self._reader = FrameReader(Tag.RESPONSE_MESSAGE, max_response_size)
        self._max_fields = max_fields
        self.backend = backend
        self.state = State.IDLE
        self.stage = Stage.CONNECT
        self.requests = 0
        self.fault = ""
        self._made: MadeObjects | None = None
        self.principal: Hashable = None
        self.is_reused = False
        self.is_abandoned = False
        self.is_repeatable = False
        self.client_has_left: Callable[[], bool] = _is_there
        self.exchanging_since = float("inf")
        self.alarm = Alarm()
        self._is_overdue = False
        self._is_superseded = False
        self._payer: Payer | None = None
        self._paid = 0  # bytes that the payer holds
        self.opened_at = self.idle_since = trio.current_time()
        self.expires_at = float("inf")

    def __repr__(self) -> str:
        return f"<Session {self.backend} {self.state.value}, {self.requests} requests>"

    @property
    def is_idle(self) -> bool:
        """True if the last exchange ended properly, so that another may begin."""
        return self.state is _IDLE

    def is_quiet(self) -> bool:
        """Return True if the key manager neither closed this idle session nor sent anything unasked."""
        if not len(self._reader) and self._stream.is_quiet():
            return True
        if len(self._reader) or self._stream.spoke_unasked:
            self.fault = "unasked"
        return False

    @property
    def is_flooded(self) -> bool:
        """Return True if the key manager has sent more TLS records without data than it may."""
        return self._stream.is_flooded

    def has_news(self) -> bool:
        """Return True if something has arrived that was not read."""
        return self.state is not State.CLOSED and self._stream.is_readable()

    def is_cut_off(self, seconds: float) -> bool:
        """Return True if the peer's kernel has not acknowledged the request for so long: the path is dead."""
        return self.state is not State.CLOSED and self._stream.is_unacknowledged(seconds)

    async def exchange(self, request: Request, *, is_sent: bool = False, payer: Payer | None = None) -> Response:
        """Send a request, unchanged, and return its answer. If it ``is_sent``, go on with a superseded exchange.

        ``payer`` holds the bytes of an answer that comes in parts, until it is whole or the session is closed.
        Without a payer, an answer has at most 64 KiB.
        ``stage`` tells at any time how far this has come. Raises BackendError with that stage, or SupersededError. The
        deadline is the caller's; a session whose exchange did not end is of no further use.
        """
        try:
            if not is_sent:
                self.state = _BUSY
                is_first = self.stage is _CONNECT
                self.stage = _CONNECT
                if not is_first and not self.is_quiet():  # bytes that arrived since it was lent would be the answer
                    raise self._error("closed, or spoken on unasked", "records" if self.is_flooded else "closed")
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
        except ProtocolError as error:
            raise self._unreadable(error) from None
        if not is_answer_to(response, request) or not (self.is_repeatable or self._is_new(response, request)):
            self.fault = "mismatch"
            raise self._error("the answer belongs to another request", "mismatch")
        self._is_superseded = False
        self.requests += 1
        if len(self._reader):
            self.fault = "unasked"
            return response  # whole and right, but something follows that nobody asked for: the session stays BUSY
        self.state = _IDLE
        return response

    def _is_new(self, response: Response, request: Request) -> bool:
        """Return False if the response makes an object that this session has made before. A read makes none."""
        if self._made is None:
            self._made = MadeObjects()
        return not self._made.were_made_before(response, request)

    def _unreadable(self, error: ProtocolError) -> BackendError:
        if isinstance(error, MessageTooLargeError):
            return self._error(str(error), "too_large")
        return self._error(f"not an answer: {error}", "protocol")

    def _pay(self, payer: Payer | None, frame: bytes | None) -> None:
        """Have the bytes of an answer held until it is whole. Raises BackendError if that is more than is paid for.

        The receiver of the whole answer holds it again before other tasks run, so that there is room for it.
        """
        size = len(self._reader) if frame is None else len(self._reader) + len(frame)
        if payer is None:
            if size > _UNPAID:
                raise self._error(f"an answer of more than {_UNPAID} bytes, for which no client waits", "too_large")
            return
        limit = payer.hold(size - self._paid)
        if limit is not None:
            raise self._error("the gateway holds too many bytes to take the answer", "max_buffered")
        self._payer, self._paid = payer, size
        if frame is not None:
            self._repay()

    def _repay(self) -> None:
        """Release the bytes that the payer holds."""
        if self._payer is not None:
            self._payer.hold(-self._paid)
        self._payer, self._paid = None, 0

    def supersede(self) -> None:
        """Another session has answered the request: the exchange under way raises SupersededError."""
        self._is_superseded = True
        self._stream.interrupt()

    def expire(self) -> None:
        """The answer has not come in time: whoever waits for it gets a BackendError, and the session is done for."""
        self._is_overdue = True
        self._stream.close()

    def _broken(self, error: StreamClosedError | TlsError) -> BackendError:
        if self._is_overdue:
            return self._error("no answer in time", "timeout")
        if self.state is State.CLOSED:
            return self._error("closed on this side, for the request to go elsewhere", "interrupted")
        if self.stage is Stage.SEND and isinstance(error, StreamClosedError) and error.nothing_sent:
            self.stage = Stage.CONNECT  # TLS took none of it: to the key manager this request never was
        is_flooded = isinstance(error, TlsError) and error.reason == "records"
        return self._error(str(error), "records" if is_flooded else "closed")

    def _error(self, message: str, reason: str) -> BackendError:
        return BackendError(message, backend=self.backend, stage=self.stage, reason=reason)

    def close(self) -> None:
        """Close: with a word where the session is idle, at once where it is not. May be called again."""
        if self.state is State.IDLE:
            self._stream.close_politely()
        else:
            self._stream.close()
        self._repay()
        self.state = State.CLOSED


def _is_there() -> bool:
    """Nobody's client: it has not left."""
    return False


_NOWHERE: Final = Address("", 0)
_DISTRUST: Final = 600.0  # s for which a key manager is distrusted that has sent what nobody asked for


class Site:
    """The addresses of a backend, as its pools and its prober share them.

    ``address`` is the configured one. ``hosts`` are the IP addresses that the backend had when its name was last looked
    up, in the resolver's order; sessions are opened to them, and sessions to any other address are closed. Empty means
    that they are not known: any will do. ``connect_failed`` is called when no connection could be made.

    ``is_distrusted`` is True for a while after the key manager has sent bytes that nobody asked for, or has answered
    something else: sessions are validated before each request, so that what it still sends is not taken for the answer.
    """

    __slots__ = ("_distrusted_until", "address", "connect_failed", "hosts", "is_distrusted")

    def __init__(self, address: Address = _NOWHERE, hosts: tuple[str, ...] = ()) -> None:
        self.address = address
        self.hosts = hosts
        self.connect_failed: Callable[[], None] = lambda: None
        self.is_distrusted = False
        self._distrusted_until = float("-inf")

    def __repr__(self) -> str:
        return f"<Site {self.address}: {', '.join(self.hosts) or 'any address'}>"

    def distrust(self, now: float) -> None:
        """Distrust the key manager for ten minutes."""
        self.is_distrusted = True
        self._distrusted_until = now + _DISTRUST

    def trust_again(self, now: float) -> None:
        """End the distrust if its time is over; called now and then."""
        if now >= self._distrusted_until:
            self.is_distrusted = False

    def is_of(self, session: Session) -> bool:
        """Return True if a session leads to an address that the backend has now."""
        return not self.hosts or session.peer in self.hosts


class Target(NamedTuple):
    """What it takes to open sessions to one backend with one credential."""

    backend: str
    site: Site
    context: SSL.Context
    server_name: str | None
    pinned_sha256: frozenset[str]
    max_response_size: int
    probe: bytes
    own: OwnCertificate | None = None  # what the context shows
    tcp: TcpTimeouts | None = None
    max_fields: int = MAX_RESPONSE_FIELDS


Opener = Callable[[], Awaitable[Session]]


async def open_session(target: Target) -> Session:
    """Connect, shake hands, check whom that reached, and have the session prove itself with a cheap request.

    In TLS 1.3 a server refuses a client's certificate only after the handshake, so that the proof is what tells.
    Raises BackendError, always with Stage.CONNECT: nothing of a client's was sent. The deadline is the caller's.
    """
    try:
        return await _open(target)
    except BackendError as error:
        own = target.own
        if own is None or error.reason not in _MAY_BE_LAPSED or not (lapse := own.lapse(datetime.now(UTC))):
            raise
        raise _refused(
            target,
            f"the gateway's own certificate {own.file} for identity {own.identity} {lapse}, and restart the gateway"
            f" ({error.args[0]})",
            error.reason,
        ) from None


#: Reasons with which a key manager refuses a certificate that has lapsed: it need not say so.
_MAY_BE_LAPSED: Final = frozenset({"credential", "alert", "tls"})


async def _open(target: Target) -> Session:
    sock = await _connect(target)
    peer = peer_of(sock)
    stream = tls.TlsStream(sock, target.context, server_side=False, server_name=target.server_name)
    try:
        await stream.handshake()
        tls.check_server(stream, target.server_name, target.pinned_sha256)
        session = Session(
            stream,
            target.backend,
            max_response_size=target.max_response_size,
            max_fields=target.max_fields,
            peer=peer,
        )
        await _prove(session, target)
    except TlsError as error:
        stream.close()
        raise _refused(target, str(error), error.reason if error.reason in _TLS_REASONS else "tls") from None
    except StreamClosedError as error:
        stream.close()
        raise _refused(target, str(error), "tls") from None
    except ValueError as error:  # of a certificate that OpenSSL takes and others can't read
        stream.close()
        raise _refused(target, f"the key manager's certificate can't be read: {error}", "certificate") from None
    except BaseException:
        stream.close()
        raise
    return session


async def _connect(target: Target) -> socket.socket:
    site = target.site
    try:
        sock = await connect(site.address, site.hosts)
    except OSError as error:
        if error.errno not in OUT_OF_RESOURCES:
            site.connect_failed()
        reason = "resources" if error.errno in OUT_OF_RESOURCES else "connect"
        raise _refused(target, f"can't connect to {site.address}: {error.strerror or error}", reason) from None
    except trio.Cancelled:
        site.connect_failed()  # the caller's deadline has passed, or the gateway ends
        raise
    if target.tcp is not None:
        target.tcp.set_on(sock)
    return sock


_TLS_REASONS: Final = frozenset(
    {"hostname", "pin", "unknown_ca", "expired", "alert", "handshake_too_large", "certificate_too_large"}
)


async def _prove(session: Session, target: Target) -> None:
    """Exchange the probe: any well-formed answer proves TLS, KMIP and the session.

    An error in the answer says what this role may do, or that each request must carry a password: clients' own requests
    may fare better, and if they do not, the key manager's answer is theirs to read. Only TLS refuses a credential.
    """
    try:
        await session.exchange(decode_request(target.probe))
    except BackendError as error:
        reason = {"closed": "credential", "records": "records"}.get(error.reason, "proof")
        hint = "; perhaps the key manager refuses the certificate" if reason == "credential" else ""
        raise _refused(target, f"no answer to the first request: {error.args[0]}{hint}", reason) from None
    if session.state is not State.IDLE:
        raise _refused(target, "the first answer is followed by bytes that nobody asked for", "proof")
    session.requests = 0


def _refused(target: Target, message: str, reason: str) -> BackendError:
    return BackendError(message, backend=target.backend, stage=Stage.CONNECT, reason=reason)


#: The cheap requests that a backend's ``probe`` setting names.
PROBES: Final = {"discover-versions": compose.discover_versions(), "query": compose.query()}
