"""Results that nobody measured: what the costs allow, and a little less."""

import pytest
from kmip_lab.speed.report.cases import CASES, OPERATIONS
from kmip_lab.speed.report.costs import bound
from kmip_lab.speed.report.links import VARIANTS
from kmip_lab.speed.report.results import BEYOND, NOTE, REPLICATION, Point, Results


def point(part: str, operation: str, case: str, clients: int, variant: str = "", cpu: float = 0.3) -> Point:
    rate = 0.9 * bound(operation, CASES[case])
    wait = 60 * clients / rate
    own = (0.4, 0) if CASES[case].gateway else (None, None)
    return Point(part, operation, case, clients, rate, wait, 2 * wait, cpu, 10.0, 0, variant, *own)


@pytest.fixture
def results() -> Results:
    """A whole experiment, with two numbers of clients."""
    points = [point(NOTE, operation, case, clients) for operation in OPERATIONS for case in CASES for clients in (1, 5)]
    points += [point(BEYOND, "get", case, clients) for case in ("two_fresh", "gateway_two") for clients in (10, 80)]
    points += [point(REPLICATION, "create", "two_kept", clients, variant) for variant in VARIANTS for clients in (1, 5)]
    environment = {"processors": "2", "Python": "3.11"}
    return Results(6.0, 17, dict.fromkeys(OPERATIONS, 6.0), environment, points)
