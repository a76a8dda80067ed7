"""Minted certificates: a client's names byte for byte, never more, and only as the issuing CA permits."""

import ipaddress
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from gateway.certificate_names import names_of
from gateway.config.credentials import MintedKey
from gateway.errors import MintingError
from gateway.tls.minting import IssuingCa
from tests.kit.authorities import Ca, common_name

ROOT = Path(__file__).parents[2]
CLIENTS = Ca.make("Clients CA")
NOW = datetime.now(UTC)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def issuing(ca: Ca, *above: Ca, lifetime: float = 14400, minted_key: MintedKey = "ec-p256") -> IssuingCa:
    chain = [ca.certificate, *(each.certificate for each in above)]
    return IssuingCa(chain, ca.key, lifetime=lifetime, minted_key=minted_key)


@pytest.mark.parametrize(
    ("subject", "names", "is_critical"),
    [
        (common_name("alice"), [], False),
        (common_name("alice"), [x509.DNSName("a.example.com"), x509.UniformResourceIdentifier("spiffe://a/b")], False),
        (x509.Name([]), [x509.RFC822Name("a@example.com")], True),
        (
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
                    x509.NameAttribute(NameOID.COMMON_NAME, "müller", x509.name._ASN1Type.BMPString),
                ]
            ),
            [x509.DirectoryName(common_name("other"))],
            False,
        ),
    ],
)
def test_subject_and_alternative_names_are_copied(
    subject: x509.Name, names: list[x509.GeneralName], is_critical: bool
) -> None:
    client = CLIENTS.issue(subject, names, is_critical=is_critical)
    minted = issuing(Ca.make("Issuing CA")).issue(client, NOW)
    assert names_of(der(minted.certificate))[1:] == names_of(client)[1:]
    assert names_of(der(minted.certificate)).issuer == common_name("Issuing CA").public_bytes()


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        (common_name("admin\0.example.com"), []),
        (common_name("admin\n"), []),
        (common_name("alice"), [x509.DNSName("admin\0.example.com")]),
        (common_name("alice"), [x509.RFC822Name("admin@example.com\0.org")]),
        (common_name("alice"), [x509.UniformResourceIdentifier("spiffe://a/admin\0b")]),
        (common_name("alice"), [x509.DirectoryName(common_name("admin\0b"))]),
    ],
)
def test_a_name_with_a_control_character_is_not_shown(subject: x509.Name, names: list[x509.GeneralName]) -> None:
    client = CLIENTS.issue(subject, names)
    with pytest.raises(MintingError, match="control character"):
        issuing(Ca.make("Issuing CA")).issue(client, NOW)


def test_a_minted_certificate_signs_for_a_client_and_is_no_ca() -> None:
    ca = Ca.make("Issuing CA")
    minted = issuing(ca).issue(CLIENTS.issue(common_name("alice")), NOW).certificate
    minted.verify_directly_issued_by(ca.certificate)
    values = {type(each.value): each.value for each in minted.extensions}
    assert values[x509.BasicConstraints] == x509.BasicConstraints(ca=False, path_length=None)
    assert values[x509.ExtendedKeyUsage] == x509.ExtendedKeyUsage([x509.OID_CLIENT_AUTH])
    assert values[x509.KeyUsage].digital_signature
    assert not values[x509.KeyUsage].key_encipherment
    assert len(values) == 5  # and both key identifiers


def test_each_client_has_a_key_of_its_own() -> None:
    ca, client = issuing(Ca.make("Issuing CA")), CLIENTS.issue(common_name("alice"))
    one, two = (ca.issue(client, NOW) for _ in range(2))
    assert one.certificate.public_key() != two.certificate.public_key()
    assert one.certificate.serial_number != two.certificate.serial_number


def test_a_certificate_is_valid_for_its_lifetime_and_for_clocks_that_are_behind() -> None:
    minted = issuing(Ca.make("Issuing CA"), lifetime=3600).issue(CLIENTS.issue(common_name("alice")), NOW)
    whole = NOW.replace(microsecond=0)
    assert minted.certificate.not_valid_before_utc == whole - timedelta(minutes=5)
    assert minted.certificate.not_valid_after_utc == whole + timedelta(hours=1)
    assert minted.renew_at == pytest.approx(NOW.timestamp() + 2400)
    ends = [minted.session_ends(fraction) for fraction in (0, 0.5, 1)]
    assert minted.renew_at == ends[0] < ends[1] < ends[2] < minted.ends


def test_a_certificate_does_not_outlive_its_ca() -> None:
    ca = Ca.make("Issuing CA", ends=NOW + timedelta(minutes=10))
    minted = issuing(ca).issue(CLIENTS.issue(common_name("alice")), NOW)
    assert minted.certificate.not_valid_after_utc == ca.certificate.not_valid_after_utc


@pytest.mark.parametrize("moment", [NOW + timedelta(days=2), NOW - timedelta(days=2)])
def test_a_ca_that_is_not_valid_issues_nothing(moment: datetime) -> None:
    with pytest.raises(MintingError, match=r"the issuing CA is valid from .* renew issuing_ca"):
        issuing(Ca.make("Issuing CA")).issue(CLIENTS.issue(common_name("alice")), moment)


def constrained(*, permitted: str = "", excluded: str = "") -> Ca:
    return Ca.make(
        "Constrained CA",
        constraints=x509.NameConstraints(
            [x509.DNSName(permitted)] if permitted else None, [x509.DNSName(excluded)] if excluded else None
        ),
    )


@pytest.mark.parametrize("depth", [0, 1])
def test_a_name_constrained_ca_issues_only_what_it_permits(depth: int) -> None:
    top = constrained(permitted="example.com")
    chain = [top] if not depth else [Ca.make("Issuing CA", issuer=top), top]
    ca = issuing(*chain)
    inside = CLIENTS.issue(common_name("alice"), [x509.DNSName("a.example.com")])
    outside = CLIENTS.issue(common_name("alice"), [x509.DNSName("a.example.org")])
    ca.issue(inside, NOW)
    with pytest.raises(MintingError, match=r"does not permit the names .*permitted subtree violation"):
        ca.issue(outside, NOW)


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    """The issuing CA that docs/certificates.md makes."""
    folder = tmp_path_factory.mktemp("documented")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "certificates.md").read_text(), re.DOTALL)
    (functions,) = (block.partition("key()")[2].partition("\nca gateway-ca")[0] for block in blocks if "key()" in block)
    (commands,) = (block for block in blocks if block.startswith("key storage-at-kms-ca"))
    script = f"set -e\nkey(){functions}\n{commands}"
    subprocess.run(["bash", "-c", script], cwd=folder, check=True, capture_output=True)
    key = serialization.load_pem_private_key((folder / "storage-at-kms-ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Ca(x509.load_pem_x509_certificate((folder / "storage-at-kms-ca.pem").read_bytes()), key)


def of_storage(name: str) -> x509.Name:
    """Return a subject that begins as docs/certificates.md has it."""
    return x509.Name.from_rfc4514_string(f"CN={name},OU=Storage,O=Example")


@pytest.mark.parametrize("name", ["array-3.storage.example.com", "any-name-without-a-dot"])
def test_the_documented_ca_issues_for_its_clients(documented: Ca, name: str) -> None:
    client = CLIENTS.issue(of_storage(name), [x509.DNSName("array-3.storage.example.com")])
    issuing(documented).issue(client, datetime.now(UTC))


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        (common_name("admin"), []),
        (x509.Name.from_rfc4514_string("CN=admin,O=Example"), []),
        (x509.Name.from_rfc4514_string("OU=Storage,O=Example,CN=admin"), []),
        (of_storage("admin.example.com"), []),
        (of_storage("a"), [x509.DNSName("admin.example.com")]),
        (of_storage("a"), [x509.RFC822Name("admin@example.com")]),
        (of_storage("a"), [x509.UniformResourceIdentifier("spiffe://example.com/admin")]),
        (of_storage("a"), [x509.IPAddress(ipaddress.ip_address("10.0.0.1"))]),
        (of_storage("a"), [x509.IPAddress(ipaddress.ip_address("2001:db8::1"))]),
        (of_storage("a"), [x509.DirectoryName(common_name("admin"))]),
    ],
)
def test_the_documented_ca_issues_only_the_documented_names(
    documented: Ca, subject: x509.Name, names: list[x509.GeneralName]
) -> None:
    with pytest.raises(MintingError, match="subtree violation"):
        issuing(documented).issue(CLIENTS.issue(subject, names), datetime.now(UTC))


def test_an_excluded_name_is_refused() -> None:
    ca = issuing(constrained(excluded="admin.example.com"))
    with pytest.raises(MintingError, match="excluded subtree violation"):
        ca.issue(CLIENTS.issue(common_name("x"), [x509.DNSName("admin.example.com")]), NOW)


def test_a_client_without_names_is_refused() -> None:
    with pytest.raises(MintingError, match="neither a subject nor alternative names"):
        issuing(Ca.make("Issuing CA")).issue(CLIENTS.issue(x509.Name([])), NOW)


@pytest.mark.parametrize(("kind", "size"), [("ec-p256", 256), ("ec-p384", 384), ("rsa-2048", 2048)])
def test_keys_are_of_the_configured_kind(kind: MintedKey, size: int) -> None:
    ca = issuing(Ca.make("Issuing CA"), minted_key=kind)
    key = ca.issue(CLIENTS.issue(common_name("alice")), NOW).certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    assert key.key_size == size
    assert ca.is_slow == kind.startswith("rsa")


def test_an_issuing_ca_may_have_any_usual_key() -> None:
    client = CLIENTS.issue(common_name("alice"))
    for key in (
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ):
        ca = Ca.make("Issuing CA", key=key)
        IssuingCa([ca.certificate], key).issue(client, NOW).certificate.verify_directly_issued_by(ca.certificate)


def test_the_root_is_not_shown_and_other_cas_are() -> None:
    root = Ca.make("Root")
    below = Ca.make("Issuing CA", issuer=root)
    assert issuing(below, root).shown_chain == [below.certificate]
    assert issuing(root).shown_chain == []


def test_repr_of_a_minted_certificate_shows_no_key() -> None:
    minted = issuing(Ca.make("Issuing CA")).issue(CLIENTS.issue(common_name("alice")), NOW)
    assert repr(minted).startswith("<MintedCertificate until ")
