"""Asynchronous operations, Poll and Cancel; in virtual time."""

# ruff: noqa: ARG001 - a test has virtual time if the clock is an argument

import pytest
import trio
from kmip_lab.faults import Fault, FaultSetting
from kmip_lab.keymanager import Journal, KeyManager, read_journal
from kmip_lab.keymanager.costs import Hsm
from trio.testing import MockClock

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.decode import decode_response
from gateway.kmip.messages import Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from lab.tests.kit.engine_client import OperationResult, assert_failed, creation, uid_of
from lab.tests.kit.key_managers import Start

SECONDS = 5.0  # virtual

CANCELED, UNABLE, COMPLETED, FAILED = 1, 2, 3, 4

both_versions = pytest.mark.parametrize("version", [(1, 2), (2, 1)], ids=["1.2", "2.1"])


class AsynchronousClient:
    """A client of a key manager that asks for asynchronous operations."""

    def __init__(self, key_manager: KeyManager, version: Version, owner: str = "alice") -> None:
        self.key_manager = key_manager
        self.version = version
        self.owner = owner
        self.asynchronous = ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, True)
        if version >= (2, 0):
            self.asynchronous = ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 1)

    async def later(self, *asks: Ask) -> list[OperationResult]:
        frame = encode_request(self.version, asks, header=[self.asynchronous])
        answers = decode_response(await self.key_manager.ask(frame, self.owner)).items
        return [OperationResult(item, self.version) for item in answers]

    async def ask(self, operation: int, *items: bytes) -> OperationResult:
        frame = encode_request(self.version, [Ask(operation, b"".join(items), b"id")])
        (item,) = decode_response(await self.key_manager.ask(frame, self.owner)).items
        assert item.unique_batch_item_id == b"id"
        return OperationResult(item, self.version)

    async def poll(self, which: OperationResult | bytes) -> OperationResult:
        return await self.ask(Operation.POLL, correlation(which))

    async def cancel(self, which: OperationResult) -> int | None:
        answer = await self.ask(Operation.CANCEL, correlation(which))
        assert answer.ok
        assert answer.payload.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE) == which.item.asynchronous_correlation_value
        return answer.payload.enumeration(Tag.CANCELLATION_RESULT)


def correlation(which: OperationResult | bytes) -> bytes:
    value = which if isinstance(which, bytes) else which.item.asynchronous_correlation_value
    assert value is not None
    return ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, value)


def is_pending(answer: OperationResult) -> bool:
    return answer.item.status == ResultStatus.OPERATION_PENDING


@both_versions
async def test_an_operation_is_pending_until_it_is_polled(
    start: Start, version: Version, autojump_clock: MockClock
) -> None:
    client = AsynchronousClient(await start(pending_for=SECONDS), version)
    (pending,) = await client.later(creation(version))
    assert is_pending(pending)
    assert pending.item.operation == Operation.CREATE
    assert is_pending(await client.poll(pending))
    assert client.key_manager.engine.store.count() == 0
    await trio.sleep(SECONDS + 0.1)
    assert client.key_manager.engine.store.count() == 1
    made = await client.poll(pending)
    assert made.item.operation == Operation.CREATE
    assert (await client.ask(Operation.GET, uid_of(made))).ok
    unknown = await client.poll(pending)  # a result is returned once
    assert_failed(unknown, ResultReason.ITEM_NOT_FOUND, ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE)


@both_versions
async def test_a_batch_is_executed_in_order_with_its_placeholder(
    start: Start, version: Version, autojump_clock: MockClock
) -> None:
    client = AsynchronousClient(await start(pending_for=SECONDS), version)
    answers = await client.later(creation(version), Ask(Operation.GET), Ask(Operation.QUERY))
    assert [is_pending(answer) for answer in answers] == [True, True, False]
    await trio.sleep(SECONDS + 0.1)
    made, got = [await client.poll(answer) for answer in answers[:2]]
    assert got.uid == made.uid


@both_versions
async def test_a_correlation_value_belongs_to_its_owner_and_key_manager(
    start: Start, version: Version, autojump_clock: MockClock
) -> None:
    atlanta, london = await start("atlanta-001", pending_for=SECONDS), await start("london-001", pending_for=SECONDS)
    alice = AsynchronousClient(atlanta, version)
    (pending,) = await alice.later(creation(version))
    await trio.sleep(SECONDS + 0.1)
    for other in (AsynchronousClient(atlanta, version, "bob"), AsynchronousClient(london, version)):
        assert_failed(
            await other.poll(pending), ResultReason.ITEM_NOT_FOUND, ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE
        )
        unknown = await other.ask(Operation.CANCEL, correlation(pending))
        assert_failed(unknown, ResultReason.ITEM_NOT_FOUND, ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE)
    assert_failed(await alice.ask(Operation.POLL), ResultReason.MISSING_DATA)
    assert (await alice.poll(pending)).ok


@both_versions
async def test_a_waiting_operation_is_canceled(start: Start, version: Version, autojump_clock: MockClock) -> None:
    client = AsynchronousClient(await start(pending_for=SECONDS), version)
    (pending,) = await client.later(creation(version))
    assert await client.cancel(pending) == CANCELED
    assert await client.cancel(pending) == CANCELED
    await trio.sleep(SECONDS + 0.1)
    assert_failed(await client.poll(pending), ResultReason.OPERATION_CANCELED_BY_REQUESTER)
    assert client.key_manager.engine.store.count() == 0


@both_versions
async def test_a_started_operation_can_not_be_canceled(
    start: Start, version: Version, autojump_clock: MockClock
) -> None:
    client = AsynchronousClient(await start(pending_for=SECONDS), version)
    client.key_manager.hsm = Hsm(operation_cost=1)
    (first,) = await client.later(creation(version))
    (second,) = await client.later(Ask(Operation.GET, uid_of("nobody's")))
    await trio.sleep(SECONDS + 0.5)
    assert await client.cancel(first) == UNABLE
    await trio.sleep(2)
    assert await client.cancel(first) == COMPLETED
    assert await client.cancel(second) == FAILED
    assert (await client.poll(first)).ok
    assert_failed(await client.poll(second), ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND)


async def test_2_x_optional_and_prohibited_are_answered_at_once(start: Start, autojump_clock: MockClock) -> None:
    client = AsynchronousClient(await start(pending_for=SECONDS), (2, 1))
    for indicator in (2, 3):  # Optional, Prohibited
        client.asynchronous = ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, indicator)
        (answer,) = await client.later(creation((2, 1)))
        assert answer.ok


async def test_without_pending_for_no_operation_is_deferred(start: Start, autojump_clock: MockClock) -> None:
    key_manager = await start()
    (answer,) = await AsynchronousClient(key_manager, (1, 2)).later(creation((1, 2)))
    assert answer.ok
    (answer,) = await AsynchronousClient(key_manager, (2, 1)).later(creation((2, 1)))
    assert_failed(answer, ResultReason.FEATURE_NOT_SUPPORTED)


async def test_a_deferred_operation_is_in_the_journal_once_executed(
    start: Start, tmp_path: object, autojump_clock: MockClock
) -> None:
    path = f"{tmp_path}/journal"
    journal = Journal(path)
    client = AsynchronousClient(await start(pending_for=SECONDS, journal=journal), (1, 4))
    (pending,) = await client.later(creation((1, 4)))
    assert read_journal(path) == []
    client.key_manager.faults.set(FaultSetting(Fault.FREEZE))
    await trio.sleep(SECONDS + 1)
    assert read_journal(path) == []
    client.key_manager.faults.clear()
    await trio.sleep(1)
    assert [entry.operation for entry in read_journal(path)] == ["Create"]
    await client.poll(pending)
    assert [entry.operation for entry in read_journal(path)] == ["Create", "Poll"]
    journal.close()
