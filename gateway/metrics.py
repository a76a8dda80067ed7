"""Every instrument, in one list; the names are Prometheus' own conventions (base units, ``_total`` for counters).

Children are looked up once and kept: a request costs a few increments. No label is unbounded: what a client can choose
freely is folded into ``Unknown`` or ``other``.
"""

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from gateway.kmip.messages import Request, Response, operation_name, reason_name
from gateway.kmip.spec import ResultStatus
from gateway.tallies import Count, Counts, Reading, Times, Timings

REQUEST_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
HANDSHAKE_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
REUSE_BUCKETS: Final = (0, 1, 2, 5, 10, 100, 1000)
_SUCCESS: Final = int(ResultStatus.SUCCESS)
_VERSIONS: Final = {(1, minor): f"1.{minor}" for minor in range(5)} | {(2, 0): "2.0", (2, 1): "2.1", (3, 0): "3.0"}


disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the samples, for a question that nobody asks


class Metrics:
    """The instruments of one process, in a registry of their own."""

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("kmip_gateway_build_info", "The running version.", ["version"], registry=registry).labels(version).set(1)
        self.client_connections = Gauge(
            "kmip_gateway_client_connections", "Client connections open now.", ["listener"], registry=registry
        )
        self.client_half_open = Gauge(
            "kmip_gateway_client_half_open_connections",
            "Client connections whose TLS handshake is not finished; bounded by max_half_open.",
            ["listener"],
            registry=registry,
        )
        self.accepting = Gauge(
            "kmip_gateway_accepting",
            "1 while new connections are accepted, 0 while they are refused: draining, or no key manager reachable.",
            ["listener"],
            registry=registry,
        )
        self.client_handshakes = Counter(
            "kmip_gateway_client_handshakes_total",
            "Client handshakes that succeeded.",
            ["listener", "tls_version", "resumed"],
            registry=registry,
        )
        self.client_connection_errors = Counter(
            "kmip_gateway_client_connection_errors_total",
            "Client connections that ended before their first request, or were cut off, by reason.",
            ["listener", "reason"],
            registry=registry,
        )
        self.client_handshake_duration = Histogram(
            "kmip_gateway_client_handshake_duration_seconds",
            "Client handshakes, from accept to established.",
            ["resumed"],
            buckets=HANDSHAKE_BUCKETS,
            registry=registry,
        )
        self.client_requests_per_connection = Histogram(
            "kmip_gateway_client_requests_per_connection",
            "Requests that a client connection carried until it closed.",
            buckets=REUSE_BUCKETS,
            registry=registry,
        )
        self.requests = Counts(
            "kmip_gateway_requests_total",
            "Requests answered; result is success, operation_failed, operation_pending, gateway_error or client_left.",
            ["operation", "result", "protocol_version"],
            registry=registry,
        )
        self.request_duration = Timings(
            "kmip_gateway_request_duration_seconds",
            "From a whole request to its answer handed to TLS.",
            ["operation"],
            bounds=REQUEST_BUCKETS,
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "kmip_gateway_requests_in_flight", "Requests that were read and not yet answered.", registry=registry
        )
        self.local_errors = Counter(
            "kmip_gateway_local_errors_total",
            "Answers of the gateway's own, by reason.",
            ["reason"],
            registry=registry,
        )
        self.result_reasons = Counter(
            "kmip_gateway_kmip_result_reasons_total",
            "Result Reasons of operations that key managers failed.",
            ["reason"],
            registry=registry,
        )
        self.backend_requests = Counts(
            "kmip_gateway_backend_requests_total",
            "Exchanges with a backend; result is answered, or the stage and reason of the failure.",
            ["backend", "result"],
            registry=registry,
        )
        self.backend_request_duration = Timings(
            "kmip_gateway_backend_request_duration_seconds",
            "Exchanges with a backend that were answered.",
            ["backend"],
            bounds=REQUEST_BUCKETS,
            registry=registry,
        )
        self.sessions_opened = Counter(
            "kmip_gateway_sessions_opened_total", "Sessions opened to a backend.", ["backend"], registry=registry
        )
        self.session_open_failures = Counter(
            "kmip_gateway_session_open_failures_total",
            "Sessions that could not be opened, by reason.",
            ["backend", "reason"],
            registry=registry,
        )
        self.session_open_duration = Histogram(
            "kmip_gateway_session_open_duration_seconds",
            "Connecting, handshake and first answer of a session.",
            ["backend"],
            buckets=HANDSHAKE_BUCKETS,
            registry=registry,
        )
        self.sessions_closed = Counter(
            "kmip_gateway_sessions_closed_total",
            "Sessions closed, by reason.",
            ["backend", "reason"],
            registry=registry,
        )
        self.backend_state_changes = Counter(
            "kmip_gateway_backend_state_changes_total",
            "How often a backend turned to a state.",
            ["backend", "state"],
            registry=registry,
        )
        self.backend_ejections = Counter(
            "kmip_gateway_backend_ejections_total",
            "How often a backend was left alone because exchanges failed in a row, by credential.",
            ["backend", "credential"],
            registry=registry,
        )
        self.backend_probes = Counter(
            "kmip_gateway_backend_probes_total",
            "Probes, by verdict: serves, standby or fails.",
            ["backend", "result"],
            registry=registry,
        )
        self.backend_probe_duration = Histogram(
            "kmip_gateway_backend_probe_duration_seconds",
            "Probes, answered or not.",
            ["backend"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.retries = Counter(
            "kmip_gateway_retries_total",
            "Requests that were sent again, by what had happened to them.",
            ["reason"],
            registry=registry,
        )
        self.retries_denied = Counter(
            "kmip_gateway_retries_denied_total",
            "Requests that were sent and not sent again: unsafe, or over the budget.",
            ["reason"],
            registry=registry,
        )
        self.local_answers = Counter(
            "kmip_gateway_local_answers_total",
            "Requests that the gateway answered in the key managers' place, by operation.",
            ["operation"],
            registry=registry,
        )
        self.affinity_clients = Gauge(
            "kmip_gateway_affinity_clients",
            "Clients whose requests go to one backend for a while, after a change.",
            registry=registry,
        )
        self.fallback_lookups = Counter(
            "kmip_gateway_fallback_lookups_total",
            "Reads of which one backend knew nothing: found by others or missing, or denied by the budget.",
            ["result"],
            registry=registry,
        )
        self.client_aborts = Counter(
            "kmip_gateway_client_aborts_total",
            "Requests that were given up since their client had disconnected and others waited.",
            registry=registry,
        )
        self.client_rejected = Counter(
            "kmip_gateway_client_rejected_total",
            "Requests and clients over a limit, by limit.",
            ["reason"],
            registry=registry,
        )
        self.memory_buffered = Gauge(
            "kmip_gateway_memory_buffered_bytes",
            "Requests and answers that are not complete, not yet answered or not yet taken; bounded by max_buffered.",
            registry=registry,
        )
        self.turns_waiting = Gauge(
            "kmip_gateway_turns_waiting",
            "Client connections with something to read that wait for their principal's turn.",
            registry=registry,
        )
        self.log_messages_dropped = Reading(
            "kmip_gateway_log_messages_dropped_total",
            "Log messages that could not be written: a full disk, or a reader that stands still.",
            registry=registry,
        )
        self.certificate_not_after = Gauge(
            "kmip_gateway_certificate_not_after_timestamp_seconds",
            "When a certificate in use ends, in Unix seconds.",
            ["role", "name"],
            registry=registry,
        )
        self.draining = Gauge("kmip_gateway_draining", "1 while the gateway takes no new clients.", registry=registry)

        self._handshakes: dict[tuple[str, str, bool], tuple[Counter, Histogram]] = {}
        self._answered: dict[tuple[str, str, str], tuple[Count, Times]] = {}

    def handshake_succeeded(self, listener: str, tls_version: str, seconds: float, *, resumed: bool) -> None:
        """Count a client's handshake."""
        key = (listener, tls_version, resumed)
        if key not in self._handshakes:
            label = "true" if resumed else "false"
            self._handshakes[key] = (
                self.client_handshakes.labels(listener, tls_version, label),
                self.client_handshake_duration.labels(label),
            )
        count, duration = self._handshakes[key]
        count.inc()
        duration.observe(seconds)

    def request_answered(self, request: Request | None, result: str, seconds: float) -> None:
        """Count an answer to a client; ``request`` is None where it could not be decoded."""
        operation = operation_label(request)
        version = "other" if request is None else _VERSIONS.get(request.version, "other")
        key = (operation, result, version)
        instruments = self._answered.get(key)
        if instruments is None:
            instruments = self._answered[key] = self.requests.labels(*key), self.request_duration.labels(operation)
        instruments[0].inc()
        instruments[1].observe(seconds)

    def probed(self, backend: str, verdict: str, seconds: float) -> None:
        """Count a probe."""
        self.backend_probes.labels(backend, verdict).inc()
        self.backend_probe_duration.labels(backend).observe(seconds)

    def response_passed_on(self, response: Response) -> str:
        """Count the Result Reasons of a key manager's answer; return what the answer is, as a label."""
        result = "success"
        for item in response.items:
            status = item.status
            if status == _SUCCESS:
                continue
            if status == ResultStatus.OPERATION_PENDING:
                result = "operation_pending" if result == "success" else result
                continue
            result = "operation_failed"
            self.result_reasons.labels(reason_name(item.reason or 0)).inc()
        return result

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


def operation_label(request: Request | None) -> str:
    """What a request is called in metrics and logs: its operation, ``Batch`` for several, ``Invalid`` for none."""
    if request is None:
        return "Invalid"
    return operation_name(request.items[0].operation) if len(request.items) == 1 else "Batch"
