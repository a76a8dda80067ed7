"""The table of attacks; the measurements themselves run for minutes, and are `make attacks`."""

from math import isnan

import pytest
import trio
from click.testing import CliRunner

from tests.benchmarks.attackers import ATTACKS
from tests.benchmarks.attacks import ROWS, Attacker, main
from tests.benchmarks.attacks import _figures as figures
from tests.benchmarks.attacks import _percentile as percentile
from tests.benchmarks.crowd import Read, Reads
from tests.benchmarks.outages import table


def _reads(*milliseconds: float) -> Reads:
    return Reads([Read(0, time / 1000, "") for time in milliseconds])


def test_percentiles_are_in_milliseconds() -> None:
    reads = _reads(*range(1, 101))
    assert percentile(reads, 0.5) == pytest.approx(51)
    assert percentile(reads, 0.99) == pytest.approx(100)
    assert isnan(percentile(Reads(), 0.5))


def test_a_refused_connection_is_a_failed_request() -> None:
    async def refuse() -> Reads:  # it looks at trio's clock
        reads = _reads(1)
        reads.refused("closed")
        return reads

    assert figures("alone", trio.run(refuse))["alone: failed"] == 1


def test_every_attacker_of_a_row_exists() -> None:
    attackers = [
        attacker
        for row in ROWS.values()
        for attacker in [
            *getattr(row.measure, "keywords", {}).get("attackers", []),
            *filter(None, [getattr(row.measure, "keywords", {}).get("attacker")]),
        ]
    ]
    assert all(isinstance(attacker, Attacker) for attacker in attackers)
    assert {attacker.name for attacker in attackers} | {"over_the_limit"} == set(ATTACKS)


def test_the_table_describes_these_rows() -> None:
    assert table({"b7": {"ratio of p99": 2.5}}, None, ROWS).splitlines()[2:] == [
        f"| b7 | {ROWS['b7'].what} | ratio of p99 | 2.50 |"
    ]


def test_an_unknown_row_is_refused() -> None:
    result = CliRunner().invoke(main, ["--only", "b1,b99"])
    assert result.exit_code == 2
    assert "there is no row b99" in result.output
