"""Conversation: the requests and answers of one client connection, in order.

A conversation is in one phase at a time, and each phase has a deadline:

    IDLE       idle_timeout: no byte of the next request has arrived
    READING    request_timeout: the request has arrived in part
    ANSWERING  the dispatcher's own deadline
    SENDING    send_timeout: the client has not read the whole answer

A request that arrives in one piece skips READING; an answer that the socket takes at once skips SENDING.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import trio

from gateway.config import LimitsConfig, ListenerConfig
from gateway.dispatcher import UNKNOWN_OUTCOME, Answer, Dispatcher
from gateway.errors import (
    BuffersFullError,
    ClientAbandonedError,
    GatewayError,
    MessageTooLargeError,
    ProtocolError,
    StreamClosedError,
    TlsError,
    TruncatedError,
)
from gateway.front.admission import Account, Admission, Limit
from gateway.front.connection_errors import certificate_fields
from gateway.front.recorder import RequestRecorder
from gateway.front.request_log import RequestLog
from gateway.front.taps import TappedRequest, Taps
from gateway.identity import Principal
from gateway.kmip.decode import decode_request, decode_request_in_steps
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Request
from gateway.kmip.spec import Tag
from gateway.log import Log, Throttle, quoted
from gateway.metric_table import UNIDENTIFIED
from gateway.metrics import Metrics, operation_label
from gateway.policy import Refusal, refuse
from gateway.revocation import REFUSALS, Chain

_SMALL: Final = 1024  # bytes of a request that are not counted as held
_LONG: Final = 4096  # bytes of a request that may take longer to decode than one turn
_TURN: Final = 0.0001  # s of one turn
_TURN_BYTES: Final = 32768  # bytes of an answer that take one turn to send
_DEADLINE_SLACK: Final = 0.01  # share of the idle timeout by which it may end early
_LONGEST_ANSWER: Final = 120.0  # s; the configuration allows a request no more than a minute
_LINGER: Final = 1.0  # s for a client to read its last answer before the connection is closed


class Phase(Enum):
    """State of a conversation; the value begins the label of its timeout."""

    IDLE = "idle"
    READING = "reading"
    ANSWERING = "answering"
    SENDING = "sending"


class _PhaseTimes(NamedTuple):
    """The deadline of a phase may be any time from ``earliest`` to ``latest``, in seconds after the phase begins."""

    phase: Phase
    earliest: float
    latest: float


@lru_cache(maxsize=64)  # for each listener four, which its conversations share
def _phase_times(phase: Phase, seconds: float, slack: float = 0.0) -> _PhaseTimes:
    return _PhaseTimes(phase, seconds * (1 - slack), seconds)


_ANSWERING_TIMES: Final = _PhaseTimes(Phase.ANSWERING, _LONGEST_ANSWER, float("inf"))  # the dispatcher has a deadline


class ClientStream(Protocol):
    """A client's connection after the handshake: a TlsStream, or a WorkerLink if TLS ends in a TLS worker."""

    before_read: Callable[[], Awaitable[None] | None] | None

    @property
    def is_read_delayed(self) -> bool:
        """True while bytes have arrived and were not returned: a drain must wait for them."""

    def is_idle(self) -> bool:
        """Return True if no byte waits to be read; False if a request may be on its way: a drain must let it be read.

        If False, ``receive_some`` returns the request, or the end, without further ado.
        """

    def peer_certificate_der(self) -> bytes | None:
        """Return the client's certificate in DER."""

    def issuers_der(self) -> tuple[bytes, ...] | None:
        """Return the CA certificates above the client's, as verified, in DER; None of a resumed session."""

    async def receive_some(self) -> bytes:
        """Wait for bytes and return them, at least of a request's beginning; an empty result is the end."""

    def acknowledge(self) -> None:
        """Have the kernel acknowledge the received bytes at once."""

    def peer_has_left(self) -> bool:
        """Return True if the client has closed its sending side or reset."""

    def send_now(self, data: bytes | memoryview) -> int:
        """Send as much as possible without waiting; return the number of bytes. Raises StreamClosedError."""

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all bytes. Raises StreamClosedError."""

    async def aclose(self, *, linger: float = 0.0) -> None:
        """Close; before, read and discard bytes for up to ``linger`` seconds."""

    def close(self) -> None:
        """Close at once."""

    def close_politely(self) -> None:
        """Send close_notify if the socket takes it, and close."""

    def cut(self) -> None:
        """Close at once, also if an answer is not sent whole."""


class Conversation:
    """Reads requests from a handshaken client, has them dispatched, sends the answers.

    ``principal`` is None for a client that no identity rule matches, or whose certificate is not accepted, which is
    then ``refusal``; ``over`` is the limit that a client exceeds. Such a client gets an error for its first request,
    and is disconnected. ``peer`` is the client's address, for the log. ``chain`` has the facts of its certificates.
    ``recorder`` writes the requests to the audit trail; None: there is no audit trail. ``taps`` are shown the requests.
    """

    __slots__ = (
        "_account",
        "_admission",
        "_connected",
        "_counts",
        "_deadline",
        "_dispatcher",
        "_draining",
        "_held",
        "_idle",
        "_is_counted",
        "_limits",
        "_log",
        "_metrics",
        "_now",
        "_payer",
        "_principal",
        "_reader",
        "_reading",
        "_recorder",
        "_request_log",
        "_scope",
        "_sending",
        "_settings",
        "_share",
        "_take_turn",
        "_taps",
        "_throttle",
        "_turns",
        "chain",
        "over",
        "peer",
        "phase",
        "refusal",
        "requests",
        "stream",
    )

    def __init__(
        self,
        stream: ClientStream,
        principal: Principal | None,
        *,
        admission: Admission,
        dispatcher: Dispatcher,
        limits: LimitsConfig,
        settings: ListenerConfig,
        metrics: Metrics,
        log: Log,
        throttle: Throttle,
        peer: str = "",
        over: Limit | None = None,
        refusal: str = "",
        chain: Chain | None = None,
        recorder: RequestRecorder | None = None,
        taps: Taps | None = None,
        request_log: RequestLog | None = None,
    ) -> None:
        self.phase = Phase.IDLE
        self.requests = 0
        self.stream = stream
        self.peer = peer
        self._admission = admission
        self._principal = principal
        self._account = None if principal is None else admission.account(principal)
        self.over = over  # also set if the principal has too many connections
        self.refusal = refusal  # a key of REFUSALS, or ""
        self.chain = chain
        self._turns = admission.turns
        self._payer = self._account or admission.unidentified
        self._connected: Account | None = None  # the account that counts this connection
        self._take_turns_of(self._payer)
        self._held = 0
        self._dispatcher = recorder or dispatcher
        self._recorder = recorder
        self._taps = taps or Taps()
        self._limits = limits
        self._settings = settings
        self._request_log = request_log or RequestLog()
        self._metrics = metrics
        self._counts = metrics.identity(self.identity_name)
        self._log = log
        self._throttle = throttle
        self._reader = FrameReader(Tag.REQUEST_MESSAGE, limits.max_request_size)
        self._scope = trio.CancelScope()
        self._deadline = float("inf")  # a copy: to read it from the scope costs a call
        self._now = 0.0  # trio's time at the last look at the clock, which is nearly the time between two requests
        self._draining = False
        self._is_counted = False  # as a connection of its identity
        self.settings_changed()

    def __repr__(self) -> str:
        return f"<Conversation of {self.identity_name}, {self.phase.value}, {self.requests} requests>"

    @property
    def is_served(self) -> bool:
        """False for a client that has no principal or exceeds a limit: it gets an error for its first request."""
        return self._principal is not None and self.over is None

    @property
    def identity_name(self) -> str:
        """The name of the client's identity, or "unidentified"."""
        return UNIDENTIFIED if self._principal is None else self._principal.identity.name

    def settings_changed(self) -> None:
        """Use the settings as they are now; the deadlines of the next phase are the first to change."""
        settings = self._settings
        self._reader.max_size = self._limits.max_request_size
        self._idle = self._idle_times()
        self._reading = _phase_times(Phase.READING, settings.request_timeout)
        self._sending = _phase_times(Phase.SENDING, settings.send_timeout)

    def change_principal(self, principal: Principal | None) -> None:
        """Take the client for this principal from its next request on: the identity rules have changed.

        A client without a principal gets an error for its next request; without a request, its connection is closed
        after ``request_timeout``.
        """
        if principal == self._principal:
            return
        self._principal = principal
        counts = self._metrics.identity(self.identity_name)
        if self._is_counted:
            self._counts.connections -= 1
            counts.connections += 1
        self._counts = counts
        account = None if principal is None else self._admission.account(principal)
        if account is self._account:
            return
        payer = account or self._admission.unidentified
        payer.take_over_bytes(self._payer, self._held)
        if self._connected is not None:
            self._connected.disconnect()
            if account is not None:
                account.clients += 1
            self._connected = account
        self._account, self._payer = account, payer
        self._take_turns_of(payer)
        self._idle = self._idle_times()
        if self.phase is Phase.IDLE:
            self._enter(self._idle, trio.current_time())

    def _take_turns_of(self, payer: Account) -> None:
        self._share = payer.share
        self.stream.before_read = self._take_turn = payer.take_turn

    @property
    def host(self) -> str:
        """The client's address, without the port."""
        return self.peer.rpartition(":")[0]

    def drain(self) -> None:
        """End after the request in progress, or at once if there is none."""
        self._draining = True
        if self.phase is Phase.IDLE and not self.stream.is_read_delayed and self.stream.is_idle():
            self._scope.cancel()

    def cut(self, refusal: str) -> None:
        """Disconnect the client at once: its certificate is not accepted any more. No further answer is sent.

        An exchange in progress goes on to its end, so that the session with the key manager can be used again.
        """
        self.refusal = refusal
        self.stream.cut()
        self._throttle.warn(
            self._log,
            f"cut {refusal} {self.identity_name}",
            "client disconnected: its certificate is no longer accepted",
            reason=refusal,
            peer=self.peer,
            identity=self.identity_name,
            subject="" if self._principal is None else quoted(self._principal.subject),
        )

    def end_after_answer(self) -> None:
        """End after the next answer. An idle connection stays until it is used, or until ``drain``."""
        self._draining = True

    async def run(self) -> str:
        """Answer requests until either side ends the connection; close it. Return the reason, as a label."""
        if self._account is not None and self.over is None:
            self.over = self._account.connect()
            if self.over is None:
                self._connected = self._account
            else:
                self._idle = self._idle_times()
        self._counts.connections += 1
        self._is_counted = True
        self._now = trio.current_time()
        self._enter(self._idle, self._now)  # before the scope is entered: to move its deadline later costs more
        ended = ""
        try:
            with self._scope:
                try:
                    while not ended:
                        request = await self._next_request()
                        if request is None:
                            ended = "drain" if self._draining else "client"
                        else:
                            self.requests += 1
                            ended = await self._serve(request)
                            del request  # a large request must not stay in memory until the next, perhaps for an hour
                except GatewayError as error:
                    ended = await self._end_for(error)
            if self._scope.cancelled_caught:
                ended = "drain" if self._draining else f"{self.phase.value}_timeout"
            ended = self.refusal or ended
            await self.stream.aclose(linger=_LINGER if ended in _LINGERING_ENDS else 0.0)
        finally:
            self.stream.close()
            self._hold(0)
            self._counts.connections -= 1
            self._is_counted = False
            if self._connected is not None:
                self._connected.disconnect()
        return ended

    async def _end_for(self, error: GatewayError) -> str:
        """Return why the conversation ends with an error, after an answer if the client's message is to blame."""
        match error:
            case ProtocolError():
                return await self._refuse_message(error)
            case StreamClosedError():  # between requests, unread session tickets are enough for a reset: no error
                return "client" if self.phase is Phase.IDLE else self._client_closed()
            case ClientAbandonedError():
                return self._client_closed() if str(error) == "client_closed" else str(error)
        return self._break_off(error)

    def _client_closed(self) -> str:
        """Count a request whose client has disconnected. Return why the conversation ended."""
        self._metrics.client_aborts.labels("reading" if self.phase is Phase.READING else "sending").inc()
        return "client_closed"

    def _break_off(self, error: GatewayError) -> str:
        """Log the error if the client's TLS records exceeded a bound. Return why the conversation ended."""
        if not isinstance(error, TlsError) or error.reason != "records":
            return "client_closed"
        self._throttle.warn(
            self._log,
            f"records {self.identity_name}",
            "client connection closed",
            reason=error.reason,
            detail=str(error),
            peer=self.peer,
            identity=self.identity_name,
        )
        return error.reason

    async def _serve(self, request: Request) -> str:
        """Answer one request. Return why the conversation must end with it, or an empty string."""
        principal, account = self._principal, self._account
        if principal is None or account is None or not principal.is_valid_at(time.time()):
            return await self._reject(request, principal)
        if self.over is not None:
            await self._refuse_over(self.over, request)
            return "limit"
        began = self._now = trio.current_time()
        self._enter(_ANSWERING_TIMES, began)
        limit = account.begin(began)
        if limit is None:
            try:
                if self._taps.is_open:
                    answer = await self._dispatch_tapped(request, principal, account, began)
                else:
                    answer = await self._dispatcher.dispatch(
                        request, principal, self.stream.peer_has_left, account, now=began
                    )
            except trio.Cancelled:
                await self._send_outcome_unknown(request)
                raise
            finally:
                account.end()
            await self._send_answer(answer, request, began)
        else:
            await self._refuse_over(limit, request)
        return "drain" if self._draining else ""

    async def _dispatch_tapped(self, request: Request, principal: Principal, account: Account, now: float) -> Answer:
        """Have a request answered while somebody taps."""
        tapped = TappedRequest(self._settings.name, self.peer, principal, request)
        gone = self.stream.peer_has_left
        return await self._taps.dispatch(self._dispatcher, tapped, request, principal, gone, account, now=now)

    async def _next_request(self) -> Request | None:
        """Return the next request, or None if the client has closed. Raises ProtocolError for any other bytes."""
        limits = self._limits
        frame = data = None
        reader = self._reader
        if reader.beginning:
            frame = reader.next_frame()
        if frame is None and reader.beginning:
            self._enter(self._reading, self._now)
        else:
            self._enter(self._idle, self._now)
            if frame is not None and (turn := self._take_turn()) is not None:
                self.phase = Phase.READING  # a drain must not end the conversation before this request is answered
                await turn
        while frame is None:
            data = await self.stream.receive_some()
            await trio.lowlevel.checkpoint_if_cancelled()  # from here on, only the dispatcher ends the request
            if not data:
                self._check_whole()
                return None
            frame = reader.feed(data)
            if frame is None:
                self.stream.acknowledge()
                if self.phase is Phase.IDLE:
                    self._enter(self._reading, trio.current_time())
                self._hold(len(reader))
        if self._held or frame is not data or len(frame) > _SMALL:
            self._hold(len(frame) + len(reader))
            if len(frame) > _LONG:
                return await self._decode_long(frame)
        return decode_request(frame, limits.max_depth, limits.max_batch_items, limits.max_fields)

    async def _decode_long(self, frame: bytes) -> Request:
        """Decode a request in steps, each in a turn of its own, and charge its principal for the time of each step."""
        limits = self._limits
        steps = decode_request_in_steps(frame, limits.max_depth, limits.max_batch_items, limits.max_fields)
        while True:
            began = time.perf_counter()
            try:
                next(steps)
            except StopIteration as decoded:
                request: Request = decoded.value
                return request
            finally:
                self._turns.charge(self._share, (time.perf_counter() - began) / _TURN)
            if (turn := self._take_turn()) is not None:
                if self.phase is Phase.IDLE:  # a drain must not end the conversation now, nor the idle timeout
                    self._enter(self._reading, trio.current_time())
                await turn

    def _hold(self, size: int) -> None:
        """Count ``size`` bytes of messages as held from now on. Raises BuffersFullError if they exceed a limit."""
        if size == self._held:
            return
        limit = self._payer.hold(size - self._held)
        if limit is not None:
            self._metrics.limit_rejections.labels(limit.value, self.identity_name).inc()
            raise BuffersFullError(
                f"the gateway holds too many bytes of messages (limit {limit.value}); try again later"
            )
        self._held = size

    def _hold_answer(self, size: int) -> None:
        """Count the bytes of an answer that its client has not read at once. Raises ClientAbandonedError above a limit.

        A part of the answer is sent already, so that the gateway can't send an error instead, and closes.
        """
        limit = self._payer.hold(size)
        if limit is not None:
            self._metrics.limit_rejections.labels(limit.value, self.identity_name).inc()
            raise ClientAbandonedError("unread")
        self._held += size

    def _enter(self, times: _PhaseTimes, now: float) -> None:
        """Enter a phase, and move the deadline if it is not between the earliest and the latest time of the phase.

        To move the deadline of a cancel scope costs as much as to decode a request. Most requests of a kept connection
        leave the deadline as it is: IDLE may end 1 % early, and ANSWERING may have any deadline from 120 s on.
        """
        self.phase = times.phase
        if not now + times.earliest <= self._deadline <= now + times.latest:
            self._deadline = self._scope.deadline = now + times.latest

    def _idle_times(self) -> _PhaseTimes:
        """Return the deadline of IDLE: shorter for a client that gets an error only, so that it soon frees its slot."""
        seconds = self._settings.idle_timeout if self.is_served else self._settings.request_timeout
        return _phase_times(Phase.IDLE, seconds, _DEADLINE_SLACK)

    def _check_whole(self) -> None:
        """Raise ProtocolError if the client has closed in the middle of a request."""
        if len(self._reader):
            raise TruncatedError("the connection ended in the middle of a request")

    async def _send_answer(self, answer: Answer, request: Request, began: float) -> None:
        response = answer.response
        if response is not None:
            result = self._metrics.response_passed_on(response)
        elif answer.refusal is None:
            result = "success"
            self._metrics.local_answers.labels(operation_label(request)).inc()
        elif answer.refusal is Refusal.CLIENT_DISCONNECTED:
            result = "client_disconnected"
        else:
            result = "gateway_error"
            self._note_refusal(answer, request, trio.current_time() - began)
        sent = self.stream.send_now(answer.frame)
        if sent < len(answer.frame) or self._held:
            await self._send_rest(answer.frame, sent)
        self._now = now = trio.current_time()
        seconds = now - began
        self._metrics.request_answered(request, result, seconds, self._counts, len(answer.frame))
        if seconds >= self._request_log.logged_from and result != "gateway_error":  # such a request has a line
            self._request_log.answered(self._log, self._about(request), result, answer, seconds)

    async def _send_outcome_unknown(self, request: Request) -> None:
        """Answer a request that the end of a drain cut off: a client that only sees a close may repeat the request."""
        message = f"the gateway shut down before the key manager answered: {UNKNOWN_OUTCOME}"
        frame = refuse(Refusal.OUTCOME_UNKNOWN, message, request)
        with trio.move_on_after(_LINGER, shield=True), suppress(GatewayError):
            await self.stream.send_all(frame)
        detail = "the drain ended before the key manager answered"
        self._note_refusal(Answer(frame, refusal=Refusal.OUTCOME_UNKNOWN, detail=detail), request)

    async def _send(self, frame: bytes) -> None:
        await self._send_rest(frame, self.stream.send_now(frame))

    async def _send_rest(self, frame: bytes, sent: int) -> None:
        """Send an answer of which TLS has taken ``sent`` bytes, and release the bytes held."""
        if sent < len(frame):
            self._enter(self._sending, trio.current_time())
            self._hold_answer(len(frame))
            self._turns.charge(self._share, len(frame) / _TURN_BYTES)
            await self.stream.send_all(memoryview(frame)[sent:])
        if self._held:
            self._hold(0)

    async def _reject(self, request: Request, principal: Principal | None) -> str:
        """Answer a client without a valid identity. Return why the conversation ends."""
        if self.refusal:
            message = REFUSALS[self.refusal]
        elif principal is None:
            message = "the client certificate matches no identity of this gateway; ask its operator to add an identity"
        else:
            message = "the client certificate has expired or is not valid yet; connect with a valid certificate"
        await self._refuse(Refusal.NOT_AUTHENTICATED, message, request)
        return "not_authenticated"

    async def _refuse_over(self, limit: Limit, request: Request) -> None:
        self._metrics.limit_rejections.labels(limit.value, self.identity_name).inc()
        await self._refuse(
            Refusal.OVERLOADED, f"the gateway's limit {limit.value} is reached; try again later", request
        )

    async def _refuse_message(self, error: ProtocolError) -> str:
        refusal = _REFUSALS.get(type(error), Refusal.INVALID_MESSAGE)
        if isinstance(error, TruncatedError):
            self._metrics.client_aborts.labels("reading").inc()
        try:
            await self._refuse(refusal, str(error), None, error.version)
        except GatewayError:
            return "client_closed"
        return "protocol"

    async def _refuse(
        self, refusal: Refusal, message: str, request: Request | None, version: tuple[int, int] | None = None
    ) -> None:
        self._note_refusal(Answer(b"", refusal=refusal, detail=message), request)
        if self._recorder is not None:
            self._recorder.refused(request, self._principal, refusal)
        if self._taps.is_open:
            self._taps.refused(TappedRequest(self._settings.name, self.peer, self._principal, request), refusal)
        frame = refuse(refusal, message, request, version=version)
        await self._send(frame)
        self._metrics.request_answered(request, "gateway_error", 0.0, self._counts, len(frame))

    def _note_refusal(self, answer: Answer, request: Request | None, seconds: float | None = None) -> None:
        """Count an error of the gateway's own, and log it with its client, and ``seconds``, if it was dispatched."""
        if answer.refusal is None:
            return
        self._metrics.local_errors.labels(answer.refusal.value, self.identity_name).inc()
        certificate = self._certificate_fields() if answer.refusal is Refusal.NOT_AUTHENTICATED else {}
        self._request_log.refused(self._log, self._about(request), answer, seconds, certificate)

    def _about(self, request: Request | None) -> dict[str, str]:
        """Return the fields about the client and its request in a line of the log."""
        return {"peer": self.peer, "identity": self.identity_name, "operation": operation_label(request)}

    def _certificate_fields(self) -> dict[str, str]:
        try:
            return certificate_fields(self.stream.peer_certificate_der())
        except GatewayError:
            return {}


#: Answers to messages that can't be served; the answer to all other errors is INVALID_MESSAGE.
_REFUSALS: Final[dict[type[ProtocolError], Refusal]] = {
    MessageTooLargeError: Refusal.TOO_LARGE,
    BuffersFullError: Refusal.OVERLOADED,
}

#: Ends before which the client gets an answer, and may still be sending: a reset would destroy the answer.
_LINGERING_ENDS: Final = frozenset({"protocol", "not_authenticated", "drain", "limit", *REFUSALS})
