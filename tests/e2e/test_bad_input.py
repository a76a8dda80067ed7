"""Clients that misbehave in every way there is: each gets its answer or its end, and the others notice nothing."""

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

HANDSHAKE = 2.0  # s; with a crowd at the door an honest one takes its time, too
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
def _nothing_breaks_and_nothing_is_told(gateway: Gateway) -> Iterator[None]:
    """After every test: no fault in the gateway, and no payload in its log."""
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


def knock(gateway: Gateway) -> socket.socket:
    sock = socket.create_connection((gateway.address.host, gateway.address.port))
    sock.setblocking(False)
    return sock


async def ends(sock: socket.socket) -> bytes:
    """What comes until the end of a connection, which may be a reset."""
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
    """The end, and nothing before it."""
    with suppress(StreamClosedError):
        assert await client.stream.receive_some() == b""


async def is_refused(client: Client, reason: int, version: Version = (1, 0), operation: int = -1) -> Response:
    """One answer of failure, then the end."""
    answer = await client.read_response()
    (item,) = answer.items
    assert (item.status, item.reason) == (ResultStatus.OPERATION_FAILED, reason)
    assert (answer.version, item.operation) == (version, operation)
    await is_closed(client)
    return answer


async def total(gateway: Gateway, family: str, **labels: str) -> float:
    """What the gateway has counted."""
    return await trio.to_thread.run_sync(partial(gateway.total, family, **labels))


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for something in another process to become true; bounded."""
    for _ in range(500):
        if await condition():
            return
        await trio.sleep(0.02)
    raise AssertionError(f"{what}: not within reason")


async def all_have_left(gateway: Gateway, clients: int = 0) -> None:
    """Wait until the gateway has no more clients than these."""

    async def have_left() -> bool:
        return await total(gateway, "kmip_gateway_client_connections") <= clients

    await until(have_left, "the clients' end")


class Bystander:
    """A client that does nothing wrong, and keeps asking."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._leaving = False
        self.answers = 0
        self.slowest = 0.0

    async def run(self) -> None:
        """Get a key of its own again and again, on a session that is kept and on fresh ones in turn."""
        async with session(self._gateway, "client-good") as kept:
            created = await kept.ask(create_key())
            uid = created.items[0].unique_identifiers[0].decode()
            value = key_value(await kept.ask(get_key(uid)))
            while not self._leaving:
                await self._get(kept, uid, value)
                async with session(self._gateway, "client-good") as fresh:
                    await self._get(fresh, uid, value)
                await trio.sleep(0.005)

    async def _get(self, client: Client, uid: str, value: bytes) -> None:
        began = trio.current_time()
        assert key_value(await client.ask(get_key(uid))) == value
        self.slowest = max(self.slowest, trio.current_time() - began)
        self.answers += 1

    def leave(self) -> None:
        """Ask no more."""
        self._leaving = True

    async def has_answers(self, number: int) -> None:
        """Wait for so many more."""
        wanted = self.answers + number

        async def are_there() -> bool:
            return self.answers >= wanted

        await until(are_there, "further answers")


@asynccontextmanager
async def unnoticed(gateway: Gateway) -> AsyncIterator[Bystander]:
    """Meanwhile, before and after, another client gets its answers."""
    bystander = Bystander(gateway)
    with trio.fail_after(6 * SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bystander.run)
            await bystander.has_answers(1)
            yield bystander
            await bystander.has_answers(2)
            bystander.leave()
    assert bystander.slowest < SOON


# What they do ---------------------------------------------------------------------------------------------------------

GET = get_key(MARK.decode(), (1, 4))


def nested(depth: int) -> bytes:
    """A Get whose payload holds structures in structures."""
    payload = b""
    for _ in range(depth):
        payload = ttlv.structure(Tag.ATTRIBUTES, payload)
    return compose.encode_request((1, 4), [Ask(Operation.GET, payload)])


async def http_without_tls(gateway: Gateway) -> None:
    with knock(gateway) as sock:
        sock.send(b"GET / HTTP/1.1\r\nHost: " + MARK + b"\r\n\r\n")
        assert await ends(sock) == b""


async def kmip_without_tls(gateway: Gateway) -> None:
    with knock(gateway) as sock:
        sock.send(GET)
        assert await ends(sock) == b""


async def silence_instead_of_a_handshake(gateway: Gateway) -> None:
    with knock(gateway) as sock:
        assert await ends(sock) == b""


async def half_a_handshake(gateway: Gateway) -> None:
    with knock(gateway) as sock:
        sock.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + MARK)
        assert await ends(sock) == b""


async def a_handshake_byte_by_byte(gateway: Gateway) -> None:
    with knock(gateway) as sock, suppress(ConnectionError):
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500):
            sock.send(bytes([byte]))
            await trio.sleep(HANDSHAKE / 20)


async def noise(gateway: Gateway) -> None:
    with knock(gateway) as sock:
        sock.send(b"\x00" + random.Random(1).randbytes(500))
        await ends(sock)


async def hears_an_alert(gateway: Gateway, context: SSL.Context) -> None:
    """Also where it has asked already, which in TLS 1.3 is usual."""
    stream = TlsStream(knock(gateway), context, server_side=False)
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
    await hears_an_alert(gateway, SSL.Context(SSL.TLS_METHOD))


async def no_certificate_in_tls_1_2(gateway: Gateway) -> None:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    await hears_an_alert(gateway, context)


async def a_foreign_certificate(gateway: Gateway) -> None:
    pair = gateway.certificates.pair("foreign")
    Authority("Clients CA").issue_client("client-bad").write(*pair)
    await hears_an_alert(gateway, client_context(*pair, gateway.certificates.path("gateway_ca.pem")))


async def an_expired_certificate(gateway: Gateway) -> None:
    pair = gateway.certificates.pair("expired")
    now = datetime.now(UTC)
    authority = gateway.certificates.clients_ca
    expired = authority.issue_client("client-bad", not_before=now - timedelta(2), not_after=now - timedelta(1))
    expired.write(*pair)
    await hears_an_alert(gateway, client_context(*pair, gateway.certificates.path("gateway_ca.pem")))


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
    """A head that is right, and something else behind it."""
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
    """One asks for more than all buffers on the way can hold, and takes nothing."""
    async with session(gateway, "client-large") as client:
        uid = (await client.ask(large_object())).items[0].unique_identifiers[0].decode()
        before = await total(gateway, ERRORS, reason="sending_timeout")
        await client.stream.send_all(get_key(uid) * 100)

        async def is_noticed() -> bool:
            await trio.sleep(DEADLINE / 4)
            return await total(gateway, ERRORS, reason="sending_timeout") > before

        await until(is_noticed, "the gateway's patience")


def large_object() -> bytes:
    """A Register of an opaque object."""
    opaque = ttlv.structure(
        Tag.OPAQUE_OBJECT,
        ttlv.enumeration(Tag.OPAQUE_DATA_TYPE, 0x80000001),
        ttlv.octets(Tag.OPAQUE_DATA_VALUE, MARK + bytes(LARGE)),
    )
    payload = ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.OPAQUE_OBJECT) + ttlv.structure(Tag.TEMPLATE_ATTRIBUTE)
    return compose.encode_request((1, 2), [Ask(Operation.REGISTER, payload + opaque)])


class Misdeed(NamedTuple):
    """What a client does wrong, and the reason under which the gateway counts it."""

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


# That it costs nobody else anything -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", MISDEEDS)
async def test_a_misdeed_has_its_end_and_its_count(gateway: Gateway, what: str) -> None:
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


async def test_noise_of_any_kind_gets_one_answer_at_the_most(gateway: Gateway) -> None:
    """Requests with some of their bytes changed: what is left of them may be right by chance."""
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


async def test_a_crowd_is_borne(gateway: Gateway) -> None:
    """All of them at once, and again: memory is bounded, nothing is left behind, nobody is kept waiting."""
    kinds = list(MISDEEDS.values())
    await all_have_left(gateway)
    descriptors = await descriptors_in_front(gateway)
    peaks = []
    async with unnoticed(gateway) as bystander:
        for _ in range(2):
            answers = bystander.answers
            async with watched(gateway) as samples, trio.open_nursery() as nursery:
                for number in range(CROWD):
                    nursery.start_soon(misbehave, kinds[number % len(kinds)].do, gateway)
                    await trio.sleep(0.002)
            peaks.append(max(samples))
            assert bystander.answers > answers + 5
            await all_have_left(gateway, 2)
    await all_have_left(gateway)
    assert await descriptors_in_front(gateway) == descriptors
    assert peaks[1] < peaks[0] + (16 << 20)
    assert peaks[1] < 160 << 20


async def misbehave(do: Callable[[Gateway], Awaitable[None]], gateway: Gateway) -> None:
    """One of many: here it does not matter how it ends, but that it does."""
    with trio.fail_after(3 * SOON), suppress(GatewayError, OSError, AssertionError):
        await do(gateway)


async def descriptors_in_front(gateway: Gateway) -> float:
    """The gateway's descriptors, but for those of its sessions with key managers."""
    metrics = await trio.to_thread.run_sync(gateway.metrics)
    sessions = sum(value for sample, value in metrics.items() if sample.startswith("kmip_gateway_sessions{"))
    return metrics["process_open_fds"] - sessions


def resident(gateway: Gateway) -> int:
    """The memory that the gateway's process holds, in bytes."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024


@asynccontextmanager
async def watched(gateway: Gateway) -> AsyncIterator[list[int]]:
    """How much memory the gateway's process holds, again and again, for the length of a block."""
    samples = [resident(gateway)]

    async def watch() -> None:
        while True:
            samples.append(resident(gateway))
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        yield samples
        nursery.cancel_scope.cancel()


async def test_half_requests_of_many_take_no_more_than_was_sent(gateway: Gateway) -> None:
    """A declared length takes nothing: 200 clients announce a mebibyte each, and send a few bytes of it."""
    head = b"\x42\x00\x78\x01" + struct.pack(">I", (1 << 20) - 8)
    async with unnoticed(gateway), watched(gateway) as samples, trio.open_nursery() as nursery:
        for _ in range(CROWD):
            nursery.start_soon(misbehave, partial(_begin_a_large_one, head), gateway)
    assert max(samples) - samples[0] < CROWD * (128 << 10)


async def _begin_a_large_one(head: bytes, gateway: Gateway) -> None:
    async with session(gateway) as client:
        await client.stream.send_all(head + os.urandom(100))
        await is_closed(client)


async def test_a_log_that_nobody_reads_stops_nobody(tmp_path: Path) -> None:
    """Not at the start, and not where strangers without a certificate have a lot written to it."""
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
                    with knock(gateway) as stranger:
                        stranger.send(b"GET / HTTP/1.0\r\n\r\n")
                        await ends(stranger)
                    assert (await client.ask(create_key())).items[0].status == ResultStatus.SUCCESS
        assert gateway.total("kmip_gateway_log_messages_dropped_total") >= 3
        assert not os.read(reading, 1 << 20).strip(b"\0")
    assert b"log messages dropped" in os.read(reading, 1 << 20)  # said when it ends, since there is room again
    os.close(reading)
    os.close(writing)
