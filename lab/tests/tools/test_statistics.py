"""Percentiles, means, medians and spreads."""

import pytest
from kmip_lab.tools.statistics import Spread, mean, median, percentile


def test_percentiles_are_measured_values() -> None:
    assert percentile([], 0.5) is None
    assert percentile([7.0], 0.99) == 7
    assert percentile([float(number) for number in range(100)], 0.5) == 50
    assert percentile([float(number) for number in range(100)], 0.99) == 99


def test_the_mean_of_nothing_is_zero() -> None:
    assert mean([]) == 0
    assert mean(iter([1.0, 2.0])) == pytest.approx(1.5)


def test_the_median_leaves_out_values_that_are_missing() -> None:
    assert median([None, 3.0, None, 1.0, 2.0]) == 2
    assert median([None]) is None


def test_a_spread_has_median_range_and_number_of_the_values() -> None:
    assert Spread.of(iter([3.0, 1.0, 9.0, 2.0])) == Spread(2.5, 1, 9, 4)
    assert Spread.of([]) is None
    assert Spread(2, 1, 3, 5).times(10) == Spread(20, 10, 30, 5)
