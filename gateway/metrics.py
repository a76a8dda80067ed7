"""Metrics: the metrics of a process, as ``metric_table`` lists them.

Code that counts something for each request looks its child up once, with ``labels``, and keeps it.
"""

import platform
from collections.abc import Iterable, Iterator
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from gateway.fast_metrics import (
    FastCounter,
    FastCounterFamily,
    FastHistogram,
    FastHistogramFamily,
    Reading,
    Rendered,
)
from gateway.kmip.messages import Request, Response, operation_name, reason_name
from gateway.kmip.spec import ResultStatus
from gateway.metric_table import TABLE, MetricTable
from gateway.permissions import Denial

_SUCCESS: Final = int(ResultStatus.SUCCESS)
_VERSIONS: Final = {(1, minor): f"1.{minor}" for minor in range(5)} | {(2, 0): "2.0", (2, 1): "2.1", (3, 0): "3.0"}


disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the samples, and no dashboard reads them


class IdentityCounts:
    """The metrics of one identity that every request feeds. ``connections`` is the number of its open connections."""

    __slots__ = ("_name", "_requests", "connections", "duration", "received", "results", "sent")

    def __init__(self, name: str, metrics: "Metrics") -> None:
        self._name = name
        self._requests = metrics.identity_requests
        self.results: dict[str, FastCounter] = {}
        self.duration: FastHistogram = metrics.identity_request_duration.labels(name)
        self.received: FastCounter = metrics.client_received_bytes.labels(name)
        self.sent: FastCounter = metrics.client_sent_bytes.labels(name)
        self.connections = 0

    def __repr__(self) -> str:
        return f"<IdentityCounts of {self._name}: {self.connections} connections>"

    def result(self, result: str) -> FastCounter:
        """Return the counter of requests with this result."""
        counter = self.results.get(result)
        if counter is None:
            counter = self.results[result] = self._requests.labels(self._name, result)
        return counter


class Metrics(MetricTable):
    """The metrics of a process, in a registry of their own; see ``MetricTable`` for each of them."""

    def __init__(self, version: str, openssl: str = "") -> None:
        self.registry = CollectorRegistry()
        self._process = ProcessCollector(registry=self.registry)
        for attribute, (kind, row) in TABLE.items():
            setattr(self, attribute, row.make(kind, self.registry))
        self.build_info.labels(version, platform.python_version(), openssl).set(1)
        for reason in ("unsafe", "budget"):
            self.retries_denied.labels(reason)  # 0 at first: a counter that begins at 1 shows Prometheus no increase
        self._handshakes: dict[tuple[str, str, bool], tuple[FastCounter, FastHistogram]] = {}
        self._answered: dict[tuple[str, str, str], tuple[FastCounter, FastHistogram]] = {}
        self._identities: dict[str, IdentityCounts] = {}
        self.identity_connections.set_function(self._connections_by_identity)

    # Requests --------------------------------------------------------------------------------------------------------

    def identity(self, name: str) -> IdentityCounts:
        """Return what an identity counts for each request. Keep it."""
        counts = self._identities.get(name)
        if counts is None:
            counts = self._identities[name] = IdentityCounts(name, self)
        return counts

    def forget_identity(self, name: str) -> None:
        """Forget what an identity has counted, which has no client and no session any more."""
        self._identities.pop(name, None)
        for metric in self._fast_families():
            metric.forget("identity", name)

    def _fast_families(self) -> Iterator[FastCounterFamily | FastHistogramFamily]:
        for attribute, (kind, _row) in TABLE.items():
            if kind in {FastCounterFamily, FastHistogramFamily}:
                yield getattr(self, attribute)

    def _connections_by_identity(self) -> Iterable[Reading]:
        return [((name,), counts.connections) for name, counts in self._identities.items()]

    def request_answered(
        self, request: Request | None, result: str, seconds: float, identity: IdentityCounts | None = None
    ) -> None:
        """Count an answer to a client and its duration; ``request`` is None if it could not be decoded."""
        operation = operation_label(request)
        version = "other" if request is None else _VERSIONS.get(request.version, "other")
        key = (operation, result, version)
        children = self._answered.get(key)
        if children is None:
            children = self._answered[key] = self.requests.labels(*key), self.request_duration.labels(operation)
        children[0].value += 1
        children[1].observe(seconds)
        if identity is not None:
            identity.result(result).value += 1
            identity.duration.observe(seconds)

    def operations_denied(self, identity: str, denials: Iterable[Denial]) -> None:
        """Count the operations of a request that the policy of an identity refuses; a batch that is too long once."""
        for denial in denials:
            operation = "Batch" if denial.position is None else operation_name(denial.operation)
            self.policy_refusals.labels(identity, operation).inc()

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

    # Connections -----------------------------------------------------------------------------------------------------

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

    def health_checked(self, backend: str, result: str, seconds: float) -> None:
        """Count a health check and its duration."""
        self.backend_health_checks.labels(backend, result).inc()
        self.backend_health_check_duration.labels(backend).observe(seconds)

    # Scrapes ---------------------------------------------------------------------------------------------------------

    def exposition_parts(self) -> Iterator[bytes]:
        """Yield all metrics in Prometheus' text format, in parts that take less than a millisecond each.

        Events between two parts may be counted in the second part and not in the first.
        """
        for attribute in TABLE:
            metric: Any = getattr(self, attribute)
            if isinstance(metric, Rendered):
                for text in metric.text():
                    yield text.encode()
            else:
                yield generate_latest(metric)
        yield generate_latest(self._process)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return b"".join(self.exposition_parts())


def operation_label(request: Request | None) -> str:
    """Return a request's name in metrics and logs: its operation, ``Batch`` for several, ``Invalid`` for None."""
    if request is None:
        return "Invalid"
    return operation_name(request.items[0].operation) if len(request.items) == 1 else "Batch"
