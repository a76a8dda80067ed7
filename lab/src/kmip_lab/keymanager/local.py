"""What one key manager knows that no other one does: deferred operations, streams, tickets.

It is in memory only: it is not replicated, and gone with the process. That is what binds a client to this key manager.
"""

import secrets
from typing import Final, Generic, TypeVar

from gateway.kmip.spec import ResultReason
from kmip_lab.keymanager.ciphers import Stream
from kmip_lab.keymanager.deferred import Deferred
from kmip_lab.keymanager.refusals import Refusal

_T = TypeVar("_T")
_SIZE: Final = 16  # bytes of a value that nobody guesses


class Kept(Generic[_T]):
    """Things by a value that is given to their owner. ``reason`` and ``words`` are those of an unknown one."""

    def __init__(self, reason: ResultReason, words: str) -> None:
        self._reason = reason
        self._words = words
        self._things: dict[bytes, tuple[str, _T]] = {}

    def __repr__(self) -> str:
        return f"<Kept: {len(self._things)}>"

    def add(self, owner: str, thing: _T, value: bytes | None = None) -> bytes:
        """Keep one, by a new value or by the one that it had; returns it."""
        value = secrets.token_bytes(_SIZE) if value is None else value
        self._things[value] = (owner, thing)
        return value

    def find(self, value: bytes, owner: str) -> _T:
        """The owner's with this value. Raises Refusal: what another owns does not exist."""
        found = self._things.get(value)
        if found is None or found[0] != owner:
            raise Refusal(self._reason, self._words)
        return found[1]

    def drop(self, value: bytes) -> None:
        """Forget one, if it is still known."""
        self._things.pop(value, None)


class Local:
    """All that a key manager keeps in this way; of a ticket, that it is valid."""

    def __init__(self) -> None:
        self.deferred = Kept[Deferred](
            ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE,
            "no asynchronous operation has this correlation value here",
        )
        self.streams = Kept[Stream](ResultReason.INVALID_CORRELATION_VALUE, "no stream has this correlation value here")
        self.tickets = Kept[None](ResultReason.INVALID_TICKET, "this ticket is not valid here")

    def __repr__(self) -> str:
        return f"<Local: deferred {self.deferred}, streams {self.streams}, tickets {self.tickets}>"
