"""Metrics: the metrics of a process, as ``metric_table`` lists them.

Code that counts something for each request looks its child up once, with ``labels``, and keeps it.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import trio
from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway.compiled import BUILD
from gateway.fast_metrics import (
    FastCounter,
    FastCounterFamily,
    FastHistogram,
    FastHistogramFamily,
    Reading,
    Rendered,
    ValueBuffer,
)
from gateway.kmip.messages import Request, Response, Version, operation_name, reason_name
from gateway.kmip.spec import ResultStatus, Tag
from gateway.metric_table import TABLE, UNIDENTIFIED, MetricTable
from gateway.permissions import Denial

_SUCCESS_BYTES: Final = int(ResultStatus.SUCCESS).to_bytes(4, "big")
_RESULT_STATUS: Final = int(Tag.RESULT_STATUS)
_BATCH: Final = -2  # stands for the operation of a request of several operations
_Key = tuple[int, Version, str]  # of answered requests: operation, version and result
_INVALID: Final = (-3, (0, 0))  # operation and version of a request that could not be decoded
_UNKNOWN: Final = operation_name(_BATCH)
_FLUSH_EVERY: Final = 1.0  # s; at 4,000 requests a second, a flush takes about a millisecond
_VERSIONS: Final = {(1, minor): f"1.{minor}" for minor in range(5)} | {(2, 0): "2.0", (2, 1): "2.1", (3, 0): "3.0"}


disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the samples, and no dashboard reads them


class _Flush(Collector):
    """Has no samples; the first collector of a registry, so that the others find everything counted."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush

    def collect(self) -> Iterator[Metric]:
        """Flush, and yield nothing."""
        self._flush()
        return iter(())


class IdentityCounts:
    """The metrics of one identity that every request feeds. ``connections`` is the number of its open connections.

    ``durations`` has the buffers of answered requests by operation, version and result; only of those that the
    specification knows, since clients may send any number. Each is there as its ``append``, and so are the sizes.
    """

    __slots__ = ("_buffers", "_metrics", "_name", "answer_sizes", "connections", "durations", "request_sizes")

    def __init__(self, name: str, metrics: "Metrics") -> None:
        self._name = name
        self._metrics = metrics
        self._buffers: list[ValueBuffer] = []
        self.durations: dict[_Key, Callable[[float], None]] = {}
        received, sent = metrics.client_received_bytes.labels(name), metrics.client_sent_bytes.labels(name)
        self.request_sizes = self._buffer([metrics.request_size.labels()], sums=[received])
        self.answer_sizes = self._buffer([metrics.response_size.labels()], sums=[sent])
        self.connections = 0

    def __repr__(self) -> str:
        return f"<IdentityCounts of {self._name}: {self.connections} connections>"

    def _buffer(
        self, histograms: Sequence[FastHistogram], **counters: Sequence[FastCounter]
    ) -> Callable[[float], None]:
        buffer = ValueBuffer(histograms, **counters)
        self._buffers.append(buffer)
        return buffer.append

    def add_duration(self, key: _Key, operation: str, seconds: float) -> None:
        """Count a request that is answered, and have its like find its buffer in ``durations``."""
        _number, version_number, result = key
        version = _VERSIONS.get(version_number, "other")
        metrics = self._metrics
        histograms = [metrics.request_duration.labels(operation), metrics.identity_request_duration.labels(self._name)]
        counters = [
            metrics.requests.labels(operation, result, version),
            metrics.identity_requests.labels(self._name, result),
        ]
        if operation == _UNKNOWN or version == "other":
            buffer = ValueBuffer(histograms, counters=counters)
            buffer.append(seconds)
            buffer.flush()
        else:
            self.durations[key] = append = self._buffer(histograms, counters=counters)
            append(seconds)

    def flush(self) -> None:
        """Count what is in the buffers."""
        for buffer in self._buffers:
            buffer.flush()


class Metrics(MetricTable):
    """The metrics of a process, in a registry of their own; see ``MetricTable`` for each of them."""

    def __init__(self, version: str, openssl: str = "") -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Flush(self.flush))
        self._process = ProcessCollector(registry=self.registry)
        for attribute, (kind, row) in TABLE.items():
            setattr(self, attribute, row.make(kind, self.registry))
        self.build_info.labels(version, platform.python_version(), openssl, BUILD).set(1)
        for reason in ("unsafe", "budget"):
            self.retries_denied.labels(reason)  # 0 at first: a counter that begins at 1 shows Prometheus no increase
        self._handshakes: dict[tuple[str, str, bool], tuple[FastCounter, FastHistogram]] = {}
        self._identities: dict[str, IdentityCounts] = {}
        self._batch_items = self.batch_items.labels()
        self._exchanges: dict[str, ValueBuffer] = {}
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
        self.flush()  # its requests are counted by operation, too
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
        self,
        request: Request | None,
        result: str,
        seconds: float,
        identity: IdentityCounts | None = None,
        answer_size: int = 0,
    ) -> None:
        """Count an answer to a client, its duration, and both sizes; ``request`` is None if it could not be decoded.

        Every request pays for this.
        """
        if identity is None:
            identity = self.identity(UNIDENTIFIED)
        identity.answer_sizes(answer_size)
        if request is None:
            identity.add_duration((*_INVALID, result), operation_label(None), seconds)
            return
        identity.request_sizes(len(request.frame))
        items = request.items
        if len(items) == 1:
            operation = items[0].operation
        else:
            operation = _BATCH
            self._batch_items.observe(len(items))
        try:
            identity.durations[operation, request.version, result](seconds)
        except KeyError:
            identity.add_duration((operation, request.version, result), operation_label(request), seconds)

    def exchanges(self, backend: str) -> Callable[[float], None]:
        """Return a function that takes the duration of each answered exchange with a backend. Keep it."""
        buffer = self._exchanges.get(backend)
        if buffer is None:
            answered = self.backend_requests.labels(backend, "answered")
            duration = self.backend_request_duration.labels(backend)
            buffer = self._exchanges[backend] = ValueBuffer([duration], counters=[answered])
        return buffer.append

    def flush(self) -> None:
        """Count what requests have left in buffers. Everything that reads these metrics calls it first."""
        for identity in self._identities.values():
            identity.flush()
        for buffer in self._exchanges.values():
            buffer.flush()

    async def flush_often(self) -> None:
        """Flush once a second, so that buffers stay short, until cancelled."""
        while True:
            await trio.sleep(_FLUSH_EVERY)
            self.flush()

    def operations_denied(self, identity: str, denials: Iterable[Denial]) -> None:
        """Count the operations of a request that the policy of an identity refuses; a batch that is too long once."""
        for denial in denials:
            operation = "Batch" if denial.position is None else operation_name(denial.operation)
            self.policy_refusals.labels(identity, operation).inc()

    def response_passed_on(self, response: Response) -> str:
        """Count the Result Reasons in a backend's answer. Return the label ``result`` for the whole answer.

        An answer with a failed operation is operation_failed; else, with a pending operation, operation_pending.
        """
        items = response.items
        if len(items) == 1:  # nearly always; then without further calls
            begin, end = items[0].fields[_RESULT_STATUS]
            if response.frame[begin:end] == _SUCCESS_BYTES:
                return "success"
        result = "success"
        for item in response.unsuccessful:
            if item.status == ResultStatus.OPERATION_PENDING:
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
        self.flush()
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
