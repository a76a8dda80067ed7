"""State of one key manager: values by handle, and the progress of a deferred operation."""

import pytest
from kmip_lab.keymanager.protocol import OperationFailed
from kmip_lab.keymanager.server_state import DeferredOperation, OwnedValues, Progress

from gateway.kmip.compose import Result
from gateway.kmip.spec import Operation, ResultReason, ResultStatus


def test_a_value_is_found_by_its_owner_only() -> None:
    values = OwnedValues[str](ResultReason.INVALID_TICKET, "not valid")
    handle = values.add("alice", "value")
    assert values.find(handle, "alice") == "value"
    for unknown, owner in ((handle, "bob"), (b"unknown", "alice")):
        with pytest.raises(OperationFailed, match="not valid") as failure:
            values.find(unknown, owner)
        assert failure.value.reason == ResultReason.INVALID_TICKET
    values.drop(handle)
    values.drop(handle)
    with pytest.raises(OperationFailed):
        values.find(handle, "alice")


def test_handles_are_random_unless_given() -> None:
    values = OwnedValues[int](ResultReason.INVALID_TICKET, "not valid")
    assert len({values.add("alice", number) for number in range(100)}) == 100
    assert values.add("alice", 1, b"handle") == b"handle"


def test_a_deferred_operation_is_started_and_finished() -> None:
    deferred = DeferredOperation(Operation.CREATE)
    assert deferred.start()
    deferred.cancel()
    assert (deferred.progress, deferred.result) == (Progress.UNDER_WAY, None)
    result = Result(ResultStatus.SUCCESS, Operation.CREATE)
    deferred.finish(result)
    assert (deferred.progress, deferred.result) == (Progress.DONE, result)


def test_a_canceled_operation_can_not_be_started() -> None:
    deferred = DeferredOperation(Operation.CREATE)
    deferred.cancel()
    assert not deferred.start()
    assert deferred.progress is Progress.CANCELED
    assert deferred.result is not None
    assert deferred.result.reason == ResultReason.OPERATION_CANCELED_BY_REQUESTER
