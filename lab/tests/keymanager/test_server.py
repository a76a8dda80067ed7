"""The key manager on the network: its counters, the cost of its HSM, and misbehaving clients."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from kmip_lab.certs import Authority, common_name
from kmip_lab.keymanager import Journal, KeyManager, Store, read_journal
from kmip_lab.keymanager.costs import Hsm
from OpenSSL import SSL

from gateway import tls
from gateway.errors import StreamClosedError, TlsError
from gateway.kmip.compose import Ask, discover_versions, encode_request
from gateway.kmip.decode import decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Response
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from lab.tests.kit.engine_client import creation, uid_of
from lab.tests.kit.key_managers import Start

COST = 0.05  # seconds; tests compare with it from below only, however slow the machine is
FOREVER = 3600.0  # seconds


@pytest.fixture
def context(certificates: Path) -> SSL.Context:
    """Return the TLS context of the gateway as a client."""
    return tls.client_context(
        certificates / "gateway-client.pem", certificates / "gateway-client.key", certificates / "kms-ca.pem"
    )


class NetworkClient:
    """A client on the network that sends any bytes, and reads responses one by one."""

    def __init__(self, stream: tls.TlsStream) -> None:
        self.stream = stream
        self._reader = FrameReader(Tag.RESPONSE_MESSAGE, 1 << 20)

    async def read(self) -> Response:
        answer = self._reader.next_frame()
        while answer is None:
            data = await self.stream.receive_some()
            assert data, "closed without an answer"
            answer = self._reader.feed(data)
        return decode_response(answer)

    async def ask(self, frame: bytes) -> Response:
        await self.stream.send_all(frame)
        return await self.read()


@asynccontextmanager
async def connected(
    key_manager: KeyManager, context: SSL.Context, session: SSL.Session | None = None
) -> AsyncIterator[NetworkClient]:
    sock = await trio.to_thread.run_sync(socket.create_connection, ("127.0.0.1", key_manager.port))
    stream = tls.TlsStream(sock, context, server_side=False)
    if session is not None:
        stream.connection.set_session(session)
    try:
        with trio.fail_after(5):
            await stream.handshake()
            yield NetworkClient(stream)
    finally:
        stream.close_politely()


CREATE = encode_request((1, 4), [creation((1, 4))])


def get(uid: str) -> bytes:
    return encode_request((1, 4), [Ask(Operation.GET, uid_of(uid))])


def uid_in(response: Response) -> str:
    (item,) = response.items
    assert item.status == ResultStatus.SUCCESS, item.message
    return item.unique_identifiers[0].decode()


async def elapsed(work: Callable[[], Awaitable[object]]) -> float:
    begin = trio.current_time()
    await work()
    return trio.current_time() - begin


# Counters, store, journal, owners -------------------------------------------------------------------------------------


async def test_sessions_handshakes_and_requests_are_counted(start: Start, context: SSL.Context) -> None:
    key_manager = await start()
    for _ in range(2):
        async with connected(key_manager, context) as client:
            await client.ask(discover_versions())
            await client.ask(discover_versions())
            assert key_manager.sessions == 1
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert (key_manager.sessions_opened, key_manager.full_handshakes, key_manager.requests) == (2, 2, 4)
    assert key_manager.sessions == 0
    assert "atlanta-001" in repr(key_manager)


async def test_key_managers_that_share_a_store_have_the_same_objects(start: Start, context: SSL.Context) -> None:
    atlanta, london = await start("atlanta-001"), await start("london-001")
    async with connected(atlanta, context) as client:
        uid = uid_in(await client.ask(CREATE))
        answer = await client.ask(get(uid))
    async with connected(london, context) as client:
        again = await client.ask(get(uid))
    assert uid_in(again) == uid
    assert answer.items[0]._raw(Tag.RESPONSE_PAYLOAD) == again.items[0]._raw(Tag.RESPONSE_PAYLOAD)


async def test_an_answered_request_is_in_the_journal(start: Start, context: SSL.Context, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    key_manager = await start(journal=journal)
    async with connected(key_manager, context) as client:
        uid = uid_in(await client.ask(CREATE))
        (entry,) = read_journal(tmp_path / "journal")
    assert (entry.server, entry.owner, entry.operation, entry.uids) == ("atlanta-001", "gateway", "Create", [uid])
    journal.close()


async def test_clients_are_identified_by_their_common_name(
    nursery: trio.Nursery, certificates: Path, store: Store, tmp_path: Path
) -> None:
    authority, contexts = Authority("clients"), []
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    for name in ("alice", "bob"):
        authority.issue_client(name).write(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        contexts.append(
            tls.client_context(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", certificates / "kms-ca.pem")
        )
    served = tls.server_context(certificates / "kms.pem", certificates / "kms.key", tmp_path / "ca.pem")
    key_manager = KeyManager("atlanta-001", store, context=served)
    await nursery.start(key_manager.serve, ("127.0.0.1", 0))
    async with connected(key_manager, contexts[0]) as alice, connected(key_manager, contexts[1]) as bob:
        uid = uid_in(await alice.ask(CREATE))
        assert uid_in(await alice.ask(get(uid))) == uid
        assert (await bob.ask(get(uid))).items[0].reason == ResultReason.ITEM_NOT_FOUND


def test_no_certificate_has_no_common_name() -> None:
    assert common_name(None) is None


# The cost of the HSM --------------------------------------------------------------------------------------------------


async def test_full_handshakes_cost_and_wait_for_each_other(start: Start, context: SSL.Context) -> None:
    key_manager = await start(handshake_cost=COST)

    async def connect_once() -> None:
        async with connected(key_manager, context) as client:
            await client.ask(discover_versions())

    async def three() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(connect_once)

    assert await elapsed(three) >= 3 * COST


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["TLS 1.2", "TLS 1.3"])
async def test_a_resumed_session_costs_nothing(start: Start, context: SSL.Context, version: int) -> None:
    context.set_max_proto_version(version)
    key_manager = await start()
    async with connected(key_manager, context) as client:
        await client.ask(discover_versions())
        session = client.stream.connection.get_session()
    key_manager.hsm = Hsm(handshake_cost=FOREVER)
    async with connected(key_manager, context, session) as client:
        await client.ask(discover_versions())
        uid_in(await client.ask(CREATE))  # a resumed session has the client's name, too
    assert (key_manager.sessions_opened, key_manager.full_handshakes) == (2, 1)


async def test_operations_cost(start: Start, context: SSL.Context) -> None:
    key_manager = await start(operation_cost=COST)
    async with connected(key_manager, context) as client:

        async def work() -> None:
            await client.ask(CREATE)
            await client.ask(encode_request((1, 4), [Ask(Operation.LOCATE)] * 2))

        assert await elapsed(work) >= 3 * COST


async def test_query_and_discover_versions_are_free(start: Start, context: SSL.Context) -> None:
    key_manager = await start(operation_cost=FOREVER)
    async with connected(key_manager, context) as client:
        await client.ask(discover_versions())
        await client.ask(encode_request((1, 4), [Ask(Operation.QUERY)]))


# Misbehaving clients --------------------------------------------------------------------------------------------------


async def still_serves(key_manager: KeyManager, context: SSL.Context) -> None:
    async with connected(key_manager, context) as client:
        assert (await client.ask(discover_versions())).items[0].status == ResultStatus.SUCCESS


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x42\x00\x78\x01\xff\xff\xff\xf8", b"\x15\x03\x01"])
async def test_bytes_that_are_no_message_are_answered_and_end_the_session(
    start: Start, context: SSL.Context, garbage: bytes
) -> None:
    key_manager = await start()
    async with connected(key_manager, context) as client:
        response = await client.ask(garbage)
        assert response.version == (1, 0)
        assert response.items[0].reason == ResultReason.INVALID_MESSAGE
        assert await client.stream.receive_some() == b""
    await still_serves(key_manager, context)


async def test_an_undecodable_message_is_answered_and_ends_the_session(start: Start, context: SSL.Context) -> None:
    key_manager = await start()
    async with connected(key_manager, context) as client:
        response = await client.ask(b"\x42\x00\x78\x01\x00\x00\x00\x08" + bytes(8))
        assert response.items[0].reason == ResultReason.INVALID_MESSAGE
        assert await client.stream.receive_some() == b""


async def test_an_unsupported_version_does_not_end_the_session(start: Start, context: SSL.Context) -> None:
    key_manager = await start()
    async with connected(key_manager, context) as client:
        response = await client.ask(discover_versions((9, 9)))
        assert response.items[0].reason == ResultReason.INVALID_MESSAGE
        assert (await client.ask(discover_versions())).items[0].status == ResultStatus.SUCCESS


async def test_messages_come_in_pieces_or_together(start: Start, context: SSL.Context) -> None:
    key_manager = await start()
    async with connected(key_manager, context) as client:
        for position in range(len(frame := discover_versions())):
            await client.stream.send_all(frame[position : position + 1])
        assert (await client.read()).items[0].status == ResultStatus.SUCCESS
        await client.stream.send_all(discover_versions((1, 1)) + discover_versions((1, 3)) + b"\0")
        assert (await client.read()).version == (1, 1)
        assert (await client.read()).version == (1, 3)
        assert (await client.read()).items[0].reason == ResultReason.INVALID_MESSAGE


async def test_a_client_that_disconnects_does_not_affect_other_clients(start: Start, context: SSL.Context) -> None:
    key_manager = await start(operation_cost=COST)
    async with connected(key_manager, context) as other:
        async with connected(key_manager, context) as client:
            await client.stream.send_all(CREATE[:20])
        async with connected(key_manager, context) as client:
            await client.stream.send_all(CREATE)
            client.stream.close()
        assert (await other.ask(discover_versions())).items[0].status == ResultStatus.SUCCESS
        await trio.sleep(2 * COST)
        assert (await other.ask(discover_versions())).items[0].status == ResultStatus.SUCCESS
    assert key_manager.requests == 3


async def test_a_client_without_handshake_is_disconnected_after_timeout(
    start: Start, context: SSL.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmip_lab.keymanager.server.HANDSHAKE_TIMEOUT", 0.5)
    key_manager = await start()
    stream = await trio.open_tcp_stream("127.0.0.1", key_manager.port)
    await still_serves(key_manager, context)
    with trio.fail_after(2):
        assert await stream.receive_some() == b""
    await stream.aclose()
    assert key_manager.sessions_opened == 1


async def test_clients_without_tls_or_a_known_certificate_are_refused(
    start: Start, context: SSL.Context, certificates: Path
) -> None:
    key_manager = await start()
    async with await trio.open_tcp_stream("127.0.0.1", key_manager.port) as stream:
        await stream.send_all(discover_versions())
        with trio.fail_after(2), suppress(trio.BrokenResourceError):
            await stream.receive_some()
    foreign = tls.client_context(certificates / "client.pem", certificates / "client.key", certificates / "kms-ca.pem")
    with pytest.raises((TlsError, StreamClosedError)):
        async with connected(key_manager, foreign) as client:
            await client.ask(discover_versions())
    assert key_manager.sessions_opened == 0
    await still_serves(key_manager, context)


async def test_cancelling_the_nursery_stops_the_key_manager(
    store: Store, server_context: SSL.Context, context: SSL.Context
) -> None:
    key_manager = KeyManager("atlanta-001", store, context=server_context)
    async with trio.open_nursery() as nursery:
        await nursery.start(key_manager.serve, ("127.0.0.1", 0))
        async with connected(key_manager, context) as client:
            await client.ask(discover_versions())
            nursery.cancel_scope.cancel()
    with pytest.raises(OSError, match=r"refused|connect"):
        await trio.open_tcp_stream("127.0.0.1", key_manager.port)
