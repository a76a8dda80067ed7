"""The dashboard names metrics that exist, and its file is what the builder says."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.collector import PoolCollector
from gateway.upstream.slots import Slots

GRAFANA = Path(__file__).parents[2] / "grafana"


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grafana_build", GRAFANA / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def existing_names() -> set[str]:
    """Every sample name that /metrics can print."""
    metrics = Metrics("test")
    metrics.registry.register(PoolCollector(lambda: [Backend("a", Slots(1), {})]))
    names = set()
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_every_metric_that_a_panel_names_exists(builder: ModuleType) -> None:
    used = set(re.findall(r"\b(?:kmip_gateway|process)_[a-z_]+", builder.rendered()))
    assert used - existing_names() == set()
    assert len(used) > 20


def test_every_metric_there_is_is_on_a_panel(builder: ModuleType) -> None:
    shown = builder.rendered()
    for name in existing_names():
        if name.startswith("kmip_gateway_"):
            family = re.sub(r"_(bucket|count|sum)$", "", name)
            assert family in shown, f"{family} is on no panel"


def test_the_file_is_what_the_builder_says(builder: ModuleType) -> None:
    assert (GRAFANA / "dashboards" / "kmip-gateway.json").read_text() == builder.rendered()


def test_panels_do_not_overlap(builder: ModuleType) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in builder.dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
