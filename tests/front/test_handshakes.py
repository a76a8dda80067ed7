"""Handshakes of clients: counted, bounded, refused with a reason."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta

import pytest
import trio
from kmip_lab.certs import Authority
from kmip_lab.tools.clients import Client, connect
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config import MatchConfig, PerAddressConfig
from gateway.errors import StreamClosedError, TlsError
from gateway.kmip.spec import Operation, ResultReason
from gateway.tls import TlsStream, client_context
from tests.kit.attackers import HostilePeer
from tests.kit.front import (
    NAME,
    PART_OF_HELLO,
    Front,
    connect_tcp,
    is_open,
    is_served,
    number_of,
    open_front,
    request,
    until,
    wait_for_end,
)
from tests.kit.processes import HOSTS, Certificates
from tests.kit.settings import make_admission
from tests.kit.streams import TLS_1_2, TLS_1_3, VERSIONS, client_tls, reset

pytestmark = pytest.mark.usefixtures("tls_ends_in")

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@pytest.fixture
async def front(certificates: Certificates) -> AsyncIterator[Front]:
    async with open_front(certificates) as front:
        yield front


def held_to(context: SSL.Context, version: str) -> SSL.Context:
    context.set_min_proto_version(VERSIONS[version])
    context.set_max_proto_version(VERSIONS[version])
    return context


# Handshakes -----------------------------------------------------------------------------------------------------------


@both_versions
async def test_handshakes_are_counted_full_and_resumed(front: Front, version: str) -> None:
    context, session = client_tls(front.certificates, version=version), None
    for resumed in ("false", "true"):
        stream = TlsStream(connect_tcp(front), context, server_side=False, server_name="localhost")
        if session is not None:
            stream.connection.set_session(session)
        await stream.handshake()
        await stream.send_all(request())
        await stream.receive_some()
        session = stream.connection.get_session()
        assert front.clients == 1
        stream.close_politely()
        await until(lambda: front.clients == 0)
        assert front.count("client_handshakes_total", listener=NAME, tls_version=version, resumed=resumed) == 1
        assert front.count("client_handshake_duration_seconds_count", resumed=resumed) == 1
    assert front.errors == {}


@both_versions
async def test_identity_rules_hold_for_resumed_clients_too(certificates: Certificates, version: str) -> None:
    """A resumed session verifies no certificate, and still has the certificate of the full handshake."""
    async with open_front(certificates, match=MatchConfig(subject_cn=("bob",))) as front:
        for name, reason in [("bob", None), ("alice", ResultReason.AUTHENTICATION_NOT_SUCCESSFUL)]:
            context, session = client_tls(certificates, name, version), None
            for resumed in (False, True):
                stream = TlsStream(connect_tcp(front), context, server_side=False)
                if session is not None:
                    stream.connection.set_session(session)
                await stream.handshake()
                answer = await Client(stream).ask(request())
                assert (stream.resumed, answer.items[0].reason) == (resumed, reason)
                session = stream.connection.get_session()
                stream.close_politely()
        assert [asked.items[0].operation for asked in front.dispatcher.asked] == [Operation.GET] * 2


def no_certificate(_certificates: Certificates) -> SSL.Context:
    return SSL.Context(SSL.TLS_METHOD)


def foreign(certificates: Certificates) -> SSL.Context:
    pair = certificates.pair("foreign")
    Authority("Clients CA").issue_client("alice").write(*pair)
    return client_context(*pair, certificates.path("gateway_ca.pem"))


def expired(certificates: Certificates) -> SSL.Context:
    pair = certificates.pair("expired")
    now = datetime.now(UTC)
    issued = certificates.clients_ca.issue_client(
        "alice", not_before=now - timedelta(days=2), not_after=now - timedelta(days=1)
    )
    issued.write(*pair)
    return client_context(*pair, certificates.path("gateway_ca.pem"))


def a_server_s(certificates: Certificates) -> SSL.Context:
    pair = certificates.pair("purpose")
    certificates.clients_ca.issue_server("alice", HOSTS).write(*pair)
    return client_context(*pair, certificates.path("gateway_ca.pem"))


@both_versions
@pytest.mark.parametrize(
    ("context_of", "reason"),
    [(no_certificate, "no_certificate"), (foreign, "unknown_ca"), (expired, "expired"), (a_server_s, "purpose")],
    ids=["no certificate", "a foreign CA's", "an expired one", "a server's"],
)
async def test_refused_client_gets_the_alert_after_an_early_request(
    front: Front, version: str, context_of: Callable[[Certificates], SSL.Context], reason: str
) -> None:
    """A TLS 1.3 client has finished its handshake, and sends a request; a reset would overtake the alert."""
    stream = TlsStream(connect_tcp(front), held_to(context_of(front.certificates), version), server_side=False)

    async def ask_thrice() -> None:
        await stream.handshake()
        for _ in range(3):
            await stream.send_all(request())
            await wait_all_tasks_blocked(0.01)
        await stream.receive_some()

    with pytest.raises(TlsError) as refused, trio.fail_after(5):
        await ask_thrice()
    stream.close()
    assert refused.value.reason == "alert"
    await until(lambda: front.clients == 0)
    assert front.errors == {reason: 1}
    assert [entry["reason"] for entry in front.log.entries] == [reason]


async def test_a_client_that_never_finishes_its_handshake_has_its_deadline(
    certificates: Certificates, clock: MockClock
) -> None:
    async with open_front(certificates) as front:
        began = clock.current_time()
        with connect_tcp(front) as silent, connect_tcp(front) as half:
            half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            for sock in (silent, half):
                await wait_for_end(sock)
        assert clock.current_time() - began == pytest.approx(10, abs=0.5)
        await until(lambda: front.clients == 0)
        assert front.errors == {"handshake_timeout": 2}


async def test_connection_without_tls_is_refused_and_counted(front: Front) -> None:
    with connect_tcp(front) as sock:
        sock.send(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")
        await wait_for_end(sock)
    await until(lambda: front.clients == 0)
    assert front.errors == {"not_tls": 1}


async def test_a_hello_in_tiny_records_is_refused_counted_and_logged(front: Front) -> None:
    with connect_tcp(front) as sock:
        sock.send(b"".join(b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in b"\x01\x00\x40\x00" + bytes(1000)))
        await wait_for_end(sock)
    await until(lambda: front.clients == 0)
    assert front.errors == {"handshake_too_large": 1}
    assert [entry["reason"] for entry in front.log.entries if entry["event"] == "handshake failed"] == [
        "handshake_too_large"
    ]


@pytest.mark.parametrize("requested", [False, True])
async def test_a_client_that_floods_key_updates_is_closed_counted_and_logged(front: Front, *, requested: bool) -> None:
    def flood() -> int:
        assert attacker.shake_hands()
        return attacker.update_keys(5000, requested=requested)

    with HostilePeer(connect_tcp(front), *front.certificates.client("alice")) as attacker, trio.fail_after(20):
        assert await trio.to_thread.run_sync(flood) < 5000
    await until(lambda: front.clients == 0)
    assert front.errors == {"records": 1}
    (entry,) = [entry for entry in front.log.entries if entry["event"] == "client connection closed"]
    assert (entry["reason"], entry["identity"]) == ("records", "everyone")


async def test_a_client_with_a_certificate_too_large_for_a_ticket_is_counted(front: Front) -> None:
    front.certificates.client("too-large", uri=[f"spiffe://example.com/{number:0100}" for number in range(600)])
    with suppress(StreamClosedError, TlsError):
        async with front.client("too-large") as client:
            await client.ask(request())
    await until(lambda: front.errors == {"certificate_too_large": 1})


async def test_a_client_that_leaves_before_its_handshake_is_counted(front: Front) -> None:
    connect_tcp(front).close()
    await until(lambda: front.errors == {"client_closed": 1})


# Half-open connections ------------------------------------------------------------------------------------------------


async def test_oldest_half_open_connection_is_closed_first_and_counted(certificates: Certificates) -> None:
    admission = make_admission(max_half_open=3)
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        socks = []
        for number in range(5):
            socks.append(stack.enter_context(connect_tcp(front)))
            socks[-1].send(PART_OF_HELLO)
            await until(lambda number=number: front.clients == min(number + 1, 3))  # type: ignore[misc]
        for sock in socks[:2]:
            with trio.fail_after(5):
                await wait_for_end(sock)
        assert all(is_open(sock) for sock in socks[2:])
        assert front.errors == {"evicted": 2}
        assert front.count("client_half_open_connections", listener=NAME) == 3
    assert [entry["setting"] for entry in front.log.entries] == ["limits.max_half_open, per_address.max_half_open"]


async def test_address_with_the_most_half_open_connections_loses_one(certificates: Certificates) -> None:
    admission = make_admission(max_half_open=4)
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        first = stack.enter_context(connect_tcp(front, "127.0.0.2"))
        await until(lambda: front.clients == 1)
        flood = [stack.enter_context(connect_tcp(front, "127.0.0.3")) for _ in range(10)]
        await until(lambda: front.errors == {"evicted": 7})
        assert is_open(first)
        assert [is_open(sock) for sock in flood] == [False] * 7 + [True] * 3


async def test_half_open_connections_of_an_address_have_a_limit(certificates: Certificates) -> None:
    admission = make_admission(per_address=PerAddressConfig(max_half_open=2))
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        flood = [stack.enter_context(connect_tcp(front, "127.0.0.3")) for _ in range(5)]
        await until(lambda: front.errors == {"evicted": 3})
        assert [is_open(sock) for sock in flood] == [False] * 3 + [True] * 2
        async with front.client() as client:
            assert number_of(await client.ask(request(4))) == 4


async def test_eviction_of_a_reset_connection_does_not_end_the_listener(
    certificates: Certificates,
) -> None:
    """The order in which the listener and the connection's own task see the reset is random, hence several rounds."""
    admission = make_admission(per_address=PerAddressConfig(max_half_open=1))
    async with open_front(certificates, admission=admission) as front:
        for _ in range(20):
            silent = connect_tcp(front)
            await until(lambda: front.clients == 1)
            reset(silent)
            reset(connect_tcp(front))
            await until(lambda: front.clients == 0)
        await is_served(front, client_tls(certificates))


async def test_client_that_has_sent_its_hello_is_evicted_last(certificates: Certificates) -> None:
    admission = make_admission(per_address=PerAddressConfig(max_half_open=2))
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        slow = stack.enter_context(connect_tcp(front))
        connection = SSL.Connection(client_tls(front.certificates), None)
        connection.set_connect_state()
        with suppress(SSL.WantReadError):
            connection.do_handshake()
        slow.send(connection.bio_read(65536))
        await trio.lowlevel.wait_readable(slow)  # the server's messages have arrived
        silent = [stack.enter_context(connect_tcp(front)) for _ in range(5)]
        await until(lambda: front.errors == {"evicted": 4})
        assert slow.recv(65536)
        assert [is_open(sock) for sock in silent] == [False] * 4 + [True]


async def test_client_in_its_handshake_is_evicted_after_a_second_only(certificates: Certificates) -> None:
    admission = make_admission(per_address=PerAddressConfig(max_half_open=1))
    async with open_front(certificates, admission=admission) as front:
        slow = connect_tcp(front)
        connection = SSL.Connection(client_tls(front.certificates), None)
        connection.set_connect_state()
        with suppress(SSL.WantReadError):
            connection.do_handshake()
        slow.send(connection.bio_read(65536))
        await trio.lowlevel.wait_readable(slow)
        with connect_tcp(front) as early:
            await wait_for_end(early)
        assert front.errors == {"limit": 1}
        assert front.count("limit_rejections_total", limit="address_max_half_open") == 1
        await trio.sleep(1)
        async with front.client() as late:
            assert number_of(await late.ask(request(2))) == 2
        assert front.errors == {"limit": 1, "evicted": 1}
        slow.close()


async def test_2000_half_open_connections_from_200_addresses_exclude_no_client(certificates: Certificates) -> None:
    admission = make_admission(max_half_open=500, per_address=PerAddressConfig(max_half_open=5))
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        context = client_tls(front.certificates)
        async with connect(front.address, context) as kept:
            for number in range(2000):
                sock = stack.enter_context(connect_tcp(front, f"127.0.1.{number % 200 + 1}"))
                sock.send(PART_OF_HELLO)
                if number % 100 == 0:
                    assert number_of(await kept.ask(request(number))) == number
                    await is_served(front, context)
                    assert len(admission.half_open) <= 500
            await until(lambda: front.count("client_half_open_connections", listener=NAME) == 500)
        assert front.errors == {"evicted": 1500}
        assert len(admission.sources) <= 201
        front.drain()
        await until(lambda: front.clients == 0)
    assert front.errors == {"evicted": 1500, "drain": 500}
    assert len(admission.sources) == len(admission.half_open) == 0


# Limits of one address ------------------------------------------------------------------------------------------------


async def test_connections_of_one_address_are_bounded_and_others_are_served(certificates: Certificates) -> None:
    admission = make_admission(per_address=PerAddressConfig(max_clients=2))
    async with open_front(certificates, admission=admission) as front, front.client() as one, front.client() as two:
        with connect_tcp(front) as third:
            await wait_for_end(third)
        assert front.count("limit_rejections_total", limit="address_max_clients") == 1
        assert front.log.entries[0]["setting"] == "per_address.max_clients"
        await is_served(front, client_tls(front.certificates), "127.0.0.2")
        for client in (one, two):
            assert number_of(await client.ask(request(4))) == 4
    assert len(admission.sources) == 0


async def test_handshakes_a_second_of_one_address_are_bounded(certificates: Certificates, clock: MockClock) -> None:
    admission = make_admission(per_address=PerAddressConfig(handshakes_per_second=1, handshake_burst=2))
    async with open_front(certificates, admission=admission) as front:
        for _ in range(2):
            async with front.client() as client:
                await client.ask(request())
        with connect_tcp(front) as third:
            await wait_for_end(third)
        assert front.count("limit_rejections_total", limit="address_handshakes_per_second") == 1
        await trio.sleep(2)
        async with front.client() as client:
            assert number_of(await client.ask(request(9))) == 9
        assert clock.current_time() < 5
