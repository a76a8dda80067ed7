"""Rows of the table of metrics."""

import pytest
from prometheus_client import CollectorRegistry

from gateway.fast_metrics import FastCounterFamily, FastHistogramFamily
from gateway.metric_rows import Row, row


@pytest.mark.parametrize(("kind", "buckets"), [(FastCounterFamily, ()), (FastHistogramFamily, (0.1, 1.0))])
def test_a_row_makes_its_metric(kind: type, buckets: tuple[float, ...]) -> None:
    registry = CollectorRegistry()
    made: Row = row("things_total", "About things.", "kind", buckets=buckets, detail="More.")

    assert (made.name, made.labels, made.detail) == ("kmip_gateway_things_total", ("kind",), "More.")
    assert isinstance(made.make(kind, registry), kind)
    assert [family.documentation for family in registry.collect()] == ["About things."]
