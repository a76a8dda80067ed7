"""Rules between the credentials of identities: two clients must never become one client to the key managers.

They are checked in a Draft, as the other rules between settings.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from gateway.config.draft import Draft
from gateway.config.files import certificates
from gateway.config.mistakes import At, Mistake
from gateway.config.secret_files import resolved


class _MintedRule(NamedTuple):
    """A rule with minted credentials: its issuing CA, and the CA that issued its clients' certificates."""

    at: At
    issuing_ca: x509.Certificate
    client_issuers: frozenset[x509.Certificate]


def check_credentials(draft: Draft, folder: Path) -> list[Mistake]:
    """Return the mistakes between the credentials of identities. Relative paths begin in ``folder``."""
    minted = list(_minted_rules(draft, folder))
    return [*_shared_issuing_cas(draft, minted), *_issued_beside(draft, minted, folder), *_health_credential(draft)]


def _minted_rules(draft: Draft, folder: Path) -> Iterator[_MintedRule]:
    kinds = {at[1]: kind for at, kind in draft.column("identities", "credential")}
    issuers = {at[1]: value for at, value in draft.column("identities", "client_issuer") if value}
    for at, value in draft.column("identities", "issuing_ca"):
        if value and kinds.get(at[1]) == "minted" and at[1] in issuers:
            own, clients = _read(folder, value), _read(folder, issuers[at[1]])
            if own and clients:
                yield _MintedRule(at, own[0], frozenset(clients))


def _read(folder: Path, path: str) -> list[x509.Certificate]:
    """Return the certificates of a file; none if it can no longer be read."""
    try:
        return certificates(resolved(folder, path))
    except ValueError:
        return []


def _shared_issuing_cas(draft: Draft, minted: list[_MintedRule]) -> Iterator[Mistake]:
    """Reject an issuing CA of two rules with different pinned issuers.

    ``CN=admin`` of one CA would be ``CN=admin`` of the other for the key managers. CAs of the same name count as the
    same, because key managers may know them by their name.
    """
    for index, rule in enumerate(minted):
        for other in minted[:index]:
            if _is_same_ca(rule.issuing_ca, other.issuing_ca) and not _is_same_issuer(rule, other):
                yield Mistake(
                    rule.at,
                    f"is also the issuing CA of {draft.place(other.at)}, or has its name, and client_issuer differs:"
                    " clients of the same name, from two CAs, would be one client to the key managers; give each"
                    " client_issuer an issuing CA of its own, with a name and a key of its own",
                )
                break


def _is_same_ca(one: x509.Certificate, other: x509.Certificate) -> bool:
    return one.subject == other.subject or one.public_key() == other.public_key()


def _is_same_issuer(one: _MintedRule, other: _MintedRule) -> bool:
    """Return True if the CAs of both rules' clients have the same name, and a key in common."""
    return any(
        mine.subject == theirs.subject and mine.public_key() == theirs.public_key()
        for mine in one.client_issuers
        for theirs in other.client_issuers
    )


def _issued_beside(draft: Draft, minted: list[_MintedRule], folder: Path) -> Iterator[Mistake]:
    """Reject a certificate from files that an issuing CA of minted certificates has issued.

    A client of the rule with that name would be taken for the identity of the file.
    """
    for at, value in draft.column("identities", "certificate"):
        shown = _read(folder, value) if value else []
        for rule in minted:
            if shown and _has_issued(rule.issuing_ca, shown[0]):
                yield Mistake(
                    at,
                    f"was issued by the issuing CA of {draft.place(rule.at)}: a client with the same name would be the"
                    " same client to the key managers; give a certificate of a different CA",
                )
                break


def _has_issued(ca: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _health_credential(draft: Draft) -> Iterator[Mistake]:
    """Reject health checks without a credential: a client's own minted one is never used for them."""
    kinds = {at[1]: kind for at, kind in draft.column("identities", "credential")}
    if draft.length("identities") and len(kinds) == draft.length("identities") and set(kinds.values()) == {"minted"}:
        yield Mistake(
            ("identities", 0, "credential"),
            'is "minted" in every identity, and health checks never use a client\'s credential; add an identity with a'
            " certificate of the gateway's own, such as match = { fingerprint_sha256 = ... } of that certificate",
        )
    chosen = draft.setting("health", "credential")
    names = {name: at[1] for at, name in draft.column("identities", "name")}
    if chosen and kinds.get(names.get(chosen, -1)) == "minted":
        yield Mistake(
            ("health", "credential"),
            f'"{chosen}" has minted credentials, which are those of its clients; name an identity with a certificate of'
            " the gateway's own",
        )
