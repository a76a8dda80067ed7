"""TLS on both sides: contexts from files, and one stream on a non-blocking socket.

pyOpenSSL brings its own, current OpenSSL, and handshakes are OpenSSL's time. During the handshake OpenSSL reads and
writes memory, and is given one record at a time: see `records`. Afterwards it reads and writes the socket itself; trio
only waits for it. The order is *wait, then read*: a read that finds nothing costs more than the wait.
"""

import errno
import ipaddress
import select
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from trio.lowlevel import wait_readable, wait_writable

from gateway import records, tcp
from gateway.errors import StreamClosedError, StreamInterruptedError, TlsError

_RECORD: Final = 16384  # bytes in one TLS record, and so in one read
_SSL_MODE_RELEASE_BUFFERS: Final = 0x10
_SESSION_ID_CONTEXT: Final = b"kmip-gateway"
_CLOSED_HERE: Final = "closed on this side"
_LINGER_BYTES: Final = 1 << 20  # read and thrown away at the most while a refused client finishes sending
_WRITTEN_AT_ONCE: Final = 32768  # bytes that OpenSSL writes during the handshake
_RECORDS_AT_ONCE: Final = 16  # of one connection, before other tasks get a turn
_LARGE_HANDSHAKE: Final = 32768  # bytes; in a smaller one no certificate can be too large for a session ticket
_MAX_CERTIFICATE: Final = 60_000  # bytes, DER; a ticket holds the client's certificate, and must be shorter than 64 KiB

_STORED_SESSIONS: Final = 1000  # of TLS 1.2 clients without tickets, some 10 KiB each

_OPENSSL_4: Final = 0x4000_0000


def check_openssl() -> None:
    """Raise TlsError where OpenSSL is so old that one client's leaving would break other sessions.

    An error that nobody has fetched stays on the thread's queue, and before 4.0 OpenSSL took it for the outcome of
    whatever the thread, all of this process, did next: with another client, or with a key manager.
    """
    if SSL.OPENSSL_VERSION_NUMBER < _OPENSSL_4:
        found = SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()
        raise TlsError(
            f"{found} is too old: one client's leaving could break other sessions; install cryptography's own wheel,"
            " which brings OpenSSL 4 (`pip install --only-binary :all: 'cryptography>=48'`)"
        )


class Policy(Enum):
    """What a listener negotiates: the lowest version, and the cipher suites below TLS 1.3 in OpenSSL's notation."""

    MODERN = (SSL.TLS1_2_VERSION, "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!PSK")
    #: KMIP Profiles 1.4, "Basic Authentication Suite", makes AES128-SHA256 and AES256-SHA256 mandatory.
    COMPATIBLE = (
        SSL.TLS1_2_VERSION,
        "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:ECDHE+AES:kRSA+AESGCM:AES256-SHA256:AES128-SHA256:!aNULL:!PSK",
    )
    LEGACY = (SSL.TLS1_VERSION, "ALL:!aNULL:!eNULL:!PSK:!SRP:!RC4:!EXP:!LOW@SECLEVEL=0")

    @property
    def minimum_version(self) -> int:
        """The lowest protocol version, as OpenSSL numbers it."""
        return self.value[0]

    @property
    def ciphers(self) -> bytes:
        """The cipher list."""
        return self.value[1].encode()


#: Words in OpenSSL's reasons, and the reason that a TlsError gives for them; the first that is found counts.
_REASONS: Final = (
    ("peer did not return a certificate", "no_certificate"),
    ("no shared cipher", "no_shared_cipher"),
    ("no suitable signature", "no_shared_cipher"),
    ("unsupported protocol", "version"),
    ("http request", "not_tls"),
    ("https proxy request", "not_tls"),
    ("wrong version number", "not_tls"),
    ("packet length too long", "not_tls"),
    ("alert", "alert"),
    ("certificate verify failed", "certificate"),
)
#: X509_V_ERR_* of OpenSSL's x509_vfy.h, where the operator should be told more than "certificate".
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
#: What a certificate that OpenSSL has taken may still raise where `cryptography`, which is stricter, reads it.
UNREADABLE_CERTIFICATE: Final = (
    ValueError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def server_context(
    certificate: Path, private_key: Path, client_ca: Path, policy: str = "modern", *, resumption_lifetime: float = 3600
) -> SSL.Context:
    """A context for a side that accepts: every client must show a certificate that leads to ``client_ca``.

    ``policy`` names a Policy in lower case. Sessions can be resumed for ``resumption_lifetime`` seconds, on TLS 1.2 and
    1.3, by every process that shares this context. They count from the full handshake, and resumption does not extend
    them. Raises TlsError for files that OpenSSL does not take.
    """
    context = _configured(ServerContext(resumption_lifetime), Policy[policy.upper()], certificate, private_key)
    _load_ca(context, client_ca)
    context.load_client_ca(str(client_ca).encode())
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, note_verification)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_session_id(_SESSION_ID_CONTEXT)  # without it, a client that resumes gets a fatal alert
    context.set_timeout(int(resumption_lifetime))
    context.set_tlsext_servername_callback(_issue_no_further_ticket)
    return context


class ServerContext(SSL.Context):
    """A context for a side that accepts, with a bound on the sessions that it keeps.

    A ticket holds its session itself. Sessions of TLS 1.2 clients without tickets are kept here, by default 20,480 of
    them. OpenSSL's own bound can't be set through pyOpenSSL, so that storing is turned off once so many are kept, until
    the oldest ones expire; clients shake hands in full meanwhile.
    """

    def __init__(self, lifetime: float, most: int = _STORED_SESSIONS) -> None:
        super().__init__(SSL.TLS_METHOD)
        self._lifetime = lifetime
        self._most = most
        self._expiry: deque[float] = deque()  # of the stored sessions, the oldest first
        self._is_storing = True
        self.set_session_cache_mode(SSL.SESS_CACHE_SERVER)

    def completed(self, connection: SSL.Connection) -> None:
        """Count the session of a full handshake that was just completed, if it is one to be stored."""
        if connection.get_protocol_version() >= _TLS_1_3 or not _has_session_id(connection):
            return
        now = time.monotonic()
        while self._expiry and self._expiry[0] <= now:
            self._expiry.popleft()
        if self._is_storing:
            self._expiry.append(now + self._lifetime)
        is_storing = len(self._expiry) < self._most
        if is_storing is not self._is_storing:
            self._is_storing = is_storing
            _set_session_cache_mode(self, _STORING if is_storing else _NOT_STORING)


_TLS_1_3: Final = 0x304
_STORING: Final = SSL.SESS_CACHE_SERVER
_NOT_STORING: Final = SSL.SESS_CACHE_SERVER | SSL.SESS_CACHE_NO_INTERNAL_STORE  # but finding those that are stored


def _set_session_cache_mode(context: SSL.Context, mode: int) -> None:
    """Set the mode of a context that is in use: pyOpenSSL changes none, since that is not safe with several threads."""
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


def _issue_no_further_ticket(connection: SSL.Connection) -> None:
    """Have a resumed session end when the first one does; OpenSSL calls this once the session to resume is known.

    In TLS 1.3 every handshake issues tickets, each with a whole lifetime: a client that resumes in time could go on for
    ever. The client keeps the ticket of its full handshake.
    """
    if SSL._lib.SSL_session_reused(connection._ssl):  # type: ignore[attr-defined]  # noqa: SLF001 - as above
        connection.set_options(SSL.OP_NO_TICKET)


def client_context(certificate: Path, private_key: Path, ca: Path | None) -> SSL.Context:
    """A context for a side that connects and shows ``certificate``.

    The server's certificate must lead to ``ca``. Without one the handshake accepts any, and check_server must be given
    the certificate's fingerprint. Suites are those of the compatible policy: what key managers offer is theirs to
    choose, and a handshake can't be talked down. Raises TlsError for files that OpenSSL does not take.
    """
    context = _configured(SSL.Context(SSL.TLS_METHOD), Policy.COMPATIBLE, certificate, private_key)
    if ca is None:
        context.set_verify(SSL.VERIFY_PEER, _accept_for_pin)
    else:
        _load_ca(context, ca)
        context.set_verify(SSL.VERIFY_PEER, note_verification)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


_Context = TypeVar("_Context", bound=SSL.Context)


def _configured(context: _Context, policy: Policy, certificate: Path, private_key: Path) -> _Context:
    context.set_min_proto_version(policy.minimum_version)
    context.set_cipher_list(policy.ciphers)
    # Messages say themselves how long they are, so that an end without close_notify truncates nothing unnoticed; but as
    # an error it would spoil the session for resumption, and keep the answer from a client that has half-closed.
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_IGNORE_UNEXPECTED_EOF)
    context.set_mode(_SSL_MODE_RELEASE_BUFFERS)
    try:
        context.use_certificate_chain_file(str(certificate).encode())
        context.use_privatekey_file(str(private_key).encode())
        context.check_privatekey()
    except SSL.Error as error:
        raise TlsError(f"certificate {certificate} with key {private_key}: {_words(error)}") from None
    return context


def _load_ca(context: SSL.Context, ca: Path) -> None:
    try:
        context.load_verify_locations(str(ca).encode())
    except SSL.Error as error:
        raise TlsError(f"CA file {ca}: {_words(error)}") from None


class Verification:
    """The findings of OpenSSL's callbacks for one connection.

    ``ran`` and ``error`` are the verification's, which runs on full handshakes only, never on resumed ones.
    ``is_large`` is True once the handshake has so many bytes that the certificate may be too large, ``is_too_large`` if
    it is.
    ``is_whole`` tells if the last message after the handshake lay within one record.
    """

    __slots__ = ("error", "is_large", "is_too_large", "is_whole", "ran")

    def __init__(self) -> None:
        self.ran = False
        self.error = 0
        self.is_large = False
        self.is_too_large = False
        self.is_whole = False


def note_verification(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
    """Note a verification, as OpenSSL's callback, in the Verification that is the connection's application data."""
    verification: Verification = connection.get_app_data()
    verification.ran = True
    verification.error = verification.error or error
    if verification.is_large and depth == 0:
        size = len(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
        verification.is_too_large = size > _MAX_CERTIFICATE
    return bool(ok) and not verification.is_too_large


def _accept_for_pin(connection: SSL.Connection, *_arguments: object) -> bool:
    verification: Verification = connection.get_app_data()
    verification.ran = True
    return True


def check_server(stream: "TlsStream", server_name: str | None, pinned_sha256: frozenset[str]) -> None:
    """Check whom a handshake has reached: its name, its pinned fingerprint, or both.

    ``server_name`` is a DNS name or an IP address; fingerprints are lower-case hex, SHA-256 over the certificate's DER.
    Raises TlsError, and does so where there is nothing to check.
    """
    certificate = stream.peer_certificate()
    if certificate is None or not (server_name or pinned_sha256):
        raise TlsError("the key manager's certificate can't be checked", reason="certificate")
    if pinned_sha256 and certificate.fingerprint(hashes.SHA256()).hex() not in pinned_sha256:
        raise TlsError("the key manager's certificate is not the pinned one", reason="pin")
    if server_name:
        check_name(stream.connection, server_name)


def check_name(connection: SSL.Connection, server_name: str) -> None:
    """Raise TlsError if the peer's certificate is not for this DNS name or IP address."""
    verify = verify_ip_address if is_ip_address(server_name) else verify_hostname
    try:
        verify(connection, server_name)
    except (VerificationError, CertificateError, *UNREADABLE_CERTIFICATE):
        raise TlsError(f"the key manager's certificate is not for {server_name}", reason="hostname") from None


class TlsStream:
    """A TLS connection over a connected socket, which it owns from now on.

    ``server_name`` is sent as SNI where it is a DNS name. One task reads and one writes at a time. A call that was
    cancelled or that raised leaves a stream fit for closing only.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: SSL.Context,
        *,
        server_side: bool,
        server_name: str | None = None,
    ) -> None:
        sock.setblocking(False)
        with suppress(OSError):  # a peer may be gone already; the handshake will tell
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._descriptor = sock.fileno()  # -1 once closed
        self._poll: select.poll | None = None
        self._left_poll: select.poll | None = None
        self.before_read: Callable[[], Awaitable[None] | None] | None = None  # asked once bytes are there to be read
        self.has_news = False  # while bytes are there and the reader waits for what ``before_read`` returned
        self._server_side = server_side
        self.spoke_unasked = False
        self._verification = Verification()
        self._allowance = records.RecordAllowance()
        #: True once the peer has sent more records without data than it may; the stream is fit for closing only.
        self.is_flooded = False
        self.connection = SSL.Connection(context)
        records.return_after_each_message(self.connection)
        self._context = context
        self.connection.set_app_data(self._verification)
        if server_side:
            self.connection.set_accept_state()
            self.acknowledge()
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
        """Whether the handshake resumed an earlier session, so that no certificate was verified in it."""
        return not self._verification.ran

    @property
    def version(self) -> str:
        """The protocol version, as ``TLSv1.3``."""
        return self.connection.get_protocol_version_name()

    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate; on a resumed session, the one that was shown first. Raises TlsError."""
        try:
            return self.connection.get_peer_certificate(as_cryptography=True)
        except UNREADABLE_CERTIFICATE as error:
            raise TlsError(f"the peer's certificate can't be read: {error!r}", reason="certificate") from None

    def peer_certificate_der(self) -> bytes | None:
        """As peer_certificate, in DER and not looked into, which is much cheaper."""
        certificate = self.connection.get_peer_certificate()
        return None if certificate is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)

    async def handshake(self) -> None:
        """Shake hands. Raises TlsError, or StreamClosedError where the peer leaves. The caller sets the deadline."""
        budget = records.HandshakeBudget("handshake failed", "handshake_too_large")
        turn = 0
        while True:
            self._check_open()
            try:
                self.connection.do_handshake()
                break
            except SSL.WantReadError:
                await self._flush()
                await self._feed_record(budget)
                turn += 1
                if turn % _RECORDS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
                    self._check_open()
            except (SSL.SysCallError, SSL.ZeroReturnError) as error:
                raise StreamClosedError(f"gone during the handshake: {_words(error)}") from None
            except SSL.Error as error:
                with suppress(StreamClosedError):
                    await self._flush()  # the alert
                raise self._handshake_error(error) from None
        await self._flush()
        records.attach(self.connection, self._descriptor)
        if self._server_side:
            self.acknowledge()
            if self._verification.ran and isinstance(self._context, ServerContext):
                self._context.completed(self.connection)

    async def _flush(self) -> None:
        """Send what OpenSSL has written to memory. Raises StreamClosedError where the peer is gone."""
        data = self._written()
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                await self._wait(wait_writable)
            except OSError as error:
                raise _lost("gone during the handshake", error) from None

    def _written(self) -> bytes:
        """Return what OpenSSL has written to memory, and let go of it."""
        written = b""
        try:
            while len(part := self.connection.bio_read(_WRITTEN_AT_ONCE)) == _WRITTEN_AT_ONCE:
                written += part
            written += part
        except SSL.WantReadError:
            pass
        return written

    async def _feed_record(self, budget: records.HandshakeBudget) -> None:
        """Give OpenSSL the next record of the handshake, once it is here as a whole."""
        head = await self._receive_exactly(records.HEAD_SIZE)
        length = records.body_length(head)
        budget.take(records.HEAD_SIZE + length)
        self._verification.is_large = budget.size > _LARGE_HANDSHAKE
        self.connection.bio_write(head + await self._receive_exactly(length) if length else head)

    async def _receive_exactly(self, size: int) -> bytes:
        """Return so many bytes from the socket itself. Raises StreamClosedError at the end."""
        received = b""
        while len(received) < size:
            try:
                data = self._socket.recv(size - len(received))
            except BlockingIOError:
                await self._wait(wait_readable)
                continue
            except OSError as error:
                raise _lost("gone during the handshake", error) from None
            if not data:
                raise StreamClosedError("gone during the handshake: closed by the peer")
            received = received + data if received else data
        return received

    def _handshake_error(self, error: SSL.Error) -> TlsError:
        words = _words(error)
        reason = next((reason for part, reason in _REASONS if part in words), "tls")
        if self._verification.is_too_large:
            return TlsError(
                f"handshake failed: the peer's certificate has more than {_MAX_CERTIFICATE} bytes",
                reason="certificate_too_large",
            )
        if reason == "certificate":
            reason = _VERIFY_REASONS.get(self._verification.error, reason)
        return TlsError(f"handshake failed: {words}", reason=reason)

    async def receive_some(self) -> bytes:
        """Wait for bytes and return them, 16 KiB at the most; empty at the end of the stream.

        OpenSSL reads no further than one record, and each read here takes a whole one: what has come and was not read
        is in the kernel, which can be waited for.
        An end without close_notify is an end, too. Raises StreamClosedError on a reset, TlsError on a broken record or
        an alert.
        """
        ready = wait_readable
        while True:
            self._check_open()
            try:
                await ready(self._descriptor)
                if self.before_read is not None and (turn := self.before_read()) is not None:
                    self.has_news = True
                    await turn
                    self.has_news = False
                self._check_open()
                return self.connection.recv(_RECORD)
            except trio.ClosedResourceError:
                raise self._woken() from None
            except SSL.WantReadError:  # a part of a record, or a message without data
                if self._count_record():
                    await self._read_message()
                ready = wait_readable
                if self._server_side:
                    self.acknowledge()
            except SSL.WantWriteError:
                ready = wait_writable
            except SSL.ZeroReturnError:
                return b""
            except SSL.SysCallError as error:
                raise StreamClosedError(f"connection lost: {_words(error)}") from None
            except SSL.Error as error:
                raise TlsError(f"connection broken: {_words(error)}", reason=_alert_or_tls(error)) from None

    def _count_record(self) -> bool:
        """Count a message without data, if the last read has found one. Return True if it goes on in another record.

        Raises TlsError (records), see `records`.
        """
        is_message = records.is_detached(self.connection)
        if not is_message and records.was_partial():
            return False
        with self._noting_flood():
            self._allowance.take(trio.current_time())
            return is_message and not self._is_finished()

    def _is_finished(self) -> bool:
        """Finish a message without data, if it is complete: send OpenSSL's answer; OpenSSL uses the socket again."""
        if not self._verification.is_whole:
            return False
        records.write_answer(self.connection)
        answer = self._written()
        records.attach(self.connection, self._descriptor)
        with suppress(OSError):
            answer = answer[self._socket.send(answer) :] if answer else answer
        if answer:
            raise TlsError("connection broken: the peer does not read the answer to a key update", reason="records")
        return True

    async def _read_message(self) -> None:
        """Read the rest of a message without data, record by record: a session ticket of more than 16 KiB, say."""
        budget = records.HandshakeBudget("connection broken: a message without data", "records")
        with self._noting_flood():
            while not self._is_finished():
                try:
                    await self._feed_record(budget)
                except StreamInterruptedError:  # perhaps within a record, whose beginning is lost
                    self.close()
                    raise StreamClosedError(_CLOSED_HERE) from None
                with suppress(SSL.WantReadError):
                    self.connection.recv(_RECORD)

    @contextmanager
    def _noting_flood(self) -> Iterator[None]:
        try:
            yield
        except TlsError:
            self.is_flooded = True
            raise

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send everything. What fits into one record goes out as one: some clients read an answer with two reads.

        Raises StreamClosedError where the peer is gone.
        """
        sent = self.send_now(data) if data else 0
        if sent < len(data):
            with memoryview(data) as view:
                while sent < len(data):
                    sent += await self._send_some(view[sent:])

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what can be sent without waiting, of one record at the most. Returns how many bytes that was.

        Where it was not all, ``send_all`` of the rest must follow. Raises as it does.
        """
        self._check_open()
        try:
            return self.connection.send(data)
        except (SSL.WantWriteError, SSL.WantReadError):
            return 0  # a part of the record may be on its way
        except SSL.Error as error:
            raise StreamClosedError(f"connection broken: {_words(error)}", nothing_sent=True) from None

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
                raise StreamClosedError(f"connection broken: {_words(error)}") from None

    async def _wait(self, ready: Callable[[int], Awaitable[None]]) -> None:
        """Wait for the socket to be ready. Raises StreamClosedError where this side closes it first."""
        self._check_open()
        try:
            await ready(self._descriptor)
        except trio.ClosedResourceError:
            raise self._woken() from None
        self._check_open()

    def _woken(self) -> StreamClosedError | StreamInterruptedError:
        """Return the error for a task that waited for the socket: closed on this side, or only interrupted."""
        return StreamClosedError(_CLOSED_HERE) if self._descriptor < 0 else StreamInterruptedError()

    def interrupt(self) -> None:
        """Have the task that waits for the socket, if there is one, raise StreamInterruptedError.

        A wait for bytes may begin again afterwards; a wait for room to send may not.
        """
        if self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)

    def is_readable(self) -> bool:
        """Return True if bytes, or the end, have arrived and were not read. Nothing is read."""
        if self._descriptor < 0:
            return False
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(self.connection.pending() or poll.poll(0))

    def _check_open(self) -> None:
        """Raise StreamClosedError once closed: OpenSSL would go on with a descriptor that is another's by now."""
        if self._descriptor < 0:
            raise StreamClosedError(_CLOSED_HERE)

    def is_quiet(self) -> bool:
        """Whether the peer has neither sent nor closed anything, to be asked of a stream that expects nothing.

        ``spoke_unasked`` is True afterwards if bytes came that nobody expected.
        TLS may have things to say to itself (tickets, a key update), so that a readable socket is read: only bytes for
        us, an end, an error, or too many records without data count. Costs one system call in the usual case.
        """
        if self._descriptor < 0:
            return False
        if self.connection.pending():
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
        return False  # a peer with so much to say is not quiet

    def _is_next_without_data(self) -> bool:
        """Read and count one record. Return False for data, an end, an error, or too many records without data."""
        try:
            self.connection.recv(1)
        except SSL.WantReadError:
            try:
                return not self._count_record()
            except TlsError:
                return False
        except SSL.Error:
            return False
        self.spoke_unasked = True
        return False

    def is_unacknowledged(self, seconds: float) -> bool:
        """Return True if the peer's kernel has acknowledged nothing of what was sent for so many seconds.

        To be asked no earlier than ``seconds`` after sending. False once closed. Costs one system call.
        """
        return self._descriptor >= 0 and tcp.is_unacknowledged(self._socket, seconds)

    def peer_has_left(self) -> bool:
        """True if the peer has closed its sending side (FIN) or reset the connection; also once this side is closed.

        Bytes that were not read hide neither. A close_notify alone does not count; the FIN that follows it does. A peer
        that half-closes and still waits for its answer looks the same as a peer that has left: give up only a request
        that may be repeated, and only for a reason. Costs one system call.
        """
        if self._descriptor < 0:
            return True
        if self._left_poll is None:
            self._left_poll = select.poll()
            self._left_poll.register(self._descriptor, select.POLLRDHUP)  # resets and errors are always told
        return bool(self._left_poll.poll(0))

    def acknowledge(self) -> None:
        """Have the kernel acknowledge at once what has come: more is to come, which the peer may hold back until then.

        Clients that write header and body apart without TCP_NODELAY would wait 40 ms. It is said only where it is
        needed, since the kernel forgets, and an answer acknowledges by itself.
        """
        with suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    async def aclose(self, *, linger: float = 0.0) -> None:
        """Say close_notify and close.

        With ``linger``, what the peer still sends is read and thrown away for up to so many seconds, until it closes
        too: bytes left unread would have the kernel answer with a reset, which destroys what was sent last.
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
            await wait_readable(self._socket)
            try:
                data = self._socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            discarded += len(data)

    def close_politely(self) -> None:
        """Say close_notify, if that can be done without waiting, and close."""
        if self._descriptor >= 0:
            with suppress(SSL.Error):
                self.connection.shutdown()
            self.close()

    def close(self) -> None:
        """Close at once, without a word. May be called again."""
        if self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)
            self._descriptor = -1
            self._socket.close()


def is_ip_address(name: str) -> bool:
    """Return True for an IPv4 or IPv6 address, False for a DNS name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _alert_or_tls(error: SSL.Error) -> str:
    return "alert" if "alert" in _words(error) else "tls"


def _lost(what: str, error: OSError) -> StreamClosedError:
    """Return the error for a socket that failed."""
    return StreamClosedError(f"{what}: {errno.errorcode.get(error.errno or 0, str(error))}")


def _words(error: Exception) -> str:
    """OpenSSL's own words for an error."""
    if isinstance(error, SSL.SysCallError):
        number, text = error.args
        return "closed by the peer" if number == -1 else errno.errorcode.get(number, str(text))
    if error.args and isinstance(error.args[0], list):
        return "; ".join(reason for _library, _function, reason in error.args[0]) or "unknown"
    return "closed by the peer" if isinstance(error, SSL.ZeroReturnError) else _CLOSED_HERE
