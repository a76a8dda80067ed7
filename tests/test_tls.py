"""TLS on both sides, over real sockets: handshakes and their failures, resumption, records, rude peers, leaks."""

import gc
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from kmip_lab.certs import Authority
from OpenSSL import SSL
from trio.testing import wait_all_tasks_blocked

from gateway.errors import StreamClosedError, TlsError
from gateway.tls import Policy, ServerContext, TlsStream, check_server, client_context, server_context
from tests.kit.processes import HOSTS, Certificates
from tests.kit.streams import (
    TLS_1_2,
    TLS_1_3,
    VERSIONS,
    Pair,
    asking,
    cancelled_everywhere,
    connected,
    cut_off,
    descriptors,
    receive_exactly,
    serving,
    shake_hands,
    shaken,
    streams,
)

RECORD = 16384
SIZES = [0, 1, RECORD, RECORD + 1, 1 << 20]
both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("ecdsa"))


@pytest.fixture(scope="module")
def rsa(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("rsa"), "rsa")


@pytest.fixture(params=["certificates", "rsa"])
def either(request: pytest.FixtureRequest) -> Certificates:
    """ECDSA, then RSA."""
    found: Certificates = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def pair(certificates: Certificates) -> AsyncIterator[Pair]:
    async with shaken(serving(certificates), asking(certificates)) as pair:
        yield pair


@asynccontextmanager
async def failing(server: SSL.Context, client: SSL.Context) -> AsyncIterator[tuple[Pair, list[TlsError]]]:
    """Both ends of a connection whose handshake is to fail, and what each end says of it, the server first."""
    async with streams(server, client) as pair:
        said: list[TlsError] = []

        async def try_it(stream: TlsStream) -> None:
            try:
                await stream.handshake()
                if stream is pair.client:
                    await stream.receive_some()  # in TLS 1.3 a client hears of it only now
            except TlsError as error:
                said.append(error)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for stream in pair:
                    nursery.start_soon(try_it, stream)
        yield pair, said


async def reasons(server: SSL.Context, client: SSL.Context) -> list[str]:
    """Why a handshake fails, in the words of the end that finds out and then of the other."""
    async with failing(server, client) as (_pair, said):
        return [error.reason for error in said]


def client_shows(
    certificates: Certificates, name: str, authority: Authority, *, begins: float = -1, ends: float = 1
) -> SSL.Context:
    """A client whose certificate is valid from so many days after now until so many."""
    pair = certificates.pair(name)
    authority.issue_client("alice", not_before=days(begins), not_after=days(ends)).write(*pair)
    return client_context(*pair, certificates.path("gateway_ca.pem"))


def server_shows(
    certificates: Certificates, name: str, authority: Authority, *, begins: float = -1, ends: float = 1
) -> SSL.Context:
    """A server whose certificate is valid from so many days after now until so many."""
    pair = certificates.pair(name)
    authority.issue_server("gateway", HOSTS, not_before=days(begins), not_after=days(ends)).write(*pair)
    return server_context(*pair, certificates.path("clients_ca.pem"))


def days(number: float) -> datetime:
    """So many days from now."""
    return datetime.now(UTC) + timedelta(days=number)


def reset(stream: TlsStream) -> None:
    """Close so that the peer gets a reset."""
    stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


def common_name(certificate: x509.Certificate | None) -> object:
    assert certificate is not None
    return certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


# Handshakes -----------------------------------------------------------------------------------------------------------


@both_versions
async def test_both_ends_know_each_other_after_the_handshake(either: Certificates, version: str) -> None:
    async with shaken(serving(either), asking(either, version=version)) as pair:
        assert pair.client.version == pair.server.version == version
        assert not pair.client.resumed
        assert not pair.server.resumed
        assert common_name(pair.server.peer_certificate()) == "alice"
        assert common_name(pair.client.peer_certificate()) == "gateway"
        check_server(pair.client, "localhost", frozenset())


@pytest.mark.parametrize(("name", "indicated"), [("localhost", b"localhost"), ("127.0.0.1", None), (None, None)])
async def test_a_dns_name_is_indicated_and_none_is_needed(
    certificates: Certificates, name: str | None, indicated: bytes | None
) -> None:
    async with shaken(serving(certificates), asking(certificates), name) as pair:
        assert pair.server.connection.get_servername() == indicated
        check_server(pair.client, "127.0.0.1", frozenset())


@both_versions
async def test_only_suites_with_forward_secrecy_are_modern(either: Certificates, version: str) -> None:
    async with shaken(serving(either), asking(either, version=version)) as pair:
        suites = pair.server.connection.get_cipher_list()
    old = [suite for suite in suites if not suite.startswith(("TLS_", "ECDHE-", "DHE-"))]
    weak = [suite for suite in suites if not any(word in suite for word in ("GCM", "CHACHA20"))]
    assert (old, weak) == ([], [])


@pytest.mark.parametrize("suite", ["AES128-SHA256", "AES256-SHA256"])
async def test_the_mandatory_suites_of_the_profiles_need_the_compatible_policy(rsa: Certificates, suite: str) -> None:
    def only() -> SSL.Context:
        context = asking(rsa, version=TLS_1_2)
        context.set_cipher_list(suite.encode())
        return context

    assert (await reasons(serving(rsa, "modern"), only()))[0] == "no_shared_cipher"
    async with shaken(serving(rsa, "compatible"), only()) as pair:
        assert pair.server.connection.get_cipher_name() == suite


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1.1"])
@pytest.mark.parametrize("policy", [policy.name.lower() for policy in Policy])
async def test_old_versions_need_the_legacy_policy(rsa: Certificates, version: str, policy: str) -> None:
    context = asking(rsa, version=version)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    if policy != "legacy":
        assert (await reasons(serving(rsa, policy), context))[0] == "version"
        return
    async with shaken(serving(rsa, policy), context) as pair:
        assert pair.server.version == version


def test_files_that_openssl_does_not_take_are_named(certificates: Certificates, tmp_path: Path) -> None:
    certificate, key = certificates.pair("server")
    ca = certificates.path("clients_ca.pem")
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    other_key = certificates.client("alice")[1]
    for files in [(bad, key, ca), (certificate, bad, ca), (certificate, other_key, ca), (certificate, key, bad)]:
        wrong = next(file for file in files if file in (bad, other_key))
        with pytest.raises(TlsError, match=wrong.name):
            server_context(*files)


def test_sessions_can_be_resumed_for_as_long_as_is_said(certificates: Certificates) -> None:
    ca = certificates.path("clients_ca.pem")
    assert server_context(*certificates.pair("server"), ca, resumption_lifetime=60).get_timeout() == 60


# Handshakes that fail -------------------------------------------------------------------------------------------------


@both_versions
async def test_a_client_without_a_certificate_is_refused(certificates: Certificates, version: str) -> None:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(VERSIONS[version])
    context.set_max_proto_version(VERSIONS[version])
    assert await reasons(serving(certificates), context) == ["no_certificate", "alert"]


@pytest.mark.parametrize(("reason", "begins", "ends"), [("expired", -2, -1), ("not_yet_valid", 1, 2)])
async def test_certificates_out_of_their_time_are_refused_on_both_sides(
    certificates: Certificates, reason: str, begins: float, ends: float
) -> None:
    stale_client = client_shows(certificates, reason, certificates.clients_ca, begins=begins, ends=ends)
    assert await reasons(serving(certificates), stale_client) == [reason, "alert"]
    stale_server = server_shows(certificates, f"server-{reason}", certificates.gateway_ca, begins=begins, ends=ends)
    assert await reasons(stale_server, asking(certificates)) == [reason, "alert"]


async def test_certificates_of_a_foreign_ca_are_refused_on_both_sides(certificates: Certificates) -> None:
    foreign_client = client_shows(certificates, "foreign", Authority("Clients CA"))
    assert await reasons(serving(certificates), foreign_client) == ["unknown_ca", "alert"]
    foreign_server = server_shows(certificates, "foreign-server", Authority("Gateway CA"))
    assert await reasons(foreign_server, asking(certificates)) == ["unknown_ca", "alert"]


async def test_a_server_s_certificate_is_none_for_a_client(certificates: Certificates) -> None:
    pair = certificates.pair("purpose")
    certificates.clients_ca.issue_server("alice", HOSTS).write(*pair)
    context = client_context(*pair, certificates.path("gateway_ca.pem"))
    assert await reasons(serving(certificates), context) == ["purpose", "alert"]


async def test_a_client_s_certificate_is_none_for_a_server(certificates: Certificates) -> None:
    pair = certificates.pair("server-purpose")
    certificates.gateway_ca.issue_client("localhost", dns=["localhost"]).write(*pair)
    server = server_context(*pair, certificates.path("clients_ca.pem"))
    assert await reasons(server, asking(certificates)) == ["purpose", "alert"]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n", "not_tls"),
        (b"CONNECT gateway:5696 HTTP/1.1\r\n\r\n", "not_tls"),
        (b"\x42\x00\x78\x01\x00\x00\x00\x60" + bytes(96), "not_tls"),  # KMIP without TLS
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not_tls"),
        (bytes(64), "not_tls"),
        (b"\x16\x03\x01\x00\x05hello", "tls"),
        (b"\x16\x03\x01\xff\xff" + bytes(64), "tls"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "tls"),
    ],
    ids=["http", "proxy", "kmip", "ssh", "zeros", "no hello", "too long", "alert"],
)
async def test_what_is_no_handshake_is_refused(certificates: Certificates, sent: bytes, reason: str) -> None:
    async with streams(serving(certificates), asking(certificates)) as pair:
        pair.client._socket.send(sent)
        with pytest.raises(TlsError) as refused:
            await pair.server.handshake()
        assert refused.value.reason == reason


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02"], ids=["nothing", "half a record's head"])
async def test_a_client_that_leaves_before_the_handshake_is_gone(certificates: Certificates, sent: bytes) -> None:
    async with streams(serving(certificates), asking(certificates)) as pair:
        pair.client._socket.send(sent)
        pair.client.close()
        with pytest.raises(StreamClosedError):
            await pair.server.handshake()


# Whom a handshake has reached -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
async def test_the_server_has_each_of_its_names(pair: Pair, name: str) -> None:
    check_server(pair.client, name, frozenset())


@pytest.mark.parametrize("name", ["example.org", "localhost.example.org", "127.0.0.2", "::2"])
async def test_the_server_has_no_other_name(pair: Pair, name: str) -> None:
    with pytest.raises(TlsError) as refused:
        check_server(pair.client, name, frozenset())
    assert refused.value.reason == "hostname"


async def test_a_pin_stands_for_one_certificate(pair: Pair) -> None:
    certificate = pair.client.peer_certificate()
    assert certificate is not None
    pin = certificate.fingerprint(hashes.SHA256()).hex()
    check_server(pair.client, None, frozenset({pin}))
    check_server(pair.client, "localhost", frozenset({"00" * 32, pin}))
    for name, pins, reason in [
        (None, {"00" * 32}, "pin"),
        ("localhost", {"00" * 32}, "pin"),
        ("example.org", {pin}, "hostname"),
        (None, set(), "certificate"),
        ("", set(), "certificate"),
    ]:
        with pytest.raises(TlsError) as refused:
            check_server(pair.client, name, frozenset(pins))
        assert refused.value.reason == reason


async def test_without_a_ca_the_pin_alone_decides(certificates: Certificates) -> None:
    foreign = server_shows(certificates, "pinned", Authority("Nobody's CA"))
    async with shaken(foreign, asking(certificates, ca=None)) as pair:
        certificate = pair.client.peer_certificate()
        assert certificate is not None
        check_server(pair.client, None, frozenset({certificate.fingerprint(hashes.SHA256()).hex()}))
        with pytest.raises(TlsError):
            check_server(pair.client, None, frozenset({"ab" * 32}))
        assert not pair.client.resumed


# Resumption -----------------------------------------------------------------------------------------------------------

RESUMPTIONS = [(TLS_1_2, True), (TLS_1_2, False), (TLS_1_3, True)]
each_resumption = pytest.mark.parametrize(
    ("version", "tickets"), RESUMPTIONS, ids=["1.2 by ticket", "1.2 by session id", "1.3"]
)


@pytest.mark.parametrize("polite", [True, False], ids=["polite", "rude"])
@each_resumption
async def test_pyopenssl_s_client_resumes(
    certificates: Certificates, version: str, *, tickets: bool, polite: bool
) -> None:
    server, client = serving(certificates), asking(certificates, version=version)
    if not tickets:
        client.set_options(SSL.OP_NO_TICKET)
    session = None
    for resumed in (False, True, True):
        async with streams(server, client) as pair:
            if session is not None:
                pair.client.connection.set_session(session)
            await shake_hands(pair)
            assert pair.server.resumed is resumed
            assert pair.client.resumed is resumed
            assert common_name(pair.server.peer_certificate()) == "alice"
            await pair.server.send_all(b"answer")
            assert await pair.client.receive_some() == b"answer"  # in TLS 1.3 the tickets come first
            session = pair.client.connection.get_session()
            if polite:
                pair.client.connection.shutdown()
            pair.client._socket.shutdown(socket.SHUT_WR)
            assert await pair.server.receive_some() == b""
            pair.server.close_politely()
            pair.client.connection.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)  # it keeps its session


@each_resumption
async def test_the_standard_library_s_client_resumes(
    certificates: Certificates, version: str, *, tickets: bool
) -> None:
    server = serving(certificates)
    client = ssl.create_default_context(cafile=str(certificates.path("gateway_ca.pem")))
    client.load_cert_chain(*certificates.client("alice"))
    client.minimum_version = client.maximum_version = (
        ssl.TLSVersion.TLSv1_2 if version == TLS_1_2 else ssl.TLSVersion.TLSv1_3
    )
    if not tickets:
        client.options |= ssl.OP_NO_TICKET
    session: ssl.SSLSession | None = None

    def talk(sock: socket.socket) -> tuple[bool | None, bytes, ssl.SSLSession | None]:
        sock.settimeout(5)
        with client.wrap_socket(sock, server_hostname="localhost", session=session) as talking:
            talking.sendall(b"request")
            return talking.session_reused, talking.recv(100), talking.session

    async def serve(sock: socket.socket) -> None:
        stream = TlsStream(sock, server, server_side=True)
        await stream.handshake()
        seen.append((stream.resumed, common_name(stream.peer_certificate())))
        assert await stream.receive_some() == b"request"
        await stream.send_all(b"answer")
        await stream.aclose()

    for resumed in (False, True, True):
        connecting, accepted = connected()
        seen: list[tuple[bool, object]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, accepted)
            reused, answer, session = await trio.to_thread.run_sync(talk, connecting)
        assert (reused, answer) == (resumed, b"answer")
        assert seen == [(resumed, "alice")]


@both_versions
async def test_a_session_of_another_context_is_not_resumed(certificates: Certificates, version: str) -> None:
    client = asking(certificates, version=version)
    async with shaken(serving(certificates), client) as pair:
        await pair.server.send_all(b"answer")
        await pair.client.receive_some()
        session = pair.client.connection.get_session()
        assert session is not None
    async with streams(serving(certificates), client) as pair:
        pair.client.connection.set_session(session)
        await shake_hands(pair)
        assert not pair.server.resumed


async def resume(server: SSL.Context, client: SSL.Context, session: SSL.Session | None) -> tuple[bool, SSL.Session]:
    """Connect once. Returns whether that resumed the session, and the client's session afterwards."""
    async with streams(server, client) as pair:
        if session is not None:
            pair.client.connection.set_session(session)
        await shake_hands(pair)
        await pair.server.send_all(b"answer")
        assert await pair.client.receive_some() == b"answer"
        kept = pair.client.connection.get_session()
        assert kept is not None
        pair.client.close_politely()
        assert await pair.server.receive_some() == b""
        pair.server.close_politely()
        return pair.server.resumed, kept


@each_resumption
async def test_resumption_does_not_extend_the_lifetime_of_the_full_handshake(
    certificates: Certificates, version: str, *, tickets: bool
) -> None:
    """The client always uses the newest session that it was given. OpenSSL's clock can't be moved."""
    server = server_context(
        *certificates.pair("server"), certificates.path("clients_ca.pem"), "modern", resumption_lifetime=2
    )
    client = asking(certificates, version=version)
    if not tickets:
        client.set_options(SSL.OP_NO_TICKET)
    session = None
    for pause, resumed in [(0.0, False), (0.1, True), (0.9, True), (1.5, False), (0.1, True)]:
        await trio.sleep(pause)
        was_resumed, session = await resume(server, client, session)
        assert was_resumed is resumed


async def test_sessions_without_tickets_are_kept_up_to_a_number(certificates: Certificates) -> None:
    server = serving(certificates)
    assert isinstance(server, ServerContext)
    server._most = 3
    server._lifetime = 1
    client = asking(certificates, version=TLS_1_2)
    client.set_options(SSL.OP_NO_TICKET)
    sessions = [(await resume(server, client, None))[1] for _ in range(5)]
    assert [(await resume(server, client, session))[0] for session in sessions] == [True, True, True, False, False]
    await trio.sleep(1.1)
    _, session = await resume(server, client, None)  # sees that there is room again
    _, session = await resume(server, client, None)
    assert (await resume(server, client, session))[0]


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
async def test_sessions_with_tickets_are_not_kept(certificates: Certificates, version: str) -> None:
    server, client = serving(certificates), asking(certificates, version=version)
    assert isinstance(server, ServerContext)
    for _ in range(3):
        await resume(server, client, None)
    assert not server._expiry


# Bytes ----------------------------------------------------------------------------------------------------------------


@both_versions
@pytest.mark.parametrize("size", SIZES)
async def test_what_is_sent_arrives(certificates: Certificates, version: str, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with shaken(serving(certificates), asking(certificates, version=version)) as pair:
        for sender, receiver in [pair, reversed(pair)]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send_all, data)
                assert await receive_exactly(receiver, size) == data
            await sender.send_all(b"next")
            assert await receiver.receive_some() == b"next"


@both_versions
@pytest.mark.parametrize("size", [1, 320, RECORD])
async def test_an_answer_that_fits_goes_out_as_one_record(certificates: Certificates, version: str, size: int) -> None:
    async with shaken(serving(certificates), asking(certificates, version=version)) as pair:
        await pair.server.send_all(bytes(size))
        assert await pair.client.receive_some() == bytes(size)  # a read never returns more than a record
        await pair.server.send_all(bytes(RECORD + 1))
        assert [len(await pair.client.receive_some()) for _ in range(2)] == [RECORD, 1]


async def test_several_records_that_have_arrived_are_all_read(pair: Pair) -> None:
    for number in range(5):
        await pair.client.send_all(bytes([number]) * 10)
    assert [await pair.server.receive_some() for _ in range(5)] == [bytes([number]) * 10 for number in range(5)]


async def test_a_record_may_arrive_byte_by_byte(certificates: Certificates) -> None:
    """The client's bytes go through a relay that hands them on one at a time, handshake and all."""
    front, back = connected(), connected()
    client = TlsStream(front[0], asking(certificates), server_side=False, server_name="localhost")
    server = TlsStream(back[1], serving(certificates), server_side=True)
    inner = trio.SocketStream(trio.socket.from_stdlib_socket(front[1]))
    outer = trio.SocketStream(trio.socket.from_stdlib_socket(back[0]))

    async def onwards() -> None:
        async for data in inner:
            for byte in data:
                await outer.send_all(bytes([byte]))

    async def back_again() -> None:
        async for data in outer:
            await inner.send_all(data)

    async with trio.open_nursery() as nursery, inner, outer:
        nursery.start_soon(onwards)
        nursery.start_soon(back_again)
        await shake_hands(Pair(client, server))
        await client.send_all(b"request")
        assert await server.receive_some() == b"request"
        nursery.cancel_scope.cancel()
    client.close()
    server.close()


async def test_neither_end_waits_for_full_segments(pair: Pair) -> None:
    for stream in pair:
        assert stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_part_of_a_message_is_acknowledged_when_it_is_asked_for(pair: Pair) -> None:
    """On a kept connection the kernel would put it off for 40 ms, in the hope of an answer to send it with."""
    for _ in range(5):
        await pair.client.send_all(b"request")
        assert await pair.server.receive_some() == b"request"
        await pair.server.send_all(b"answer")
        assert await pair.client.receive_some() == b"answer"
    await pair.client.send_all(b"half of a request")
    assert await pair.server.receive_some()
    pair.server.acknowledge()
    assert _unacknowledged(pair.client) == 0


async def test_a_part_of_a_record_is_acknowledged_at_once(pair: Pair) -> None:
    server = pair.server
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.receive_some)
        await wait_all_tasks_blocked()
        pair.client._socket.send(b"\x17\x03\x03\x00\x20")
        await wait_all_tasks_blocked(0.005)
        assert _unacknowledged(pair.client) == 0
        nursery.cancel_scope.cancel()


def _unacknowledged(stream: TlsStream) -> int:
    """Segments under way: tcpi_unacked of linux/tcp.h."""
    information = stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    unacknowledged: int = struct.unpack_from("=8x5I", information)[4]
    return unacknowledged


# Ends -----------------------------------------------------------------------------------------------------------------


@both_versions
async def test_a_client_that_half_closes_after_its_request_gets_its_answer(
    certificates: Certificates, version: str
) -> None:
    async with shaken(serving(certificates), asking(certificates, version=version)) as pair:
        await pair.client.send_all(b"request")
        pair.client.connection.shutdown()
        pair.client._socket.shutdown(socket.SHUT_WR)
        assert await pair.server.receive_some() == b"request"
        await pair.server.send_all(bytes(RECORD))
        assert await pair.client.receive_some() == bytes(RECORD)
        assert await pair.server.receive_some() == b""
        await pair.server.aclose()
        assert await pair.client.receive_some() == b""


@both_versions
async def test_an_end_without_a_word_is_an_end(certificates: Certificates, version: str) -> None:
    async with shaken(serving(certificates), asking(certificates, version=version)) as pair:
        pair.client._socket.shutdown(socket.SHUT_WR)
        assert await pair.server.receive_some() == b""
        assert await pair.server.receive_some() == b""
        await pair.server.send_all(b"answer")
        assert await pair.client.receive_some() == b"answer"


@both_versions
async def test_a_reset_is_noticed_by_who_reads_and_by_who_writes(certificates: Certificates, version: str) -> None:
    for use in (TlsStream.receive_some, partial(TlsStream.send_all, data=bytes(1 << 20))):
        async with shaken(serving(certificates), asking(certificates, version=version)) as pair:
            reset(pair.client)
            with pytest.raises(StreamClosedError):
                await use(pair.server)


async def test_what_went_wrong_with_one_client_is_not_taken_for_anothers(
    certificates: Certificates, pair: Pair
) -> None:
    """What close_notify met there stays on OpenSSL's queue, which is the thread's; half a record is no end here."""
    async with shaken(serving(certificates), asking(certificates)) as leaving:
        await leaving.server.send_all(b"answer")
        await leaving.client.receive_some()  # and the tickets: nothing is unread that would make a reset of its leaving
        leaving.client.close()
        await leaving.server.send_all(b"answer")
        assert await leaving.server.receive_some() == b""
        await leaving.server.aclose()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.server.receive_some)
        await wait_all_tasks_blocked()
        pair.client._socket.send(b"\x17\x03\x03\x00\x20")
        await wait_all_tasks_blocked(0.005)
        nursery.cancel_scope.cancel()


async def test_a_broken_record_is_an_error(pair: Pair) -> None:
    pair.client._socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(TlsError) as broken:
        await pair.server.receive_some()
    assert broken.value.reason == "tls"


async def test_a_client_may_not_renegotiate(certificates: Certificates) -> None:
    willing = SSL.Context(SSL.TLS_METHOD)
    willing.set_max_proto_version(SSL.TLS1_2_VERSION)
    certificate, key = certificates.client("alice")
    willing.use_certificate_file(str(certificate))
    willing.use_privatekey_file(str(key))
    async with shaken(serving(certificates), willing) as pair:
        assert pair.client.connection.renegotiate()
        with trio.move_on_after(5) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_serve_until_it_ends, pair.server)
                with pytest.raises((TlsError, StreamClosedError)):
                    await pair.client.handshake()
                pair.client.close()
        assert not patience.cancelled_caught
        assert pair.server.connection.total_renegotiations() == 0


async def _serve_until_it_ends(stream: TlsStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except (TlsError, StreamClosedError):
        pass


async def test_a_stream_closed_by_another_task_ends_who_waits(certificates: Certificates) -> None:
    uses: list[Callable[[TlsStream], object]] = [
        TlsStream.receive_some,
        partial(TlsStream.send_all, data=bytes(64 << 20)),
        TlsStream.handshake,
    ]
    for use in uses:
        async with streams(serving(certificates), asking(certificates)) as pair:
            if use is not TlsStream.handshake:
                await shake_hands(pair)
            ended = trio.Event()

            async def wait(stream: TlsStream, use: Callable[..., object], ended: trio.Event) -> None:
                with pytest.raises(StreamClosedError):
                    await use(stream)  # type: ignore[misc]
                ended.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, pair.server, use, ended)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not ended.is_set()
                pair.server.close()
                with trio.fail_after(5):
                    await ended.wait()


async def test_a_closed_stream_leaves_alone_who_has_its_descriptor_now(pair: Pair) -> None:
    number = pair.server.fileno()
    pair.server.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert number in (ours.fileno(), theirs.fileno())
        for use in (TlsStream.handshake, TlsStream.receive_some, partial(TlsStream.send_all, data=b"astray")):
            with pytest.raises(StreamClosedError):
                await use(pair.server)
        assert not pair.server.is_quiet()
        pair.server.close_politely()
        await pair.server.aclose(linger=1)
        pair.server.close()
        for end in (ours, theirs):
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.recv(100)
        ours.send(b"still open")
        assert theirs.recv(100) == b"still open"
    assert pair.server.fileno() == -1


# Quiet ----------------------------------------------------------------------------------------------------------------


@both_versions
async def test_a_stream_is_quiet_while_tickets_are_all_that_comes(certificates: Certificates, version: str) -> None:
    async with shaken(serving(certificates), asking(certificates, version=version)) as pair:
        for _ in range(3):
            assert pair.client.is_quiet()
            assert pair.server.is_quiet()
        await pair.client.send_all(b"request")
        await pair.server.receive_some()
        assert pair.server.is_quiet()


ENDS: dict[str, Callable[[TlsStream], object]] = {
    "close_notify": TlsStream.close_politely,
    "end without a word": TlsStream.close,
    "reset": reset,
    "half-close": lambda stream: stream._socket.shutdown(socket.SHUT_WR),
    "bytes": lambda stream: stream.connection.send(b"unasked"),
    "garbage": lambda stream: stream._socket.send(bytes(100)),
}


@both_versions
@pytest.mark.parametrize("end", ENDS)
async def test_anything_else_is_not_quiet(certificates: Certificates, version: str, end: str) -> None:
    async with shaken(serving(certificates), asking(certificates, version=version)) as pair:
        assert pair.client.is_quiet()
        ENDS[end](pair.server)
        assert not pair.client.is_quiet()
        assert pair.client.spoke_unasked is (end == "bytes")


async def test_a_peer_whose_kernel_acknowledges_nothing_is_told_from_one_that_is_slow(pair: Pair) -> None:
    await pair.client.send_all(b"taken, though nobody reads it")
    assert not pair.client.is_unacknowledged(0)
    cut_off(pair.server._socket)
    await pair.client.send_all(b"swallowed")
    assert pair.client.is_unacknowledged(0)
    assert not pair.client.is_unacknowledged(3600)
    pair.client.close()
    assert not pair.client.is_unacknowledged(0)


LEAVES: dict[str, tuple[Callable[[TlsStream], object], bool]] = {
    "nothing": (lambda _stream: None, False),
    "bytes": (ENDS["bytes"], False),
    "close_notify alone": (lambda stream: stream.connection.shutdown(), False),
    "half-close": (ENDS["half-close"], True),
    "bytes and half-close": (lambda stream: (ENDS["bytes"](stream), ENDS["half-close"](stream)), True),
    "close_notify and close": (ENDS["close_notify"], True),
    "bytes, close_notify and close": (lambda stream: (ENDS["bytes"](stream), ENDS["close_notify"](stream)), True),
    "close without a word": (ENDS["end without a word"], True),
    "reset": (reset, True),
}


@both_versions
@pytest.mark.parametrize("end", LEAVES)
async def test_a_peer_has_left_after_a_fin_or_a_reset(certificates: Certificates, version: str, end: str) -> None:
    do, expected = LEAVES[end]
    async with shaken(serving(certificates), asking(certificates, version=version)) as pair:
        for _ in range(2):
            assert not pair.server.peer_has_left()
        do(pair.client)
        for _ in range(2):
            assert pair.server.peer_has_left() is expected
        pair.server.close()
        assert pair.server.peer_has_left()


async def test_a_key_manager_that_has_left_is_seen_from_the_connecting_side_too(pair: Pair) -> None:
    assert not pair.client.peer_has_left()
    pair.server.close_politely()
    assert pair.client.peer_has_left()


async def test_a_closed_stream_does_not_ask_about_a_descriptor_that_is_another_s(pair: Pair) -> None:
    assert not pair.server.peer_has_left()
    pair.server.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert pair.server.peer_has_left()


async def test_bytes_that_are_decrypted_already_are_not_quiet(pair: Pair) -> None:
    assert pair.client.is_quiet()  # the tickets are read
    await pair.server.send_all(b"two bytes and more")
    assert pair.client.connection.recv(2) == b"tw"
    assert not pair.client.is_quiet()
    assert pair.client.spoke_unasked


# Closing --------------------------------------------------------------------------------------------------------------


async def test_a_last_answer_survives_what_was_not_read(pair: Pair) -> None:
    """Closing with bytes unread would have the kernel send a reset after the answer, and overtake it."""

    async def client() -> bytes:
        await pair.client.send_all(bytes(200_000))
        await trio.sleep(0.05)
        await pair.client.send_all(bytes(200_000))
        answer = await receive_exactly(pair.client, 1 << 20)
        pair.client.close()
        return answer

    async def server() -> None:
        await pair.server.send_all(b"last words")
        await pair.server.aclose(linger=5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        assert await client() == b"last words"


async def test_a_peer_that_does_not_close_is_not_waited_for_longer_than_said(pair: Pair) -> None:
    with trio.fail_after(5):
        await pair.server.aclose(linger=0.05)
    assert pair.server.fileno() == -1


async def test_a_peer_that_never_stops_sending_is_not_read_for_ever(pair: Pair) -> None:
    async def flood() -> None:
        with suppress(StreamClosedError):
            while True:
                await pair.client.send_all(bytes(1 << 20))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await pair.server.aclose(linger=60)


async def test_the_peer_is_told_of_the_end(pair: Pair) -> None:
    pair.server.close_politely()
    assert await pair.client.receive_some() == b""
    assert pair.client.connection.get_shutdown() & SSL.RECEIVED_SHUTDOWN


async def test_the_peer_hears_the_end_of_tcp_too_while_it_is_waited_for(pair: Pair) -> None:
    async def wait_for_the_end() -> None:
        assert await pair.client.receive_some() == b""
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(pair.client._socket)
        assert pair.client._socket.recv(1) == b""
        pair.client.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_the_end)
        await pair.server.aclose(linger=60)


# Cancellation ---------------------------------------------------------------------------------------------------------


async def test_cancelling_at_every_step_leaves_no_descriptor_behind(certificates: Certificates) -> None:
    server, client = serving(certificates), asking(certificates)
    size = 4 * RECORD

    async def story() -> None:
        async with shaken(server, client) as pair:
            pair.client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.client.send_all, bytes(size))
                assert len(await receive_exactly(pair.server, size)) == size
            await pair.server.send_all(b"answer")
            await pair.client.receive_some()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(pair.server.aclose, linger=1))
                await trio.lowlevel.checkpoint()
                nursery.start_soon(pair.client.aclose)

    await story()
    gc.collect()
    before = descriptors()
    assert await cancelled_everywhere(story) > 10
    gc.collect()
    assert descriptors() == before
