"""Identity: from a verified certificate to the rule that names the client and the credential to show for it.

Rules are tried in order, and the first that matches counts. A client that no rule matches is rejected. A rule matches
names, and a name identifies a client only among certificates of the same CAs: each listener has its own Identities,
with the rules for that listener.
"""

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from gateway.certificate_names import names_of
from gateway.config import IdentityConfig, MatchConfig
from gateway.config.patterns import fits, is_odd, lower_domain
from gateway.permissions import UNRESTRICTED, Permissions

_CACHED: Final = 10_000  # certificates whose principal is cached


class Identity(NamedTuple):
    """The rule that names a client. The credential that is shown to the key managers for it has the same name.

    ``permissions`` changes in place if a reload changes the policy of the rule.
    """

    name: str
    shared: bool
    permissions: Permissions = UNRESTRICTED


class OwnNames(NamedTuple):
    """The names that a minted credential must show: those of the client's ``certificate``, which is in DER.

    ``credential`` stands for the issuer, the subject and the alternative names, byte for byte: two certificates with
    the same names have the same credential.
    """

    credential: str
    certificate: bytes

    def __repr__(self) -> str:
        return f"<OwnNames {self.credential}>"


class Principal(NamedTuple):
    """One client under an identity: issuer and subject of its certificate, in the form of RFC 4514.

    If the subject is empty, as in certificates for services, the alternative names stand for it. ``not_before`` and
    ``not_after`` are the dates of the certificate, in Unix seconds. ``names`` is None unless the identity's credentials
    are minted.
    """

    identity: Identity
    issuer: str
    subject: str
    not_before: float
    not_after: float
    names: OwnNames | None = None

    @property
    def credential(self) -> str:
        """The credential that is shown for this client: the identity's, unless the client has a minted one."""
        return self.identity.name if self.names is None else self.names.credential

    def is_valid_at(self, now: float) -> bool:
        """Return True if the certificate is valid at a Unix time. A resumed handshake does not check that."""
        return self.not_before <= now <= self.not_after


class Facts(NamedTuple):
    """Names and fingerprint of a certificate, in the form in which rules are written."""

    subject_cn: tuple[str, ...]
    san_dns: tuple[str, ...]
    san_email: tuple[str, ...]
    san_uri: tuple[str, ...]
    san_ip: tuple[str, ...]
    issuer: tuple[str, ...]
    fingerprint_sha256: tuple[str, ...]


class Identities:
    """The rules of one listener, in order. Principals are cached by certificate: a known client costs one lookup.

    ``permissions`` are those of each rule, by its name; without them, no rule has a policy. ``issuers`` are, by
    identity, the certificates of the CA that must have issued the client's certificate; identities that are missing
    there accept every issuer. The identities in ``issuers`` have minted credentials.
    """

    def __init__(
        self,
        rules: Iterable[IdentityConfig],
        permissions: Mapping[str, Permissions] | None = None,
        issuers: Mapping[str, Sequence[x509.Certificate]] | None = None,
    ) -> None:
        self._rules = [
            (
                rule.match,
                Identity(rule.name, rule.shared, UNRESTRICTED if permissions is None else permissions[rule.name]),
            )
            for rule in rules
        ]
        self._issuers = issuers or {}
        self._known: dict[bytes, Principal | None] = {}

    def __repr__(self) -> str:
        return f"<Identities {len(self._rules)} rules, {len(self._known)} certificates cached>"

    def identify(self, der: bytes) -> Principal | None:
        """Return the principal of a certificate that the handshake has verified, or None if no rule matches.

        The certificate is in DER. Raises one of UNREADABLE_CERTIFICATE if it can't be parsed.
        """
        if der not in self._known:
            principal = self._identify(x509.load_der_x509_certificate(der), der)
            if len(self._known) >= _CACHED:
                self._known.pop(next(iter(self._known)))
            self._known[der] = principal
        return self._known[der]

    def _identify(self, certificate: x509.Certificate, der: bytes) -> Principal | None:
        try:
            facts = read_facts(certificate)
        except ValueError:  # no rule matches names that can't be parsed
            return None
        identity = next(
            (
                identity
                for match, identity in self._rules
                if first_mismatch(match, facts) is None and self._is_of_the_issuer(identity.name, certificate)
            ),
            None,
        )
        if identity is None:
            return None
        return Principal(
            identity,
            certificate.issuer.rfc4514_string(),
            certificate.subject.rfc4514_string() or _names_of(facts),
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
            _own_names(identity, der) if identity.name in self._issuers else None,
        )

    def _is_of_the_issuer(self, identity: str, certificate: x509.Certificate) -> bool:
        """Return True unless the rule is for the clients of one CA, and that CA did not sign this certificate.

        The name of the issuer is not enough: another CA could have an intermediate CA of that name.
        """
        issuers = self._issuers.get(identity)
        return issuers is None or any(has_signed(issuer, certificate) for issuer in issuers)


def has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Return True if a CA, by its name and its key, has issued a certificate itself."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _own_names(identity: Identity, der: bytes) -> OwnNames:
    """Return the names of a client, and their credential: a digest behind the identity, whose name has no slash."""
    digest = hashlib.sha256()
    names = names_of(der)
    for part in (names.issuer, names.subject, names.alternative_names):
        digest.update(b"-" if part is None else len(part).to_bytes(4, "big") + part)
    digest.update(b"critical" if names.is_critical else b"")
    return OwnNames(f"{identity.name}/{digest.hexdigest()}", der)


def _names_of(facts: Facts) -> str:
    return " ".join((*facts.san_uri, *facts.san_dns, *facts.san_email, *facts.san_ip)) or facts.fingerprint_sha256[0]


def read_facts(certificate: x509.Certificate) -> Facts:
    """Return the names of a certificate by which rules match it. Raises ValueError if they can't be parsed."""
    common_names = tuple(str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    names = _alternative_names(certificate)
    return Facts(
        # A certificate with several common names could match a rule for any of them: none of them counts.
        subject_cn=common_names if len(common_names) == 1 else (),
        san_dns=tuple(name.lower() for name in names.get_values_for_type(x509.DNSName)),
        san_email=tuple(lower_domain(name) for name in names.get_values_for_type(x509.RFC822Name)),
        san_uri=tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
        san_ip=tuple(str(address) for address in names.get_values_for_type(x509.IPAddress) if _is_address(address)),
        # RFC 4514 escapes NUL, which would hide NUL from the check for control characters.
        issuer=() if any(is_odd(name.value) for name in certificate.issuer) else (certificate.issuer.rfc4514_string(),),
        fingerprint_sha256=(certificate.fingerprint(hashes.SHA256()).hex(),),
    )


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    """Return the alternative names of a certificate; none if it has none, or if its extensions can't be parsed."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return x509.SubjectAlternativeName([])


def _is_address(value: object) -> bool:
    """Return True for a single address: a certificate can carry a network instead, which names no client."""
    return isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address)


def first_mismatch(match: MatchConfig, facts: Facts) -> str | None:
    """Return the first key of a rule of which no pattern fits a value of the certificate; None if the rule matches."""
    for key in Facts._fields:
        patterns = getattr(match, key)
        if patterns and not any(fits(key, value, pattern) for pattern in patterns for value in getattr(facts, key)):
            return key
    return None
