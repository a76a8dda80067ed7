"""Who comes in, who does not, and what one client may not do to the others."""

import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from kmip_lab.certs import Authority
from kmip_lab.tools.clients import Client, connect
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config import MatchConfig
from gateway.errors import StreamClosedError, TlsError
from gateway.front.admission import Admission, Allowance
from gateway.front.listener import ListenerSettings
from gateway.front.sources import AddressLimits
from gateway.kmip.spec import Operation, ResultReason
from gateway.tls import TlsStream, client_context
from tests.kit.attackers import Attacker
from tests.kit.front import NAME, Front, number_of, open_front, request, until
from tests.kit.processes import HOSTS, Certificates
from tests.kit.streams import TLS_1_2, TLS_1_3, VERSIONS, asking, cancelled_everywhere, descriptors, reset

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@pytest.fixture
async def front(certificates: Certificates) -> AsyncIterator[Front]:
    async with open_front(certificates) as front:
        yield front


PART_OF_HELLO = b"\x16\x03\x01\x02\x00"  # the header of a TLS record whose 512 bytes do not follow


def knock(front: Front, source: str = "127.0.0.1") -> socket.socket:
    """A TCP connection, and nothing more."""
    sock = socket.create_connection((front.address.host, front.address.port), source_address=(source, 0))
    sock.setblocking(False)
    return sock


async def ends(sock: socket.socket) -> None:
    """The end of a connection, by whatever means."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            if not sock.recv(65536):
                return
        except ConnectionError:
            return


async def is_served(front: Front, context: SSL.Context, source: str = "127.0.0.1") -> None:
    """A client that connects, asks and leaves."""
    stream = TlsStream(knock(front, source), context, server_side=False)
    await stream.handshake()
    assert number_of(await Client(stream).ask(request(5))) == 5
    stream.close_politely()


def is_open(sock: socket.socket) -> bool:
    """True if the other side has neither closed nor sent anything."""
    try:
        return bool(sock.recv(1)) and False
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def held_to(context: SSL.Context, version: str) -> SSL.Context:
    context.set_min_proto_version(VERSIONS[version])
    context.set_max_proto_version(VERSIONS[version])
    return context


# Handshakes -----------------------------------------------------------------------------------------------------------


@both_versions
async def test_handshakes_are_counted_full_and_resumed(front: Front, version: str) -> None:
    context, session = asking(front.certificates, version=version), None
    for resumed in ("false", "true"):
        stream = TlsStream(knock(front), context, server_side=False, server_name="localhost")
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
    """On a resumed session no certificate is verified, and none is forgotten."""
    async with open_front(certificates, match=MatchConfig(subject_cn=("bob",))) as front:
        for name, reason in [("bob", None), ("alice", ResultReason.AUTHENTICATION_NOT_SUCCESSFUL)]:
            context, session = asking(certificates, name, version), None
            for resumed in (False, True):
                stream = TlsStream(knock(front), context, server_side=False)
                if session is not None:
                    stream.connection.set_session(session)
                await stream.handshake()
                answer = await Client(stream).ask(request())
                assert (stream.resumed, answer.items[0].reason) == (resumed, reason)
                session = stream.connection.get_session()
                stream.close_politely()
        assert [asked.items[0].operation for asked in front.desk.asked] == [Operation.GET] * 2


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
async def test_a_refused_client_hears_the_alert_even_if_it_has_asked_already(
    front: Front, version: str, context_of: Callable[[Certificates], SSL.Context], reason: str
) -> None:
    """In TLS 1.3 a client believes that the handshake is done, and asks; a reset would overtake the alert."""
    stream = TlsStream(knock(front), held_to(context_of(front.certificates), version), server_side=False)

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
        with knock(front) as silent, knock(front) as half:
            half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            for sock in (silent, half):
                await ends(sock)
        assert clock.current_time() - began == pytest.approx(10, abs=0.5)
        await until(lambda: front.clients == 0)
        assert front.errors == {"handshake_timeout": 2}


async def test_what_is_not_tls_is_refused_and_counted(front: Front) -> None:
    with knock(front) as sock:
        sock.send(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")
        await ends(sock)
    await until(lambda: front.clients == 0)
    assert front.errors == {"not_tls": 1}


async def test_a_hello_in_tiny_records_is_refused_counted_and_logged(front: Front) -> None:
    with knock(front) as sock:
        sock.send(b"".join(b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in b"\x01\x00\x40\x00" + bytes(1000)))
        await ends(sock)
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

    with Attacker(knock(front), *front.certificates.client("alice")) as attacker, trio.fail_after(20):
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
    knock(front).close()
    await until(lambda: front.errors == {"gone": 1})


# Places ---------------------------------------------------------------------------------------------------------------


async def test_who_finds_no_place_is_told_and_one_who_leaves_makes_place(certificates: Certificates) -> None:
    settings = ListenerSettings(NAME, max_clients=2)
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


async def test_at_most_64_clients_are_told_at_once_and_the_next_is_closed_without_a_handshake(
    certificates: Certificates, clock: MockClock
) -> None:
    async with open_front(certificates, settings=ListenerSettings(NAME, max_clients=1)) as front:
        async with front.client() as holder, AsyncExitStack() as told:
            assert number_of(await holder.ask(request(1))) == 1
            context = asking(front.certificates)
            for _ in range(64):
                await told.enter_async_context(front.client(context=context))
            await until(lambda: front.listener._told == 64)
            with knock(front) as other:
                await ends(other)
            assert clock.current_time() < 3
            assert number_of(await holder.ask(request(2))) == 2
            await trio.sleep(3.5)
            assert front.listener._told == 0
        async with front.client() as client:
            assert number_of(await client.ask(request(3))) == 3
    assert front.errors == {"limit": 65}
    assert front.count("limit_rejections_total", limit="listener_max_clients") == 65
    assert front.log.entries[0]["setting"] == "listeners.max_clients"


@pytest.mark.parametrize("match", [MatchConfig(subject_cn=("bob",)), None], ids=["no rule", "over its limit"])
async def test_refused_clients_hold_no_place_that_others_need(
    certificates: Certificates, clock: MockClock, match: MatchConfig | None
) -> None:
    """Nobody matches alice, or alice may have one connection: 100 of hers keep bob out of none of the two places."""
    admission = Admission(allowances={"everyone": Allowance(max_clients=1)})
    settings = ListenerSettings(NAME, max_clients=2)
    async with (
        open_front(certificates, settings=settings, admission=admission, match=match) as front,
        AsyncExitStack() as stack,
    ):
        context = asking(front.certificates)
        for _ in range(100):
            with suppress(StreamClosedError, TlsError):
                await stack.enter_async_context(front.client(context=context))
        assert clock.current_time() < 3
        async with front.client("bob") as bob:
            assert number_of(await bob.ask(request(7))) == 7
        await trio.sleep(5)
    assert admission.clients == 0
    assert len(admission.half_open) == 0


async def test_half_open_connections_take_no_place_of_a_client(certificates: Certificates) -> None:
    admission = Admission(max_clients=1)
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        for _ in range(20):
            stack.enter_context(knock(front)).send(PART_OF_HELLO)
        await until(lambda: front.clients == 20)
        async with front.client() as client:
            assert number_of(await client.ask(request(3))) == 3


# Half-open connections ------------------------------------------------------------------------------------------------


async def test_oldest_half_open_connection_is_closed_first_and_counted(certificates: Certificates) -> None:
    admission = Admission(max_half_open=3)
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        socks = []
        for number in range(5):
            socks.append(stack.enter_context(knock(front)))
            socks[-1].send(PART_OF_HELLO)
            await until(lambda number=number: front.clients == min(number + 1, 3))  # type: ignore[misc]
        for sock in socks[:2]:
            with trio.fail_after(5):
                await ends(sock)
        assert all(is_open(sock) for sock in socks[2:])
        assert front.errors == {"evicted": 2}
        assert front.count("client_half_open_connections", listener=NAME) == 3
    assert [entry["setting"] for entry in front.log.entries] == ["limits.max_half_open, per_address.max_half_open"]


async def test_address_with_the_most_half_open_connections_loses_one(certificates: Certificates) -> None:
    admission = Admission(max_half_open=4)
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        first = stack.enter_context(knock(front, "127.0.0.2"))
        await until(lambda: front.clients == 1)
        flood = [stack.enter_context(knock(front, "127.0.0.3")) for _ in range(10)]
        await until(lambda: front.errors == {"evicted": 7})
        assert is_open(first)
        assert [is_open(sock) for sock in flood] == [False] * 7 + [True] * 3


async def test_half_open_connections_of_one_address_are_bounded_by_its_own_limit(certificates: Certificates) -> None:
    admission = Admission(per_address=AddressLimits(max_half_open=2))
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        flood = [stack.enter_context(knock(front, "127.0.0.3")) for _ in range(5)]
        await until(lambda: front.errors == {"evicted": 3})
        assert [is_open(sock) for sock in flood] == [False] * 3 + [True] * 2
        async with front.client() as client:
            assert number_of(await client.ask(request(4))) == 4


async def test_reset_of_a_half_open_connection_that_is_to_make_room_does_not_end_the_listener(
    certificates: Certificates,
) -> None:
    """The order in which the listener and the connection's own task see the reset is random, hence several rounds."""
    admission = Admission(per_address=AddressLimits(max_half_open=1))
    async with open_front(certificates, admission=admission) as front:
        for _ in range(20):
            silent = knock(front)
            await until(lambda: front.clients == 1)
            reset(silent)
            reset(knock(front))
            await until(lambda: front.clients == 0)
        await is_served(front, asking(certificates))


async def test_client_that_has_sent_its_hello_is_not_closed_for_one_that_has_not(certificates: Certificates) -> None:
    admission = Admission(per_address=AddressLimits(max_half_open=2))
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        slow = stack.enter_context(knock(front))
        connection = SSL.Connection(asking(front.certificates), None)
        connection.set_connect_state()
        with suppress(SSL.WantReadError):
            connection.do_handshake()
        slow.send(connection.bio_read(65536))
        await trio.lowlevel.wait_readable(slow)  # the server's part is there
        silent = [stack.enter_context(knock(front)) for _ in range(5)]
        await until(lambda: front.errors == {"evicted": 4})
        assert slow.recv(65536)
        assert [is_open(sock) for sock in silent] == [False] * 4 + [True]


async def test_client_in_its_handshake_is_closed_for_another_only_after_a_second(certificates: Certificates) -> None:
    admission = Admission(per_address=AddressLimits(max_half_open=1))
    async with open_front(certificates, admission=admission) as front:
        slow = knock(front)
        connection = SSL.Connection(asking(front.certificates), None)
        connection.set_connect_state()
        with suppress(SSL.WantReadError):
            connection.do_handshake()
        slow.send(connection.bio_read(65536))
        await trio.lowlevel.wait_readable(slow)
        with knock(front) as early:
            await ends(early)
        assert front.errors == {"limit": 1}
        assert front.count("limit_rejections_total", limit="address_max_half_open") == 1
        await trio.sleep(1)
        async with front.client() as late:
            assert number_of(await late.ask(request(2))) == 2
        assert front.errors == {"limit": 1, "evicted": 1}
        slow.close()


async def test_2000_half_open_connections_from_200_addresses_lock_nobody_out(certificates: Certificates) -> None:
    admission = Admission(max_half_open=500, per_address=AddressLimits(max_half_open=5))
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        context = asking(front.certificates)
        async with connect(front.address, context) as kept:
            for number in range(2000):
                sock = stack.enter_context(knock(front, f"127.0.1.{number % 200 + 1}"))
                sock.send(PART_OF_HELLO)
                if number % 100 == 0:
                    assert number_of(await kept.ask(request(number))) == number
                    await is_served(front, context)
                    assert len(admission.half_open) <= 500
            await until(lambda: front.count("client_half_open_connections", listener=NAME) == 500)
        assert front.errors == {"evicted": 1500}
        assert len(admission.sources) <= 201
        front.listener.drain()
        await until(lambda: front.clients == 0)
    assert front.errors == {"evicted": 1500, "drain": 500}
    assert len(admission.sources) == len(admission.half_open) == 0


# Limits of one address ------------------------------------------------------------------------------------------------


async def test_connections_of_one_address_are_bounded_and_others_are_served(certificates: Certificates) -> None:
    admission = Admission(per_address=AddressLimits(max_clients=2))
    async with open_front(certificates, admission=admission) as front, front.client() as one, front.client() as two:
        with knock(front) as third:
            await ends(third)
        assert front.count("limit_rejections_total", limit="address_max_clients") == 1
        assert front.log.entries[0]["setting"] == "per_address.max_clients"
        await is_served(front, asking(front.certificates), "127.0.0.2")
        for client in (one, two):
            assert number_of(await client.ask(request(4))) == 4
    assert len(admission.sources) == 0


async def test_handshakes_a_second_of_one_address_are_bounded(certificates: Certificates, clock: MockClock) -> None:
    admission = Admission(per_address=AddressLimits(handshakes_per_second=1, handshake_burst=2))
    async with open_front(certificates, admission=admission) as front:
        for _ in range(2):
            async with front.client() as client:
                await client.ask(request())
        with knock(front) as third:
            await ends(third)
        assert front.count("limit_rejections_total", limit="address_handshakes_per_second") == 1
        await trio.sleep(2)
        async with front.client() as client:
            assert number_of(await client.ask(request(9))) == 9
        assert clock.current_time() < 5


class Exhausted(socket.socket):
    """A listening socket in a process that is short of something for a while."""

    failures = (errno.EMFILE, errno.ENOBUFS, errno.ECONNABORTED)

    def accept(self) -> tuple[socket.socket, object]:
        """Fail first."""
        if self.failures:
            number, *self.failures = self.failures  # type: ignore[assignment]
            raise OSError(number, "as if")
        return super().accept()


async def test_clients_wait_while_there_are_no_descriptors(certificates: Certificates, clock: MockClock) -> None:
    listening = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    async with open_front(certificates, listening=listening) as front, front.client() as client:
        assert number_of(await client.ask(request(3))) == 3
    assert 0.2 <= clock.current_time() < 1
    assert [entry["event"] for entry in front.log.entries] == ["can't accept clients"]  # once a second at the most


# One client's faults --------------------------------------------------------------------------------------------------


async def test_a_fault_of_the_gateway_costs_one_client_its_connection_and_no_other(front: Front) -> None:
    async with front.client() as bystander:
        await bystander.ask(request())
        async with front.client() as unlucky:
            front.desk.fault = RuntimeError("a bug")
            with pytest.raises(StreamClosedError):
                await unlucky.ask(request())
            front.desk.fault = None
        assert number_of(await bystander.ask(request(8))) == 8
    assert front.errors == {"internal": 1}
    assert isinstance(front.log.entries[0]["exc_info"], RuntimeError)


def signed_anew(certificate: x509.Certificate, authority: Authority, old: bytes, new: bytes) -> bytes:
    """A certificate with other bytes in it, as PEM, under a signature that fits them."""
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


#: Certificates that OpenSSL takes and that stricter readers do not: old bytes, new bytes.
ODD: dict[str, tuple[bytes, bytes]] = {
    "an asterisk in a PrintableString": (b"\x0c\x05alice", b"\x13\x05al*ce"),
    "version 5": (bytes.fromhex("a003020102"), bytes.fromhex("a003020104")),
}


@pytest.mark.parametrize("what", ODD)
async def test_a_certificate_that_can_t_be_read_is_nobody_s(front: Front, what: str) -> None:
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
    assert front.errors == {"not_authenticated": 1}


async def test_names_in_certificates_do_not_reach_the_log(certificates: Certificates) -> None:
    async with open_front(certificates, match=MatchConfig(subject_cn=("nobody",))) as front:
        name = "eve\n2026-01-01 [info] all is well\x1b[2J"
        pair = certificates.pair("eve")
        certificates.clients_ca.issue_client(name).write(*pair)
        async with front.client(context=client_context(*pair, certificates.path("gateway_ca.pem"))) as client:
            await client.ask(request())
    assert front.log.entries
    assert "well" not in repr(front.log.entries)


# Drain ----------------------------------------------------------------------------------------------------------------


async def test_drain_waits_neither_for_handshakes_nor_for_those_who_come(front: Front) -> None:
    with knock(front) as silent, knock(front) as half:
        half.send(b"\x16\x03\x01\x02\x00\x01")
        await until(lambda: front.clients == 2)
        front.listener.drain()
        with trio.fail_after(5):
            await ends(silent)
            await ends(half)
        with pytest.raises(ConnectionRefusedError):
            knock(front)
    assert front.errors == {"drain": 2}


async def test_a_listener_that_is_drained_before_it_begins_serves_nobody(certificates: Certificates) -> None:
    async with open_front(certificates) as front:
        front.listener.drain()
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionRefusedError):
            knock(front)


async def test_who_comes_with_the_drain_keeps_it_from_nothing(certificates: Certificates) -> None:
    """The listener is woken by a client, and before it takes that one, it is drained: trio takes turns by chance."""
    for _ in range(20):
        async with open_front(certificates) as front, trio.open_nursery() as nursery:
            wakes, woken = socket.socketpair()

            async def drain(front: Front = front, woken: socket.socket = woken) -> None:
                await trio.lowlevel.wait_readable(woken)
                front.listener.drain()

            nursery.start_soon(drain)
            await wait_all_tasks_blocked()
            with wakes, woken, knock(front) as client:
                wakes.send(b"!")
                await ends(client)
            await until(lambda: front.clients == 0)
            with pytest.raises(ConnectionRefusedError):
                knock(front)


async def test_drain_may_come_at_any_moment(front: Front) -> None:
    """Wherever a client is just then, nobody is waited for, and a request is answered or was never dispatched."""

    async def drained_after(step: int) -> bool:
        async with open_front(front.certificates) as drained, trio.open_nursery() as nursery:
            answered = trio.Event()
            instrument = DrainAtStep(drained, step)
            trio.lowlevel.add_instrument(instrument)
            nursery.start_soon(come_and_ask, drained, answered)
            try:
                # Be there whenever others run, so that the drain falls between what wakes them and what they do.
                while not (instrument.drained or answered.is_set()):
                    await trio.lowlevel.checkpoint()
            finally:
                trio.lowlevel.remove_instrument(instrument)
            in_time = instrument.drained
            instrument.drain()
            await until(lambda: drained.clients == 0)
            nursery.cancel_scope.cancel()
        assert len(drained.desk.asked) == drained.desk.answered
        return in_time

    step = 1
    while await drained_after(step):
        step += 1
        assert step < 400
    assert step > 10


class DrainAtStep(trio.abc.Instrument):
    """Drains a listener after so many steps of any tasks."""

    def __init__(self, front: Front, step: int) -> None:
        self._front = front
        self._left = step
        self.drained = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - the name is trio's
        """Count them."""
        self._left -= 1
        if self._left == 0:
            self.drain()

    def drain(self) -> None:
        """Drain now."""
        if not self.drained:
            self.drained = True
            self._front.listener.drain()


async def come_and_ask(front: Front, answered: trio.Event | None = None) -> None:
    """A client that stays until it is let go, if it does not come too late."""
    try:
        sock = knock(front)
    except ConnectionRefusedError:
        return
    stream = TlsStream(sock, asking(front.certificates), server_side=False, server_name="localhost")
    try:
        await stream.handshake()
        await stream.send_all(request())
        while await stream.receive_some():
            if answered is None:
                break
            answered.set()
    except (StreamClosedError, TlsError):
        pass
    finally:
        stream.close()


# Leaks ----------------------------------------------------------------------------------------------------------------


async def test_a_listener_cancelled_at_any_step_leaves_no_descriptor_behind(certificates: Certificates) -> None:
    async def story() -> None:
        async with open_front(certificates) as front:
            uses: list[Callable[[Front], Awaitable[None]]] = [come_and_ask, come_and_ask, come_and_leave]
            async with trio.open_nursery() as nursery:
                for use in uses:
                    nursery.start_soon(use, front)

    await story()
    before = descriptors()
    assert await cancelled_everywhere(story, 400) > 10
    assert descriptors() == before


async def come_and_leave(front: Front) -> None:
    """A client that only knocks."""
    with suppress(ConnectionRefusedError), knock(front):
        await trio.lowlevel.checkpoint()
