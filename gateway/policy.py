"""Tables: the effect of running an operation twice, when a request may be repeated, the reasons of refusals.

Plain facts and functions; no I/O. The numbers are of KMIP 1.4 section 9.1.3.2.29 and 2.1 section 11.48. "May it be
repeated?" is answered here only: by ``may_repeat`` after an attempt that failed, by ``Effect.is_read`` of a request
as such.
"""

from enum import Enum, IntEnum
from typing import Final

from gateway.errors import ProtocolError, Stage
from gateway.kmip import compose
from gateway.kmip.binding import ASKING
from gateway.kmip.messages import FALLBACK_VERSION, Request, RequestItem, Response, ResponseItem, Version
from gateway.kmip.spec import AsynchronousIndicator, ObjectGroupMember, Operation, ResultReason, ResultStatus


class Effect(IntEnum):
    """The effect of running an operation a second time, from none to the worst.

    ``is_read`` is True if a second run does no harm; everything else is a change. A read is repeated after it was sent,
    hedged, looked up on other backends, and sent to read-only backends. ``leaves_state`` is True if the operation may
    leave a change or other state on the server that runs it. Both are attributes, since every request needs them.
    """

    is_read: bool
    leaves_state: bool

    READ = 0  # none
    TOUCH = 1  # harmless: a flag is set again, a lease is extended
    CONSUME = 2  # a quota or randomness is used up, or a second log line written
    STATEFUL = 3  # the operation depends on state of one server, which may have given its answer already
    MUTATE = 4  # a second key is made, or the operation fails because it succeeded the first time


for _effect in Effect:
    _effect.is_read = _effect <= Effect.TOUCH
    _effect.leaves_state = _effect >= Effect.STATEFUL


#: The effect of each operation (1.4 section 4, 2.1 section 6). Operations that are not listed mutate.
EFFECTS: Final[dict[int, Effect]] = {
    Operation.LOCATE: Effect.READ,
    Operation.CHECK: Effect.READ,
    Operation.GET: Effect.TOUCH,
    Operation.GET_ATTRIBUTES: Effect.READ,
    Operation.GET_ATTRIBUTE_LIST: Effect.READ,
    Operation.OBTAIN_LEASE: Effect.TOUCH,
    Operation.VALIDATE: Effect.READ,
    Operation.QUERY: Effect.READ,
    Operation.CANCEL: Effect.STATEFUL,
    Operation.POLL: Effect.STATEFUL,
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
    Operation.LOGIN: Effect.STATEFUL,
    Operation.LOGOUT: Effect.STATEFUL,
    Operation.DELEGATED_LOGIN: Effect.STATEFUL,
    Operation.PKCS_11: Effect.STATEFUL,
    Operation.GET_CONSTRAINTS: Effect.READ,
    Operation.QUERY_ASYNCHRONOUS_REQUESTS: Effect.STATEFUL,
    Operation.PROCESS: Effect.STATEFUL,
    Operation.PING: Effect.READ,
}

#: Cryptographic operations that may be one part of a multi-part operation, whose state one server holds (1.4 section
#: 4.29 and following).
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

_BY_PAYLOAD: Final = STREAMING | {Operation.LOCATE}
_LOCATE: Final = int(Operation.LOCATE)  # to look up a member of an enumeration is slow
_WORST: Final = Effect.MUTATE

_STRICTEST_READ: Final = max(effect for effect in Effect if effect.is_read)

#: The strictest effect that may be repeated after an attempt that failed at this stage. In CONNECT nothing was sent.
REPEATABLE: Final[dict[Stage, Effect]] = {
    Stage.CONNECT: Effect.MUTATE,
    Stage.SEND: _STRICTEST_READ,
    Stage.WAIT: _STRICTEST_READ,
    Stage.READ: _STRICTEST_READ,
}


def effect_of(request: Request) -> Effect:
    """Return the effect of a request: that of its strictest item, since a batch is never split."""
    items = request.items
    if len(items) == 1 and items[0].operation not in _BY_PAYLOAD:
        return EFFECTS.get(items[0].operation, _WORST)
    return max(_effect_of_item(item) for item in items)


def may_repeat(effect: Effect, stage: Stage) -> bool:
    """Return True if a request of this effect may be tried again after an attempt that failed at this stage."""
    return effect <= REPEATABLE[stage]


def _effect_of_item(item: RequestItem) -> Effect:
    operation = item.operation
    effect = EFFECTS.get(operation, _WORST)
    if operation in _BY_PAYLOAD:
        try:
            return max(effect, _effect_of_payload(item))
        except ProtocolError:  # an unreadable payload may ask for anything
            return Effect.MUTATE
    return effect


_NOT_FRESH: Final = (None, ObjectGroupMember.GROUP_MEMBER_DEFAULT)


def _effect_of_payload(item: RequestItem) -> Effect:
    if item.operation == Operation.LOCATE:
        # "If a Fresh object is asked for and there is none, the server may make one" (1.4 section 4.9)
        return Effect.READ if item.object_group_member in _NOT_FRESH else Effect.MUTATE
    is_part = item.correlation_value is not None or item.init_indicator or item.final_indicator
    return Effect.STATEFUL if is_part else Effect.READ


#: Operations whose result does not depend on existing objects (1.4 sections 4.1 to 4.3).
_MAKING: Final = frozenset({Operation.CREATE, Operation.CREATE_KEY_PAIR, Operation.REGISTER})


def makes_only_new(request: Request) -> bool:
    """Return True if a request only makes new objects, so that any backend may run it."""
    return all(item.operation in _MAKING for item in request.items)


def may_be_given_values(request: Request) -> bool:
    """Return True if the answer may hold a correlation value or ticket, which only the server that issued it knows."""
    return request.asynchronous_indicator is not AsynchronousIndicator.PROHIBITED or any(
        item.operation not in _KNOWN or _effect_of_item(item) is Effect.STATEFUL for item in request.items
    )


_KNOWN: Final = frozenset(Operation)

#: Reasons that a key manager gives for an object that it does not have: in 1.x, and since 2.0.
MISSING: Final = frozenset({ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND})

#: Reasons that a key manager gives only for an object that it has (1.4 section 11, 2.1 section 11.48).
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
    """Return how many operations found their object, and how many failed but showed that the object exists.

    An operation that did not fail has found its object, except a Locate without a match. Of two answers, the one with
    the greater tuple found more.
    """
    found = sum(1 for item in response.items if item.status != ResultStatus.OPERATION_FAILED and not _is_empty(item))
    return found, sum(1 for item in response.items if item.reason in KNOWN)


def has_changed_nothing(request: Request, response: Response) -> bool:
    """Return True if every change in a request failed because an object is missing, so that none of them has run.

    The whole request may then be sent to another backend.
    """
    reads = {item.operation for item in request.items if _effect_of_item(item).is_read}
    reads -= {item.operation for item in request.items if not _effect_of_item(item).is_read}
    return all(
        item.reason in MISSING if item.status == ResultStatus.OPERATION_FAILED else item.operation in reads
        for item in response.items
    )


def tells_of_a_change(response: Response) -> bool:
    """Return True if the answer to a Poll, or to another stateful request, may be that of a change which has run."""
    return any(
        item.status == ResultStatus.SUCCESS
        and (item.operation in ASKING or EFFECTS.get(item.operation, _WORST) > Effect.STATEFUL)
        for item in response.items
    )


def destroyed(request: Request, response: Response) -> list[bytes]:
    """Return the identifiers of the objects that a request has destroyed, as far as the request names them."""
    if len(request.items) != len(response.items):
        return []
    return [
        identifier
        for asked, item in zip(request.items, response.items, strict=True)
        if asked.operation == item.operation == Operation.DESTROY and item.status == ResultStatus.SUCCESS
        for identifier in _identifiers(asked)
    ]


def names_only(identifiers: frozenset[bytes], message: Request | Response) -> bool:
    """Return True if the payloads name at least one of these objects, and no other object."""
    named = {identifier for item in message.items for identifier in _identifiers(item)}
    return bool(named) and named <= identifiers


def is_missing_something(response: Response) -> bool:
    """Return True if the answer reports an object as missing, or is a Locate without a match.

    Another key manager may have the object: this one may not have it yet.
    """
    return any(item.reason in MISSING for item in _failed(response)) or any(
        item.operation == _LOCATE and _is_empty(item) for item in response.items
    )


#: Failures that are the key manager's own, not the request's (1.4 section 11, 2.1 section 11.48): its HSM or its
#: database is down. Cryptographic Failure may also mean a wrong tag, so that two key managers must be asked.
SERVER_ERRORS: Final = frozenset(
    {ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR, ResultReason.CRYPTOGRAPHIC_FAILURE}
)


def is_server_error(response: Response) -> bool:
    """Return True if an operation failed for a reason that may be the key manager's own."""
    return any(item.reason in SERVER_ERRORS for item in _failed(response))


def has_failed(response: Response) -> bool:
    """Return True if an operation failed, for whatever reason."""
    return bool(_failed(response))


def _failed(response: Response) -> list[ResponseItem]:
    return [item for item in response.unsuccessful if item.status == ResultStatus.OPERATION_FAILED]


def _identifiers(item: RequestItem | ResponseItem) -> list[bytes]:
    try:
        return item.unique_identifiers
    except ProtocolError:  # an unreadable payload names no object
        return []


def _is_empty(item: ResponseItem) -> bool:
    """Return True if this is a Locate without a match.

    With Maximum Items or Offset, a Locate may give only the number of matches (Located Items).
    """
    if item.operation != Operation.LOCATE or item.status != ResultStatus.SUCCESS:
        return False
    try:
        return not item.has_unique_identifier and not item.located_items
    except ProtocolError:  # an unreadable payload may hold matches
        return False


class Refusal(Enum):
    """Reason for which the gateway itself answers with an error. The value is the label in metrics and log lines."""

    INVALID_MESSAGE = "invalid_message"
    TOO_LARGE = "too_large"
    NOT_AUTHENTICATED = "not_authenticated"
    NOT_SUPPORTED = "not_supported"
    NOT_PERMITTED = "not_permitted"
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
    CLIENT_CREDENTIAL = "client_credential"
    NOT_MINTED = "not_minted"
    AUDIT_UNAVAILABLE = "audit_unavailable"


#: The Result Reasons of each refusal: in 1.x, and since 2.0.
REASONS: Final[dict[Refusal, tuple[ResultReason, ResultReason]]] = {
    Refusal.INVALID_MESSAGE: (ResultReason.INVALID_MESSAGE, ResultReason.CODEC_ERROR),
    Refusal.TOO_LARGE: (ResultReason.INVALID_MESSAGE, ResultReason.SERVER_LIMIT_EXCEEDED),
    Refusal.NOT_AUTHENTICATED: (
        ResultReason.AUTHENTICATION_NOT_SUCCESSFUL,
        ResultReason.AUTHENTICATION_NOT_SUCCESSFUL,
    ),
    Refusal.NOT_SUPPORTED: (ResultReason.OPERATION_NOT_SUPPORTED, ResultReason.OPERATION_NOT_SUPPORTED),
    Refusal.NOT_PERMITTED: (ResultReason.PERMISSION_DENIED, ResultReason.PERMISSION_DENIED),
    Refusal.NO_BACKEND: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
    Refusal.DEADLINE: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
    Refusal.OVERLOADED: (ResultReason.GENERAL_FAILURE, ResultReason.SERVER_LIMIT_EXCEEDED),
    Refusal.BACKEND_FAILED: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
    Refusal.OUTCOME_UNKNOWN: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
    Refusal.CLIENT_DISCONNECTED: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
    Refusal.RESPONSE_TOO_LARGE: (ResultReason.RESPONSE_TOO_LARGE, ResultReason.RESPONSE_TOO_LARGE),
    # 1.4 section 11 has this reason for a Poll with an unknown value; no object is meant
    Refusal.UNKNOWN_ASYNCHRONOUS_VALUE: (
        ResultReason.ITEM_NOT_FOUND,
        ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE,
    ),
    Refusal.UNKNOWN_CORRELATION_VALUE: (ResultReason.INVALID_FIELD, ResultReason.INVALID_CORRELATION_VALUE),
    Refusal.UNKNOWN_TICKET: (ResultReason.AUTHENTICATION_NOT_SUCCESSFUL, ResultReason.INVALID_TICKET),
    Refusal.SEVERAL_BACKENDS: (ResultReason.FEATURE_NOT_SUPPORTED, ResultReason.FEATURE_NOT_SUPPORTED),
    Refusal.CLIENT_CREDENTIAL: (
        ResultReason.AUTHENTICATION_NOT_SUCCESSFUL,
        ResultReason.AUTHENTICATION_NOT_SUCCESSFUL,
    ),
    Refusal.NOT_MINTED: (ResultReason.AUTHENTICATION_NOT_SUCCESSFUL, ResultReason.AUTHENTICATION_NOT_SUCCESSFUL),
    Refusal.AUDIT_UNAVAILABLE: (ResultReason.GENERAL_FAILURE, ResultReason.INTERNAL_SERVER_ERROR),
}

#: Refusals by the policy of an identity (see ``permissions``), before anything is sent to a key manager.
POLICY_REFUSALS: Final = frozenset({Refusal.NOT_SUPPORTED, Refusal.NOT_PERMITTED})


def refuse(refusal: Refusal, message: str, request: Request | None, *, version: Version | None = None) -> bytes:
    """Return the frame of the gateway's own answer: every item failed, for this reason, with this Result Message.

    ``request`` is None if it could not be decoded; ``version`` is then its protocol version, if that could be read.
    """
    known = request.version if request is not None else version
    reason = REASONS[refusal][known is not None and known >= (2, 0)]
    return compose.failure(request, reason, message, version=known or FALLBACK_VERSION)
