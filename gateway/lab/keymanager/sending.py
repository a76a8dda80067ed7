"""A master's side of one link: it sends changes to one replica, and knows how far the replica has come."""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from gateway.lab.keymanager.changes import Change, ChangeLog
from gateway.lab.keymanager.roles import Link
from gateway.lab.keymanager.wire import Lines, decode_have, encode_change

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
        #: Whether writes wait for this replica, where the link is synchronous.
        self.in_step = False
        self._log = log
        self._path = path
        self._thawed = thawed
        self._acknowledged = 0
        # Changes not yet acknowledged, and when they were made: those from before this link, long ago.
        self._made: deque[tuple[int, float]] = deque([(log.last, -math.inf)])
        self._more = trio.lowlevel.ParkingLot()
        self._moved = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        step = "in step" if self.in_step else "behind"
        return f"<Sender to {self.name}: {self._acknowledged} of {self._log.last}, {step}>"

    def written(self) -> None:
        """Changes were made here."""
        self._made.append((self._log.last, trio.current_time()))
        self._more.unpark_all()

    async def reach(self, number: int) -> None:
        """Wait until the replica has this change, if it is in step; for patience, after which it no longer is."""
        with trio.move_on_after(self.link.patience) as scope:
            while self.in_step and self._acknowledged < number:
                await self._moved.park()
        if scope.cancelled_caught:
            self._fall_behind()

    async def run(self) -> None:
        """Send until cancelled, through all that befalls the replica."""
        try:
            while True:
                with suppress(OSError):
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
            first = True
            async for line in Lines(stream):
                have = decode_have(line)
                self._acknowledge(have)
                if first:
                    both.start_soon(self._send, stream, have)
                    first = False
        both.cancel_scope.cancel()

    async def _send(self, stream: trio.SocketStream, have: dict[str, int]) -> None:
        """Send what the replica lacks of others' changes, and from then on each change of this master."""
        with suppress(trio.BrokenResourceError):  # the other task sees it, too
            for change in self._log.lacking(have):
                await self._send_one(stream, change)
            position = have.get(self._log.origin, 0)
            while True:
                changes = self._log.after(self._log.origin, position, _MOST)
                for change in changes:
                    await trio.sleep_until(self._due(change.number))
                    await self._send_one(stream, change)
                    position = change.number
                if not changes:
                    await self._more.park()

    async def _send_one(self, stream: trio.SocketStream, change: Change) -> None:
        await self._thawed()
        await stream.send_all(encode_change(change))

    def _due(self, number: int) -> float:
        """When a change is to be there."""
        return next((made + self.link.delay for last, made in self._made if last >= number), -math.inf)

    def _acknowledge(self, have: dict[str, int]) -> None:
        self._acknowledged = max(self._acknowledged, have.get(self._log.origin, 0))
        while self._made and self._made[0][0] <= self._acknowledged:
            self._made.popleft()
        oldest = self._made[0][1] if self._made else math.inf
        self.in_step = oldest > trio.current_time() - self.link.patience
        self._moved.unpark_all()

    def _fall_behind(self) -> None:
        self.in_step = False
        self._moved.unpark_all()
