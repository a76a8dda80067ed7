"""Runtime control: the commands of the control socket, carried out in the core."""

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

from gateway import log
from gateway.admin.control import Command
from gateway.config import Address, Config
from gateway.config.model import BackendOptions, LogConfig
from gateway.errors import ControlError
from gateway.front.workers import TlsWorkers
from gateway.metrics import Metrics
from gateway.reload import ReloadReport
from gateway.upstream.backend import Backend
from gateway.upstream.overrides import table_of
from gateway.upstream.pool import PoolStatistics
from gateway.wiring import Front, Upstream

#: Commands that change something, which are logged with their user.
CHANGING: Final = frozenset({"drain", "enable", "weight", "reconnect", "reload", "log"})
_SHOWN_CLIENTS: Final = 20  # rows of clients in a status
_RECONNECT_INTERVAL: Final = 0.25  # s between two sessions of a backend that are replaced

Arguments = Mapping[str, Any]


class RuntimeControl:
    """The commands, over the objects of one core. ``workers`` is None if clients' TLS ends in the core."""

    def __init__(
        self,
        config: Config,
        upstream: Upstream,
        front: Front,
        metrics: Metrics,
        *,
        reload: Callable[[], Awaitable[ReloadReport]],
        workers: TlsWorkers | None = None,
    ) -> None:
        self._reload_core = reload
        self._config = config
        self._upstream = upstream
        self._front = front
        self._metrics = metrics
        self._workers = workers
        self._started = time.time()

    def __repr__(self) -> str:
        return f"<RuntimeControl of {self._upstream.fleet!r}>"

    def commands(self) -> dict[str, Command]:
        """Return the commands by name."""
        return {
            "status": self._status,
            "drain": self._drain,
            "enable": self._enable,
            "weight": self._weight,
            "reconnect": self._reconnect,
            "reload": self._reload,
            "log": self._log,
            "config": self._show_config,
        }

    # Changes ---------------------------------------------------------------------------------------------------------

    async def _drain(self, arguments: Arguments) -> Any:
        name, backends = self._named(arguments)
        self._upstream.overrides.drain(name)
        self._upstream.override()
        return {"backends": [_in_brief(backend) for backend in backends]}

    async def _enable(self, arguments: Arguments) -> Any:
        name, backends = self._named(arguments)
        self._upstream.overrides.enable(name, [backend.name for backend in self._upstream.fleet.backends])
        self._upstream.override()
        return {"backends": [_in_brief(backend) for backend in backends]}

    async def _weight(self, arguments: Arguments) -> Any:
        name, backends = self._named(arguments)
        weight = arguments.get("weight")
        if not isinstance(weight, int) or isinstance(weight, bool) or not _is_weight(weight):
            raise ControlError(f"{weight!r} is no weight; give a whole number from 1 to 100")
        self._upstream.overrides.set_weight(name, weight)
        self._upstream.override()
        return {"backends": [_in_brief(backend) for backend in backends]}

    async def _reconnect(self, arguments: Arguments) -> Any:
        _name, backends = self._named(arguments)
        sessions = [backend.reconnect(_RECONNECT_INTERVAL) for backend in backends]
        return {"sessions": sum(sessions), "seconds": max(sessions) * _RECONNECT_INTERVAL}

    async def _reload(self, _arguments: Arguments) -> Any:
        report = await self._reload_core()
        if not report.succeeded:
            raise ControlError("configuration not reloaded: " + "; ".join(report.mistakes))
        return {"changed": list(report.changed), "needs_restart": list(report.needs_restart)}

    async def _log(self, arguments: Arguments) -> Any:
        level = arguments.get("level")
        levels = LogConfig.model_fields["level"].annotation.__args__  # type: ignore[union-attr]
        if not isinstance(level, str) or level not in levels:
            raise ControlError(f"no log level is named {level!r}; there are {', '.join(levels)}")
        log.set_level(level)
        if self._workers is not None:
            self._workers.set_log_level(level)
        return {"level": level}

    def _named(self, arguments: Arguments) -> tuple[str, list[Backend]]:
        """Return the name in a request and its backends: one, or all of a table. Raises ControlError."""
        name = arguments.get("backend")
        found = [backend for backend in self._upstream.fleet.backends if name in {backend.name, table_of(backend.name)}]
        if not isinstance(name, str) or not found:
            known = ", ".join(backend.name for backend in self._upstream.fleet.backends)
            raise ControlError(f"no backend is named {name!r}; there are {known}")
        return name, found

    # Questions -------------------------------------------------------------------------------------------------------

    async def _show_config(self, _arguments: Arguments) -> Any:
        return _plain(self._config)

    async def _status(self, _arguments: Arguments) -> Any:
        return {
            "gateway": {
                "version": version("kmip-gateway"),
                "process": os.getpid(),
                "started": _time(self._started),
                "tls_workers": 0 if self._workers is None else len(self._workers),
            },
            "backends": [_status_of(backend) for backend in self._upstream.fleet.backends],
            "pools": self._pools(),
            "clients": self._clients(),
            "workers": [
                {"worker": index, "clients": clients}
                for index, clients in (self._workers.clients_by_worker() if self._workers else {}).items()
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


def _is_weight(weight: int) -> bool:
    try:
        BackendOptions(weight=weight)
    except ValueError:
        return False
    return True


def _in_brief(backend: Backend) -> dict[str, Any]:
    counts = _sessions(backend)
    return {
        "name": backend.name,
        "state": backend.state,
        "weight": backend.options.weight,
        "in_flight": backend.in_flight,
        "sessions": counts,
    }


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
        "in_flight": backend.in_flight,
        "sessions": _sessions(backend),
        "pools": _by_identity(backend),
    }


def _by_identity(backend: Backend) -> dict[str, dict[str, int]]:
    """Return the sessions of a backend by identity: one with minted credentials has a pool for each client."""
    found: dict[str, dict[str, int]] = {}
    for pool in backend.pools.values():
        counts = found.setdefault(pool.credential, dict.fromkeys(PoolStatistics._fields, 0))
        for key, number in pool.statistics()._asdict().items():
            counts[key] += number
    return found


def _sessions(backend: Backend) -> dict[str, int]:
    counts = [pool.statistics() for pool in backend.pools.values()]
    return {
        "idle": sum(count.idle for count in counts),
        "busy": sum(count.busy for count in counts),
        "opening": sum(count.opening for count in counts),
        "limit": backend.slots.limit,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """Return a value of the configuration as JSON has it; addresses and paths are texts."""
    if hasattr(type(value), "model_fields"):
        return {key: _plain(getattr(value, key)) for key in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [_plain(each) for each in value]
    return (
        value
        if isinstance(value, (bool, int, float, str, type(None))) and not isinstance(value, Address)
        else str(value)
    )
