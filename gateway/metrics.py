"""The table of metrics: the name, kind, labels and help text of every metric that /metrics shows.

Names follow Prometheus' conventions: base units, and ``_total`` for counters. No label is unbounded: of the values that
a client chooses, an unknown one becomes ``Unknown`` or ``other``. Code that counts something for each request looks its
child up once, with ``labels``, and keeps it.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from gateway.fast_metrics import (
    FastCounter,
    FastCounterFamily,
    FastHistogram,
    FastHistogramFamily,
    FunctionCounter,
    FunctionGauge,
)
from gateway.kmip.messages import Request, Response, operation_name, reason_name
from gateway.kmip.spec import ResultStatus
from gateway.permissions import Denial

REQUEST_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
HANDSHAKE_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
REUSE_BUCKETS: Final = (0, 1, 2, 5, 10, 100, 1000)
_SUCCESS: Final = int(ResultStatus.SUCCESS)
_VERSIONS: Final = {(1, minor): f"1.{minor}" for minor in range(5)} | {(2, 0): "2.0", (2, 1): "2.1", (3, 0): "3.0"}


disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the samples, and no dashboard reads them


class Row(NamedTuple):
    """A line of the table; ``buckets`` are the upper bounds of a histogram's buckets, without infinity."""

    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]

    def make(self, kind: Callable[..., Any], registry: CollectorRegistry) -> Any:
        """Make the metric as an object of the class ``kind``, registered."""
        buckets = {"buckets": self.buckets} if self.buckets else {}
        return kind(self.name, self.help, self.labels, registry=registry, **buckets)


def _row(name: str, help_text: str, *labels: str, buckets: tuple[float, ...] = ()) -> Any:
    """Return a Row. To a type checker it is the metric, by which ``Metrics`` replaces it."""
    return Row(f"kmip_gateway_{name}", help_text, labels, buckets)


class Metrics:
    """The metrics of a process, in a registry of their own.

    The class body is the table, an entry for each metric: attribute, kind, name after ``kmip_gateway_``, help, labels.
    An object has the metrics themselves under the same attributes.
    """

    # Clients' connections
    client_connections: Gauge = _row("client_connections", "Open client connections.", "listener")
    client_half_open: Gauge = _row(
        "client_half_open_connections", "Client connections whose TLS handshake is not finished.", "listener"
    )
    client_connections_queued: Gauge = _row(
        "client_connections_queued", "Client connections with unread data, waiting for their principal's turn."
    )
    accepting: Gauge = _row(
        "accepting", "1 if new connections are accepted; 0 if draining or no backend is reachable.", "listener"
    )
    client_handshakes: Counter = _row(
        "client_handshakes_total", "Client TLS handshakes completed.", "listener", "tls_version", "resumed"
    )
    client_handshake_duration: Histogram = _row(
        "client_handshake_duration_seconds",
        "Time from accepting a client to its completed TLS handshake.",
        "resumed",
        buckets=HANDSHAKE_BUCKETS,
    )
    client_connection_errors: Counter = _row(
        "client_connection_errors_total", "Client connections rejected or cut off, by reason.", "listener", "reason"
    )
    client_requests_per_connection: Histogram = _row(
        "client_requests_per_connection", "Requests on a client connection until it closed.", buckets=REUSE_BUCKETS
    )

    # Requests
    requests: FastCounterFamily = _row(
        "requests_total",
        "Requests, by result: success, operation_failed, operation_pending, gateway_error or client_disconnected.",
        "operation",
        "result",
        "protocol_version",
    )
    request_duration: FastHistogramFamily = _row(
        "request_duration_seconds",
        "Time from a request's last byte to the handover of its answer to TLS.",
        "operation",
        buckets=REQUEST_BUCKETS,
    )
    requests_in_flight: Gauge = _row("requests_in_flight", "Requests read and not yet answered.")
    memory_buffered: Gauge = _row(
        "memory_buffered_bytes", "Bytes of requests and answers held in memory; bounded by limits.max_buffered."
    )
    limit_rejections: Counter = _row(
        "limit_rejections_total", "Requests and client connections rejected because of a limit.", "limit"
    )
    local_errors: Counter = _row("local_errors_total", "Errors that the gateway itself answered, by reason.", "reason")
    policy_refusals: Counter = _row(
        "policy_refusals_total", "Operations refused by the policy of an identity.", "identity", "operation"
    )
    local_answers: Counter = _row(
        "local_answers_total", "Requests that the gateway itself answered successfully.", "operation"
    )
    result_reasons: Counter = _row(
        "result_reasons_total", "Failed operations in backends' answers, by KMIP Result Reason.", "reason"
    )

    # Retries and replication
    retries: Counter = _row("retries_total", "Requests sent again, by the reason of the failure before.", "reason")
    retries_denied: Counter = _row(
        "retries_denied_total", "Failed requests not sent again: unsafe, or over the retry budget.", "reason"
    )
    affinity_clients: Gauge = _row(
        "affinity_clients", "Clients that stay on one backend for a while because they changed something."
    )
    fallback_lookups: Counter = _row(
        "fallback_lookups_total",
        "Reads of objects that the first backend did not have: found elsewhere, missing, or denied by the budget.",
        "result",
    )

    # Backends
    backend_up: FunctionGauge = _row(
        "backend_up", "1 if the backend can serve at least one identity, as far as is known.", "backend"
    )
    backend_state: FunctionGauge = _row(
        "backend_state",
        "1 for the backend's current state: up, standby, down, ejected, half_open or drained.",
        "backend",
        "state",
    )
    backend_state_changes: Counter = _row(
        "backend_state_changes_total", "Changes of a backend to a state.", "backend", "state"
    )
    backend_ejections: Counter = _row(
        "backend_ejections_total",
        "Ejections of a backend after consecutive failures, by credential.",
        "backend",
        "credential",
    )
    backend_health_checks: Counter = _row(
        "backend_health_checks_total", "Health checks, by result: serves, standby or fails.", "backend", "result"
    )
    backend_health_check_duration: Histogram = _row(
        "backend_health_check_duration_seconds",
        "Duration of health checks, answered or not.",
        "backend",
        buckets=REQUEST_BUCKETS,
    )
    backend_requests: FastCounterFamily = _row(
        "backend_requests_total",
        "Exchanges with a backend, by result: answered, or the stage and reason of the failure.",
        "backend",
        "result",
    )
    backend_request_duration: FastHistogramFamily = _row(
        "backend_request_duration_seconds",
        "Duration of answered exchanges with a backend.",
        "backend",
        buckets=REQUEST_BUCKETS,
    )

    # Sessions
    sessions: FunctionGauge = _row("sessions", "Sessions, by state: idle, busy or opening.", "backend", "state")
    sessions_max: FunctionGauge = _row("sessions_max", "Most sessions that a backend may have.", "backend")
    pool_waiters: FunctionGauge = _row("pool_waiters", "Requests waiting for a session.", "backend")
    session_idle_limit: FunctionGauge = _row(
        "session_idle_limit_seconds",
        "Longest time that a session may be idle; source is config or learned.",
        "backend",
        "source",
    )
    sessions_opened: Counter = _row("sessions_opened_total", "Sessions opened to a backend.", "backend")
    session_open_failures: Counter = _row(
        "session_open_failures_total", "Failed attempts to open a session, by reason.", "backend", "reason"
    )
    session_open_duration: Histogram = _row(
        "session_open_duration_seconds",
        "Time to open a session: connection, TLS handshake and first answer.",
        "backend",
        buckets=HANDSHAKE_BUCKETS,
    )
    sessions_closed: Counter = _row("sessions_closed_total", "Sessions closed, by reason.", "backend", "reason")

    # The process
    build_info: Gauge = _row("build_info", "Always 1; the label is the running version.", "version")
    config_reloads: Counter = _row(
        "config_reloads_total", "Reloads of the configuration: success or failure.", "result"
    )
    config_last_reload_success: Gauge = _row(
        "config_last_reload_success_timestamp_seconds",
        "Time at which the configuration in use was read, in Unix time.",
    )
    draining: Gauge = _row("draining", "1 if the gateway drains: it takes no new clients.")
    minted_credentials: FunctionGauge = _row(
        "minted_credentials", "Clients for which a minted certificate is kept, for all key managers."
    )
    certificates_minted: Counter = _row(
        "certificates_minted_total",
        "Certificates minted for clients, or refused by the issuing CA.",
        "identity",
        "result",
    )
    certificate_not_after: Gauge = _row(
        "certificate_not_after_timestamp_seconds", "End of a certificate in use, in Unix time.", "role", "name"
    )
    crl_next_update: Gauge = _row(
        "crl_next_update_timestamp_seconds",
        "Time at which a CRL becomes stale, in Unix time; 0 for a CA without a CRL. role is client or backend.",
        "role",
        "name",
        "issuer",
    )
    crl_revoked: Gauge = _row("crl_revoked_certificates", "Entries of a CRL.", "role", "name", "issuer")
    log_messages_dropped: FunctionCounter = _row(
        "log_messages_dropped_total", "Log messages dropped: the disk was full, or standard error was not read."
    )

    # The audit trail
    audit_lines: FunctionCounter = _row("audit_lines_total", "Number of the last line of the audit trail.")
    audit_records_lost: FunctionCounter = _row(
        "audit_records_lost_total", "Records that got no line of the audit trail: its queue was full."
    )
    audit_queued: Gauge = _row("audit_queued_bytes", "Bytes of the audit trail that are not written yet.")
    audit_failing: Gauge = _row("audit_failing", "1 while the audit trail can't be written.")

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        for attribute, (kind, row) in TABLE.items():
            setattr(self, attribute, row.make(kind, self.registry))
        self.build_info.labels(version).set(1)
        self._handshakes: dict[tuple[str, str, bool], tuple[Counter, Histogram]] = {}
        self._answered: dict[tuple[str, str, str], tuple[FastCounter, FastHistogram]] = {}

    def handshake_succeeded(self, listener: str, tls_version: str, seconds: float, *, resumed: bool) -> None:
        """Count a client's TLS handshake and its duration."""
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
        """Count an answer to a client and its duration; ``request`` is None if it could not be decoded."""
        operation = operation_label(request)
        version = "other" if request is None else _VERSIONS.get(request.version, "other")
        key = (operation, result, version)
        children = self._answered.get(key)
        if children is None:
            children = self._answered[key] = self.requests.labels(*key), self.request_duration.labels(operation)
        children[0].inc()
        children[1].observe(seconds)

    def operations_denied(self, identity: str, denials: Iterable[Denial]) -> None:
        """Count the operations of a request that the policy of an identity refuses; a batch that is too long once."""
        for denial in denials:
            operation = "Batch" if denial.position is None else operation_name(denial.operation)
            self.policy_refusals.labels(identity, operation).inc()

    def health_checked(self, backend: str, result: str, seconds: float) -> None:
        """Count a health check and its duration."""
        self.backend_health_checks.labels(backend, result).inc()
        self.backend_health_check_duration.labels(backend).observe(seconds)

    def response_passed_on(self, response: Response) -> str:
        """Count the Result Reasons in a backend's answer. Return the label ``result`` for the whole answer.

        An answer with a failed operation is operation_failed; else, with a pending operation, operation_pending.
        """
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
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


#: The table by attribute: the kind of each metric, which is a class, and its row.
TABLE: Final[dict[str, tuple[type, Row]]] = {
    attribute: (kind, vars(Metrics)[attribute]) for attribute, kind in Metrics.__annotations__.items()
}


def operation_label(request: Request | None) -> str:
    """Return a request's name in metrics and logs: its operation, ``Batch`` for several, ``Invalid`` for None."""
    if request is None:
        return "Invalid"
    return operation_name(request.items[0].operation) if len(request.items) == 1 else "Batch"
