"""Clients that misbehave in many ways: each gets an error or is closed, and another client is not affected."""

import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from kmip_lab.certs import Authority
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key, key_value
from OpenSSL import SSL

from gateway.errors import GatewayError, StreamClosedError, TlsError
from gateway.kmip import compose, ttlv
from gateway.kmip.compose import Ask
from gateway.kmip.messages import Response, Version
from gateway.kmip.spec import ObjectType, Operation, ResultReason, ResultStatus, Tag
from gateway.tls import TlsStream, client_context
from tests.kit.processes import Certificates, Gateway, GatewaySettings, Identity, running_gateway, running_key_managers

HANDSHAKE = 2.0  # s; while CROWD clients connect, a proper handshake takes long, too
DEADLINE = 1.0  # s, of every other phase
SOON = 10.0  # s in which everything here must be over, many times what it takes
LARGE = 256 << 10  # bytes of an object whose answers are not read
CROWD = 200
MARK = b"NOT-FOR-THE-LOG-" * 4
ERRORS = "kmip_gateway_client_connection_errors_total"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    certificates = Certificates(tmp_path_factory.mktemp("bad-input"))
    deadlines = f"handshake_timeout = {HANDSHAKE}\nrequest_timeout = {DEADLINE}\nsend_timeout = {DEADLINE}\n"
    settings = GatewaySettings([], [Identity("everyone", '{ subject_cn = "client-*" }')], listener=deadlines)
    with running_key_managers(certificates) as settings.backends, running_gateway(certificates, settings) as gateway:
        yield gateway
        assert gateway.process.poll() is None


@pytest.fixture(autouse=True)
def _no_internal_error_and_no_payload_in_the_log(gateway: Gateway) -> Iterator[None]:
    """Check after every test that the gateway had no internal error, and that its log has no payload."""
    yield
    log = gateway.log.read_bytes()
    assert b"Traceback" not in log
    assert gateway.total(ERRORS, reason="internal") == 0
    for written in (MARK[:8], MARK[:8].hex().encode(), MARK[:8].hex(" ").upper().encode()):
        assert written not in log


# Clients --------------------------------------------------------------------------------------------------------------


def context_of(gateway: Gateway, name: str = "client-bad") -> SSL.Context:
    return client_context(*gateway.certificates.client(name), gateway.certificates.path("gateway_ca.pem"))


@asynccontextmanager
async def session(gateway: Gateway, name: str = "client-bad") -> AsyncIterator[Client]:
    async with connect(gateway.address, context_of(gateway, name)) as client:
        yield client


def tcp_connection(gateway: Gateway) -> socket.socket:
    sock = socket.create_connection((gateway.address.host, gateway.address.port))
    sock.setblocking(False)
    return sock


async def read_until_end(sock: socket.socket) -> bytes:
    """Return the bytes received until the connection ends, by a close or a reset."""
    received = b""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            data = sock.recv(65536)
        except ConnectionError:
            return received
        if not data:
            return received
        received += data


async def is_closed(client: Client) -> None:
    """Check that the gateway closes the session, and sends nothing before."""
    with suppress(StreamClosedError):
        assert await client.stream.receive_some() == b""


async def is_refused(client: Client, reason: int, version: Version = (1, 0), operation: int = -1) -> Response:
    """Check that the gateway answers once, with this failure, and closes the session."""
    answer = await client.read_response()
    (item,) = answer.items
    assert (item.status, item.reason) == (ResultStatus.OPERATION_FAILED, reason)
    assert (answer.version, item.operation) == (version, operation)
    await is_closed(client)
    return answer


async def total(gateway: Gateway, family: str, **labels: str) -> float:
    """Return the sum of the gateway's samples of a family with these labels."""
    return await trio.to_thread.run_sync(partial(gateway.total, family, **labels))


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a condition of another process; fail after 500 checks, 20 ms apart."""
    for _ in range(500):
        if await condition():
            return
        await trio.sleep(0.02)
    raise AssertionError(f"{what}: not within 10 s")


async def wait_until_closed(gateway: Gateway, clients: int = 0) -> None:
    """Wait until the gateway has at most so many client connections."""

    async def are_closed() -> bool:
        return await total(gateway, "kmip_gateway_client_connections") <= clients

    await until(are_closed, "the end of the clients' connections")


class Bystander:
    """A proper client that repeats a Get until it is stopped."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._stopped = False
        self.answers = 0
        self.slowest = 0.0

    async def run(self) -> None:
        """Get a key of its own again and again, on a session that is kept and on fresh ones in turn."""
        async with session(self._gateway, "client-good") as kept:
            created = await kept.ask(create_key())
            uid = created.items[0].unique_identifiers[0].decode()
            value = key_value(await kept.ask(get_key(uid)))
            while not self._stopped:
                await self._get(kept, uid, value)
                async with session(self._gateway, "client-good") as fresh:
                    await self._get(fresh, uid, value)
                await trio.sleep(0.005)

    async def _get(self, client: Client, uid: str, value: bytes) -> None:
        began = trio.current_time()
        assert key_value(await client.ask(get_key(uid))) == value
        self.slowest = max(self.slowest, trio.current_time() - began)
        self.answers += 1

    def stop(self) -> None:
        """End ``run`` after the present request."""
        self._stopped = True

    async def has_answers(self, number: int) -> None:
        """Wait for so many further answers."""
        wanted = self.answers + number

        async def are_received() -> bool:
            return self.answers >= wanted

        await until(are_received, "further answers")


@asynccontextmanager
async def unnoticed(gateway: Gateway) -> AsyncIterator[Bystander]:
    """Check that another client gets its answers before, during and after the block."""
    bystander = Bystander(gateway)
    with trio.fail_after(6 * SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bystander.run)
            await bystander.has_answers(1)
            yield bystander
            await bystander.has_answers(2)
            bystander.stop()
    assert bystander.slowest < SOON


# Misdeeds -------------------------------------------------------------------------------------------------------------

GET = get_key(MARK.decode(), (1, 4))


def nested(depth: int) -> bytes:
    """Return a Get whose payload holds so many nested structures."""
    payload = b""
    for _ in range(depth):
        payload = ttlv.structure(Tag.ATTRIBUTES, payload)
    return compose.encode_request((1, 4), [Ask(Operation.GET, payload)])


async def http_without_tls(gateway: Gateway) -> None:
    with tcp_connection(gateway) as sock:
        sock.send(b"GET / HTTP/1.1\r\nHost: " + MARK + b"\r\n\r\n")
        assert await read_until_end(sock) == b""


async def kmip_without_tls(gateway: Gateway) -> None:
    with tcp_connection(gateway) as sock:
        sock.send(GET)
        assert await read_until_end(sock) == b""


async def silence_instead_of_a_handshake(gateway: Gateway) -> None:
    with tcp_connection(gateway) as sock:
        assert await read_until_end(sock) == b""


async def half_a_handshake(gateway: Gateway) -> None:
    with tcp_connection(gateway) as sock:
        sock.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + MARK)
        assert await read_until_end(sock) == b""


async def a_handshake_byte_by_byte(gateway: Gateway) -> None:
    with tcp_connection(gateway) as sock, suppress(ConnectionError):
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500):
            sock.send(bytes([byte]))
            await trio.sleep(HANDSHAKE / 20)


async def noise(gateway: Gateway) -> None:
    with tcp_connection(gateway) as sock:
        sock.send(b"\x00" + random.Random(1).randbytes(500))
        await read_until_end(sock)


async def gets_an_alert(gateway: Gateway, context: SSL.Context) -> None:
    """Check that the client gets an alert, also if it has sent a request already, which is usual in TLS 1.3."""
    stream = TlsStream(tcp_connection(gateway), context, server_side=False)
    try:
        with pytest.raises(TlsError) as refused:
            await _ask_without_waiting(stream)
    finally:
        stream.close()
    assert refused.value.reason == "alert"


async def _ask_without_waiting(stream: TlsStream) -> None:
    await stream.handshake()
    for _ in range(2):
        await stream.send_all(GET)
        await trio.sleep(0.02)
    await stream.receive_some()


async def no_certificate(gateway: Gateway) -> None:
    await gets_an_alert(gateway, SSL.Context(SSL.TLS_METHOD))


async def no_certificate_in_tls_1_2(gateway: Gateway) -> None:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    await gets_an_alert(gateway, context)


async def a_foreign_certificate(gateway: Gateway) -> None:
    pair = gateway.certificates.pair("foreign")
    Authority("Clients CA").issue_client("client-bad").write(*pair)
    await gets_an_alert(gateway, client_context(*pair, gateway.certificates.path("gateway_ca.pem")))


async def an_expired_certificate(gateway: Gateway) -> None:
    pair = gateway.certificates.pair("expired")
    now = datetime.now(UTC)
    authority = gateway.certificates.clients_ca
    expired = authority.issue_client("client-bad", not_before=now - timedelta(2), not_after=now - timedelta(1))
    expired.write(*pair)
    await gets_an_alert(gateway, client_context(*pair, gateway.certificates.path("gateway_ca.pem")))


async def an_unmatched_identity(gateway: Gateway) -> None:
    async with session(gateway, "stranger") as client:
        await client.stream.send_all(GET)
        await is_refused(client, ResultReason.AUTHENTICATION_NOT_SUCCESSFUL, (1, 4), Operation.GET)


async def half_a_header_and_silence(gateway: Gateway) -> None:
    async with session(gateway) as client:
        await client.stream.send_all(GET[:5])
        await is_closed(client)


async def half_a_header_and_the_end(gateway: Gateway) -> None:
    async with session(gateway) as client:
        await client.stream.send_all(GET[:5])
        client.stream.connection.shutdown()
        await is_refused(client, ResultReason.INVALID_MESSAGE)


async def a_length_of_4_gib(gateway: Gateway) -> None:
    async with session(gateway) as client:
        await client.stream.send_all(GET[:4] + b"\xff\xff\xff\xf8" + GET[8:])
        answer = await is_refused(client, ResultReason.INVALID_MESSAGE)
    assert "limit" in (answer.items[0].message or "")


async def a_depth_of_10_000(gateway: Gateway) -> None:
    async with session(gateway) as client:
        await client.stream.send_all(nested(10_000))
        answer = await is_refused(client, ResultReason.INVALID_MESSAGE, (1, 4))
    assert "deep" in (answer.items[0].message or "")


async def http_in_tls(gateway: Gateway) -> None:
    async with session(gateway) as client:
        await client.stream.send_all(b"POST /kmip HTTP/1.1\r\nHost: " + MARK + b"\r\n\r\n")
        answer = await is_refused(client, ResultReason.INVALID_MESSAGE)
    assert "HTTP" in (answer.items[0].message or "")


async def noise_in_tls(gateway: Gateway) -> None:
    async with session(gateway) as client:
        await client.stream.send_all(random.Random(2).randbytes(500))
        await is_refused(client, ResultReason.INVALID_MESSAGE)


async def noise_in_a_message(gateway: Gateway) -> None:
    """Send a valid header, followed by invalid fields."""
    async with session(gateway) as client:
        await client.stream.send_all(b"\x42\x00\x78\x01" + struct.pack(">I", 512) + MARK * 8)
        await is_refused(client, ResultReason.INVALID_MESSAGE)


async def a_broken_record(gateway: Gateway) -> None:
    async with session(gateway) as client:
        client.stream._socket.send(b"\x17\x03\x03\x00\x40" + MARK)
        with pytest.raises(TlsError):
            await client.stream.receive_some()


async def a_request_byte_by_byte(gateway: Gateway) -> None:
    async with session(gateway) as client:
        with pytest.raises(StreamClosedError):
            await _trickle(client)


async def _trickle(client: Client) -> None:
    for byte in GET:
        await client.stream.send_all(bytes([byte]))
        await trio.sleep(DEADLINE / 10)


async def answers_that_are_not_read(gateway: Gateway) -> None:
    """Request more than all buffers on the way can hold, and read nothing."""
    async with session(gateway, "client-large") as client:
        uid = (await client.ask(large_object())).items[0].unique_identifiers[0].decode()
        before = await total(gateway, ERRORS, reason="sending_timeout")
        await client.stream.send_all(get_key(uid) * 100)

        async def is_counted() -> bool:
            await trio.sleep(DEADLINE / 4)
            return await total(gateway, ERRORS, reason="sending_timeout") > before

        await until(is_counted, "a sending timeout")


def large_object() -> bytes:
    """Return a Register of an opaque object of LARGE bytes."""
    opaque = ttlv.structure(
        Tag.OPAQUE_OBJECT,
        ttlv.enumeration(Tag.OPAQUE_DATA_TYPE, 0x80000001),
        ttlv.octets(Tag.OPAQUE_DATA_VALUE, MARK + bytes(LARGE)),
    )
    payload = ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.OPAQUE_OBJECT) + ttlv.structure(Tag.TEMPLATE_ATTRIBUTE)
    return compose.encode_request((1, 2), [Ask(Operation.REGISTER, payload + opaque)])


class Misdeed(NamedTuple):
    """A client's mistake, and the reason under which the gateway counts it."""

    do: Callable[[Gateway], Awaitable[None]]
    reason: str


MISDEEDS = {
    misdeed.do.__name__.replace("_", " "): misdeed
    for misdeed in (
        Misdeed(http_without_tls, "not_tls"),
        Misdeed(kmip_without_tls, "not_tls"),
        Misdeed(noise, "not_tls"),
        Misdeed(silence_instead_of_a_handshake, "handshake_timeout"),
        Misdeed(half_a_handshake, "handshake_timeout"),
        Misdeed(a_handshake_byte_by_byte, "handshake_timeout"),
        Misdeed(no_certificate, "no_certificate"),
        Misdeed(no_certificate_in_tls_1_2, "no_certificate"),
        Misdeed(a_foreign_certificate, "unknown_ca"),
        Misdeed(an_expired_certificate, "expired"),
        Misdeed(an_unmatched_identity, "not_authenticated"),
        Misdeed(half_a_header_and_silence, "reading_timeout"),
        Misdeed(half_a_header_and_the_end, "protocol"),
        Misdeed(a_length_of_4_gib, "protocol"),
        Misdeed(a_depth_of_10_000, "protocol"),
        Misdeed(http_in_tls, "protocol"),
        Misdeed(noise_in_tls, "protocol"),
        Misdeed(noise_in_a_message, "protocol"),
        Misdeed(a_broken_record, "client_closed"),
        Misdeed(a_request_byte_by_byte, "reading_timeout"),
        Misdeed(answers_that_are_not_read, "sending_timeout"),
    )
}


# Tests, beside a proper client ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", MISDEEDS)
async def test_a_misdeed_ends_and_is_counted_once(gateway: Gateway, what: str) -> None:
    misdeed = MISDEEDS[what]
    before = await total(gateway, ERRORS, reason=misdeed.reason)

    async def is_counted() -> bool:
        return await total(gateway, ERRORS, reason=misdeed.reason) > before

    async with unnoticed(gateway):
        with trio.fail_after(SOON):
            await misdeed.do(gateway)
            await until(is_counted, misdeed.reason)
    assert await total(gateway, ERRORS, reason=misdeed.reason) == before + 1


async def test_a_message_may_be_cut_anywhere(gateway: Gateway) -> None:
    before = await total(gateway, ERRORS, reason="protocol")
    async with unnoticed(gateway):
        for cut in range(1, len(GET)):
            async with session(gateway) as client:
                await client.stream.send_all(GET[:cut])
                client.stream.connection.shutdown()
                await is_refused(client, ResultReason.INVALID_MESSAGE)
        async with session(gateway) as client:
            answer = await client.ask(GET)
            assert answer.items[0].operation == Operation.GET
    assert await total(gateway, ERRORS, reason="protocol") == before + len(GET) - 1


async def test_a_changed_request_gets_at_most_one_answer(gateway: Gateway) -> None:
    """Requests with some bytes changed; a changed request may be valid by chance."""
    source = random.Random(3)
    async with unnoticed(gateway):
        for _ in range(100):
            frame = bytearray(GET)
            for _ in range(source.randrange(1, 4)):
                frame[source.randrange(len(frame))] = source.randrange(256)
            async with session(gateway) as client:
                await client.stream.send_all(bytes(frame))
                client.stream.connection.shutdown()
                await client.read_response()
                await is_closed(client)


async def test_many_misbehaving_clients_at_once_leave_nothing_behind(gateway: Gateway) -> None:
    """All misdeeds at once, twice: memory is bounded, no descriptor is left, and the proper client gets answers."""
    kinds = list(MISDEEDS.values())
    await wait_until_closed(gateway)
    descriptors = await descriptors_in_front(gateway)
    peaks = []
    async with unnoticed(gateway) as bystander:
        for _ in range(2):
            answers = bystander.answers
            async with watched(gateway) as samples, trio.open_nursery() as nursery:
                for number in range(CROWD):
                    nursery.start_soon(run_misdeed, kinds[number % len(kinds)].do, gateway)
                    await trio.sleep(0.002)
            peaks.append(max(samples))
            assert bystander.answers > answers + 5
            await wait_until_closed(gateway, 2)
    await wait_until_closed(gateway)
    assert await descriptors_in_front(gateway) == descriptors
    assert peaks[1] < peaks[0] + (16 << 20)
    assert peaks[1] < 160 << 20


async def run_misdeed(do: Callable[[Gateway], Awaitable[None]], gateway: Gateway) -> None:
    """Run a misdeed of a crowd; it must end in time, and may end in any way."""
    with trio.fail_after(3 * SOON), suppress(GatewayError, OSError, AssertionError):
        await do(gateway)


async def descriptors_in_front(gateway: Gateway) -> float:
    """Return the number of the gateway's descriptors, without its sessions with key managers."""
    metrics = await trio.to_thread.run_sync(gateway.metrics)
    sessions = sum(value for sample, value in metrics.items() if sample.startswith("kmip_gateway_sessions{"))
    return metrics["process_open_fds"] - sessions


def resident(gateway: Gateway) -> int:
    """Return the resident memory of the gateway's process in bytes."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024


@asynccontextmanager
async def watched(gateway: Gateway) -> AsyncIterator[list[int]]:
    """Yield a list to which the resident memory is added every 20 ms, until the block ends."""
    samples = [resident(gateway)]

    async def watch() -> None:
        while True:
            samples.append(resident(gateway))
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        yield samples
        nursery.cancel_scope.cancel()


async def test_unfinished_requests_take_memory_for_received_bytes_only(gateway: Gateway) -> None:
    """200 clients announce a mebibyte each and send 100 bytes: the declared length must not take memory."""
    head = b"\x42\x00\x78\x01" + struct.pack(">I", (1 << 20) - 8)
    async with unnoticed(gateway), watched(gateway) as samples, trio.open_nursery() as nursery:
        for _ in range(CROWD):
            nursery.start_soon(run_misdeed, partial(_begin_a_large_request, head), gateway)
    assert max(samples) - samples[0] < CROWD * (128 << 10)


async def _begin_a_large_request(head: bytes, gateway: Gateway) -> None:
    async with session(gateway) as client:
        await client.stream.send_all(head + os.urandom(100))
        await is_closed(client)


async def test_a_log_that_is_not_read_does_not_stop_the_gateway(tmp_path: Path) -> None:
    """The gateway starts and serves while its log is not read, and unknown clients cause log messages."""
    certificates = Certificates(tmp_path)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, GatewaySettings(ports), writing) as gateway,
    ):
        with trio.fail_after(SOON):
            async with session(gateway) as client:
                for _ in range(3):
                    with tcp_connection(gateway) as unknown:
                        unknown.send(b"GET / HTTP/1.0\r\n\r\n")
                        await read_until_end(unknown)
                    assert (await client.ask(create_key())).items[0].status == ResultStatus.SUCCESS
        assert gateway.total("kmip_gateway_log_messages_dropped_total") >= 3
        assert not os.read(reading, 1 << 20).strip(b"\0")
    assert b"log messages dropped" in os.read(reading, 1 << 20)  # written at the end, when the pipe has been read
    os.close(reading)
    os.close(writing)
