"""Open a session: connect, make the TLS handshake, check the certificate, and validate with a first request."""

import socket
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

import trio
from OpenSSL import SSL

from gateway import tls
from gateway.config import LimitsConfig, OwnCertificate
from gateway.errors import OUT_OF_RESOURCES, BackendError, Stage, StreamClosedError, TlsError
from gateway.kmip import compose
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request
from gateway.revocation import Trust, verified_chain
from gateway.tcp import TcpTimeouts, set_timeouts
from gateway.tls.minting import MintedCertificate
from gateway.tls.openssl import is_about_certificate
from gateway.upstream.connecting import connect, peer_of
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.session import Session, SessionState

Opener = Callable[[], Awaitable[Session]]

#: The cheap requests that validate a session, by the value of a backend's setting ``probe``.
VALIDATION_REQUESTS: Final = {
    "discover-versions": decode_request(compose.discover_versions()),
    "query": decode_request(compose.query()),
}

#: Causes with which a key manager refuses a certificate that is not valid any more: it need not name that.
_MAY_BE_LAPSED: Final = frozenset({"credential", "alert", "tls"})

#: Reasons of TlsError that are reported as they are; any other is reported as "tls".
_TLS_REASONS: Final = frozenset(
    {
        "hostname",
        "pin",
        "unknown_ca",
        "expired",
        "revoked",
        "crl_stale",
        "alert",
        "handshake_too_large",
        "certificate_too_large",
    }
)


class SessionTarget(NamedTuple):
    """The parameters of sessions to one backend with one credential. ``own`` is the certificate in ``context``.

    ``context`` shows no certificate if the credential is ``minted``. ``handshaken`` is called after each handshake,
    before the key manager's certificate is checked further.
    """

    backend: str
    endpoint: Endpoint
    context: SSL.Context
    server_name: str | None
    pinned_sha256: frozenset[str]
    limits: LimitsConfig
    validation_request: Request
    own: OwnCertificate | None = None
    tcp: TcpTimeouts | None = None
    trust: Trust | None = None  # None for a backend without CRLs
    minted: MintedCertificate | None = None
    handshaken: Callable[[tls.TlsStream], None] | None = None


async def open_session(target: SessionTarget) -> Session:
    """Open a session and validate it with a cheap request.

    In TLS 1.3 a server refuses a client's certificate only after the handshake, so that only an answer shows that the
    credential is accepted. Raises BackendError, always with Stage.CONNECT: no client's request was sent. The caller
    sets the deadline.
    """
    try:
        return await _open(target)
    except BackendError as error:
        own = target.own
        if own is None or error.cause not in _MAY_BE_LAPSED or not (lapse := own.lapse(datetime.now(UTC))):
            raise
        raise _refused(
            target,
            f"the gateway's own certificate {own.file} for identity {own.identity} {lapse}; the gateway uses a new file"
            f" by itself ({error.args[0]})",
            error.reason,
            cause="lapsed",
        ) from None


async def _open(target: SessionTarget) -> Session:
    sock = await _connect(target)
    peer = peer_of(sock)
    stream = tls.TlsStream(sock, target.context, server_side=False, server_name=target.server_name)
    try:
        if target.minted is not None:
            stream.connection.use_certificate(target.minted.certificate)
            stream.connection.use_privatekey(target.minted.private_key)
        await stream.handshake()
        if target.handshaken is not None:
            target.handshaken(stream)
        tls.check_server(stream, target.server_name, target.pinned_sha256)
        _check_revocation(stream, target.trust)
        session = Session(
            stream,
            target.backend,
            limits=target.limits,
            peer=peer,
        )
        await _validate(session, stream, target)
    except TlsError as error:
        stream.close()
        reason = error.reason if error.reason in _TLS_REASONS else "tls"
        is_refusal = reason == "alert" and is_about_certificate(str(error))
        raise _refused(target, str(error), reason, cause="credential" if is_refusal else error.reason) from None
    except StreamClosedError as error:
        stream.close()
        raise _refused(target, str(error), "tls") from None
    except ValueError as error:  # of a certificate that OpenSSL accepts, and `cryptography` can't parse
        stream.close()
        raise _refused(target, f"the key manager's certificate can't be parsed: {error}", "certificate") from None
    except BaseException:
        stream.close()
        raise
    return session


def _check_revocation(stream: tls.TlsStream, trust: Trust | None) -> None:
    """Raise TlsError if the key manager's certificate, or a CA certificate above it, is not accepted."""
    if trust is None:
        return
    chain = verified_chain(stream.peer_certificate_der() or b"", stream.issuers_der() or ())
    if refusal := trust.judge(chain, time.time()).refusal:
        text = "no current CRL for it (crl, crl_stale)" if refusal == "crl_stale" else refusal.replace("_", " ")
        raise TlsError(f"the key manager's certificate is not accepted: {text}", reason=refusal)


async def _connect(target: SessionTarget) -> socket.socket:
    endpoint = target.endpoint
    try:
        sock = await connect(endpoint.address, endpoint.hosts)
    except OSError as error:
        if error.errno not in OUT_OF_RESOURCES:
            endpoint.connect_failed()
        reason = "resources" if error.errno in OUT_OF_RESOURCES else "connect"
        raise _refused(target, f"can't connect to {endpoint.address}: {error.strerror or error}", reason) from None
    except trio.Cancelled:
        endpoint.connect_failed()  # the caller's deadline has passed, or the gateway ends
        raise
    if target.tcp is not None:
        set_timeouts(sock, target.tcp)
    return sock


async def _validate(session: Session, stream: tls.TlsStream, target: SessionTarget) -> None:
    """Exchange the validation request: any well-formed answer validates TLS, KMIP and the session.

    An error in the answer concerns the rights of this role, or a password that each request must carry: clients' own
    requests may fare better, and if not, the client should see the key manager's answer. Only TLS refuses a credential.
    """
    try:
        if not stream.is_quiet():  # an alert would be lost: OpenSSL reads nothing once it could not send
            raise _refused(target, stream.end or "the key manager sent bytes before any request", _end_reason(stream))
        await session.exchange(target.validation_request)
    except BackendError as error:
        reason = {"closed": "credential", "records": "records"}.get(error.reason, "validation")
        detail = error.args[0]
        if is_about_certificate(detail):
            detail += ": the key manager does not accept the certificate that the gateway shows it"
        elif reason == "credential":
            detail += "; perhaps the key manager refuses the certificate"
        raise _refused(target, f"no answer to the first request: {detail}", reason) from None
    if session.state is not SessionState.IDLE:
        raise _refused(target, "the key manager sent more bytes after the first answer", "validation")
    session.requests = 0


def _end_reason(stream: tls.TlsStream) -> str:
    """Return the reason for a stream that is not quiet before the first request."""
    return "records" if stream.is_flooded else "closed" if stream.end else "unasked"


def _refused(target: SessionTarget, message: str, reason: str, cause: str = "") -> BackendError:
    return BackendError(message, backend=target.backend, stage=Stage.CONNECT, reason=reason, cause=cause)
