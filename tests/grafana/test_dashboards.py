"""The dashboards use the metrics that exist, all of them, as Grafana imports them, and each panel is explained."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Histogram

from gateway.fast_metrics import FastHistogramFamily
from gateway.metric_rows import Row
from gateway.metric_table import TABLE
from gateway.metrics import Metrics
from grafana import build
from grafana.dashboards import DASHBOARDS as MADE
from grafana.dashboards import Dashboard, as_json, rendered
from tests.kit.metric_names import metrics_in

TEXT = "".join(map(rendered, MADE))
each_dashboard = pytest.mark.parametrize(
    "made", [as_json(each) for each in MADE], ids=[dashboard.uid for dashboard in MADE]
)
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


def test_every_process_metric_of_the_dashboards_exists() -> None:
    exposition = Metrics("test").exposition().decode()

    for name in set(re.findall(r"\bprocess_[a-z_]+", TEXT)):
        assert f"\n{name} " in exposition, name


def test_every_metric_is_on_a_panel() -> None:
    shown = {name for name, _ in metrics_in(TEXT)}

    assert [row.name for kind, row in TABLE.values() if not series(kind, row) & shown] == []


@pytest.mark.parametrize("path", build.files(), ids=lambda path: path.name)
def test_the_file_is_the_builders_result(path: Path) -> None:
    assert path.read_text() == build.files()[path], "run python -m grafana.build"


def test_every_dashboard_and_every_rule_file_is_made_here() -> None:
    found = {*DASHBOARDS, *(GRAFANA / "alerts").iterdir()}
    assert found <= set(build.files())


@each_dashboard
def test_panels_fill_lines_and_do_not_overlap(made: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    width, height = (max(cell[axis] for cell in taken) + 1 for axis in (0, 1))
    assert width == 24
    assert len(taken) == width * height


@each_dashboard
def test_a_dashboard_is_one_that_grafana_imports(made: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in made["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in made["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["type"] in {"stat", "timeseries", "bargauge", "table", "heatmap", "state-timeline"}
        references = [target["refId"] for target in panel["targets"]]
        assert sorted(set(references)) == references
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps[0]["value"] is None
        values = [step["value"] for step in steps[1:]]
        assert sorted(values) == values
    names = {variable["name"] for variable in made["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)", json.dumps(made)))
    assert used <= names


@pytest.mark.parametrize("dashboard", MADE, ids=lambda dashboard: dashboard.uid)
def test_each_panel_says_which_values_are_bad(dashboard: Dashboard) -> None:
    for row in dashboard.rows:
        titles = [panel.title for panel in row.panels]
        assert len(set(titles)) == len(titles)
        for panel in row.panels:
            assert panel.text.endswith("."), panel.title
            assert panel.text[0].isupper() or panel.text[0].isdigit() or panel.text.split()[0].rstrip(",:").islower()
            assert len(panel.text) > 40, panel.title
            assert panel.unit in {"short", "s", "bytes", "Bps", "reqps", "ops", "percentunit"}


def test_every_dashboard_links_to_the_others() -> None:
    for dashboard in MADE:
        made = as_json(dashboard)
        assert made["links"][0]["tags"] == made["tags"]
