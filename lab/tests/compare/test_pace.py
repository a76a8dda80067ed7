"""The pace of an even load: who asks when, on a clock that the test turns."""

from kmip_lab.compare.pace import LoadPace

FOUR_A_SECOND = 4.0


def waiting() -> LoadPace:
    """Two clients, both before their first time: 10.0 and 10.25; each asks every half second."""
    pace = LoadPace(FOUR_A_SECOND, 2, 10.0)
    assert [pace.ready(client, 9.0) for client in (0, 1)] == [None, None]
    return pace


def test_clients_are_evenly_staggered() -> None:
    pace = waiting()
    asked = []
    for quarter in range(40, 46):
        for client in pace.due(quarter / 4):
            asked.append((quarter / 4, client))
            assert pace.ready(client, quarter / 4) is None  # answered at once
    assert asked == [(10.0, 0), (10.25, 1), (10.5, 0), (10.75, 1), (11.0, 0), (11.25, 1)]


def test_the_delay_ends_when_a_request_is_due_or_at_the_callers_limit() -> None:
    pace = waiting()
    assert pace.delay(9.5, 2.0) == 0.5
    assert pace.delay(9.5, 0.125) == 0.125
    assert pace.delay(11.0, 2.0) == 0
    assert list(pace.due(11.0)) == [0, 1]
    assert pace.delay(11.0, 2.0) == 2.0


def test_a_client_without_an_answer_is_due_as_soon_as_it_has_one() -> None:
    pace = waiting()
    assert list(pace.due(10.0)) == [0]
    assert list(pace.due(10.75)) == [1]
    assert pace.ready(0, 10.75) == 10.5  # its time counts from when it should have asked


def test_late_requests_are_sent_later_and_do_not_move_the_schedule() -> None:
    pace = waiting()
    assert list(pace.due(10.0)) == [0]
    assert [pace.ready(0, 11.25) for _ in range(3)] == [10.5, 11.0, None]
    assert pace.delay(11.25, 1.0) == 0  # the other one is due
    assert list(pace.due(11.25)) == [1]
    assert pace.delay(11.25, 1.0) == 0.25


def test_a_client_without_a_connection_is_not_due_until_it_is_ready() -> None:
    pace = waiting()
    pace.leave(0)
    assert list(pace.due(10.25)) == [1]
    assert pace.ready(0, 10.25) == 10.0
