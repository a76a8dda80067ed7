"""Revocation: chains are remembered and judged by CAs, validity and CRLs."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.config.crls import read_crls
from gateway.revocation import REFUSALS, Chain, Chains, Trust, Verdict, verified_chain
from tests.kit.revocation import DAY, HOUR, TestCa

ROOT = TestCa("Root")
INTERMEDIATE = TestCa("Intermediate", ROOT)
LEAF = INTERMEDIATE.issue("alice")
ISSUERS = (INTERMEDIATE.der, ROOT.der)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


CHAIN = verified_chain(der(LEAF), ISSUERS)
NOW = CHAIN.begins + 3600 + 60


def trust(folder: Path, *crls: bytes, accepts_stale: bool = False, authorities: tuple[TestCa, ...] = ()) -> Trust:
    path = folder / "lists.crl"
    path.write_bytes(b"".join(crls))
    certificates = [each.certificate for each in authorities or (ROOT, INTERMEDIATE)]
    return Trust(certificates, read_crls([path], certificates, folder) if crls else None, accepts_stale=accepts_stale)


# Chains ---------------------------------------------------------------------------------------------------------------


def test_a_chain_has_the_dates_and_the_serial_numbers_of_its_certificates() -> None:
    assert [link.serial for link in CHAIN.links] == [LEAF.serial_number, INTERMEDIATE.certificate.serial_number]
    assert [link.is_ca for link in CHAIN.links] == [False, True]
    assert CHAIN.ends == LEAF.not_valid_after_utc.timestamp()
    short = TestCa("Short", ROOT, lasts=HOUR)
    assert verified_chain(der(short.issue("bob")), (short.der, ROOT.der)).ends == (
        short.certificate.not_valid_after_utc.timestamp()
    )


def test_a_self_signed_certificate_that_is_trusted_itself_has_no_links() -> None:
    chain = Chains().verified(ROOT.der, ())
    assert chain.links == ()
    assert Trust([ROOT.certificate], [], accepts_stale=False).judge(chain, NOW) == Verdict("", chain.ends)


def test_the_least_recently_used_chain_is_forgotten() -> None:
    chains = Chains(most=2)
    clients = [der(ROOT.issue(name)) for name in ("a", "b", "c")]
    first = chains.verified(clients[0], (ROOT.der,))
    chains.verified(clients[1], (ROOT.der,))
    assert chains.resumed(clients[0]) is first
    assert chains.verified(clients[0], (ROOT.der,)) is first
    chains.verified(clients[2], (ROOT.der,))
    assert chains.resumed(clients[1]) is None
    assert chains.resumed(clients[0]) is first
    assert repr(chains) == "<Chains: 2 certificates>"


def test_a_full_handshake_with_other_issuers_replaces_the_chain() -> None:
    chains = Chains()
    again = TestCa("Root")  # the same name and another key, as after a change of keys
    one, other = chains.verified(der(LEAF), ISSUERS), chains.verified(der(LEAF), (INTERMEDIATE.der, again.der))
    assert one.anchor != other.anchor
    assert chains.resumed(der(LEAF)) is other


# Verdicts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "later", "refusal"),
    [
        (CHAIN, timedelta(), ""),
        (CHAIN, 2 * DAY, "expired"),
        (CHAIN, -2 * DAY, "not_yet_valid"),
        (CHAIN._replace(anchor=b"other"), timedelta(), "unknown_ca"),
        (None, timedelta(), "chain_unknown"),
    ],
)
def test_validity_and_ca_are_judged_without_crls(
    tmp_path: Path, chain: Chain | None, later: timedelta, refusal: str
) -> None:
    judging = trust(tmp_path)
    assert judging.judge(chain, NOW + later.total_seconds()).refusal == refusal
    assert refusal in {"", *REFUSALS}
    assert judging.missing(NOW) == []


@pytest.mark.parametrize("accepts_stale", [False, True])
@pytest.mark.parametrize(
    "crls",
    [
        (ROOT.crl_pem([1]), INTERMEDIATE.crl_pem([LEAF])),
        (ROOT.crl_pem([INTERMEDIATE.certificate]), INTERMEDIATE.crl_pem()),
        (INTERMEDIATE.crl_pem([LEAF]),),
        (ROOT.crl_pem([INTERMEDIATE.certificate]),),
        (ROOT.crl_pem([INTERMEDIATE.certificate], begins=-DAY, lasts=-HOUR),),
    ],
    ids=["leaf", "intermediate", "no CRL of the root", "no CRL of the leaf's issuer", "a stale CRL"],
)
def test_a_revoked_certificate_is_refused(tmp_path: Path, crls: tuple[bytes, ...], *, accepts_stale: bool) -> None:
    assert trust(tmp_path, *crls, accepts_stale=accepts_stale).judge(CHAIN, NOW).refusal == "revoked"


def test_serial_numbers_belong_to_their_issuer(tmp_path: Path) -> None:
    crls = (ROOT.crl_pem([LEAF]), INTERMEDIATE.crl_pem([INTERMEDIATE.certificate, 7]))
    assert trust(tmp_path, *crls).judge(CHAIN, NOW).refusal == ""
    renewed = TestCa("Intermediate", ROOT)  # the same name and another key
    three = (ROOT.crl_pem(), renewed.crl_pem([LEAF]), INTERMEDIATE.crl_pem())
    assert trust(tmp_path, *three, authorities=(ROOT, INTERMEDIATE, renewed)).judge(CHAIN, NOW).refusal == ""


@pytest.mark.parametrize(
    "crls",
    [
        (ROOT.crl_pem(),),
        (INTERMEDIATE.crl_pem(),),
        (ROOT.crl_pem(), INTERMEDIATE.crl_pem(begins=-DAY, lasts=-HOUR)),
        (ROOT.crl_pem(begins=12 * HOUR), INTERMEDIATE.crl_pem()),
    ],
    ids=["missing for the leaf", "missing for the intermediate", "out of date", "not valid yet"],
)
def test_a_chain_without_current_crls_is_judged_by_the_setting(tmp_path: Path, crls: tuple[bytes, ...]) -> None:
    assert trust(tmp_path, *crls).judge(CHAIN, NOW).refusal == "crl_stale"
    assert trust(tmp_path, *crls, accepts_stale=True).judge(CHAIN, NOW) == Verdict("", CHAIN.ends)


def test_a_verdict_holds_until_the_first_crl_is_stale(tmp_path: Path) -> None:
    judging = trust(tmp_path, ROOT.crl_pem(lasts=HOUR), INTERMEDIATE.crl_pem(lasts=2 * HOUR))
    until = judging.judge(CHAIN, NOW).until
    assert until == min(crl.ends for crl in judging.lists or ())
    assert judging.judge(CHAIN, until).refusal == ""
    assert judging.judge(CHAIN, until + 1).refusal == "crl_stale"


def test_a_crl_for_other_certificates_does_not_count_as_current(tmp_path: Path) -> None:
    judging = trust(tmp_path, ROOT.crl_pem(), INTERMEDIATE.crl_pem())
    lists = [replace(each, of_cas=True) for each in judging.lists or ()]
    assert Trust([ROOT.certificate], lists, accepts_stale=False).judge(CHAIN, NOW).refusal == "crl_stale"
    lists = [replace(each, points=frozenset({"http://a/1"})) for each in judging.lists or ()]
    assert Trust([ROOT.certificate], lists, accepts_stale=False).judge(CHAIN, NOW).refusal == "crl_stale"
    at = verified_chain(der(INTERMEDIATE.issue("bob", points=["http://a/1"])), ISSUERS)
    lists[0] = replace(lists[0], points=frozenset())
    assert Trust([ROOT.certificate], lists, accepts_stale=False).judge(at, NOW).refusal == ""


def test_cas_without_a_crl_are_named(tmp_path: Path) -> None:
    assert trust(tmp_path, ROOT.crl_pem()).missing(NOW) == ["CN=Intermediate"]
    assert repr(trust(tmp_path, ROOT.crl_pem())) == "<Trust: 2 CAs, 1 CRLs>"
    assert repr(trust(tmp_path)) == "<Trust: 2 CAs, no CRLs>"


def test_files_are_read(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(ROOT.pem + INTERMEDIATE.pem)
    crl = tmp_path / "one.crl"
    crl.write_bytes(ROOT.crl_pem() + INTERMEDIATE.crl_pem([LEAF]))
    assert Trust.load(ca, [crl], accepts_stale=False).judge(CHAIN, NOW).refusal == "revoked"
    assert Trust.load(ca, [], accepts_stale=False).judge(CHAIN, NOW).refusal == ""
    crl.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no CRL"):
        Trust.load(ca, [crl], accepts_stale=False)
