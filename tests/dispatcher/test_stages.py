"""Stages: overlapping exchanges count once."""

from gateway.dispatcher.stages import StageTimes


def test_exchanges_that_overlap_count_once() -> None:
    times = StageTimes()
    assert times.exchanging == 0.0
    times.exchanges += [(5.0, 6.0), (0.0, 5.5), (1.0, 2.0), (8.0, 9.0)]
    assert times.exchanging == 7.0
