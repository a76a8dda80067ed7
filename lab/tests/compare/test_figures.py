"""What may be said of measurements: medians, ratios within rounds, rates that count."""

import pytest
from kmip_lab.compare.figures import Figures, Sample, cpu, memory, p50, rate
from kmip_lab.compare.load import Measured, percentile


def runs(case: str, proxy: str, *rates: float, spent: float = 0.0) -> list[Sample]:
    """One run of two seconds for each rate; ``spent`` is the proxy's CPU seconds for a Get."""
    return [
        Sample(case, proxy, number, Measured(operations=int(2 * each), seconds=2.0, cpu=2 * each * spent, p50=1 / each))
        for number, each in enumerate(rates)
    ]


def test_the_median_of_the_rounds_is_shown() -> None:
    figures = Figures(runs("fresh", "nginx", 100, 900, 300, spent=0.001))
    assert figures.median("fresh", "nginx", rate) == 300
    assert figures.median("fresh", "nginx", cpu) == pytest.approx(0.001)
    assert figures.median("fresh", "haproxy", rate) is None


def test_a_ratio_is_taken_within_each_round_so_that_a_slow_minute_is_everybodys() -> None:
    figures = Figures([*runs("fresh", "gateway", 200, 20, 400), *runs("fresh", "nginx", 100, 10, 100)])
    assert figures.ratio("fresh", "gateway", ["nginx"], rate, best="max") == 2


def test_the_best_of_the_others_is_chosen_in_each_round() -> None:
    figures = Figures(
        [*runs("fresh", "gateway", 100, 100), *runs("fresh", "nginx", 50, 200), *runs("fresh", "haproxy", 200, 50)]
    )
    assert figures.ratio("fresh", "gateway", ["nginx", "haproxy"], rate, best="max") == 0.5
    assert figures.ratio("fresh", "gateway", ["nginx", "haproxy"], p50) == 2


def test_there_is_no_ratio_to_who_was_not_there() -> None:
    figures = Figures(runs("fresh", "gateway", 100))
    assert figures.ratio("fresh", "gateway", ["nginx"], rate) is None
    assert figures.difference("fresh", "gateway", "direct", p50) is None
    assert not Figures([]).rates_count("fresh")


def test_no_cpu_time_and_no_memory_is_not_a_cost_of_nothing() -> None:
    figures = Figures(runs("fresh", "direct", 100))
    assert figures.median("fresh", "direct", cpu) is None
    assert figures.median("fresh", "direct", memory) is None


@pytest.mark.parametrize(("alone", "counts"), [(400, True), (399, False)])
def test_a_rate_counts_where_load_and_backends_are_twice_as_fast_alone(alone: float, counts: bool) -> None:
    figures = Figures(
        [*runs("fresh", "gateway", 200), *runs("fresh", "nginx", 100), *runs("fresh", "direct", alone)],
    )
    assert figures.rates_count("fresh") is counts


def test_behind_an_hsm_the_free_backends_say_what_the_load_can_do() -> None:
    slow = [*runs("hsm", "gateway", 250), *runs("hsm", "direct", 30)]
    assert not Figures(slow).rates_count("hsm")
    assert Figures([*slow, *runs("fresh", "direct", 900)]).rates_count("hsm")


def test_errors_and_sessions_that_were_not_resumed_are_told() -> None:
    odd = Sample("resumed", "nginx", 1, Measured(operations=9, seconds=1, errors=2, full_handshakes=3))
    assert Figures([odd]).troubles() == [
        "resumed, nginx, round 2: 2 errors beside 9 answers",
        "resumed, nginx, round 2: 3 of 9 sessions were not resumed",
    ]


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([7.0], 0.99) == 7
    assert percentile([float(number) for number in range(100)], 0.5) == 50
    assert percentile([float(number) for number in range(100)], 0.99) == 99
