"""Faults over real TLS: the answers that a client gets, and the operations in the journal."""

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from kmip_lab.certs import write_development_set
from kmip_lab.faults import NATURES, Fault, FaultFile, Faults, FaultSetting, read_faults, write_faults
from kmip_lab.keymanager import Journal, KeyManager, Store, read_journal
from kmip_lab.keymanager.command import keymanager
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import activate, create_key, get_key
from OpenSSL import SSL

from gateway import tls
from gateway.config import Address
from gateway.errors import ProtocolError, StreamClosedError, TlsError
from gateway.kmip import compose
from gateway.kmip.messages import Response
from gateway.kmip.spec import Operation, ResultReason, ResultStatus
from gateway.tls import client_context
from lab.tests.kit.key_managers import Start
from lab.tests.kit.keymanager_process import options, ready_port, running

SOON = 0.3  # s: what has not happened by then does not happen
PATIENCE = 5.0  # s: what has not happened by then is a failure
CREATE = create_key()
QUERY = compose.query()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal")
    yield journal
    journal.close()


@pytest.fixture
async def key_manager(start: Start, journal: Journal) -> KeyManager:
    return await start(journal=journal)


@pytest.fixture
def context(certificates: Path) -> SSL.Context:
    """Return the TLS context of the gateway as a client."""
    return client_context(
        certificates / "gateway-client.pem", certificates / "gateway-client.key", certificates / "kms-ca.pem"
    )


@pytest.fixture
def executed(tmp_path: Path) -> Callable[[], list[str]]:
    """Return the operations in the journal that succeeded."""

    def names() -> list[str]:
        return [entry.operation for entry in read_journal(tmp_path / "journal") if entry.result == "Success"]

    return names


Executed = Callable[[], list[str]]


@asynccontextmanager
async def connected(key_manager: KeyManager, context: SSL.Context) -> AsyncIterator[Client]:
    """Open a session for a block that must end in time."""
    with trio.fail_after(PATIENCE):
        async with connect(Address("127.0.0.1", key_manager.port), context, server_name="localhost") as client:
            yield client


def is_success(response: Response) -> bool:
    return all(item.status == ResultStatus.SUCCESS for item in response.items)


async def nothing_within(seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    """Expect that the block has not ended after so many seconds, and cancel it."""
    with trio.move_on_after(seconds):
        await work()
        raise AssertionError("something came")


async def until_executed(executed: Executed, operation: str) -> None:
    while operation not in executed():  # noqa: ASYNC110 - a file has no event
        await trio.sleep(0.01)


async def is_reset(client: Client, frame: bytes) -> None:
    with pytest.raises(StreamClosedError, match="ECONNRESET"):
        await client.ask(frame)


# Faults of requests ---------------------------------------------------------------------------------------------------


async def test_deaf_never_answers_and_never_executes(
    key_manager: KeyManager, context: SSL.Context, executed: Executed
) -> None:
    key_manager.faults.set(FaultSetting(Fault.DEAF))
    async with connected(key_manager, context) as client:
        await nothing_within(SOON, lambda: client.ask(CREATE))
        key_manager.faults.clear()
    async with connected(key_manager, context) as client:
        assert is_success(await client.ask(QUERY))
    assert executed() == ["Query"]
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert key_manager.sessions == 0  # it notices who leaves


async def test_slow_executes_first(key_manager: KeyManager, context: SSL.Context, executed: Executed) -> None:
    key_manager.faults.set(FaultSetting(Fault.SLOW, seconds=SOON))
    async with connected(key_manager, context) as client, trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(client.ask, CREATE)
        await until_executed(executed, "Create")
        assert trio.current_time() - began < SOON
    assert trio.current_time() - began >= SOON


async def test_reset_before_reading(key_manager: KeyManager, context: SSL.Context, executed: Executed) -> None:
    key_manager.faults.set(FaultSetting(Fault.RESET_BEFORE_READING))
    async with connected(key_manager, context) as client:
        await is_reset(client, CREATE)
    assert executed() == []


async def test_reset_after_executing(key_manager: KeyManager, context: SSL.Context, executed: Executed) -> None:
    key_manager.faults.set(FaultSetting(Fault.RESET_AFTER_EXECUTING))
    async with connected(key_manager, context) as client:
        await is_reset(client, CREATE)
    assert executed() == ["Create"]


async def test_hang_up_closes_politely_and_never_executes(
    key_manager: KeyManager, context: SSL.Context, executed: Executed
) -> None:
    key_manager.faults.set(FaultSetting(Fault.HANG_UP))
    async with connected(key_manager, context) as client:
        await client.stream.send_all(CREATE)
        assert await client.stream.receive_some() == b""
    assert executed() == []


async def test_a_fault_can_be_limited_to_objects(
    key_manager: KeyManager, context: SSL.Context, executed: Executed
) -> None:
    poison = FaultSetting(
        Fault.HANG_UP, operations=frozenset({Operation.GET}), unique_identifiers=frozenset({"poison"})
    )
    key_manager.faults.set(poison)
    async with connected(key_manager, context) as client:
        created = await client.ask(CREATE)
        uid = created.items[0].unique_identifiers[0].decode()
        assert is_success(await client.ask(get_key(uid)))
        assert is_success(await client.ask(activate(uid)))
        missing = await client.ask(activate("poison"))  # another operation on the object
        assert missing.items[0].reason == ResultReason.ITEM_NOT_FOUND
        with pytest.raises(StreamClosedError):
            await client.ask(get_key("poison"))
    async with connected(key_manager, context) as client:
        with pytest.raises(StreamClosedError):
            await client.ask(get_key("poison"))
    assert executed() == ["Create", "Get", "Activate"]


@pytest.mark.parametrize("size", [0, 1, 20])
async def test_cut_sends_a_part_of_the_answer(
    key_manager: KeyManager, context: SSL.Context, executed: Executed, size: int
) -> None:
    key_manager.faults.set(FaultSetting(Fault.CUT, bytes=size))
    async with connected(key_manager, context) as client:
        await client.stream.send_all(CREATE)
        received = bytearray()
        while data := await client.stream.receive_some():
            received += data
    assert len(received) == size
    assert executed() == ["Create"]


@pytest.mark.parametrize("size", [1, 200])
async def test_garbage_is_no_message(
    key_manager: KeyManager, context: SSL.Context, executed: Executed, size: int
) -> None:
    key_manager.faults.set(FaultSetting(Fault.GARBAGE, bytes=size))
    async with connected(key_manager, context) as client:
        await client.stream.send_all(CREATE)
        with pytest.raises(ProtocolError, match="the bytes are no Response Message"):
            await client.read_response()
    assert executed() == ["Create"]


async def test_extra_bytes_can_be_a_second_answer(key_manager: KeyManager, context: SSL.Context) -> None:
    async with connected(key_manager, context) as client:
        first = await client.ask(QUERY)
        key_manager.faults.set(FaultSetting(Fault.EXTRA, bytes=len(first.frame) + 3))
        await client.stream.send_all(QUERY)
        received = bytearray()
        while len(received) < 2 * len(first.frame) + 3:
            received += await client.stream.receive_some()
    assert received[: len(first.frame)] == received[len(first.frame) : -3]
    assert received[-3:] == received[:3]


async def test_a_standby_answers_query_and_discover_versions_only(
    key_manager: KeyManager, context: SSL.Context, executed: Executed
) -> None:
    async with connected(key_manager, context) as client:
        assert b"ServerType=master" in (await client.ask(QUERY)).frame
        key_manager.faults.set(FaultSetting(Fault.STANDBY))
        assert b"ServerType=standby" in (await client.ask(QUERY)).frame
        assert is_success(await client.ask(compose.discover_versions()))
        (refused,) = (await client.ask(CREATE)).items
        assert (refused.status, refused.reason) == (ResultStatus.OPERATION_FAILED, ResultReason.GENERAL_FAILURE)
        assert refused.message is not None
        assert "not master" in refused.message
        key_manager.faults.clear()
        assert is_success(await client.ask(CREATE))
    assert executed() == ["Query", "Query", "DiscoverVersions", "Create"]


async def test_a_fault_can_be_limited_to_times_and_operations(
    key_manager: KeyManager, context: SSL.Context, executed: Executed
) -> None:
    get = get_key("nothing")
    operations = frozenset({Operation.GET, Operation.CREATE})
    key_manager.faults.set(FaultSetting(Fault.RESET_BEFORE_READING, times=2, operations=operations))
    for frame in (CREATE, get):
        async with connected(key_manager, context) as client:
            assert is_success(await client.ask(QUERY))  # which is not meant
            await is_reset(client, frame)
    async with connected(key_manager, context) as client:
        assert is_success(await client.ask(CREATE))
    assert executed() == ["Query", "Query", "Create"]
    assert repr(key_manager.faults) == "<Faults none>"


async def test_several_faults_act_at_once(key_manager: KeyManager, context: SSL.Context) -> None:
    gets = frozenset({Operation.GET})
    key_manager.faults.set(
        FaultSetting(Fault.CUT, bytes=8, operations=gets),
        FaultSetting(Fault.CUT, bytes=0, operations=frozenset({Operation.CREATE})),
        FaultSetting(Fault.SLOW, seconds=SOON),
    )
    assert repr(key_manager.faults) == "<Faults cut, cut, slow>"
    began = trio.current_time()
    for frame, size in ((get_key("nothing"), 8), (CREATE, 0)):
        async with connected(key_manager, context) as client:
            await client.stream.send_all(frame)
            assert len(await client.stream.receive_some()) == size
    assert trio.current_time() - began >= 2 * SOON


# Faults of connections ------------------------------------------------------------------------------------------------


async def test_refused_until_it_is_lifted(key_manager: KeyManager, context: SSL.Context) -> None:
    async with connected(key_manager, context) as kept:
        key_manager.faults.set(FaultSetting(Fault.REFUSE))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConnectionRefusedError):
            async with connected(key_manager, context):
                pass
        assert is_success(await kept.ask(QUERY))
        key_manager.faults.clear()
        await trio.testing.wait_all_tasks_blocked()
        async with connected(key_manager, context) as client:
            assert is_success(await client.ask(QUERY))


async def test_refused_and_open_sessions_reset(key_manager: KeyManager, context: SSL.Context) -> None:
    async with connected(key_manager, context) as kept:
        assert is_success(await kept.ask(QUERY))
        key_manager.faults.set(FaultSetting(Fault.REFUSE, reset=True))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StreamClosedError):
            await kept.ask(QUERY)


async def test_a_frozen_key_manager_continues_without_loss(
    key_manager: KeyManager, context: SSL.Context, executed: Executed
) -> None:
    async with connected(key_manager, context) as kept:
        assert is_success(await kept.ask(QUERY))
        key_manager.faults.set(FaultSetting(Fault.FREEZE))
        await kept.stream.send_all(CREATE)
        await nothing_within(SOON, kept.read_response)
        with trio.move_on_after(SOON) as scope:
            async with connected(key_manager, context):
                raise AssertionError("it shook hands")
        assert scope.cancelled_caught
        assert executed() == ["Query"]
        key_manager.faults.clear()
        assert is_success(await kept.read_response())
    assert executed() == ["Query", "Create"]


async def test_a_frozen_key_manager_does_not_close_sessions(key_manager: KeyManager, context: SSL.Context) -> None:
    async with connected(key_manager, context) as kept:
        assert is_success(await kept.ask(QUERY))
        key_manager.faults.set(FaultSetting(Fault.FREEZE), FaultSetting(Fault.IDLE_CLOSE, seconds=0))
        await nothing_within(SOON, kept.stream.receive_some)
        key_manager.faults.clear()
        assert await kept.stream.receive_some() == b""


async def test_frozen_between_execution_and_answer(
    key_manager: KeyManager, context: SSL.Context, executed: Executed
) -> None:
    key_manager.faults.set(FaultSetting(Fault.SLOW, seconds=SOON))
    async with connected(key_manager, context) as client:
        await client.stream.send_all(CREATE)
        await until_executed(executed, "Create")
        key_manager.faults.set(FaultSetting(Fault.FREEZE))
        await nothing_within(2 * SOON, client.read_response)
        assert executed() == ["Create"]
        key_manager.faults.clear()
        assert is_success(await client.read_response())


@pytest.mark.parametrize("before", [True, False], ids=["set before", "set while it waits"])
async def test_an_idle_session_is_closed(key_manager: KeyManager, context: SSL.Context, before: bool) -> None:
    setting = FaultSetting(Fault.IDLE_CLOSE, seconds=SOON)
    if before:
        key_manager.faults.set(setting)
    async with connected(key_manager, context) as client:
        await trio.sleep(SOON / 2)
        asked = trio.current_time()
        assert is_success(await client.ask(QUERY))
        key_manager.faults.set(setting)
        assert await client.stream.receive_some() == b""
        assert trio.current_time() - asked >= SOON


async def test_an_idle_session_stays_open_once_the_fault_is_lifted(
    key_manager: KeyManager, context: SSL.Context
) -> None:
    key_manager.faults.set(FaultSetting(Fault.IDLE_CLOSE, seconds=SOON))
    async with connected(key_manager, context) as client:
        assert is_success(await client.ask(QUERY))
        key_manager.faults.clear()
        await trio.sleep(2 * SOON)
        assert is_success(await client.ask(QUERY))


@pytest.mark.parametrize("key_type", ["ecdsa", "rsa"])
@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["TLS 1.2", "TLS 1.3"])
async def test_a_wrong_certificate(
    nursery: trio.Nursery, store: Store, tmp_path: Path, key_type: str, version: int
) -> None:
    write_development_set(tmp_path, key_type)
    served = tls.server_context(tmp_path / "kms.pem", tmp_path / "kms.key", tmp_path / "kms-clients-ca.pem")
    key_manager = KeyManager("atlanta-001", store, context=served)
    await nursery.start(key_manager.serve, ("127.0.0.1", 0))
    pair = tmp_path / "gateway-client.pem", tmp_path / "gateway-client.key"
    trusting, any_ca = client_context(*pair, tmp_path / "kms-ca.pem"), tls.client_context(*pair, None)
    for context in (trusting, any_ca):
        context.set_max_proto_version(version)
    async with connected(key_manager, trusting) as kept:
        assert is_success(await kept.ask(QUERY))
        key_manager.faults.set(FaultSetting(Fault.WRONG_CERTIFICATE))
        with pytest.raises(TlsError) as caught:
            async with connected(key_manager, trusting):
                pass
        assert caught.value.reason == "unknown_ca"
        with pytest.raises(TlsError) as caught:  # for other names, too
            async with connected(key_manager, any_ca):
                pass
        assert caught.value.reason == "hostname"
        key_manager.faults.set(FaultSetting(Fault.WRONG_CERTIFICATE, names=frozenset({"localhost"})))
        async with connected(key_manager, any_ca) as client:
            assert is_success(await client.ask(QUERY))
        assert is_success(await kept.ask(QUERY))
    key_manager.faults.clear()
    async with connected(key_manager, trusting) as client:
        assert is_success(await client.ask(QUERY))


async def test_a_refused_credential_shows_at_the_first_read(
    key_manager: KeyManager, context: SSL.Context, executed: Executed
) -> None:
    async with connected(key_manager, context) as kept:
        assert is_success(await kept.ask(QUERY))
        key_manager.faults.set(FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({"somebody", "gateway"})))
        async with connected(key_manager, context) as client:  # the handshake succeeds, as far as the client knows
            with pytest.raises(TlsError) as caught:
                await client.stream.receive_some()
            assert caught.value.reason == "alert"
        assert is_success(await kept.ask(QUERY))
    key_manager.faults.set(FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({"somebody"})))
    async with connected(key_manager, context) as client:
        assert is_success(await client.ask(QUERY))
    assert (key_manager.full_handshakes, key_manager.sessions_opened) == (2, 2)
    assert executed() == ["Query", "Query", "Query"]


async def test_a_refused_credential_in_tls_1_2(key_manager: KeyManager, context: SSL.Context) -> None:
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    key_manager.faults.set(FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({"gateway"})))
    with pytest.raises(TlsError) as caught:
        async with connected(key_manager, context):
            pass
    assert caught.value.reason == "alert"


async def test_a_refused_credential_does_not_resume(key_manager: KeyManager, context: SSL.Context) -> None:
    async with connected(key_manager, context) as client:
        assert is_success(await client.ask(QUERY))
        session = client.stream.connection.get_session()
        assert session is not None
    key_manager.faults.set(FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({"gateway"})))
    sock = await trio.to_thread.run_sync(socket.create_connection, ("127.0.0.1", key_manager.port))
    stream = tls.TlsStream(sock, context, server_side=False)
    stream.connection.set_session(session)
    await stream.handshake()
    assert stream.resumed
    assert await stream.receive_some() == b""
    stream.close()


# Settings and files ---------------------------------------------------------------------------------------------------


def test_every_fault_is_described() -> None:
    assert set(NATURES) == set(Fault)
    # Wide enough for no line to be broken.
    about = CliRunner().invoke(keymanager, ["--help"], terminal_width=200).output
    for fault in Fault:
        assert f"  {fault.value}: " in about


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"fault": "slow"}, "slow needs seconds"),
        ({"fault": "cut", "times": 3}, "cut needs bytes"),
        ({"fault": "freeze", "times": 1}, "freeze takes no times"),
        ({"fault": "deaf", "seconds": 0, "reset": True}, "deaf takes no reset, seconds"),
        ({"fault": "slow", "seconds": -1}, "greater than or equal to 0"),
        ({"fault": "deaf", "times": 0}, "greater than 0"),
        ({"fault": "deaf", "operations": ["Gett"]}, "a.0.operations.0"),
        ({"fault": "freeze", "unique_identifiers": ["a"]}, "freeze takes no unique_identifiers"),
        ({"fault": "defa"}, "a.0.fault"),
        ({"fault": "deaf", "tmies": 1}, "a.0.tmies"),
    ],
)
def test_parameters_that_a_fault_does_not_take_are_refused_by_name(
    tmp_path: Path, setting: dict[str, object], words: str
) -> None:
    path, complaints = tmp_path / "faults.json", list[str]()
    path.write_text(json.dumps({"a": [setting]}))
    FaultFile(path, {"a": Faults()}, complaints.append).look()
    (complaint,) = complaints
    assert str(path) in complaint
    assert words in complaint


def test_faults_are_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    assert read_faults(path) == {}
    faults = {
        "atlanta-001": [FaultSetting(Fault.CUT, bytes=0, operations=frozenset({Operation.CREATE_KEY_PAIR}))],
        "atlanta-002": [FaultSetting(Fault.HANG_UP, unique_identifiers=frozenset({"poison"}))],
        "london-001": [FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({"a"})), FaultSetting(Fault.FREEZE)],
    }
    write_faults(path, faults)
    assert read_faults(path) == faults
    assert json.loads(path.read_text())["atlanta-001"] == [
        {"fault": "cut", "bytes": 0, "operations": ["CreateKeyPair"]},
    ]
    assert [one.name for one in tmp_path.iterdir()] == ["faults.json"]


def test_a_changed_file_switches_only_the_faults_that_changed(tmp_path: Path) -> None:
    path, complaints = tmp_path / "faults.json", list[str]()
    atlanta, london = Faults(), Faults()
    file = FaultFile(path, {"atlanta-001": atlanta, "london-001": london}, complaints.append)
    file.look()
    once = FaultSetting(Fault.DEAF, times=1)
    write_faults(path, {"atlanta-001": [once], "elsewhere": [once]})
    file.look()
    assert (atlanta.get(Fault.DEAF), london.get(Fault.DEAF)) == (once, None)
    atlanta.clear()  # as if it had met its request
    write_faults(path, {"atlanta-001": [once], "london-001": [once]})
    file.look()
    assert (atlanta.get(Fault.DEAF), london.get(Fault.DEAF)) == (None, once)
    path.write_text("{")
    file.look()
    file.look()
    assert london.get(Fault.DEAF) == once
    assert len(complaints) == 1
    path.unlink()
    file.look()
    assert london.get(Fault.DEAF) is None


async def test_a_process_watches_its_file(certificates: Path, tmp_path: Path, context: SSL.Context) -> None:
    path = tmp_path / "faults.json"
    write_faults(path, {"key-manager-1": [FaultSetting(Fault.STANDBY)]})
    with running("--bind=127.0.0.1:0", f"--faults={path}", *options(certificates)) as process:
        port = await trio.to_thread.run_sync(ready_port, process, "key-manager-1")
        async with connect(Address("127.0.0.1", port), context, server_name="localhost") as client:
            assert b"ServerType=standby" in (await client.ask(QUERY)).frame
            write_faults(path, {})
            with trio.fail_after(PATIENCE):
                while b"ServerType=master" not in (await client.ask(QUERY)).frame:
                    pass
