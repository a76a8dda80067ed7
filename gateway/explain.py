"""Explanation: which identity a client's certificate gets on each listener, and why no earlier rule matches.

For ``kmip-gateway check --explain``. The rules, the trust in CAs and the policies are those of a running gateway.
"""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from gateway import tls
from gateway.config import Config, IdentityConfig, ListenerConfig
from gateway.config.files import certificates
from gateway.config.reading import FileError, MissingFileError, read_file
from gateway.config.summary import policy_text
from gateway.errors import ConfigError, MintingError
from gateway.identity import Facts, first_mismatch, has_signed, read_facts
from gateway.kmip.groups import spelled_operation
from gateway.permissions import Permissions
from gateway.revocation import REFUSALS, verified_chain
from gateway.tls.minting import IssuingCa
from gateway.wiring import client_trust, server_context

_SHOWN = 200  # characters of a value of the certificate


class RuleOutcome(NamedTuple):
    """An identity rule beside a certificate. ``reason`` is "" if it matches.

    If a key of ``match`` does not fit, ``key`` is the first such key, ``patterns`` has the rule's patterns, and
    ``values`` the certificate's values.
    """

    identity: str
    reason: str
    key: str = ""
    patterns: Sequence[str] = ()
    values: Sequence[str] = ()


class ListenerOutcome(NamedTuple):
    """A certificate on one listener: ``refusal`` is why it is not trusted, or ""; then ``rules`` are those tried.

    ``identity`` is the rule that counts, or None. ``not_minted`` is why its issuing CA can't issue a certificate with
    the client's names, or "".
    """

    listener: ListenerConfig
    refusal: str
    rules: Sequence[RuleOutcome]
    identity: IdentityConfig | None
    not_minted: str = ""


class Explanation(NamedTuple):
    """A certificate on all listeners. ``notes`` are remarks about its names."""

    certificate: x509.Certificate
    facts: Facts
    notes: Sequence[str]
    listeners: Sequence[ListenerOutcome]

    @property
    def is_served(self) -> bool:
        """True if a client with the certificate is served on at least one listener."""
        return any(outcome.identity is not None and not outcome.not_minted for outcome in self.listeners)


def read_chain(path: Path) -> list[x509.Certificate]:
    """Read a client's certificate, in PEM with or without its chain, or in DER. Raises ConfigError."""
    try:
        data = read_file(path, "a file with a client's certificate")
    except MissingFileError:
        raise ConfigError([f"{path}: there is no such file; give a file with a client's certificate"]) from None
    except FileError as error:
        raise ConfigError([f"{path}: {error.fault}"]) from None
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]
    except ValueError:
        raise ConfigError([f"{path}: holds no certificate that can be read; give one in PEM or DER"]) from None


def explain(config: Config, chain: Sequence[x509.Certificate]) -> Explanation:
    """Explain a certificate, the first of ``chain``. Raises ConfigError if its names can't be parsed."""
    certificate = chain[0]
    try:
        facts = read_facts(certificate)
    except tls.UNREADABLE_CERTIFICATE as error:
        raise ConfigError([f"the certificate's names can't be parsed, and no rule matches it: {error}"]) from None
    outcomes = [_on_listener(config, listener, chain, facts) for listener in config.listeners]
    return Explanation(certificate, facts, list(_notes(certificate)), outcomes)


def _notes(certificate: x509.Certificate) -> Iterator[str]:
    common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(common_names) > 1:
        yield f"it has {len(common_names)} common names, and none of them counts"


def _on_listener(
    config: Config, listener: ListenerConfig, chain: Sequence[x509.Certificate], facts: Facts
) -> ListenerOutcome:
    refusal = _refusal(listener, chain)
    if refusal:
        return ListenerOutcome(listener, refusal, [], None)
    rules = []
    for identity in config.identities:
        outcome = _beside(identity, listener.name, facts, chain[0])
        rules.append(outcome)
        if not outcome.reason:
            return ListenerOutcome(listener, "", rules, identity, _why_not_minted(identity, chain[0]))
    return ListenerOutcome(listener, "", rules, None)


def _refusal(listener: ListenerConfig, chain: Sequence[x509.Certificate]) -> str:
    """Return why a listener refuses a certificate before any rule is tried, or ""."""
    refusal, verified = tls.verify_client(server_context(listener), chain)
    if refusal:
        return f"in the handshake: {refusal} (client_ca = {listener.client_ca.name})"
    leaf, *issuers = (each.public_bytes(Encoding.DER) for each in verified)
    verdict = client_trust(listener).judge(verified_chain(leaf, tuple(issuers)), time.time())
    return f"after the handshake: {REFUSALS[verdict.refusal]}" if verdict.refusal else ""


def _why_not_minted(identity: IdentityConfig, certificate: x509.Certificate) -> str:
    """Try to issue the certificate that key managers are shown; return why that fails, or ""."""
    if identity.credential != "minted":
        return ""
    try:
        IssuingCa.of(identity).issue(certificate.public_bytes(Encoding.DER), datetime.now(UTC))
    except (MintingError, ValueError) as error:
        return str(error)
    return ""


def _beside(identity: IdentityConfig, listener: str, facts: Facts, certificate: x509.Certificate) -> RuleOutcome:
    if identity.listeners and listener not in identity.listeners:
        return RuleOutcome(
            identity.name, f"it is for {_quoted(identity.listeners)} only", "listeners", identity.listeners
        )
    key = first_mismatch(identity.match, facts)
    if key is None:
        pinned = identity.client_issuer
        if pinned is None or any(has_signed(issuer, certificate) for issuer in certificates(pinned)):
            return RuleOutcome(identity.name, "")
        reason = f"it is for clients of the CA in {pinned.name} only, and that CA did not issue the certificate itself"
        return RuleOutcome(identity.name, reason, "client_issuer")
    patterns, values = getattr(identity.match, key), [value[:_SHOWN] for value in getattr(facts, key)]
    has = _quoted(values) if values else f"no usable {key}"
    return RuleOutcome(
        identity.name, f"{key} is {_quoted(patterns)}, and the certificate has {has}", key, patterns, values
    )


def _quoted(names: Sequence[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def lines(explanation: Explanation) -> Iterator[str]:
    """Yield an explanation as text, a line at a time, with control characters escaped."""
    for line in _lines(explanation):
        yield "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


def _lines(explanation: Explanation) -> Iterator[str]:
    certificate = explanation.certificate
    dates = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
    yield f"certificate of {certificate.subject.rfc4514_string() or 'an empty subject'}, valid from {dates}"
    for key in Facts._fields:
        for value in getattr(explanation.facts, key):
            yield f"  {key}: {value[:_SHOWN]}"
    yield from (f"  {note}" for note in explanation.notes)
    for outcome in explanation.listeners:
        yield from _listener_lines(outcome)


def _listener_lines(outcome: ListenerOutcome) -> Iterator[str]:
    listener, identity = outcome.listener, outcome.identity
    yield f"listener {listener.name} on {listener.bind}:"
    if outcome.refusal:
        yield f"  REFUSED {outcome.refusal}"
        return
    yield f"  its certificate is trusted (client_ca = {listener.client_ca.name})"
    for rule in outcome.rules:
        yield f"  identity {rule.identity}: " + (f"does not match: {rule.reason}" if rule.reason else "matches")
    if identity is None:
        yield "  REFUSED: no identity matches; its first request is answered Authentication Not Successful"
        return
    if outcome.not_minted:
        yield f"  REFUSED: each request is answered Authentication Not Successful: {outcome.not_minted}"
        return
    shared = "; all clients of this identity are one client to them" if identity.shared else ""
    yield f"  key managers are shown {_credential(identity)}{shared}"
    yield f"  it may use {policy_text(identity)}"
    yield f"  operations: {', '.join(_operations(identity))}"


def _credential(identity: IdentityConfig) -> str:
    subject = certificates(identity.own_file)[0].subject.rfc4514_string() or "an empty subject"
    if identity.credential == "minted":
        return f"a certificate with its own names, minted by {subject} in {identity.own_file.name}"
    besides = ""
    if identity.credential == "password":
        besides = f", and the password of {identity.username or 'a device'} in each request"
    return f"the certificate of {subject} in {identity.own_file.name}{besides}"


def _operations(identity: IdentityConfig) -> list[str]:
    return [spelled_operation(number) for number in Permissions(identity).allowed()]


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Return an explanation as values that JSON can hold."""
    certificate = explanation.certificate
    return {
        "served": explanation.is_served,
        "certificate": {
            "subject": certificate.subject.rfc4514_string(),
            "not_before": certificate.not_valid_before_utc.isoformat(),
            "not_after": certificate.not_valid_after_utc.isoformat(),
            **{key: list(getattr(explanation.facts, key)) for key in Facts._fields},
            "notes": list(explanation.notes),
        },
        "listeners": [_listener_as_json(outcome) for outcome in explanation.listeners],
    }


def _listener_as_json(outcome: ListenerOutcome) -> dict[str, Any]:
    listener, identity = outcome.listener, outcome.identity
    found: dict[str, Any] = {
        "listener": listener.name,
        "bind": str(listener.bind),
        "trusted": not outcome.refusal,
        "refusal": outcome.refusal,
        "rules": [
            {
                "identity": rule.identity,
                "matches": not rule.reason,
                "reason": rule.reason,
                "key": rule.key,
                "patterns": list(rule.patterns),
                "values": list(rule.values),
            }
            for rule in outcome.rules
        ],
        "identity": None if identity is None else identity.name,
        "not_minted": outcome.not_minted,
    }
    if identity is not None:
        found["shared"] = identity.shared
        found["credential"] = _credential(identity)
        found["policy"] = {
            "allow": list(identity.allow),
            "refuse": list(identity.refuse),
            "object_types": list(identity.object_types),
            "max_batch_items": identity.max_batch_items,
            "operations": _operations(identity),
        }
    return found
