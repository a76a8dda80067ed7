"""Reports of TLS workers: counts of all of them are added up, and no counter goes backwards."""

import os

from gateway import log
from gateway.front.worker_report import ProcessFacts, WorkerCounts, report
from gateway.metrics import Metrics

FACTS = {"cpu": 1.0, "memory": 10.0, "descriptors": 7.0}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    found: float | None = metrics.registry.get_sample_value(f"kmip_gateway_{name}", labels)
    return found


def test_counts_of_two_workers_are_added_and_survive_their_ends() -> None:
    core, workers = Metrics("test"), [Metrics("test"), Metrics("test")]
    counts = [WorkerCounts(core, 0), WorkerCounts(core, 1)]
    for worker, count in zip(workers, counts, strict=True):
        for _ in range(2):
            worker.client_connection_errors.labels("kmip", "certificate").inc()
            worker.limit_rejections.labels("max_half_open", "unidentified").inc()
            worker.client_connections.labels("kmip").inc()
            worker.event_loop_lag.labels("worker").observe(0.02)
            count.take(report(worker, FACTS, 3))
    errors = {"listener": "kmip", "reason": "certificate"}
    assert value(core, "client_connection_errors_total", **errors) == 4
    assert value(core, "limit_rejections_total", limit="max_half_open", identity="unidentified") == 4
    assert value(core, "client_connections", listener="kmip") == 4
    assert value(core, "event_loop_lag_seconds_count", process="worker") == 4
    assert value(core, "event_loop_lag_seconds_bucket", process="worker", le="0.01") == 0
    counts[0].end()
    assert value(core, "client_connection_errors_total", **errors) == 4
    assert value(core, "client_connections", listener="kmip") == 2


def test_cpu_time_and_dropped_messages_go_on_with_the_next_worker() -> None:
    core = Metrics("test")
    dropped: list[int] = []
    for _ in range(2):
        counts = WorkerCounts(core, 1, dropped.append)
        for cpu, number in ((0.5, 2), (2.0, 5)):
            counts.take(report(Metrics("test"), {**FACTS, "cpu": cpu}, number))
        counts.end()
    assert value(core, "worker_cpu_seconds_total", worker="1") == 4.0
    assert sum(dropped) == 10
    assert counts.process["descriptors"] == 7


def test_lines_of_a_worker_are_among_the_last_lines_of_the_core() -> None:
    lines = [{"event": f"line {number}", "timestamp": f"1999-01-01T00:00:{number:02}Z"} for number in range(30)]
    WorkerCounts(Metrics("test"), 1).take(report(Metrics("test"), FACTS, 0, lines=lines))
    found = log.recent()[-20:]  # the oldest lines come last
    assert found[0] == {"event": "line 29", "timestamp": "1999-01-01T00:00:29Z", "worker": 1}
    assert [each["event"] for each in found] == [f"line {number}" for number in range(29, 9, -1)]


def test_the_facts_are_those_of_this_process() -> None:
    facts = ProcessFacts()
    held = bytearray(os.urandom(1)) * 50_000_000
    before, now = ProcessFacts().read(), facts.read()
    assert now["memory"] >= len(held)
    assert 0 < now["cpu"] >= before["cpu"]
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    more = facts.read()["descriptors"]
    for descriptor in descriptors:
        os.close(descriptor)
    assert more in {0.0, now["descriptors"] + 10}  # 0: the kernel does not tell
