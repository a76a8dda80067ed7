"""Answers: the frame that a client gets, and the Result Messages of the gateway's own refusals."""

from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from gateway.dispatcher.stages import Stages
from gateway.errors import BackendError
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import ResultReason
from gateway.permissions import Denial, refusal_frame
from gateway.policy import Effect, Refusal, refuse
from gateway.upstream.backend import Backend


class Answer(NamedTuple):
    """The answer to a client: a key manager's frame, or the gateway's own.

    ``response`` and ``backend`` are set if a key manager answered. ``refusal`` is the reason if the gateway refused the
    request; ``detail`` then is for the log. ``stages`` is set if the request has waited or failed, or was slow.
    """

    frame: bytes
    response: Response | None = None
    refusal: Refusal | None = None
    detail: str = ""
    backend: Backend | None = None
    stages: Stages | None = None

    @classmethod
    def of(cls, response: Response, backend: Backend) -> Self:
        """Return the answer that passes on a backend's response."""
        return cls(response.frame, response, None, "", backend)


def refusal(why: Refusal, message: str, request: Request, *, detail: str = "") -> Answer:
    """Return the gateway's own refusal; ``message`` is for the client, ``detail`` for the log."""
    return Answer(refuse(why, message, request), refusal=why, detail=detail or message)


def denied(request: Request, denials: Sequence[Denial]) -> Answer:
    """Return the refusal of a request by the policy of its client's identity; ``denials`` has at least one."""
    first = denials[0]
    why = Refusal.NOT_PERMITTED
    if all(denial.reason is ResultReason.OPERATION_NOT_SUPPORTED for denial in denials):
        why = Refusal.NOT_SUPPORTED
    items = len(request.items)
    where = f"operation {first.position + 1} of {items}, " if first.position is not None and items > 1 else ""
    return Answer(refusal_frame(request, denials), refusal=why, detail=where + first.detail)


def final_error(request: Request, effect: Effect, error: BackendError) -> Answer:
    """Return the refusal of a request that was sent and got no good answer: of a change, the outcome is unknown."""
    why, message = FINAL_ERROR[error.reason if error.reason in NOT_TAKEN else "", effect.is_read]
    return refusal(why, message, request, detail=str(error))


def bad_mark(why: Refusal, request: Request) -> Answer:
    """Return the refusal of a request for the marks in it."""
    return refusal(why, BAD_MARKS[why], request)


#: Reasons for which the gateway discarded an answer. The request is not repeated, since the answer
#: of any other backend would be as large.
NOT_TAKEN: Final = frozenset({"too_large", "max_buffered"})
#: Last part of every Result Message of Refusal.OUTCOME_UNKNOWN, also of the one at the end of a drain.
UNKNOWN_OUTCOME: Final = "the outcome is unknown; check whether the request took effect before repeating it"
#: Refusal and Result Message of a request that was sent: by the reason of NOT_TAKEN or "", and by ``Effect.is_read``.
FINAL_ERROR: Final = {
    ("", True): (Refusal.BACKEND_FAILED, "no key manager answered; the request may be repeated"),
    ("", False): (Refusal.OUTCOME_UNKNOWN, f"the key manager failed after the request was sent: {UNKNOWN_OUTCOME}"),
    ("too_large", True): (
        Refusal.RESPONSE_TOO_LARGE,
        "the answer is larger than this gateway or the client accepts; ask for less in one request",
    ),
    ("too_large", False): (
        Refusal.RESPONSE_TOO_LARGE,
        f"the answer is larger than this gateway or the client accepts: {UNKNOWN_OUTCOME}",
    ),
    ("max_buffered", True): (Refusal.OVERLOADED, "the gateway has no memory left for the answer; try again later"),
    ("max_buffered", False): (
        Refusal.OUTCOME_UNKNOWN,
        f"the gateway has no memory left for the answer: {UNKNOWN_OUTCOME}",
    ),
}
#: Result Messages for refused marks.
BAD_MARKS: Final = {
    Refusal.UNKNOWN_ASYNCHRONOUS_VALUE: "unknown asynchronous correlation value: no key manager behind this gateway"
    " issued it to this client",
    Refusal.UNKNOWN_CORRELATION_VALUE: "unknown correlation value: no key manager behind this gateway issued it to this"
    " client",
    Refusal.UNKNOWN_TICKET: "unknown ticket: no key manager behind this gateway issued it to this client; log in again",
    Refusal.NO_BACKEND: "the key manager that holds this request's state cannot be reached; try again later",
    Refusal.SEVERAL_BACKENDS: "the batch has correlation values or tickets of two key managers; send two requests",
}
