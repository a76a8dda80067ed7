"""TlsStream over real sockets: handshakes, bytes, ends, hostile peers, cancellation."""

import gc
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
import trio
from OpenSSL import SSL
from trio.testing import wait_all_tasks_blocked

from gateway.errors import StreamClosedError, TlsError
from gateway.tls import TlsStream, check_server
from tests.kit.handshakes import common_name
from tests.kit.processes import Certificates
from tests.kit.streams import (
    TLS_1_2,
    TLS_1_3,
    Pair,
    cancelled_everywhere,
    client_tls,
    connected,
    cut_off,
    descriptors,
    receive_exactly,
    server_tls,
    shake_hands,
    shaken,
    streams,
)

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])

RECORD = 16384
SIZES = [0, 1, RECORD, RECORD + 1, 1 << 20]


def reset(stream: TlsStream) -> None:
    """Close with a reset."""
    stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


# Handshakes -----------------------------------------------------------------------------------------------------------


@both_versions
async def test_both_ends_know_each_other_after_the_handshake(either: Certificates, version: str) -> None:
    async with shaken(server_tls(either), client_tls(either, version=version)) as pair:
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
    async with shaken(server_tls(certificates), client_tls(certificates), name) as pair:
        assert pair.server.connection.get_servername() == indicated
        check_server(pair.client, "127.0.0.1", frozenset())


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
async def test_bytes_that_are_no_handshake_are_refused(certificates: Certificates, sent: bytes, reason: str) -> None:
    async with streams(server_tls(certificates), client_tls(certificates)) as pair:
        pair.client._socket.send(sent)
        with pytest.raises(TlsError) as refused:
            await pair.server.handshake()
        assert refused.value.reason == reason


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02"], ids=["nothing", "half a record's head"])
async def test_client_that_closes_before_its_handshake_raises_stream_closed(
    certificates: Certificates, sent: bytes
) -> None:
    async with streams(server_tls(certificates), client_tls(certificates)) as pair:
        pair.client._socket.send(sent)
        pair.client.close()
        with pytest.raises(StreamClosedError):
            await pair.server.handshake()


# Bytes ----------------------------------------------------------------------------------------------------------------


@both_versions
@pytest.mark.parametrize("size", SIZES)
async def test_sent_bytes_arrive(certificates: Certificates, version: str, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with shaken(server_tls(certificates), client_tls(certificates, version=version)) as pair:
        for sender, receiver in [pair, reversed(pair)]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send_all, data)
                assert await receive_exactly(receiver, size) == data
            await sender.send_all(b"next")
            assert await receiver.receive_some() == b"next"


@both_versions
@pytest.mark.parametrize("size", [1, 320, RECORD])
async def test_an_answer_that_fits_goes_out_as_one_record(certificates: Certificates, version: str, size: int) -> None:
    async with shaken(server_tls(certificates), client_tls(certificates, version=version)) as pair:
        await pair.server.send_all(bytes(size))
        assert await pair.client.receive_some() == bytes(size)  # a read returns at most a record
        await pair.server.send_all(bytes(RECORD + 1))
        assert [len(await pair.client.receive_some()) for _ in range(2)] == [RECORD, 1]


async def test_several_records_that_have_arrived_are_all_read(pair: Pair) -> None:
    for number in range(5):
        await pair.client.send_all(bytes([number]) * 10)
    assert [await pair.server.receive_some() for _ in range(5)] == [bytes([number]) * 10 for number in range(5)]


async def test_a_record_may_arrive_byte_by_byte(certificates: Certificates) -> None:
    """The client's bytes, those of the handshake included, go through a relay that sends single bytes."""
    front, back = connected(), connected()
    client = TlsStream(front[0], client_tls(certificates), server_side=False, server_name="localhost")
    server = TlsStream(back[1], server_tls(certificates), server_side=True)
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


async def test_acknowledge_acknowledges_a_part_of_a_message(pair: Pair) -> None:
    """On a kept connection the kernel would delay the acknowledgement by 40 ms, to send it with an answer."""
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
    """Return the number of unacknowledged segments: tcpi_unacked of linux/tcp.h."""
    information = stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    unacknowledged: int = struct.unpack_from("=8x5I", information)[4]
    return unacknowledged


# Ends -----------------------------------------------------------------------------------------------------------------


@both_versions
async def test_a_client_that_half_closes_after_its_request_gets_its_answer(
    certificates: Certificates, version: str
) -> None:
    async with shaken(server_tls(certificates), client_tls(certificates, version=version)) as pair:
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
async def test_close_without_close_notify_is_an_end(certificates: Certificates, version: str) -> None:
    async with shaken(server_tls(certificates), client_tls(certificates, version=version)) as pair:
        pair.client._socket.shutdown(socket.SHUT_WR)
        assert await pair.server.receive_some() == b""
        assert await pair.server.receive_some() == b""
        await pair.server.send_all(b"answer")
        assert await pair.client.receive_some() == b"answer"


@both_versions
async def test_reset_raises_while_reading_and_while_writing(certificates: Certificates, version: str) -> None:
    for use in (TlsStream.receive_some, partial(TlsStream.send_all, data=bytes(1 << 20))):
        async with shaken(server_tls(certificates), client_tls(certificates, version=version)) as pair:
            reset(pair.client)
            with pytest.raises(StreamClosedError):
                await use(pair.server)


async def test_error_of_one_connection_does_not_affect_another(certificates: Certificates, pair: Pair) -> None:
    """The error of close_notify stays on OpenSSL's queue of the thread; half a record is no end here."""
    async with shaken(server_tls(certificates), client_tls(certificates)) as leaving:
        await leaving.server.send_all(b"answer")
        await leaving.client.receive_some()  # with the tickets read, a close is no reset
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
    async with shaken(server_tls(certificates), willing) as pair:
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


async def test_stream_closed_by_another_task_ends_its_waits(certificates: Certificates) -> None:
    uses: list[Callable[[TlsStream], object]] = [
        TlsStream.receive_some,
        partial(TlsStream.send_all, data=bytes(64 << 20)),
        TlsStream.handshake,
    ]
    for use in uses:
        async with streams(server_tls(certificates), client_tls(certificates)) as pair:
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


async def test_closed_stream_does_not_use_a_reused_descriptor(pair: Pair) -> None:
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
async def test_tickets_leave_a_stream_quiet(certificates: Certificates, version: str) -> None:
    async with shaken(server_tls(certificates), client_tls(certificates, version=version)) as pair:
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
async def test_data_ends_and_errors_are_not_quiet(certificates: Certificates, version: str, end: str) -> None:
    async with shaken(server_tls(certificates), client_tls(certificates, version=version)) as pair:
        assert pair.client.is_quiet()
        ENDS[end](pair.server)
        assert not pair.client.is_quiet()
        assert pair.client.spoke_unasked is (end == "bytes")


async def test_frozen_kernel_is_distinguished_from_a_slow_peer(pair: Pair) -> None:
    pair.server.acknowledge()
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
    async with shaken(server_tls(certificates), client_tls(certificates, version=version)) as pair:
        for _ in range(2):
            assert not pair.server.peer_has_left()
        do(pair.client)
        for _ in range(2):
            assert pair.server.peer_has_left() is expected
        pair.server.close()
        assert pair.server.peer_has_left()


async def test_client_side_notices_that_the_server_has_closed(pair: Pair) -> None:
    assert not pair.client.peer_has_left()
    pair.server.close_politely()
    assert pair.client.peer_has_left()


async def test_closed_stream_does_not_poll_a_reused_descriptor(pair: Pair) -> None:
    assert not pair.server.peer_has_left()
    pair.server.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert pair.server.peer_has_left()


async def test_bytes_that_are_decrypted_already_are_not_quiet(pair: Pair) -> None:
    assert pair.client.is_quiet()  # the client reads the tickets
    await pair.server.send_all(b"two bytes and more")
    assert pair.client.connection.recv(2) == b"tw"
    assert not pair.client.is_quiet()
    assert pair.client.spoke_unasked


# Closing --------------------------------------------------------------------------------------------------------------


async def test_last_answer_arrives_although_bytes_were_unread(pair: Pair) -> None:
    """If bytes were unread at the close, the kernel would send a reset, which could destroy the answer."""

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


async def test_linger_ends_after_its_seconds(pair: Pair) -> None:
    with trio.fail_after(5):
        await pair.server.aclose(linger=0.05)
    assert pair.server.fileno() == -1


async def test_linger_ends_after_1_mib(pair: Pair) -> None:
    async def flood() -> None:
        with suppress(StreamClosedError):
            while True:
                await pair.client.send_all(bytes(1 << 20))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await pair.server.aclose(linger=60)


async def test_close_sends_close_notify(pair: Pair) -> None:
    pair.server.close_politely()
    assert await pair.client.receive_some() == b""
    assert pair.client.connection.get_shutdown() & SSL.RECEIVED_SHUTDOWN


async def test_linger_sends_a_fin(pair: Pair) -> None:
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
    server, client = server_tls(certificates), client_tls(certificates)
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
