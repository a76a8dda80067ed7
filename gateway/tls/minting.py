"""Minting: short-lived client certificates with a client's own names, issued in memory for the key managers.

A minted certificate has the client's subject and subject alternative names byte for byte, and nothing else of the
client: it is no CA, may only be used by TLS clients, and only signs. Every certificate is verified with the issuing
CA's own rules (name constraints, path length, validity) before it is used, and its names are compared with the
client's.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from OpenSSL import crypto

from gateway.certificate_names import Names, names_of
from gateway.config import IdentityConfig
from gateway.config.credentials import MintedKey
from gateway.config.files import certificates
from gateway.config.patterns import is_odd
from gateway.config.secret_files import read_private_key
from gateway.errors import MintingError

SKEW: Final = timedelta(minutes=5)  # by which a key manager's clock may be behind
RENEWED_AFTER: Final = 2 / 3  # of the lifetime
_LATEST: Final = 0.75  # of the time between renewal and end, within which the sessions of a certificate are replaced
_RSA_EXPONENT: Final = 65537

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_CURVES: Final[dict[str, type[ec.SECP256R1 | ec.SECP384R1]]] = {"ec-p256": ec.SECP256R1, "ec-p384": ec.SECP384R1}
_RSA_SIZES: Final = {"rsa-2048": 2048, "rsa-3072": 3072}


class MintedCertificate(NamedTuple):
    """A certificate and its key, which are in memory only. The times are in Unix seconds."""

    certificate: x509.Certificate
    private_key: PrivateKey
    renew_at: float
    ends: float

    def __repr__(self) -> str:
        return f"<MintedCertificate until {datetime.fromtimestamp(self.ends, UTC):%Y-%m-%d %H:%M:%S}>"

    def session_ends(self, fraction: float) -> float:
        """Return the time at which a session with this certificate is to be replaced, before the certificate ends.

        ``fraction``, from 0 to 1, spreads the sessions, so that they are not all replaced at once.
        """
        return self.renew_at + (self.ends - self.renew_at) * _LATEST * fraction


class IssuingCa:
    """A CA that issues certificates for clients of one identity.

    ``chain`` begins with its certificate; certificates of the CAs above may follow.
    """

    def __init__(
        self,
        chain: Sequence[x509.Certificate],
        private_key: CertificateIssuerPrivateKeyTypes,
        *,
        minted_key: MintedKey = "ec-p256",
        lifetime: float = 14400,
    ) -> None:
        self._own = chain[0]
        self._chain = [crypto.X509.from_cryptography(each) for each in chain]
        self._private_key = private_key
        self._lifetime = timedelta(seconds=lifetime)
        self.minted_key = minted_key
        self._begins = max(each.not_valid_before_utc for each in chain)
        self._ends = min(each.not_valid_after_utc for each in chain)
        #: The certificates to show besides a minted one; peers have the root themselves.
        self.shown_chain = [each for each in chain if each.subject != each.issuer]

    def __repr__(self) -> str:
        return f"<IssuingCa {self._own.subject.rfc4514_string()}>"

    @classmethod
    def of(cls, identity: IdentityConfig) -> Self:
        """Read the files of an identity with minted credentials. Raises ValueError."""
        assert identity.issuing_ca is not None  # noqa: S101 - load has seen to it
        assert identity.issuing_ca_key is not None  # noqa: S101
        key = read_private_key(identity.issuing_ca_key, identity.issuing_ca_passphrase_file)
        if not isinstance(
            key,
            rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey,
        ):
            raise ValueError(f"{identity.issuing_ca_key} can't sign certificates; give an EC, RSA or EdDSA key")  # noqa: TRY004
        return cls(
            certificates(identity.issuing_ca),
            key,
            minted_key=identity.minted_key,
            lifetime=identity.minted_lifetime,
        )

    @property
    def is_slow(self) -> bool:
        """True if making a key takes so long that it should run in a thread."""
        return self.minted_key in _RSA_SIZES

    def issue(self, client: bytes, now: datetime) -> MintedCertificate:
        """Return a certificate with the names of a client's certificate, which is in DER.

        Raises MintingError, with a text for the operator, if the CA may not issue it.
        """
        names = names_of(client)
        if names.is_empty:
            raise MintingError("the client's certificate has neither a subject nor alternative names to be shown")
        begins, ends = max(now - SKEW, self._begins), min(now + self._lifetime, self._ends)
        if not begins <= now < ends:
            raise MintingError(
                f"the issuing CA is valid from {self._begins:%Y-%m-%d %H:%M} to {self._ends:%Y-%m-%d %H:%M} UTC; renew"
                " issuing_ca, or correct this machine's clock"
            )
        _refuse_odd(client)
        key = self._make_key()
        try:
            certificate = self._sign(client, names, key, begins, ends)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise MintingError(f"the names of the client's certificate can't be shown: {error}") from None
        self._check(certificate, names, now)
        renew_at = now + (ends - now) * RENEWED_AFTER
        return MintedCertificate(certificate, key, renew_at.timestamp(), ends.timestamp())

    def _make_key(self) -> PrivateKey:
        if self.minted_key in _RSA_SIZES:
            return rsa.generate_private_key(_RSA_EXPONENT, _RSA_SIZES[self.minted_key])
        return ec.generate_private_key(_CURVES[self.minted_key]())

    def _sign(self, client: bytes, names: Names, key: PrivateKey, begins: datetime, ends: datetime) -> x509.Certificate:
        public_key = key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.load_der_x509_certificate(client).subject)
            .issuer_name(self._own.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_ONLY_SIGNS, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(self._authority_key_identifier(), critical=False)
        )
        if names.alternative_names is not None:
            copied = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, names.alternative_names)
            builder = builder.add_extension(copied, critical=names.is_critical)
        return builder.sign(self._private_key, _hash_for(self._private_key))

    def _authority_key_identifier(self) -> x509.AuthorityKeyIdentifier:
        try:
            own = self._own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._private_key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)

    def _check(self, certificate: x509.Certificate, names: Names, now: datetime) -> None:
        """Verify a certificate as a key manager does, and that it has the client's names byte for byte."""
        der = certificate.public_bytes(serialization.Encoding.DER)
        minted = names_of(der)
        if minted[1:] != names[1:]:
            raise MintingError("the names of the client's certificate are not encoded in DER, and can't be copied")
        store = crypto.X509Store()  # a new one each time: the time of a store can be set only once
        store.add_cert(self._chain[-1])
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        store.set_time(now)
        context = crypto.X509StoreContext(store, crypto.X509.from_cryptography(certificate), self._chain)
        try:
            context.verify_certificate()
        except crypto.X509StoreContextError as error:
            raise MintingError(
                f"the issuing CA {self._own.subject.rfc4514_string()} does not permit the names of the client's"
                f" certificate: {error}; issue the client another certificate, or use a CA that permits the names"
            ) from None


def _refuse_odd(client: bytes) -> None:
    """Raise MintingError for a name with NUL or a control character: a key manager may read it as another name.

    A rule looks at the names that its ``match`` gives, and all names of the client are shown to key managers.
    """
    try:
        certificate = x509.load_der_x509_certificate(client)
        found = [each.value for each in certificate.subject]
        for name in _alternative_names(certificate):
            if isinstance(name, x509.DirectoryName):
                found += [each.value for each in name.value]
            elif isinstance(name, x509.DNSName | x509.RFC822Name | x509.UniformResourceIdentifier):
                found.append(name.value)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise MintingError("the names of the client's certificate can't be read; issue the client another") from None
    if any(isinstance(value, str) and is_odd(value) for value in found):
        raise MintingError(
            "a name of the client's certificate has a control character, and a key manager might read another name;"
            " issue the client another certificate"
        )


def _alternative_names(certificate: x509.Certificate) -> Iterable[x509.GeneralName]:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()


def _hash_for(
    key: CertificateIssuerPrivateKeyTypes,
) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None:
    """Return the hash of a signature: as strong as the key, and None for EdDSA."""
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size > 256:
        return hashes.SHA384() if key.key_size <= 384 else hashes.SHA512()
    return hashes.SHA256()


_ONLY_SIGNS: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
