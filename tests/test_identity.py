"""Identity: from a certificate to the first rule that matches; certificates with odd names match no rule."""

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from gateway import identity
from gateway.config import IdentityConfig, MatchConfig
from gateway.identity import Identities, Identity, Principal
from tests.kit.authorities import Ca
from tests.kit.authorities import common_name as named

KEY = ec.generate_private_key(ec.SECP256R1())
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
SUBJECT_ALTERNATIVE_NAME = x509.ObjectIdentifier("2.5.29.17")


def name(*common_names: str, organization: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name) for common_name in common_names]
    if organization is not None:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def certificate(
    *common_names: str,
    issuer: x509.Name | None = None,
    sans: tuple[x509.GeneralName, ...] = (),
    raw_san: str | None = None,
    days: int = 365,
) -> x509.Certificate:
    """Return a client's certificate. ``raw_san`` is the extension in hexadecimal, for values that libraries refuse."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(*common_names))
        .issuer_name(issuer or name("Clients CA"))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(BEGIN)
        .not_valid_after(BEGIN + timedelta(days=days))
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    if raw_san is not None:
        extension = x509.UnrecognizedExtension(SUBJECT_ALTERNATIVE_NAME, bytes.fromhex(raw_san))
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256())


def rule(rule_name: str, *, shared: bool = False, **match: Any) -> IdentityConfig:
    return IdentityConfig.model_construct(name=rule_name, match=MatchConfig(**match), shared=shared)


def der(of: x509.Certificate) -> bytes:
    return of.public_bytes(Encoding.DER)


def who(caller: x509.Certificate, *rules: IdentityConfig) -> str | None:
    principal = Identities(rules).identify(der(caller))
    return None if principal is None else principal.identity.name


def matches(caller: x509.Certificate, **match: Any) -> bool:
    return who(caller, rule("it", **match)) == "it"


# One key after the other ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("web-1", True),
        ("web-*", True),
        ("web-?", True),
        ("web-[0-9]", True),
        ("*", True),
        ("WEB-1", False),
        ("web", False),
        ("web-", False),
        ("eb-1", False),
        (("db-1", "web-1"), True),
        (("db-1", "db-2"), False),
    ],
)
def test_a_common_name_matches_as_it_is_or_by_a_pattern(pattern: object, expected: bool) -> None:
    assert matches(certificate("web-1"), subject_cn=pattern) is expected


def test_a_pattern_must_match_the_whole_common_name() -> None:
    for common_name in ("web-1\nadmin", "admin,CN=web-1", "xweb-1", "web-1 "):
        assert not matches(certificate(common_name), subject_cn="web-1")


@pytest.mark.parametrize("common_names", [(), ("alice", "bob"), ("alice", "alice")])
def test_several_common_names_match_nothing(common_names: tuple[str, ...]) -> None:
    caller = certificate(*common_names)

    assert not matches(caller, subject_cn="alice")
    assert not matches(caller, subject_cn="*")
    assert matches(caller, issuer="CN=Clients CA")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("app.example.com", True),
        ("APP.Example.com", True),
        ("*.example.com", True),
        ("other.example.net", True),
        ("example.com", False),
        ("*.com", False),
        ("*", False),
        ("app.*.com", True),
        ("a*.example.com", True),
        ("app*com", False),
        ("app?example.com", False),
        ("app[.]example.com", False),
    ],
)
def test_a_dns_name_matches_without_regard_to_case(pattern: str, expected: bool) -> None:
    caller = certificate("x", sans=(x509.DNSName("App.EXAMPLE.com"), x509.DNSName("other.example.net")))

    assert matches(caller, san_dns=pattern) is expected


@pytest.mark.parametrize(
    "san", ["a.b.apps.example.com", "apps.example.com", ".apps.example.com", "a.apps.example.com."]
)
def test_a_wildcard_stands_for_one_label_of_a_dns_name(san: str) -> None:
    caller = certificate("x", sans=(x509.DNSName(san),))

    assert not matches(caller, san_dns="*.apps.example.com")


@pytest.mark.parametrize("odd", ["\0", "\n", "\t", "\x1b", "\x7f", "\x85"])
@pytest.mark.parametrize("place", ["{}alice", "ali{}ce", "alice{}"])
def test_a_name_with_a_control_character_matches_nothing(odd: str, place: str) -> None:
    odd_name = place.format(odd)
    caller = certificate(odd_name, issuer=name(odd_name))

    assert not matches(caller, subject_cn="*")
    assert not matches(caller, subject_cn=odd_name)
    assert not matches(caller, issuer="*")


@pytest.mark.parametrize("odd", ["\0", "\n", "\x7f"])
def test_an_alternative_name_with_a_control_character_matches_nothing(odd: str) -> None:
    """The library refuses to make some of these certificates; the software of other CAs makes them."""
    names = {
        "san_dns": x509.DNSName(f"a{odd}.apps.example.com"),
        "san_email": x509.RFC822Name(f"a{odd}@example.com"),
        "san_uri": x509.UniformResourceIdentifier(f"spiffe://example.com/a{odd}"),
    }
    caller = certificate("x", sans=tuple(names.values()))

    assert not matches(caller, san_dns="*.apps.example.com")
    assert not matches(caller, san_email="*@example.com")
    assert not matches(caller, san_uri="spiffe://example.com/*")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("ops@example.com", True),
        ("ops@EXAMPLE.com", True),
        ("*@example.com", True),
        ("OPS@example.com", False),
        ("ops@example.org", False),
        ("*@*.com", True),
        ("*@*", False),
        ("*com", True),
        ("ops@*", False),
    ],
)
def test_only_the_domain_of_an_email_address_ignores_case(pattern: str, expected: bool) -> None:
    assert matches(certificate("x", sans=(x509.RFC822Name("ops@Example.com"),)), san_email=pattern) is expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("spiffe://example/web", True), ("spiffe://example/*", True), ("spiffe://EXAMPLE/web", False), ("*/db", False)],
)
def test_a_uri_matches_as_it_is_written(pattern: str, expected: bool) -> None:
    caller = certificate("x", sans=(x509.UniformResourceIdentifier("spiffe://example/web"),))

    assert matches(caller, san_uri=pattern) is expected


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("10.1.2.3", True),
        ("10.1.0.0/16", True),
        ("10.2.0.0/16", False),
        ("2001:db8::1", True),
        ("2001:db8::/32", True),
        ("2001:db9::/32", False),
        ("0.0.0.0/0", True),
    ],
)
def test_an_ip_address_matches_an_address_or_a_network(network: str, expected: bool) -> None:
    addresses = (
        x509.IPAddress(ipaddress.ip_address("10.1.2.3")),
        x509.IPAddress(ipaddress.ip_address("2001:0db8::1")),
    )

    assert matches(certificate("x", sans=addresses), san_ip=network) is expected


def test_an_issuer_matches_by_its_whole_name() -> None:
    caller = certificate("x", issuer=name("Clients CA", organization="Example"))

    assert matches(caller, issuer="CN=Clients CA,O=Example")
    assert matches(caller, issuer="*,O=Example")
    assert not matches(caller, issuer="CN=Clients CA")


def test_a_fingerprint_matches_however_it_is_written() -> None:
    caller = certificate("x")
    digits = caller.fingerprint(hashes.SHA256()).hex()
    colons = ":".join(digits[place : place + 2] for place in range(0, 64, 2)).upper()

    assert matches(caller, fingerprint_sha256=digits)
    assert matches(caller, fingerprint_sha256=colons)
    assert not matches(certificate("x", days=1), fingerprint_sha256=digits)


def test_all_keys_of_a_rule_must_match() -> None:
    caller = certificate("web-1", sans=(x509.DNSName("web-1.example.com"),))

    assert matches(caller, subject_cn="web-1", san_dns="*.example.com", issuer="CN=Clients CA")
    assert not matches(caller, subject_cn="web-1", san_dns="*.example.org")
    assert not matches(caller, subject_cn="web-1", san_email="*")


# Rules ---------------------------------------------------------------------------------------------------------------

RULES = (rule("first", subject_cn="web-*"), rule("second", subject_cn="*-1"), rule("rest", shared=True, subject_cn="*"))


@pytest.mark.parametrize(("common_name", "expected"), [("web-1", "first"), ("db-1", "second"), ("db-2", "rest")])
def test_the_first_rule_that_matches_counts(common_name: str, expected: str) -> None:
    assert who(certificate(common_name), *RULES) == expected


def test_a_client_without_a_matching_rule_has_no_principal() -> None:
    assert who(certificate("mallory"), rule("alice", subject_cn="alice")) is None
    assert who(certificate("alice")) is None


def test_a_principal_is_known_by_issuer_and_subject() -> None:
    identities = Identities([rule("all", shared=True, subject_cn="*")])

    alice = identities.identify(der(certificate("alice")))
    renewed = identities.identify(der(certificate("alice", days=2)))
    other = identities.identify(der(certificate("alice", issuer=name("Other CA"))))

    assert alice is not None
    assert renewed is not None
    assert other is not None
    assert (alice.issuer, alice.subject, alice.identity) == ("CN=Clients CA", "CN=alice", Identity("all", shared=True))
    assert (renewed.issuer, renewed.subject) == (alice.issuer, alice.subject)
    assert (other.issuer, other.subject) != (alice.issuer, alice.subject)


def test_principals_without_a_subject_differ_by_alternative_names() -> None:
    """As in certificates of services: otherwise they all would be one client under their rule."""
    identities = Identities([rule("all", shared=True, issuer="CN=Clients CA")])
    names = [(x509.UniformResourceIdentifier(f"spiffe://example.com/{who}"),) for who in ("backup", "web")]

    backup, web = (identities.identify(der(certificate(sans=sans))) for sans in names)
    nobody = identities.identify(der(certificate()))

    assert backup is not None
    assert web is not None
    assert nobody is not None
    assert (backup.subject, web.subject) == ("spiffe://example.com/backup", "spiffe://example.com/web")
    assert len(nobody.subject) == 64


def test_a_certificate_is_valid_from_its_first_second_to_its_last() -> None:
    principal = Identities([rule("all", subject_cn="*")]).identify(der(certificate("alice", days=1)))
    begin, end = BEGIN.timestamp(), BEGIN.timestamp() + 86400

    assert principal is not None
    assert [principal.is_valid_at(moment) for moment in (begin - 1, begin, end, end + 1)] == [False, True, True, False]


# Remembering ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[x509.Certificate]:
    """Return a list to which each certificate is added whenever it is parsed."""
    seen: list[x509.Certificate] = []
    look: Callable[[Identities, x509.Certificate, bytes], Principal | None] = Identities._identify

    def looks(identities: Identities, caller: x509.Certificate, der: bytes) -> Principal | None:
        seen.append(caller)
        return look(identities, caller, der)

    monkeypatch.setattr(Identities, "_identify", looks)
    return seen


def test_a_certificate_is_parsed_once(looked_at: list[x509.Certificate]) -> None:
    identities = Identities([rule("alice", subject_cn="alice")])
    alice, mallory = certificate("alice"), certificate("mallory")

    for _ in range(3):
        assert identities.identify(der(alice)) is not None
        assert identities.identify(der(mallory)) is None

    assert len(looked_at) == 2
    assert repr(identities) == "<Identities 1 rules, 2 certificates cached>"


def test_the_cache_of_principals_is_bounded(looked_at: list[x509.Certificate], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_CACHED", 2)
    identities = Identities([rule("all", subject_cn="*")])
    one, two, three = certificate("one"), certificate("two"), certificate("three")

    for caller in (one, two, three, three, one):
        assert identities.identify(der(caller)) is not None

    assert looked_at == [one, two, three, one]
    assert repr(identities) == "<Identities 1 rules, 2 certificates cached>"


# Certificates that are odd, though the CA has signed them ------------------------------------------------------------

ODD_NAMES = {
    "an X.400 address": "3004a3020500",
    "an EDI party": "3006a504a1020c00",
    "an address of five bytes": "300787050000000000",
    "no names at all": "3000",
    "no ASN.1": "676172626167652121",
}


@pytest.mark.parametrize("raw_san", ODD_NAMES.values(), ids=ODD_NAMES.keys())
def test_unreadable_alternative_names_match_nothing(raw_san: str) -> None:
    caller = certificate("alice", raw_san=raw_san)

    assert who(caller, rule("by-name", san_dns="*"), rule("by-ip", san_ip="0.0.0.0/0"), *RULES) == "rest"


def test_a_network_as_alternative_name_matches_nothing() -> None:
    caller = certificate("alice", raw_san="300a8708" + "0a000000ff000000")  # 10.0.0.0/8

    assert who(caller, rule("by-ip", san_ip="10.0.0.0/8"), *RULES) == "rest"


def test_with_two_lists_of_alternative_names_only_the_subject_matches() -> None:
    """No library makes such a certificate: two private extensions are renamed in place."""
    builder = x509.CertificateBuilder(name("Clients CA"), name("alice"), KEY.public_key(), 1, BEGIN, BEGIN)
    names = bytes.fromhex("3011820f") + b"app.example.com"
    for oid in ("2.5.29.98", "2.5.29.99"):
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), names)
        builder = builder.add_extension(extension, critical=False)
    der = builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)
    for last in (98, 99):
        der = der.replace(bytes([0x06, 0x03, 0x55, 0x1D, last]), bytes([0x06, 0x03, 0x55, 0x1D, 17]))
    caller = x509.load_der_x509_certificate(der)

    with pytest.raises(x509.DuplicateExtension):
        _ = caller.extensions
    assert who(caller, rule("by-name", san_dns="*"), *RULES) == "rest"


def test_an_unreadable_subject_matches_nothing() -> None:
    der = certificate("ABCDEFGH").public_bytes(Encoding.DER)
    unreadable = x509.load_der_x509_certificate(der.replace(b"ABCDEFGH", b"\xff\xfe\xfd\xfc\xff\xfe\xfd\xfc"))

    assert who(unreadable, rule("by-issuer", issuer="*"), *RULES) is None


# Rules for the clients of one CA --------------------------------------------------------------------------------------


CLIENTS, OTHERS = Ca.make("Clients CA"), Ca.make("Others CA")
MINTED = [rule("storage", subject_cn="*"), rule("databases", subject_cn="*")]
ISSUERS = {"storage": [CLIENTS.certificate], "databases": [OTHERS.certificate]}


def pinned(caller: bytes) -> Principal | None:
    return Identities(MINTED, issuers=ISSUERS).identify(caller)


def test_a_rule_for_one_ca_matches_its_clients_only() -> None:
    found = [pinned(ca.issue(named("admin"))) for ca in (CLIENTS, OTHERS)]
    assert [it and it.identity.name for it in found] == ["storage", "databases"]


def test_a_ca_of_the_same_name_is_another_ca() -> None:
    impostor = Ca.make("Clients CA", issuer=OTHERS)
    assert pinned(impostor.issue(named("admin"))) is None


def test_a_renewed_ca_of_the_same_key_is_the_same_ca() -> None:
    renewed = Ca.make("Clients CA", key=CLIENTS.key)
    assert pinned(renewed.issue(named("admin"))) is not None


def test_a_certificate_below_an_intermediate_ca_is_not_of_the_root() -> None:
    assert pinned(Ca.make("Intermediate CA", issuer=CLIENTS).issue(named("admin"))) is None


def credential_of(caller: bytes) -> str:
    principal = pinned(caller)
    assert principal is not None
    assert principal.names is not None
    assert principal.names.certificate == caller
    assert principal.credential == principal.names.credential
    return principal.credential


def test_each_set_of_names_has_a_credential_of_its_own() -> None:
    sans: list[list[x509.GeneralName]] = [
        [],
        [x509.DNSName("a.example.com")],
        [x509.DNSName("b.example.com")],
        [x509.RFC822Name("a.example.com")],
    ]
    callers = [CLIENTS.issue(named(cn), san) for cn in ("alice", "bob") for san in sans]
    callers += [CLIENTS.issue(named("alice"), sans[1], is_critical=True), OTHERS.issue(named("alice"))]
    found = [credential_of(caller) for caller in callers]
    assert len(set(found)) == len(callers)
    assert all(it.startswith("storage/") for it in found[:-1])
    assert found[-1].startswith("databases/")


def test_a_renewed_certificate_has_the_same_credential() -> None:
    names = [x509.DNSName("a.example.com")]
    assert len({credential_of(CLIENTS.issue(named("alice"), names)) for _ in range(3)}) == 1


def test_other_rules_show_the_credential_of_their_identity() -> None:
    principal = Identities([rule("alice", subject_cn="alice")]).identify(der(certificate("alice")))
    assert principal is not None
    assert principal.names is None
    assert principal.credential == "alice"


def test_repr_of_names_shows_no_certificate() -> None:
    principal = pinned(CLIENTS.issue(named("alice")))
    assert principal is not None
    assert repr(principal.names) == f"<OwnNames {principal.credential}>"
