"""The names in a certificate, byte for byte."""

from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from gateway.certificate_names import Names, names_of
from tests.kit.authorities import Ca, common_name

CA = Ca.make("Clients CA")
ODD = x509.Name(
    [
        x509.RelativeDistinguishedName(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, "büro"),
                x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@example.com"),
            ]
        ),
        x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.DN_QUALIFIER, "Example" * 30)]),
    ]
)
WHOLE = CA.issue(ODD, [x509.DNSName("a.example.com")])


def test_names_are_those_of_the_certificate() -> None:
    names = [x509.DNSName("a.example.com"), x509.RFC822Name("a@example.com")]
    found = names_of(CA.issue(ODD, names, is_critical=True))
    assert found.issuer == common_name("Clients CA").public_bytes()
    assert found.subject == ODD.public_bytes()
    assert found.alternative_names == x509.SubjectAlternativeName(names).public_bytes()
    assert found.is_critical
    assert not found.is_empty


def test_a_certificate_without_alternative_names_has_none() -> None:
    assert names_of(CA.issue(common_name("alice")))[1:] == (common_name("alice").public_bytes(), None, False)


def test_a_certificate_that_names_nobody_is_empty() -> None:
    assert names_of(CA.issue(x509.Name([]))).is_empty
    assert not names_of(CA.issue(x509.Name([]), [x509.DNSName("a.example.com")])).is_empty


def test_a_certificate_of_version_1_has_names() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = CA.certificate
    plain = (
        x509.CertificateBuilder(common_name("b"), common_name("a"), key.public_key())
        .serial_number(1)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    der = plain.public_bytes(serialization.Encoding.DER)
    assert names_of(der) == Names(common_name("b").public_bytes(), common_name("a").public_bytes(), None, False)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x30", b"\x30\x00", b"\x30\x80\x00\x00", b"\x30\x85\x01\x01\x01\x01\x01", b"\x30\x04\x30\x02\x02\x05"],
)
def test_bytes_that_are_no_certificate_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="certificate"):
        names_of(data)


@given(st.data())
def test_a_damaged_certificate_raises_nothing_but_value_error(data: st.DataObject) -> None:
    der = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        names_of(bytes(der[: data.draw(st.integers(0, len(der)))]))
