"""Revocation: which certificates of peers are accepted after their handshake, by validity, trusted CAs and CRLs.

OpenSSL verifies a chain in a full handshake. A resumed handshake verifies nothing, and a connection may outlive its
certificate, its CA or the absence of its revocation. So the facts of each verified chain are kept (``Chains``), and
judged again (``Trust``) for each connection, and for all connections when a CRL, a CA or the time has changed.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from gateway.config.crls import Crl, distribution_points, issuer_key, missing_lists, read_crls
from gateway.config.files import certificates

_REMEMBERED: Final = 20_000  # chains, some 400 bytes each; one for each certificate of a client
_INTERNED: Final = 1000  # combinations of CA certificates


class _Link(NamedTuple):
    """A certificate of a chain that the next one has issued: the issuer's ``issuer_key`` and the serial number."""

    issuer: bytes
    serial: int
    points: frozenset[str]
    is_ca: bool


class Chain(NamedTuple):
    """The facts of a verified chain: its certificates without the root, the root's digest, and its dates (Unix s)."""

    links: tuple[_Link, ...]
    anchor: bytes
    begins: float
    ends: float


class Chains:
    """The chains of the peers that shook hands in full, by the peer's certificate: the least recently used goes."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._known: dict[bytes, Chain] = {}
        self._interned: dict[tuple[bytes, ...], Chain] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"<Chains: {len(self)} certificates>"

    def verified(self, certificate: bytes, issuers: tuple[bytes, ...]) -> Chain:
        """Return the chain of a full handshake, and remember it: the peer's certificate and its issuers, in DER.

        The issuers are in order, the root last. Raises an exception of ``cryptography`` for a certificate that OpenSSL
        accepts and ``cryptography`` can't parse.
        """
        key = hashlib.sha256(certificate).digest()
        chain = self._known.pop(key, None)
        above = self._interned.get(issuers)
        if above is None:
            above = _chain_of([x509.load_der_x509_certificate(der) for der in issuers])
            if len(self._interned) >= _INTERNED:
                self._interned.clear()
            self._interned[issuers] = above
        if chain is None or chain.anchor != above.anchor or chain.links[1:] != above.links:
            chain = verified_chain(certificate, issuers, above)
        self._remember(key, chain)
        return chain

    def resumed(self, certificate: bytes) -> Chain | None:
        """Return the chain of the full handshake before, or None if it was forgotten."""
        key = hashlib.sha256(certificate).digest()
        chain = self._known.pop(key, None)
        if chain is not None:
            self._remember(key, chain)
        return chain

    def _remember(self, key: bytes, chain: Chain) -> None:
        if len(self._known) >= self._most:
            self._known.pop(next(iter(self._known)))
        self._known[key] = chain


def verified_chain(certificate: bytes, issuers: tuple[bytes, ...], above: Chain | None = None) -> Chain:
    """Return the chain of a peer's certificate and its issuers, in DER; ``above`` is that of the issuers, if known."""
    leaf = x509.load_der_x509_certificate(certificate)
    if not issuers:
        return _chain_of([leaf])
    above = above or _chain_of([x509.load_der_x509_certificate(der) for der in issuers])
    return Chain(
        (_link(leaf, x509.load_der_x509_certificate(issuers[0]), is_ca=False), *above.links),
        above.anchor,
        max(above.begins, leaf.not_valid_before_utc.timestamp()),
        min(above.ends, leaf.not_valid_after_utc.timestamp()),
    )


def _chain_of(certificates: Sequence[x509.Certificate]) -> Chain:
    """Return the facts of a chain of CA certificates, the root last; of none if there are none."""
    links = tuple(_link(certificate, issuer, is_ca=True) for certificate, issuer in pairwise(certificates))
    return Chain(
        links,
        _digest(certificates[-1]) if certificates else b"",
        max((each.not_valid_before_utc.timestamp() for each in certificates), default=0.0),
        min((each.not_valid_after_utc.timestamp() for each in certificates), default=float("inf")),
    )


def _link(certificate: x509.Certificate, issuer: x509.Certificate, *, is_ca: bool) -> _Link:
    return _Link(issuer_key(issuer), certificate.serial_number, distribution_points(certificate), is_ca)


def _digest(certificate: x509.Certificate) -> bytes:
    return certificate.fingerprint(hashes.SHA256())


class Verdict(NamedTuple):
    """Why a chain is not accepted, as a label, or ""; and the time (Unix s) from which on that may be otherwise."""

    refusal: str
    until: float = float("inf")


#: The refusals of ``Trust``, and what a refused client is told.
REFUSALS: Final = {
    "revoked": "the client certificate, or a CA certificate above it, has been revoked; connect with another one",
    "expired": "the client certificate, or a CA certificate above it, has expired; connect with a valid certificate",
    "not_yet_valid": "the client certificate, or a CA certificate above it, is not valid yet; set the clocks",
    "unknown_ca": "the CA of the client certificate is no longer trusted; connect with a certificate of a trusted CA",
    "crl_stale": (
        "the gateway has no current revocation list for the client certificate; ask its operator to fetch the list"
    ),
    "unreadable": "the client certificate, or a CA certificate above it, can't be read; connect with another one",
    "chain_unknown": "the gateway no longer knows the CAs of this TLS session; connect without resuming it",
}


class Trust:
    """The CAs of one listener or key manager, and their CRLs. Values never change: a reload makes another Trust.

    ``lists`` is None if no CRL is configured. Otherwise a certificate for which no current list speaks is accepted only
    if ``accepts_stale``; a list that is out of date revokes nevertheless.
    """

    def __init__(
        self, authorities: Sequence[x509.Certificate], lists: Iterable[Crl] | None, *, accepts_stale: bool
    ) -> None:
        self._authorities = authorities
        self._anchors = frozenset(map(_digest, authorities))
        self.accepts_stale = accepts_stale
        self.lists = None if lists is None else tuple(lists)
        self._by_issuer: Mapping[bytes, tuple[Crl, ...]] | None = None
        if self.lists is not None:
            issuers = {each.issuer for each in self.lists}
            self._by_issuer = {
                issuer: tuple(each for each in self.lists if each.issuer == issuer) for issuer in issuers
            }

    def __repr__(self) -> str:
        return f"<Trust: {len(self._anchors)} CAs, {'no CRLs' if self.lists is None else f'{len(self.lists)} CRLs'}>"

    @classmethod
    def load(cls, ca: Path, crls: Sequence[Path], *, accepts_stale: bool) -> "Trust":
        """Read the files. Takes long for long lists: call it in a thread. Raises ValueError."""
        authorities = certificates(ca)
        return cls(authorities, read_crls(crls, authorities, ca) if crls else None, accepts_stale=accepts_stale)

    def missing(self, now: float) -> list[str]:
        """Return the names of the CAs that are valid at a time (Unix s) and should have a CRL, and have none."""
        return [] if self.lists is None else missing_lists(self._authorities, self.lists, now)

    def judge(self, chain: Chain | None, now: float) -> Verdict:
        """Return the verdict on a verified chain at a time (Unix s); None is a chain that was forgotten."""
        if chain is None:
            refusal = "chain_unknown"
        elif chain.anchor not in self._anchors:
            refusal = "unknown_ca"
        elif now > chain.ends:
            refusal = "expired"
        elif now < chain.begins:
            refusal = "not_yet_valid"
        else:
            return self._look_up(chain, now)
        return Verdict(refusal)

    def _look_up(self, chain: Chain, now: float) -> Verdict:
        until, refusal = chain.ends, ""
        for link in chain.links if self._by_issuer is not None else ():
            is_current = self.accepts_stale
            for each in (self._by_issuer or {}).get(link.issuer, ()):
                if link.serial in each.serials:
                    return Verdict("revoked")
                is_in_time = each.begins <= now <= each.ends
                if is_in_time and not self.accepts_stale and each.speaks_for(link.points, is_ca=link.is_ca):
                    is_current = True
                    until = min(until, each.ends)
            if not is_current:
                refusal = "crl_stale"
        return Verdict(refusal, until)


class TrustInUse(NamedTuple):
    """The Trust of a listener (role "client") or of a key manager (role "backend"), and its name."""

    role: str
    name: str
    trust: Trust
