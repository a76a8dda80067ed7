"""Certificate revocation lists (CRLs) in files: read, and verified with the certificates of the CAs that issued them.

Complete CRLs of a CA itself are accepted, also a CRL for a part of a CA's certificates (Issuing Distribution Point with
names, only user certificates, only CA certificates). Refused are delta CRLs, which change a CRL that is kept elsewhere,
and indirect CRLs, whose entries may belong to other CAs. Sections in comments are those of RFC 5280.

A list may have hundreds of thousands of entries. It is read in a thread beside the event loop, so that no single step
may hold the interpreter for long: PEM is decoded in parts, and the signature is verified over the bytes of the file.
"""

import binascii
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PSS, PKCS1v15
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.config.reading import read_file

MAX_FILE: Final = 64 * 1024 * 1024  # bytes: 1,700,000 entries, whose serial numbers take 150 MiB
_BEGIN: Final = b"-----BEGIN X509 CRL-----"
_END: Final = b"-----END X509 CRL-----"
_DAMAGED: Final = "holds a CRL that is cut off or damaged; fetch it again"
_PART: Final = 65536  # characters of base64 that are decoded at once
_WHITE: Final = b" \t\r\n"
#: Extensions of a CRL that this module understands, or that may be ignored although they are critical.
_UNDERSTOOD: Final = frozenset(
    {
        x509.AuthorityKeyIdentifier.oid,
        x509.CRLNumber.oid,
        x509.IssuingDistributionPoint.oid,
        x509.IssuerAlternativeName.oid,
    }
)


@dataclass(frozen=True, slots=True)
class Crl:
    """A verified CRL. Times are in Unix seconds; ``serials`` are those of revoked certificates, also on hold (5.3.1).

    ``issuer`` is the ``issuer_key`` of its CA, ``name`` the CA's name in the form of RFC 4514. ``points`` are the names
    of the distribution points for whose certificates alone the list speaks; none: for all. ``of_cas`` is True if it
    speaks for CA certificates only, False if for other certificates only, None if for both. ``age`` orders the lists of
    one CA, the newest last.
    """

    issuer: bytes
    name: str
    file: Path
    begins: float
    ends: float
    points: frozenset[str]
    of_cas: bool | None
    age: tuple[int, float]
    serials: frozenset[int] = frozenset()

    @property
    def scope(self) -> tuple[bytes, frozenset[str], bool | None]:
        """The certificates for which the list speaks: of two lists with one scope, the newest counts."""
        return self.issuer, self.points, self.of_cas

    def speaks_for(self, points: frozenset[str], *, is_ca: bool) -> bool:
        """Return True if a certificate of this CA, with these distribution points, is within the list's scope."""
        return (self.of_cas is None or self.of_cas is is_ca) and (not self.points or bool(self.points & points))

    def lapse(self, now: float) -> str:
        """Return why the list is not current at a time; "" if it is."""
        if self.begins > now:
            return "is not valid yet"
        return "is out of date" if self.ends < now else ""


def issuer_key(certificate: x509.Certificate) -> bytes:
    """Return a digest of a CA's name and public key: a renewed certificate of the same CA has the same."""
    public_key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(certificate.subject.public_bytes() + public_key).digest()


def read_crls(
    files: Iterable[Path], authorities: Sequence[x509.Certificate], ca: Path, *, with_serials: bool = True
) -> list[Crl]:
    """Return the newest list of each scope in these files; only its head, unless it is wanted ``with_serials``.

    ``authorities`` are the certificates in the file ``ca``. Raises ValueError with a text for the operator if a file
    can't be read, or if it holds a list that can't be used.
    """
    newest: dict[object, Crl] = {}
    for path in files:
        for der in _lists_in(path):
            crl = _verified(der, authorities, ca, path, with_serials=with_serials)
            if crl.scope not in newest or newest[crl.scope].age < crl.age:
                newest[crl.scope] = crl
    return list(newest.values())


def _lists_in(path: Path) -> Iterator[bytes]:
    """Yield each list of a file, in DER. Raises ValueError."""
    data = read_file(
        path, "a file of CRLs", if_missing="fetch the CRL", if_too_large="have the CA split its CRL", most=MAX_FILE
    )
    if data[:1] == b"\x30":
        yield data
        return
    begin = data.find(_BEGIN)
    if begin < 0:
        raise ValueError(f"{path} holds no CRL; give a file of CRLs, in PEM (BEGIN X509 CRL) or DER")
    while begin >= 0:
        end = data.find(_END, begin)
        try:
            yield _from_base64(data[begin + len(_BEGIN) : end if end >= 0 else begin])
        except binascii.Error:
            raise ValueError(f"{path} {_DAMAGED}") from None
        begin = data.find(_BEGIN, end)


def _from_base64(text: bytes) -> bytes:
    """Decode a text with line breaks in parts. Raises binascii.Error."""
    decoded, rest = bytearray(), b""
    for start in range(0, len(text), _PART):
        part = rest + text[start : start + _PART].translate(None, _WHITE)
        whole = len(part) // 4 * 4
        decoded += binascii.a2b_base64(part[:whole], strict_mode=True)
        rest = part[whole:]
    if rest or not decoded:
        raise binascii.Error
    return bytes(decoded)


def _verified(der: bytes, authorities: Sequence[x509.Certificate], ca: Path, path: Path, *, with_serials: bool) -> Crl:
    try:
        crl = x509.load_der_x509_crl(der)
        name = crl.issuer.rfc4514_string()
        extensions = list(crl.extensions)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise ValueError(f"{path} {_DAMAGED}") from None
    who = f"{path} holds a CRL of {name}"
    point = _check_kind(extensions, who)
    if crl.next_update_utc is None:
        raise ValueError(f"{who} without nextUpdate, which never becomes stale; have the CA say when it ends")
    named = [authority for authority in authorities if authority.subject == crl.issuer]
    if not named:
        raise ValueError(
            f"{who}, and {ca} does not have the certificate of that CA; add it (an intermediate CA lets no further"
            " peers in), or leave out this CRL"
        )
    issuer = next((authority for authority in named if _is_signed_by(crl, der, authority)), None)
    if issuer is None:
        raise ValueError(f"{who} that this CA has not signed; fetch it again, and find out where it came from")
    if not _may_sign_lists(issuer):
        raise ValueError(f"{who}, whose certificate does not allow it to sign CRLs (keyUsage cRLSign)")
    begins = crl.last_update_utc.timestamp()
    number = next((each.value.crl_number for each in extensions if isinstance(each.value, x509.CRLNumber)), 0)
    points = frozenset(map(_text, point.full_name or ())) if point else frozenset()
    of_cas = None
    if point and (point.only_contains_ca_certs or point.only_contains_user_certs):
        of_cas = point.only_contains_ca_certs
    ends = crl.next_update_utc.timestamp()
    serials = frozenset(entry.serial_number for entry in crl) if with_serials else frozenset[int]()
    return Crl(issuer_key(issuer), name, path, begins, ends, points, of_cas, (number, begins), serials)


def _check_kind(
    extensions: Iterable[x509.Extension[x509.ExtensionType]], who: str
) -> x509.IssuingDistributionPoint | None:
    """Return the distribution point of a list. Raises ValueError for a kind of list that can't be used."""
    found = None
    for extension in extensions:
        point = extension.value
        if isinstance(point, x509.DeltaCRLIndicator):
            raise ValueError(f"{who} that is a delta CRL; give the complete CRL")  # noqa: TRY004 - for the operator
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise ValueError(f"{who} with the unknown critical extension {extension.oid.dotted_string}; give another")
        if isinstance(point, x509.IssuingDistributionPoint):
            if point.indirect_crl:
                raise ValueError(f"{who} that is an indirect CRL; give the CRLs of the CAs themselves")
            if point.only_some_reasons or point.only_contains_attribute_certs or point.relative_name:
                raise ValueError(
                    f"{who} for some reasons, attribute certificates or a relative name only; give another"
                )
            found = point
    return found


def missing_lists(authorities: Iterable[x509.Certificate], crls: Iterable[Crl], now: float) -> list[str]:
    """Return the names of the CAs that are valid at a time (Unix s) and have no CRL, sorted."""
    issuers = {crl.issuer for crl in crls}
    return sorted(
        {
            authority.subject.rfc4514_string()
            for authority in authorities
            if authority.not_valid_after_utc.timestamp() >= now and issuer_key(authority) not in issuers
        }
    )


def distribution_points(certificate: x509.Certificate) -> frozenset[str]:
    """Return the names of a certificate's distribution points; none if its extensions can't be parsed."""
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return frozenset()
    return frozenset(_text(name) for point in points for name in point.full_name or ())


def _text(name: x509.GeneralName) -> str:
    return str(name.value)


def _may_sign_lists(authority: x509.Certificate) -> bool:
    """Return True unless the certificate has a key usage without cRLSign (section 6.3.3, f)."""
    try:
        return authority.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return False


def _is_signed_by(crl: x509.CertificateRevocationList, der: bytes, authority: x509.Certificate) -> bool:
    """Verify the signature over the bytes as they are: to encode 100,000 entries again would take 70 ms."""
    try:
        key, signed = authority.public_key(), _signed_part(der)
        how = crl.signature_algorithm_parameters
        if isinstance(key, rsa.RSAPublicKey) and isinstance(how, PKCS1v15 | PSS) and crl.signature_hash_algorithm:
            key.verify(crl.signature, signed, how, crl.signature_hash_algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(how, ec.ECDSA):
            key.verify(crl.signature, signed, how)
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) and how is None:
            key.verify(crl.signature, signed)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _signed_part(der: bytes) -> bytes:
    """Return tbsCertList, the first element of the list's outer sequence (section 5.1.1.1)."""
    begin, _end = _contents(der, 0)
    _, end = _contents(der, begin)
    return der[begin:end]


def _contents(der: bytes, at: int) -> tuple[int, int]:
    """Return the beginning and the end of the contents of the element at a position; `cryptography` has parsed it."""
    length, begin = der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + size], "big"), begin + size
    return begin, begin + length
