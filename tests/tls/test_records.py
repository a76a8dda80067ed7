"""Bounds on TLS records: no peer occupies the event loop, and every ordinary handshake and key update passes."""

import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from OpenSSL import SSL

from gateway.errors import StreamClosedError, TlsError
from gateway.tls import TlsStream, records
from gateway.tls.records import HandshakeBudget, RecordAllowance
from tests.kit.attackers import TLS_1_2 as OPENSSL_TLS_1_2
from tests.kit.attackers import HostilePeer
from tests.kit.processes import Certificates
from tests.kit.streams import TLS_1_2, TLS_1_3, Pair, client_tls, connected, server_tls, shake_hands, shaken, streams

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@contextmanager
def attacked(
    certificates: Certificates, *, by_server: bool = False, pair: tuple[Path, Path] | None = None, **options: Any
) -> Iterator[tuple[HostilePeer, TlsStream]]:
    """Yield a hostile client or key manager, and the gateway's end of its connection, before the handshake."""
    ours, theirs = connected()
    pair = pair or (certificates.pair("server") if by_server else certificates.client("alice"))
    context = client_tls(certificates) if by_server else server_tls(certificates)
    stream = TlsStream(ours, context, server_side=not by_server, server_name="localhost" if by_server else None)
    try:
        with HostilePeer(theirs, *pair, is_server=by_server, **options) as attacker:
            yield attacker, stream
    finally:
        stream.close()


async def shake_attackers_hands(attacker: HostilePeer, stream: TlsStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.handshake)
        assert await trio.to_thread.run_sync(attacker.shake_hands)


async def ending_of(stream: TlsStream) -> TlsError:
    """Return the error that ends a stream on which only records without data arrive."""
    with trio.fail_after(20), pytest.raises(TlsError) as ended:
        await stream.receive_some()
    return ended.value


# Records without data -------------------------------------------------------------------------------------------------


def test_64_records_without_data_are_allowed_and_then_one_a_second() -> None:
    allowance = RecordAllowance()

    def take(times: int, now: float) -> None:
        for _ in range(times):
            allowance.take(now)

    take(64, 1000.0)
    with pytest.raises(TlsError, match="64 records"):
        take(1, 1000.0)
    allowance = RecordAllowance()
    take(64, 1000.0)
    take(10, 1010.5)
    take(64, 2000.0)
    with pytest.raises(TlsError) as ended:
        take(1, 2000.5)
    assert ended.value.reason == "records"


@pytest.mark.parametrize("requested", [False, True])
@pytest.mark.parametrize("by_server", [False, True])
async def test_a_flood_of_key_updates_ends_the_connection(
    certificates: Certificates, *, by_server: bool, requested: bool
) -> None:
    with attacked(certificates, by_server=by_server) as (attacker, stream):
        await shake_attackers_hands(attacker, stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(trio.to_thread.run_sync, partial(attacker.update_keys, 3000, requested=requested))
            )
            ended = await ending_of(stream)
            stream.close()
    assert ended.reason == "records"
    assert stream.is_flooded


@pytest.mark.parametrize("by_server", [False, True])
async def test_other_tasks_run_between_records_without_data(certificates: Certificates, *, by_server: bool) -> None:
    turns = 0

    class Turns(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - the name is trio's
            nonlocal turns
            turns += 1

    with attacked(certificates, by_server=by_server) as (attacker, stream):
        await shake_attackers_hands(attacker, stream)
        assert await trio.to_thread.run_sync(attacker.update_keys, 100) == 100
        trio.lowlevel.add_instrument(instrument := Turns())
        await ending_of(stream)
        trio.lowlevel.remove_instrument(instrument)
    assert turns > 50


@pytest.mark.parametrize("requested", [False, True])
@pytest.mark.parametrize("by_server", [False, True])
async def test_data_passes_both_ways_after_key_updates(
    certificates: Certificates, *, by_server: bool, requested: bool
) -> None:
    def talk(attacker: HostilePeer) -> bytes:
        for _ in range(3):
            attacker.update_keys(5, requested=requested)
            attacker.send(b"question")
        return b"".join(attacker.receive(6) for _ in range(3))

    with attacked(certificates, by_server=by_server) as (attacker, stream):
        await shake_attackers_hands(attacker, stream)
        answers = b""

        async def answer() -> None:
            nonlocal answers
            answers = await trio.to_thread.run_sync(talk, attacker)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            for _ in range(3):
                assert await stream.receive_some() == b"question"
                await stream.send_all(b"answer")
    assert answers == b"answer" * 3


@pytest.mark.parametrize(("updates", "quiet"), [(1, True), (10, True), (100, False)])
async def test_idle_connection_is_quiet_until_key_updates_become_a_flood(
    certificates: Certificates, updates: int, *, quiet: bool
) -> None:
    with attacked(certificates, by_server=True) as (attacker, stream):
        await shake_attackers_hands(attacker, stream)
        await trio.to_thread.run_sync(attacker.update_keys, updates)
        assert stream.is_quiet() is quiet


async def test_an_end_behind_key_updates_is_not_quiet(certificates: Certificates) -> None:
    with attacked(certificates, by_server=True) as (attacker, stream):
        await shake_attackers_hands(attacker, stream)
        await trio.to_thread.run_sync(attacker.update_keys, 3)
        attacker.leave()
        assert not stream.is_quiet()


async def test_a_record_that_arrives_byte_by_byte_is_one_record(certificates: Certificates) -> None:
    async with (
        shaken(server_tls(certificates), client_tls(certificates)) as pair,
        recorded(pair) as send_slowly,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send_slowly, b"a request of more than sixty-four bytes " * 5)
        assert await pair.server.receive_some() == b"a request of more than sixty-four bytes " * 5


@asynccontextmanager
async def recorded(pair: Pair) -> AsyncIterator[Callable[[bytes], Any]]:
    """Return a function that sends data in a record, byte by byte."""
    captured, far = socket.socketpair()
    with captured, far:
        captured.setblocking(False)
        records.attach(pair.client.connection, captured.fileno())

        async def send(data: bytes) -> None:
            pair.client.send_now(data)
            for byte in far.recv(65536):
                pair.client._socket.send(bytes([byte]))
                await trio.sleep(0.0005)

        yield send


@pytest.mark.parametrize("extra", [0, 8000])
async def test_a_second_hello_is_refused_as_tls_says(certificates: Certificates, extra: int) -> None:
    with attacked(certificates, max_version=OPENSSL_TLS_1_2, fragment=512) as (attacker, stream):
        await shake_attackers_hands(attacker, stream)
        agreed: list[bool] = []

        async def renegotiate() -> None:
            agreed.append(await trio.to_thread.run_sync(attacker.renegotiate, extra))
            attacker.leave()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(renegotiate)
            with suppress(TlsError, StreamClosedError):
                assert await stream.receive_some() == b""
    assert agreed == [False]
    assert not stream.is_flooded


async def test_a_second_hello_in_too_many_records_ends_the_connection(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In TLS 1.2 OpenSSL would read all of it, in records of any size, before it refuses to renegotiate."""
    with attacked(certificates, max_version=OPENSSL_TLS_1_2, fragment=512) as (attacker, stream):
        await shake_attackers_hands(attacker, stream)
        monkeypatch.setattr(records, "_FAIR_LENGTH", 1024)  # OpenSSL sends no records below 512 bytes
        monkeypatch.setattr(records, "_SMALL_RECORDS", 4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, attacker.renegotiate, 8000)
            ended = await ending_of(stream)
            stream.close()
    assert ended.reason == "records"
    assert stream.is_flooded


# Handshakes -----------------------------------------------------------------------------------------------------------


def test_a_handshake_may_have_128_kib_and_64_records_below_512_bytes() -> None:
    budget = HandshakeBudget("handshake failed", "handshake_too_large")
    for _ in range(8):
        budget.take(16384)
    with pytest.raises(TlsError, match="131072 bytes"):
        budget.take(6)

    budget = HandshakeBudget("handshake failed", "handshake_too_large")
    for _ in range(64):
        budget.take(6)
    with pytest.raises(TlsError, match="65 records") as ended:
        budget.take(6)
    assert ended.value.reason == "handshake_too_large"

    budget = HandshakeBudget("handshake failed", "handshake_too_large")
    for _ in range(200):
        budget.take(512)


def hello(size: int, record: int) -> bytes:
    """Return a useless ClientHello of ``size`` bytes, in records of ``record`` bytes."""
    return in_records(b"\x01" + size.to_bytes(3, "big") + b"\x03\x03" + bytes(size - 2), record)


def in_records(body: bytes, record: int) -> bytes:
    """Return handshake messages in records of ``record`` bytes."""
    parts = (body[start : start + record] for start in range(0, len(body), record))
    return b"".join(b"\x16\x03\x01" + struct.pack(">H", len(part)) + part for part in parts)


@pytest.mark.parametrize(("size", "record", "most"), [(131_000, 1, 390), (131_000, 100, 8600), (40_000, 16, 2000)])
async def test_a_hello_in_tiny_records_is_refused_before_most_of_it_is_read(
    certificates: Certificates, size: int, record: int, most: int
) -> None:
    sent = hello(size, record)[:30_000]
    ours, theirs = connected()
    with theirs:
        theirs.sendall(sent)
        stream = TlsStream(ours, server_tls(certificates), server_side=True)
        with trio.fail_after(5), pytest.raises(TlsError) as refused:
            await stream.handshake()
        unread = ours.recv(1 << 20)
        stream.close()
    assert refused.value.reason == "handshake_too_large"
    assert len(sent) - len(unread) <= most


async def test_a_key_manager_s_handshake_in_tiny_records_is_refused(certificates: Certificates) -> None:
    ours, theirs = connected()
    with theirs:
        theirs.sendall(in_records(b"\x02\x00\x40\x00\x03\x03" + bytes(0x3FFE), 1)[:10_000])
        stream = TlsStream(ours, client_tls(certificates), server_side=False)
        with trio.fail_after(5), pytest.raises(TlsError) as refused:
            await stream.handshake()
        stream.close()
    assert refused.value.reason == "handshake_too_large"


async def test_other_tasks_run_during_a_handshake_without_waits(certificates: Certificates) -> None:
    ours, theirs = connected()
    ran: list[str] = []

    async def other() -> None:
        ran.append("other")

    with theirs:
        theirs.sendall(hello(131_000, 1)[:3000])
        stream = TlsStream(ours, server_tls(certificates), server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            with suppress(TlsError):
                await stream.handshake()
            ran.append("handshake")
        stream.close()
    assert ran == ["other", "handshake"]


@both_versions
@pytest.mark.parametrize("size", [16_000, 40_000, 59_000])
async def test_a_client_with_a_large_certificate_shakes_hands_and_resumes(
    certificates: Certificates, size: int, version: str
) -> None:
    large_client(certificates, f"large-{size}", size)
    server, client = server_tls(certificates), client_tls(certificates, f"large-{size}", version=version)
    session = None
    for resumed in (False, True):
        async with streams(server, client) as pair:
            if session is not None:
                pair.client.connection.set_session(session)
            await shake_hands(pair)
            assert pair.server.resumed is resumed
            await pair.server.send_all(b"answer")
            assert await pair.client.receive_some() == b"answer"
            session = pair.client.connection.get_session()
            pair.client.connection.set_shutdown(
                SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN
            )  # the client keeps its session


@both_versions
async def test_certificate_too_large_for_a_ticket_has_a_reason_of_its_own(
    certificates: Certificates, version: str
) -> None:
    large_client(certificates, "too-large", 73 * 1024)
    async with (
        streams(server_tls(certificates), client_tls(certificates, "too-large", version=version)) as pair,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(ignoring_errors, pair.client)
        with trio.fail_after(5), pytest.raises(TlsError, match="60000 bytes") as refused:
            await pair.server.handshake()
        pair.server.close()
    assert refused.value.reason == "certificate_too_large"


async def ignoring_errors(stream: TlsStream) -> None:
    with suppress(TlsError, StreamClosedError):
        await stream.handshake()
        await stream.receive_some()


@pytest.mark.parametrize("max_version", [0, OPENSSL_TLS_1_2])
async def test_large_certificate_in_records_of_512_bytes_is_accepted(
    certificates: Certificates, max_version: int
) -> None:
    large = large_client(certificates, "in-small-records", 40_000)
    with attacked(certificates, max_version=max_version, fragment=512, pair=large) as (attacker, stream):
        await shake_attackers_hands(attacker, stream)
        await trio.to_thread.run_sync(attacker.send, b"question")
        assert await stream.receive_some() == b"question"


async def test_a_handshake_that_arrives_byte_by_byte_succeeds(certificates: Certificates) -> None:
    front, back = connected(), connected()
    client = TlsStream(front[0], client_tls(certificates), server_side=False, server_name="localhost")
    server = TlsStream(back[1], server_tls(certificates), server_side=True)

    async def relay(near: socket.socket, far: socket.socket, step: int) -> None:
        near.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(near)
            data = near.recv(step)
            far.sendall(data)
            await trio.lowlevel.checkpoint()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, front[1], back[0], 1)
            nursery.start_soon(relay, back[0], front[1], 7)
            await shake_hands(Pair(client, server))
            await client.send_all(b"question")
            assert await server.receive_some() == b"question"
            nursery.cancel_scope.cancel()
    for end in (client, server, *front[1:], back[0]):
        end.close()


async def test_a_request_sent_with_the_end_of_the_handshake_is_read_after_it(certificates: Certificates) -> None:
    with attacked(certificates) as (attacker, stream):

        def open_and_ask() -> None:
            attacker.shake_hands()
            attacker.send(b"question")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, open_and_ask)
            await trio.sleep(0.05)
            await stream.handshake()
            assert await stream.receive_some() == b"question"


def large_client(certificates: Certificates, name: str, size: int) -> tuple[Path, Path]:
    """Return a client's certificate of about ``size`` bytes."""
    uris = [f"spiffe://example.com/{name}/{number:0100}" for number in range((size - 500) // (126 + len(name)))]
    return certificates.client(name, uri=uris)
