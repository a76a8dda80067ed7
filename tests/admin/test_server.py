"""The admin port over plain HTTP: its answers, and its bounds against strangers."""

import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from gateway.admin import page
from gateway.admin.page import Snapshot
from gateway.admin.routes import Routes
from gateway.admin.server import AdminConnection, AdminLimits, AdminServer, RateLimiter
from tests.kit.fake_backends import in_virtual_time
from tests.kit.streams import cancelled_everywhere, descriptors


@dataclass
class Admin:
    """A running admin server."""

    address: tuple[str, int]
    listening: socket.socket
    until: trio.Event = field(default_factory=trio.Event)
    unreadiness: str | None = None
    exposition: Callable[[], Iterable[bytes]] = lambda: [b"answer ", b"42\n"]

    def expose(self) -> Iterable[bytes]:
        """Return the parts of the body of /metrics."""
        return self.exposition()

    async def send(self, data: bytes) -> bytes:
        """Send bytes and read to the end, for at most 0.2 s; return what was received before a reset."""
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
        """Return the whole answer to a request, head and body."""
        request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        stream = await trio.open_tcp_stream(*self.address)
        async with stream:
            await stream.send_all(request.encode())
            return b"".join([chunk async for chunk in stream])


@asynccontextmanager
async def running(limits: AdminLimits | None = None, snapshot: Snapshot = page.no_state) -> AsyncIterator[Admin]:
    """Run an admin server for the length of a block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        admin = Admin(listening.getsockname(), listening)
        routes = Routes(admin.expose, lambda: admin.unreadiness, snapshot=snapshot)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(AdminServer(routes, limits).run, listening, admin.until)
                yield admin
                admin.until.set()


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    async with running() as admin:
        yield admin


async def test_metrics_are_served_in_prometheus_format(admin: Admin) -> None:
    answer = await admin.ask("/metrics")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"Content-Type: text/plain; version=0.0.4" in answer
    assert answer.endswith(b"\r\n\r\nanswer 42\n")


async def test_readiness_gives_a_reason_and_liveness_does_not_depend_on_it(admin: Admin) -> None:
    assert (await admin.ask("/readyz")).startswith(b"HTTP/1.1 200")
    admin.unreadiness = "no key manager can be reached"
    answer = await admin.ask("/readyz")
    assert answer.startswith(b"HTTP/1.1 503")
    assert answer.endswith(b"no key manager can be reached\n")
    assert (await admin.ask("/livez")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("path", "method", "status"), [("/x", "GET", 404), ("/metrics", "POST", 405)])
async def test_other_paths_and_methods_are_refused(admin: Admin, path: str, method: str, status: int) -> None:
    assert (await admin.ask(path, method)).startswith(f"HTTP/1.1 {status}".encode())


async def test_a_stream_sends_its_events_as_they_come(admin: Admin) -> None:
    stream = await trio.open_tcp_stream(*admin.address)
    async with stream:
        await stream.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        async for chunk in stream:
            received += chunk
            if b"data: {}" in received:
                break
    assert b"Content-Type: text/event-stream\r\n" in received
    assert b"Transfer-Encoding: chunked\r\n" in received


async def test_a_head_of_a_stream_ends(admin: Admin) -> None:
    answer = await admin.ask("/events", "HEAD")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


async def test_a_route_that_fails_costs_one_answer(admin: Admin) -> None:
    def fail() -> Iterable[bytes]:
        raise ZeroDivisionError

    admin.exposition = fail
    assert (await admin.ask("/metrics")).startswith(b"HTTP/1.1 500")
    admin.exposition = lambda: [b"again\n"]
    assert (await admin.ask("/metrics")).endswith(b"again\n")


H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
START = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
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
async def test_bad_requests_do_not_disturb_the_next_client(admin: Admin, what: str) -> None:
    for _ in range(2):
        await admin.send(BAD[what])
        answer = await admin.send(START + b"Connection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (H2, 505),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (START + b"Host: evil.example\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (START + b"Content-Length: 3\r\n\r\nabc", 413),
        (START + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 413),
        (START + b"X: " + b"a" * 100_000, 431),
        (b"GET /" + b"a" * 100_000, 431),
    ],
)
async def test_a_refused_request_gets_a_status(admin: Admin, request_bytes: bytes, status: int) -> None:
    assert (await admin.send(request_bytes)).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("upgrade", [UPGRADE + b"AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n", BAD["a web socket"]])
async def test_an_upgrade_is_ignored(admin: Admin, upgrade: bytes) -> None:
    answer = await admin.send(upgrade)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"101" not in answer.partition(b"\r\n")[0]


async def test_head_is_answered_without_the_body(admin: Admin) -> None:
    answer = await admin.ask("/metrics", "HEAD")

    assert b"Content-Length: 10\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_http_1_0_without_a_host_is_answered(admin: Admin) -> None:
    assert (await admin.send(b"GET /livez HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_pipelined_requests_are_answered_in_order(admin: Admin) -> None:
    request = b" HTTP/1.1\r\nHost: localhost\r\n\r\n"

    answer = await admin.send(b"".join(b"GET " + path + request for path in (b"/livez", b"/nothing", b"/readyz")))

    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200"]


# Bounds --------------------------------------------------------------------------------------------------------------


async def test_one_connection_too_many_closes_the_longest_silent() -> None:
    async with running(AdminLimits(connections=3)) as admin:
        streams = []
        for _ in range(3):
            streams.append(await trio.open_tcp_stream(*admin.address))
            await trio.sleep(0.02)
        await streams[0].send_all(START + b"\r\n")
        await streams[0].receive_some()

        assert (await admin.ask("/livez")).startswith(b"HTTP/1.1 200")
        assert await streams[1].receive_some() == b""
        for kept in (streams[0], streams[2]):
            await kept.send_all(START + b"\r\n")
            assert (await kept.receive_some()).startswith(b"HTTP/1.1 200")
        for stream in streams:
            await stream.aclose()


async def test_a_client_that_holds_every_connection_blocks_no_other() -> None:
    async with running() as admin:
        before = descriptors()
        hogs = [await trio.open_tcp_stream(*admin.address) for _ in range(100)]
        for hog in hogs:
            with suppress(trio.BrokenResourceError):
                await hog.send_all(b"GET /metrics HTTP/1.1\r\n")

        assert (await admin.ask("/livez")).startswith(b"HTTP/1.1 200")
        assert descriptors() <= before + 100 + AdminLimits().connections + 1
        for hog in hogs:
            await hog.aclose()


EVENTS = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def watches(admin: Admin) -> bool:
    """Return True if a client that reads gets a whole snapshot, False if it is refused."""
    stream = await trio.open_tcp_stream(*admin.address)
    async with stream:
        await stream.send_all(EVENTS)
        received = b""
        async for chunk in stream:
            received += chunk
            if received.startswith(b"HTTP/1.1 503") or received.endswith(b"}\n\n\r\n"):
                break
    return received.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("size", [0, 2_000_000], ids=["small snapshots", "large snapshots"])
async def test_readers_that_never_read_keep_no_other_out(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large snapshot fills the buffers, so that the deadline closes them; a small one would take hours to do so."""
    monkeypatch.setattr(page, "LEAST_WATCH", 0.5 if not size else 600.0)

    async def state() -> Mapping[str, Any]:
        return {"text": "x" * size}

    async with running(AdminLimits(send=0.5), state) as admin:
        hogs = []
        for _ in range(20):
            hogs.append(await trio.open_tcp_stream(*admin.address))
            await hogs[-1].send_all(EVENTS)
        await trio.sleep(0.1)
        assert not await watches(admin)
        await trio.sleep(1.0)
        assert await watches(admin)
        for hog in hogs:
            await hog.aclose()


Memory = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


@asynccontextmanager
async def connected(exposition: Callable[[], Iterable[bytes]] = list) -> AsyncIterator[Memory]:
    """Yield the client's side of a connection in memory, in virtual time."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(AdminConnection(theirs, Routes(exposition, lambda: None), AdminLimits()).run)
        yield ours
        nursery.cancel_scope.cancel()


async def seconds_until_closed(stream: Memory) -> float:
    began = trio.current_time()
    async for _ in stream:
        pass
    return trio.current_time() - began


@in_virtual_time
async def test_a_silent_client_is_closed_after_the_idle_time() -> None:
    async with connected() as client:
        assert await seconds_until_closed(client) == pytest.approx(AdminLimits().idle)


@in_virtual_time
async def test_a_kept_connection_is_closed_after_the_idle_time() -> None:
    async with connected() as client:
        await client.send_all(START + b"\r\n")
        assert await seconds_until_closed(client) == pytest.approx(AdminLimits().idle)


@in_virtual_time
async def test_a_slow_request_is_closed_after_the_read_time() -> None:
    async def drip() -> None:
        with suppress(trio.BrokenResourceError):
            while True:
                await client.send_all(b"G")
                await trio.sleep(0.1)

    async with connected() as client, trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        assert await seconds_until_closed(client) == pytest.approx(AdminLimits().read)
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_pipelined_requests_are_served_at_the_connections_rate() -> None:
    limits = AdminLimits()
    async with connected() as client:
        began = trio.current_time()
        await client.send_all((START + b"\r\n") * (limits.request_burst + 30))
        answers = 0
        while answers < limits.request_burst + 30:
            answers += (await client.receive_some()).count(b"HTTP/1.1 200")
        assert trio.current_time() - began == pytest.approx(30 / limits.requests_per_second, abs=0.2)


@in_virtual_time
async def test_a_burst_is_served_at_once_and_then_the_rate_holds() -> None:
    limiter = RateLimiter(rate=2.0, burst=3)
    began = trio.current_time()
    moments = []
    for _ in range(6):
        await limiter.turn()
        moments.append(trio.current_time() - began)
    await trio.sleep(100)
    began = trio.current_time()
    for _ in range(4):
        await limiter.turn()
        moments.append(trio.current_time() - began)

    assert moments == pytest.approx([0, 0, 0, 0.5, 1.0, 1.5, 0, 0, 0, 0.5])


# The end -------------------------------------------------------------------------------------------------------------


async def test_the_end_does_not_wait_for_connected_clients() -> None:
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


async def test_a_cancellation_at_any_step_leaks_no_descriptor() -> None:
    async def story() -> None:
        async with running() as admin:
            await admin.ask("/livez")

    await story()
    before = descriptors()
    assert await cancelled_everywhere(story) > 10
    assert descriptors() == before


async def test_the_listening_socket_is_not_closed() -> None:
    async with running() as admin:
        listening = admin.listening
        await admin.ask("/livez")
        admin.until.set()
        await trio.sleep(0.01)
        assert listening.getsockname() == admin.address
