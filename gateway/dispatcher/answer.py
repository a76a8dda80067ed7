"""Answers: what a client gets, and the words in which the gateway refuses."""

from typing import Final, NamedTuple, Self

from gateway.errors import BackendError
from gateway.kmip.messages import Request, Response
from gateway.policy import Effect, Refusal, refuse
from gateway.upstream.backend import Backend


class Answer(NamedTuple):
    """What a client gets: the key manager's frame, or the gateway's own; ``refusal`` says why it is a refusal."""

    frame: bytes
    response: Response | None = None
    refusal: Refusal | None = None
    detail: str = ""
    backend: Backend | None = None

    @classmethod
    def of(cls, response: Response, backend: Backend) -> Self:
        """A key manager's."""
        return cls(response.frame, response, None, "", backend)


def refusal(why: Refusal, message: str, request: Request, *, detail: str = "") -> Answer:
    """An answer of the gateway's own; ``detail`` is for the log."""
    return Answer(refuse(why, message, request), refusal=why, detail=detail or message)


def give_up(request: Request, effect: Effect, error: BackendError) -> Answer:
    """Say truly what became of a request that was sent: for what may not be repeated, that nobody knows."""
    why, message = _LAST_WORDS[error.reason if error.reason in NOT_TAKEN else "", effect <= Effect.TOUCH]
    return refusal(why, message, request, detail=str(error))


def bad_mark(why: Refusal, request: Request) -> Answer:
    """Refuse a request for the marks that it shows."""
    return refusal(why, BAD_MARKS[why], request)


#: Reasons for which an answer that came was not taken: every other one would be as large.
NOT_TAKEN: Final = frozenset({"too_large", "max_buffered"})
#: What a client is told of a request that was sent: by why its answer was not taken, and whether it repeats.
_LAST_WORDS: Final = {
    ("", True): (Refusal.BACKEND_FAILED, "no key manager answered; the request may be repeated"),
    ("", False): (
        Refusal.OUTCOME_UNKNOWN,
        "the key manager did not answer properly: the outcome is unknown, do not repeat the request blindly",
    ),
    ("too_large", True): (Refusal.RESPONSE_TOO_LARGE, "the answer is larger than this gateway passes on"),
    ("too_large", False): (
        Refusal.RESPONSE_TOO_LARGE,
        "the answer is larger than this gateway passes on, so that the outcome is unknown",
    ),
    ("max_buffered", True): (
        Refusal.OVERLOADED,
        "the gateway can't hold the answer just now: it holds too many bytes already; try again later",
    ),
    ("max_buffered", False): (
        Refusal.OUTCOME_UNKNOWN,
        "the gateway can't hold the answer just now: the outcome is unknown, do not repeat the request blindly",
    ),
}
#: What a client is told of a mark, by what is wrong with it.
BAD_MARKS: Final = {
    Refusal.UNKNOWN_ASYNCHRONOUS_VALUE: "no key manager here gave this client this asynchronous correlation value",
    Refusal.UNKNOWN_CORRELATION_VALUE: "no key manager here gave this client this correlation value",
    Refusal.UNKNOWN_TICKET: "no key manager here gave this client this ticket",
    Refusal.NO_BACKEND: "the key manager that holds this request's state can't be reached; try again later",
    Refusal.SEVERAL_BACKENDS: "one batch can't use values that two key managers gave",
}
