"""Conversation: one client connection's requests and answers, in order.

It is in one phase at a time, and each phase has its deadline: IDLE before a request, READING one whose first bytes are
there, ANSWERING while the dispatcher works, under a deadline of its own, and SENDING.
"""

import time
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Final, NamedTuple

import trio

from gateway.dispatcher import Answer, Dispatcher
from gateway.errors import (
    BuffersFullError,
    GatewayError,
    MessageTooLargeError,
    ProtocolError,
    StreamClosedError,
    TlsError,
)
from gateway.front.admission import Admission, Limit
from gateway.identity import Principal
from gateway.kmip.decode import decode_request, decode_request_in_steps
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Request
from gateway.kmip.spec import Tag
from gateway.log import Log, Throttle
from gateway.metrics import Metrics, operation_label
from gateway.policy import Refusal, refuse
from gateway.tls import TlsStream

_SMALL: Final = 1024  # bytes of a request that are not worth counting
_LONG: Final = 4096  # bytes of a request that may take longer to decode than one turn
_TURN: Final = 0.0001  # s of one turn
_TURN_BYTES: Final = 32768  # of an answer that take as long
_LAZINESS: Final = 0.01  # of the idle timeout: how much earlier it may come
_LONGEST_ANSWER: Final = 120.0  # s; the configuration allows a request no more than a minute
_LINGER: Final = 1.0  # s for a client to take its last answer before the connection is closed


class UnreadError(GatewayError):
    """An answer that its client does not take, and that there is no room to hold."""


class Phase(Enum):
    """What a conversation is doing."""

    IDLE = "idle"
    READING = "reading"
    ANSWERING = "answering"
    SENDING = "sending"


class Limits(NamedTuple):
    """Bounds on what one client may ask and how long it may take; bytes and seconds."""

    max_request_size: int = 1 << 20
    max_depth: int = 32
    max_batch_items: int = 1000
    max_fields: int = 5000
    request_timeout: float = 10.0
    idle_timeout: float = 3600.0
    send_timeout: float = 10.0


class Conversation:
    """Reads requests from a handshaken client, has them dispatched, sends the answers.

    ``principal`` is None for a client that no identity rule matches: it is told so when it asks, and let go. So is one
    that is ``over`` a limit. ``peer`` is its address, for the log.
    """

    def __init__(
        self,
        stream: TlsStream,
        principal: Principal | None,
        *,
        admission: Admission,
        dispatcher: Dispatcher,
        limits: Limits,
        metrics: Metrics,
        log: Log,
        throttle: Throttle,
        peer: str = "",
        over: Limit | None = None,
    ) -> None:
        self.phase = Phase.IDLE
        self.requests = 0
        self._stream = stream
        self._principal = principal
        self._account = None if principal is None else admission.account(principal)
        self._over = over
        self._turns = admission.turns
        self._payer = self._account or admission.strangers
        self._share = self._payer.share
        self._stream.before_read = self._take_turn = partial(self._turns.take, self._share)
        self._held = 0
        self._dispatcher = dispatcher
        self._limits = limits
        self._metrics = metrics
        self._log = log
        self._throttle = throttle
        self._peer = peer
        self._reader = FrameReader(Tag.REQUEST_MESSAGE, limits.max_request_size)
        self._scope = trio.CancelScope()
        self._deadline = float("inf")  # the scope's: to ask that is a call
        self._draining = False

    def __repr__(self) -> str:
        who = self._principal.identity.name if self._principal else "nobody"
        return f"<Conversation with {who}, {self.phase.value}, {self.requests} requests>"

    def drain(self) -> None:
        """End after the answer that is due, or at once where none is."""
        self._draining = True
        if self.phase is Phase.IDLE and not self._stream.has_news:
            self._scope.cancel()

    async def run(self) -> str:
        """Converse until either side ends it, and close the stream. Returns why it ended, as a label."""
        account = self._account if self._over is None else None
        if account is not None:
            self._over = account.connect()
            account = account if self._over is None else None
        try:
            with self._scope:
                ended = await self._converse()
            if self._scope.cancelled_caught:
                ended = "drain" if self._draining else f"{self.phase.value}_timeout"
            await self._stream.aclose(linger=_LINGER if ended in _LAST_WORDS else 0.0)
        finally:
            self._stream.close()
            self._hold(0)
            if account is not None:
                account.disconnect()
        return ended

    async def _converse(self) -> str:
        try:
            while True:
                request = await self._next_request()
                if request is None:
                    return "client"
                self.requests += 1
                ended = await self._serve(request)
                del request  # it may be large, and the next one an hour away
                if ended:
                    return ended
        except ProtocolError as error:
            return await self._refuse_message(error)
        except StreamClosedError:  # a reset between requests costs nobody anything: unread tickets are enough for one
            return "client" if self.phase is Phase.IDLE else "gone"
        except UnreadError:
            return "unread"
        except GatewayError as error:
            return self._break_off(error)

    def _break_off(self, error: GatewayError) -> str:
        """Log it if the client's TLS records broke a bound. Returns why the conversation ended."""
        if not isinstance(error, TlsError) or error.reason != "records":
            return "gone"
        identity = "nobody" if self._principal is None else self._principal.identity.name
        self._throttle.warn(
            self._log,
            "records",
            "client connection closed",
            reason=error.reason,
            detail=str(error),
            peer=self._peer,
            identity=identity,
        )
        return error.reason

    async def _serve(self, request: Request) -> str:
        """See to one request. Returns why the conversation must end with it, or nothing."""
        principal, account = self._principal, self._account
        if principal is None or account is None or not principal.is_valid_at(time.time()):
            return await self._turn_away(request, principal)
        if self._over is not None:
            await self._refuse_over(self._over, request)
            return "limit"
        began = trio.current_time()
        self._begin_to_answer(began)
        limit = account.begin(began)
        if limit is None:
            try:
                answer = await self._dispatcher.dispatch(request, principal, self._stream.peer_has_left, account)
            except trio.Cancelled:
                await self._confess(request)
                raise
            finally:
                account.end()
            await self._send_answer(answer, request, began)
        else:
            await self._refuse_over(limit, request)
        return "drain" if self._draining else ""

    async def _next_request(self) -> Request | None:
        """The next request; None where the client has left. Raises ProtocolError for what is none."""
        limits = self._limits
        frame = data = None
        if len(self._reader):
            frame = self._reader.next_frame()
        if frame is None and len(self._reader):
            self._begin(Phase.READING, limits.request_timeout)
        else:
            self._begin_to_idle()
            if frame is not None and (turn := self._take_turn()) is not None:
                self.phase = Phase.READING  # the request is there: a drain must let it be answered
                await turn
        while frame is None:
            data = await self._stream.receive_some()
            await trio.lowlevel.checkpoint_if_cancelled()  # from here on, only the dispatcher may give up
            if not data:
                self._check_whole()
                return None
            frame = self._reader.feed(data)
            if frame is None:
                self._stream.acknowledge()
                if self.phase is Phase.IDLE:
                    self._begin(Phase.READING, limits.request_timeout)
                self._hold(len(self._reader))
        if self._held or frame is not data or len(frame) > _SMALL:
            self._hold(len(frame) + len(self._reader))
            if len(frame) > _LONG:
                return await self._decode_long(frame)
        return decode_request(frame, limits.max_depth, limits.max_batch_items, limits.max_fields)

    async def _decode_long(self, frame: bytes) -> Request:
        """Decode a request in steps, each in a turn of its own, and charge its principal for what turns took longer."""
        limits = self._limits
        steps = decode_request_in_steps(frame, limits.max_depth, limits.max_batch_items, limits.max_fields)
        if self.phase is Phase.IDLE:
            self._begin(Phase.READING, limits.request_timeout)
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
                await turn

    def _hold(self, size: int) -> None:
        """Hold so many bytes of messages from now on. Raises BuffersFullError if that is over a limit."""
        if size == self._held:
            return
        limit = self._payer.hold(size - self._held)
        if limit is not None:
            self._metrics.limit_rejections.labels(limit.value).inc()
            raise BuffersFullError(f"the gateway holds too many bytes just now ({limit.value}); try again later")
        self._held = size

    def _hold_answer(self, size: int) -> None:
        """Hold an answer that its client has not taken at once, beside its request. Raises UnreadError over a limit.

        A part of it is sent, so that nothing can be said any more but by closing.
        """
        limit = self._payer.hold(size)
        if limit is not None:
            self._metrics.limit_rejections.labels(limit.value).inc()
            raise UnreadError("the gateway holds too many bytes of answers just now")
        self._held += size

    def _begin(self, phase: Phase, seconds: float) -> None:
        """Enter a phase, and give it its deadline."""
        self.phase = phase
        self._set_deadline(trio.current_time() + seconds)

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = self._scope.deadline = deadline

    def _begin_to_idle(self) -> None:
        """Enter IDLE. To move a deadline costs as much as to decode a request, and so it is moved only now and then.

        It comes early by a hundredth at the most.
        """
        seconds = self._limits.idle_timeout
        if not self._is_welcome:  # who is to be refused may ask once, and not keep a place until then
            seconds = self._limits.request_timeout
        self.phase = Phase.IDLE
        deadline = trio.current_time() + seconds
        if not deadline - seconds * _LAZINESS <= self._deadline <= deadline:
            self._set_deadline(deadline)

    def _begin_to_answer(self, now: float) -> None:
        """Enter ANSWERING, in which the dispatcher keeps a deadline of its own; one left from IDLE must not come."""
        self.phase = Phase.ANSWERING
        if self._deadline < now + _LONGEST_ANSWER:
            self._set_deadline(float("inf"))

    @property
    def _is_welcome(self) -> bool:
        return self._principal is not None and self._over is None

    def _check_whole(self) -> None:
        """Raise ProtocolError where the client has left in the middle of a request."""
        if len(self._reader):
            raise ProtocolError("the connection ends within a message")

    async def _send_answer(self, answer: Answer, request: Request, began: float) -> None:
        if answer.response is not None:
            result = self._metrics.response_passed_on(answer.response)
        elif answer.refusal is None:
            result = "success"
            self._metrics.local_answers.labels(operation_label(request)).inc()
        elif answer.refusal is Refusal.CLIENT_DISCONNECTED:
            result = "client_disconnected"
        else:
            result = "gateway_error"
            self._note_refusal(answer, request)
        await self._send(answer.frame)
        self._metrics.request_answered(request, result, trio.current_time() - began)

    async def _confess(self, request: Request) -> None:
        """Cut off while a request was on its way: say so; a client that sees the connection close may repeat it."""
        message = "the gateway is shutting down: the outcome is unknown, do not repeat the request blindly"
        frame = refuse(Refusal.OUTCOME_UNKNOWN, message, request)
        with trio.move_on_after(_LINGER, shield=True), suppress(GatewayError):
            await self._stream.send_all(frame)
        self._note_refusal(
            Answer(frame, refusal=Refusal.OUTCOME_UNKNOWN, detail="cut off by the end of a drain"), request
        )

    async def _send(self, frame: bytes) -> None:
        sent = self._stream.send_now(frame)
        if sent < len(frame):
            self._begin(Phase.SENDING, self._limits.send_timeout)
            self._hold_answer(len(frame))
            self._turns.charge(self._share, len(frame) / _TURN_BYTES)
            await self._stream.send_all(memoryview(frame)[sent:])
        if self._held:
            self._hold(0)

    async def _turn_away(self, request: Request, principal: Principal | None) -> str:
        if principal is None:
            message = "no identity of this gateway matches the client certificate"
        else:
            message = "the client certificate is not valid at this time"
        await self._refuse(Refusal.NOT_AUTHENTICATED, message, request)
        return "not_authenticated"

    async def _refuse_over(self, limit: Limit, request: Request) -> None:
        self._metrics.limit_rejections.labels(limit.value).inc()
        await self._refuse(Refusal.OVERLOADED, f"over the limit {limit.value}; try again later", request)

    async def _refuse_message(self, error: ProtocolError) -> str:
        refusal = _REFUSALS.get(type(error), Refusal.INVALID_MESSAGE)
        try:
            await self._refuse(refusal, str(error), None, error.version)
        except GatewayError:
            return "gone"
        return "protocol"

    async def _refuse(
        self, refusal: Refusal, message: str, request: Request | None, version: tuple[int, int] | None = None
    ) -> None:
        self._note_refusal(Answer(b"", refusal=refusal, detail=message), request)
        await self._send(refuse(refusal, message, request, version=version))
        self._metrics.request_answered(request, "gateway_error", 0.0)

    def _note_refusal(self, answer: Answer, request: Request | None) -> None:
        """Count an answer of the gateway's own, and say whom it was for; not more often than somebody could read."""
        if answer.refusal is None:
            return
        reason = answer.refusal.value
        self._metrics.local_errors.labels(reason).inc()
        self._throttle.warn(
            self._log,
            reason,
            "request refused",
            reason=reason,
            detail=answer.detail,
            peer=self._peer,
            identity="nobody" if self._principal is None else self._principal.identity.name,
            operation=operation_label(request),
        )


#: What is answered to what can't be read; to everything else, that it is invalid.
_REFUSALS: Final[dict[type[ProtocolError], Refusal]] = {
    MessageTooLargeError: Refusal.TOO_LARGE,
    BuffersFullError: Refusal.OVERLOADED,
}

#: Ends in which the client is still to read something, and may still be sending.
_LAST_WORDS: Final = frozenset({"protocol", "not_authenticated", "drain", "limit"})
