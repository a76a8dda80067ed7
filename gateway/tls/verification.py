"""Verification of the peer's certificate during a handshake, by OpenSSL's callbacks."""

from pathlib import Path
from typing import Final

from cryptography import x509
from OpenSSL import SSL, crypto

MAX_CERTIFICATE: Final = 60_000  # bytes, DER; a ticket holds the client's certificate, and must be shorter than 64 KiB
LARGE_HANDSHAKE: Final = 32768  # bytes; in a smaller handshake no certificate can be larger than MAX_CERTIFICATE

_SHOWN: Final = 200  # characters of a name in a log line

#: Exceptions that `cryptography` may raise when it parses a certificate that OpenSSL has already accepted.
UNREADABLE_CERTIFICATE: Final = (
    ValueError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Verification:
    """The findings of OpenSSL's callbacks for one connection.

    ``ran`` is True after a full handshake, and False after a resumed handshake, which verifies no certificate.
    ``error`` is the first error of the verification (X509_V_ERR_*), or 0; ``detail`` has its text and its certificate.
    ``is_large`` is True once the handshake has so many bytes that the certificate may be too large, ``is_too_large`` if
    the certificate is.
    ``is_whole`` is True if the last message after the handshake was complete within one record.
    """

    __slots__ = ("detail", "error", "is_large", "is_too_large", "is_whole", "ran")

    def __init__(self) -> None:
        self.ran = False
        self.error = 0
        self.detail = ""
        self.is_large = False
        self.is_too_large = False
        self.is_whole = False


def note_verification(
    connection: SSL.Connection,
    certificate: crypto.X509,
    error: int,
    depth: int,
    ok: int,
    *,
    trusted: Path | None = None,
) -> bool:
    """Note the first error, and refuse a client's certificate that is too large for a session ticket.

    ``trusted`` is the file of the CAs, for the text of an error.
    """
    verification: Verification = connection.get_app_data()
    verification.ran = True
    if error and not verification.error:
        verification.error = error
        verification.detail = f"{error_text(error)}: {described(certificate)}"
        verification.detail += f"; trusted are the CAs in {trusted}" if trusted else ""
    if verification.is_large and depth == 0:
        size = len(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
        verification.is_too_large = size > MAX_CERTIFICATE
    return bool(ok) and not verification.is_too_large


def described(certificate: crypto.X509) -> str:
    """Return the subject, the issuer and the fingerprint of a certificate, as text for a log line.

    The names are a stranger's, and are cut.
    """
    fingerprint = certificate.digest("sha256").decode().replace(":", "").lower()
    try:
        parsed = certificate.to_cryptography()
        subject, issuer = parsed.subject.rfc4514_string(), parsed.issuer.rfc4514_string()
    except UNREADABLE_CERTIFICATE:
        return f"an unreadable certificate with SHA-256 {fingerprint}"
    return f"certificate {subject[:_SHOWN] or 'without a subject'} of {issuer[:_SHOWN]}, SHA-256 {fingerprint}"


def error_text(error: int) -> str:
    """Return OpenSSL's text for an error of a verification (X509_V_ERR_*)."""
    library, foreign = SSL._lib, SSL._ffi  # type: ignore[attr-defined]  # noqa: SLF001 - pyOpenSSL shows no such text
    text: bytes = foreign.string(library.X509_verify_cert_error_string(error))
    return text.decode()


def accept_for_pin(connection: SSL.Connection, *_arguments: object) -> bool:
    """Accept any certificate: ``check_server`` compares its fingerprint after the handshake."""
    verification: Verification = connection.get_app_data()
    verification.ran = True
    return True
