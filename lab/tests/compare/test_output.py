"""The tables of a comparison, and the rates and times that are compared in them."""

import pytest
from kmip_lab.compare import output
from kmip_lab.compare.figures import Figures, Sample
from kmip_lab.compare.load import LoadResult


def test_rates_that_the_load_fixes_are_not_compared() -> None:
    runs = [
        Sample(case, proxy, 0, LoadResult(4000, 1.0, p50=0.001, p99=0.002, cpu=0.1))
        for case in ("fresh", "kept-even")
        for proxy in ("gateway", "nginx")
    ]
    alone = [Sample(case, "direct", 0, LoadResult(9000, 1.0)) for case in ("fresh", "kept")]
    said = output.markdown(output.tables(Figures([*runs, *alone])))
    assert "| fresh: rate |" in said
    assert "| fresh: p50 | 1.00 (1.00 to 1.00) |" in said
    assert "| kept-even: CPU per Get | 1.00 (1.00 to 1.00) |" in said
    assert "| kept-even: p99 | 1.00 (1.00 to 1.00) |" in said
    assert "kept-even: rate" not in said


def test_times_that_only_repeat_a_rate_that_does_not_count_are_not_compared() -> None:
    """Times of many clients that never wait are not compared; those of one client, or at a given rate, are."""
    runs = [
        Sample(case, proxy, 0, LoadResult(4000, 1.0, p50=0.001, p99=0.002, cpu=0.1))
        for case in ("fresh", "fresh-1", "kept-even")
        for proxy in ("gateway", "nginx")
    ]
    alone = [Sample(case, "direct", 0, LoadResult(7999, 1.0, p50=0.001)) for case in ("fresh", "kept")]
    said = output.markdown(output.tables(Figures([*runs, *alone])))
    assert "| fresh: CPU per Get | 1.00 (1.00 to 1.00) |" in said
    assert "fresh: p50" not in said
    assert "fresh: p99" not in said
    assert "| fresh-1: p50 | 1.00 (1.00 to 1.00) |" in said
    assert "| kept-even: p99 | 1.00 (1.00 to 1.00) |" in said
    assert "| gateway | (4000) | (1.00) | (2.00) | 25 (25 to 25) |" in said
    assert "| direct | 7999 | 1.00 | - | - |" in said
    assert "| gateway | (4000) | 1.00 | 2.00 | 25.0 (25.0 to 25.0) |" in said
    assert said.count("Figures in brackets are limited by") == 1


def test_the_summary_has_ranges_of_ratios_and_the_outcome_of_every_limit() -> None:
    runs = [
        Sample("kept", proxy, number, LoadResult(1000, 1.0, cpu=cpu))
        for proxy, times in (("gateway", (0.2, 0.2, 0.3)), ("nginx", (0.1, 0.1, 0.1)))
        for number, cpu in enumerate(times)
    ]
    found = output.summary(Figures(runs))
    assert found["ratios"]["kept: CPU per Get"]["/ nginx"] == {
        "median": 2.0,
        "least": 2.0,
        "greatest": pytest.approx(3),
        "count": 3,
    }
    assert [each["outcome"] for each in found["limits"] if each["found"]] == ["met"]
    assert {each["outcome"] for each in found["limits"] if not each["found"]} == {"not checked"}


def test_core_and_workers_are_shown_apart_with_the_range_of_their_ratios() -> None:
    alone = [Sample("kept", "gateway", number, LoadResult(1000, 1.0, cpu=0.1)) for number in (0, 1)]
    apart = [
        Sample("kept", "gateway-2", number, LoadResult(1000, 1.0, cpu=cpu, core_cpu=0.06, worker_cpu=0.05))
        for number, cpu in enumerate([0.12, 0.14])
    ]
    said = output.markdown(output.tables(Figures([*alone, *apart])))
    row = "| kept: gateway-2 | 60.0 | 50.0 | 130.0 | 100.0 | 0.60 (0.60 to 0.60) | 1.30 (1.20 to 1.40) |"
    assert row in said
    assert (
        "| kept: CPU of the core / one process | 0.6 | 0.6 to 0.6 | <= 0.6 | not decided: 2 of 3 measurements |" in said
    )


def test_the_compiled_build_has_ratios_of_its_own_and_one_to_the_source() -> None:
    runs = [
        Sample("kept", proxy, number, LoadResult(1000, 1.0, cpu=cpu))
        for proxy, cpu in (("gateway", 0.5), ("gateway-compiled", 0.25), ("nginx", 0.125))
        for number in (0, 1, 2)
    ]
    ratios = output.summary(Figures(runs))["ratios"]
    assert {name: spread["median"] for name, spread in ratios["kept: CPU per Get"].items()} == {
        "/ nginx": 4.0,
        "/ the best of both": 4.0,
    }
    assert {name: spread["median"] for name, spread in ratios["kept, compiled: CPU per Get"].items()} == {
        "/ nginx": 2.0,
        "/ the best of both": 2.0,
        "compiled / source": 0.5,
    }
