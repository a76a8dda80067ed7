"""Asynchronous operations: answered with Operation Pending, executed later.

All of this is the key manager's own: no other one knows a correlation value that it has given.
"""

import secrets
from enum import Enum, auto

from gateway.kmip.compose import Result
from gateway.kmip.spec import ResultReason, ResultStatus
from gateway.lab.keymanager.refusals import Refusal


class Progress(Enum):
    """How far a deferred operation has come."""

    WAITING = auto()
    UNDER_WAY = auto()
    DONE = auto()
    CANCELED = auto()


class Deferred:
    """One operation that is executed later; ``result`` is there once it is done or canceled."""

    def __init__(self, owner: str, operation: int) -> None:
        self.owner = owner
        self.operation = operation
        self.progress = Progress.WAITING
        self.result: Result | None = None

    def __repr__(self) -> str:
        return f"<Deferred {self.operation} of {self.owner}: {self.progress.name.lower()}>"

    def start(self) -> bool:
        """Begin to execute it; False where it was canceled."""
        if self.progress is Progress.WAITING:
            self.progress = Progress.UNDER_WAY
        return self.progress is Progress.UNDER_WAY

    def finish(self, result: Result) -> None:
        """It is executed, with this result."""
        self.progress = Progress.DONE
        self.result = result

    def cancel(self) -> None:
        """Give it up, if it has not begun."""
        if self.progress is Progress.WAITING:
            self.progress = Progress.CANCELED
            reason = ResultReason.OPERATION_CANCELED_BY_REQUESTER
            self.result = Result(ResultStatus.OPERATION_FAILED, self.operation, reason=reason, message="canceled")


class Deferrals:
    """The deferred operations of one key manager, by correlation value, until their results have been given out."""

    def __init__(self) -> None:
        self._deferred: dict[bytes, Deferred] = {}

    def __repr__(self) -> str:
        return f"<Deferrals: {len(self._deferred)}>"

    def add(self, deferred: Deferred) -> bytes:
        """Keep one; returns its correlation value, which can't be guessed."""
        value = secrets.token_bytes(16)
        self._deferred[value] = deferred
        return value

    def find(self, value: bytes, owner: str) -> Deferred:
        """The owner's with this correlation value. Raises Refusal: what another owns does not exist."""
        found = self._deferred.get(value)
        if found is None or found.owner != owner:
            reason = ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE
            raise Refusal(reason, "no asynchronous operation has this correlation value here")
        return found

    def drop(self, value: bytes) -> None:
        """Forget one: its result has been given out."""
        del self._deferred[value]
