"""Worker report: what a TLS worker tells the core each second about its counts and its process, and how it is added up.

Counters of the core stay when a worker ends, and the first report of the next one adds to them, so that no counter goes
backwards. Gauges of a worker that has ended are taken back.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from gateway import log
from gateway.metrics import Metrics

#: Metrics of a worker's own that it reports to the core, by the names of their attributes.
COUNTERS: Final = ("client_connection_errors", "limit_rejections")
GAUGES: Final = ("client_connections", "client_half_open")
HISTOGRAMS: Final = ("event_loop_lag",)

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class ProcessFacts:
    """Facts about this process. To be made before the process gives up its right to open files."""

    def __init__(self) -> None:
        self._statm = -1
        with suppress(OSError):
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def __repr__(self) -> str:
        return f"<ProcessFacts {self.read()}>"

    def read(self) -> dict[str, float]:
        """Return ``cpu`` in seconds, ``memory`` (resident) in bytes, and ``descriptors``; 0 for what is not known."""
        facts = {"cpu": time.process_time(), "memory": 0.0, "descriptors": 0.0}
        with suppress(OSError, ValueError, IndexError):
            facts["memory"] = float(os.pread(self._statm, 200, 0).split()[1]) * _PAGE
        with suppress(OSError):
            facts["descriptors"] = float(Path("/proc/self/fd").stat().st_size)  # their number, from Linux 6.2 on
        return facts


def report(
    metrics: Metrics,
    facts: dict[str, float],
    dropped: int,
    ticket_keys: Mapping[str, float] | None = None,
    lines: Sequence[Mapping[str, object]] = (),
) -> bytes:
    """Return a worker's report as the payload of COUNTED; ``dropped`` is the number of its dropped log messages.

    ``ticket_keys`` has the time of the monotonic clock at which the keys of each listener's tickets were made.
    ``lines`` are the worker's new log lines, for the status page.
    """
    counts: list[tuple[str, list[str], Any]] = []
    for name in COUNTERS:
        counts += [(name, [*labels], child.value) for labels, child in getattr(metrics, name).children()]
    for name in GAUGES:
        for family in getattr(metrics, name).collect():
            counts += [(name, list(sample.labels.values()), sample.value) for sample in family.samples]
    for name in HISTOGRAMS:
        counts += [(name, [*labels], [child.counts, child.sum]) for labels, child in getattr(metrics, name).children()]
    process = {**facts, "dropped": dropped}
    return json.dumps({"counts": counts, "process": process, "ticket_keys": ticket_keys or {}, "lines": lines}).encode()


class WorkerCounts:
    """Adds what one worker has counted to the metrics of the core.

    ``process`` holds the last facts about the worker's process, and ``ticket_keys`` when the keys of each listener's
    tickets were made. ``add_dropped`` takes further dropped log messages.
    """

    def __init__(
        self, metrics: Metrics, worker: int = 0, add_dropped: Callable[[int], None] = lambda _number: None
    ) -> None:
        self._metrics = metrics
        self._worker = worker
        self._cpu = metrics.worker_cpu.labels(str(worker))
        self._add_dropped = add_dropped
        self._last: dict[tuple[str, tuple[str, ...]], Any] = {}
        self.process: dict[str, float] = {}
        self.ticket_keys: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<WorkerCounts {self.process}>"

    def take(self, payload: bytes) -> None:
        """Take a report; see ``report``. ``log.recent`` returns its lines from then on."""
        told = json.loads(payload)
        log.add_recent(told["lines"], worker=self._worker)
        for name, labels, value in told["counts"]:
            key = (name, tuple(labels))
            if name in HISTOGRAMS:
                self._add_histogram(key, *value)
            else:
                self._add(key, value - self._last.get(key, 0.0))
            self._last[key] = value
        self.ticket_keys = told["ticket_keys"]
        before, self.process = self.process, told["process"]
        self._cpu.inc(self.process["cpu"] - before.get("cpu", 0.0))
        self._add_dropped(int(self.process["dropped"] - before.get("dropped", 0)))

    def end(self) -> None:
        """Take back the gauges of a worker that has ended. Its counters stay: no counter goes backwards."""
        for (name, labels), value in self._last.items():
            if name in GAUGES:
                self._add((name, labels), -value)
        self._last.clear()

    def _add(self, key: tuple[str, tuple[str, ...]], difference: float) -> None:
        name, labels = key
        getattr(self._metrics, name).labels(*labels).inc(difference)  # also 0: a scrape should show that it is 0

    def _add_histogram(self, key: tuple[str, tuple[str, ...]], counts: list[int], total: float) -> None:
        name, labels = key
        counts_before, total_before = self._last.get(key, ([0] * len(counts), 0.0))
        difference = [now - before for now, before in zip(counts, counts_before, strict=True)]
        getattr(self._metrics, name).labels(*labels).add(difference, total - total_before)
