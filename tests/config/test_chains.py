"""Faults of certificate files that can be read."""

from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.config.chains import ca_fault, chain_fault
from tests.kit.authorities import Ca

ROOT = Ca.make("Root")
ISSUING = Ca.make("Issuing", issuer=ROOT)
LEAF = Ca.make("leaf", issuer=ISSUING, is_ca=False)


def test_a_file_of_cas_needs_a_root() -> None:
    assert ca_fault([ROOT.certificate], takes_weak_keys=False) == ""
    assert ca_fault([ISSUING.certificate, ROOT.certificate], takes_weak_keys=False) == ""
    found = ca_fault([ISSUING.certificate], takes_weak_keys=False)
    assert found.startswith("has no root CA (")
    assert found.endswith("; add the root that issued CN=Issuing")


def test_a_certificate_that_is_no_ca_verifies_nothing_but_itself() -> None:
    assert ca_fault([LEAF.certificate], takes_weak_keys=False) == (
        "holds CN=leaf, which is no CA: no certificate can be verified with it; give the root CA: its issuer,"
        " CN=Issuing, or the CA above that"
    )
    self_signed = Ca.make("kms-1", is_ca=False)
    assert ca_fault([self_signed.certificate], takes_weak_keys=False) == ""


def test_a_root_with_a_short_rsa_key_is_refused_by_openssl() -> None:
    weak = Ca.make("Weak", key=rsa.generate_private_key(65537, 1024))  # noqa: S505 - that is the point
    assert ca_fault([weak.certificate], takes_weak_keys=True) == ""
    assert ca_fault([weak.certificate], takes_weak_keys=False) == (
        "has CN=Weak with an RSA key of 1024 bits, and OpenSSL refuses what such a CA has issued; use a CA with 2048"
        " bits or more"
    )
    strong = Ca.make("Strong", key=rsa.generate_private_key(65537, 2048))
    assert ca_fault([strong.certificate], takes_weak_keys=False) == ""


def test_each_certificate_of_a_chain_has_issued_the_one_before_it() -> None:
    leaf, issuing, root = LEAF.certificate, ISSUING.certificate, ROOT.certificate
    other = Ca.make("Root").certificate  # of the same name
    for chain in ([leaf], [leaf, issuing], [leaf, issuing, root]):
        assert chain_fault(chain) == ""
    assert chain_fault([leaf, root, issuing]).startswith("has CN=Root after CN=leaf, which it did not issue: peers")
    assert chain_fault([leaf, issuing, other]).startswith("has CN=Root after CN=Issuing, which it did not issue")
    assert chain_fault([leaf, leaf]).startswith("has CN=leaf after CN=leaf, which it did not issue")
