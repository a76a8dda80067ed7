"""Check of the server that a handshake has reached: by its name, by its pinned fingerprint, or by both."""

from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address

from gateway.errors import TlsError
from gateway.tls.stream import TlsStream, is_ip_address
from gateway.tls.verification import UNREADABLE_CERTIFICATE


def check_server(stream: TlsStream, server_name: str | None, pinned_sha256: frozenset[str]) -> None:
    """Raise TlsError unless the server's certificate has the given name and one of the given fingerprints.

    ``server_name`` is a DNS name or an IP address; fingerprints are lower-case hex, SHA-256 over the certificate's DER.
    Either may be missing; raises TlsError if both are.
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
