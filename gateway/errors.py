"""The few errors that cross a room's door.

An error says where and how far: what it was about, and at which stage it happened. It is translated into these once, at
the boundary where it arises, and caught where someone can act.
"""

import errno
from enum import IntEnum
from typing import Final

#: What the operating system says where this process, or its machine, has no more descriptors or memory.
OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class GatewayError(Exception):
    """Root of every error of this package."""


class ProtocolError(GatewayError):
    """Bytes that are not KMIP, or that break a limit.

    ``version`` is the protocol version of the message, as (major, minor), where it could still be read: an answer then
    carries it.
    """

    def __init__(self, message: str, *, version: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.version = version


class MessageTooLargeError(ProtocolError):
    """A message over a limit of this side: its declared length, or the number of its fields."""


class BuffersFullError(ProtocolError):
    """A message that is fine, but the gateway holds too many bytes of messages just now."""


class TlsError(GatewayError):
    """A handshake or a record failed. ``reason`` is one short word of a closed set, fit for a metric's label."""

    def __init__(self, message: str, *, reason: str = "tls") -> None:
        super().__init__(message)
        self.reason = reason


class StreamClosedError(GatewayError):
    """The peer is gone: it closed, reset, or never took what was sent.

    ``nothing_sent`` is set where not a byte of what was to be sent was accepted.
    """

    def __init__(self, message: str, *, nothing_sent: bool = False) -> None:
        super().__init__(message)
        self.nothing_sent = nothing_sent


class StreamInterruptedError(GatewayError):
    """This side has stopped waiting for the peer. The stream is as it was, so that the wait may go on."""


class Stage(IntEnum):
    """How far an attempt at a backend came, in order.

    The stages decide what may be repeated: in CONNECT nothing of the request was sent; from SEND on the backend may
    have executed it.
    """

    CONNECT = 0
    SEND = 1
    WAIT = 2
    READ = 3


class BackendError(GatewayError):
    """An attempt at a backend failed, at ``stage``; ``reason`` is a short word of a closed set, fit for a label."""

    def __init__(self, message: str, *, backend: str, stage: Stage, reason: str) -> None:
        super().__init__(message)
        self.backend = backend
        self.stage = stage
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.backend}: {super().__str__()} ({self.stage.name.lower()}: {self.reason})"


class PoolBusyError(GatewayError):
    """No session could be lent in time, or the queue is full. Nothing was sent."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(GatewayError):
    """Everything that is wrong with a configuration, one line a mistake: file, key, what, and what to do."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes
