"""Asynchronous operations: pending, polled, canceled; in virtual time."""

# ruff: noqa: ARG001 - the clock is asked for by having it as an argument

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


class Client:
    """A client of a key manager: its requests may be answered later."""

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
    client = Client(await start(pending_for=SECONDS), version)
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
    unknown = await client.poll(pending)  # a result is given out once
    assert_failed(unknown, ResultReason.ITEM_NOT_FOUND, ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE)


@both_versions
async def test_a_batch_is_executed_in_order_with_its_placeholder(
    start: Start, version: Version, autojump_clock: MockClock
) -> None:
    client = Client(await start(pending_for=SECONDS), version)
    answers = await client.later(creation(version), Ask(Operation.GET), Ask(Operation.QUERY))
    assert [is_pending(answer) for answer in answers] == [True, True, False]
    await trio.sleep(SECONDS + 0.1)
    made, got = [await client.poll(answer) for answer in answers[:2]]
    assert got.uid == made.uid


@both_versions
async def test_correlation_values_belong_to_owner_and_key_manager(
    start: Start, version: Version, autojump_clock: MockClock
) -> None:
    atlanta, london = await start("atlanta-001", pending_for=SECONDS), await start("london-001", pending_for=SECONDS)
    alice = Client(atlanta, version)
    (pending,) = await alice.later(creation(version))
    await trio.sleep(SECONDS + 0.1)
    for other in (Client(atlanta, version, "bob"), Client(london, version)):
        assert_failed(
            await other.poll(pending), ResultReason.ITEM_NOT_FOUND, ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE
        )
        unknown = await other.ask(Operation.CANCEL, correlation(pending))
        assert_failed(unknown, ResultReason.ITEM_NOT_FOUND, ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE)
    assert_failed(await alice.ask(Operation.POLL), ResultReason.MISSING_DATA)
    assert (await alice.poll(pending)).ok


@both_versions
async def test_what_has_not_begun_is_canceled(start: Start, version: Version, autojump_clock: MockClock) -> None:
    client = Client(await start(pending_for=SECONDS), version)
    (pending,) = await client.later(creation(version))
    assert await client.cancel(pending) == CANCELED
    assert await client.cancel(pending) == CANCELED
    await trio.sleep(SECONDS + 0.1)
    assert_failed(await client.poll(pending), ResultReason.OPERATION_CANCELED_BY_REQUESTER)
    assert client.key_manager.engine.store.count() == 0


@both_versions
async def test_what_has_begun_can_not_be_canceled(start: Start, version: Version, autojump_clock: MockClock) -> None:
    client = Client(await start(pending_for=SECONDS), version)
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


async def test_only_who_must_be_answered_later_is_in_2_x(start: Start, autojump_clock: MockClock) -> None:
    client = Client(await start(pending_for=SECONDS), (2, 1))
    for indicator in (2, 3):  # Optional, Prohibited
        client.asynchronous = ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, indicator)
        (answer,) = await client.later(creation((2, 1)))
        assert answer.ok


async def test_without_the_setting_everything_is_answered_at_once(start: Start, autojump_clock: MockClock) -> None:
    key_manager = await start()
    (answer,) = await Client(key_manager, (1, 2)).later(creation((1, 2)))
    assert answer.ok
    (answer,) = await Client(key_manager, (2, 1)).later(creation((2, 1)))
    assert_failed(answer, ResultReason.FEATURE_NOT_SUPPORTED)


async def test_it_is_noted_when_it_is_executed(start: Start, tmp_path: object, autojump_clock: MockClock) -> None:
    path = f"{tmp_path}/journal"
    journal = Journal(path)
    client = Client(await start(pending_for=SECONDS, journal=journal), (1, 4))
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
