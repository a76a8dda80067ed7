"""What key managers say to each other when they replicate: lines of JSON over a stream."""

import json
from typing import Final

import trio

from gateway.lab.keymanager.changes import Change

_MAX_LINE: Final = 8 << 20  # bytes


class Lines:
    """The lines of a stream, up to its end; half a line at the end is none. Raises trio.BrokenResourceError."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._bytes = bytearray()

    def __aiter__(self) -> "Lines":
        return self

    async def __anext__(self) -> bytes:
        while (end := self._bytes.find(b"\n")) < 0:
            data = await self._stream.receive_some()
            if not data or len(self._bytes) > _MAX_LINE:
                raise StopAsyncIteration
            self._bytes += data
        line = bytes(self._bytes[:end])
        del self._bytes[: end + 1]
        return line


def encode_change(change: Change) -> bytes:
    """A change, as a line."""
    return json.dumps(change).encode() + b"\n"


def decode_change(line: bytes) -> Change:
    """A change, of a line."""
    return Change(*json.loads(line))


def encode_have(have: dict[str, int]) -> bytes:
    """The last change that a replica has of some origins, as a line."""
    return json.dumps(have).encode() + b"\n"


def decode_have(line: bytes) -> dict[str, int]:
    """The last change that a replica has of some origins, of a line."""
    have: dict[str, int] = json.loads(line)
    return have
