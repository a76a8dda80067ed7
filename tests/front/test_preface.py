"""The bytes before TLS, on real sockets: the functions wait for them and leave them unread."""

import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.errors import StreamClosedError
from gateway.front.preface import bytes_of_hello, hello_is_there, read_proxy_header, wait_for_hello
from gateway.front.proxy_protocol import ProxyHeader, ProxyHeaderError
from tests.kit.proxy_headers import HEADERS, MALFORMED
from tests.kit.streams import connected, reset

HELLO = b"\x16\x03\x01\x00\x10" + bytes(16)
Sockets = tuple[socket.socket, socket.socket]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """A client's socket, and the accepted socket."""
    client, accepted = connected()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    accepted.setblocking(False)
    with client, accepted:
        yield client, accepted


async def arrived(sock: socket.socket) -> None:
    await trio.lowlevel.wait_readable(sock)


async def test_hello_byte_by_byte_wakes_no_task_before_it_is_complete(sockets: Sockets) -> None:
    client, accepted = sockets
    beginnings: list[bytes] = []

    async def wait() -> None:
        beginnings.append(await wait_for_hello(accepted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        for byte in HELLO[:-1]:
            client.send(bytes([byte]))
            await wait_all_tasks_blocked(0.001)
            assert beginnings == []
            assert not hello_is_there(accepted)
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == len(HELLO)
        client.send(HELLO[-1:] + b"more")
    assert beginnings[0].startswith(HELLO)
    assert hello_is_there(accepted)
    assert accepted.recv(100) == HELLO + b"more"
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


def test_reset_connection_needs_no_further_bytes(sockets: Sockets) -> None:
    client, accepted = sockets
    reset(client)
    assert hello_is_there(accepted)


@pytest.mark.parametrize("sent", [b"", b"\x16", HELLO[:-1]])
@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_client_that_leaves_ends_the_wait(sockets: Sockets, sent: bytes, how: str) -> None:
    client, accepted = sockets
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_hello, accepted)
        client.send(sent)
        await wait_all_tasks_blocked(0.01)
        if how == "RST":
            reset(client)
        client.close()
        nursery.cancel_scope.deadline = trio.current_time() + 5
    assert not nursery.cancel_scope.cancelled_caught


@pytest.mark.parametrize(
    ("data", "needed"),
    [
        (b"", 5),
        (b"\x16\x03", 5),
        (b"\x16\x03\x01\x02\x00", 517),
        (b"\x16\x03\x01\x40\x00", 16389),
        (b"\x16\x03\x01\x40\x01", 5),
        (b"GET", 3),
        (b"P", 1),
    ],
)
def test_first_record_is_needed_unless_it_is_no_record(data: bytes, needed: int) -> None:
    assert bytes_of_hello(data) == needed


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.parametrize("piece", [1, 7, 5000])
async def test_proxy_header_is_taken_and_not_a_byte_more(sockets: Sockets, what: str, piece: int) -> None:
    client, accepted = sockets
    header, source = HEADERS[what]
    data = header + HELLO
    headers: list[ProxyHeader] = []

    async def read() -> None:
        headers.append(await read_proxy_header(accepted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for at in range(0, len(data), max(piece, len(data) // 100)):
            client.send(data[at : at + max(piece, len(data) // 100)])
            await trio.lowlevel.checkpoint()
    assert headers == [ProxyHeader(len(header), source)]
    received = b""
    while len(received) < len(HELLO):
        await arrived(accepted)
        received += accepted.recv(100)
    assert received == HELLO


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_proxy_header_is_refused_without_waiting_for_more(sockets: Sockets, what: str) -> None:
    client, accepted = sockets
    client.send(MALFORMED[what])
    with pytest.raises(ProxyHeaderError), trio.fail_after(5):
        await read_proxy_header(accepted)


async def test_closing_within_a_header_is_an_error_and_before_it_a_close(sockets: Sockets) -> None:
    client, accepted = sockets
    client.send(b"PROXY TC")
    client.close()
    with pytest.raises(ProxyHeaderError, match="within"), trio.fail_after(5):
        await read_proxy_header(accepted)
    client, accepted = connected()
    accepted.setblocking(False)
    client.close()
    with accepted, pytest.raises(StreamClosedError), trio.fail_after(5):
        await read_proxy_header(accepted)
