"""Medians and ranges, ratios within rounds, several comparisons, and rates that count."""

import pytest
from kmip_lab.compare.figures import Figures, Sample, core_cpu, cpu, memory, p50, rate, worker_cpu
from kmip_lab.compare.load import LoadResult
from kmip_lab.tools.statistics import Spread


def runs(case: str, proxy: str, *rates: float, spent: float = 0.0) -> list[Sample]:
    """Return a run of two seconds for each rate; ``spent`` is the proxy's CPU seconds for a Get."""
    return [
        Sample(
            case, proxy, number, LoadResult(operations=int(2 * each), seconds=2.0, cpu=2 * each * spent, p50=1 / each)
        )
        for number, each in enumerate(rates)
    ]


def test_the_median_of_the_rounds_is_shown() -> None:
    figures = Figures(runs("fresh", "nginx", 100, 900, 300, spent=0.001))
    assert figures.median("fresh", "nginx", rate) == 300
    assert figures.median("fresh", "nginx", cpu) == pytest.approx(0.001)
    assert figures.spread("fresh", "nginx", rate) == Spread(300, 100, 900, 3)
    assert figures.median("fresh", "haproxy", rate) is None


def test_ratios_are_taken_within_each_round() -> None:
    figures = Figures([*runs("fresh", "gateway", 200, 20, 400), *runs("fresh", "nginx", 100, 10, 100)])
    assert figures.ratio("fresh", "gateway", ["nginx"], rate, best="max") == Spread(2, 2, 4, 3)


def test_the_best_of_the_others_is_chosen_in_each_round() -> None:
    figures = Figures(
        [*runs("fresh", "gateway", 100, 100), *runs("fresh", "nginx", 50, 200), *runs("fresh", "haproxy", 200, 50)]
    )
    assert figures.ratio("fresh", "gateway", ["nginx", "haproxy"], rate, best="max") == Spread(0.5, 0.5, 0.5, 2)
    assert figures.ratio("fresh", "gateway", ["nginx", "haproxy"], p50) == Spread(2, 2, 2, 2)


def test_of_several_comparisons_the_range_is_that_of_their_medians() -> None:
    days = [
        [*runs("fresh", "gateway", 100, *of_gateway), *runs("fresh", "nginx", 100, 100, 100)]
        for of_gateway in ((200, 900), (300, 400), (500, 600))
    ]
    figures = Figures(*days, runs("kept", "nginx", 100))
    assert figures.ratio("fresh", "gateway", ["nginx"], rate, best="max") == Spread(3, 2, 5, 3)
    assert figures.difference("fresh", "gateway", "nginx", rate) == Spread(200, 100, 400, 3)
    assert figures.spread("fresh", "nginx", rate) == Spread(100, 100, 100, 3)
    assert figures.proxies("kept") == ["nginx"]


def test_there_is_no_ratio_to_a_proxy_that_was_not_measured() -> None:
    figures = Figures(runs("fresh", "gateway", 100))
    assert figures.ratio("fresh", "gateway", ["nginx"], rate) is None
    assert figures.difference("fresh", "gateway", "direct", p50) is None
    assert not Figures([]).rates_count("fresh")


def test_missing_cpu_time_and_memory_are_not_zero() -> None:
    figures = Figures(runs("fresh", "direct", 100))
    assert figures.median("fresh", "direct", cpu) is None
    assert figures.median("fresh", "direct", memory) is None


@pytest.mark.parametrize(("alone", "counts"), [(400, True), (399, False)])
def test_a_rate_counts_if_load_and_backends_alone_are_twice_as_fast(alone: float, counts: bool) -> None:
    figures = Figures(
        [*runs("fresh", "gateway", 200), *runs("fresh", "nginx", 100), *runs("fresh", "direct", alone)],
    )
    assert figures.rates_count("fresh") is counts


def test_the_ceiling_of_a_case_with_an_hsm_is_that_of_free_backends() -> None:
    slow = [*runs("hsm", "gateway", 250), *runs("hsm", "direct", 30)]
    assert not Figures(slow).rates_count("hsm")
    assert Figures([*slow, *runs("fresh", "direct", 900)]).rates_count("hsm")


def test_errors_and_sessions_that_were_not_resumed_are_reported() -> None:
    odd = Sample("resumed", "nginx", 1, LoadResult(operations=9, seconds=1, errors=2, full_handshakes=3))
    assert Figures([odd]).problems() == [
        "resumed, nginx, round 2: 2 errors beside 9 answers",
        "resumed, nginx, round 2: 3 of 9 sessions were not resumed",
    ]


def test_parts_of_the_cpu_time_are_compared_with_one_process_round_by_round() -> None:
    apart = [
        Sample("kept", "gateway-2", number, LoadResult(10, 1.0, cpu=cpu_of_all, core_cpu=core, worker_cpu=0.2))
        for number, (cpu_of_all, core) in enumerate([(0.5, 0.3), (0.6, 0.1)])
    ]
    figures = Figures([*runs("kept", "gateway", 100, 100, spent=0.05), *apart])
    assert figures.median("kept", "gateway-2", worker_cpu) == pytest.approx(0.02)
    assert figures.median("kept", "gateway", core_cpu) is None
    ratio = figures.ratio("kept", "gateway-2", ["gateway"], core_cpu, whole=cpu)
    assert ratio is not None
    assert (ratio.median, ratio.least, ratio.greatest) == pytest.approx((0.4, 0.2, 0.6))
    assert figures.ratio("kept", "gateway-1", ["gateway"], core_cpu, whole=cpu) is None
