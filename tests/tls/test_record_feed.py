"""Tests of the feed of records: what OpenSSL is given, and what stays in the kernel."""

import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing
from OpenSSL import SSL

from gateway.errors import StreamClosedError, TlsError
from gateway.tls import records
from gateway.tls.record_feed import RecordFeed
from gateway.tls.verification import Verification

_LIB = SSL._lib  # type: ignore[attr-defined]
_FFI = SSL._ffi  # type: ignore[attr-defined]


def record(body: bytes) -> bytes:
    """Return a record of the handshake."""
    return b"\x16\x03\x03" + len(body).to_bytes(2, "big") + body


class Feed:
    """A feed, its connection, and the peer's end of its socket."""

    def __init__(self, ours: socket.socket, theirs: socket.socket, seen: bytes = b"") -> None:
        self.ours, self.theirs = ours, theirs
        self.connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD))
        self.budget = records.HandshakeBudget("handshake failed", "handshake_too_large")
        self.feed = RecordFeed(ours, self.connection, Verification(), self.budget, self._wait, seen)

    async def _wait(self, ready: Callable[[int], Awaitable[None]]) -> None:
        await ready(self.ours.fileno())

    def given(self) -> bytes:
        """Return the bytes that OpenSSL has been given since the last call."""
        buffer = _FFI.new("char[65536]")
        size = _LIB.BIO_read(self.connection._into_ssl, buffer, 65536)
        return bytes(_FFI.buffer(buffer, max(size, 0)))

    def unread(self) -> bytes:
        """Return the bytes that are still in the kernel."""
        try:
            return self.ours.recv(65536, socket.MSG_PEEK)
        except BlockingIOError:
            return b""


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets; the first does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.fixture
def feed(sockets: tuple[socket.socket, socket.socket]) -> Feed:
    """A feed that has seen nothing yet."""
    return Feed(*sockets)


async def test_records_that_arrive_together_are_given_one_at_a_time(feed: Feed) -> None:
    feed.theirs.sendall(record(b"one") + record(b"two") + record(b"three"))
    await feed.feed.give_next()
    assert feed.given() == record(b"one")
    assert feed.feed.give_seen()
    assert feed.given() == record(b"two")
    assert feed.feed.give_seen()
    assert feed.given() == record(b"three")
    assert not feed.feed.give_seen()


async def test_only_what_was_given_is_taken_from_the_kernel(feed: Feed) -> None:
    """A client's request may follow the last record of its handshake: OpenSSL reads it from the socket."""
    feed.theirs.sendall(record(b"finished") + record(b"request"))
    await feed.feed.give_next()
    assert feed.unread() == record(b"finished") + record(b"request")
    feed.feed.take_given()
    assert feed.unread() == record(b"request")
    assert not feed.feed.give_seen()


async def test_what_was_seen_before_is_not_waited_for(sockets: tuple[socket.socket, socket.socket]) -> None:
    sent = record(b"hello")
    feed = Feed(*sockets, seen=sent)
    feed.theirs.sendall(sent + record(b"next"))
    assert feed.feed.give_seen()
    await feed.feed.give_next()
    assert feed.given() == record(b"hello") + record(b"next")


async def test_a_record_in_parts_is_given_once_it_is_whole(feed: Feed) -> None:
    whole = record(bytes(range(100)))

    async def send() -> None:
        for byte in whole[:-1]:
            feed.theirs.sendall(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
            assert feed.given() == b""
        feed.theirs.sendall(whole[-1:] + record(b"next"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await feed.feed.give_next()
    assert feed.given() == whole
    await feed.feed.give_next()
    assert feed.given() == record(b"next")


async def test_a_record_longer_than_what_is_looked_at_is_given_whole(feed: Feed) -> None:
    long = record(bytes(16384))
    feed.theirs.sendall(long + record(b"next"))
    await feed.feed.give_next()
    assert feed.given() == long
    await feed.feed.give_next()
    assert feed.given() == record(b"next")


async def test_of_bytes_that_are_no_tls_only_the_head_is_given(feed: Feed) -> None:
    feed.theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
    await feed.feed.give_next()
    assert feed.given() == b"GET /"


async def test_the_bounds_are_checked_before_a_record_is_given(feed: Feed) -> None:
    feed.theirs.sendall(record(b"x") * 100)
    await feed.feed.give_next()
    for _ in range(63):
        assert feed.feed.give_seen()
    with pytest.raises(TlsError, match="65 records"):
        feed.feed.give_seen()
    assert len(feed.given()) == 64 * len(record(b"x"))


@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x03\x00\x05abc"])
async def test_the_peer_s_end_is_an_error(feed: Feed, sent: bytes) -> None:
    feed.theirs.sendall(sent)
    feed.theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(StreamClosedError, match="closed by the peer"):
        await feed.feed.give_next()


async def test_a_reset_is_no_error_when_given_bytes_are_taken(feed: Feed) -> None:
    feed.theirs.sendall(record(b"hello"))
    await feed.feed.give_next()
    feed.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    feed.theirs.close()
    await trio.lowlevel.wait_readable(feed.ours)
    feed.feed.take_given()
    with pytest.raises(StreamClosedError, match="closed during the handshake"):
        await feed.feed.give_next()
