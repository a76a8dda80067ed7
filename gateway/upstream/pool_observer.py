"""Pool observer: feeds the metrics and the log from the events of one pool."""

from typing import Final

import trio

from gateway.errors import BackendError
from gateway.log import Log, Throttle
from gateway.metrics import Metrics
from gateway.policy import Effect
from gateway.remedies import remedy_for
from gateway.upstream.idle_limit import IdleLimit

_REPEAT: Final = 60.0  # s until a failure that goes on is logged again

#: Log lines for sessions that were closed because of a fault, by reason.
_FAULTS: Final = {
    "unasked": "session closed: the key manager sent bytes that no request asked for; they were dropped",
    "mismatch": "session closed: the key manager answered a different request; the answer was dropped",
    "records": "session closed: too many TLS records without data",
}


class PoolObserver:
    """The Observer of a pool. Children of labelled metrics are looked up once, here.

    With ``is_of_many``, it is the Observer of the pools of all clients of an identity whose credentials are minted:
    then each reason of a failure is logged once a minute, whichever client's session fails, and no recovery is logged.
    """

    def __init__(self, backend: str, credential: str, metrics: Metrics, log: Log, *, is_of_many: bool = False) -> None:
        self._is_of_many = is_of_many
        self._backend = backend
        self._credential = credential
        self._metrics = metrics
        self._log = log.bind(backend=backend, credential=credential)
        self._answered = metrics.exchanges(backend)
        self._reused = metrics.session_reuses.labels(backend)
        self._waits = metrics.request_queue_duration.labels(backend)
        self._wait_timeouts = metrics.pool_wait_timeouts.labels(backend)
        for fault in _FAULTS:
            metrics.sessions_closed.labels(backend, fault)  # 0 at first, so that an alert sees the first fault
        self._throttle = Throttle()
        self._fault_throttle = Throttle(_REPEAT)
        self._failing: str | None = None
        self._logged_at = 0.0

    def session_opened(self, seconds: float) -> None:
        """Count an opened session; log if sessions could not be opened before."""
        self._metrics.sessions_opened.labels(self._backend).inc()
        self._metrics.session_open_duration.labels(self._backend).observe(seconds)
        self._log.debug("session opened", seconds=round(seconds, 6))
        if self._failing is not None:
            self._failing = None
            self._log.info("key manager reached again")

    def session_open_failed(self, error: BackendError) -> None:
        """Count a failed attempt; log the first in a row, each new reason, and once a minute."""
        self._metrics.session_open_failures.labels(self._backend, self._credential, error.reason).inc()
        fields = {"reason": error.reason, "detail": error.args[0], "remedy": remedy_for(error.cause)}
        if self._is_of_many:
            self._fault_throttle.warn(self._log, error.reason, "can't open a session", **fields)
            return
        now = trio.current_time()
        if error.reason != self._failing or now - self._logged_at >= _REPEAT:
            self._failing = error.reason
            self._logged_at = now
            self._log.warning("can't open a session", **fields)

    def session_closed(self, reason: str, age: float) -> None:
        """Count a closed session and its age; log if it was closed because of a fault of the key manager."""
        self._metrics.sessions_closed.labels(self._backend, reason).inc()
        self._metrics.session_age.labels(self._backend).observe(age)
        self._log.debug("session closed", reason=reason)
        if reason in _FAULTS:
            self._fault_throttle.warn(self._log, reason, _FAULTS[reason])

    def closed_while_idle(self, seconds: float) -> None:
        """Count the time without use of a session that the key manager has closed."""
        self._metrics.session_idle_at_remote_close.labels(self._backend).observe(seconds)

    def ejected(self, credential: str, effect: Effect) -> None:
        """Count and log an ejection."""
        self._metrics.backend_ejections.labels(self._backend, self._credential if credential else "all").inc()
        requests = "requests" if effect.is_read else "changes"
        scope = "every identity" if not credential else "this identity"
        self._log.warning(f"backend ejected after consecutive failures: {requests} of {scope} go to other backends")

    def idle_limit_learned(self, limit: IdleLimit) -> None:
        """Log the learned idle limit, with the name of the setting that should be lowered."""
        self._log.warning(
            "key manager closes idle sessions early: lower pool.idle_timeout",
            idle_timeout=limit.configured,
            now_used=round(limit.effective, 1),
        )

    def ceiling_learned(self, ceiling: int, limit: int) -> None:
        """Log the learned ceiling, with the name of the setting that should be lowered."""
        self._log.warning(
            "key manager allows fewer sessions than max_sessions: lower backends.max_sessions",
            max_sessions=limit,
            now_used=ceiling,
        )

    def waited(self, seconds: float) -> None:
        """Count a wait for a session, and its duration."""
        self._waits.observe(seconds)

    def wait_timed_out(self) -> None:
        """Count a wait for a session whose time was over."""
        self._wait_timeouts.inc()

    def found_stale(self, when: str) -> None:
        """Count a session that the key manager had closed, found at ``checkout`` or ``in_flight``."""
        self._metrics.session_stale.labels(self._backend, when).inc()

    def exchanged(self, result: str, seconds: float, *, is_reused: bool) -> None:
        """Count an exchange, and the duration of an answered one."""
        if is_reused:
            self._reused.value += 1.0
        if result == "answered":  # every request pays for this
            self._answered(seconds)
        else:
            self._metrics.backend_requests.labels(self._backend, result).inc()
            self._throttle.warn(self._log, result, "exchange failed", result=result)
