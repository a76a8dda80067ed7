"""Remedies: advice to an operator for each reason with which a session to a key manager can't be opened."""

from typing import Final

#: By the cause of a BackendError at Stage.CONNECT, and by the further reasons of ``kmip-gateway check --connect``.
REMEDIES: Final = {
    "resolve": "correct the address of this backend, or this machine's resolver; `getent hosts NAME` asks the same",
    "connect": "see that the key manager runs and listens on this port, and that no firewall rejects the connection",
    "no_connection": "see that the machine is on, and that no firewall drops packets to this port",
    "silent": "mend the tries before it, and check again",
    "timeout": "see why the key manager is slow or stands still (load, its HSM), or raise [deadlines] connect",
    "resources": "this process is out of descriptors or memory: raise its limits (ulimit -n, LimitNOFILE)",
    "hostname": "set server_name of this backend to a name in the certificate, or have the certificate issued anew",
    "pin": "if the key manager has a new certificate, verify its fingerprint there, then change pinned_sha256",
    "unknown_ca": "set ca of this backend to a file with the root CA of the key manager's certificate",
    "expired": "renew the key manager's certificate, or its CA; else correct this machine's clock",
    "not_yet_valid": "correct this machine's clock, or have the key manager's certificate issued anew",
    "purpose": "have the key manager's certificate issued for TLS servers (extended key usage serverAuth)",
    "revoked": "give the key manager a new certificate; its CA has revoked this one",
    "crl_stale": "fetch the current CRL of each CA of the key manager into crl, or set crl_stale",
    "certificate": "have the key manager's certificate issued anew: it is not one that can be verified",
    "certificate_too_large": "give the key manager a smaller certificate",
    "handshake_too_large": "have the key manager send a shorter chain of certificates",
    "version": "have the key manager offer TLS 1.2 or 1.3, or set tls_policy of this backend",
    "no_shared_cipher": "have the key manager offer a cipher suite of this backend's tls_policy, or change tls_policy",
    "not_tls": "see that this is the key manager's KMIP port (usually 5696): it does not speak TLS",
    "alert": (
        "read the key manager's own log: it ends the handshake with this alert; see that it accepts the certificate of"
        " this identity, and compare its TLS versions and cipher suites with tls_policy of this backend"
    ),
    "credential": "have the key manager accept the certificate of this identity: its CA, and its user or client entry",
    "lapsed": "renew the certificate of this identity",
    "tls": "read the key manager's own log: it has ended the TLS handshake",
    "validation": "see that this is the key manager's KMIP port; if so, try another probe, as probe = 'query'",
    "records": "read the key manager's own log: it sends TLS records without data",
    "not_authenticated": "have the key manager accept the credential of this identity: certificate, user or password",
    "permission_denied": "give the user of this identity the right to use KMIP at the key manager",
    "error_answer": 'if this key manager knows no Discover Versions, set probe = "query"; else read its log',
    "no_answer": "see why the key manager does not answer a second request; its log may say so",
    "ends_soon": "renew the key manager's certificate",
    "versions_differ": (
        "set [replication] answer_discover_versions = true, so that clients are told the common versions only"
    ),
    "minted": "give the certificate of a client of this identity: --certificate CLIENT.pem",
    "not_minted": "give the certificate of another client, or correct issuing_ca of this identity",
}
_OTHER: Final = "read the key manager's own log, and report this if the log has no explanation"


def remedy_for(cause: str) -> str:
    """Return the advice for a cause."""
    return REMEDIES.get(cause, _OTHER)
