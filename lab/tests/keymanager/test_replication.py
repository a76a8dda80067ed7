"""Replication: which key manager has which change at which time, and roles; in virtual time."""

# ruff: noqa: ARG001 - a test has virtual time if the clock is an argument

from pathlib import Path

import pytest
import trio
from kmip_lab.faults import Fault, FaultSetting
from kmip_lab.keymanager import Link, Member, Replication, Role, promote, two_plus_two, write_roles
from kmip_lab.keymanager.costs import Hsm
from trio.testing import MockClock

from gateway.kmip.spec import Operation, ResultReason
from lab.tests.kit.clusters import StartCluster, ask, cluster_info, create, get, has, set_contact, until, until_in_step

NEAR, FAR = 0.25, 2.0  # seconds, virtual


# Changes --------------------------------------------------------------------------------------------------------------


async def test_a_write_is_answered_when_the_synchronous_replica_has_it(
    start_cluster: StartCluster, autojump_clock: MockClock
) -> None:
    kms = await start_cluster(two_plus_two(NEAR, FAR))
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


async def test_requests_do_not_wait_for_an_asynchronous_replica(
    start_cluster: StartCluster, autojump_clock: MockClock
) -> None:
    links = {"b": Link(delay=60)}
    kms = await start_cluster({"a": Member(Role.MASTER, links), "b": Member()})
    began = trio.current_time()
    made = await create(kms["a"])
    assert (await get(kms["a"], made)).ok
    assert trio.current_time() - began < 0.001


async def test_the_hsm_is_free_while_a_write_waits_for_a_replica(
    start_cluster: StartCluster, autojump_clock: MockClock
) -> None:
    kms = await start_cluster({"a": Member(Role.MASTER, {"b": Link(0.9, synchronous=True)}), "b": Member()})
    kms["a"].hsm = Hsm(operation_cost=0.01)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(create, kms["a"])
    assert trio.current_time() - began == pytest.approx(0.1 + 0.9, abs=0.01)


async def test_changes_arrive_in_the_order_in_which_they_were_made(
    start_cluster: StartCluster, autojump_clock: MockClock
) -> None:
    kms = await start_cluster({"a": Member(Role.MASTER, {"b": Link(1)}), "b": Member()})
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


async def test_the_later_of_two_masters_changes_wins_everywhere(
    start_cluster: StartCluster, autojump_clock: MockClock
) -> None:
    kms = await start_cluster(two_plus_two(NEAR, FAR))
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


# Roles ---------------------------------------------------------------------------------------------------------------


async def test_a_standby_executes_only_query_and_discover_versions(
    start_cluster: StartCluster, autojump_clock: MockClock
) -> None:
    kms = await start_cluster(two_plus_two())
    made = await create(kms["atlanta-001"])
    for answer in (await get(kms["atlanta-002"], made), await create(kms["atlanta-002"])):
        assert answer.item.reason == ResultReason.GENERAL_FAILURE
        assert answer.item.message == "this key manager is a standby, not master"
    assert await cluster_info(kms["atlanta-002"]) == "ServerType=standby"
    assert await cluster_info(kms["atlanta-001"]) == "ServerType=master;InStep=atlanta-002,london-001,london-002"


async def test_a_standby_that_serves_reads_refuses_only_writes(
    start_cluster: StartCluster, autojump_clock: MockClock
) -> None:
    kms = await start_cluster(two_plus_two(serves_reads=True))
    made = await create(kms["atlanta-001"])
    assert (await get(kms["atlanta-002"], made)).ok
    assert (await ask(kms["atlanta-002"], Operation.LOCATE)).uids == [made.uid]
    assert (await create(kms["atlanta-002"])).item.reason == ResultReason.GENERAL_FAILURE
    assert (await set_contact(kms["atlanta-002"], made, "me")).item.reason == ResultReason.GENERAL_FAILURE
    assert await cluster_info(kms["atlanta-002"]) == "ServerType=standby"
    # Get sets Fresh to false on a master only: otherwise the replica would have a change that its master lacks.
    for name in ("atlanta-001", "atlanta-002"):
        found = kms[name].engine.store.get(made.uid)
        assert found is not None
        assert found.instance("Fresh") is not None
        assert any(found.instances("Fresh")[0].value)


async def test_promotion_takes_effect_with_the_next_request(
    start_cluster: StartCluster, tmp_path: Path, autojump_clock: MockClock
) -> None:
    kms = await start_cluster(two_plus_two(NEAR, FAR))
    before = await create(kms["atlanta-001"])
    kms["atlanta-001"].faults.set(FaultSetting(Fault.FREEZE))  # before London has the change
    promote(tmp_path, "atlanta-002", instead_of="atlanta-001")
    assert await cluster_info(kms["atlanta-002"]) == "ServerType=master"
    after = await create(kms["atlanta-002"])
    await until_in_step(kms["atlanta-002"], 2)
    await trio.sleep(FAR + 0.1)
    for name in ("london-001", "london-002"):
        assert has(kms[name], before), name  # from the promoted standby
        assert has(kms[name], after), name
    kms["atlanta-001"].faults.clear()
    await until_in_step(kms["atlanta-002"], 3)
    assert await cluster_info(kms["atlanta-001"]) == "ServerType=standby"
    assert has(kms["atlanta-001"], after)


async def test_replicas_get_changes_of_a_lost_master_from_each_other(
    start_cluster: StartCluster, tmp_path: Path, autojump_clock: MockClock
) -> None:
    kms = await start_cluster(
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


async def test_an_invalid_roles_file_changes_nothing(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    write_roles(tmp_path, {"a": Member(Role.MASTER)})
    errors: list[str] = []
    replication = Replication(tmp_path, "a", on_error=errors.append)
    await nursery.start(replication.run)
    for text, message in (
        ("{", "Invalid JSON"),
        ('{"b": {}}', "there is no key manager a"),
        ('{"a": {"links": {"b": {}}}}', "a can't have a link to b"),
        ('{"a": {"role": "clone"}}', "a.role"),
    ):
        (tmp_path / "roles.json").write_text(text)
        await trio.sleep(1)
        assert message in errors[-1]
    assert len(errors) == 4
    assert replication.role is Role.MASTER
    assert "master" in repr(replication)


def test_a_missing_roles_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"roles\.json"):
        Replication(tmp_path, "a")
