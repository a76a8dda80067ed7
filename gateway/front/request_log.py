"""Request log: the lines about slow and refused requests, a sample of them if there are many."""

from collections.abc import Mapping
from typing import Any, Final

from gateway.config import LogConfig
from gateway.dispatcher import Answer
from gateway.log import Log, Throttle

_MOST: Final = 20  # lines a second


class RequestLog:
    """Logs the slow and the refused requests of all clients: 20 lines a second at most, also in an outage.

    A line is logged once a second for each identity (and reason, if the request is refused); the next line has the
    number left out. ``slow`` is the number of seconds from which on a request is slow; infinity if none is.
    """

    def __init__(self, settings: LogConfig | None = None) -> None:
        self._settings = settings or LogConfig()
        self._throttle = Throttle(most=_MOST)
        self.settings_changed()

    def __repr__(self) -> str:
        return f"<RequestLog, slow from {self.slow:g} s on>"

    def settings_changed(self) -> None:
        """Use the settings as they are now."""
        self.slow = self._settings.slow_request or float("inf")

    def slow_request(self, log: Log, about: Mapping[str, str], result: str, answer: Answer, seconds: float) -> None:
        """Log an answered request. ``about`` has the fields about client and request."""
        key = f"slow {about['identity']}"
        self._throttle.info(log, key, "slow request", **about, result=result, **stage_fields(answer, seconds))

    def refused(
        self, log: Log, about: Mapping[str, str], answer: Answer, seconds: float | None, certificate: Mapping[str, str]
    ) -> None:
        """Log a request that the gateway refused, after so many seconds if it was dispatched."""
        reason = "" if answer.refusal is None else answer.refusal.value
        times = {} if seconds is None else stage_fields(answer, seconds)
        self._throttle.warn(
            log,
            f"{reason} {about['identity']}",
            "request refused",
            reason=reason,
            detail=answer.detail,
            **about,
            **times,
            **certificate,
        )


def stage_fields(answer: Answer, seconds: float) -> dict[str, Any]:
    """Return the fields about the stages of a request that took so many seconds; times are in milliseconds.

    The stages of a request that was answered at the first try, by a session that was free, in less than half of
    ``log.slow_request``, are not known.
    """
    stages = answer.stages
    if stages is None:
        known: dict[str, Any] = {} if answer.backend is None else {"backend": answer.backend.name, "tries": 1}
        return {**known, "total_ms": _milliseconds(seconds)}
    return {
        "backend": stages.backend if answer.backend is None else answer.backend.name,
        "tries": stages.tries,
        "total_ms": _milliseconds(seconds),
        "queue_ms": _milliseconds(stages.queue),
        "connect_ms": _milliseconds(stages.connect),
        "backend_ms": _milliseconds(stages.exchanging),
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
