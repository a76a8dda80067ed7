"""Panels and rows as the tables of dashboards have them, and the queries that many panels share."""

from typing import Final, NamedTuple

OWN: Final = 'job=~"$job",instance=~"$instance"'
BACKEND: Final = f'{OWN},backend=~"$backend"'
IDENTITY: Final = f'{OWN},identity=~"$identity"'
RATE: Final = "[$__rate_interval]"

#: A colour from a value on; the first has no value.
Steps = tuple[tuple[float | None, str], ...]
PLAIN: Final[Steps] = ((None, "blue"),)


class Query(NamedTuple):
    """A PromQL expression, and the legend of its series as a template of labels."""

    expression: str
    legend: str = ""


class Panel(NamedTuple):
    """A panel: ``text`` says which values are bad, and what to do about them.

    ``kind`` is a Grafana panel type, ``unit`` a Grafana unit, ``steps`` the colours of values. ``names`` gives values
    names and colours. ``stacked`` draws series on top of each other.
    """

    title: str
    unit: str
    text: str
    queries: list[Query]
    kind: str = "timeseries"
    steps: Steps = PLAIN
    names: tuple[tuple[float, str, str], ...] = ()
    stacked: bool = False


class Row(NamedTuple):
    """A row of panels; panels of a row have the same height, and ``per_line`` of them stand beside each other."""

    title: str
    panels: list[Panel]
    per_line: int = 3


def above(warning: float, bad: float) -> Steps:
    """Return steps for a value that is bad if it is high."""
    return ((None, "green"), (warning, "yellow"), (bad, "red"))


def below(bad: float, warning: float) -> Steps:
    """Return steps for a value that is bad if it is low."""
    return ((None, "red"), (bad, "yellow"), (warning, "green"))


def rate(metric: str, by: str, selector: str = OWN, legend: str = "") -> Query:
    """Return a query for the rate of a counter, summed by the labels ``by``."""
    labels = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return Query(f"sum by ({by}) (rate(kmip_gateway_{metric}{{{selector}}}{RATE}))", legend or labels)


def quantile(share: float, histogram: str, selector: str = OWN, by: str = "", legend: str = "") -> Query:
    """Return a query for a quantile of a histogram, by the label ``by`` if it is given."""
    labels = f"le, {by}" if by else "le"
    return Query(
        f"histogram_quantile({share}, sum by ({labels}) (rate(kmip_gateway_{histogram}_bucket{{{selector}}}{RATE})))",
        legend or (f"{{{{{by}}}}}" if by else f"p{100 * share:g}"),
    )


def quantiles(histogram: str, selector: str = OWN) -> list[Query]:
    """Return queries for the median and the 99th percentile of a histogram."""
    return [quantile(share, histogram, selector) for share in (0.5, 0.99)]


def total(metric: str, selector: str = OWN, by: str = "", legend: str = "") -> Query:
    """Return a query for the sum of a gauge over its series, by the labels ``by`` if they are given."""
    of = f"sum by ({by}) " if by else "sum"
    labels = " ".join(f"{{{{{label}}}}}" for label in by.split(", ")) if by else ""
    return Query(f"{of}(kmip_gateway_{metric}{{{selector}}})", legend or labels)
