"""The admin port over TLS: who may read, and bounds for clients that are slow."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
import trio

from gateway.admin.access import Access
from gateway.admin.routes import Routes
from gateway.admin.server import AdminLimits, AdminServer
from gateway.tls import admin_context
from tests.kit.processes import Certificates

TOKEN: Final = "0123456789abcdef" * 2
FAST: Final = AdminLimits(connections=4, idle=2.0, read=0.5)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("admin"))


@asynccontextmanager
async def running(
    certificates: Certificates, client_ca: str | None, access: Access, limits: AdminLimits = FAST
) -> AsyncIterator[tuple[AdminServer, int]]:
    """Run an admin server with TLS; yield it with its port."""
    context = admin_context(
        *certificates.pair("server"), client_ca=None if client_ca is None else certificates.path(client_ca)
    )
    server = AdminServer(Routes(lambda: [b"answer 42\n"], lambda: None, access=access), limits, context)
    until = trio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run, listening, until)
            yield server, listening.getsockname()[1]
            until.set()


def client(certificates: Certificates, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates.path("gateway_ca.pem")))
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


async def ask(port: int, path: str, context: ssl.SSLContext, headers: str = "") -> str:
    """Return the status line of an answer."""
    return (await trio.to_thread.run_sync(_ask, port, path, context, headers)).partition("\r\n")[0]


def _ask(port: int, path: str, context: ssl.SSLContext, headers: str) -> str:
    with (
        socket.create_connection(("127.0.0.1", port), 5) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        tls.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n".encode())
        answer = b""
        while data := tls.recv(4096):
            answer += data
        return answer.decode()


async def test_metrics_need_a_certificate_and_probes_need_none(certificates: Certificates) -> None:
    access = Access(needs_certificate=True)
    async with running(certificates, "clients_ca.pem", access) as (_server, port):
        known = client(certificates, certificates.client("prometheus"))
        stranger = client(certificates)
        assert await ask(port, "/metrics", known) == "HTTP/1.1 200 OK"
        assert await ask(port, "/metrics", stranger) == "HTTP/1.1 403 Forbidden"
        assert await ask(port, "/livez", stranger) == "HTTP/1.1 200 OK"
        assert await ask(port, "/readyz", stranger) == "HTTP/1.1 200 OK"


async def test_a_certificate_of_a_foreign_ca_ends_the_handshake(certificates: Certificates) -> None:
    foreign = client(certificates, certificates.credential("foreign"))
    async with running(certificates, "clients_ca.pem", Access(needs_certificate=True)) as (_server, port):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(port, "/livez", foreign)
        assert await ask(port, "/livez", client(certificates)) == "HTTP/1.1 200 OK"


async def test_metrics_need_a_token_over_tls(certificates: Certificates) -> None:
    context = client(certificates)
    async with running(certificates, None, Access([TOKEN])) as (_server, port):
        assert await ask(port, "/metrics", context, f"Authorization: Bearer {TOKEN}\r\n") == "HTTP/1.1 200 OK"
        assert await ask(port, "/metrics", context) == "HTTP/1.1 401 Unauthorized"
        assert await ask(port, "/livez", context) == "HTTP/1.1 200 OK"


async def test_no_session_is_resumed(certificates: Certificates) -> None:
    def twice(version: ssl.TLSVersion, port: int) -> bool:
        context = client(certificates)
        context.maximum_version = version
        session = None
        for _ in range(2):
            with (
                socket.create_connection(("127.0.0.1", port), 5) as sock,
                context.wrap_socket(sock, server_hostname="localhost", session=session) as tls,
            ):
                tls.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                while tls.recv(4096):
                    pass
                session, reused = tls.session, tls.session_reused
        return bool(reused)

    async with running(certificates, None, Access()) as (_server, port):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            assert not await trio.to_thread.run_sync(twice, version, port)


async def test_half_open_connections_are_bounded_in_time_and_number(certificates: Certificates) -> None:
    async with running(certificates, None, Access()) as (server, port):
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(8)]
        for stream in silent[4:]:
            await stream.send_all(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a handshake
        await trio.sleep(0.1)
        assert len(server._connections) <= FAST.connections
        assert await ask(port, "/livez", client(certificates)) == "HTTP/1.1 200 OK"
        await trio.sleep(2 * FAST.read)
        assert not server._connections
        for stream in silent:
            with trio.fail_after(5), suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
            await stream.aclose()


@pytest.mark.parametrize("sent", [b"GET /livez HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), b"\0"])
async def test_bytes_that_are_no_tls_disturb_nobody(certificates: Certificates, sent: bytes) -> None:
    async with running(certificates, None, Access()) as (server, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(sent)
        assert await ask(port, "/livez", client(certificates)) == "HTTP/1.1 200 OK"
        await trio.sleep(2 * FAST.read)
        assert not server._connections
        await stream.aclose()


async def test_another_access_closes_the_connections_of_the_earlier_one(certificates: Certificates) -> None:
    async with running(certificates, None, Access()) as (server, port):
        context = client(certificates)

        def kept() -> ssl.SSLSocket:
            tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname="localhost")
            tls.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in tls.recv(4096)
            return tls

        tls = await trio.to_thread.run_sync(kept)
        server.settings_changed((), Access([TOKEN]), server._context)
        with tls:
            assert b"answer" not in await trio.to_thread.run_sync(tls.recv, 4096)
        assert await ask(port, "/metrics", context) == "HTTP/1.1 401 Unauthorized"
        server.settings_changed((), Access(), None)

        def plainly() -> bytes:
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                return sock.recv(100)

        assert (await trio.to_thread.run_sync(plainly)).startswith(b"HTTP/1.1 200")
