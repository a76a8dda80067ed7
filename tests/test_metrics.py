"""Metrics: names by the conventions, labels that nobody can multiply, and an exposition that Prometheus reads."""

import random
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import BackendError, Stage
from gateway.kmip import compose
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Response, Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus
from gateway.metrics import Metrics

SUCCESS, FAILED, PENDING, UNDONE = 0, 1, 2, 3


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1.2.3")


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The values of one sample's series, by the values of its labels in the order of their names."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def request(*operations: int, version: Version = (1, 4)) -> Request:
    return decode_request(compose.encode_request(version, [compose.Ask(operation) for operation in operations]))


def response(*items: tuple[int, int | None]) -> Response:
    """A response of items with these statuses and reasons."""
    results = [compose.Result(status, Operation.GET, reason=reason) for status, reason in items]
    return decode_response(compose.encode_response((1, 4), results))


# The exposition ----------------------------------------------------------------------------------------------------


def test_the_exposition_can_be_read_and_says_which_version_runs(metrics: Metrics) -> None:
    assert samples(metrics, "kmip_gateway_build_info") == {("1.2.3",): 1}


def test_names_follow_the_conventions(metrics: Metrics) -> None:
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        assert re.match(r"(kmip_gateway|process)_[a-z0-9_]+$", family.name), family.name
        assert family.documentation
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{family.name}_total"}
        if family.type == "histogram":
            assert family.name.endswith("_seconds") or "per_connection" in family.name


def test_two_processes_in_one_do_not_get_into_each_others_way() -> None:
    Metrics("1").request_answered(request(Operation.GET), "success", 0.1)

    assert samples(Metrics("2"), "kmip_gateway_requests_total") == {}


# Requests ----------------------------------------------------------------------------------------------------------


def test_a_request_is_counted_and_timed_by_its_operation(metrics: Metrics) -> None:
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
def test_what_a_client_may_write_freely_is_no_label(
    metrics: Metrics, asked: Request | None, labels: tuple[str, str]
) -> None:
    metrics.request_answered(asked, "success", 0.1)

    assert list(samples(metrics, "kmip_gateway_requests_total")) == [(*labels, "success")]


def test_nobody_can_multiply_the_series(metrics: Metrics) -> None:
    """Whatever clients and key managers make up: every operation, version and reason that a number can name."""
    numbers = random.Random(7)

    for _ in range(2000):
        number, major, minor = numbers.getrandbits(32), numbers.getrandbits(31), numbers.getrandbits(31)
        metrics.request_answered(request(number, version=(major, minor)), "success", 0.1)
        metrics.response_passed_on(response((FAILED, number)))

    assert set(samples(metrics, "kmip_gateway_requests_total")) == {("Unknown", "other", "success")}
    assert set(samples(metrics, "kmip_gateway_kmip_result_reasons_total")) == {("Unknown",)}


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
def test_an_answer_is_what_its_worst_item_is(metrics: Metrics, statuses: list[int], result: str) -> None:
    assert metrics.response_passed_on(response(*((status, None) for status in statuses))) == result


def test_reasons_are_counted_by_name_item_by_item(metrics: Metrics) -> None:
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

    assert samples(metrics, "kmip_gateway_kmip_result_reasons_total") == {
        ("ItemNotFound",): 2,
        ("GeneralFailure",): 1,
        ("Unknown",): 2,
    }


def test_the_stages_and_reasons_of_failures_are_few() -> None:
    """They are labels: an error's message, which may say anything, is none."""
    error = BackendError("refused by 10.0.0.1", backend="atlanta", stage=Stage.WAIT, reason="closed")

    assert str(error) == "atlanta: refused by 10.0.0.1 (wait: closed)"
    assert [stage.name for stage in sorted(Stage)] == ["CONNECT", "SEND", "WAIT", "READ"]
