"""Tables: what running an operation twice would do, what may be repeated when, what is refused and with which words.

Plain facts and functions; no I/O. The numbers are of KMIP 1.4 section 9.1.3.2.29 and 2.1 section 11.48.
"""

from enum import Enum, IntEnum
from typing import Final

from gateway.errors import ProtocolError, Stage
from gateway.kmip import compose
from gateway.kmip.binding import ASKING
from gateway.kmip.messages import FALLBACK_VERSION, Request, RequestItem, Response, ResponseItem, Version
from gateway.kmip.spec import AsynchronousIndicator, ObjectGroupMember, Operation, ResultReason, ResultStatus


class Effect(IntEnum):
    """What running an operation a second time would do, from nothing to the worst."""

    READ = 0  # nothing
    TOUCH = 1  # something that nobody minds: a flag that is set already, a lease that is longer
    CONSUME = 2  # use up a quota or randomness, or write a second log line
    BOUND = 3  # go to a server that holds state for it, and may have given its answer already
    MUTATE = 4  # make a second key, or fail because the first time succeeded


#: The effect of each operation (1.4 section 4, 2.1 section 6; what is not here mutates).
EFFECTS: Final[dict[int, Effect]] = {
    Operation.LOCATE: Effect.READ,
    Operation.CHECK: Effect.READ,
    Operation.GET: Effect.TOUCH,
    Operation.GET_ATTRIBUTES: Effect.READ,
    Operation.GET_ATTRIBUTE_LIST: Effect.READ,
    Operation.OBTAIN_LEASE: Effect.TOUCH,
    Operation.VALIDATE: Effect.READ,
    Operation.QUERY: Effect.READ,
    Operation.CANCEL: Effect.BOUND,
    Operation.POLL: Effect.BOUND,
    Operation.DISCOVER_VERSIONS: Effect.READ,
    Operation.ENCRYPT: Effect.CONSUME,
    Operation.DECRYPT: Effect.READ,
    Operation.SIGN: Effect.CONSUME,
    Operation.SIGNATURE_VERIFY: Effect.READ,
    Operation.MAC: Effect.CONSUME,
    Operation.MAC_VERIFY: Effect.READ,
    Operation.RNG_RETRIEVE: Effect.TOUCH,
    Operation.RNG_SEED: Effect.CONSUME,
    Operation.HASH: Effect.READ,
    Operation.EXPORT: Effect.TOUCH,
    Operation.LOG: Effect.CONSUME,
    Operation.LOGIN: Effect.BOUND,
    Operation.LOGOUT: Effect.BOUND,
    Operation.DELEGATED_LOGIN: Effect.BOUND,
    Operation.PKCS_11: Effect.BOUND,
    Operation.GET_CONSTRAINTS: Effect.READ,
    Operation.QUERY_ASYNCHRONOUS_REQUESTS: Effect.BOUND,
    Operation.PROCESS: Effect.BOUND,
    Operation.PING: Effect.READ,
}

#: Cryptographic operations that may be one part of a stream, which a server holds (1.4 section 4.29 and following).
STREAMING: Final = frozenset(
    {
        Operation.ENCRYPT,
        Operation.DECRYPT,
        Operation.SIGN,
        Operation.SIGNATURE_VERIFY,
        Operation.MAC,
        Operation.MAC_VERIFY,
        Operation.HASH,
    }
)

_JUDGED_BY_PAYLOAD: Final = STREAMING | {Operation.LOCATE}
_WORST: Final = Effect.MUTATE

#: The strictest effect that may be repeated after an attempt that failed at this stage. In CONNECT nothing was sent.
REPEATABLE: Final[dict[Stage, Effect]] = {
    Stage.CONNECT: Effect.MUTATE,
    Stage.SEND: Effect.TOUCH,
    Stage.WAIT: Effect.TOUCH,
    Stage.READ: Effect.TOUCH,
}


def effect_of(request: Request) -> Effect:
    """The effect of a request: that of its strictest item, since a batch is never split."""
    items = request.items
    if len(items) == 1:
        return _effect_of_item(items[0])
    return max(_effect_of_item(item) for item in items)


def may_repeat(effect: Effect, stage: Stage) -> bool:
    """Whether a request of this effect may be tried again after an attempt that failed at this stage."""
    return effect <= REPEATABLE[stage]


def _effect_of_item(item: RequestItem) -> Effect:
    operation = item.operation
    effect = EFFECTS.get(operation, _WORST)
    if operation in _JUDGED_BY_PAYLOAD:
        try:
            return max(effect, _effect_of_payload(item))
        except ProtocolError:  # what can't be read can't be judged
            return Effect.MUTATE
    return effect


_NOT_FRESH: Final = (None, ObjectGroupMember.GROUP_MEMBER_DEFAULT)


def _effect_of_payload(item: RequestItem) -> Effect:
    if item.operation == Operation.LOCATE:
        # "If a Fresh object is asked for and there is none, the server may make one" (1.4 section 4.9)
        return Effect.READ if item.object_group_member in _NOT_FRESH else Effect.MUTATE
    is_part = item.correlation_value is not None or item.init_indicator or item.final_indicator
    return Effect.BOUND if is_part else Effect.READ


#: Operations whose result depends on no object that is there already (1.4 sections 4.1 to 4.3).
_MAKING: Final = frozenset({Operation.CREATE, Operation.CREATE_KEY_PAIR, Operation.REGISTER})


def makes_only_new(request: Request) -> bool:
    """Whether a request does nothing but make objects: it may run anywhere."""
    return all(item.operation in _MAKING for item in request.items)


def may_be_given_values(request: Request) -> bool:
    """Whether the answer may hold a value that binds the client to the server."""
    return request.asynchronous_indicator is not AsynchronousIndicator.PROHIBITED or any(
        item.operation not in _KNOWN or _effect_of_item(item) is Effect.BOUND for item in request.items
    )


_KNOWN: Final = frozenset(Operation)

#: What a key manager says of an object that it does not have: 1.x, and since 2.0.
MISSING: Final = frozenset({ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND})

#: What it says only of one that it has (1.4 section 11, 2.1 section 11.48).
KNOWN: Final = frozenset(
    {
        ResultReason.OBJECT_ARCHIVED,
        ResultReason.OBJECT_DESTROYED,
        ResultReason.KEY_VALUE_NOT_PRESENT,
        ResultReason.SENSITIVE,
        ResultReason.NOT_EXTRACTABLE,
        ResultReason.WRONG_KEY_LIFECYCLE_STATE,
        ResultReason.KEY_FORMAT_TYPE_NOT_SUPPORTED,
        ResultReason.KEY_COMPRESSION_TYPE_NOT_SUPPORTED,
    }
)


def found_by(response: Response) -> tuple[int, int]:
    """How many operations found what they were asked for; and how many at least told that it is there.

    Those that did not fail have found it, but for a Locate without a match. More is more, in this order.
    """
    found = sum(1 for item in response.items if item.status != ResultStatus.OPERATION_FAILED and not _is_empty(item))
    return found, sum(1 for item in response.items if item.reason in KNOWN)


def has_changed_nothing(request: Request, response: Response) -> bool:
    """Whether nothing has run of what a request may change, for want of an object: all of it may run elsewhere."""
    harmless = {item.operation for item in request.items if _effect_of_item(item) <= Effect.TOUCH}
    harmless -= {item.operation for item in request.items if _effect_of_item(item) > Effect.TOUCH}
    return all(
        item.reason in MISSING if item.status == ResultStatus.OPERATION_FAILED else item.operation in harmless
        for item in response.items
    )


def tells_of_a_change(response: Response) -> bool:
    """Whether the answer to a Poll, and its like, may be that of a change which has run."""
    return any(
        item.status == ResultStatus.SUCCESS
        and (item.operation in ASKING or EFFECTS.get(item.operation, _WORST) > Effect.BOUND)
        for item in response.items
    )


def destroyed(request: Request, response: Response) -> list[bytes]:
    """The identifiers of the objects that are no more after this, as far as the request names them."""
    if len(request.items) != len(response.items):
        return []
    return [
        identifier
        for asked, item in zip(request.items, response.items, strict=True)
        if asked.operation == item.operation == Operation.DESTROY and item.status == ResultStatus.SUCCESS
        for identifier in _identifiers(asked)
    ]


def names_only(identifiers: frozenset[bytes], message: Request | Response) -> bool:
    """Whether the payloads name some of these objects, and no others."""
    named = {identifier for item in message.items for identifier in _identifiers(item)}
    return bool(named) and named <= identifiers


def is_missing_something(response: Response) -> bool:
    """Whether another key manager may know of an object that this one does not, or not yet."""
    for item in response.items:
        status = item.status
        if status == ResultStatus.OPERATION_FAILED:
            if item.reason in MISSING:
                return True
        elif item.operation == Operation.LOCATE and _is_empty(item):
            return True
    return False


#: Failures that are the key manager's own, not the request's (1.4 section 11, 2.1 section 11.48): its HSM or its
#: database is gone. Cryptographic Failure may also be a wrong tag, so that one key manager's word is not enough.
SERVER_ERRORS: Final = frozenset(
    {ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR, ResultReason.CRYPTOGRAPHIC_FAILURE}
)


def is_server_error(response: Response) -> bool:
    """Return True if an operation failed for a reason that may be the key manager's own."""
    return any(item.status == ResultStatus.OPERATION_FAILED and item.reason in SERVER_ERRORS for item in response.items)


def has_failed(response: Response) -> bool:
    """Return True if an operation failed, for whatever reason."""
    return any(item.status == ResultStatus.OPERATION_FAILED for item in response.items)


def _identifiers(item: RequestItem | ResponseItem) -> list[bytes]:
    try:
        return item.unique_identifiers
    except ProtocolError:  # what can't be read names nothing
        return []


def _is_empty(item: ResponseItem) -> bool:
    """Whether it is a Locate that found nothing; with Maximum Items or Offset it may only say how many there are."""
    if item.operation != Operation.LOCATE or item.status != ResultStatus.SUCCESS:
        return False
    try:
        return not item.has_unique_identifier and not item.located_items
    except ProtocolError:  # what can't be read can't be judged
        return False


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
    CLIENT_DISCONNECTED = "client_disconnected"
    RESPONSE_TOO_LARGE = "response_too_large"
    UNKNOWN_ASYNCHRONOUS_VALUE = "unknown_asynchronous_value"
    UNKNOWN_CORRELATION_VALUE = "unknown_correlation_value"
    UNKNOWN_TICKET = "unknown_ticket"
    SEVERAL_BACKENDS = "several_backends"


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
    Refusal.CLIENT_DISCONNECTED: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
    Refusal.RESPONSE_TOO_LARGE: (ResultReason.RESPONSE_TOO_LARGE, ResultReason.RESPONSE_TOO_LARGE),
    # 1.4 section 11 has this for a Poll about what the server does not know; it is not about an object
    Refusal.UNKNOWN_ASYNCHRONOUS_VALUE: (
        ResultReason.ITEM_NOT_FOUND,
        ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE,
    ),
    Refusal.UNKNOWN_CORRELATION_VALUE: (ResultReason.INVALID_FIELD, ResultReason.INVALID_CORRELATION_VALUE),
    Refusal.UNKNOWN_TICKET: (ResultReason.AUTHENTICATION_NOT_SUCCESSFUL, ResultReason.INVALID_TICKET),
    Refusal.SEVERAL_BACKENDS: (ResultReason.FEATURE_NOT_SUPPORTED, ResultReason.FEATURE_NOT_SUPPORTED),
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
    for item in request.items:
        if item.operation in REFUSED_OPERATIONS:
            return item.operation
    return None


def refuse(refusal: Refusal, message: str, request: Request | None, *, version: Version | None = None) -> bytes:
    """The gateway's answer to a client: every item failed, for this reason, with these words.

    ``version`` is that of a request that could not be decoded (None), where it could still be read.
    """
    known = request.version if request is not None else version
    reason = REASONS[refusal][known is not None and known >= (2, 0)]
    return compose.failure(request, reason, message, version=known or FALLBACK_VERSION)
