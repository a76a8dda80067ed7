"""Request log: the fields of log lines about requests."""

from typing import Any

from gateway.dispatcher import Answer


def stage_fields(answer: Answer, seconds: float) -> dict[str, Any]:
    """Return the fields about the stages of a request that took so many seconds; times are in milliseconds.

    The stages of a request that was answered at the first try, in less than ``log.slow_request``, are not known: then
    the time went into sending the answer.
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
