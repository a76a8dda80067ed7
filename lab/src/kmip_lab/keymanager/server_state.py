"""State that only one key manager has: deferred operations, encryption streams and tickets.

It is kept in memory: it is not replicated, and is lost when the process ends. For this reason a client must send later
requests about it to the same key manager.
"""

import secrets
from enum import Enum, auto
from typing import Final, Generic, TypeVar

from gateway.kmip.compose import Result
from gateway.kmip.spec import ResultReason, ResultStatus
from kmip_lab.keymanager.crypto import CipherStream
from kmip_lab.keymanager.protocol import OperationFailed

_T = TypeVar("_T")
_HANDLE_SIZE: Final = 16  # bytes of a correlation value or ticket; random, so that clients cannot guess it


class OwnedValues(Generic[_T]):
    """Values of clients, by a random handle that is given to their owner.

    ``reason`` and ``message`` are those of the failure if a handle is unknown.
    """

    def __init__(self, reason: ResultReason, message: str) -> None:
        self._reason = reason
        self._message = message
        self._values: dict[bytes, tuple[str, _T]] = {}

    def __repr__(self) -> str:
        return f"<OwnedValues: {len(self._values)}>"

    def add(self, owner: str, value: _T, handle: bytes | None = None) -> bytes:
        """Keep a value under ``handle``, or under a new random handle; return the handle."""
        handle = secrets.token_bytes(_HANDLE_SIZE) if handle is None else handle
        self._values[handle] = (owner, value)
        return handle

    def find(self, handle: bytes, owner: str) -> _T:
        """Return the value. Raises OperationFailed if the handle is unknown or belongs to a different owner."""
        found = self._values.get(handle)
        if found is None or found[0] != owner:
            raise OperationFailed(self._reason, self._message)
        return found[1]

    def drop(self, handle: bytes) -> None:
        """Forget a value; an unknown handle is ignored."""
        self._values.pop(handle, None)


class Progress(Enum):
    """The progress of a deferred operation."""

    WAITING = auto()
    UNDER_WAY = auto()
    DONE = auto()
    CANCELED = auto()


class DeferredOperation:
    """An operation that was answered with Operation Pending and is executed later.

    ``result`` is set once the operation is done or canceled.
    """

    def __init__(self, operation: int) -> None:
        self.operation = operation
        self.progress = Progress.WAITING
        self.result: Result | None = None

    def __repr__(self) -> str:
        return f"<DeferredOperation {self.operation}: {self.progress.name.lower()}>"

    def start(self) -> bool:
        """Mark the operation as under way; return False if it was canceled."""
        if self.progress is Progress.WAITING:
            self.progress = Progress.UNDER_WAY
        return self.progress is Progress.UNDER_WAY

    def finish(self, result: Result) -> None:
        """Set the result of the executed operation."""
        self.progress = Progress.DONE
        self.result = result

    def cancel(self) -> None:
        """Cancel the operation, if it has not started."""
        if self.progress is Progress.WAITING:
            self.progress = Progress.CANCELED
            reason = ResultReason.OPERATION_CANCELED_BY_REQUESTER
            self.result = Result(ResultStatus.OPERATION_FAILED, self.operation, reason=reason, message="canceled")


class ServerState:
    """The state of one key manager: operations by correlation value, streams by correlation value, valid tickets."""

    def __init__(self) -> None:
        self.deferred = OwnedValues[DeferredOperation](
            ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE,
            "this key manager knows no asynchronous operation with this correlation value",
        )
        self.streams = OwnedValues[CipherStream](
            ResultReason.INVALID_CORRELATION_VALUE, "this key manager knows no stream with this correlation value"
        )
        self.tickets = OwnedValues[None](ResultReason.INVALID_TICKET, "this ticket is not valid at this key manager")

    def __repr__(self) -> str:
        return f"<ServerState: deferred {self.deferred}, streams {self.streams}, tickets {self.tickets}>"
