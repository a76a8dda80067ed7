"""The HSM: the cost of each kind of work, in virtual time."""

import pytest
import trio
from kmip_lab.keymanager import KeyManager, Store
from kmip_lab.keymanager.costs import Hsm, cost_names
from kmip_lab.keymanager.protocol import Node
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.spec import Operation, Tag
from lab.tests.kit.engine_client import EC, RSA, VERSIONS, algorithm, given, length

COSTS = {"handshake": 6.0, "Get": 1.0, "Wrap": 2.0, "Create": 3.0, "CreateRSA": 40.0, "CreateECC": 5.0, "Query": 0.5}


def payload(*items: bytes) -> Node:
    return Node.of(ttlv.structure(Tag.REQUEST_PAYLOAD, *items))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["COMMON", "PRIVATE_KEY"])
def test_key_pairs_have_a_cost_name_by_algorithm(version: tuple[int, int], kind: str) -> None:
    rsa = payload(given(version, algorithm(RSA), length(2048), kind=kind))
    ecc = payload(given(version, algorithm(EC), length(256), kind=kind))
    assert cost_names(Operation.CREATE_KEY_PAIR, rsa) == ("CreateRSA", "CreateKeyPair")
    assert cost_names(Operation.CREATE_KEY_PAIR, ecc) == ("CreateECC", "CreateKeyPair")


def test_a_get_that_wraps_has_its_own_cost_name() -> None:
    assert cost_names(Operation.GET, payload(ttlv.structure(Tag.KEY_WRAPPING_SPECIFICATION))) == ("Wrap", "Get")
    assert cost_names(Operation.GET, payload()) == ("Get",)


async def test_costs_by_name_come_before_the_operation_cost(autojump_clock: MockClock) -> None:
    hsm = Hsm(handshake_cost=100, operation_cost=10, costs=COSTS)
    for names, charged, cost in (
        (("Wrap", "Get"), True, 2),
        (("Get",), True, 1),
        (("Locate",), True, 10),
        (("DiscoverVersions",), False, 0),
        (("Query",), False, 0.5),
    ):
        began = autojump_clock.current_time()
        await hsm.operation(names, charged=charged)
        assert autojump_clock.current_time() - began == pytest.approx(cost)
    began = autojump_clock.current_time()
    await hsm.handshake()
    assert autojump_clock.current_time() - began == 6
    wrapping_costs_as_getting = Hsm(costs={"Get": 7.0})
    await wrapping_costs_as_getting.operation(("Wrap", "Get"))
    assert autojump_clock.current_time() - began == 13


async def test_operations_of_one_key_manager_wait_for_each_other(
    server_context: SSL.Context, store: Store, autojump_clock: MockClock
) -> None:
    key_manager = KeyManager("a", store, context=server_context, costs={"Get": 1.0, "Locate": 2.0})
    requests = [encode_request((1, 4), [Ask(operation)] * 2) for operation in (Operation.GET, Operation.LOCATE)]
    began = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(key_manager.ask, request, "alice")
    # The first of the two Gets fails, and ends its batch.
    assert autojump_clock.current_time() - began == pytest.approx(5, abs=0.1)


async def test_late_timers_are_not_added_up(mock_clock: MockClock) -> None:
    """Work that waited for a busy HSM ends at the time at which it would have ended without late timers."""
    hsm = Hsm(operation_cost=1.0)
    done: list[float] = []

    async def work() -> None:
        await hsm.operation()
        done.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(work)
        nursery.start_soon(work)
        await wait_all_tasks_blocked()
        for late in (1.5, 0.5):
            mock_clock.jump(late)
            await wait_all_tasks_blocked()
        assert [moment - began for moment in done] == pytest.approx([1.5, 2.0])
        nursery.start_soon(work)  # the HSM was idle: the work starts now
        await wait_all_tasks_blocked()
        mock_clock.jump(1.0)
    assert done[-1] - began == pytest.approx(3.0)


async def test_the_hsm_executes_one_operation_at_a_time(autojump_clock: MockClock) -> None:
    hsm = Hsm(handshake_cost=3, operation_cost=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hsm.handshake)
        nursery.start_soon(hsm.operation)
        nursery.start_soon(hsm.operation)
        await trio.sleep(0.5)
        assert repr(hsm) == "<Hsm busy, 2 waiting>"
    assert repr(hsm) == "<Hsm idle, 0 waiting>"
    assert autojump_clock.current_time() == 5


async def test_two_hsms_work_in_parallel(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        for hsm in (Hsm(operation_cost=2), Hsm(operation_cost=2)):
            nursery.start_soon(hsm.operation)
    assert autojump_clock.current_time() == 2
