"""The costs that are derived from the note: they give its single-server columns back."""

import pytest
from kmip_lab.report import note
from kmip_lab.report.cases import CASES, OPERATIONS
from kmip_lab.report.costs import COSTS, HANDSHAKES, bound, factor


def test_costs_are_near_round_numbers() -> None:
    assert COSTS.handshake == pytest.approx(0.060, abs=0.002)
    rough = {"get": 0.0074, "wrap": 0.0108, "create": 0.051, "create-rsa": 0.27, "create-ecc": 0.116}
    assert COSTS.operations == pytest.approx(rough, rel=0.01)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_single_server_columns_come_out(operation: str) -> None:
    """Cached columns agree by construction, columns that are not cached as far as a single handshake cost allows."""
    assert bound(operation, CASES["single_kept"]) == pytest.approx(note.saturated(operation, "single_kept"), rel=0.01)
    fresh = note.saturated(operation, "single_fresh")
    assert bound(operation, CASES["single_fresh"]) == pytest.approx(fresh, rel=0.22)


def test_one_cost_of_a_handshake_for_all() -> None:
    assert sorted(HANDSHAKES.values())[2] == pytest.approx(COSTS.handshake, abs=0.0001)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_gateway_can_do_no_more_than_clients_that_cache(operation: str) -> None:
    assert bound(operation, CASES["gateway_two"]) == bound(operation, CASES["two_kept"])
    most = bound(operation, CASES["gateway_two"]) / bound(operation, CASES["two_fresh"])
    cost = COSTS.operations[operation]
    assert most == pytest.approx((COSTS.handshake + cost) / cost)


def test_costs_are_divided_by_the_scale_if_the_processors_can_follow() -> None:
    assert factor("create-rsa", 6) == 6
    assert factor("get", 1) == 1
    assert 1 <= factor("get", 6) < factor("create", 6) < 6
    assert COSTS.faster(2).handshake == COSTS.handshake / 2
