"""Long work in steps of about a millisecond, between which other tasks run."""

import json
from collections.abc import Iterator
from typing import Any, Final

import trio

STEP: Final = 0.001  # s
_DEPTH: Final = 3  # levels of a value whose members are encoded one by one
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


class Steps:
    """The steps of one piece of work. The objects that the work reads may change between two steps."""

    def __init__(self) -> None:
        self._since = trio.current_time()

    async def turn(self) -> None:
        """Let other tasks run if the present step has taken STEP seconds."""
        if trio.current_time() - self._since >= STEP:
            await trio.lowlevel.checkpoint()
            self._since = trio.current_time()


async def encoded(value: Any) -> bytes:
    """Return a value as JSON, encoded in steps. The keys of its objects are strings."""
    steps = Steps()
    parts: list[str] = []
    for part in _parts(value, _DEPTH):
        parts.append(part)
        await steps.turn()
    return "".join(parts).encode()


def _parts(value: Any, depth: int) -> Iterator[str]:
    if depth and value and isinstance(value, dict):
        before = "{"
        for key, member in value.items():
            yield f"{before}{_ENCODER.encode(key)}:"
            yield from _parts(member, depth - 1)
            before = ","
        yield "}"
    elif depth and value and isinstance(value, list):
        before = "["
        for member in value:
            yield before
            yield from _parts(member, depth - 1)
            before = ","
        yield "]"
    else:
        yield _ENCODER.encode(value)
