"""The sender of a replication link: timeouts, and replicas that were down; in virtual time."""

# ruff: noqa: ARG001 - a test has virtual time if the clock is an argument

from pathlib import Path

import pytest
import trio
from kmip_lab.faults import Fault, FaultSetting
from kmip_lab.keymanager import KeyManager, Link, Member, Replication, Role, two_plus_two, write_roles
from OpenSSL import SSL
from trio.testing import MockClock

from lab.tests.kit.clusters import StartCluster, create, has, until, until_in_step

NEAR, FAR = 0.25, 2.0  # seconds, virtual


async def test_a_master_stops_waiting_for_a_frozen_replica_after_timeout(
    start_cluster: StartCluster, autojump_clock: MockClock
) -> None:
    kms = await start_cluster(two_plus_two(NEAR, FAR))
    kms["atlanta-002"].faults.set(FaultSetting(Fault.FREEZE))
    began = trio.current_time()
    first = await create(kms["atlanta-001"])
    assert trio.current_time() - began == pytest.approx(1, abs=0.001)  # Link.timeout
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


async def test_a_replica_that_was_down_catches_up(
    tmp_path: Path, server_context: SSL.Context, autojump_clock: MockClock
) -> None:
    write_roles(tmp_path, {"a": Member(Role.MASTER, {"b": Link(synchronous=True)}), "b": Member()})
    replications = [Replication(tmp_path, name) for name in "ab"]
    kms = [KeyManager(each.name, each.store, context=server_context, replication=each) for each in replications]
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
