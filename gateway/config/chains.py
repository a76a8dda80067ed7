"""Faults of certificate files that can be read, and with which peers are refused or refuse: of CAs, and of chains."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa

_SMALLEST_RSA_KEY: Final = 2048  # bits, of OpenSSL's security level 2


def ca_fault(trusted: Sequence[x509.Certificate], *, takes_weak_keys: bool) -> str:
    """Return why no certificate, or hardly any, can be verified with a file of CAs, and what to do; "" if it is sound.

    A certificate that is its own issuer is taken for a root, also if it is a server's.
    """
    roots = [each for each in trusted if each.subject == each.issuer]
    if not roots and not any(map(_may_issue, trusted)):
        return (
            f"holds {_name(trusted[0])}, which is no CA: no certificate can be verified with it; give the root CA:"
            f" its issuer, {trusted[0].issuer.rfc4514_string()}, or the CA above that"
        )
    if not roots:
        return (
            "has no root CA (a certificate that its own subject has issued), so that no certificate can be verified"
            f" with it; add the root that issued {_name(trusted[-1])}"
        )
    weak = next((each for each in roots if 0 < _rsa_bits(each) < _SMALLEST_RSA_KEY), None)
    if weak is not None and not takes_weak_keys:
        return (
            f"has {_name(weak)} with an RSA key of {_rsa_bits(weak)} bits, and OpenSSL refuses what such a CA has"
            f" issued; use a CA with {_SMALLEST_RSA_KEY} bits or more"
        )
    return ""


def chain_fault(chain: Sequence[x509.Certificate]) -> str:
    """Return which certificate of a chain did not issue the one before it, and what to do; "" if all did."""
    for shown, issuer in pairwise(chain):
        if not _has_issued(issuer, shown):
            return (
                f"has {_name(issuer)} after {_name(shown)}, which it did not issue: peers may refuse such a chain;"
                " order it from the first certificate to its issuer and so on, without others"
            )
    return ""


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "a certificate without a subject"


def _may_issue(certificate: x509.Certificate) -> bool:
    """Return True unless a certificate says that it is no CA, or leaves that out."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, ValueError):
        return False
    except UnsupportedAlgorithm:  # not known
        return True
    return True


def _rsa_bits(certificate: x509.Certificate) -> int:
    """Return the length of an RSA key; 0 for another key."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return 0
    return key.key_size if isinstance(key, rsa.RSAPublicKey) else 0
