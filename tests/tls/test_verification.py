"""Verification: certificates that a handshake refuses, on both sides."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from kmip_lab.certs import Authority
from OpenSSL import SSL, crypto

from gateway.tls import client_context, server_context
from gateway.tls.verification import described, error_text
from tests.kit.handshakes import client_shows, failing, reasons, server_shows
from tests.kit.processes import HOSTS, Certificates
from tests.kit.streams import (
    TLS_1_2,
    TLS_1_3,
    VERSIONS,
    client_tls,
    server_tls,
)

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@both_versions
async def test_a_client_without_a_certificate_is_refused(certificates: Certificates, version: str) -> None:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(VERSIONS[version])
    context.set_max_proto_version(VERSIONS[version])
    assert await reasons(server_tls(certificates), context) == ["no_certificate", "alert"]


@pytest.mark.parametrize(("reason", "begins", "ends"), [("expired", -2, -1), ("not_yet_valid", 1, 2)])
async def test_certificates_out_of_their_time_are_refused_on_both_sides(
    certificates: Certificates, reason: str, begins: float, ends: float
) -> None:
    stale_client = client_shows(certificates, reason, certificates.clients_ca, begins=begins, ends=ends)
    assert await reasons(server_tls(certificates), stale_client) == [reason, "alert"]
    stale_server = server_shows(certificates, f"server-{reason}", certificates.gateway_ca, begins=begins, ends=ends)
    assert await reasons(stale_server, client_tls(certificates)) == [reason, "alert"]


async def test_certificates_of_a_foreign_ca_are_refused_on_both_sides(certificates: Certificates) -> None:
    foreign_client = client_shows(certificates, "foreign", Authority("Clients CA"))
    assert await reasons(server_tls(certificates), foreign_client) == ["unknown_ca", "alert"]
    foreign_server = server_shows(certificates, "foreign-server", Authority("Gateway CA"))
    assert await reasons(foreign_server, client_tls(certificates)) == ["unknown_ca", "alert"]


async def test_server_certificate_is_refused_for_a_client(certificates: Certificates) -> None:
    pair = certificates.pair("purpose")
    certificates.clients_ca.issue_server("alice", HOSTS).write(*pair)
    context = client_context(*pair, certificates.path("gateway_ca.pem"))
    assert await reasons(server_tls(certificates), context) == ["purpose", "alert"]


async def test_client_certificate_is_refused_for_a_server(certificates: Certificates) -> None:
    pair = certificates.pair("server-purpose")
    certificates.gateway_ca.issue_client("localhost", dns=["localhost"]).write(*pair)
    server = server_context(*pair, certificates.path("clients_ca.pem"))
    assert await reasons(server, client_tls(certificates)) == ["purpose", "alert"]


async def test_the_refused_certificate_is_named_on_both_sides(certificates: Certificates) -> None:
    """With its issuer, so that it can be compared with the CAs that are trusted."""
    clients = client_shows(certificates, "stranger", Authority("Strangers CA"))
    async with failing(server_tls(certificates), clients) as (_pair, said):
        fingerprint = fingerprint_of(certificates, "stranger")
        assert str(said[0]) == (
            "handshake failed: certificate verify failed: unable to get local issuer certificate: certificate CN=alice"
            f" of CN=Strangers CA, SHA-256 {fingerprint}; trusted are the CAs in {certificates.path('clients_ca.pem')}"
        )
        assert "Strangers" not in str(said[1])
    server = server_shows(certificates, "old-server", certificates.gateway_ca, begins=-2, ends=-1)
    async with failing(server, client_tls(certificates)) as (_pair, said):
        assert "certificate has expired: certificate CN=gateway of CN=Gateway CA, SHA-256 " in str(said[0])
        assert str(said[0]).endswith(f"; trusted are the CAs in {certificates.path('gateway_ca.pem')}")
        assert str(said[1]).endswith(": the peer does not accept the certificate that the gateway shows it")


def fingerprint_of(certificates: Certificates, name: str) -> str:
    certificate = x509.load_pem_x509_certificate(certificates.pair(name)[0].read_bytes())
    return certificate.fingerprint(hashes.SHA256()).hex()


async def test_a_certificate_is_described_by_its_names(certificates: Certificates) -> None:
    pair = certificates.pair("long")
    Authority("Strangers CA").issue_client("alice", uri=["https://example.com"], organization="x" * 60).write(*pair)
    shown = described(crypto.X509.from_cryptography(x509.load_pem_x509_certificate(pair[0].read_bytes())))
    assert shown.startswith(f"certificate CN=alice,O={'x' * 60} of CN=Strangers CA, SHA-256 ")
    assert error_text(10) == "certificate has expired"
