"""The marks: met, not met, and not checked."""

from kmip_lab.compare.figures import Figures, Sample
from kmip_lab.compare.limits import LIMITS, checks
from kmip_lab.compare.load import LoadResult


def run(
    case: str, proxy: str, rate: float, *, cpu: float = 0.0, core: float = 0.0, p50: float = 0.0, memory: float = 0.0
) -> Sample:
    """One second; ``cpu`` and ``core`` are for one operation."""
    result = LoadResult(int(rate), 1.0, p50=p50, cpu=cpu * rate, core_cpu=core * rate, memory=memory)
    return Sample(case, proxy, 0, result)


GOOD = [
    run("fresh", "gateway", 400, cpu=0.0012),
    run("fresh", "haproxy", 300, cpu=0.0020),
    run("fresh", "nginx", 350, cpu=0.0016),
    run("fresh", "direct", 900),
    run("hsm", "gateway", 240),
    run("hsm", "direct", 30),
    run("kept", "gateway", 10000, cpu=0.00006),
    run("kept", "nginx", 30000, cpu=0.00002),
    run("kept-even", "gateway", 4000, cpu=0.00015),
    run("kept-even", "nginx", 4000, cpu=0.00005),
    run("kept-1", "gateway", 2000, p50=0.0005),
    run("kept-1", "direct", 10000, p50=0.0001),
    run("idle", "gateway", 1000, memory=45 * 1024),
    run("fresh", "gateway-1", 400, cpu=0.0014, core=0.00017),
    run("fresh", "gateway-2", 400, cpu=0.0014, core=0.000179),
    run("kept", "gateway-2", 10000, cpu=0.0001, core=0.000035),
]


def outcomes(*samples: Sample) -> list[bool | None]:
    return [verdict.met for verdict in checks(Figures(samples))]


def test_a_value_on_the_limit_meets_it() -> None:
    assert outcomes(*GOOD) == [True] * len(LIMITS)


def test_a_value_beyond_the_limit_does_not_meet_it() -> None:
    worse = {
        ("fresh", "gateway"): run("fresh", "gateway", 400, cpu=0.0013),
        ("hsm", "gateway"): run("hsm", "gateway", 239),
        ("kept", "gateway"): run("kept", "gateway", 10000, cpu=0.000061),
        ("kept-even", "gateway"): run("kept-even", "gateway", 4000, cpu=0.000151),
        ("kept-1", "gateway"): run("kept-1", "gateway", 2000, p50=0.00051),
        ("idle", "gateway"): run("idle", "gateway", 1000, memory=46 * 1024),
        ("fresh", "gateway-2"): run("fresh", "gateway-2", 400, cpu=0.0014, core=0.00020),
        ("kept", "gateway-2"): run("kept", "gateway-2", 10000, cpu=0.000105, core=0.00004),
    }
    assert outcomes(*(worse.get((one.case, one.proxy), one) for one in GOOD)) == [False] * len(LIMITS)


def test_a_limit_without_measurements_is_not_checked_and_names_its_runs() -> None:
    without_nginx = [one for one in GOOD if one.proxy != "nginx"]
    assert outcomes(*without_nginx) == [True, True, None, None, True, True, True, True, True]
    assert outcomes() == [None] * len(LIMITS)
    assert checks(Figures(without_nginx))[2].words()[3] == "not checked: case kept, nginx"
    assert checks(Figures(without_nginx))[3].words()[3] == "not checked: case kept-even, nginx"


def test_a_rate_that_does_not_count_is_not_checked() -> None:
    slow_load = [run("fresh", "direct", 300) if one.proxy == "direct" and one.case == "fresh" else one for one in GOOD]
    assert outcomes(*slow_load)[1] is None


def test_a_check_as_text_has_value_limit_and_outcome() -> None:
    assert checks(Figures(GOOD))[1].words() == ("hsm: uncached clients' rate / direct", "8 x", ">= 8 x", "met")
