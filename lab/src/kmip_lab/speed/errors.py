"""The errors of a measurement, by kind: kinds are counted and shown."""

import errno
from typing import Final

from OpenSSL import SSL

from gateway.config import Address
from gateway.errors import GatewayError

REFUSED: Final = "refused: "  # begins the kinds of refusals by the server; the Result Reason follows


class OperationError(GatewayError):
    """An operation that did not succeed. Errors are counted by ``kind``; the text says what happened."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind

    @property
    def refused(self) -> bool:
        """True if the server answered with a failure: the session can be used again."""
        return self.kind.startswith(REFUSED)

    def hinted(self, hint: str) -> "OperationError":
        """Return the same error with a hint behind its text."""
        return OperationError(self.kind, f"{self}, {hint}")


def operation_error(error: SSL.Error, what: str, address: Address) -> OperationError:
    """Convert an error of OpenSSL; ``what`` names the step that failed, such as "handshake"."""
    if isinstance(error, SSL.WantReadError | SSL.WantWriteError):
        return OperationError("no answer in time", f"{what} with {address}: the server did not answer in time")
    if isinstance(error, SSL.ZeroReturnError) or (isinstance(error, SSL.SysCallError) and error.args[0] == -1):
        words = "closed by the server"
    elif isinstance(error, SSL.SysCallError):
        words = errno.errorcode.get(error.args[0], str(error.args[1]))
    else:
        reasons = [entry[-1] for entry in error.args[0]] if error.args else []
        words = "; ".join(filter(None, reasons)) or "closed by the server"
    return OperationError(f"{what}: {words}", f"{what} with {address}: {words}")
