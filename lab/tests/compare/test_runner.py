"""The order of the runs, and the processors of each side."""

from kmip_lab.compare.cases import CASES, Backends
from kmip_lab.compare.runner import Plan, cores


def test_proxies_take_turns_and_idle_clients_come_first() -> None:
    plan = Plan([CASES["kept"], CASES["idle"]], ["gateway", "nginx", "direct"], 2, 1.0, 100)
    turns = [(number, case.name, names) for number, case, names in plan.runs(Backends.FREE)]
    assert turns == [
        (0, "idle", ["gateway", "nginx"]),
        (0, "kept", ["gateway", "nginx", "direct"]),
        (1, "kept", ["nginx", "direct", "gateway"]),
    ]
    assert plan.steps() == 8


def test_a_proxy_has_its_own_processor_if_there_are_two() -> None:
    assert cores([3]).proxy is None
    assert (cores([0, 1]).proxy, cores([0, 1]).load, cores([0, 1]).backends) == ({0}, {1}, {1})
    assert (cores([0, 1, 4, 5]).load, cores([0, 1, 4, 5]).backends) == ({1}, {4, 5})
