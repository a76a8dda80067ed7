"""CAs for tests of minted certificates: with constraints, in files, and with certificates of any names."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_HOUR = timedelta(hours=1)


def common_name(text: str) -> x509.Name:
    """Return a name with one common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass(frozen=True)
class Ca:
    """A CA: its certificate and its key."""

    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes

    @classmethod
    def make(
        cls,
        name: str,
        *,
        issuer: "Ca | None" = None,
        constraints: x509.NameConstraints | None = None,
        is_ca: bool = True,
        ends: datetime | None = None,
        key: CertificateIssuerPrivateKeyTypes | None = None,
    ) -> "Ca":
        """Make a CA: its own root, or below ``issuer``."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(common_name(name))
            .issuer_name(issuer.certificate.subject if issuer else common_name(name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 24 * _HOUR)
            .not_valid_after(ends or now + 24 * _HOUR)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if constraints is not None:
            builder = builder.add_extension(constraints, critical=True)
        signing = issuer.key if issuer else key
        hashing = None if isinstance(signing, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return cls(builder.sign(signing, hashing), key)

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        """Return the key in PEM, encrypted if there is a passphrase."""
        return _key_pem(self.key, passphrase)

    def write(self, path: Path, passphrase: bytes | None = None) -> None:
        """Write the certificate to ``path``.pem and the key to ``path``.key."""
        path.with_suffix(".pem").write_bytes(self.pem)
        path.with_suffix(".key").write_bytes(self.key_pem(passphrase))
        path.with_suffix(".key").chmod(0o600)

    def issue(
        self,
        subject: x509.Name,
        names: Sequence[x509.GeneralName] = (),
        *,
        is_critical: bool = False,
        path: Path | None = None,
    ) -> bytes:
        """Issue a client's certificate, and return it in DER; write it and its key if ``path`` is given."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _HOUR)
            .not_valid_after(now + 24 * _HOUR)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=is_critical)
        certificate = builder.sign(self.key, hashes.SHA256())
        if path is not None:
            path.with_suffix(".pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            path.with_suffix(".key").write_bytes(_key_pem(key))
            path.with_suffix(".key").chmod(0o600)
        return certificate.public_bytes(serialization.Encoding.DER)


def write_secret(path: Path, secret: str | bytes) -> None:
    """Write a file that only its owner can read."""
    path.write_bytes(secret.encode() if isinstance(secret, str) else secret)
    path.chmod(0o600)


def encrypt(key_pem: bytes, passphrase: bytes) -> bytes:
    """Return a private key in PEM, encrypted."""
    key = serialization.load_pem_private_key(key_pem, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )


def _key_pem(key: CertificateIssuerPrivateKeyTypes, passphrase: bytes | None = None) -> bytes:
    protection = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
