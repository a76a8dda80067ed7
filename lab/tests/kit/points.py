"""A made-up measurement of the report."""

from kmip_lab.report.cases import CASES
from kmip_lab.report.costs import bound
from kmip_lab.report.results import ReportPoint


def point(part: str, operation: str, case: str, clients: int, variant: str = "", cpu: float = 0.3) -> ReportPoint:
    """Return a measurement at 0.9 of the rate that the costs allow."""
    rate = 0.9 * bound(operation, CASES[case])
    wait = 60 * clients / rate
    own = (0.4, 0) if CASES[case].gateway else (None, None)
    return ReportPoint(part, operation, case, clients, rate, wait, 2 * wait, cpu, 10.0, 0, variant, *own)
