"""The limits: met, missed, not decided, and not checked."""

from dataclasses import replace

import pytest
from kmip_lab.compare.figures import Figures, Sample
from kmip_lab.compare.limits import LIMITS, Outcome, checks
from kmip_lab.compare.load import LoadResult


def run(
    case: str, proxy: str, rate: float, *, cpu: float = 0.0, core: float = 0.0, p50: float = 0.0, memory: float = 0.0
) -> Sample:
    """One second; ``cpu`` and ``core`` are for one operation."""
    result = LoadResult(int(rate), 1.0, p50=p50, cpu=cpu * rate, core_cpu=core * rate, memory=memory)
    return Sample(case, proxy, 0, result)


MET, MISSED, NOT_DECIDED, NOT_CHECKED = Outcome.MET, Outcome.MISSED, Outcome.NOT_DECIDED, Outcome.NOT_CHECKED

GOOD = [
    run("fresh", "gateway", 400, cpu=0.0006),
    run("fresh", "haproxy", 300, cpu=0.0020),
    run("fresh", "nginx", 350, cpu=0.0010),
    run("fresh", "direct", 900),
    run("resumed", "gateway", 400, cpu=0.0005),
    run("resumed", "nginx", 350, cpu=0.0010),
    run("kept", "gateway", 10000, cpu=0.00006),
    run("kept", "nginx", 30000, cpu=0.00002),
    run("kept-even", "gateway", 4000, cpu=0.00011, p50=0.0003),
    run("kept-even", "nginx", 4000, cpu=0.00005, p50=0.0002),
    run("kept-1", "gateway", 2000, p50=0.00018),
    run("kept-1", "direct", 10000, p50=0.0001),
    run("hsm", "gateway", 240),
    run("hsm", "direct", 30),
    run("idle", "gateway", 1000, memory=36 * 1024),
    run("fresh", "gateway-1", 400, cpu=0.0014, core=0.00008),
    run("fresh", "gateway-2", 400, cpu=0.0014, core=0.000089),
    run("kept", "gateway-2", 10000, cpu=0.0001, core=0.000035),
]
WORSE = {
    ("fresh", "gateway"): run("fresh", "gateway", 400, cpu=0.00061),
    ("resumed", "gateway"): run("resumed", "gateway", 400, cpu=0.00051),
    ("kept", "gateway"): run("kept", "gateway", 10000, cpu=0.000061),
    ("kept-even", "gateway"): run("kept-even", "gateway", 4000, cpu=0.000111, p50=0.0003),
    ("kept-1", "gateway"): run("kept-1", "gateway", 2000, p50=0.00020),
    ("hsm", "gateway"): run("hsm", "gateway", 239),
    ("idle", "gateway"): run("idle", "gateway", 1000, memory=37 * 1024),
    ("fresh", "gateway-2"): run("fresh", "gateway-2", 400, cpu=0.0014, core=0.0001),
    ("kept", "gateway-2"): run("kept", "gateway-2", 10000, cpu=0.000105, core=0.00004),
}
BAD = [WORSE.get((one.case, one.proxy), one) for one in GOOD]


def rounds(*samples: list[Sample]) -> Figures:
    """Return the figures of one comparison with these samples in one round after the other."""
    return Figures([replace(one, round=number) for number, each in enumerate(samples) for one in each])


def outcomes(figures: Figures) -> list[Outcome]:
    return [check.outcome for check in checks(figures)]


def test_a_limit_is_met_if_all_rounds_are_within_it() -> None:
    assert outcomes(rounds(GOOD, GOOD, GOOD)) == [MET] * len(LIMITS)


def test_a_limit_is_missed_if_no_round_is_within_it() -> None:
    assert outcomes(rounds(BAD, BAD, BAD)) == [MISSED] * len(LIMITS)


@pytest.mark.parametrize("samples", [(GOOD, GOOD, BAD), (BAD, GOOD, BAD)])
def test_a_limit_is_not_decided_if_rounds_differ(samples: tuple[list[Sample], ...]) -> None:
    assert outcomes(rounds(*samples)) == [NOT_DECIDED] * len(LIMITS)


def test_fewer_than_three_rounds_decide_nothing() -> None:
    assert outcomes(rounds(GOOD, GOOD)) == [NOT_DECIDED] * len(LIMITS)
    assert checks(rounds(GOOD, GOOD))[0].words()[4] == "not decided: 2 of 3 measurements"


def test_of_several_comparisons_the_medians_decide() -> None:
    """A round beyond the limit does not count in a comparison whose median is within it."""
    day = [replace(one, round=number) for number, each in enumerate((GOOD, GOOD, BAD)) for one in each]
    assert outcomes(Figures(day, day, day)) == [MET] * len(LIMITS)
    assert outcomes(Figures(day, day, BAD)) == [NOT_DECIDED] * len(LIMITS)


def test_a_limit_without_measurements_is_not_checked_and_names_its_runs() -> None:
    without_nginx = [one for one in GOOD if one.proxy != "nginx"]
    figures = rounds(without_nginx, without_nginx, without_nginx)
    assert outcomes(figures) == [MET, NOT_CHECKED, NOT_CHECKED, NOT_CHECKED, *[MET] * 6]
    assert outcomes(Figures([])) == outcomes(Figures()) == [NOT_CHECKED] * len(LIMITS)
    assert checks(figures)[2].words()[4] == "not checked: case kept, nginx"
    assert checks(figures)[3].words()[4] == "not checked: case kept-even, nginx, and every p50 at most 1 ms"


def test_a_rate_that_does_not_count_is_not_checked() -> None:
    slow_load = [run("fresh", "direct", 300) if one.proxy == "direct" and one.case == "fresh" else one for one in GOOD]
    assert outcomes(rounds(slow_load, slow_load, slow_load))[5] is NOT_CHECKED


def test_a_proxy_that_falls_behind_the_rate_is_not_checked_at_it() -> None:
    late = [
        run("kept-even", "gateway", 4000, cpu=0.00009, p50=0.07)
        if one.case == "kept-even" and one.proxy == "gateway"
        else one
        for one in GOOD
    ]
    assert outcomes(rounds(GOOD, GOOD, GOOD))[3] is MET
    assert outcomes(rounds(GOOD, late, GOOD))[3] is NOT_CHECKED


def test_a_check_as_text_has_median_range_limit_and_outcome() -> None:
    shown = [check.words() for check in checks(rounds(GOOD, GOOD, BAD))]
    assert shown[4] == ("kept-1: p50 added by the gateway", "0.08 ms", "0.08 to 0.1", "<= 0.09 ms", "not decided")
    assert shown[5] == ("hsm: uncached clients' rate / direct", "8 x", "7.97 to 8", ">= 8 x", "not decided")


def test_the_compiled_build_is_held_to_the_same_limits() -> None:
    compiled = [replace(one, proxy="gateway-compiled") for one in BAD if one.proxy == "gateway"]
    each = [*GOOD, *compiled]
    found = {check.limit.title: check.outcome for check in checks(rounds(each, each, each))}
    assert found["kept: CPU per Get / nginx"] is MET
    assert found["kept, compiled: CPU per Get / nginx"] is MISSED
    assert [title for title in found if "compiled" in title and found[title] is not MISSED] == []
    assert len(found) == len(LIMITS) + 7
