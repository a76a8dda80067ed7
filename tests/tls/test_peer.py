"""Tests of the peer's certificates as bytes: those of the files."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from gateway.tls.peer import certificate_der, issuers_der
from tests.kit.processes import Certificates
from tests.kit.streams import Pair, client_tls, server_tls, streams


def der(path: Path) -> bytes:
    """Return the first certificate of a file in DER."""
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


async def test_each_side_has_the_certificate_of_the_other(pair: Pair, certificates: Certificates) -> None:
    assert pair.server.peer_certificate_der() == der(certificates.client("alice")[0])
    assert pair.client.peer_certificate_der() == der(certificates.pair("server")[0])


async def test_the_issuers_are_those_of_the_verified_chain(pair: Pair, certificates: Certificates) -> None:
    assert pair.server.issuers_der() == (der(certificates.path("clients_ca.pem")),)
    assert pair.client.issuers_der() == (der(certificates.path("gateway_ca.pem")),)


async def test_before_the_handshake_there_is_no_certificate(certificates: Certificates) -> None:
    async with streams(server_tls(certificates), client_tls(certificates)) as pair:
        assert pair.server.peer_certificate_der() is None
        assert issuers_der(pair.server.connection._ssl) == ()


async def test_a_certificate_survives_its_connection(pair: Pair, certificates: Certificates) -> None:
    """A reference that is counted once too little ends the process; one too many keeps the memory."""
    ssl = pair.server.connection._ssl
    found = {certificate_der(ssl) for _ in range(1000)}
    pair.server.close()
    assert found == {der(certificates.client("alice")[0])}
    assert isinstance(pair.server.connection, SSL.Connection)
    assert pair.server.connection.get_peer_certificate() is not None
