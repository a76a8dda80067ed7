"""What operators see, over plain HTTP, and that nobody who can reach it can end it."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
import trio

from gateway.admin.server import application, serve_admin
from tests.streams import cancelled_everywhere, descriptors


@dataclass
class Admin:
    """An admin server that runs."""

    address: tuple[str, int]
    listening: socket.socket
    until: trio.Event = field(default_factory=trio.Event)
    unreadiness: str | None = None
    exposition: Callable[[], bytes] = lambda: b"answer 42\n"

    def expose(self) -> bytes:
        """What the gateway's metrics would be."""
        return self.exposition()

    async def send(self, data: bytes) -> bytes:
        """Send bytes and read to the end, for a while; nothing where the connection is cut."""
        stream = await trio.open_tcp_stream(*self.address)
        received = b""
        async with stream:
            with trio.move_on_after(0.2), suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                await stream.send_eof()
                async for chunk in stream:
                    received += chunk
        return received

    async def ask(self, path: str, method: str = "GET", headers: str = "") -> bytes:
        """The whole answer to a request."""
        request = f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n{headers}\r\n"
        stream = await trio.open_tcp_stream(*self.address)
        async with stream:
            await stream.send_all(request.encode())
            return b"".join([chunk async for chunk in stream])


@asynccontextmanager
async def running() -> AsyncIterator[Admin]:
    """An admin server for the length of a block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        admin = Admin(listening.getsockname(), listening)
        app = application(admin.expose, lambda: admin.unreadiness)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_admin, listening, app, admin.until)
                yield admin
                admin.until.set()


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    async with running() as admin:
        yield admin


async def test_metrics_are_served_in_prometheus_format(admin: Admin) -> None:
    answer = await admin.ask("/metrics")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"content-type: text/plain; version=0.0.4" in answer
    assert answer.endswith(b"\r\n\r\nanswer 42\n")


async def test_readiness_has_its_reason_and_liveness_does_not_depend_on_it(admin: Admin) -> None:
    assert (await admin.ask("/readyz")).startswith(b"HTTP/1.1 200")
    admin.unreadiness = "no key manager can be reached"
    answer = await admin.ask("/readyz")
    assert answer.startswith(b"HTTP/1.1 503")
    assert answer.endswith(b"no key manager can be reached\n")
    assert (await admin.ask("/livez")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("path", "method", "status"), [("/", "GET", 404), ("/metrics", "POST", 405)])
async def test_there_is_nothing_else(admin: Admin, path: str, method: str, status: int) -> None:
    assert (await admin.ask(path, method)).startswith(f"HTTP/1.1 {status}".encode())


async def test_a_route_that_fails_costs_one_answer(admin: Admin) -> None:
    def fail() -> bytes:
        raise ZeroDivisionError

    admin.exposition = fail
    assert (await admin.ask("/metrics")).startswith(b"HTTP/1.1 500")
    admin.exposition = lambda: b"again\n"
    assert (await admin.ask("/metrics")).endswith(b"again\n")


H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
START = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
UPGRADE = START + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: "
BAD: dict[str, bytes] = {
    "settings that end the server": UPGRADE + b"a\r\n\r\n",
    "settings that don't": UPGRADE + b"!!!!\r\n\r\n",
    "half a body": START + b"Content-Length: 3\r\n\r\n",
    "a chunk without a size": START + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    "garbage": bytes(range(256)),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "endless headers": START + b"X: " + b"a" * 100_000,
    "HTTP/2 and garbage": H2 + bytes(range(200)),
    "HTTP/2 and a huge frame": H2 + b"\xff\xff\xff\x04\x00\x00\x00\x00\x00" + bytes(100),
    "a web socket": START + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 99\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("what", BAD)
async def test_bad_requests_don_t_end_the_server(admin: Admin, what: str) -> None:
    for _ in range(2):
        await admin.send(BAD[what])
        for _ in range(50):
            answer = await admin.send(START + b"Connection: close\r\n\r\n")
            if answer:
                break
            await trio.sleep(0.02)
        assert answer.startswith(b"HTTP/1.1 200")


async def test_the_end_does_not_wait_for_clients_that_stay() -> None:
    async with running() as admin:
        stream = await trio.open_tcp_stream(*admin.address)
        await stream.send_all(START + b"\r\n")
        await stream.receive_some()
        silent = await trio.open_tcp_stream(*admin.address)
    async with stream, silent:
        for each in (stream, silent):
            with trio.fail_after(5):
                async for _ in each:
                    pass


async def test_it_may_be_cancelled_at_any_step() -> None:
    async def story() -> None:
        async with running() as admin:
            await admin.ask("/livez")

    await story()
    before = descriptors()
    assert await cancelled_everywhere(story) > 10
    assert descriptors() == before


async def test_the_listening_socket_stays_its_owner_s() -> None:
    async with running() as admin:
        listening = admin.listening
        await admin.ask("/livez")
        admin.until.set()
        await trio.sleep(0.01)
        assert listening.getsockname() == admin.address
