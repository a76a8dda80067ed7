"""TLS contexts from files: the versions and cipher suites of a side, and the certificates that it shows and accepts."""

from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from OpenSSL import SSL

from gateway.config import DEFAULT_BACKEND_TLS_POLICY, DEFAULT_RESUMPTION_LIFETIME, DEFAULT_TLS_POLICY
from gateway.config.secret_files import read_private_key
from gateway.errors import TlsError
from gateway.tls.openssl import text_of
from gateway.tls.resumption import ServerContext, issue_no_further_ticket
from gateway.tls.verification import accept_for_pin, note_verification

_SSL_MODE_RELEASE_BUFFERS: Final = 0x10
_SESSION_ID_CONTEXT: Final = b"kmip-gateway"


class Policy(Enum):
    """The lowest TLS version of a listener, and its cipher suites below TLS 1.3 in OpenSSL's notation."""

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
        """The cipher suites below TLS 1.3, as OpenSSL writes the list."""
        return self.value[1].encode()


def server_context(
    certificate: Path,
    private_key: Path,
    client_ca: Path,
    tls_policy: str = DEFAULT_TLS_POLICY,
    *,
    passphrase_file: Path | None = None,
    resumption_lifetime: float = DEFAULT_RESUMPTION_LIFETIME,
) -> SSL.Context:
    """Return a context for a server: every client must show a certificate that leads to ``client_ca``.

    ``tls_policy`` names a Policy in lower case. Sessions can be resumed for ``resumption_lifetime`` seconds after the
    full handshake, on TLS 1.2 and 1.3, with every process that shares this context; a resumption does not extend that
    time. Raises TlsError for files that OpenSSL rejects.
    """
    context = _configured(ServerContext(resumption_lifetime), Policy[tls_policy.upper()])
    _use_certificate(context, certificate, private_key, passphrase_file)
    _load_ca(context, client_ca)
    context.load_client_ca(str(client_ca).encode())
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, partial(note_verification, trusted=client_ca))
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_session_id(_SESSION_ID_CONTEXT)  # without this, a client that resumes gets a fatal alert
    context.set_timeout(int(resumption_lifetime))
    context.set_tlsext_servername_callback(issue_no_further_ticket)
    return context


def admin_context(certificate: Path, private_key: Path, client_ca: Path | None) -> SSL.Context:
    """Return a context for the admin port, with the modern policy and without resumption.

    A client may show a certificate, which must lead to ``client_ca`` then. Raises TlsError for files that OpenSSL
    rejects.
    """
    context = _configured(SSL.Context(SSL.TLS_METHOD), Policy.MODERN)
    _use_certificate(context, certificate, private_key, None)
    if client_ca is not None:
        _load_ca(context, client_ca)
        context.load_client_ca(str(client_ca).encode())
        context.set_verify(SSL.VERIFY_PEER, partial(note_verification, trusted=client_ca))
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def client_context(
    certificate: Path | None,
    private_key: Path | None,
    ca: Path | None,
    tls_policy: str = DEFAULT_BACKEND_TLS_POLICY,
    *,
    passphrase_file: Path | None = None,
    chain: Sequence[x509.Certificate] = (),
) -> SSL.Context:
    """Return a context for a client that shows ``certificate``.

    Without ``certificate`` each connection must be given its own; ``chain`` are the CA certificates shown besides.

    The server's certificate must lead to ``ca``. Without ``ca`` the handshake accepts any certificate, and the caller
    must check its fingerprint with ``check_server``. ``tls_policy`` names a Policy in lower case. By default it is the
    compatible policy: key managers choose what they offer, and TLS protects the choice against downgrades. Raises
    TlsError for files that OpenSSL rejects.
    """
    context = _configured(SSL.Context(SSL.TLS_METHOD), Policy[tls_policy.upper()])
    if certificate is not None and private_key is not None:
        _use_certificate(context, certificate, private_key, passphrase_file)
    for each in chain:
        context.add_extra_chain_cert(each)
    if ca is None:
        context.set_verify(SSL.VERIFY_PEER, accept_for_pin)
    else:
        _load_ca(context, ca)
        context.set_verify(SSL.VERIFY_PEER, partial(note_verification, trusted=ca))
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


_Context = TypeVar("_Context", bound=SSL.Context)


def _configured(context: _Context, policy: Policy) -> _Context:
    context.set_min_proto_version(policy.minimum_version)
    context.set_cipher_list(policy.ciphers)
    # KMIP messages have a length, so that a truncation is noticed without close_notify. As an error, a missing
    # close_notify would prevent resumption, and keep the answer from a client that has half-closed.
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_IGNORE_UNEXPECTED_EOF)
    context.set_mode(_SSL_MODE_RELEASE_BUFFERS)
    return context


def _use_certificate(context: SSL.Context, certificate: Path, private_key: Path, passphrase_file: Path | None) -> None:
    try:
        context.use_certificate_chain_file(str(certificate).encode())
        if passphrase_file is None:
            context.use_privatekey_file(str(private_key).encode())
        else:
            context.use_privatekey(read_private_key(private_key, passphrase_file))  # type: ignore[arg-type]
        context.check_privatekey()
    except SSL.Error as error:
        raise TlsError(f"cannot use certificate {certificate} with key {private_key}: {text_of(error)}") from None
    except (ValueError, TypeError) as error:  # the file has changed since it was checked
        raise TlsError(f"cannot use key {private_key}: {error}") from None


def _load_ca(context: SSL.Context, ca: Path) -> None:
    try:
        context.load_verify_locations(str(ca).encode())
    except SSL.Error as error:
        raise TlsError(f"cannot use CA file {ca}: {text_of(error)}") from None
