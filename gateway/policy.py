"""Tables: what is refused, and with which words and numbers.

Plain facts and functions; no I/O. The numbers are of KMIP 1.4 section 9.1.3.2.29 and 2.1 section 11.48.
"""

from enum import Enum
from typing import Final

from gateway.kmip import compose
from gateway.kmip.messages import FALLBACK_VERSION, Request, Version
from gateway.kmip.spec import Operation, ResultReason


class Refusal(Enum):
    """Why the gateway itself answers. The value is the label under which it is counted and logged."""

    INVALID_MESSAGE = "invalid_message"
    TOO_LARGE = "too_large"
    NOT_AUTHENTICATED = "not_authenticated"
    NOT_SUPPORTED = "not_supported"
    NO_BACKEND = "no_backend"
    DEADLINE = "deadline"
    OVERLOADED = "overloaded"
    BACKEND_FAILED = "backend_failed"
    OUTCOME_UNKNOWN = "outcome_unknown"


#: Of each refusal: the Result Reason in 1.x, and the one from 2.0 on.
REASONS: Final[dict[Refusal, tuple[ResultReason, ResultReason]]] = {
    Refusal.INVALID_MESSAGE: (ResultReason.INVALID_MESSAGE, ResultReason.CODEC_ERROR),
    Refusal.TOO_LARGE: (ResultReason.INVALID_MESSAGE, ResultReason.SERVER_LIMIT_EXCEEDED),
    Refusal.NOT_AUTHENTICATED: (
        ResultReason.AUTHENTICATION_NOT_SUCCESSFUL,
        ResultReason.AUTHENTICATION_NOT_SUCCESSFUL,
    ),
    Refusal.NOT_SUPPORTED: (ResultReason.OPERATION_NOT_SUPPORTED, ResultReason.OPERATION_NOT_SUPPORTED),
    Refusal.NO_BACKEND: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
    Refusal.DEADLINE: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
    Refusal.OVERLOADED: (ResultReason.GENERAL_FAILURE, ResultReason.SERVER_LIMIT_EXCEEDED),
    Refusal.BACKEND_FAILED: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
    Refusal.OUTCOME_UNKNOWN: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
}

#: Operations that make no sense, or do harm, on a session that many clients share: they turn the session around, speak
#: for a server, or replace the credential that the gateway itself shows (kmip 2.1 sections 6.1.41, 6.1.44, 6.2).
REFUSED_OPERATIONS: Final = frozenset(
    {
        Operation.NOTIFY,
        Operation.PUT,
        Operation.SET_ENDPOINT_ROLE,
        Operation.INTEROP,
        Operation.REPROVISION,
    }
)


def refused_operation(request: Request) -> int | None:
    """The first operation of a request that the gateway never forwards, or None."""
    return next((item.operation for item in request.items if item.operation in REFUSED_OPERATIONS), None)


def refuse(refusal: Refusal, message: str, request: Request | None, *, version: Version | None = None) -> bytes:
    """The gateway's answer to a client: every item failed, for this reason, with these words.

    ``version`` is that of a request that could not be decoded (None), where it could still be read.
    """
    known = request.version if request is not None else version
    reason = REASONS[refusal][known is not None and known >= (2, 0)]
    return compose.failure(request, reason, message, version=known or FALLBACK_VERSION)
