"""The dashboard uses the metrics that exist, all of them, and its file is the builder's result."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client import Histogram

from gateway.fast_metrics import FastHistogramFamily
from gateway.metrics import TABLE, Metrics, Row

GRAFANA = Path(__file__).parents[2] / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
HISTOGRAMS = (Histogram, FastHistogramFamily)


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grafana_build", GRAFANA / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def series(kind: type, row: Row) -> set[str]:
    """The names of a metric's series."""
    return {row.name + suffix for suffix in ("_bucket", "_count", "_sum")} if kind in HISTOGRAMS else {row.name}


def selectors(dashboard: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the name of each metric in the dashboard's queries, and the labels by which it is selected or summed."""
    for by, name, selector in re.findall(
        r"(?:sum by \(([a-z_, ]+)\) \()?(?:rate\()?\b(kmip_gateway_[a-z_]+)\b(?:\{([^}]*)\})?", dashboard
    ):
        labels = {label.strip() for label in by.split(",")} | set(re.findall(r"([a-z_]+)[!=]", selector))
        yield name, labels - {"", "job", "instance", "le"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_every_metric_of_a_dashboard_exists_with_its_labels(path: Path) -> None:
    existing = {name: set(row.labels) for kind, row in TABLE.values() for name in series(kind, row)}
    used = list(selectors(path.read_text()))

    assert len(used) > 20
    for name, labels in used:
        assert name in existing, f"{name} does not exist"
        assert labels <= existing[name], f"{name} has no label {labels - existing[name]}"


def test_every_process_metric_of_the_dashboard_exists(builder: ModuleType) -> None:
    exposition = Metrics("test").exposition().decode()

    for name in set(re.findall(r"\bprocess_[a-z_]+", builder.rendered())):
        assert f"\n{name} " in exposition, name


def test_every_metric_is_on_a_panel(builder: ModuleType) -> None:
    shown = {name for name, _ in selectors(builder.rendered())}

    assert [row.name for kind, row in TABLE.values() if not series(kind, row) & shown] == []


def test_the_file_is_the_builders_result(builder: ModuleType) -> None:
    assert [path.name for path in DASHBOARDS] == ["kmip-gateway.json"]
    assert DASHBOARDS[0].read_text() == builder.rendered()


def test_panels_do_not_overlap(builder: ModuleType) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in builder.dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
