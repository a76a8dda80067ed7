"""Runtime control: the commands of the control socket, carried out in the core."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from gateway import log
from gateway.admin.control import Command
from gateway.config import Address, Config
from gateway.config.model import BackendOptions, LogConfig
from gateway.errors import AuditError, ControlError
from gateway.front.request_log import RequestLog
from gateway.front.taps import TapFilter, Taps
from gateway.front.workers import TlsWorkers
from gateway.reload import ReloadReport
from gateway.status import Status, sessions_of
from gateway.traffic import Traffic
from gateway.upstream.backend import Backend
from gateway.upstream.overrides import table_of
from gateway.wiring import Upstream

#: Commands that change something, which are logged with their user.
CHANGING: Final = frozenset({"drain", "enable", "weight", "reconnect", "reload", "log", "audit-reopen"})
DEBUG_SECONDS: Final = 600  # for which lines of level debug are logged, if no time is given
MAX_DEBUG_SECONDS: Final = 86_400
_RECONNECT_INTERVAL: Final = 0.25  # s between two sessions of a backend that are replaced

Arguments = Mapping[str, Any]


class RuntimeControl:
    """The commands, over the objects of one core. ``workers`` is None if clients' TLS ends in the core."""

    def __init__(
        self,
        config: Config,
        upstream: Upstream,
        status: Status,
        *,
        reload: Callable[[], Awaitable[ReloadReport]],
        reopen_audit_file: Callable[[], Awaitable[None]],
        taps: Taps,
        request_log: RequestLog,
        workers: TlsWorkers | None = None,
    ) -> None:
        self._reload_core = reload
        self._reopen_audit_file = reopen_audit_file
        self._config = config
        self._upstream = upstream
        self._status = status
        self._taps = taps
        self._request_log = request_log
        self._workers = workers

    def __repr__(self) -> str:
        return f"<RuntimeControl of {self._upstream.fleet!r}>"

    def commands(self) -> dict[str, Command]:
        """Return the commands by name."""
        return {
            "status": self._show_status,
            "drain": self._drain,
            "enable": self._enable,
            "weight": self._weight,
            "reconnect": self._reconnect,
            "reload": self._reload,
            "log": self._log,
            "audit-reopen": self._reopen_audit,
            "config": self._show_config,
            "log-state": self._show_log,
            "tap": self._tap,
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
            raise ControlError("\n".join(["configuration not reloaded, the old one stays:", *report.mistakes]))
        return {"changed": list(report.changed), "needs_restart": list(report.needs_restart)}

    async def _log(self, arguments: Arguments) -> Any:
        level = arguments.get("level")
        levels = LogConfig.model_fields["level"].annotation.__args__  # type: ignore[union-attr]
        if not isinstance(level, str) or level not in levels:
            raise ControlError(f"no log level is named {level!r}; there are {', '.join(levels)}")
        if level == "debug":
            self._debug({key: given for key, given in arguments.items() if key != "level"})
        elif len(arguments) > 1:
            raise ControlError(f"log {level} is for all lines; only log debug is for some, and for a while")
        else:
            log.set_level(level)
            log.end_debug()
        self._request_log.settings_changed()
        if self._workers is not None:
            self._workers.log_changed()
        return log.state()

    def _debug(self, given: dict[str, Any]) -> None:
        seconds = given.pop("seconds", DEBUG_SECONDS)
        traffic = Traffic.take(given)
        if given:
            raise ControlError(f"log debug has no filter {', '.join(given)}; there are {', '.join(Traffic._fields)}")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= MAX_DEBUG_SECONDS:
            raise ControlError(f"{seconds!r} is no time for debug lines; give 1 to {MAX_DEBUG_SECONDS} seconds")
        self._check_known(traffic)
        log.begin_debug(traffic, seconds)

    async def _reopen_audit(self, _arguments: Arguments) -> Any:
        try:
            await self._reopen_audit_file()
        except AuditError as error:
            raise ControlError(f"audit file not reopened: {error}") from None
        return {"file": str(self._config.audit.file)}

    async def _tap(self, arguments: Arguments) -> Any:
        wanted = TapFilter.of(arguments)
        self._check_known(wanted.traffic)
        return self._taps.open(wanted)

    def _check_known(self, traffic: Traffic) -> None:
        """Raise ControlError for an identity or a backend that this gateway has not."""
        _check_known("identity", traffic.identity, [each.name for each in self._config.identities] + ["unidentified"])
        backends = [each.name for each in self._upstream.fleet.backends]
        tables = [each.name for each in self._config.backends]
        _check_known("backend", traffic.backend, list(dict.fromkeys([*tables, *backends])))

    def _named(self, arguments: Arguments) -> tuple[str, list[Backend]]:
        """Return the name in a request and its backends: one, or all of a table. Raises ControlError."""
        name, backends = arguments.get("backend"), self._upstream.fleet.backends
        found = [backend for backend in backends if name in (backend.name, table_of(backend.name))]
        if not isinstance(name, str) or not found:
            known = ", ".join(backend.name for backend in backends)
            raise ControlError(f"no backend is named {name!r}; there are {known}")
        return name, found

    # Questions -------------------------------------------------------------------------------------------------------

    async def _show_config(self, _arguments: Arguments) -> Any:
        return _plain(self._config)

    async def _show_log(self, _arguments: Arguments) -> Any:
        return log.state()

    async def _show_status(self, _arguments: Arguments) -> Any:
        return await self._status.current()


def _is_weight(weight: int) -> bool:
    try:
        BackendOptions(weight=weight)
    except ValueError:
        return False
    return True


def _in_brief(backend: Backend) -> dict[str, Any]:
    return {
        "name": backend.name,
        "state": backend.state,
        "weight": backend.options.weight,
        "in_flight": backend.in_flight,
        "sessions": sessions_of(backend),
    }


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


def _check_known(kind: str, name: str, known: Sequence[str]) -> None:
    if name and name not in known:
        raise ControlError(f"no {kind} is named {name}; there are {', '.join(known)}")
