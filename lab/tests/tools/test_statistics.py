"""Percentiles, means and medians."""

import pytest
from kmip_lab.tools.statistics import mean, median, percentile


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
