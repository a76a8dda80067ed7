"""The table of outages; the measurements themselves run for minutes, and are `make outages`."""

import math

import pytest
from click.testing import CliRunner
from prometheus_client.samples import Sample

from tests.benchmarks.crowd import Counters, Read, Reads
from tests.benchmarks.outages import ROWS, Figures, main, table

FOUND: dict[str, Figures] = {
    "b": {"failed reads in the 10 s after": 0.0, "longest read, s": 0.614},
    "c": {"seconds until all are warm": "more than 95", "handshakes": math.nan},
}


def test_a_row_is_described_once() -> None:
    assert table(FOUND).splitlines() == [
        "| row | what | figure | value |",
        "|---|---|---|---:|",
        "| b | kill -9 of one of two key managers, 200 clients reading | failed reads in the 10 s after | 0 |",
        "| b |  | longest read, s | 0.61 |",
        f"| c | {ROWS['c'].what} | seconds until all are warm | more than 95 |",
        "| c |  | handshakes | not exported |",
    ]


def test_figures_of_an_earlier_run_stand_beside_the_new_ones() -> None:
    lines = table(FOUND, {"b": {"longest read, s": 30.0}}).splitlines()
    assert lines[0] == "| row | what | figure | before | value |"
    assert lines[3] == "| b |  | longest read, s | 30 | 0.61 |"
    assert lines[5] == "| c |  | handshakes |  | not exported |"


def test_a_family_that_is_not_exported_is_not_zero() -> None:
    counters = Counters(
        [Sample("sessions", {"backend": "a", "state": "idle"}, 2.0), Sample("sessions", {"state": "busy"}, 3.0)],
        {"sessions", "retries"},
    )
    assert counters.total("sessions", state="idle") == 2
    assert counters.total("retries_total") == 0
    assert math.isnan(counters.total("ejections_total"))


def test_reads_that_ended_after_a_moment_count_from_it() -> None:
    reads = Reads([Read(0, 1, ""), Read(0, 4, "lost"), Read(5, 1, "")])
    assert (reads.failed, reads.longest) == (1, 4)
    assert [read.seconds for read in reads.since(3).ended] == [4, 1]
    assert Reads().longest == 0


@pytest.mark.parametrize("only", ["z", "a,z"])
def test_an_unknown_row_is_refused(only: str) -> None:
    result = CliRunner().invoke(main, ["--only", only])
    assert result.exit_code == 2
    assert "there is no row z; rows are a, b, c, d, e" in result.output
