"""Operations that ask about a deferred one: Poll and Cancel."""

from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.compose import Result
from gateway.kmip.spec import Operation, ResultStatus, Tag
from kmip_lab.keymanager.call import Call, Done, required
from kmip_lab.keymanager.deferred import Deferred, Progress
from kmip_lab.keymanager.numbers import CancellationResult

_CANCELLATIONS: Final = {
    Progress.WAITING: CancellationResult.UNABLE_TO_CANCEL,
    Progress.UNDER_WAY: CancellationResult.UNABLE_TO_CANCEL,
    Progress.CANCELED: CancellationResult.CANCELED,
}


def poll(call: Call) -> Done:
    """Poll (1.4 section 4.28): still pending, or the answer that the operation itself would have had, once."""
    value, deferred = _asked(call)
    if deferred.result is None:
        pending = Result(ResultStatus.OPERATION_PENDING, Operation.POLL, asynchronous_correlation_value=value)
        return Done(b"", result=pending)
    call.local.deferred.drop(value)
    return Done(b"", result=deferred.result)


def cancel(call: Call) -> Done:
    """Cancel (1.4 section 4.27): what has not begun is canceled, and a Poll is told so; the rest is too late."""
    value, deferred = _asked(call)
    deferred.cancel()
    if deferred.progress is Progress.DONE:
        succeeded = deferred.result is not None and deferred.result.status == ResultStatus.SUCCESS
        outcome = CancellationResult.COMPLETED if succeeded else CancellationResult.FAILED
    else:
        outcome = _CANCELLATIONS[deferred.progress]
    correlation = ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, value)
    return Done(correlation + ttlv.enumeration(Tag.CANCELLATION_RESULT, outcome))


def _asked(call: Call) -> tuple[bytes, Deferred]:
    value = call.payload.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE)
    value = required(value, "Asynchronous Correlation Value")
    return value, call.local.deferred.find(value, call.owner)
