"""RecordFeed: gives OpenSSL the records of a handshake, one after the other, and sends what OpenSSL writes.

OpenSSL reads and writes memory meanwhile. Not a byte after the last record may be taken from the kernel: it may belong
to a request, which OpenSSL reads from the socket itself. So the feed looks at all bytes that have arrived (MSG_PEEK),
gives OpenSSL whole records of them, and takes from the kernel afterwards what it has given. A record of which only a
part is seen is taken as it arrives: OpenSSL needs it, or the feed would not have been asked for it.
"""

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from OpenSSL import SSL
from trio.lowlevel import wait_readable, wait_writable

from gateway import tcp
from gateway.errors import StreamClosedError
from gateway.tls import records
from gateway.tls.openssl import connection_lost
from gateway.tls.verification import LARGE_HANDSHAKE, Verification

_LOOK: Final = 8192  # bytes at most that are looked at in the kernel at a time

_CLOSED: Final = "closed during the handshake"

_WaitFor = Callable[[Callable[[int], Awaitable[None]]], Awaitable[None]]


class RecordFeed:
    """The records of one handshake, or of one message after it, from a socket to a connection.

    ``wait`` waits for the socket with the function that it is given, and raises if the stream is closed meanwhile.
    ``seen`` are bytes that have arrived already, and are still in the kernel.
    """

    __slots__ = ("_budget", "_connection", "_given", "_is_unanswered", "_seen", "_socket", "_verification", "_wait")

    def __init__(
        self,
        sock: socket.socket,
        connection: SSL.Connection,
        verification: Verification,
        budget: records.HandshakeBudget,
        wait: _WaitFor,
        seen: bytes = b"",
    ) -> None:
        self._socket = sock
        self._connection = connection
        self._verification = verification
        self._budget = budget
        self._wait = wait
        self._seen = seen
        self._given = 0  # number of the seen bytes that OpenSSL has been given
        self._is_unanswered = bool(seen)  # bytes have arrived since bytes were last sent

    def __repr__(self) -> str:
        return f"<RecordFeed: {self._budget!r}>"

    def give_seen(self) -> bool:
        """Give OpenSSL the next record, if all of it was seen already; else return False. Costs no system call.

        Raises TlsError if the handshake has too many records or bytes.
        """
        seen, begin = self._seen, self._given
        body = begin + records.HEAD_SIZE
        if len(seen) < body:
            return False
        end = body + records.body_length(seen[begin:body])
        if len(seen) < end:
            return False
        self._count(end - begin)
        records.give(self._connection, seen[begin:end])
        self._given = end
        return True

    async def give_next(self) -> None:
        """Wait for the next record, and give it to OpenSSL. Raises StreamClosedError at the end, TlsError."""
        self.take_given()
        self._seen = await self._receive(_LOOK, socket.MSG_PEEK)
        if not self.give_seen():
            self._seen = b""
            head = await self._receive_exactly(records.HEAD_SIZE)
            length = records.body_length(head)
            self._count(records.HEAD_SIZE + length)
            records.give(self._connection, head + await self._receive_exactly(length) if length else head)

    def take_given(self) -> None:
        """Take from the kernel what OpenSSL has been given. Call this before OpenSSL reads the socket itself."""
        with suppress(OSError):  # of a reset: the next system call will raise, too
            while self._given and (taken := len(self._socket.recv(self._given))):
                self._given -= taken
        self._given = 0
        self._seen = b""

    async def flush(self) -> None:
        """Send the bytes that OpenSSL has written. Raises StreamClosedError if the peer has closed."""
        data = records.take_written(self._connection)
        while data:
            try:
                data = data[self._socket.send(data) :]
                self._is_unanswered = False
            except BlockingIOError:
                await self._wait(wait_writable)
            except OSError as error:
                raise connection_lost(_CLOSED, error) from None

    def acknowledge(self) -> None:
        """Have the kernel acknowledge received bytes, unless bytes that were sent since have carried that."""
        if self._is_unanswered:
            tcp.acknowledge(self._socket)

    def _count(self, size: int) -> None:
        self._budget.take(size)
        self._verification.is_large = self._budget.size > LARGE_HANDSHAKE

    async def _receive_exactly(self, size: int) -> bytes:
        received = await self._receive(size)
        while len(received) < size:
            received += await self._receive(size - len(received))
        return received

    async def _receive(self, size: int, flags: int = 0) -> bytes:
        """Wait for bytes, and return ``size`` bytes at most. Raises StreamClosedError at the end."""
        if not self._is_unanswered:  # the peer has hardly answered yet what was just sent: wait first
            await self._wait(wait_readable)
        while True:
            try:
                data = self._socket.recv(size, flags)
            except BlockingIOError:
                self.acknowledge()  # the peer may write the messages of a handshake apart
                await self._wait(wait_readable)
                continue
            except OSError as error:
                raise connection_lost(_CLOSED, error) from None
            if not data:
                raise StreamClosedError(f"{_CLOSED}: closed by the peer")
            self._is_unanswered = True
            return data
