"""The dashboard uses the metrics that exist, all of them, and its file is the builder's result."""

import re
from pathlib import Path

import pytest
from prometheus_client import Histogram

from gateway.fast_metrics import FastHistogramFamily
from gateway.metric_rows import Row
from gateway.metric_table import TABLE
from gateway.metrics import Metrics
from grafana import build
from tests.kit.metric_names import metrics_in

GRAFANA = Path(__file__).parents[2] / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
HISTOGRAMS = (Histogram, FastHistogramFamily)


def series(kind: type, row: Row) -> set[str]:
    """The names of a metric's series."""
    return {row.name + suffix for suffix in ("_bucket", "_count", "_sum")} if kind in HISTOGRAMS else {row.name}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_every_metric_of_a_dashboard_exists_with_its_labels(path: Path) -> None:
    existing = {name: set(row.labels) for kind, row in TABLE.values() for name in series(kind, row)}
    used = list(metrics_in(path.read_text()))

    assert len(used) > 20
    for name, labels in used:
        assert name in existing, f"{name} does not exist"
        assert labels <= existing[name], f"{name} has no label {labels - existing[name]}"


def test_every_process_metric_of_the_dashboard_exists() -> None:
    exposition = Metrics("test").exposition().decode()

    for name in set(re.findall(r"\bprocess_[a-z_]+", build.rendered())):
        assert f"\n{name} " in exposition, name


def test_every_metric_is_on_a_panel() -> None:
    shown = {name for name, _ in metrics_in(build.rendered())}

    assert [row.name for kind, row in TABLE.values() if not series(kind, row) & shown] == []


@pytest.mark.parametrize("path", build.files(), ids=lambda path: path.name)
def test_the_file_is_the_builders_result(path: Path) -> None:
    assert path.read_text() == build.files()[path], "run python -m grafana.build"


def test_every_dashboard_and_every_rule_file_is_made_here() -> None:
    found = {*DASHBOARDS, *(GRAFANA / "alerts").iterdir()}
    assert found <= set(build.files())


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in build.dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
