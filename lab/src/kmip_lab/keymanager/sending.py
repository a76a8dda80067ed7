"""A master's side of one link: it sends changes to one replica, and knows how far the replica has come."""

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Final

import trio

from kmip_lab.keymanager.changes import Change, ChangeLog
from kmip_lab.keymanager.roles import Link
from kmip_lab.keymanager.wire import Lines, decode_have, encode_change

_AGAIN: Final = 0.05  # s before a replica that is not there is tried again
_MOST: Final = 100  # changes that are read from the log at a time


class Sender:
    """Sends the changes of a log to the replica of this name, which takes them at a Unix socket.

    ``thawed`` waits out whatever keeps this key manager from moving.
    """

    def __init__(
        self, name: str, log: ChangeLog, link: Link, path: Path, thawed: Callable[[], Awaitable[None]]
    ) -> None:
        self.name = name
        self.link = link
        self._log = log
        self._path = path
        self._thawed = thawed
        self._is_awaited = False  # by writes, where the link is synchronous
        self._alone_up_to = 0  # the last change for which nobody waited
        self._acknowledged = 0
        self._connection = trio.CancelScope()
        self._seen = log.last
        # When changes were made that are not yet acknowledged: those from before this link are not here.
        self._made: OrderedDict[int, float] = OrderedDict()
        self._more = trio.lowlevel.ParkingLot()
        self._moved = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        step = "in step" if self.in_step else "behind"
        return f"<Sender to {self.name}: {self._acknowledged} of {self._log.last}, {step}>"

    @property
    def in_step(self) -> bool:
        """Whether the replica is awaited, and has all that was written when it was not."""
        return self._is_awaited and self._acknowledged >= self._alone_up_to

    def written(self) -> None:
        """Changes were made here."""
        now = trio.current_time()
        self._made.update(dict.fromkeys(range(self._seen + 1, self._log.last + 1), now))
        self._seen = self._log.last
        self._more.unpark_all()

    async def reach(self, number: int) -> None:
        """Wait until the replica has this change, if it is awaited; for patience, after which it no longer is."""
        with trio.move_on_after(self.link.patience) as scope:
            while self._is_awaited and self._acknowledged < number:
                await self._moved.park()
        if scope.cancelled_caught:
            self._fall_behind()

    def begin_anew(self) -> None:
        """Connect again, and so send what the replica lacks by now of others' changes."""
        self._connection.cancel()

    async def run(self) -> None:
        """Send until cancelled, through all that befalls the replica."""
        try:
            while True:
                with suppress(OSError), trio.CancelScope() as self._connection:
                    stream = await trio.open_unix_socket(self._path)
                    async with stream, trio.open_nursery() as both:
                        both.start_soon(self._converse, stream, both)
                self._fall_behind()
                await trio.sleep(_AGAIN)
        finally:
            self._fall_behind()

    async def _converse(self, stream: trio.SocketStream, both: trio.Nursery) -> None:
        """Send and be acknowledged, until the replica leaves."""
        with suppress(trio.BrokenResourceError):
            lines, is_first = Lines(stream), True
            while received := await lines.receive():
                for have in map(decode_have, received):
                    self._acknowledge(have)
                    if is_first:
                        both.start_soon(self._send, stream, have)
                        is_first = False
        both.cancel_scope.cancel()

    async def _send(self, stream: trio.SocketStream, have: dict[str, int]) -> None:
        """Send what the replica lacks of others' changes, and from then on each change of this master."""
        with suppress(trio.BrokenResourceError):  # the other task sees it, too
            for change in self._log.lacking(have):
                await self._send_all(stream, [change])
            position = have.get(self._log.origin, 0)
            while True:
                changes = self._log.after(self._log.origin, position, _MOST)
                if not changes:
                    await self._more.park()
                    continue
                await trio.sleep_until(self._due(changes[0].number))
                due = self._those_due(changes)
                await self._send_all(stream, due)
                position = due[-1].number

    def _those_due(self, changes: Sequence[Change]) -> list[Change]:
        now = trio.current_time()
        return list(takewhile(lambda change: self._due(change.number) <= now, changes))

    async def _send_all(self, stream: trio.SocketStream, changes: Sequence[Change]) -> None:
        await self._thawed()
        await stream.send_all(b"".join(map(encode_change, changes)))

    def _due(self, number: int) -> float:
        """When a change is to be there."""
        return self._made.get(number, -math.inf) + self.link.delay

    def _acknowledge(self, have: dict[str, int]) -> None:
        self._acknowledged = max(self._acknowledged, have.get(self._log.origin, 0))
        while self._made and next(iter(self._made)) <= self._acknowledged:
            self._made.popitem(last=False)
        waiting_since = self._made.get(self._acknowledged + 1, -math.inf)
        has_all = self._acknowledged >= self._log.last
        was_awaited = self._is_awaited
        self._is_awaited = has_all or waiting_since > trio.current_time() - self.link.patience
        if self._is_awaited and not was_awaited:
            self._alone_up_to = self._log.last
        self._moved.unpark_all()

    def _fall_behind(self) -> None:
        self._is_awaited = False
        self._moved.unpark_all()
