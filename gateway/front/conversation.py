"""Conversation: one client connection's requests and answers, in order.

It is in one phase at a time, and each phase has its deadline: IDLE before a request, READING one whose first bytes are
there, ANSWERING while the dispatcher works, under a deadline of its own, and SENDING.
"""

import time
from enum import Enum
from typing import Final, NamedTuple

import trio

from gateway.dispatcher import Answer, Dispatcher
from gateway.errors import GatewayError, MessageTooLargeError, ProtocolError
from gateway.identity import Principal
from gateway.kmip.decode import decode_request
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Request
from gateway.kmip.spec import Tag
from gateway.log import Log
from gateway.metrics import Metrics
from gateway.policy import Refusal, refuse
from gateway.tls import TlsStream

_LINGER: Final = 1.0  # s for a client to take its last answer before the connection is closed


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
    request_timeout: float = 10.0
    idle_timeout: float = 3600.0
    send_timeout: float = 10.0


class Conversation:
    """Reads requests from a handshaken client, has them dispatched, sends the answers.

    ``principal`` is None for a client that no identity rule matches: it is told so when it asks, and let go.
    """

    def __init__(
        self,
        stream: TlsStream,
        principal: Principal | None,
        *,
        dispatcher: Dispatcher,
        limits: Limits,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self.phase = Phase.IDLE
        self.requests = 0
        self._stream = stream
        self._principal = principal
        self._dispatcher = dispatcher
        self._limits = limits
        self._metrics = metrics
        self._log = log
        self._reader = FrameReader(Tag.REQUEST_MESSAGE, limits.max_request_size)
        self._scope = trio.CancelScope()
        self._draining = False

    def __repr__(self) -> str:
        who = self._principal.identity.name if self._principal else "nobody"
        return f"<Conversation with {who}, {self.phase.value}, {self.requests} requests>"

    def drain(self) -> None:
        """End after the answer that is due, or at once where none is."""
        self._draining = True
        if self.phase is Phase.IDLE:
            self._scope.cancel()

    async def run(self) -> str:
        """Converse until either side ends it, and close the stream. Returns why it ended, as a label."""
        try:
            with self._scope:
                ended = await self._converse()
            if self._scope.cancelled_caught:
                ended = "drain" if self._draining else f"{self.phase.value}_timeout"
            await self._stream.aclose(linger=_LINGER if ended in _LAST_WORDS else 0.0)
        finally:
            self._stream.close()
        return ended

    async def _converse(self) -> str:
        try:
            while True:
                request = await self._next_request()
                if request is None:
                    return "client"
                self.requests += 1
                if self._principal is None or not self._principal.is_valid_at(time.time()):
                    return await self._turn_away(request, self._principal)
                await self._answer(request, self._principal)
                if self._draining:
                    return "drain"
        except ProtocolError as error:
            return await self._refuse_message(error)
        except GatewayError:
            return "gone"

    async def _next_request(self) -> Request | None:
        """The next request; None where the client has left. Raises ProtocolError for what is none."""
        limits = self._limits
        self.phase = Phase.IDLE
        frame = self._reader.next_frame() if len(self._reader) else None
        self._scope.deadline = trio.current_time() + (
            limits.request_timeout if len(self._reader) else limits.idle_timeout
        )
        while frame is None:
            data = await self._stream.receive_some()
            await trio.lowlevel.checkpoint_if_cancelled()  # from here on, only the dispatcher may give up
            if not data:
                return None
            if self.phase is Phase.IDLE:
                self.phase = Phase.READING
                frame = self._reader.feed(data)
                if frame is None:
                    self._scope.deadline = trio.current_time() + limits.request_timeout
            else:
                frame = self._reader.feed(data)
        return decode_request(frame, max_depth=limits.max_depth, max_items=limits.max_batch_items)

    async def _answer(self, request: Request, principal: Principal) -> None:
        began = time.perf_counter()
        self.phase = Phase.ANSWERING
        self._scope.deadline = float("inf")  # the dispatcher keeps its own
        answer = await self._dispatcher.dispatch(request, principal)
        if answer.response is not None:
            result = self._metrics.response_passed_on(answer.response)
        else:
            result = "gateway_error"
            self._note_refusal(answer)
        await self._send(answer.frame)
        self._metrics.request_answered(request, result, time.perf_counter() - began)

    async def _send(self, frame: bytes) -> None:
        self.phase = Phase.SENDING
        self._scope.deadline = trio.current_time() + self._limits.send_timeout
        await self._stream.send_all(frame)

    async def _turn_away(self, request: Request, principal: Principal | None) -> str:
        if principal is None:
            message = "no identity of this gateway matches the client certificate"
        else:
            message = "the client certificate is not valid at this time"
        await self._refuse(Refusal.NOT_AUTHENTICATED, message, request)
        return "not_authenticated"

    async def _refuse_message(self, error: ProtocolError) -> str:
        refusal = Refusal.TOO_LARGE if isinstance(error, MessageTooLargeError) else Refusal.INVALID_MESSAGE
        try:
            await self._refuse(refusal, str(error), None, error.version)
        except GatewayError:
            return "gone"
        return "protocol"

    async def _refuse(
        self, refusal: Refusal, message: str, request: Request | None, version: tuple[int, int] | None = None
    ) -> None:
        self._note_refusal(Answer(b"", refusal=refusal, detail=message))
        await self._send(refuse(refusal, message, request, version=version))
        self._metrics.request_answered(request, "gateway_error", 0.0)

    def _note_refusal(self, answer: Answer) -> None:
        if answer.refusal is not None:
            self._metrics.gateway_errors.labels(answer.refusal.value).inc()
            self._log.warning("request refused", reason=answer.refusal.value, detail=answer.detail)


#: Ends in which the client is still to read something, and may still be sending.
_LAST_WORDS: Final = frozenset({"protocol", "not_authenticated", "drain"})
