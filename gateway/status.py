"""The state of a core, for people: what the control socket and the status page show."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import trio

from gateway import log
from gateway.errors import BackendError
from gateway.fast_metrics import FastCounter, FastCounterFamily
from gateway.front.workers import TlsWorkers
from gateway.metrics import Metrics
from gateway.remedies import remedy_for
from gateway.steps import Steps
from gateway.upstream.backend import Backend
from gateway.wiring import Front, Upstream

_SHOWN_CLIENTS: Final = 20  # rows of clients
_SHOWN_IDENTITIES: Final = 100
_USABLE: Final = frozenset({"up", "standby", "half_open"})


class Status:
    """Reads the objects of one core, in steps. ``workers`` is None if clients' TLS ends in the core.

    One state is made at a time. A change between two steps may be in one part of a state and not in another.

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
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<Status of {self._upstream.fleet!r}>"

    async def current(self) -> dict[str, Any]:
        """Return the state of the gateway as values of JSON: the answer to ``kmip-gateway status``."""
        async with self._lock:
            return await self._current(Steps())

    async def _current(self, steps: Steps) -> dict[str, Any]:
        backends = [await _status_of(backend, steps) for backend in self._upstream.fleet.backends]
        workers = [] if self._workers is None else self._workers.clients_by_worker()
        return {
            "gateway": {
                "version": version("kmip-gateway"),
                "process": os.getpid(),
                "supervisor": None if self._workers is None else os.getppid(),
                "started": _time(self._started),
                "tls_workers": sum(not is_replaced for _index, is_replaced, _clients in workers),
            },
            "backends": backends,
            "pools": await _sums_by_identity(backends, steps),
            "clients": await self._clients(steps),
            "workers": [
                {"worker": index, "replaced": is_replaced, "clients": clients}
                for index, is_replaced, clients in workers
            ],
            "certificates": await self._certificates(steps),
        }

    async def _clients(self, steps: Steps) -> dict[str, Any]:
        """Return the identities and addresses with most connections, and the totals over all."""
        tally: Counter[tuple[str, str]] = Counter()
        for clients in list(self._front.clients.values()):
            for client in clients.identities_and_addresses():
                tally[client] += 1
                await steps.turn()
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

    async def _certificates(self, steps: Steps) -> list[dict[str, str]]:
        """Return the ends of the certificates and the CRLs in use, the earliest first; a missing CRL ended in 1970."""
        ends = [
            (sample.value, sample.labels["role"], sample.labels["name"])
            for family in self._metrics.certificate_not_after.collect()
            for sample in family.samples
        ]
        await steps.turn()
        ends += [
            (sample.value, f"{sample.labels['role']}_crl", f"{sample.labels['name']}: {sample.labels['issuer']}")
            for family in self._metrics.crl_next_update.collect()
            for sample in family.samples
        ]
        certificates = []
        for end, role, name in sorted(ends):
            certificates.append({"role": role, "name": name, "ends": _time(end)})
            await steps.turn()
        return certificates

    async def snapshot(self) -> dict[str, Any]:
        """Return ``current``, and what the status page shows besides: totals since the start, and the last log lines.

        ``traffic`` has, by backend and by identity, the number of requests by result, and of a backend the buckets of
        the histogram of durations, as [upper bound in seconds, number of exchanges up to it].
        """
        async with self._lock:
            steps = Steps()
            self._metrics.flush()
            await steps.turn()
            return await self._current(steps) | {
                "time": time.time(),
                "unready": self._unreadiness(),
                "control": None if self._control is None else str(self._control),
                "requests": await self._requests(steps),
                "traffic": {
                    "backends": await self._traffic_of_backends(steps),
                    "identities": await self._traffic_of_identities(steps),
                },
                "unserved": await self._unserved(steps),
                "events": log.recent(),
            }

    async def _unserved(self, steps: Steps) -> list[dict[str, str]]:
        """Return the identities that no key manager serves although one serves others, and why, as far as is known."""
        backends = [backend for backend in self._upstream.fleet.backends if backend.is_live and not backend.is_drained]
        unserved = []
        for name in self._upstream.identities if backends else ():
            if not any(backend.is_reachable_with(name) for backend in backends):
                unserved.append(name)
            await steps.turn()
        failures = {}
        for backend in backends if unserved else ():
            for pool in list(backend.pools.values()):
                if pool.opening.failure is not None:
                    failures[pool.credential] = pool.opening.failure
                await steps.turn()
        return [{"identity": name, **_explained(failures.get(name))} for name in unserved]

    async def _traffic_of_backends(self, steps: Steps) -> dict[str, Any]:
        traffic: dict[str, Any] = {
            backend.name: {"results": Counter(), "buckets": []} for backend in self._upstream.fleet.backends
        }
        for (name, result), counter in _children(self._metrics.backend_requests):
            if name in traffic:
                traffic[name]["results"][result] += int(counter.value)
            await steps.turn()
        for (name,), histogram in list(self._metrics.backend_request_duration.children()):
            if name in traffic:
                traffic[name]["buckets"] = [[bound, int(count)] for bound, count in histogram.buckets()]
            await steps.turn()
        return traffic

    async def _traffic_of_identities(self, steps: Steps) -> dict[str, Counter[str]]:
        """Return the requests of the identities with most of them, by result."""
        traffic: dict[str, Counter[str]] = {}
        for (name, result), counter in _children(self._metrics.identity_requests):
            traffic.setdefault(name, Counter())[result] += int(counter.value)
            await steps.turn()
        most = sorted(traffic, key=lambda identity: -traffic[identity].total())[:_SHOWN_IDENTITIES]
        return {identity: traffic[identity] for identity in most}

    async def _requests(self, steps: Steps) -> Counter[str]:
        """Return the number of requests by result."""
        totals: Counter[str] = Counter()
        for (_operation, result, _version), counter in _children(self._metrics.requests):
            totals[result] += int(counter.value)
            await steps.turn()
        return totals


def _children(family: FastCounterFamily) -> list[tuple[tuple[str, ...], FastCounter]]:
    """Return the label values and the counters that there are now: requests add counters between two steps."""
    return list(family.children())


async def _status_of(backend: Backend, steps: Steps) -> dict[str, Any]:
    pools = await _by_identity(backend, steps)
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
        "sessions": {key: sum(counts[key] for counts in pools.values()) for key in ("idle", "busy", "opening")}
        | {"limit": backend.slots.limit},
        "pools": pools,
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


async def _by_identity(backend: Backend, steps: Steps) -> dict[str, dict[str, int]]:
    """Return the sessions of a backend by identity: one with minted credentials has a pool for each client."""
    found: dict[str, dict[str, int]] = {}
    for pool in list(backend.pools.values()):
        _add(found, pool.credential, pool.statistics()._asdict())
        await steps.turn()
    return found


async def _sums_by_identity(backends: Iterable[dict[str, Any]], steps: Steps) -> dict[str, dict[str, int]]:
    """Return the sessions of all backends by identity."""
    totals: dict[str, dict[str, int]] = {}
    for backend in backends:
        for identity, counts in backend["pools"].items():
            _add(totals, identity, counts)
            await steps.turn()
    return totals


def _add(totals: dict[str, dict[str, int]], identity: str, counts: dict[str, int]) -> None:
    if (total := totals.get(identity)) is None:
        totals[identity] = dict(counts)
    else:
        for key, number in counts.items():
            total[key] += number


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
