"""The HSM: what each kind of work costs, in virtual time."""

import pytest
import trio
from kmip_lab.keymanager import KeyManager, Store
from kmip_lab.keymanager.costs import Hsm, cost_names
from kmip_lab.keymanager.crypto import KeyPairPool
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
def test_key_pairs_have_a_name_by_algorithm(version: tuple[int, int], kind: str) -> None:
    rsa = payload(given(version, algorithm(RSA), length(2048), kind=kind))
    ecc = payload(given(version, algorithm(EC), length(256), kind=kind))
    assert cost_names(Operation.CREATE_KEY_PAIR, rsa) == ("CreateRSA", "CreateKeyPair")
    assert cost_names(Operation.CREATE_KEY_PAIR, ecc) == ("CreateECC", "CreateKeyPair")


def test_a_get_that_wraps_has_a_name_of_its_own() -> None:
    assert cost_names(Operation.GET, payload(ttlv.structure(Tag.KEY_WRAPPING_SPECIFICATION))) == ("Wrap", "Get")
    assert cost_names(Operation.GET, payload()) == ("Get",)


async def test_costs_by_name_come_before_those_of_all(autojump_clock: MockClock) -> None:
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


async def test_a_key_managers_operations_wait_for_each_other(
    server_context: SSL.Context, store: Store, autojump_clock: MockClock
) -> None:
    key_manager = KeyManager("a", store, context=server_context, costs={"Get": 1.0, "Locate": 2.0})
    requests = [encode_request((1, 4), [Ask(one)] * 2) for one in (Operation.GET, Operation.LOCATE)]
    began = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(key_manager.ask, request, "alice")
    # Of the two Gets, the first fails, and ends its batch.
    assert autojump_clock.current_time() - began == pytest.approx(5, abs=0.1)


def test_a_pool_gives_its_rsa_pairs_again_and_makes_others_anew() -> None:
    pool = KeyPairPool(2)
    first, second, third = (pool(RSA, 2048) for _ in range(3))
    assert first == third
    assert first != second
    assert pool(EC, 256) != pool(EC, 256)


async def test_what_a_timer_is_late_by_is_not_added_up(mock_clock: MockClock) -> None:
    """Whoever waits while the HSM is busy is done when its work would be, had every timer been in time."""
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
        nursery.start_soon(work)  # after a pause, it begins now
        await wait_all_tasks_blocked()
        mock_clock.jump(1.0)
    assert done[-1] - began == pytest.approx(3.0)
