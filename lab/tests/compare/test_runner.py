"""The order of the runs, and the processors of each side."""

from kmip_lab.compare.cases import CASES, Backends
from kmip_lab.compare.runner import Plan, cores


def test_proxies_take_turns_and_idle_clients_come_first() -> None:
    plan = Plan([CASES["kept"], CASES["idle"], CASES["hsm"]], ["gateway", "nginx", "direct"], 2, 1.0, 100)
    phases = [(kind, [(number, case.name, names) for number, case, names in turns]) for kind, turns in plan.phases()]
    assert phases == [
        (Backends.FREE, [(0, "idle", ["gateway", "nginx"])]),
        (Backends.FREE, [(1, "idle", ["nginx", "gateway"])]),
        (
            Backends.FREE,
            [
                (0, "fresh", ["direct"]),
                (0, "kept", ["gateway", "nginx", "direct"]),
                (1, "fresh", ["direct"]),
                (1, "kept", ["nginx", "direct", "gateway"]),
            ],
        ),
        (Backends.HSM, [(0, "hsm", ["gateway", "nginx", "direct"]), (1, "hsm", ["nginx", "direct", "gateway"])]),
    ]
    assert plan.steps() == 18


def test_a_proxy_has_its_own_processor_if_there_are_two() -> None:
    assert cores([3]).proxy is None
    assert (cores([0, 1]).proxy, cores([0, 1]).load, cores([0, 1]).backends) == ({0}, {1}, {1})
    assert (cores([0, 1, 4, 5]).load, cores([0, 1, 4, 5]).backends) == ({1}, {4, 5})
