"""Sessions of a simple client: a blocking socket, one request and its answer at a time."""

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from OpenSSL import SSL

from gateway.config import Address
from gateway.errors import ProtocolError, TlsError
from gateway.kmip.decode import decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Response, ResponseItem, Version, reason_name
from gateway.kmip.spec import ResultStatus, Tag
from gateway.tls import Verification, check_name, is_ip_address, note_verification
from kmip_lab.speed.errors import REFUSED, OperationError, operation_error
from kmip_lab.speed.target import Target
from kmip_lab.tools.clients import MAX_RESPONSE_SIZE
from kmip_lab.tools.requests import discover_versions, versions_in

#: With TLS 1.3 a client learns only after its handshake that its certificate is refused, maybe just by a reset.
_UNTRUSTED: Final = "does the server trust the client's certificate?"
_NO_TLS: Final = "is it the port of a KMIP server, which speaks TLS?"
_UNKNOWN_CA: Final = "its certificate does not come from {ca}; give the right --ca, or CA_Cert in a configuration file"
#: Hints about the server's certificate, by X509_V_ERR_* of OpenSSL's x509_vfy.h.
_UNVERIFIED: Final = {
    **dict.fromkeys((2, 18, 19, 20, 21), _UNKNOWN_CA),
    9: "its certificate is not valid yet; is this machine's clock right?",
    10: "its certificate has expired; the server needs a new one",
}
_RECORD: Final = 16384


class ClientSession:
    """One TLS session, opened by a Dialer."""

    def __init__(
        self, connection: SSL.Connection, sock: socket.socket, address: Address, answered: set[Address]
    ) -> None:
        self.connection = connection
        self.address = address
        self._socket = sock
        self._answered = answered  # addresses that have answered in any session, and so accept the certificate
        self._reader = FrameReader(Tag.RESPONSE_MESSAGE, MAX_RESPONSE_SIZE)

    def ask(self, frame: bytes) -> ResponseItem:
        """Send a request of one operation and return its answer. Raises OperationError, also if it failed."""
        try:
            self.connection.sendall(frame)
            response = self._read()
        except SSL.Error as error:
            failure = operation_error(error, "connection", self.address)
            raise (
                failure if self.address in self._answered else failure.hinted(f"before any answer; {_UNTRUSTED}")
            ) from None
        except ProtocolError as error:
            raise OperationError("unreadable answer", str(error)) from None
        self._answered.add(self.address)
        if not response.items:
            raise OperationError("unreadable answer", "an answer without a result")
        item = response.items[0]
        if item.status != ResultStatus.SUCCESS:
            reason = "without a reason" if item.reason is None else reason_name(item.reason)
            raise OperationError(f"{REFUSED}{reason}", item.message or "the server gave no message")
        return item

    def _read(self) -> Response:
        frame = None
        while frame is None:
            frame = self._reader.feed(self.connection.recv(_RECORD))
        return decode_response(frame)

    def close(self) -> None:
        """Send close_notify and close."""
        with suppress(SSL.Error):
            self.connection.shutdown()
        self._socket.close()


class Dialer:
    """Opens sessions to a target's addresses in turn, beginning with number ``offset``, and counts the handshakes.

    With ``resume`` a session resumes the TLS session of the last session to the same address, if the server does so.
    """

    def __init__(self, target: Target, *, offset: int = 0, resume: bool = False) -> None:
        self.full_handshakes = 0
        self.resumed_handshakes = 0
        self.version: Version = target.versions[0]
        self._target = target
        self._turn = offset
        self._resume = resume
        self._context = target.context()
        self._context.set_verify(SSL.VERIFY_PEER, note_verification)
        self._checked: set[bytes] = set()
        self._answered: set[Address] = set()
        self._last: dict[Address, SSL.Session] = {}

    def open(self) -> ClientSession:
        """Open a session, with Discover Versions first if the target says so. Raises OperationError."""
        address = self._target.addresses[self._turn % len(self._target.addresses)]
        self._turn += 1
        sock = self._connect(address)
        try:
            session = self._handshake(sock, address)
            if self._target.discover:
                self.version = _agree(session, self._target.versions)
        except BaseException:
            sock.close()
            raise
        return session

    def close(self, session: ClientSession) -> None:
        """Close a session, and keep its TLS session for resumption: the tickets of TLS 1.3 have come by now."""
        if self._resume and (last := session.connection.get_session()) is not None:
            self._last[session.address] = last
        session.close()

    def _connect(self, address: Address) -> socket.socket:
        try:
            sock = socket.create_connection((address.host, address.port), self._target.timeout)
        except OSError as error:
            words = error.strerror or str(error)
            raise OperationError(f"can't connect: {words.lower()}", f"can't connect to {address}: {words}") from None
        seconds, fraction = divmod(self._target.timeout, 1)
        limit = struct.pack("ll", int(seconds), int(1e6 * fraction))
        sock.settimeout(None)  # the kernel keeps the time, so that OpenSSL may block
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _handshake(self, sock: socket.socket, address: Address) -> ClientSession:
        name = self._target.server_name or address.host
        connection = SSL.Connection(self._context, sock)
        verification = Verification()
        connection.set_app_data(verification)
        if not is_ip_address(name):
            connection.set_tlsext_host_name(name.encode("idna"))
        if address in self._last:
            connection.set_session(self._last.pop(address))
        connection.set_connect_state()
        try:
            connection.do_handshake()
        except SSL.Error as error:
            failure = operation_error(error, "handshake", address)
            raise failure.hinted(self._hint(failure, verification.error)) from None
        if verification.ran:
            self.full_handshakes += 1
            self._check_name(connection, name)
        else:
            self.resumed_handshakes += 1
        return ClientSession(connection, sock, address, self._answered)

    def _hint(self, failure: OperationError, error: int) -> str:
        """Return a hint about a failed handshake; ``error`` is OpenSSL's number for the server's certificate, or 0."""
        if error:
            return _UNVERIFIED.get(error, f"its certificate does not hold: X509_V_ERR {error}").format(
                ca=self._target.ca
            )
        return _UNTRUSTED if "alert" in failure.kind else _NO_TLS

    def _check_name(self, connection: SSL.Connection, name: str) -> None:
        """Check that the certificate is for this name, once for each certificate. Raises OperationError."""
        certificate = connection.get_peer_certificate()
        fingerprint = b"" if certificate is None else certificate.digest("sha256")
        if fingerprint in self._checked:
            return
        try:
            check_name(connection, name)
        except TlsError:
            words = f"the server's certificate is not for {name}; give the name that it is for as server name"
            raise OperationError("handshake: wrong server name", words) from None
        self._checked.add(fingerprint)


def _agree(session: ClientSession, wanted: Sequence[Version]) -> Version:
    """Return the first of these versions that the server speaks. Raises OperationError.

    A server that does not know Discover Versions speaks 1.0.
    """
    try:
        spoken = versions_in(session.ask(discover_versions(wanted)))
    except ProtocolError:
        raise OperationError("unreadable answer", "the answer to Discover Versions can't be read") from None
    except OperationError as failure:
        if failure.kind not in {f"{REFUSED}OperationNotSupported", f"{REFUSED}InvalidMessage"}:
            raise
        spoken = [(1, 0)]
    for version in wanted:
        if version in spoken:
            return version
    words = ", ".join("{}.{}".format(*version) for version in wanted)
    raise OperationError("no common version", f"the server speaks none of KMIP {words}")
