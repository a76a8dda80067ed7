"""Metrics: bounded labels, and an exposition that Prometheus reads, whose cost does not grow with the traffic."""

import platform
import random

import pytest
import trio
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.kmip import compose
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Response, Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus
from gateway.metrics import Metrics
from tests.kit.fake_backends import in_virtual_time

SUCCESS, FAILED, PENDING, UNDONE = 0, 1, 2, 3


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1.2.3", "OpenSSL 3.5")


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
    python = platform.python_version()
    assert samples(metrics, "kmip_gateway_build_info") == {("interpreted", "OpenSSL 3.5", python, "1.2.3"): 1}


def test_the_parts_of_an_exposition_are_the_exposition(metrics: Metrics) -> None:
    for number in range(300):
        metrics.request_answered(request(Operation.GET), "success", 0.1, metrics.identity(f"tenant {number}"))

    parts = list(metrics.exposition_parts())

    whole = generate_latest(metrics.registry)
    plain = [line for line in b"".join(parts).splitlines() if b"process_" not in line]
    assert sorted(plain) == sorted(line for line in whole.splitlines() if b"process_" not in line)
    assert max(part.count(b"\n") for part in parts) < 2000


def test_counters_of_alerts_begin_at_zero(metrics: Metrics) -> None:
    assert samples(metrics, "kmip_gateway_retries_denied_total") == {("unsafe",): 0, ("budget",): 0}


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


def test_an_identitys_requests_are_counted_and_timed(metrics: Metrics) -> None:
    acme = metrics.identity("acme")
    acme.connections += 1
    metrics.request_answered(request(Operation.GET), "success", 0.1, acme)
    metrics.request_answered(request(Operation.CREATE), "success", 0.1, acme)
    metrics.request_answered(request(Operation.GET), "gateway_error", 0.1, metrics.identity("globex"))

    assert samples(metrics, "kmip_gateway_identity_requests_total") == {
        ("acme", "success"): 2,
        ("globex", "gateway_error"): 1,
    }
    assert samples(metrics, "kmip_gateway_identity_request_duration_seconds_count") == {("acme",): 2, ("globex",): 1}
    assert samples(metrics, "kmip_gateway_identity_connections") == {("acme",): 1, ("globex",): 0}


def test_sizes_of_messages_and_batches_are_counted(metrics: Metrics) -> None:
    one, three = request(Operation.GET), request(*[Operation.GET] * 3)
    metrics.request_answered(one, "success", 0.1, metrics.identity("acme"), 256)
    metrics.request_answered(one, "success", 0.1, metrics.identity("acme"), 257)
    metrics.request_answered(three, "success", 0.1, metrics.identity("globex"), 5_000_000)
    metrics.request_answered(None, "gateway_error", 0.0, metrics.identity("globex"), 100)

    answers = samples(metrics, "kmip_gateway_response_size_bytes_bucket")
    assert [answers[bound,] for bound in ("256.0", "1024.0", "4.194304e+06", "+Inf")] == [2, 3, 3, 4]
    assert samples(metrics, "kmip_gateway_response_size_bytes_sum") == {(): 5_000_613}
    assert samples(metrics, "kmip_gateway_request_size_bytes_count") == {(): 3}
    sizes = len(one.frame), len(three.frame)
    assert samples(metrics, "kmip_gateway_request_size_bytes_sum") == {(): 2 * sizes[0] + sizes[1]}
    assert samples(metrics, "kmip_gateway_client_received_bytes_total") == {
        ("acme",): 2 * sizes[0],
        ("globex",): sizes[1],
    }
    assert samples(metrics, "kmip_gateway_client_sent_bytes_total") == {("acme",): 513, ("globex",): 5_000_100}
    assert samples(metrics, "kmip_gateway_batch_items_bucket")["4.0",] == 1
    assert samples(metrics, "kmip_gateway_batch_items_count") == {(): 1}


def test_counts_do_not_depend_on_when_they_are_flushed(metrics: Metrics) -> None:
    often = Metrics("1.2.3")
    numbers = random.Random(7)
    for _ in range(500):
        operation, seconds = numbers.choice([Operation.GET, Operation.CREATE]), numbers.choice([0.0005, 0.3, 99.0])
        result, identity = numbers.choice(["success", "gateway_error"]), numbers.choice("ab")
        for each in (metrics, often):
            each.request_answered(request(operation), result, seconds, each.identity(identity), 300)
            each.exchanges("atlanta")(seconds)
        if numbers.random() < 0.1:
            often.flush()

    for name in ("requests_total", "identity_requests_total", "backend_requests_total", "client_sent_bytes_total"):
        assert samples(metrics, f"kmip_gateway_{name}") == samples(often, f"kmip_gateway_{name}")
    for name in ("request_duration", "identity_request_duration", "backend_request_duration"):
        for sample in ("bucket", "count"):
            full_name = f"kmip_gateway_{name}_seconds_{sample}"
            assert samples(metrics, full_name) == samples(often, full_name)


@in_virtual_time
async def test_values_wait_for_a_second_at_most(metrics: Metrics, nursery: trio.Nursery) -> None:
    nursery.start_soon(metrics.flush_often)
    metrics.request_answered(request(Operation.GET), "success", 0.1)
    await trio.sleep(1.01)
    assert [counter.value for _, counter in metrics.requests.children()] == [1]
    nursery.cancel_scope.cancel()


def test_a_client_that_makes_up_numbers_fills_no_memory(metrics: Metrics) -> None:
    counts = metrics.identity("acme")
    for number in range(1000):
        metrics.request_answered(request(0x8000_0000 + number), "success", 0.1, counts)
        metrics.request_answered(request(Operation.GET, version=(7, number)), "success", 0.1, counts)

    assert counts.durations == {}
    assert sum(samples(metrics, "kmip_gateway_requests_total").values()) == 2000


def test_an_identity_that_is_forgotten_leaves_no_series(metrics: Metrics) -> None:
    for name in ("acme", "globex"):
        metrics.request_answered(request(Operation.GET), "success", 0.1, metrics.identity(name))
        metrics.local_errors.labels("no_backend", name).inc()
        metrics.session_open_failures.labels("atlanta", name, "connect").inc()

    metrics.forget_identity("acme")

    exposition = metrics.exposition()
    assert b"acme" not in exposition
    assert sum(samples(metrics, "kmip_gateway_requests_total").values()) == 2
    assert exposition.count(b'identity="globex"') > 8


def test_two_hundred_identities_make_no_explosion_of_series(metrics: Metrics) -> None:
    """No more requests make more series; see docs/metrics.md for the number."""
    numbers = random.Random(7)
    backends = [f"backend {number}" for number in range(4)]
    identities = [f"tenant {number}" for number in range(200)]
    lines = []
    for _ in range(2):
        for identity in identities:
            for operation in list(Operation):
                for version in ((1, 4), (2, 1)):
                    for result in ("success", "operation_failed", "gateway_error"):
                        counts = metrics.identity(identity)
                        metrics.request_answered(request(operation, version=version), result, numbers.random(), counts)
            metrics.local_errors.labels("no_backend", identity).inc()
            metrics.limit_rejections.labels("max_requests", identity).inc()
            for backend in backends:
                metrics.session_open_failures.labels(backend, identity, "connect").inc()
        lines.append(metrics.exposition().count(b"\n"))

    assert lines[0] == lines[1]
    assert lines[0] < 12_000


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
