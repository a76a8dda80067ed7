"""Adding up the counts of clients, and the table."""

from collections import Counter

from kmip_lab.speed.result import Measurement, Tally, show
from rich.console import Console

TALLIES = [
    Tally(
        began=1.0,
        ended=3.0,
        durations=[0.2, 0.1],
        errors=Counter({"no answer in time": 1}),
        examples={"no answer in time": "a"},
    ),
    Tally(began=1.5, ended=4.0, durations=[0.3], left_out=4, full_handshakes=1),
]
MEASURED = Measurement.of("get", "kept", 7, TALLIES)


def test_clients_are_added_up_from_the_first_start_to_the_last_end() -> None:
    assert (MEASURED.seconds, MEASURED.clients, MEASURED.durations) == (3.0, 2, (0.1, 0.2, 0.3))
    assert MEASURED.per_minute == 60
    assert not MEASURED.faultless


def test_a_measurement_without_successes_has_no_percentiles() -> None:
    nothing = Measurement.of("get", "kept", 1, [Tally(1.0, 1.0)])
    assert (nothing.per_minute, nothing.percentile(0.5)) == (0.0, None)
    assert nothing.as_json()["p50_ms"] is None


def test_errors_are_shown_by_kind_below_the_table() -> None:
    console = Console(width=100)
    with console.capture() as shown:
        show(console, [MEASURED])
    printed = shown.get()
    assert "sessions kept (cached)" in printed
    assert "get, 2 clients: 1 x no answer in time (a)" in printed
    assert "get, 2 clients: 4 operations not tried, after 10 failures in a row" in printed
