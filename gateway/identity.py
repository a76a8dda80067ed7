"""Who is calling: from a verified certificate to the rule that names the client and the credential to show for it.

Rules are tried in order and the first that matches counts. Where none does, nobody is let in. A rule matches names, and
those are worth what a listener's CAs say: each listener has Identities of its own, with the rules that hold for it.
"""

import ipaddress
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final, NamedTuple
from unicodedata import category

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from gateway.config import IdentityConfig, MatchConfig

_REMEMBERED: Final = 10_000  # certificates whose principal is remembered


class Identity(NamedTuple):
    """The rule that names a client. Its name is also that of the credential shown to the key managers for it."""

    name: str
    shared: bool


class Principal(NamedTuple):
    """One client under an identity: issuer and subject of its certificate, in RFC 4514 form.

    Where the subject is empty, as in certificates for services, its alternative names stand for it.

    ``not_before`` and ``not_after`` are the certificate's, in Unix seconds.
    """

    identity: Identity
    issuer: str
    subject: str
    not_before: float
    not_after: float

    def is_valid_at(self, now: float) -> bool:
        """Whether the certificate is valid at this Unix time; asked again wherever the handshake did not ask."""
        return self.not_before <= now <= self.not_after


class _Facts(NamedTuple):
    """What a certificate says of its subject, in the form that rules are written in."""

    subject_cn: tuple[str, ...]
    san_dns: tuple[str, ...]
    san_email: tuple[str, ...]
    san_uri: tuple[str, ...]
    san_ip: tuple[str, ...]
    issuer: tuple[str, ...]
    fingerprint_sha256: tuple[str, ...]


class Identities:
    """The ordered rules. Answers are remembered by certificate, so that a kept client costs one look-up."""

    def __init__(self, rules: Iterable[IdentityConfig]) -> None:
        self._rules = [(rule.match, Identity(rule.name, rule.shared)) for rule in rules]
        self._known: dict[bytes, Principal | None] = {}

    def __repr__(self) -> str:
        return f"<Identities {len(self._rules)} rules, {len(self._known)} certificates remembered>"

    def identify(self, der: bytes) -> Principal | None:
        """The principal of a certificate that the handshake has verified, or None where no rule matches.

        The certificate is in DER. Raises one of UNREADABLE_CERTIFICATE where it can't be read.
        """
        if der not in self._known:
            principal = self._identify(x509.load_der_x509_certificate(der))
            if len(self._known) >= _REMEMBERED:
                self._known.pop(next(iter(self._known)))
            self._known[der] = principal
        return self._known[der]

    def _identify(self, certificate: x509.Certificate) -> Principal | None:
        try:
            facts = _read(certificate)
        except ValueError:  # names that can't be read are nobody's
            return None
        identity = next((identity for match, identity in self._rules if _matches(match, facts)), None)
        if identity is None:
            return None
        return Principal(
            identity,
            certificate.issuer.rfc4514_string(),
            certificate.subject.rfc4514_string() or _names_of(facts),
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )


def _names_of(facts: _Facts) -> str:
    return " ".join((*facts.san_uri, *facts.san_dns, *facts.san_email, *facts.san_ip)) or facts.fingerprint_sha256[0]


def _read(certificate: x509.Certificate) -> _Facts:
    common_names = tuple(str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    names = _alternative_names(certificate)
    return _Facts(
        # A certificate with several common names could be taken for any of them: it is taken for none.
        subject_cn=common_names if len(common_names) == 1 else (),
        san_dns=tuple(name.lower() for name in names.get_values_for_type(x509.DNSName)),
        san_email=tuple(_lower_domain(name) for name in names.get_values_for_type(x509.RFC822Name)),
        san_uri=tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
        san_ip=tuple(str(address) for address in names.get_values_for_type(x509.IPAddress) if _is_address(address)),
        # RFC 4514 escapes NUL, which would hide it from the check for control characters.
        issuer=()
        if any(_is_odd(name.value) for name in certificate.issuer)
        else (certificate.issuer.rfc4514_string(),),
        fingerprint_sha256=(certificate.fingerprint(hashes.SHA256()).hex(),),
    )


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    """The certificate's, or none where it has none, or where its extensions can't be read."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return x509.SubjectAlternativeName([])


def _is_address(value: object) -> bool:
    """Whether it is one address: a certificate can be made to carry a network there, which names nobody."""
    return isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address)


def _matches(match: MatchConfig, facts: _Facts) -> bool:
    """Whether every key that the rule names finds one of its patterns among the certificate's values."""
    return all(
        any(_fits(key, value, pattern) for pattern in patterns for value in getattr(facts, key))
        for key in _Facts._fields
        if (patterns := getattr(match, key))
    )


def _fits(key: str, value: str, pattern: str) -> bool:
    if _is_odd(value):
        return False
    match key:
        case "san_ip":
            return ipaddress.ip_address(value) in ipaddress.ip_network(pattern)
        case "fingerprint_sha256":
            return value == pattern
        case "san_dns":
            return _fits_labels(value, pattern.lower())
        case "san_email":
            return _fits_email(value, _lower_domain(pattern))
        case _:
            return fnmatchcase(value, pattern)


def _is_odd(value: str | bytes) -> bool:
    """True for a name with NUL or a control character: no CA means one, and programs differ over where it ends."""
    return isinstance(value, bytes) or any(category(character) == "Cc" for character in value)


def _fits_labels(name: str, pattern: str) -> bool:
    """Whether a DNS name fits label by label: a wildcard stands for characters of one label (RFC 9525 section 6.3)."""
    labels, patterns = name.split("."), pattern.split(".")
    return len(labels) == len(patterns) and all(
        label and fnmatchcase(label, part) for label, part in zip(labels, patterns, strict=True)
    )


def _fits_email(address: str, pattern: str) -> bool:
    """Whether an address fits: its domain label by label, unless the pattern is for all addresses and names none."""
    local, at, domain = pattern.rpartition("@")
    if not at:
        return fnmatchcase(address, pattern)
    of, _, name = address.rpartition("@")
    return fnmatchcase(of, local) and _fits_labels(name, domain)


def _lower_domain(address: str) -> str:
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain.lower()}"
