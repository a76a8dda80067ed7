"""A public-key infrastructure with a root, an intermediate CA, clients and CRLs, made for tests of revocation."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kmip_lab.certs import Authority

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def name_of(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class TestCa:
    """A CA that issues CAs, clients and CRLs; without ``parent`` it is a root."""

    __test__ = False

    def __init__(
        self, name: str, parent: "TestCa | None" = None, *, lasts: timedelta = 365 * DAY, signs_crls: bool = True
    ) -> None:
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._parent = parent
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=signs_crls,
            encipher_only=False,
            decipher_only=False,
        )
        builder = _builder(name, self.key, (parent or self).name, lasts)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(usage, critical=True)
        self.certificate = builder.sign((parent or self).key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def chain(self) -> bytes:
        """The intermediate CAs from this one up, in PEM."""
        return b"" if self._parent is None else self.pem + self._parent.chain

    def issue(
        self,
        name: str,
        pair: tuple[Path, Path] | None = None,
        *,
        lasts: timedelta = DAY,
        points: Sequence[str] = (),
        for_server: bool = False,
    ) -> x509.Certificate:
        """Issue a client's or a server's certificate; write it, with its chain, and its key to ``pair``."""
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if for_server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder(name, key, self.name, lasts)
        if for_server:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if points:
            uris = [x509.DistributionPoint([x509.UniformResourceIdentifier(uri)], None, None, None) for uri in points]
            builder = builder.add_extension(x509.CRLDistributionPoints(uris), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        if pair is not None:
            pair[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + self.chain)
            pair[1].write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
            pair[1].chmod(0o600)
        return certificate

    def crl(
        self,
        revoked: Iterable[x509.Certificate | int] = (),
        *,
        lasts: timedelta | None = DAY,
        begins: timedelta = -HOUR,
        number: int = 1,
        signer: "TestCa | None" = None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> x509.CertificateRevocationList:
        """Make a CRL; ``begins`` and ``lasts`` are counted from now."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(name_of(self.name)).last_update(now + begins)
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        if lasts is not None:
            builder = builder.next_update(now + lasts)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        entries = [_entry(each, now) for each in revoked]
        builder._revoked_certificates = entries  # one by one, the builder copies its list each time
        if lasts is None:
            return _without_next_update(self, entries, now + begins)
        return builder.sign((signer or self).key, hashes.SHA256())

    def crl_pem(self, *arguments: object, **by_name: object) -> bytes:
        """Make a CRL in PEM, as ``crl`` does."""
        made = self.crl(*arguments, **by_name)  # type: ignore[arg-type]
        return made.public_bytes(serialization.Encoding.PEM)


def crl_of(authority: Authority, revoked: Iterable[x509.Certificate] = ()) -> bytes:
    """Return a CRL of a CA of the laboratory, in PEM."""
    now = datetime.now(UTC)
    issuer = authority._certificate.subject
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer).last_update(now - HOUR).next_update(now + DAY)
    builder._revoked_certificates = [_entry(each, now) for each in revoked]
    return builder.sign(authority._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _entry(revoked: x509.Certificate | int, now: datetime) -> x509.RevokedCertificate:
    number = revoked if isinstance(revoked, int) else revoked.serial_number
    return x509.RevokedCertificateBuilder().serial_number(number).revocation_date(now - HOUR).build()


def _builder(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, lasts: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name_of(name))
        .issuer_name(name_of(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lasts) - HOUR)
        .not_valid_after(now + lasts)
    )


def _without_next_update(
    authority: TestCa, entries: list[x509.RevokedCertificate], begins: datetime
) -> x509.CertificateRevocationList:
    """Take nextUpdate, a UTCTime of 15 bytes after thisUpdate, out of a list of version 1, and sign it again."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(name_of(authority.name)).last_update(begins)
    builder = builder.next_update(begins + DAY)
    builder._revoked_certificates = entries
    made = builder.sign(authority.key, hashes.SHA256())
    tbs = made.tbs_certlist_bytes
    end = f"{begins + DAY:%y%m%d%H%M%S}Z".encode()
    cut = tbs.replace(b"\x17\x0d" + end, b"")
    assert len(tbs) - len(cut) == 15
    assert cut[1] < 0x80
    cut = bytes([cut[0], cut[1] - 15]) + cut[2:]
    signature = authority.key.sign(cut, ec.ECDSA(hashes.SHA256()))
    body = cut + bytes.fromhex("300a06082a8648ce3d040302") + b"\x03" + bytes([len(signature) + 1, 0]) + signature
    head = b"\x30" + (bytes([len(body)]) if len(body) < 0x80 else b"\x81" + bytes([len(body)]))
    return x509.load_der_x509_crl(head + body)
