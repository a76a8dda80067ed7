"""The state of a core, for people: what the control socket and the status page show."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from gateway import log
from gateway.errors import BackendError
from gateway.front.workers import TlsWorkers
from gateway.metrics import Metrics
from gateway.remedies import remedy_for
from gateway.upstream.backend import Backend
from gateway.upstream.pool import PoolStatistics
from gateway.wiring import Front, Upstream

_SHOWN_CLIENTS: Final = 20  # rows of clients
_SHOWN_IDENTITIES: Final = 100
_USABLE: Final = frozenset({"up", "standby", "half_open"})


class Status:
    """Reads the objects of one core. ``workers`` is None if clients' TLS ends in the core.

    ``unreadiness`` returns why /readyz fails, or None; ``control`` is the path of the control socket, if there is one.
    """

    def __init__(
        self,
        upstream: Upstream,
        front: Front,
        metrics: Metrics,
        *,
        workers: TlsWorkers | None = None,
        unreadiness: Callable[[], str | None] = lambda: None,
        control: Path | None = None,
    ) -> None:
        self._upstream = upstream
        self._front = front
        self._metrics = metrics
        self._workers = workers
        self._unreadiness = unreadiness
        self._control = control
        self._started = time.time()

    def __repr__(self) -> str:
        return f"<Status of {self._upstream.fleet!r}>"

    def current(self) -> dict[str, Any]:
        """Return the state of the gateway as values of JSON: the answer to ``kmip-gateway status``."""
        workers = [] if self._workers is None else self._workers.clients_by_worker()
        return {
            "gateway": {
                "version": version("kmip-gateway"),
                "process": os.getpid(),
                "supervisor": None if self._workers is None else os.getppid(),
                "started": _time(self._started),
                "tls_workers": sum(not is_replaced for _index, is_replaced, _clients in workers),
            },
            "backends": [_status_of(backend) for backend in self._upstream.fleet.backends],
            "pools": self._pools(),
            "clients": self._clients(),
            "workers": [
                {"worker": index, "replaced": is_replaced, "clients": clients}
                for index, is_replaced, clients in workers
            ],
            "certificates": self._certificates(),
        }

    def _pools(self) -> dict[str, dict[str, int]]:
        """Return the sessions of all backends by identity."""
        totals: dict[str, Counter[str]] = {}
        for backend in self._upstream.fleet.backends:
            for identity, counts in _by_identity(backend).items():
                totals.setdefault(identity, Counter()).update(counts)
        return {identity: {key: total[key] for key in PoolStatistics._fields} for identity, total in totals.items()}

    def _clients(self) -> dict[str, Any]:
        """Return the identities and addresses with most connections, and the totals over all."""
        tally: Counter[tuple[str, str]] = Counter()
        for clients in self._front.clients.values():
            tally.update(clients.tally())
        return {
            "connections": tally.total(),
            "identities": len({identity for identity, _address in tally}),
            "addresses": len({address for _identity, address in tally}),
            "requests_in_flight": sum(clients.requests_in_flight for clients in self._front.clients.values()),
            "most": [
                {"identity": identity, "address": address, "connections": number}
                for (identity, address), number in tally.most_common(_SHOWN_CLIENTS)
            ],
        }

    def _certificates(self) -> list[dict[str, str]]:
        """Return the ends of the certificates and the CRLs in use, the earliest first; a missing CRL ended in 1970."""
        ends = [
            (sample.value, sample.labels["role"], sample.labels["name"])
            for family in self._metrics.certificate_not_after.collect()
            for sample in family.samples
        ]
        ends += [
            (sample.value, f"{sample.labels['role']}_crl", f"{sample.labels['name']}: {sample.labels['issuer']}")
            for family in self._metrics.crl_next_update.collect()
            for sample in family.samples
        ]
        return [{"role": role, "name": name, "ends": _time(end)} for end, role, name in sorted(ends)]

    def snapshot(self) -> dict[str, Any]:
        """Return ``current``, and what the status page shows besides: totals since the start, and the last log lines.

        ``traffic`` has, by backend and by identity, the number of requests by result, and of a backend the buckets of
        the histogram of durations, as [upper bound in seconds, number of exchanges up to it].
        """
        self._metrics.flush()
        return self.current() | {
            "time": time.time(),
            "unready": self._unreadiness(),
            "control": None if self._control is None else str(self._control),
            "requests": self._by_label(self._metrics.requests, "result"),
            "traffic": {
                "backends": self._traffic_of_backends(),
                "identities": self._traffic_of_identities(),
            },
            "unserved": self._unserved(),
            "events": log.recent(),
        }

    def _unserved(self) -> list[dict[str, str]]:
        """Return the identities that no key manager serves although one serves others, and why, as far as is known."""
        backends = [backend for backend in self._upstream.fleet.backends if backend.is_live and not backend.is_drained]
        served: dict[str, bool] = {}
        for labels, value in _samples(self._metrics.backend_identity_up, ""):
            if any(labels["backend"] == backend.name for backend in backends):
                served[labels["identity"]] = served.get(labels["identity"], False) or bool(value)
        failures = {
            pool.credential: pool.opening.failure
            for backend in backends
            for pool in backend.pools.values()
            if pool.opening.failure is not None
        }
        return [
            {"identity": name, **_explained(failures.get(name))} for name, is_served in served.items() if not is_served
        ]

    def _traffic_of_backends(self) -> dict[str, Any]:
        traffic: dict[str, Any] = {
            backend.name: {"results": Counter(), "buckets": []} for backend in self._upstream.fleet.backends
        }
        for labels, value in _samples(self._metrics.backend_requests, "_total"):
            if labels["backend"] in traffic:
                traffic[labels["backend"]]["results"][labels["result"]] += value
        for labels, value in _samples(self._metrics.backend_request_duration, "_bucket"):
            if labels["backend"] in traffic:
                traffic[labels["backend"]]["buckets"].append([labels["le"], value])
        return traffic

    def _traffic_of_identities(self) -> dict[str, Counter[str]]:
        """Return the requests of the identities with most of them, by result."""
        traffic: dict[str, Counter[str]] = {}
        for labels, value in _samples(self._metrics.identity_requests, "_total"):
            traffic.setdefault(labels["identity"], Counter())[labels["result"]] += value
        most = sorted(traffic, key=lambda identity: -traffic[identity].total())[:_SHOWN_IDENTITIES]
        return {identity: traffic[identity] for identity in most}

    def _by_label(self, family: Any, label: str) -> Counter[str]:
        totals: Counter[str] = Counter()
        for labels, value in _samples(family, "_total"):
            totals[labels[label]] += value
        return totals


def _samples(family: Any, suffix: str) -> Iterator[tuple[dict[str, str], int]]:
    """Yield the labels and the value of each sample of a family of counters or histograms."""
    for metric in family.collect():
        for sample in metric.samples:
            if sample.name.endswith(suffix):
                yield sample.labels, int(sample.value)


def _status_of(backend: Backend) -> dict[str, Any]:
    error = (backend.error, time.time()) if backend.error else backend.last_error
    return {
        "name": backend.name,
        "address": str(backend.endpoint.address),
        "hosts": list(backend.endpoint.hosts),
        "role": backend.options.role,
        "priority": backend.options.priority,
        "weight": backend.options.weight,
        "state": backend.state,
        "since": _time(backend.since),
        "last_error": None if error is None else {"text": log.quoted(error[0]), "time": _time(error[1])},
        "remedy": _remedy(backend),
        "in_flight": backend.in_flight,
        "sessions": sessions_of(backend),
        "pools": _by_identity(backend),
    }


def _remedy(backend: Backend) -> str:
    """Return what to do about a key manager that gets no requests, or ""."""
    if backend.state in _USABLE:
        return ""
    if backend.is_drained:
        return f"kmip-gateway enable {backend.name}"
    return remedy_for(backend.health.reason) if backend.health.reason else ""


def _explained(failure: BackendError | None) -> dict[str, str]:
    if failure is None:
        return {"text": "", "remedy": ""}
    return {"text": log.quoted(str(failure.args[0])), "remedy": remedy_for(failure.cause)}


def _by_identity(backend: Backend) -> dict[str, dict[str, int]]:
    """Return the sessions of a backend by identity: one with minted credentials has a pool for each client."""
    found: dict[str, dict[str, int]] = {}
    for pool in backend.pools.values():
        counts = found.setdefault(pool.credential, dict.fromkeys(PoolStatistics._fields, 0))
        for key, number in pool.statistics()._asdict().items():
            counts[key] += number
    return found


def sessions_of(backend: Backend) -> dict[str, int]:
    """Return the sessions of a backend by state, and their limit."""
    counts = [pool.statistics() for pool in backend.pools.values()]
    return {
        "idle": sum(count.idle for count in counts),
        "busy": sum(count.busy for count in counts),
        "opening": sum(count.opening for count in counts),
        "limit": backend.slots.limit,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
