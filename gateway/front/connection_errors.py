"""The connections that a listener refuses or loses: a count for each reason, and a log line with the peer."""

import hashlib
from typing import Final

from cryptography import x509

from gateway.audit.refused import RefusedConnections
from gateway.front.admission import Limit
from gateway.log import Log, Throttle, quoted
from gateway.metric_table import UNIDENTIFIED
from gateway.metrics import Metrics
from gateway.tls import UNREADABLE_CERTIFICATE

#: The setting of each limit that a connection can exceed, for the log.
_SETTINGS: Final = {
    Limit.CLIENTS: "limits.max_clients",
    Limit.LISTENER_CLIENTS: "listeners.max_clients",
    Limit.PRINCIPAL_CLIENTS: "identities.max_clients",
    Limit.HALF_OPEN: "limits.max_half_open",
    Limit.ADDRESS_CLIENTS: "per_address.max_clients",
    Limit.ADDRESS_HALF_OPEN: "per_address.max_half_open",
    Limit.ADDRESS_RATE: "per_address.handshakes_per_second",
}


def certificate_fields(der: bytes | None) -> dict[str, str]:
    """Return subject, issuer and SHA-256 fingerprint of a client's certificate, as fields of a log line."""
    if der is None:
        return {}
    fields = {"fingerprint": hashlib.sha256(der).hexdigest()}
    try:
        certificate = x509.load_der_x509_certificate(der)
        subject, issuer = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
    except UNREADABLE_CERTIFICATE:
        return fields
    return {"subject": quoted(subject), "issuer": quoted(issuer), **fields}


class ConnectionErrors:
    """Counts and logs the errors of one listener's connections. At most one line a second is logged for a reason.

    ``refused`` takes them for the audit trail; None: there is no audit trail.
    """

    def __init__(
        self,
        listener: str,
        metrics: Metrics,
        log: Log,
        throttle: Throttle,
        refused: RefusedConnections | None = None,
    ) -> None:
        self._listener = listener
        self._metrics = metrics
        self._log = log
        self._throttle = throttle
        self._refused = refused

    def __repr__(self) -> str:
        return f"<ConnectionErrors of {self._listener}>"

    def count(self, reason: str, peer: str, detail: str = "", certificate: str | None = None) -> None:
        """Count a connection that was refused or lost; ``reason`` and ``detail`` are of closed sets.

        ``certificate`` is the client's fingerprint, for the audit trail.
        """
        self._metrics.client_connection_errors.labels(self._listener, reason).inc()
        if self._refused is not None:
            self._refused.add(self._listener, reason, peer, detail, certificate)

    def over_limit(self, limit: Limit, peer: str, identity: str = UNIDENTIFIED, certificate: str | None = None) -> None:
        """Count a connection that is closed because of a limit, and log it."""
        self._metrics.limit_rejections.labels(limit.value, identity).inc()
        self.count("limit", peer, limit.value, certificate)
        self.warn(
            f"limit {limit.value} {identity}",
            "connection closed: limit reached",
            peer=peer,
            reason=limit.value,
            setting=_SETTINGS[limit],
            **({} if identity == UNIDENTIFIED else {"identity": identity}),
        )

    def warn(self, key: str, event: str, **fields: object) -> None:
        """Log a warning, unless a line with this key was logged within the last second."""
        self._throttle.warn(self._log, key, event, **fields)
