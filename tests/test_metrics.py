"""Metrics: names by Prometheus' conventions, bounded labels, documentation, and an exposition that Prometheus reads."""

import random
import re
from pathlib import Path

import pytest
from prometheus_client import Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from gateway.fast_metrics import FastCounterFamily, FastHistogramFamily, FunctionCounter
from gateway.kmip import compose
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Response, Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus
from gateway.metrics import TABLE, Metrics, Row

OPERATIONS = Path(__file__).parents[1] / "docs" / "operations.md"
SUCCESS, FAILED, PENDING, UNDONE = 0, 1, 2, 3


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1.2.3")


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of one sample's series, by their label values in alphabetical order of the labels' names."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def request(*operations: int, version: Version = (1, 4)) -> Request:
    return decode_request(compose.encode_request(version, [compose.Ask(operation) for operation in operations]))


def response(*items: tuple[int, int | None]) -> Response:
    """Return a response of items with these statuses and reasons."""
    results = [compose.Result(status, Operation.GET, reason=reason) for status, reason in items]
    return decode_response(compose.encode_response((1, 4), results))


# The exposition ----------------------------------------------------------------------------------------------------


def test_the_exposition_names_the_running_version(metrics: Metrics) -> None:
    assert samples(metrics, "kmip_gateway_build_info") == {("1.2.3",): 1}


@pytest.mark.parametrize(("kind", "row"), TABLE.values(), ids=lambda each: getattr(each, "name", ""))
def test_a_metric_follows_the_conventions(kind: type, row: Row) -> None:
    assert re.fullmatch(r"kmip_gateway(_[a-z]+)+", row.name)
    assert row.help.endswith(".")
    assert all(re.fullmatch(r"[a-z_]+", label) and label != "le" for label in row.labels)
    assert row.name.endswith("_total") == (kind in {Counter, FastCounterFamily, FunctionCounter})
    assert bool(row.buckets) == (kind in {Histogram, FastHistogramFamily})
    if row.buckets:
        assert row.name.endswith("_seconds") or "_per_" in row.name


def test_the_exposition_is_the_table_and_the_process(metrics: Metrics) -> None:
    families = {family.name for family in text_string_to_metric_families(metrics.exposition().decode())}

    rows = {row.name.removesuffix("_total") for _, row in TABLE.values()}
    assert len(rows) == len(TABLE)
    assert {name for name in families if not name.startswith("process_")} == rows


# Documentation -----------------------------------------------------------------------------------------------------


def documented() -> dict[str, set[str]]:
    """Return the labels of each metric that docs/operations.md lists, by its full name."""
    section = OPERATIONS.read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    names: dict[str, set[str]] = {}
    for line in section.splitlines():
        for name, labels in re.findall(
            r"`([a-z_]+)(?:\{([a-z_,]+)\})?`", line.split(" | ")[0] if line[:1] == "|" else ""
        ):
            assert f"kmip_gateway_{name}" not in names, f"{name} is documented twice"
            names[f"kmip_gateway_{name}"] = set(labels.split(",")) - {""}
    return names


def test_every_metric_is_documented_with_its_labels_and_no_other() -> None:
    assert documented() == {row.name: set(row.labels) for _, row in TABLE.values()}


def test_documents_name_no_metric_that_does_not_exist() -> None:
    series = {row.name + suffix for _, row in TABLE.values() for suffix in ("", "_bucket", "_count", "_sum")}

    paths = [OPERATIONS.parents[1] / "README.md", *OPERATIONS.parent.glob("*.md")]
    for path in (path for path in paths if path.name != "decisions.md"):  # it tells of names that were not taken
        named = set(re.findall(r"\bkmip_gateway_[a-z_]*[a-z]\b", path.read_text()))
        named |= {
            f"kmip_gateway_{name}" for name in re.findall(r"`(?:kmip_gateway_)?([a-z_]+_total)\b", path.read_text())
        }
        assert named - series == set(), path.name


def test_two_objects_share_no_counts() -> None:
    Metrics("1").request_answered(request(Operation.GET), "success", 0.1)

    assert samples(Metrics("2"), "kmip_gateway_requests_total") == {}


# Requests ----------------------------------------------------------------------------------------------------------


def test_a_request_is_counted_and_timed_by_operation(metrics: Metrics) -> None:
    for seconds in (0.001, 0.2):
        metrics.request_answered(request(Operation.GET), "success", seconds)
    metrics.request_answered(request(Operation.GET, version=(2, 1)), "operation_failed", 0.1)
    metrics.request_answered(request(Operation.CREATE), "success", 0.1)

    assert samples(metrics, "kmip_gateway_requests_total") == {
        ("Get", "1.4", "success"): 2,
        ("Get", "2.1", "operation_failed"): 1,
        ("Create", "1.4", "success"): 1,
    }
    assert samples(metrics, "kmip_gateway_request_duration_seconds_count") == {("Get",): 3, ("Create",): 1}
    assert samples(metrics, "kmip_gateway_request_duration_seconds_sum")["Get",] == pytest.approx(0.301)


@pytest.mark.parametrize(
    ("asked", "labels"),
    [
        (request(Operation.GET, Operation.GET), ("Batch", "1.4")),
        (request(0x80000001), ("Unknown", "1.4")),
        (request(Operation.QUERY, version=(1, 0)), ("Query", "1.0")),
        (request(Operation.QUERY, version=(3, 0)), ("Query", "3.0")),
        (request(Operation.QUERY, version=(9, 9)), ("Query", "other")),
        (None, ("Invalid", "other")),
    ],
    ids=["batch", "vendor", "1.0", "3.0", "9.9", "invalid"],
)
def test_values_that_a_client_makes_up_are_no_labels(
    metrics: Metrics, asked: Request | None, labels: tuple[str, str]
) -> None:
    metrics.request_answered(asked, "success", 0.1)

    assert list(samples(metrics, "kmip_gateway_requests_total")) == [(*labels, "success")]


def test_the_number_of_series_is_bounded(metrics: Metrics) -> None:
    """Clients and backends may send any number as an operation, a version or a reason."""
    numbers = random.Random(7)

    for _ in range(2000):
        number, major, minor = numbers.getrandbits(32), numbers.getrandbits(31), numbers.getrandbits(31)
        metrics.request_answered(request(number, version=(major, minor)), "success", 0.1)
        metrics.response_passed_on(response((FAILED, number)))

    assert set(samples(metrics, "kmip_gateway_requests_total")) == {("Unknown", "other", "success")}
    assert set(samples(metrics, "kmip_gateway_result_reasons_total")) == {("Unknown",)}


# Answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "result"),
    [
        ([SUCCESS], "success"),
        ([FAILED], "operation_failed"),
        ([PENDING], "operation_pending"),
        ([UNDONE], "operation_failed"),
        ([77], "operation_failed"),
        ([SUCCESS, SUCCESS], "success"),
        ([SUCCESS, PENDING], "operation_pending"),
        ([SUCCESS, FAILED], "operation_failed"),
        ([FAILED, SUCCESS], "operation_failed"),
        ([FAILED, PENDING], "operation_failed"),
        ([PENDING, FAILED], "operation_failed"),
    ],
)
def test_an_answers_result_is_that_of_its_worst_item(metrics: Metrics, statuses: list[int], result: str) -> None:
    assert metrics.response_passed_on(response(*((status, None) for status in statuses))) == result


def test_result_reasons_are_counted_for_each_item(metrics: Metrics) -> None:
    metrics.response_passed_on(
        response(
            (FAILED, ResultReason.ITEM_NOT_FOUND),
            (FAILED, ResultReason.ITEM_NOT_FOUND),
            (FAILED, ResultReason.GENERAL_FAILURE),
            (FAILED, 0x8000BEEF),
            (FAILED, None),
            (ResultStatus.SUCCESS, None),
        )
    )

    assert samples(metrics, "kmip_gateway_result_reasons_total") == {
        ("ItemNotFound",): 2,
        ("GeneralFailure",): 1,
        ("Unknown",): 2,
    }
