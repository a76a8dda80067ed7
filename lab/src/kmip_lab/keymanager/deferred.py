"""One asynchronous operation: answered with Operation Pending, executed later."""

from enum import Enum, auto

from gateway.kmip.compose import Result
from gateway.kmip.spec import ResultReason, ResultStatus


class Progress(Enum):
    """How far a deferred operation has come."""

    WAITING = auto()
    UNDER_WAY = auto()
    DONE = auto()
    CANCELED = auto()


class Deferred:
    """One operation that is executed later; ``result`` is there once it is done or canceled."""

    def __init__(self, operation: int) -> None:
        self.operation = operation
        self.progress = Progress.WAITING
        self.result: Result | None = None

    def __repr__(self) -> str:
        return f"<Deferred {self.operation}: {self.progress.name.lower()}>"

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
