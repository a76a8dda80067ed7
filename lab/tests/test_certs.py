"""The development CA: what it issues stands up to strict verification, and nothing is overwritten by accident."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from kmip_lab.certs import Authority, CertificatesExistError, Credential, write_development_set

NAMES = {
    "clients-ca.pem",
    "client.pem",
    "client.key",
    "gateway-ca.pem",
    "server.pem",
    "server.key",
    "kms-clients-ca.pem",
    "gateway-client.pem",
    "gateway-client.key",
    "kms-ca.pem",
    "kms.pem",
    "kms.key",
}


def context(purpose: int, directory: Path, name: str, ca: str) -> ssl.SSLContext:
    """One side of a handshake, as strict as Python 3.13 is by default."""
    made = ssl.SSLContext(purpose)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_cert_chain(directory / f"{name}.pem", directory / f"{name}.key")
    made.load_verify_locations(directory / ca)
    return made


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """A handshake in memory; returns the server's side."""
    upwards, downwards = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(downwards, upwards, server_hostname=host)
    theirs = server.wrap_bio(upwards, downwards, server_side=True)
    for _ in range(3):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    theirs.do_handshake()
    return theirs


@pytest.mark.parametrize("key_type", ["ecdsa", "rsa"])
def test_a_development_set_works_on_both_sides_of_the_gateway(tmp_path: Path, key_type: str) -> None:
    write_development_set(tmp_path, key_type)
    assert {file.name for file in tmp_path.iterdir()} == NAMES
    for client, client_ca, server, server_ca in (
        ("client", "clients-ca.pem", "server", "gateway-ca.pem"),
        ("gateway-client", "kms-clients-ca.pem", "kms", "kms-ca.pem"),
    ):
        for host in ("localhost", "127.0.0.1", "::1"):
            peer = shake_hands(
                context(ssl.PROTOCOL_TLS_CLIENT, tmp_path, client, server_ca),
                context(ssl.PROTOCOL_TLS_SERVER, tmp_path, server, client_ca),
                host,
            ).getpeercert()
            assert peer is not None
            assert (("commonName", client.removesuffix("-client")),) in peer["subject"]


def test_a_foreign_client_is_refused(tmp_path: Path) -> None:
    write_development_set(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(
            context(ssl.PROTOCOL_TLS_CLIENT, tmp_path, "client", "kms-ca.pem"),
            context(ssl.PROTOCOL_TLS_SERVER, tmp_path, "kms", "kms-clients-ca.pem"),
            "localhost",
        )


def test_only_the_owner_can_read_the_private_keys(tmp_path: Path) -> None:
    for file in write_development_set(tmp_path).directory.iterdir():
        if file.suffix == ".key":
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_set_is_overwritten_only_with_force(tmp_path: Path) -> None:
    write_development_set(tmp_path)
    before = (tmp_path / "kms.pem").read_bytes()
    (tmp_path / "kms.key").chmod(0o644)
    with pytest.raises(CertificatesExistError, match=r"kms\.pem"):
        write_development_set(tmp_path)
    assert (tmp_path / "kms.pem").read_bytes() == before
    write_development_set(tmp_path, force=True)
    assert (tmp_path / "kms.pem").read_bytes() != before
    assert stat.S_IMODE((tmp_path / "kms.key").stat().st_mode) == 0o600


def test_one_file_of_a_set_is_enough_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "server.key").write_text("precious")
    with pytest.raises(CertificatesExistError):
        write_development_set(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["server.key"]


def names_of(credential: Credential) -> x509.SubjectAlternativeName:
    return credential.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_a_client_has_the_names_that_it_is_given() -> None:
    issued = Authority("CA").issue_client(
        "host",
        organization="Example",
        dns=["host.example"],
        email=["host@example.com"],
        uri=["spiffe://example/host"],
        ip=["192.0.2.1", "2001:db8::1"],
    )
    names = names_of(issued)
    assert names.get_values_for_type(x509.DNSName) == ["host.example"]
    assert names.get_values_for_type(x509.RFC822Name) == ["host@example.com"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example/host"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "2001:db8::1"]
    assert issued.certificate.subject.rfc4514_string() == "CN=host,O=Example"
    purposes = issued.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_certificate_can_be_expired_or_not_yet_valid() -> None:
    authority, now = Authority("CA"), datetime.now(UTC)
    expired = authority.issue_client("old", not_before=now - timedelta(days=2), not_after=now - timedelta(days=1))
    future = authority.issue_client("young", not_before=now + timedelta(days=1))
    assert expired.certificate.not_valid_after_utc < now < future.certificate.not_valid_before_utc


def test_certificates_last_as_long_as_they_may() -> None:
    issued, now = Authority("CA").issue_server("kms"), datetime.now(UTC)
    assert issued.certificate.not_valid_before_utc < now - timedelta(minutes=59)
    assert timedelta(days=360) < issued.certificate.not_valid_after_utc - now < timedelta(days=825)
    authority = x509.load_pem_x509_certificate(issued.chain)
    assert authority.not_valid_after_utc - now > timedelta(days=3640)


@pytest.mark.parametrize(("key_type", "kind"), [("ecdsa", ec.EllipticCurvePrivateKey), ("rsa", rsa.RSAPrivateKey)])
def test_keys_are_of_the_type_that_was_asked_for(key_type: str, kind: type) -> None:
    issued = Authority("CA", key_type).issue_client("client")
    assert isinstance(load_pem_private_key(issued.private_key_pem, None), kind)
