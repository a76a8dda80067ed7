"""Sessions as a simple client has them: a blocking socket, one request and its answer at a time."""

import ipaddress
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address

from gateway.config import Address
from gateway.errors import ProtocolError
from gateway.kmip.decode import decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Response, ResponseItem, Version, reason_name
from gateway.kmip.spec import ResultStatus, Tag
from gateway.tls import UNREADABLE_CERTIFICATE
from kmip_lab.speed.discovery import discovery, spoken_versions
from kmip_lab.speed.target import Target
from kmip_lab.speed.trouble import REFUSED, TroubleError, trouble_of

#: With TLS 1.3 a client hears only after its handshake that its certificate is refused, and maybe just a reset.
_UNTRUSTED: Final = "does the server trust the client's certificate?"
_NO_TLS: Final = "is it the port of a KMIP server, which speaks TLS?"
_UNKNOWN_CA: Final = "its certificate does not come from {ca}; give the right --ca, or CA_Cert in a configuration file"
#: What is wrong with the server's certificate, by X509_V_ERR_* of OpenSSL's x509_vfy.h.
_UNVERIFIED: Final = {
    **dict.fromkeys((2, 18, 19, 20, 21), _UNKNOWN_CA),
    9: "its certificate is not valid yet; is this machine's clock right?",
    10: "its certificate has expired; the server needs a new one",
}
_RECORD: Final = 16384
_MAX_RESPONSE_SIZE: Final = 16 << 20


class Session:
    """One TLS session. Made by Dialler."""

    def __init__(
        self, connection: SSL.Connection, sock: socket.socket, address: Address, answered: set[Address]
    ) -> None:
        self.connection = connection
        self.address = address
        self._socket = sock
        self._answered = answered  # those that have answered in any session, and so take the client's certificate
        self._reader = FrameReader(Tag.RESPONSE_MESSAGE, _MAX_RESPONSE_SIZE)

    def ask(self, frame: bytes) -> ResponseItem:
        """Send a request of one operation and return the answer to it. Raises TroubleError, also where it failed."""
        try:
            self.connection.sendall(frame)
            response = self._read()
        except SSL.Error as error:
            trouble = trouble_of(error, "connection", self.address)
            raise (
                trouble if self.address in self._answered else trouble.hinted(f"before any answer; {_UNTRUSTED}")
            ) from None
        except ProtocolError as error:
            raise TroubleError("unreadable answer", str(error)) from None
        self._answered.add(self.address)
        if not response.items:
            raise TroubleError("unreadable answer", "an answer without a result")
        item = response.items[0]
        if item.status != ResultStatus.SUCCESS:
            reason = "without a reason" if item.reason is None else reason_name(item.reason)
            raise TroubleError(f"{REFUSED}{reason}", item.message or "the server gave no message")
        return item

    def _read(self) -> Response:
        frame = None
        while frame is None:
            frame = self._reader.feed(self.connection.recv(_RECORD))
        return decode_response(frame)

    def close(self) -> None:
        """Say close_notify and close."""
        with suppress(SSL.Error):
            self.connection.shutdown()
        self._socket.close()


class Dialler:
    """Opens sessions to a target's addresses in turn, beginning with number ``offset``, and counts the handshakes.

    With ``resume`` a session resumes the TLS session of the one before it to the same address, if the server will.
    """

    def __init__(self, target: Target, *, offset: int = 0, resume: bool = False) -> None:
        self.full_handshakes = 0
        self.resumed_handshakes = 0
        self.version: Version = target.versions[0]
        self._target = target
        self._turn = offset
        self._resume = resume
        self._context = target.context()
        self._context.set_verify(SSL.VERIFY_PEER, _note_verification)
        self._checked: set[bytes] = set()
        self._answered: set[Address] = set()
        self._last: dict[Address, SSL.Session] = {}

    def open(self) -> Session:
        """A session, after Discover Versions where the target has it so. Raises TroubleError."""
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

    def close(self, session: Session) -> None:
        """Close a session, and keep what resumes it: the tickets of TLS 1.3 have come by now."""
        if self._resume and (last := session.connection.get_session()) is not None:
            self._last[session.address] = last
        session.close()

    def _connect(self, address: Address) -> socket.socket:
        try:
            sock = socket.create_connection((address.host, address.port), self._target.timeout)
        except OSError as error:
            words = error.strerror or str(error)
            raise TroubleError(f"can't connect: {words.lower()}", f"can't connect to {address}: {words}") from None
        seconds, fraction = divmod(self._target.timeout, 1)
        limit = struct.pack("ll", int(seconds), int(1e6 * fraction))
        sock.settimeout(None)  # the kernel keeps the time, so that OpenSSL may block
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _handshake(self, sock: socket.socket, address: Address) -> Session:
        name = self._target.server_name or address.host
        connection = SSL.Connection(self._context, sock)
        verification = _Verification()
        connection.set_app_data(verification)
        if not _is_ip_address(name):
            connection.set_tlsext_host_name(name.encode("idna"))
        if address in self._last:
            connection.set_session(self._last.pop(address))
        connection.set_connect_state()
        try:
            connection.do_handshake()
        except SSL.Error as error:
            trouble = trouble_of(error, "handshake", address)
            raise trouble.hinted(self._hint(trouble, verification.error)) from None
        if verification.ran:
            self.full_handshakes += 1
            self._check_name(connection, name)
        else:
            self.resumed_handshakes += 1
        return Session(connection, sock, address, self._answered)

    def _hint(self, trouble: TroubleError, error: int) -> str:
        """What to do about a handshake that failed; ``error`` is what OpenSSL has against the server's certificate."""
        if error:
            return _UNVERIFIED.get(error, f"its certificate does not hold: X509_V_ERR {error}").format(
                ca=self._target.ca
            )
        return _UNTRUSTED if "alert" in trouble.kind else _NO_TLS

    def _check_name(self, connection: SSL.Connection, name: str) -> None:
        """Whether the certificate is for this name; each certificate is looked at once."""
        certificate = connection.get_peer_certificate()
        fingerprint = b"" if certificate is None else certificate.digest("sha256")
        if fingerprint in self._checked:
            return
        verify = verify_ip_address if _is_ip_address(name) else verify_hostname
        try:
            verify(connection, name)
        except (VerificationError, CertificateError, *UNREADABLE_CERTIFICATE):
            words = f"the server's certificate is not for {name}; give the name that it is for as server name"
            raise TroubleError("handshake: wrong server name", words) from None
        self._checked.add(fingerprint)


def _agree(session: Session, wanted: Sequence[Version]) -> Version:
    """The first of these versions that the server speaks, too. Raises TroubleError.

    A server that does not know the question speaks 1.0.
    """
    try:
        spoken = spoken_versions(session.ask(discovery(wanted)))
    except TroubleError as trouble:
        if trouble.kind not in {f"{REFUSED}OperationNotSupported", f"{REFUSED}InvalidMessage"}:
            raise
        spoken = [(1, 0)]
    for version in wanted:
        if version in spoken:
            return version
    words = ", ".join("{}.{}".format(*version) for version in wanted)
    raise TroubleError("no common version", f"the server speaks none of KMIP {words}")


class _Verification:
    """Whether OpenSSL looked at a certificate in a handshake, and what was wrong; it does not in one that resumes."""

    __slots__ = ("error", "ran")

    def __init__(self) -> None:
        self.ran = False
        self.error = 0


def _note_verification(connection: SSL.Connection, _certificate: crypto.X509, error: int, _depth: int, ok: int) -> bool:
    verification: _Verification = connection.get_app_data()
    verification.ran = True
    verification.error = verification.error or error
    return bool(ok)


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
