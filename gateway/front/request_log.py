"""Request log: a sample of the slow and the refused requests; at level debug, all requests."""

from collections.abc import Mapping
from typing import Any, Final

from gateway.config import LogConfig
from gateway.dispatcher import Answer
from gateway.log import Log, Throttle, debugs, shows_debug

_MOST: Final = 20  # lines a second


class RequestLog:
    """Logs the slow and the refused requests of all clients: 20 lines a second at most, also in an outage.

    A line is logged once a second for each identity (and reason, if the request is refused); the next line has the
    number left out. At level debug, each request has a line. ``logged_from`` is the number of seconds from which on an
    answered request is passed to ``answered``; infinity if none is.
    """

    def __init__(self, settings: LogConfig | None = None) -> None:
        self._settings = settings or LogConfig()
        self._throttle = Throttle(most=_MOST)
        self.settings_changed()

    def __repr__(self) -> str:
        return f"<RequestLog from {self.logged_from:g} s on>"

    def settings_changed(self) -> None:
        """Use the settings, and the level of the log, as they are now."""
        self._slow = self._settings.slow_request or float("inf")
        self.logged_from = 0.0 if shows_debug() else self._slow

    def answered(self, log: Log, about: Mapping[str, str], result: str, answer: Answer, seconds: float) -> None:
        """Log an answered request. ``about`` has the fields about client and request."""
        fields = {**about, "result": result, **stage_fields(answer, seconds)}
        if seconds >= self._slow and self._throttle.info(log, f"slow {about['identity']}", "slow request", **fields):
            return
        if debugs(fields):
            log.debug("request answered", **fields)
        elif not shows_debug():
            self.settings_changed()  # the time of debugging has ended

    def refused(
        self, log: Log, about: Mapping[str, str], answer: Answer, seconds: float | None, certificate: Mapping[str, str]
    ) -> None:
        """Log a request that the gateway refused, after so many seconds if it was dispatched."""
        reason = "" if answer.refusal is None else answer.refusal.value
        times = {} if seconds is None else stage_fields(answer, seconds)
        fields = {"reason": reason, "detail": answer.detail, **about, **times, **certificate}
        is_logged = self._throttle.warn(log, f"{reason} {about['identity']}", "request refused", **fields)
        if not is_logged and debugs(fields):
            log.debug("request refused", **fields)


def stage_fields(answer: Answer, seconds: float) -> dict[str, Any]:
    """Return the fields about the stages of a request that took so many seconds; times are in milliseconds.

    The stages of a request that was answered at the first try, by a session that was free, in less than half of
    ``log.slow_request``, are not known.
    """
    stages = answer.stages
    if stages is None:
        known: dict[str, Any] = {} if answer.backend is None else {"backend": answer.backend.name, "tries": 1}
        return {**known, "total_ms": _milliseconds(seconds)}
    tried = list(dict.fromkeys(stages.tried))
    last = tried[-1] if tried else ""
    return {
        "backend": last if answer.backend is None else answer.backend.name,
        "tries": stages.tries,
        **({"tried": tried} if len(tried) > 1 else {}),
        "total_ms": _milliseconds(seconds),
        "queue_ms": _milliseconds(stages.queue),
        "connect_ms": _milliseconds(stages.connect),
        "backend_ms": _milliseconds(stages.exchanging),
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
