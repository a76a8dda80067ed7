"""TLS on both sides: contexts from files, and streams on non-blocking sockets.

pyOpenSSL brings its own, current OpenSSL. Each module imports only modules below it:

    client_check   the check that a listener would accept a certificate, without a handshake
    server_check   the check that a handshake has reached the right server
    stream         a connection: handshake, bytes, end
    contexts       the versions, suites and certificates of a side
    resumption     the lifetime of TLS sessions, and the number of stored sessions
    verification   the findings of OpenSSL's callbacks during a handshake
    records        bounds on TLS records, and the OpenSSL calls for them
    openssl        the version of OpenSSL, and its errors in this package's words
"""

from gateway.tls.client_check import verify_client
from gateway.tls.contexts import Policy, admin_context, client_context, server_context
from gateway.tls.openssl import check_openssl, openssl_version
from gateway.tls.resumption import ServerContext
from gateway.tls.server_check import check_name, check_server
from gateway.tls.stream import TlsStream, is_ip_address
from gateway.tls.verification import UNREADABLE_CERTIFICATE, Verification, note_verification

__all__ = [
    "UNREADABLE_CERTIFICATE",
    "Policy",
    "ServerContext",
    "TlsStream",
    "Verification",
    "admin_context",
    "check_name",
    "check_openssl",
    "check_server",
    "client_context",
    "is_ip_address",
    "note_verification",
    "openssl_version",
    "server_context",
    "verify_client",
]
