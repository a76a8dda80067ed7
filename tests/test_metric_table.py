"""The table of metrics: names by Prometheus' conventions, labels that stay few, and docs/metrics.md."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client import Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from gateway.fast_metrics import FastCounterFamily, FastHistogramFamily, FunctionCounter
from gateway.metric_rows import Row
from gateway.metric_table import SECTIONS, TABLE
from gateway.metrics import Metrics

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build_metrics", DOCS / "build_metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("kind", "row"), TABLE.values(), ids=lambda each: getattr(each, "name", ""))
def test_a_metric_follows_the_conventions(kind: type, row: Row) -> None:
    assert re.fullmatch(r"kmip_gateway(_[a-z]+)+", row.name)
    assert row.help.endswith(".")
    assert not row.detail or row.detail.endswith(".")
    assert all(re.fullmatch(r"[a-z_0-9]+", label) and label != "le" for label in row.labels)
    assert row.name.endswith("_total") == (kind in {Counter, FastCounterFamily, FunctionCounter})
    assert bool(row.buckets) == (kind in {Histogram, FastHistogramFamily})
    if row.buckets:
        assert row.name.endswith(("_seconds", "_bytes", "_items")) or "_per_" in row.name


@pytest.mark.parametrize(
    "row", [row for _, row in TABLE.values() if "identity" in row.labels], ids=lambda row: row.name
)
def test_an_identity_is_beside_no_label_that_multiplies_it(row: Row) -> None:
    """``operation`` only of refused operations."""
    assert not {"protocol_version", "tls_version", "listener"} & set(row.labels)
    assert "operation" not in row.labels or row.name == "kmip_gateway_policy_refusals_total"
    assert len(row.labels) <= (1 if row.buckets else 3)


def test_the_exposition_is_the_table_and_the_process() -> None:
    families = {family.name for family in text_string_to_metric_families(Metrics("1").exposition().decode())}

    rows = {row.name.removesuffix("_total") for _, row in TABLE.values()}
    assert len(rows) == len(TABLE) == sum(len(part) for _, part in SECTIONS)
    assert {name for name in families if not name.startswith("process_")} == rows


def test_the_page_is_the_builders_result(builder: ModuleType) -> None:
    """Run ``python docs/build_metrics.py`` after a change of the table."""
    assert (DOCS / "metrics.md").read_text() == builder.page()


def test_documents_name_no_metric_that_does_not_exist() -> None:
    series = {row.name + suffix for _, row in TABLE.values() for suffix in ("", "_bucket", "_count", "_sum")}

    for path in (path for path in [DOCS.parent / "README.md", *DOCS.glob("*.md")] if path.name != "decisions.md"):
        named = set(re.findall(r"\bkmip_gateway_[a-z_]*[a-z]\b", path.read_text()))
        named |= {
            f"kmip_gateway_{name}" for name in re.findall(r"`(?:kmip_gateway_)?([a-z_]+_total)\b", path.read_text())
        }
        assert {name for name in named if not name.startswith("kmip_gateway_process_")} - series == set(), path.name
