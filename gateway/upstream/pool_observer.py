"""The meter: counts what happens between one backend and one credential, and says so where an operator should know."""

from typing import Final

import trio

from gateway.errors import BackendError
from gateway.log import Log, Throttle
from gateway.metrics import Metrics
from gateway.policy import Effect
from gateway.upstream.idle_limit import IdleLimit

_REPEAT: Final = 60.0  # s until a failure that goes on is logged again

#: Of faults with which sessions are closed: the log line.
_FAULTS: Final = {
    "unasked": "session closed: the key manager sent bytes that no request asked for; nothing of them was passed on",
    "mismatch": "session closed: the key manager answered another request; the answer was not passed on",
    "records": "session closed: too many TLS records without data",
}


class PoolObserver:
    """The observer that pools report to. Label children are looked up once."""

    def __init__(self, backend: str, credential: str, metrics: Metrics, log: Log) -> None:
        self._backend = backend
        self._credential = credential
        self._metrics = metrics
        self._log = log.bind(backend=backend, credential=credential)
        self._answered = metrics.backend_requests.labels(backend, "answered")
        self._duration = metrics.backend_request_duration.labels(backend)
        self._throttle = Throttle()
        self._seldom = Throttle(_REPEAT)
        self._failing: str | None = None
        self._said_at = 0.0

    def session_opened(self, seconds: float) -> None:
        """Count it; and where sessions could not be opened before, say that they can."""
        self._metrics.sessions_opened.labels(self._backend).inc()
        self._metrics.session_open_duration.labels(self._backend).observe(seconds)
        if self._failing is not None:
            self._failing = None
            self._log.info("key manager reached again")

    def session_open_failed(self, error: BackendError) -> None:
        """Count it; say it when it begins, when its reason changes, and once a minute."""
        self._metrics.session_open_failures.labels(self._backend, error.reason).inc()
        now = trio.current_time()
        if error.reason != self._failing or now - self._said_at >= _REPEAT:
            self._failing = error.reason
            self._said_at = now
            self._log.warning("can't open a session", reason=error.reason, detail=error.args[0])

    def session_closed(self, reason: str) -> None:
        """Count it; say it if the key manager has sent what nobody asked for, or answered something else."""
        self._metrics.sessions_closed.labels(self._backend, reason).inc()
        if reason in _FAULTS:
            self._seldom.warn(self._log, reason, _FAULTS[reason])

    def ejected(self, credential: str, effect: Effect) -> None:
        """Count it, and say it."""
        self._metrics.backend_ejections.labels(self._backend, credential or "all").inc()
        requests = "changes" if effect > Effect.TOUCH else "requests"
        whose = "of every identity" if not credential else "of this identity"
        self._log.warning(f"backend ejected after failures in a row: {requests} {whose} are sent elsewhere for a while")

    def idle_limit_learned(self, limit: IdleLimit) -> None:
        """Say it once, by the name of the setting that should be changed."""
        self._log.warning(
            "key manager closes idle sessions early: lower pool.idle_timeout",
            idle_timeout=limit.configured,
            now_used=round(limit.effective, 1),
        )

    def ceiling_learned(self, ceiling: int, limit: int) -> None:
        """Say it, by the name of the setting that should be changed."""
        self._log.warning(
            "key manager allows fewer sessions than max_sessions: lower backends.max_sessions",
            max_sessions=limit,
            now_used=ceiling,
        )

    def exchanged(self, result: str, seconds: float) -> None:
        """Count it, and time what was answered."""
        if result == "answered":
            self._answered.inc()
            self._duration.observe(seconds)
        else:
            self._metrics.backend_requests.labels(self._backend, result).inc()
            self._throttle.warn(self._log, result, "exchange failed", result=result)
