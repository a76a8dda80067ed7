"""What goes wrong in a measurement, by kind: kinds are counted and shown."""

import errno
from typing import Final

from OpenSSL import SSL

from gateway.config import Address
from gateway.errors import GatewayError

REFUSED: Final = "refused: "  # what kinds begin with where the server said no; its Result Reason follows


class TroubleError(GatewayError):
    """An operation that did not succeed. ``kind`` is what such errors are counted by; the text is in plain words."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind

    @property
    def refused(self) -> bool:
        """Whether the server answered, and said no: the session is as good as before."""
        return self.kind.startswith(REFUSED)

    def hinted(self, hint: str) -> "TroubleError":
        """The same, with more words."""
        return TroubleError(self.kind, f"{self}, {hint}")


def trouble_of(error: SSL.Error, what: str, address: Address) -> TroubleError:
    """What OpenSSL raised, by kind; ``what`` was being done with the server there is in it."""
    if isinstance(error, SSL.WantReadError | SSL.WantWriteError):
        return TroubleError("no answer in time", f"{what} with {address}: the server did not answer in time")
    if isinstance(error, SSL.ZeroReturnError) or (isinstance(error, SSL.SysCallError) and error.args[0] == -1):
        words = "closed by the server"
    elif isinstance(error, SSL.SysCallError):
        words = errno.errorcode.get(error.args[0], str(error.args[1]))
    else:
        reasons = [entry[-1] for entry in error.args[0]] if error.args else []
        words = "; ".join(filter(None, reasons)) or "closed by the server"
    return TroubleError(f"{what}: {words}", f"{what} with {address}: {words}")
