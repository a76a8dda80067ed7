"""Resumption: which sessions can be resumed, for how long, and how many are stored."""

import os
import socket
import ssl
import subprocess
import sys
from contextlib import suppress

import pytest
import trio
from OpenSSL import SSL

from gateway.tls import ServerContext, TlsStream, server_context
from gateway.tls.verification import Verification
from tests.kit.handshakes import common_name
from tests.kit.processes import Certificates
from tests.kit.streams import (
    TLS_1_2,
    TLS_1_3,
    client_tls,
    connected,
    server_tls,
    shake_hands,
    shaken,
    streams,
)

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


RESUMPTIONS = [(TLS_1_2, True), (TLS_1_2, False), (TLS_1_3, True)]
each_resumption = pytest.mark.parametrize(
    ("version", "tickets"), RESUMPTIONS, ids=["1.2 by ticket", "1.2 by session id", "1.3"]
)


@pytest.mark.parametrize("polite", [True, False], ids=["polite", "rude"])
@each_resumption
async def test_pyopenssl_s_client_resumes(
    certificates: Certificates, version: str, *, tickets: bool, polite: bool
) -> None:
    server, client = server_tls(certificates), client_tls(certificates, version=version)
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
            assert await pair.client.receive_some() == b"answer"  # in TLS 1.3 the tickets arrive first
            session = pair.client.connection.get_session()
            if polite:
                pair.client.connection.shutdown()
            pair.client._socket.shutdown(socket.SHUT_WR)
            assert await pair.server.receive_some() == b""
            pair.server.close_politely()
            pair.client.connection.set_shutdown(
                SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN
            )  # the client keeps its session


@each_resumption
async def test_the_standard_library_s_client_resumes(
    certificates: Certificates, version: str, *, tickets: bool
) -> None:
    server = server_tls(certificates)
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
    client = client_tls(certificates, version=version)
    async with shaken(server_tls(certificates), client) as pair:
        await pair.server.send_all(b"answer")
        await pair.client.receive_some()
        session = pair.client.connection.get_session()
        assert session is not None
    async with streams(server_tls(certificates), client) as pair:
        pair.client.connection.set_session(session)
        await shake_hands(pair)
        assert not pair.server.resumed


async def resume(server: SSL.Context, client: SSL.Context, session: SSL.Session | None) -> tuple[bool, SSL.Session]:
    """Connect, and return whether that resumed the session, and the client's session afterwards."""
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
async def test_resumption_does_not_extend_a_sessions_lifetime(
    certificates: Certificates, version: str, *, tickets: bool
) -> None:
    """The client always uses its newest session. OpenSSL's clock can't be moved."""
    server = server_context(
        *certificates.pair("server"), certificates.path("clients_ca.pem"), "modern", resumption_lifetime=2
    )
    client = client_tls(certificates, version=version)
    if not tickets:
        client.set_options(SSL.OP_NO_TICKET)
    session = None
    for pause, resumed in [(0.0, False), (0.1, True), (0.9, True), (1.5, False), (0.1, True)]:
        await trio.sleep(pause)
        was_resumed, session = await resume(server, client, session)
        assert was_resumed is resumed


async def test_stored_sessions_are_bounded(certificates: Certificates) -> None:
    server = server_tls(certificates)
    assert isinstance(server, ServerContext)
    server._max_stored = 3
    server._lifetime = 1
    client = client_tls(certificates, version=TLS_1_2)
    client.set_options(SSL.OP_NO_TICKET)
    sessions = [(await resume(server, client, None))[1] for _ in range(5)]
    assert [(await resume(server, client, session))[0] for session in sessions] == [True, True, True, False, False]
    await trio.sleep(1.1)
    _, session = await resume(server, client, None)  # turns storing on again
    _, session = await resume(server, client, None)
    assert (await resume(server, client, session))[0]


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
async def test_sessions_with_tickets_are_not_stored(certificates: Certificates, version: str) -> None:
    server, client = server_tls(certificates), client_tls(certificates, version=version)
    assert isinstance(server, ServerContext)
    for _ in range(3):
        await resume(server, client, None)
    assert not server._expiry


def test_a_full_handshake_issues_one_ticket(certificates: Certificates) -> None:
    server = SSL.Connection(server_tls(certificates), None)
    client = SSL.Connection(client_tls(certificates, version=TLS_1_3), None)
    server.set_accept_state()
    client.set_connect_state()
    for side in (server, client):
        side.set_app_data(Verification())
    written = b""
    for _ in range(3):
        for side, other in ((client, server), (server, client)):
            with suppress(SSL.WantReadError):
                side.do_handshake()
            with suppress(SSL.WantReadError):
                written = side.bio_read(1 << 16)
                other.bio_write(written)
    assert client.get_finished()
    assert len(written) == 5 + int.from_bytes(written[3:5], "big")  # the server's last bytes are one record: a ticket


def test_a_configuration_of_openssl_in_the_environment_counts() -> None:
    program = (
        "import os; os.environ['OPENSSL_CONF'] = '/nonexistent'; import gateway; assert os.environ['OPENSSL_CONF']"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    program = "import os, gateway; assert 'OPENSSL_CONF' not in os.environ"
    without = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
    subprocess.run([sys.executable, "-c", program], check=True, env=without)
