"""Clients whose TLS ends in a TLS worker, as the core sees them.

A WorkerLink has the methods of a TlsStream that a conversation uses, so that a conversation does not know where TLS
ends. It reads whole requests: the worker has collected them under the limits of the listener, and reads no further
until the request is answered.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

from gateway.errors import GatewayError, StreamClosedError
from gateway.front.channel import Kind, Message, Opening, decode_error
from gateway.front.pipe import Pipe

_WORKER_ENDED: Final = "the TLS worker of this client has ended"
_FRAME, _ANSWER = Kind.FRAME, Kind.ANSWER  # to look up a member of an enumeration is a call
_CLOSED_HERE: Final = "closed on this side"


class WorkerLink:
    """One client connection of a TLS worker. ``opening`` holds the facts of its handshake."""

    __slots__ = (
        "_ended",
        "_failure",
        "_frame",
        "_has_left",
        "_is_waiting_for_turn",
        "_pipe",
        "_reader",
        "_remove",
        "before_read",
        "is_closed",
        "is_request_begun",
        "number",
        "opening",
    )

    def __init__(self, number: int, opening: Opening, pipe: Pipe, remove: Callable[[int], None]) -> None:
        self.opening = opening
        self.before_read: Callable[[], Awaitable[None] | None] | None = None  # called before each request is returned
        self.is_closed = False
        self.is_request_begun = False  # the worker has read the beginning of a request
        self.number = number
        self._pipe = pipe
        self._remove = remove
        self._frame: bytes | None = None
        self._ended = False
        self._failure: GatewayError | None = None
        self._has_left = False
        self._is_waiting_for_turn = False
        self._reader: Task | None = None

    def __repr__(self) -> str:
        return f"<WorkerLink {self.number} to {self.opening.peer}>"

    @property
    def is_read_delayed(self) -> bool:
        """True if a request, or its beginning, has arrived and was not returned yet: a drain must wait for it."""
        return self._is_waiting_for_turn or self.is_request_begun or self._frame is not None

    def is_idle(self) -> bool:
        """Return False, and have the worker end the connection if it is idle: a request may be on its way from there.

        ``receive_some`` returns that request, or the end.
        """
        if not (self.is_closed or self._ended):
            self._pipe.send(Kind.CLOSE_IF_IDLE, self.number)
        return False

    def peer_certificate_der(self) -> bytes | None:
        """Return the client's certificate in DER."""
        return self.opening.certificate or None

    def issuers_der(self) -> tuple[bytes, ...] | None:
        """Return the CA certificates above the client's, as verified, in DER; None of a resumed session."""
        return None if self.opening.resumed else self.opening.issuers

    async def receive_some(self) -> bytes:
        """Wait for the next request and return it whole; an empty result is the end of the connection.

        Raises the error with which the worker stopped to read.
        """
        while self._frame is None:
            if self.is_closed:
                raise StreamClosedError(_CLOSED_HERE)
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            self._reader = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._leave)
        if self.before_read is not None and (turn := self.before_read()) is not None:
            self._is_waiting_for_turn = True
            try:
                await turn
            finally:
                self._is_waiting_for_turn = False
        frame, self._frame = self._frame, None
        self.is_request_begun = False
        return frame

    def _leave(self, _: RaiseCancelT) -> Abort:
        self._reader = None
        return Abort.SUCCEEDED

    def acknowledge(self) -> None:
        """Do nothing: the worker acknowledges."""

    def peer_has_left(self) -> bool:
        """Return True if the client has closed its sending side or reset, or if its worker has ended."""
        return self._has_left or self.is_closed

    def send_now(self, data: bytes | memoryview) -> int:
        """Give an answer to the worker; return its size, or 0 if the worker is too busy to take it now.

        Raises StreamClosedError if the connection has ended.
        """
        self._check_open()
        if self._pipe.is_full:
            return 0
        self._pipe.send(_ANSWER, self.number, bytes(data))
        return len(data)

    async def send_all(self, data: bytes | memoryview) -> None:
        """Give an answer to the worker as soon as it keeps up. Raises StreamClosedError if the connection has ended."""
        self._check_open()
        await self._pipe.wait_for_room()
        self._check_open()
        self._pipe.send(Kind.ANSWER, self.number, bytes(data))

    def _check_open(self) -> None:
        if self.is_closed:
            raise StreamClosedError(_CLOSED_HERE, nothing_sent=True)
        if self._ended or self._pipe.is_closed or isinstance(self._failure, StreamClosedError):
            raise StreamClosedError(str(self._failure or _WORKER_ENDED), nothing_sent=True)

    async def aclose(self, *, linger: float = 0.0) -> None:
        """Have the worker close the connection; for up to ``linger`` seconds it reads and discards what arrives.

        The payload of CLOSE is ``linger`` as JSON, or empty for 0.
        """
        self._end(linger)
        await trio.lowlevel.checkpoint_if_cancelled()  # a whole checkpoint would cost a round of the event loop

    def close(self) -> None:
        """Have the worker close the connection, once the client has the answers that were sent."""
        self._end(0.0)

    def close_politely(self) -> None:
        """Close as ``close`` does: the worker sends close_notify in any case."""
        self.close()

    def cut(self) -> None:
        """Have the worker close the connection at once, also if an answer is not sent whole."""
        self._end_with(Kind.CUT, b"")

    def _end(self, linger: float) -> None:
        self._end_with(Kind.CLOSE, json.dumps(linger).encode() if linger else b"")

    def _end_with(self, kind: Kind, payload: bytes) -> None:
        if not self.is_closed:
            self.is_closed = True
            if not self._ended:
                self._pipe.send(kind, self.number, payload)
            self._remove(self.number)
            self._wake()

    def handle(self, message: Message) -> None:
        """Take a message of the worker about this connection."""
        if message.kind == _FRAME:
            self._frame = message.payload
        elif message.kind == Kind.BEGUN:
            self.is_request_begun = True
            return
        elif message.kind == Kind.LEFT:
            self._has_left = True
            return
        elif message.kind == Kind.ENDED:
            self._ended = self._has_left = True
        elif message.kind == Kind.FAILED:
            self._failure = decode_error(message.payload)
        self._wake()

    def worker_ended(self) -> None:
        """Note that the worker has ended: the client is disconnected."""
        self._failure = StreamClosedError(_WORKER_ENDED)
        self._has_left = True
        self._frame = None
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            trio.lowlevel.reschedule(reader)


class WorkerLinks:
    """The connections of one TLS worker. ``receive`` serves one client, from its opening to its end.

    ``count`` and ``add_event`` take the payloads of ``Kind.COUNTED`` and ``Kind.AUDIT``.
    """

    def __init__(
        self,
        pipe: Pipe,
        receive: Callable[[WorkerLink], Awaitable[None]],
        count: Callable[[bytes], None],
        add_event: Callable[[bytes], None] = lambda _payload: None,
    ) -> None:
        self.pipe = pipe
        self._receive = receive
        self._count = count
        self._add_event = add_event
        self._links: dict[int, WorkerLink] = {}

    def __len__(self) -> int:
        return len(self._links)

    def __repr__(self) -> str:
        return f"<WorkerLinks: {len(self)} clients>"

    def __contains__(self, link: object) -> bool:
        return isinstance(link, WorkerLink) and self._links.get(link.number) is link

    async def run(self) -> None:
        """Serve the worker's clients until the worker has ended and the last conversation with it."""
        async with trio.open_nursery() as nursery:

            def handle(message: Message) -> None:
                known = self._links.get(message.connection)
                if known is not None:
                    known.handle(message)
                elif message.kind == Kind.OPENED:
                    opening = Opening.decode(message.payload)
                    link = WorkerLink(message.connection, opening, self.pipe, self._remove)
                    self._links[message.connection] = link
                    nursery.start_soon(self._receive, link)
                elif message.kind == Kind.COUNTED:
                    self._count(message.payload)
                elif message.kind == Kind.AUDIT:
                    self._add_event(message.payload)

            await self.pipe.run(handle)
            for link in list(self._links.values()):
                link.worker_ended()
            self._links.clear()

    def _remove(self, number: int) -> None:
        self._links.pop(number, None)
