"""TlsStream: one TLS connection on a non-blocking socket.

Most of a handshake's time is spent in OpenSSL. During the handshake OpenSSL reads and writes memory, and is given one
record at a time: see ``record_feed``. Afterwards OpenSSL reads and writes the socket itself, and trio only waits for
the socket. The order is *wait, then read*: a read that finds nothing costs more than the wait.
"""

import ipaddress
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio
from cryptography import x509
from OpenSSL import SSL
from trio.lowlevel import wait_readable, wait_writable

from gateway import tcp
from gateway.errors import StreamClosedError, StreamInterruptedError, TlsError
from gateway.tls import records
from gateway.tls.openssl import (
    CLOSED_HERE,
    READ_BUFFER,
    RECORD,
    WANT_READ,
    ZERO_RETURN,
    allocate,
    from_buffer,
    handshake_reason,
    is_about_certificate,
    raise_error,
    record_reason,
    ssl_do_handshake,
    ssl_get_error,
    ssl_pending,
    ssl_read,
    ssl_write,
    text_of,
    to_bytes,
)
from gateway.tls.peer import certificate_der, issuers_der
from gateway.tls.record_feed import RecordFeed
from gateway.tls.resumption import ServerContext
from gateway.tls.verification import MAX_CERTIFICATE, UNREADABLE_CERTIFICATE, Verification

_Wait = Callable[[int], Awaitable[None]]  # for a descriptor

_LINGER_BYTES: Final = 1 << 20  # read and discarded at most, while a refused client finishes sending
_RECORDS_AT_ONCE: Final = 16  # of one connection, before other tasks run


class TlsStream:
    """A TLS connection over a connected socket. The stream owns the socket and closes it.

    ``server_name`` is sent as SNI if it is a DNS name. At any time one task may read and one task may write. After a
    call that raised or was cancelled, the stream can only be closed.
    """

    __slots__ = (
        "_allowance",
        "_close_poll",
        "_context",
        "_descriptor",
        "_is_fresh",
        "_poll",
        "_server_side",
        "_socket",
        "_ssl",
        "_verification",
        "before_read",
        "connection",
        "end",
        "is_flooded",
        "is_read_delayed",
        "spoke_unasked",
    )

    def __init__(
        self,
        sock: socket.socket,
        context: SSL.Context,
        *,
        server_side: bool,
        server_name: str | None = None,
    ) -> None:
        if sock.gettimeout() != 0.0:
            sock.setblocking(False)
        with suppress(OSError):  # the peer may have closed already; the handshake will raise
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._descriptor = sock.fileno()  # -1 once closed
        self._is_fresh = False  # True after the handshake, until the first read: a client's request has often arrived
        self._poll: select.poll | None = None
        self._close_poll: select.poll | None = None
        self.before_read: Callable[[], Awaitable[None] | None] | None = None  # called when bytes can be read
        self.is_read_delayed = (
            False  # True while bytes can be read, and the reader awaits the result of ``before_read``
        )
        self._server_side = server_side
        self.spoke_unasked = False
        self.end = ""  # the text of the alert or the end that ``is_quiet`` has found
        self._verification = Verification()
        self._allowance = records.RecordAllowance()
        #: True once the peer has sent more records without data than allowed; the stream can only be closed.
        self.is_flooded = False
        self.connection = SSL.Connection(context)
        self._ssl = self.connection._ssl  # noqa: SLF001 - for the functions of OpenSSL itself
        records.return_after_each_message(self.connection)
        self._context = context
        self.connection.set_app_data(self._verification)
        if server_side:
            self.connection.set_accept_state()
        else:
            if server_name is not None and not is_ip_address(server_name):
                self.connection.set_tlsext_host_name(server_name.encode("idna"))
            self.connection.set_connect_state()

    def __repr__(self) -> str:
        side = "server" if self._server_side else "client"
        return f"<TlsStream {side} side, descriptor {self._descriptor}>"

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self._descriptor

    @property
    def resumed(self) -> bool:
        """True if the handshake resumed an earlier session, so that it verified no certificate."""
        return not self._verification.ran

    @property
    def version(self) -> str:
        """The protocol version, as ``TLSv1.3``."""
        return self.connection.get_protocol_version_name()

    def peer_certificate(self) -> x509.Certificate | None:
        """Return the peer's certificate; of a resumed session, that of the full handshake. Raises TlsError."""
        try:
            return self.connection.get_peer_certificate(as_cryptography=True)
        except UNREADABLE_CERTIFICATE as error:
            raise TlsError(f"the peer's certificate can't be read: {error!r}", reason="certificate") from None

    def peer_certificate_der(self) -> bytes | None:
        """Return the peer's certificate in DER, unparsed, which is much cheaper than ``peer_certificate``."""
        return certificate_der(self._ssl)

    def issuers_der(self) -> tuple[bytes, ...] | None:
        """Return the CA certificates above the peer's, as verified, in DER, the root last; None if resumed."""
        return None if self.resumed else issuers_der(self._ssl)

    async def handshake(self, seen: bytes = b"") -> None:
        """Shake hands. Raises TlsError, or StreamClosedError if the peer closes. The caller sets the deadline.

        ``seen`` are bytes of the peer that have arrived and were not taken from the kernel.
        """
        self._check_open()
        feed = self._feed(records.HandshakeBudget("handshake failed", "handshake_too_large"), seen)
        turn = 0
        while (result := ssl_do_handshake(self._ssl)) <= 0:
            if ssl_get_error(self._ssl, result) != WANT_READ:
                raise await self._handshake_failure(feed, result)
            if not feed.give_seen():
                await feed.flush()
                await feed.give_next()
            turn += 1
            if turn % _RECORDS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
                self._check_open()
        await feed.flush()
        feed.take_given()
        records.attach(self.connection, self._descriptor)
        if self._server_side:
            self._is_fresh = True
            feed.acknowledge()  # unless a session ticket has carried that
            if self._verification.ran and isinstance(self._context, ServerContext):
                self._context.completed(self.connection)

    def _feed(self, budget: records.HandshakeBudget, seen: bytes = b"") -> RecordFeed:
        return RecordFeed(self._socket, self.connection, self._verification, budget, self._wait, seen)

    async def _handshake_failure(self, feed: RecordFeed, result: int) -> TlsError | StreamClosedError:
        """Return the error for a result of ``ssl_do_handshake``, after the alert for the peer was sent."""
        try:
            raise_error(self.connection, self._ssl, result)
        except SSL.Error as error:
            if isinstance(error, SSL.SysCallError | SSL.ZeroReturnError):
                return StreamClosedError(f"closed during the handshake: {text_of(error)}")
            failure = self._handshake_error(error)
        feed.take_given()  # unread bytes would make the close a reset, which could destroy the alert
        with suppress(StreamClosedError):
            await feed.flush()  # the alert
        return failure

    def _handshake_error(self, error: SSL.Error) -> TlsError:
        if self._verification.is_too_large:
            return TlsError(
                f"handshake failed: the peer's certificate has more than {MAX_CERTIFICATE} bytes",
                reason="certificate_too_large",
            )
        reason = handshake_reason(error, self._verification.error)
        text = text_of(error)
        if reason not in {"alert", "no_certificate"} and self._verification.detail:
            text = f"{text}: {self._verification.detail}"
        elif reason == "alert" and is_about_certificate(text):
            text = f"{text}: the peer does not accept the certificate that the gateway shows it"
        return TlsError(f"handshake failed: {text}", reason=reason)

    async def receive_some(self) -> bytes:
        """Wait for bytes and return at most 16 KiB; an empty result is the end of the stream.

        OpenSSL reads no further than one record, and each read here takes a whole record: all unread bytes are in the
        kernel, so that it is enough to wait for the socket.
        An end without close_notify is an end, too. Raises StreamClosedError on a reset, TlsError on a broken record or
        an alert.
        """
        ready: _Wait = wait_readable
        while True:
            if self._descriptor < 0:
                raise StreamClosedError(CLOSED_HERE)
            try:
                if self._is_fresh:
                    self._is_fresh = False
                else:
                    await ready(self._descriptor)
                if self.before_read is not None and (turn := self.before_read()) is not None:
                    self.is_read_delayed = True
                    await turn
                    self.is_read_delayed = False
                if self._descriptor < 0:
                    raise StreamClosedError(CLOSED_HERE)
                buffer = allocate(READ_BUFFER)
                size = ssl_read(self._ssl, buffer, RECORD)
                if size > 0:
                    return to_bytes(buffer, size)  # type: ignore[no-any-return]
                if ssl_get_error(self._ssl, size) == ZERO_RETURN:  # the end, without the price of an exception
                    return b""
                raise_error(self.connection, self._ssl, size)
            except trio.ClosedResourceError:
                raise self._woken() from None
            except SSL.Error as error:
                ready = await self._wait_after(error)

    async def _wait_after(self, error: SSL.Error) -> _Wait:
        """Return the wait after which to read again. Raises as ``receive_some``."""
        match error:
            case SSL.WantReadError():  # a part of a record, or a message without data
                if self._count_record():
                    await self._read_message()
                if self._server_side:
                    self.acknowledge()
                return wait_readable
            case SSL.WantWriteError():
                return wait_writable
            case SSL.SysCallError():
                raise StreamClosedError(f"connection lost: {text_of(error)}") from None
        raise TlsError(f"connection broken: {text_of(error)}", reason=record_reason(error)) from None

    def _count_record(self) -> bool:
        """Count a message without data, if the last read has found any. Return True if further records belong to it.

        Raises TlsError (records) above the bound, see ``records``.
        """
        is_message = records.is_detached(self.connection)
        if not is_message and records.was_partial():
            return False
        with self._noting_flood():
            self._allowance.take(trio.current_time())
            return is_message and not self._finish_message()

    def _finish_message(self) -> bool:
        """Return False if a message without data is incomplete. Otherwise answer it, and let OpenSSL use the socket."""
        if not self._verification.is_whole:
            return False
        records.write_answer(self.connection)
        answer = records.take_written(self.connection)
        records.attach(self.connection, self._descriptor)
        with suppress(OSError):
            answer = answer[self._socket.send(answer) :] if answer else answer
        if answer:
            raise TlsError("connection broken: the peer does not read the answer to a key update", reason="records")
        return True

    async def _read_message(self) -> None:
        """Read the rest of a message without data, record by record, such as a session ticket of more than 16 KiB."""
        feed = self._feed(records.HandshakeBudget("connection broken: a message without data", "records"))
        with self._noting_flood():
            while not self._finish_message():
                try:
                    await feed.give_next()
                except StreamInterruptedError:  # perhaps within a record: its beginning is lost
                    self.close()
                    raise StreamClosedError(CLOSED_HERE) from None
                feed.take_given()
                with suppress(SSL.WantReadError):
                    self.connection.recv(RECORD)

    @contextmanager
    def _noting_flood(self) -> Iterator[None]:
        try:
            yield
        except TlsError:
            self.is_flooded = True
            raise

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Set an option of the socket."""
        self._socket.setsockopt(level, option, value)

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all bytes, in as few records as possible: some clients read an answer with two reads.

        Raises StreamClosedError if the peer has closed.
        """
        sent = self.send_now(data) if data else 0
        if sent < len(data):
            with memoryview(data) as view:
                while sent < len(data):
                    sent += await self._send_some(view[sent:])

    def send_now(self, data: bytes | memoryview) -> int:
        """Send as much of one record as possible without waiting. Return the number of bytes sent.

        If bytes are left, the caller must send the rest with ``send_all``. Raises StreamClosedError as that does.
        """
        if self._descriptor < 0:
            raise StreamClosedError(CLOSED_HERE)
        try:
            sent: int = ssl_write(self._ssl, data if isinstance(data, bytes) else from_buffer(data), len(data))
            if sent <= 0:
                raise_error(self.connection, self._ssl, sent)
        except (SSL.WantWriteError, SSL.WantReadError):
            return 0  # a part of the record may be on its way
        except SSL.Error as error:
            raise StreamClosedError(f"connection broken: {text_of(error)}", nothing_sent=True) from None
        return sent

    async def _send_some(self, data: memoryview) -> int:
        while True:
            self._check_open()
            try:
                return self.connection.send(data)
            except SSL.WantWriteError:
                await self._wait(wait_writable)
            except SSL.WantReadError:
                await self._wait(wait_readable)
            except SSL.Error as error:
                raise StreamClosedError(f"connection broken: {text_of(error)}") from None

    async def _wait(self, ready: _Wait) -> None:
        """Wait for the socket to be ready. Raises StreamClosedError if this side closes it first."""
        self._check_open()
        try:
            await ready(self._descriptor)
        except trio.ClosedResourceError:
            raise self._woken() from None
        self._check_open()

    def _woken(self) -> StreamClosedError | StreamInterruptedError:
        """Return the error for a task that waited for the socket: this side has closed it, or only interrupted it."""
        return StreamClosedError(CLOSED_HERE) if self._descriptor < 0 else StreamInterruptedError()

    def interrupt(self) -> None:
        """Raise StreamInterruptedError in the task that waits for the socket, if any.

        The task may wait for bytes again afterwards, but must not go on sending.
        """
        if self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)

    def is_readable(self) -> bool:
        """Return True if unread bytes, or the end, have arrived. Reads nothing."""
        if self._descriptor < 0:
            return False
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(ssl_pending(self._ssl) or poll.poll(0))

    def _check_open(self) -> None:
        """Raise StreamClosedError once closed: OpenSSL would use the descriptor, which may be a new connection's.

        ``receive_some`` and ``send_now`` have these lines in them, which every request needs.
        """
        if self._descriptor < 0:
            raise StreamClosedError(CLOSED_HERE)

    def is_quiet(self) -> bool:
        """Return True if the peer has sent no data and has not closed; for a stream on which no data is expected.

        Sets ``spoke_unasked`` if data has arrived, and ``end`` if the connection has ended. TLS may send messages of
        its own (tickets, a key update), so that a readable socket is read: only data, an end, an error, or too many
        records without data make the result False.
        Usually costs one system call.
        """
        if self._descriptor < 0:
            return False
        if ssl_pending(self._ssl):
            self.spoke_unasked = True
            return False
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLIN | select.POLLRDHUP)
        if not self._poll.poll(0):
            return True
        for _ in range(_RECORDS_AT_ONCE):
            if not self._is_next_without_data():
                return False
            if not self._poll.poll(0):
                return True
        return False

    def _is_next_without_data(self) -> bool:
        """Read and count a record. Return False for data, an end, an error, or too many records without data."""
        try:
            self.connection.recv(1)
        except SSL.WantReadError:
            try:
                return not self._count_record()
            except TlsError:
                return False
        except SSL.Error as error:
            self.end = f"connection broken: {text_of(error)}"
            return False
        self.spoke_unasked = True
        return False

    def is_unacknowledged(self, seconds: float) -> bool:
        """Return True if the peer's kernel has acknowledged no sent bytes for ``seconds`` seconds.

        Call it at least ``seconds`` after sending. Returns False once closed. Costs one system call.
        """
        return self._descriptor >= 0 and tcp.is_unacknowledged(self._socket, seconds)

    def peer_has_left(self) -> bool:
        """Return True if the peer has closed its sending side (FIN) or reset, or if this side is closed.

        Unread bytes hide neither. A close_notify alone does not count; the FIN that follows it does. A peer that
        half-closes and still waits for its answer looks the same as a peer that has disconnected: cancel only a request
        that may be repeated, and only for a reason. Costs one system call.
        """
        if self._descriptor < 0:
            return True
        if self._close_poll is None:
            self._close_poll = select.poll()
            self._close_poll.register(self._descriptor, select.POLLRDHUP)  # resets and errors are always reported
        return bool(self._close_poll.poll(0))

    def is_idle(self) -> bool:
        """Return True if no byte waits in the socket to be read, or if the peer has ended. Costs one system call."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:  # no byte; or a reset
            return True

    def acknowledge(self) -> None:
        """Have the kernel acknowledge the received bytes at once: see ``tcp.acknowledge``."""
        tcp.acknowledge(self._socket)

    async def aclose(self, *, linger: float = 0.0) -> None:
        """Send close_notify and close.

        Before the close, read and discard bytes until the peer closes, for up to ``linger`` seconds: for unread bytes
        the kernel would send a reset, and the reset could destroy the last answer.
        """
        if self._descriptor < 0:
            return
        try:
            with suppress(SSL.Error):
                self.connection.shutdown()
            if linger:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)
                with trio.move_on_after(linger):
                    await self._discard()
        finally:
            self.close()

    async def _discard(self) -> None:
        discarded = 0
        while discarded < _LINGER_BYTES:
            await wait_readable(self._descriptor)
            try:
                data = self._socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            discarded += len(data)

    def close_politely(self) -> None:
        """Send close_notify, if that is possible without waiting, and close."""
        if self._descriptor >= 0:
            with suppress(SSL.Error):
                self.connection.shutdown()
            self.close()

    def cut(self) -> None:
        """Close as ``close_politely`` does: a part of an answer that is on its way is not finished."""
        self.close_politely()

    def close(self) -> None:
        """Close at once, without close_notify. May be called again."""
        if self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)
            self._descriptor = -1
            self._socket.close()


def is_ip_address(name: str) -> bool:
    """Return True for an IP address, False for a DNS name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
