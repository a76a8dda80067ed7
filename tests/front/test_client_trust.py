"""Client trust: the chains of clients, judged when they connect and when it is due."""

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.front.client_trust import ClientTrust
from gateway.revocation import Trust
from tests.kit.revocation import DAY, TestCa

ROOT = TestCa("Root")
DER = Encoding.DER


@pytest.fixture
def trust(tmp_path: Path) -> ClientTrust:
    (tmp_path / "ca.pem").write_bytes(ROOT.pem)
    return ClientTrust(Trust.load(tmp_path / "ca.pem", (), accepts_stale=False))


def test_a_resumed_session_has_the_chain_of_its_full_handshake(trust: ClientTrust) -> None:
    alice, bob = (ROOT.issue(name).public_bytes(encoding=DER) for name in ("alice", "bob"))
    chain = trust.chain_of(alice, (ROOT.der,))
    assert chain is not None
    assert trust.chain_of(alice, None) is chain
    assert trust.refusal(chain) == ""
    assert trust.refusal(trust.chain_of(bob, None)) == "chain_unknown"
    assert trust.refusal(trust.chain_of(None, ())) == "chain_unknown"


def test_the_next_judgement_is_due_when_the_first_certificate_ends(trust: ClientTrust) -> None:
    for name, lasts in [("alice", 2 * DAY), ("bob", DAY), ("carol", 3 * DAY), ("dave", -DAY)]:
        certificate = ROOT.issue(name, lasts=lasts).public_bytes(encoding=DER)
        trust.refusal(trust.chain_of(certificate, (ROOT.der,)))
    assert trust.due == pytest.approx(time.time() + DAY.total_seconds(), abs=60)
