"""Replication: who has which change when, in virtual time."""

# ruff: noqa: ARG001 - the clock is asked for by having it as an argument

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from kmip_lab.faults import Fault, FaultSetting
from kmip_lab.keymanager import KeyManager, Link, Member, Replication, Role, promote, two_plus_two, write_roles
from kmip_lab.keymanager.costs import Hsm
from OpenSSL import SSL
from trio.testing import MockClock

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.decode import decode_response
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from lab.tests.kit.engine_client import OperationResult, contact, creation, uid_of

VERSION = (1, 4)
NEAR, FAR = 0.25, 2.0  # seconds, virtual

Cluster = dict[str, KeyManager]
Build = Callable[..., Awaitable[Cluster]]


async def ask(key_manager: KeyManager, operation: int, *items: bytes) -> OperationResult:
    return await ask_all(key_manager, Ask(operation, b"".join(items)))


async def ask_all(key_manager: KeyManager, ask: Ask) -> OperationResult:
    answer = await key_manager.ask(encode_request(VERSION, [ask]), "alice")
    return OperationResult(decode_response(answer).items[0], VERSION)


async def create(key_manager: KeyManager) -> OperationResult:
    return await ask_all(key_manager, creation(VERSION))


async def get(key_manager: KeyManager, which: OperationResult) -> OperationResult:
    return await ask(key_manager, Operation.GET, uid_of(which))


async def set_contact(key_manager: KeyManager, which: OperationResult, text: str) -> OperationResult:
    return await ask(key_manager, Operation.ADD_ATTRIBUTE, uid_of(which), contact(text).item(VERSION))


async def cluster_info(key_manager: KeyManager) -> str:
    answer = await ask(key_manager, Operation.QUERY, ttlv.enumeration(Tag.QUERY_FUNCTION, 3))
    information = answer.payload.structure(Tag.SERVER_INFORMATION)
    assert information is not None
    return information.text(0x420134) or ""


def has(key_manager: KeyManager, which: OperationResult) -> bool:
    return key_manager.engine.store.get(which.uid) is not None


@pytest.fixture
def cluster(nursery: trio.Nursery, tmp_path: Path, server_context: SSL.Context) -> Build:
    """Starts the key managers of a cluster, by name, and waits until all links of the masters stand."""

    async def start(roles: dict[str, Member], **settings: object) -> Cluster:
        write_roles(tmp_path, roles)
        cluster = {}
        for name in roles:
            replication = Replication(tmp_path, name)
            cluster[name] = KeyManager(
                name,
                replication.store,
                context=server_context,
                replication=replication,
                **settings,  # type: ignore[arg-type]
            )
            await nursery.start(cluster[name].serve, ("127.0.0.1", 0))
        for name, member in roles.items():
            if member.role is Role.MASTER:
                await until_in_step(cluster[name], len(roles) - 1)
        return cluster

    return start


async def until_in_step(key_manager: KeyManager, replicas: int) -> None:
    assert key_manager.replication is not None
    await until(lambda: len(key_manager.replication.in_step) >= replicas)  # type: ignore[union-attr]


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - virtual
        await trio.sleep(0.01)


# Where a change is when ----------------------------------------------------------------------------------------------


async def test_a_write_is_answered_when_the_synchronous_partner_has_it(
    cluster: Build, autojump_clock: MockClock
) -> None:
    kms = await cluster(two_plus_two(NEAR, FAR))
    began = trio.current_time()
    made = await create(kms["atlanta-001"])
    assert trio.current_time() - began == pytest.approx(NEAR, abs=0.001)
    assert has(kms["atlanta-002"], made)
    assert not has(kms["london-001"], made)
    assert not has(kms["london-002"], made)
    await trio.sleep_until(began + FAR - 0.01)
    assert not has(kms["london-001"], made)
    await trio.sleep_until(began + FAR + 0.01)
    assert has(kms["london-001"], made)
    assert has(kms["london-002"], made)
    assert (await get(kms["london-001"], made)).key == (await get(kms["atlanta-001"], made)).key


async def test_reads_wait_for_nobody_and_writes_only_for_the_synchronous(
    cluster: Build, autojump_clock: MockClock
) -> None:
    links = {"b": Link(delay=60)}
    kms = await cluster({"a": Member(Role.MASTER, links), "b": Member()})
    began = trio.current_time()
    made = await create(kms["a"])
    assert (await get(kms["a"], made)).ok
    assert trio.current_time() - began < 0.001


async def test_a_synchronous_link_keeps_the_hsm_free(cluster: Build, autojump_clock: MockClock) -> None:
    kms = await cluster({"a": Member(Role.MASTER, {"b": Link(0.9, synchronous=True)}), "b": Member()})
    kms["a"].hsm = Hsm(operation_cost=0.01)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(create, kms["a"])
    assert trio.current_time() - began == pytest.approx(0.1 + 0.9, abs=0.01)


async def test_changes_arrive_in_the_order_in_which_they_were_made(cluster: Build, autojump_clock: MockClock) -> None:
    kms = await cluster({"a": Member(Role.MASTER, {"b": Link(1)}), "b": Member()})
    made = [await create(kms["a"]) for _ in range(5)]
    for which in made:
        assert (await set_contact(kms["a"], which, "me")).ok
    replica = kms["b"].engine.store
    assert replica.log is not None
    seen: list[int] = []
    while not seen or seen[-1] < 10:
        seen.append(sum(replica.log.last_numbers().values()))
        known = [which for which in made if has(kms["b"], which)]
        assert known == made[: len(known)]
        await trio.sleep(0.01)
    assert replica.get(made[4].uid) == kms["a"].engine.store.get(made[4].uid)


async def test_the_later_of_two_masters_changes_stands_everywhere(cluster: Build, autojump_clock: MockClock) -> None:
    kms = await cluster(two_plus_two(NEAR, FAR))
    made = await create(kms["atlanta-001"])
    await trio.sleep(FAR + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(set_contact, kms["atlanta-001"], made, "first")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(set_contact, kms["london-001"], made, "second")
    await trio.sleep(FAR + 1)
    contacts = set()
    for key_manager in kms.values():
        found = key_manager.engine.store.get(made.uid)
        assert found is not None
        contact_information = found.instance("Contact Information")
        assert contact_information is not None
        contacts.add(contact_information.value)
    assert contacts == {b"second"}


# Partners that are gone ----------------------------------------------------------------------------------------------


async def test_a_master_waits_with_patience_for_a_frozen_partner_and_then_goes_on_alone(
    cluster: Build, autojump_clock: MockClock
) -> None:
    kms = await cluster(two_plus_two(NEAR, FAR))
    kms["atlanta-002"].faults.set(FaultSetting(Fault.FREEZE))
    began = trio.current_time()
    first = await create(kms["atlanta-001"])
    assert trio.current_time() - began == pytest.approx(1, abs=0.001)  # patience
    second = await create(kms["atlanta-001"])
    assert trio.current_time() - began == pytest.approx(1, abs=0.001)
    assert not has(kms["atlanta-002"], first)
    kms["atlanta-002"].faults.clear()
    await until_in_step(kms["atlanta-001"], 3)
    assert has(kms["atlanta-002"], first)
    assert has(kms["atlanta-002"], second)
    began = trio.current_time()
    await create(kms["atlanta-001"])
    assert trio.current_time() - began == pytest.approx(NEAR, abs=0.001)


async def test_a_replica_that_was_gone_catches_up(
    tmp_path: Path, server_context: SSL.Context, autojump_clock: MockClock
) -> None:
    write_roles(tmp_path, {"a": Member(Role.MASTER, {"b": Link(synchronous=True)}), "b": Member()})
    replications = [Replication(tmp_path, name) for name in "ab"]
    kms = [KeyManager(one.name, one.store, context=server_context, replication=one) for one in replications]
    async with trio.open_nursery() as nursery:
        await nursery.start(kms[0].serve, ("127.0.0.1", 0))
        alone = await create(kms[0])
        assert alone.ok
        for _ in range(2):
            async with trio.open_nursery() as partner:
                await partner.start(kms[1].serve, ("127.0.0.1", 0))
                await until_in_step(kms[0], 1)
                assert has(kms[1], alone)
                partner.cancel_scope.cancel()
            await until(lambda: not replications[0].in_step)
            alone = await create(kms[0])
            assert not has(kms[1], alone)
        nursery.cancel_scope.cancel()


# Roles ---------------------------------------------------------------------------------------------------------------


async def test_a_standby_refuses_all_but_greetings(cluster: Build, autojump_clock: MockClock) -> None:
    kms = await cluster(two_plus_two())
    made = await create(kms["atlanta-001"])
    for answer in (await get(kms["atlanta-002"], made), await create(kms["atlanta-002"])):
        assert answer.item.reason == ResultReason.GENERAL_FAILURE
        assert answer.item.message == "this key manager is a standby, not master"
    assert await cluster_info(kms["atlanta-002"]) == "ServerType=standby"
    assert await cluster_info(kms["atlanta-001"]) == "ServerType=master;InStep=atlanta-002,london-001,london-002"


async def test_a_standby_that_serves_reads_refuses_changes_only(cluster: Build, autojump_clock: MockClock) -> None:
    kms = await cluster(two_plus_two(serves_reads=True))
    made = await create(kms["atlanta-001"])
    assert (await get(kms["atlanta-002"], made)).ok
    assert (await ask(kms["atlanta-002"], Operation.LOCATE)).uids == [made.uid]
    assert (await create(kms["atlanta-002"])).item.reason == ResultReason.GENERAL_FAILURE
    assert (await set_contact(kms["atlanta-002"], made, "me")).item.reason == ResultReason.GENERAL_FAILURE
    assert await cluster_info(kms["atlanta-002"]) == "ServerType=standby"
    # The first Get ends Fresh on a master only, so that a replica has nothing that its master lacks.
    for name in ("atlanta-001", "atlanta-002"):
        found = kms[name].engine.store.get(made.uid)
        assert found is not None
        assert found.instance("Fresh") is not None
        assert any(found.instances("Fresh")[0].value)


async def test_promotion_takes_effect_with_the_next_request(
    cluster: Build, tmp_path: Path, autojump_clock: MockClock
) -> None:
    kms = await cluster(two_plus_two(NEAR, FAR))
    before = await create(kms["atlanta-001"])
    kms["atlanta-001"].faults.set(FaultSetting(Fault.FREEZE))  # before London has heard of it
    promote(tmp_path, "atlanta-002", instead_of="atlanta-001")
    assert await cluster_info(kms["atlanta-002"]) == "ServerType=master"
    after = await create(kms["atlanta-002"])
    await until_in_step(kms["atlanta-002"], 2)
    await trio.sleep(FAR + 0.1)
    for name in ("london-001", "london-002"):
        assert has(kms[name], before), name  # from its successor
        assert has(kms[name], after), name
    kms["atlanta-001"].faults.clear()
    await until_in_step(kms["atlanta-002"], 3)
    assert await cluster_info(kms["atlanta-001"]) == "ServerType=standby"
    assert has(kms["atlanta-001"], after)


async def test_what_some_have_of_a_master_that_is_gone_gets_to_all(
    cluster: Build, tmp_path: Path, autojump_clock: MockClock
) -> None:
    kms = await cluster(
        {"a": Member(Role.MASTER, {"b": Link(delay=3600)}), "b": Member(), "c": Member(Role.MASTER)},
    )
    began = trio.current_time()
    made = await create(kms["a"])
    await until(lambda: has(kms["c"], made))
    kms["a"].faults.set(FaultSetting(Fault.FREEZE))
    await trio.sleep(60)
    assert not has(kms["b"], made)
    promote(tmp_path, "b", instead_of="a")
    await until(lambda: has(kms["b"], made))
    assert trio.current_time() - began < 3600


async def test_roles_that_can_not_be_read_change_nothing(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    write_roles(tmp_path, {"a": Member(Role.MASTER)})
    complaints: list[str] = []
    replication = Replication(tmp_path, "a", on_error=complaints.append)
    await nursery.start(replication.run)
    for text, words in (
        ("{", "Invalid JSON"),
        ('{"b": {}}', "there is no key manager a"),
        ('{"a": {"links": {"b": {}}}}', "a can't have a link to b"),
        ('{"a": {"role": "clone"}}', "a.role"),
    ):
        (tmp_path / "roles.json").write_text(text)
        await trio.sleep(1)
        assert words in complaints[-1]
    assert len(complaints) == 4
    assert replication.role is Role.MASTER


def test_no_roles_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"roles\.json"):
        Replication(tmp_path, "a")


def test_a_directory_may_be_too_deep_for_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    write_roles(deep, {"a": Member()})
    with pytest.raises(ValueError, match="107 bytes"):
        Replication(deep, "a")


def test_a_file_of_roles_has_the_role_of_each_key_manager_where_a_shell_finds_it(tmp_path: Path) -> None:
    write_roles(tmp_path, two_plus_two(0.001, 0.04))
    text = (tmp_path / "roles.json").read_text()
    assert '"atlanta-002": {"role": "standby"' in text
    changed = text.replace('"atlanta-002": {"role": "standby"', '"atlanta-002": {"role": "master"')
    (tmp_path / "roles.json").write_text(changed)
    assert Replication(tmp_path, "atlanta-002").role is Role.MASTER


async def test_a_status_of_success_is_what_the_tests_above_mean(cluster: Build, autojump_clock: MockClock) -> None:
    kms = await cluster({"a": Member(Role.MASTER)})
    assert (await create(kms["a"])).item.status == ResultStatus.SUCCESS
    assert "master" in repr(kms["a"].replication)
