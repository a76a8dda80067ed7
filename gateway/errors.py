"""The errors that cross the boundary between two packages of the gateway.

An error says which peer it is about and at which stage it happened. An error of a library is translated once, when
it arises, and caught by the code that can act on it.
"""

import errno
from enum import IntEnum
from typing import Final

#: Error numbers of the operating system when this process, or the machine, is out of descriptors or memory.
OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class GatewayError(Exception):
    """The base class of every error of the gateway."""


class ProtocolError(GatewayError):
    """Bytes that are not KMIP, or that break a limit.

    ``version`` is the message's protocol version, as (major, minor), for the answer; None if it could not be read.
    """

    def __init__(self, message: str, *, version: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.version = version


class MessageTooLargeError(ProtocolError):
    """A message exceeds a limit of the gateway: its declared length, or the number of its fields."""


class TruncatedError(ProtocolError):
    """The client has closed the connection in the middle of a request."""


class BuffersFullError(ProtocolError):
    """The message is well-formed, but the gateway already holds as many bytes of messages as it may (max_buffered)."""


class TlsError(GatewayError):
    """A TLS handshake or record failed. ``reason`` is a short word of a closed set, fit for a metric's label."""

    def __init__(self, message: str, *, reason: str = "tls") -> None:
        super().__init__(message)
        self.reason = reason


class StreamClosedError(GatewayError):
    """The peer closed or reset the connection, or did not take in time what was sent.

    ``nothing_sent`` is True if the kernel accepted not one byte of the message.
    """

    def __init__(self, message: str, *, nothing_sent: bool = False) -> None:
        super().__init__(message)
        self.nothing_sent = nothing_sent


class StreamInterruptedError(GatewayError):
    """The gateway stopped waiting for the peer. The stream is unchanged, so that the wait may go on."""


class Stage(IntEnum):
    """How far an attempt at a backend came, in order.

    The stage decides if the request may be repeated: in CONNECT no byte of it was sent; from SEND on, the backend may
    have executed it.
    """

    CONNECT = 0
    SEND = 1
    WAIT = 2
    READ = 3


class BackendError(GatewayError):
    """An attempt at a backend failed at ``stage``; ``reason`` is a short word of a closed set, fit for a label.

    ``cause`` is the reason of the TlsError, if the attempt failed in TLS; there are more of these than labels.
    """

    def __init__(self, message: str, *, backend: str, stage: Stage, reason: str, cause: str = "") -> None:
        super().__init__(message)
        self.backend = backend
        self.stage = stage
        self.reason = reason
        self.cause = cause or reason

    def __str__(self) -> str:
        return f"{self.backend}: {super().__str__()} ({self.stage.name.lower()}: {self.reason})"


class PoolBusyError(GatewayError):
    """The pool lent no session in time, or its queue is full. No byte of the request was sent."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(GatewayError):
    """All mistakes of a configuration, a line each: file, key, what is wrong, and what to do.

    ``log_format`` is that of the configuration, as far as it could be read.
    """

    def __init__(self, mistakes: list[str], log_format: str = "text") -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes
        self.log_format = log_format


class MintingError(GatewayError):
    """No certificate may be minted for a client; the message, for the operator, says why."""


class AuditError(GatewayError):
    """The audit trail can't be written; the message is the reason."""


class ControlError(GatewayError):
    """A control command that can't be done; the message is for the operator."""


class DecodeError(GatewayError):
    """Bytes that ``kmip-gateway decode`` can't read; the message says at which byte, and why."""


class ClientAbandonedError(GatewayError):
    """A client does not send or read in time, or no memory is left for its bytes; the message is the reason's label."""
