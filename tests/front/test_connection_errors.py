"""Failed connections: one count for each, and at most one log line a second for each reason."""

import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from kmip_lab.certs import Authority
from structlog.testing import LogCapture

from gateway.front.admission import Limit
from gateway.front.connection_errors import ConnectionErrors, certificate_fields
from gateway.log import Throttle
from gateway.metrics import Metrics


def test_each_connection_over_a_limit_is_counted_and_the_first_is_logged() -> None:
    metrics, log = Metrics("test"), LogCapture()
    errors = ConnectionErrors("kmip", metrics, structlog.wrap_logger(None, processors=[log]), Throttle())
    for _ in range(3):
        errors.over_limit(Limit.ADDRESS_RATE, "192.0.2.1:8080")
    errors.count("client_closed", "192.0.2.1:5000")
    sample = metrics.registry.get_sample_value
    name = "kmip_gateway_client_connection_errors_total"
    assert sample(name, {"listener": "kmip", "reason": "limit"}) == 3
    assert sample(name, {"listener": "kmip", "reason": "client_closed"}) == 1
    labels = {"limit": "address_handshakes_per_second", "identity": "unidentified"}
    assert sample("kmip_gateway_limit_rejections_total", labels) == 3
    assert log.entries == [
        {
            "event": "connection closed: limit reached",
            "log_level": "warning",
            "peer": "192.0.2.1:8080",
            "reason": "address_handshakes_per_second",
            "setting": "per_address.handshakes_per_second",
        }
    ]


def test_every_limit_of_connections_has_its_setting() -> None:
    errors = ConnectionErrors(
        "kmip", Metrics("test"), structlog.wrap_logger(None, processors=[LogCapture()]), Throttle()
    )
    of_requests = {Limit.REQUESTS, Limit.PRINCIPAL_REQUESTS, Limit.RATE, Limit.BUFFERED, Limit.PRINCIPAL_BUFFERED}
    for limit in set(Limit) - of_requests:
        errors.over_limit(limit, "192.0.2.1:8080")
    assert repr(errors) == "<ConnectionErrors of kmip>"


def test_a_certificate_is_named_by_its_names_and_its_fingerprint() -> None:
    certificate = Authority("CA").issue_client("alice", organization="O" * 64, dns=["a.example.com"]).certificate
    fields = certificate_fields(certificate.public_bytes(Encoding.DER))
    assert fields["subject"] == f"CN=alice,O={'O' * 64}"
    assert (fields["issuer"], fields["fingerprint"]) == ("CN=CA", certificate.fingerprint(hashes.SHA256()).hex())
    assert list(certificate_fields(b"unreadable")) == ["fingerprint"]
    assert certificate_fields(None) == {}
