"""The sender of a replication link: it sends a master's changes to one replica, and knows which of them it has.

The two sides exchange lines of JSON. The replica first sends the number of its last change of each origin, then the
same after each batch of changes that it has stored: its acknowledgements. The master sends changes only.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Final

import trio

from kmip_lab.keymanager.replication_log import Change, ChangeLog
from kmip_lab.keymanager.roles import Link

_RECONNECT_INTERVAL: Final = 0.05  # seconds
_READ_LIMIT: Final = 100  # changes that are read from the log at a time
_MAX_LINE: Final = 8 << 20  # bytes


class Sender:
    """Sends the changes of a log to the replica ``name``, which listens on the Unix socket ``path``.

    The replica is *in sync* while writes on a synchronous link wait for its acknowledgement; it falls out of sync if it
    disconnects or takes longer than the link's timeout, and gets in sync again once it has caught up. ``thawed`` waits
    while the fault "freeze" stops this key manager.
    """

    def __init__(
        self, name: str, log: ChangeLog, link: Link, path: Path, thawed: Callable[[], Awaitable[None]]
    ) -> None:
        self.name = name
        self.link = link
        self._log = log
        self._path = path
        self._thawed = thawed
        self._is_in_sync = False
        self._last_unawaited = 0  # the number of the last change that was made while the replica was not in sync
        self._acknowledged = 0
        self._connection = trio.CancelScope()
        self._seen = log.last
        # When each unacknowledged change was made; changes from before this object was made are not in it.
        self._made_at: OrderedDict[int, float] = OrderedDict()
        self._new_changes = trio.lowlevel.ParkingLot()
        self._acknowledgements = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        step = "in step" if self.in_step else "behind"
        return f"<Sender to {self.name}: {self._acknowledged} of {self._log.last}, {step}>"

    @property
    def in_step(self) -> bool:
        """True if the replica is in sync, and has all changes that were made while it was not."""
        return self._is_in_sync and self._acknowledged >= self._last_unawaited

    def on_change(self) -> None:
        """Send the log's new changes. The replication calls it after each transaction with changes."""
        now = trio.current_time()
        self._made_at.update(dict.fromkeys(range(self._seen + 1, self._log.last + 1), now))
        self._seen = self._log.last
        self._new_changes.unpark_all()

    async def wait_for(self, number: int) -> None:
        """Wait until the replica has the change with this number, if it is in sync.

        After the link's timeout, the replica is out of sync and the wait ends.
        """
        with trio.move_on_after(self.link.timeout) as scope:
            while self._is_in_sync and self._acknowledged < number:
                await self._acknowledgements.park()
        if scope.cancelled_caught:
            self._lose_sync()

    def reconnect(self) -> None:
        """Connect again, which also sends the changes of other origins that the replica lacks by now."""
        self._connection.cancel()

    async def run(self) -> None:
        """Send until cancelled; connect again whenever the replica disconnects or is not there."""
        try:
            while True:
                with suppress(OSError), trio.CancelScope() as self._connection:
                    stream = await trio.open_unix_socket(self._path)
                    async with stream, trio.open_nursery() as nursery:
                        nursery.start_soon(self._serve_connection, stream, nursery)
                self._lose_sync()
                await trio.sleep(_RECONNECT_INTERVAL)
        finally:
            self._lose_sync()

    async def _serve_connection(self, stream: trio.SocketStream, nursery: trio.Nursery) -> None:
        """Start sending after the replica's first line, and read acknowledgements until it disconnects."""
        with suppress(trio.BrokenResourceError):
            lines, is_first = Lines(stream), True
            while received := await lines.receive():
                for last_numbers in map(decode_last_numbers, received):
                    self._acknowledge(last_numbers)
                    if is_first:
                        nursery.start_soon(self._send, stream, last_numbers)
                        is_first = False
        nursery.cancel_scope.cancel()

    async def _send(self, stream: trio.SocketStream, last_numbers: dict[str, int]) -> None:
        """Send the changes of other origins that the replica lacks, then each change of this master."""
        with suppress(trio.BrokenResourceError):  # _serve_connection ends for the same reason
            for change in self._log.missing(last_numbers):
                await self._send_all(stream, [change])
            position = last_numbers.get(self._log.origin, 0)
            while True:
                changes = self._log.after(self._log.origin, position, _READ_LIMIT)
                if not changes:
                    await self._new_changes.park()
                    continue
                await trio.sleep_until(self._due_at(changes[0].number))
                due = self._due(changes)
                await self._send_all(stream, due)
                position = due[-1].number

    def _due(self, changes: Sequence[Change]) -> list[Change]:
        now = trio.current_time()
        return list(takewhile(lambda change: self._due_at(change.number) <= now, changes))

    async def _send_all(self, stream: trio.SocketStream, changes: Sequence[Change]) -> None:
        await self._thawed()
        await stream.send_all(b"".join(map(encode_change, changes)))

    def _due_at(self, number: int) -> float:
        """Return the time at which a change is to arrive: the link's delay after it was made."""
        return self._made_at.get(number, -math.inf) + self.link.delay

    def _acknowledge(self, last_numbers: dict[str, int]) -> None:
        """Record the replica's last change.

        The replica is in sync if it has all changes, or if its next change was made less than the timeout ago.
        """
        self._acknowledged = max(self._acknowledged, last_numbers.get(self._log.origin, 0))
        while self._made_at and next(iter(self._made_at)) <= self._acknowledged:
            self._made_at.popitem(last=False)
        waiting_since = self._made_at.get(self._acknowledged + 1, -math.inf)
        has_all = self._acknowledged >= self._log.last
        was_in_sync = self._is_in_sync
        self._is_in_sync = has_all or waiting_since > trio.current_time() - self.link.timeout
        if self._is_in_sync and not was_in_sync:
            self._last_unawaited = self._log.last
        self._acknowledgements.unpark_all()

    def _lose_sync(self) -> None:
        self._is_in_sync = False
        self._acknowledgements.unpark_all()


# The lines of a link --------------------------------------------------------------------------------------------------


class Lines:
    """The lines of a stream; an unfinished line at its end is dropped."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._bytes = b""

    async def receive(self) -> list[bytes]:
        """Wait for at least one line and return all received lines; none at the end, or if a line is too long.

        Raises trio.BrokenResourceError.
        """
        while len(self._bytes) < _MAX_LINE:
            data = await self._stream.receive_some()
            if not data:
                break
            *lines, self._bytes = (self._bytes + data).split(b"\n")
            if lines:
                return lines
        return []


def encode_change(change: Change) -> bytes:
    """Return a change as a line."""
    return json.dumps(change).encode() + b"\n"


def decode_change(line: bytes) -> Change:
    """Return the change of a line. Raises ValueError for malformed JSON."""
    return Change(*json.loads(line))


def encode_last_numbers(last_numbers: dict[str, int]) -> bytes:
    """Return the numbers of a replica's last changes, by origin, as a line."""
    return json.dumps(last_numbers).encode() + b"\n"


def decode_last_numbers(line: bytes) -> dict[str, int]:
    """Return the numbers of a line, by origin. Raises ValueError for malformed JSON."""
    last_numbers: dict[str, int] = json.loads(line)
    return last_numbers
