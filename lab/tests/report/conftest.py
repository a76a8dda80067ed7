"""Made-up results of the report."""

import pytest
from kmip_lab.report.cases import CASES, OPERATIONS, VARIANTS
from kmip_lab.report.results import BEYOND, NOTE, REPLICATION, Results

from lab.tests.kit.points import point


@pytest.fixture
def results() -> Results:
    """Return a whole experiment with two numbers of clients."""
    points = [point(NOTE, operation, case, clients) for operation in OPERATIONS for case in CASES for clients in (1, 5)]
    points += [point(BEYOND, "get", case, clients) for case in ("two_fresh", "gateway_two") for clients in (10, 80)]
    points += [point(REPLICATION, "create", "two_kept", clients, variant) for variant in VARIANTS for clients in (1, 5)]
    environment = {"processors": "2", "Python": "3.11"}
    return Results(6.0, 17, dict.fromkeys(OPERATIONS, 6.0), environment, points)
