"""Operations on the key manager itself: Discover Versions, Query, Poll, Cancel, Login, Logout."""

from collections.abc import Iterable
from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.compose import Result
from gateway.kmip.messages import Version
from gateway.kmip.spec import ItemType, Operation, ResultStatus, Tag
from kmip_lab.keymanager.context import OperationContext, Success, required
from kmip_lab.keymanager.crypto import OBJECT_TAGS
from kmip_lab.keymanager.protocol import CancellationResult, QueryFunction, TicketType
from kmip_lab.keymanager.server_state import DeferredOperation, Progress

#: The supported protocol versions, the preferred one first.
VERSIONS: Final[tuple[Version, ...]] = ((2, 1), (2, 0), (1, 4), (1, 3), (1, 2), (1, 1), (1, 0))

#: Cluster Info, in the Server Information of 2.1; for 1.x clients the item is a vendor extension.
_CLUSTER_INFO: Final = 0x420134

VENDOR: Final = "kmip-gateway simulated key manager: not for production"

# Server information ---------------------------------------------------------------------------------------------------


def discover_versions(context: OperationContext) -> Success:
    """Discover Versions (1.4 section 4.26): the versions of both sides, or all if the client names none."""
    asked = [
        (node.integer(Tag.PROTOCOL_VERSION_MAJOR), node.integer(Tag.PROTOCOL_VERSION_MINOR))
        for node in context.payload.find_all(Tag.PROTOCOL_VERSION)
    ]
    common = [version for version in VERSIONS if not asked or version in asked]
    return Success(b"".join(_encode_version(version) for version in common))


def query(context: OperationContext, operations: Iterable[int]) -> Success:
    """Query (1.4 section 4.25): operations, objects and server information; further functions are ignored.

    Cluster Info has the role and, on a master that replicates, the replicas that are in step.
    """
    asked = {node.as_number() for node in context.payload.find_all(Tag.QUERY_FUNCTION)}
    parts: list[bytes] = []
    if QueryFunction.QUERY_OPERATIONS in asked:
        parts += [ttlv.enumeration(Tag.OPERATION, operation) for operation in operations]
    if QueryFunction.QUERY_OBJECTS in asked:
        parts += [ttlv.enumeration(Tag.OBJECT_TYPE, object_type) for object_type in OBJECT_TAGS]
    if QueryFunction.QUERY_SERVER_INFORMATION in asked:
        parts.append(ttlv.text(Tag.VENDOR_IDENTIFICATION, VENDOR))
        role = "standby" if context.standby else "master"
        replicas = f";InStep={','.join(context.in_step)}" if context.in_step else ""
        name, cluster = (
            ttlv.text(Tag.SERVER_NAME, context.server),
            ttlv.text(_CLUSTER_INFO, f"ServerType={role}{replicas}"),
        )
        parts.append(ttlv.structure(Tag.SERVER_INFORMATION, name, cluster))
    return Success(b"".join(parts))


def _encode_version(version: Version) -> bytes:
    major, minor = version
    return ttlv.structure(
        Tag.PROTOCOL_VERSION,
        ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, major),
        ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, minor),
    )


# Asynchronous operations ----------------------------------------------------------------------------------------------

_CANCELLATION_RESULTS: Final = {
    Progress.WAITING: CancellationResult.UNABLE_TO_CANCEL,
    Progress.UNDER_WAY: CancellationResult.UNABLE_TO_CANCEL,
    Progress.CANCELED: CancellationResult.CANCELED,
}


def poll(context: OperationContext) -> Success:
    """Poll (1.4 section 4.28): Operation Pending until the operation is done, then its result, once."""
    value, deferred = _deferred_operation(context)
    if deferred.result is None:
        pending = Result(ResultStatus.OPERATION_PENDING, Operation.POLL, asynchronous_correlation_value=value)
        return Success(b"", result=pending)
    context.state.deferred.drop(value)
    return Success(b"", result=deferred.result)


def cancel(context: OperationContext) -> Success:
    """Cancel (1.4 section 4.27): cancel an operation that has not started; Poll then returns this result."""
    value, deferred = _deferred_operation(context)
    deferred.cancel()
    if deferred.progress is Progress.DONE:
        succeeded = deferred.result is not None and deferred.result.status == ResultStatus.SUCCESS
        outcome = CancellationResult.COMPLETED if succeeded else CancellationResult.FAILED
    else:
        outcome = _CANCELLATION_RESULTS[deferred.progress]
    correlation = ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, value)
    return Success(correlation + ttlv.enumeration(Tag.CANCELLATION_RESULT, outcome))


def _deferred_operation(context: OperationContext) -> tuple[bytes, DeferredOperation]:
    value = context.payload.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE)
    value = required(value, "Asynchronous Correlation Value")
    return value, context.state.deferred.find(value, context.owner)


# Tickets, since 2.0 ---------------------------------------------------------------------------------------------------


def login(context: OperationContext) -> Success:
    """Login: return a ticket that its owner may show at this key manager until Logout.

    The ticket gives no right that the client's certificate does not give.
    """
    value = context.state.tickets.add(context.owner, None)
    ticket = ttlv.enumeration(Tag.TICKET_TYPE, TicketType.LOGIN), ttlv.octets(Tag.TICKET_VALUE, value)
    return Success(ttlv.structure(Tag.TICKET, *ticket))


def logout(context: OperationContext) -> Success:
    """Logout: invalidate the ticket."""
    ticket = required(context.payload.structure(Tag.TICKET), "Ticket")
    required(ticket.number(Tag.TICKET_TYPE, ItemType.ENUMERATION), "Ticket Type")
    value = required(ticket.octets(Tag.TICKET_VALUE), "Ticket Value")
    context.state.tickets.find(value, context.owner)
    context.state.tickets.drop(value)
    return Success(b"")
