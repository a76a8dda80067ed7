"""The clients of a listener after their handshake: admitted, refused, identified."""

import ssl
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from kmip_lab.certs import Authority
from trio.testing import MockClock

from gateway.config import AllowanceConfig, MatchConfig
from gateway.config.crls import read_crls
from gateway.errors import StreamClosedError, TlsError
from gateway.front import client_trust, clients
from gateway.kmip.spec import ResultReason
from gateway.revocation import Trust
from gateway.tls import client_context
from tests.kit.front import (
    NAME,
    NO_CLIENT,
    Front,
    connect_tcp,
    number_of,
    open_front,
    request,
    until,
    wait_for_end,
)
from tests.kit.processes import Certificates
from tests.kit.revocation import crl_of
from tests.kit.settings import listener_config, make_admission
from tests.kit.streams import TLS_1_2, TLS_1_3, client_tls

pytestmark = pytest.mark.usefixtures("tls_ends_in")

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@pytest.fixture
async def front(certificates: Certificates) -> AsyncIterator[Front]:
    async with open_front(certificates) as front:
        yield front


async def test_client_over_max_clients_gets_an_error_until_a_client_closes(certificates: Certificates) -> None:
    settings = listener_config(NAME, max_clients=2)
    async with open_front(certificates, settings=settings) as front, front.client() as first:
        async with front.client() as second:
            async with front.client() as third:
                answer = await third.ask(request(version=(2, 1)))
                assert answer.items[0].reason == ResultReason.SERVER_LIMIT_EXCEEDED
                assert await third.stream.receive_some() == b""
            for client in (first, second):
                assert number_of(await client.ask(request(3))) == 3
        async with front.client() as next_one:
            assert number_of(await next_one.ask(request(4))) == 4
        assert front.errors == {"limit": 1}


async def test_65th_refused_client_is_closed_before_its_handshake(certificates: Certificates, clock: MockClock) -> None:
    async with open_front(certificates, settings=listener_config(NAME, max_clients=1)) as front:
        async with front.client() as holder, AsyncExitStack() as told:
            assert number_of(await holder.ask(request(1))) == 1
            context = client_tls(front.certificates)
            for _ in range(64):
                await told.enter_async_context(front.client(context=context))
            await until(lambda: front.served._refused == 64)
            with connect_tcp(front) as other:
                await wait_for_end(other)
            assert clock.current_time() < 3
            assert number_of(await holder.ask(request(2))) == 2
            await trio.sleep(3.5)
            assert front.served._refused == 0
        async with front.client() as client:
            assert number_of(await client.ask(request(3))) == 3
    assert front.errors == {"limit": 65}
    assert front.count("limit_rejections_total", limit="listener_max_clients") == 65
    assert front.log.entries[0]["setting"] == "listeners.max_clients"


@pytest.mark.parametrize("match", [MatchConfig(subject_cn=("bob",)), None], ids=["no rule", "over its limit"])
async def test_refused_clients_do_not_count_as_clients(
    certificates: Certificates, clock: MockClock, match: MatchConfig | None
) -> None:
    """No rule matches alice, or alice may have one connection: 100 of her connections do not exclude bob."""
    admission = make_admission(allowances={"everyone": AllowanceConfig(max_clients=1)})
    settings = listener_config(NAME, max_clients=2)
    async with (
        open_front(certificates, settings=settings, admission=admission, match=match) as front,
        AsyncExitStack() as stack,
    ):
        context = client_tls(front.certificates)
        for _ in range(100):
            with suppress(StreamClosedError, TlsError):
                await stack.enter_async_context(front.client(context=context))
        assert clock.current_time() < 3
        async with front.client("bob") as bob:
            assert number_of(await bob.ask(request(7))) == 7
        await trio.sleep(5)
    assert admission.clients == 0
    assert len(admission.half_open) == 0


def signed_anew(certificate: x509.Certificate, authority: Authority, old: bytes, new: bytes) -> bytes:
    """Return a certificate with changed bytes and a new signature, as PEM."""
    tbs = certificate.tbs_certificate_bytes
    assert tbs.count(old) == 1
    tbs = tbs.replace(old, new)
    key = authority._key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = b"\x00" + key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    content = tbs + ecdsa_with_sha256 + b"\x03" + bytes([len(signature)]) + signature
    der = b"\x30\x82" + len(content).to_bytes(2, "big") + content
    return ssl.DER_cert_to_PEM_cert(der).encode()


#: Certificates that OpenSSL accepts and stricter parsers do not: old bytes, new bytes.
ODD: dict[str, tuple[bytes, bytes]] = {
    "an asterisk in a PrintableString": (b"\x0c\x05alice", b"\x13\x05al*ce"),
    "version 5": (bytes.fromhex("a003020102"), bytes.fromhex("a003020104")),
}


@pytest.mark.parametrize("what", ODD)
async def test_client_with_an_unreadable_certificate_has_no_identity(front: Front, what: str) -> None:
    certificate, key = front.certificates.pair("odd")
    issued = front.certificates.clients_ca.issue_client("alice")
    issued.write(certificate, key)
    certificate.write_bytes(signed_anew(issued.certificate, front.certificates.clients_ca, *ODD[what]))
    async with front.client() as bystander:
        context = client_context(certificate, key, front.certificates.path("gateway_ca.pem"))
        async with front.client(context=context) as client:
            answer = await client.ask(request())
        assert answer.items[0].reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
        assert number_of(await bystander.ask(request(2))) == 2
    assert front.errors == {"unreadable": 1}


async def test_a_client_without_a_rule_is_named_in_one_line(certificates: Certificates) -> None:
    async with open_front(certificates, match=NO_CLIENT) as front:
        name = "eve\n2026-01-01 [info] all is well\x1b[2J"
        pair = certificates.pair("eve")
        certificates.clients_ca.issue_client(name).write(*pair)
        async with front.client(context=client_context(*pair, certificates.path("gateway_ca.pem"))) as client:
            await client.ask(request())
    (entry,) = front.log.entries
    assert entry["subject"] == "CN=eve\\n2026-01-01 [info] all is well\\x1b[2J"
    assert entry["issuer"] == "CN=Clients CA"
    assert len(entry["fingerprint"]) == 64


# Revocation -----------------------------------------------------------------------------------------------------------


def trust_in(certificates: Certificates, revoked: Iterable[x509.Certificate] = ()) -> Trust:
    """Return the trust of the clients' CA, with a CRL of these certificates."""
    authority = certificates.clients_ca._certificate
    path = certificates.path("clients.crl")
    path.write_bytes(crl_of(certificates.clients_ca, revoked))
    return Trust([authority], read_crls([path], [authority], path), accepts_stale=False)


def certificate_of(certificates: Certificates, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificates.client(name)[0].read_bytes())


async def test_a_revoked_client_gets_no_answer_to_a_request_under_way(certificates: Certificates) -> None:
    """The exchange with the key manager goes on to its end, and other clients are served."""
    async with (
        open_front(certificates, trust=trust_in(certificates)) as front,
        front.client("bob") as bob,
        front.client("alice") as alice,
    ):
        assert number_of(await alice.ask(request(1))) == 1
        front.dispatcher.close_gate()
        await alice.stream.send_all(request(2))
        await until(lambda: len(front.dispatcher.asked) == 2)
        await front.served.change_trust(trust_in(certificates, [certificate_of(certificates, "alice")]))
        assert await alice.stream.receive_some() == b""
        assert front.dispatcher.answered == 1
        front.dispatcher.gate.set()
        await until(lambda: front.dispatcher.answered == 2)
        assert number_of(await bob.ask(request(3))) == 3
        await until(lambda: front.errors == {"revoked": 1})
    (entry,) = front.log.entries
    assert (entry["event"], entry["reason"], entry["subject"]) == (
        "client disconnected: its certificate is no longer accepted",
        "revoked",
        "CN=alice",
    )


async def test_a_revoked_client_is_told_at_its_first_request(certificates: Certificates) -> None:
    revoked = [certificate_of(certificates, "alice")]
    async with open_front(certificates, trust=trust_in(certificates, revoked)) as front:
        async with front.client("alice") as alice:
            item = (await alice.ask(request(1))).items[0]
            assert item.reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
            assert item.message is not None
            assert "has been revoked" in item.message
            assert await alice.stream.receive_some() == b""
        async with front.client("alice") as again:
            await front.served.change_identities(front.served._identities)
            assert (await again.ask(request(1))).items[0].reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
    assert front.errors == {"revoked": 2}
    assert front.dispatcher.asked == []


async def test_clients_are_judged_when_a_certificate_ends(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = certificates.pair("short")
    soon = datetime.now(UTC) + timedelta(hours=1)
    certificates.clients_ca.issue_client("alice", not_after=soon).write(*pair)
    context = client_context(*pair, certificates.path("gateway_ca.pem"))
    async with (
        open_front(certificates) as front,
        front.client("bob") as bob,
        front.client(context=context) as alice,
    ):
        assert number_of(await alice.ask(request(1))) == 1
        await front.served.judge_when_due()
        assert number_of(await alice.ask(request(2))) == 2
        now = time.time()
        with monkeypatch.context() as patch:
            patch.setattr(clients, "time", SimpleNamespace(time=lambda: now + 3601))
            patch.setattr(client_trust, "time", SimpleNamespace(time=lambda: now + 3601))
            await front.served.judge_when_due()
        assert await alice.stream.receive_some() == b""
        assert number_of(await bob.ask(request(3))) == 3
        await until(lambda: front.errors == {"expired": 1})

    assert front.log.entries
    assert "well" not in repr(front.log.entries)


async def test_clients_are_let_go_in_a_quiet_second_or_else_after_an_answer(
    certificates: Certificates, clock: MockClock
) -> None:
    ends: dict[str, float] = {}
    async with open_front(certificates) as front, front.client() as quiet, front.client() as busy:
        for client in (quiet, busy):
            await client.ask(request(1))

        async def ask_on() -> None:
            number = 2
            while not busy.stream.peer_has_left():
                assert number_of(await busy.ask(request(number))) == number
                number += 1
                await trio.sleep(0.4)
            ends["busy"] = clock.current_time()

        began = clock.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.served.let_go)
            nursery.start_soon(ask_on)
            assert await quiet.stream.receive_some() == b""
            ends["quiet"] = clock.current_time()
        assert ends["quiet"] - began < 3
        assert 9 < ends["busy"] - began < 13
        assert len(front.served) == 0
    assert front.errors == {}
