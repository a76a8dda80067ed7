"""What key managers say to each other when they replicate: lines of JSON over a stream, many at once."""

import json
from typing import Final

import trio

from kmip_lab.keymanager.changes import Change

_MAX_LINE: Final = 8 << 20  # bytes


class Lines:
    """The lines of a stream; half a line at its end is none."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._bytes = b""

    async def receive(self) -> list[bytes]:
        """All lines that have come, at least one; none at the end. Raises trio.BrokenResourceError."""
        while len(self._bytes) < _MAX_LINE:
            data = await self._stream.receive_some()
            if not data:
                break
            *lines, self._bytes = (self._bytes + data).split(b"\n")
            if lines:
                return lines
        return []


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
