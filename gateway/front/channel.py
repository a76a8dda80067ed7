"""The messages between a TLS worker and the core, over a Unix socket pair (docs/architecture.md, "TLS workers").

A message is a head of nine bytes (its kind, 1; the number of a client connection, 4; a length, 4), and so many bytes.
The worker numbers its connections from 1 on and uses no number twice; a message about a connection that has ended
meanwhile is ignored. Number 0 is the worker's own.
"""

import json
import struct
from enum import IntEnum
from typing import Any, Final, NamedTuple

from gateway.errors import (
    BuffersFullError,
    ClientAbandonedError,
    GatewayError,
    MessageTooLargeError,
    ProtocolError,
    StreamClosedError,
    TlsError,
    TruncatedError,
)

HEAD: Final = struct.Struct(">BII")
_HEAD_SIZE: Final = HEAD.size
_unpack_head = HEAD.unpack_from
#: Of Opening: seconds, if resumed, the lengths of listener, peer, version and certificate, the number of issuers.
_FACTS: Final = struct.Struct(">d?HHHIB")
_LENGTH: Final = struct.Struct(">I")


class Kind(IntEnum):
    """The kinds of messages, the worker's first."""

    # From the worker to the core.
    OPENED = 1  # a client has shaken hands: Opening
    FRAME = 2  # one whole request; the worker reads no further until it is answered
    FAILED = 3  # nothing more can be read: an error, as ``encode_error`` writes it
    ENDED = 4  # the client has closed between two requests, and so has the worker
    LEFT = 5  # the client has closed or reset the connection while its request is under way
    BEGUN = 6  # the beginning of a request has arrived, and the rest has not
    COUNTED = 7  # of the worker itself: what it has counted since it last told, as JSON
    AUDIT = 8  # of the worker itself: an event for the audit trail, as JSON: its name and its members
    # From the core to the worker.
    ANSWER = 17
    CLOSE = 18  # end the connection; the payload: see ``WorkerLink.aclose``
    ACCEPT = 19  # of the worker itself: accept new clients from now on
    REFUSE = 20  # of the worker itself: refuse new connections until ACCEPT
    CLOSE_IF_IDLE = 25  # end the connection, and send ENDED, if no request has arrived; else after that request
    CUT = 24  # close the connection at once, also if an answer is not sent whole
    LOG = 22  # of the worker itself: the level of its log, as text
    DRAIN = 21  # of the worker itself: take no new clients; the core closes each connection when it is due
    RETIRE = 23  # of the worker itself: a successor accepts from now on; end after the last client has left


class Message(NamedTuple):
    """One message; ``payload`` is a copy."""

    kind: int
    connection: int
    payload: bytes


class Opening(NamedTuple):
    """A client whose handshake has succeeded. Certificates are in DER; times are in seconds.

    ``issuers`` are the CA certificates above the client's, the root last; none of a resumed session.
    """

    listener: str
    peer: str  # HOST:PORT
    version: str  # of TLS, as ``TLSv1.3``
    resumed: bool
    seconds: float  # that the handshake took
    certificate: bytes
    issuers: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Return the payload of OPENED."""
        listener, peer, version = (text.encode() for text in (self.listener, self.peer, self.version))
        lengths = len(listener), len(peer), len(version), len(self.certificate), len(self.issuers)
        facts = _FACTS.pack(self.seconds, self.resumed, *lengths)
        issuers = b"".join([_LENGTH.pack(len(issuer)) + issuer for issuer in self.issuers])
        return b"".join([facts, listener, peer, version, self.certificate, issuers])

    @classmethod
    def decode(cls, payload: bytes) -> "Opening":
        """Read what ``encode`` wrote."""
        seconds, resumed, listener, peer, version, certificate, issuers = _FACTS.unpack_from(payload)
        peer += (listener := listener + _FACTS.size)
        certificate += (version := version + peer)
        found: list[bytes] = []
        position = certificate
        for _ in range(issuers):
            (length,) = _LENGTH.unpack_from(payload, position)
            position += _LENGTH.size + length
            found.append(payload[position - length : position])
        return cls(
            payload[_FACTS.size : listener].decode(),
            payload[listener:peer].decode(),
            payload[peer:version].decode(),
            resumed,
            seconds,
            payload[version:certificate],
            tuple(found),
        )


def encode(kind: Kind, connection: int = 0, payload: bytes = b"") -> bytes:
    """Return a message. For a long payload, send HEAD and payload apart rather than copy it."""
    return HEAD.pack(kind, connection, len(payload)) + payload


class MessageReader:
    """Takes bytes in any chunks, and gives whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = HEAD.size  # bytes that must be held for the next message, as far as is known

    def __len__(self) -> int:
        """Bytes that are held: the beginning of one message."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Message]:
        """Take a chunk; return the messages that are whole with it."""
        held = len(self._buffer)
        if held:
            self._buffer += data
            if held + len(data) < self._wanted:
                return []
            data = bytes(self._buffer)
            self._buffer = bytearray()
        messages = []
        position, size = 0, len(data)
        while size - position >= _HEAD_SIZE:
            kind, connection, length = _unpack_head(data, position)
            end = position + _HEAD_SIZE + length
            if end > size:
                self._wanted = end - position
                break
            messages.append(Message(kind, connection, data[position + _HEAD_SIZE : end]))
            position = end
        else:
            self._wanted = _HEAD_SIZE
        if position < size:
            self._buffer += data[position:]
        return messages


#: The errors with which reading from a client may end; each keeps its class on the way to the core.
_ERRORS: Final[dict[str, type[GatewayError]]] = {
    "protocol": ProtocolError,
    "truncated": TruncatedError,
    "too_large": MessageTooLargeError,
    "buffers": BuffersFullError,
    "closed": StreamClosedError,
    "tls": TlsError,
    "timeout": ClientAbandonedError,
}
_NAMES: Final = {error: name for name, error in _ERRORS.items()}


def encode_error(error: GatewayError) -> bytes:
    """Return the payload of FAILED; ``error`` is of a class that ``decode_error`` knows, or of a subclass."""
    name = next(_NAMES[kind] for kind in type(error).__mro__ if kind in _NAMES)
    extra: Any = None
    if isinstance(error, ProtocolError):
        extra = error.version
    elif isinstance(error, TlsError):
        extra = error.reason
    return json.dumps([name, str(error), extra]).encode()


def decode_error(payload: bytes) -> GatewayError:
    """Return the error that the worker met."""
    name, text, extra = json.loads(payload)
    error = _ERRORS[name]
    if issubclass(error, ProtocolError):
        return error(text, version=None if extra is None else (extra[0], extra[1]))
    if issubclass(error, TlsError):
        return error(text, reason=extra)
    return error(text)
