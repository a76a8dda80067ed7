"""Rows of the table of metrics: name, help text, labels and buckets of a metric, and its part of docs/metrics.md."""

from collections.abc import Callable
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry


class Section(NamedTuple):
    """The beginning of a part of the table. ``text`` introduces the part in docs/metrics.md."""

    title: str
    text: str = ""


class Row(NamedTuple):
    """A line of the table; ``buckets`` are the upper bounds of a histogram's buckets, without infinity.

    ``detail`` is for docs/metrics.md only, in Markdown: the values of labels, and what to do about a bad value.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]
    detail: str = ""

    def make(self, kind: Callable[..., Any], registry: CollectorRegistry) -> Any:
        """Make the metric as an object of the class ``kind``, registered."""
        buckets = {"buckets": self.buckets} if self.buckets else {}
        return kind(self.name, self.help, self.labels, registry=registry, **buckets)


def row(name: str, help_text: str, *labels: str, buckets: tuple[float, ...] = (), detail: str = "") -> Any:
    """Return a Row. To a type checker it is the metric, by which ``Metrics`` replaces it."""
    return Row(f"kmip_gateway_{name}", help_text, labels, buckets, detail)
