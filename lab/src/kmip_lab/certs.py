"""Certificates for the demo, the tests and the measurements, and the command ``certs`` that writes a set of them.

Unfit for production: private keys lie unencrypted beside their certificates, and the CAs' own keys are not kept, so
that a set is made anew rather than extended.
"""

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from gateway import tls
from gateway.errors import GatewayError

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

#: Every server certificate of a development set is for these names.
LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")

_EARLIER: Final = timedelta(hours=1)  # clocks differ
_CA_LIFETIME: Final = timedelta(days=3650)
_LEAF_LIFETIME: Final = timedelta(days=365)


class CertificatesExistError(GatewayError):
    """A development set would overwrite files that exist already."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate and its private key. ``chain`` is the CA's certificate; all three are PEM."""

    certificate_pem: bytes
    private_key_pem: bytes
    chain: bytes

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_pem_x509_certificate(self.certificate_pem)

    @property
    def private_key(self) -> PrivateKey:
        """The private key, parsed."""
        key = serialization.load_pem_private_key(self.private_key_pem, None)
        assert isinstance(key, PrivateKey)  # noqa: S101 - it was made here
        return key

    def write(self, certificate: Path, private_key: Path) -> None:
        """Write both files; only the owner can read the private key (mode 0600)."""
        certificate.write_bytes(self.certificate_pem)
        _write_secret(private_key, self.private_key_pem)


class Authority:
    """A self-signed certificate authority, valid for ten years.

    ``key_type`` is ``ecdsa`` (P-256) or ``rsa`` (2048 bits), for the CA and for all certificates that it issues.
    """

    def __init__(self, name: str, key_type: str = "ecdsa") -> None:
        self._generate = _GENERATORS[key_type]
        self._key = self._generate()
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, self._key, now - _EARLIER, now + _CA_LIFETIME)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.certificate_pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def __repr__(self) -> str:
        return f"<Authority {self._certificate.subject.rfc4514_string()}>"

    def issue_server(
        self,
        common_name: str,
        hosts: Sequence[str] = LOCAL_HOSTS,
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> Credential:
        """Issue a server's certificate for DNS names and IP addresses. Valid from an hour ago for a year."""
        subject = _subject(common_name, None)
        names = [_host(host) for host in hosts]
        return self._issue(subject, names, ExtendedKeyUsageOID.SERVER_AUTH, not_before, not_after)

    def issue_client(
        self,
        common_name: str,
        *,
        organization: str | None = None,
        dns: Iterable[str] = (),
        email: Iterable[str] = (),
        uri: Iterable[str] = (),
        ip: Iterable[str] = (),
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> Credential:
        """Issue a client's certificate with these subject alternative names. Valid from an hour ago for a year."""
        names: list[x509.GeneralName] = [
            *map(x509.DNSName, dns),
            *map(x509.RFC822Name, email),
            *map(x509.UniformResourceIdentifier, uri),
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in ip),
        ]
        subject = _subject(common_name, organization)
        return self._issue(subject, names, ExtendedKeyUsageOID.CLIENT_AUTH, not_before, not_after)

    def _issue(
        self,
        subject: x509.Name,
        names: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        not_before: datetime | None,
        not_after: datetime | None,
    ) -> Credential:
        now = datetime.now(UTC)
        key = self._generate()
        builder = _builder(
            subject, self._certificate.subject, key, not_before or now - _EARLIER, not_after or now + _LEAF_LIFETIME
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(enciphers=isinstance(key, rsa.RSAPrivateKey)), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Credential(certificate.public_bytes(serialization.Encoding.PEM), _pem(key), self.certificate_pem)


def common_name(certificate: x509.Certificate | None) -> str | None:
    """Return the common name of a certificate's subject; None if it has none, or more than one."""
    if certificate is None:
        return None
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None


@dataclass(frozen=True, slots=True)
class DevelopmentSet:
    """A directory with the certificates that a gateway, its key managers and one client need."""

    directory: Path

    def file(self, name: str) -> Path:
        """Return the path of a file of the directory."""
        return self.directory / name

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the paths of a certificate and of its private key."""
        return self.file(f"{name}.pem"), self.file(f"{name}.key")

    def client_context(self) -> SSL.Context:
        """Return the TLS context of a client of the gateway."""
        return tls.client_context(*self.pair("client"), self.file("gateway-ca.pem"))

    def gateway_context(self) -> SSL.Context:
        """Return the TLS context of the gateway as a client of the key managers."""
        return tls.client_context(*self.pair("gateway-client"), self.file("kms-ca.pem"))


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--rsa", is_flag=True, help="RSA-2048 keys instead of ECDSA P-256.")
@click.option("--force", is_flag=True, help="Overwrite a set that is already there.")
def certs(directory: Path, *, rsa: bool, force: bool) -> None:
    """Write certificates for development into DIRECTORY: CAs, and server, gateway and client certificates."""
    try:
        written = write_development_set(directory, "rsa" if rsa else "ecdsa", force=force)
    except CertificatesExistError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"can't write {directory}: {error.strerror}; choose another directory") from None
    for name in DEVELOPMENT_FILES:
        click.echo(written.file(name))


def write_development_set(directory: Path, key_type: str = "ecdsa", *, force: bool = False) -> DevelopmentSet:
    """Write a development set; ``key_type`` is that of Authority.

    Raises CertificatesExistError, and writes nothing, if one of the files exists already, unless ``force`` is set.
    """
    files = [directory / name for name in DEVELOPMENT_FILES]
    existing = [file.name for file in files if file.exists()]
    if existing and not force:
        raise CertificatesExistError(f"{directory} holds {', '.join(existing)} already; choose another directory")
    contents = _development_set(key_type)
    directory.mkdir(parents=True, exist_ok=True)
    for file in files:
        write = _write_secret if file.suffix == ".key" else Path.write_bytes
        write(file, contents[file.name])
    return DevelopmentSet(directory)


#: The files of a development set, in the order of a request's way: client, gateway, key manager.
DEVELOPMENT_FILES: Final = (
    "clients-ca.pem",  # issued client.pem; the gateway's listener asks for it
    "client.pem",
    "client.key",
    "gateway-ca.pem",  # issued server.pem; clients trust it
    "server.pem",
    "server.key",
    "kms-clients-ca.pem",  # issued gateway-client.pem; the key managers ask for it
    "gateway-client.pem",
    "gateway-client.key",
    "kms-ca.pem",  # issued kms.pem; the gateway trusts it
    "kms.pem",
    "kms.key",
)


def _development_set(key_type: str) -> dict[str, bytes]:
    authorities = {
        name: Authority(f"development {name}", key_type) for name in DEVELOPMENT_FILES if name.endswith("-ca.pem")
    }
    credentials = {
        "client": authorities["clients-ca.pem"].issue_client("client"),
        "server": authorities["gateway-ca.pem"].issue_server("localhost"),
        "gateway-client": authorities["kms-clients-ca.pem"].issue_client("gateway"),
        "kms": authorities["kms-ca.pem"].issue_server("localhost"),
    }
    return (
        {name: authority.certificate_pem for name, authority in authorities.items()}
        | {f"{name}.pem": credential.certificate_pem for name, credential in credentials.items()}
        | {f"{name}.key": credential.private_key_pem for name, credential in credentials.items()}
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, not_before: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool = False, enciphers: bool = False) -> x509.KeyUsage:
    """RSA keys must encipher too: the suites that KMIP Profiles 1.4 make mandatory exchange keys that way."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=enciphers,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(common_name: str, organization: str | None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _generate_ecdsa() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _generate_rsa() -> PrivateKey:
    return rsa.generate_private_key(65537, 2048)


_GENERATORS: Final = {"ecdsa": _generate_ecdsa, "rsa": _generate_rsa}


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_secret(file: Path, content: bytes) -> None:
    """Write a file that only its owner can read, at any time."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        target.write(content)
