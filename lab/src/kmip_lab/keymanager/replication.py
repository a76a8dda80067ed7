"""Replication: one key manager's part in a cluster, as a master that sends and as a replica that takes.

For the laboratory: the key managers of a cluster, of one process or of several, meet in a directory. roles.json there
has the roles. Each keeps its objects in NAME.sqlite, and takes changes, unprotected, on the Unix socket NAME.socket.

A replica first says what it has, is sent what it lacks, of masters that are gone, too, and from then on every change of
this master, in the order in which they were made. What a master that is killed has not yet sent is lost to the others
until it is master again.
"""

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from kmip_lab.keymanager.operations import Standing
from kmip_lab.keymanager.roles import Link, Member, Role, Roles, read_roles, roles_file, roles_state, socket_path
from kmip_lab.keymanager.sending import Sender
from kmip_lab.keymanager.store import Store
from kmip_lab.keymanager.wire import Lines, decode_change, encode_have

_LOOK: Final = 0.05  # s between two looks at the roles


class Replication:
    """One key manager's part in the cluster of a directory: hand it to a KeyManager, which runs it.

    ``store`` is by default the file of the cluster's directory. Raises OSError, ValueError and sqlite3.Error.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        store: Store | None = None,
        complain: Callable[[str], object] | None = None,
    ) -> None:
        self.name = name
        self.directory = directory
        self.store = Store(directory / f"{name}.sqlite", logged_as=name) if store is None else store
        if self.store.log is None:
            raise ValueError(f"{self.store!r} keeps no log of its changes")
        self._log = self.store.log
        self._log.announce = self._written
        self._complain = complain or _keep_quiet
        #: Waits out whatever keeps this key manager from moving.
        self.thawed: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self._seen: tuple[int, int, int] | None = None
        self._roles: Roles = {}
        self._changed = trio.Event()
        self._senders: list[Sender] = []
        self.look(strict=True)

    def __repr__(self) -> str:
        return f"<Replication {self.name}: {self.role.value}, {self._senders}>"

    @property
    def member(self) -> Member:
        """What the roles say of this key manager."""
        return self._roles[self.name]

    @property
    def role(self) -> Role:
        """This key manager's role."""
        return self.member.role

    def standing(self) -> Standing:
        """What this key manager serves, by the roles as they are written now."""
        self.look()
        if self.role is Role.MASTER:
            return Standing.MASTER
        return Standing.READING_STANDBY if self.member.serves_reads else Standing.STANDBY

    def look(self, *, strict: bool = False) -> None:
        """Take over the roles if they have changed. What can't be read is complained of once, and changes nothing."""
        seen = roles_state(self.directory)
        if seen == self._seen and not strict:
            return
        self._seen = seen
        try:
            roles = read_roles(self.directory, self.name)
        except (OSError, ValueError) as error:
            if strict:
                raise ValueError(f"{roles_file(self.directory)}: {error}") from None
            self._complain(f"{roles_file(self.directory)}: {error}; the roles stay as they were")
            return
        if self._roles.get(self.name) != roles[self.name] or self._roles.keys() != roles.keys():
            self._changed.set()
            self._changed = trio.Event()
        for sender in self._senders:
            # Of a master that is gone, one may have what another lacks. For this, no synchronous partner is left alone.
            if not sender.link.synchronous:
                sender.begin_anew()
        self._roles = roles

    @property
    def in_step(self) -> tuple[str, ...]:
        """The replicas that have all that was written here, but for what is under way just now.

        A synchronous one that is in step has all that was answered.
        """
        return tuple(sender.name for sender in self._senders if sender.in_step)

    async def synchronize(self) -> None:
        """Wait until the synchronous replicas have all that was written here, or until patience with them is over."""
        last = self._log.last
        for sender in self._senders:
            if sender.link.synchronous:
                await sender.reach(last)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Replicate until cancelled. Raises OSError where the socket can't be had."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen)
            nursery.start_soon(self._watch)
            task_status.started()
            while True:
                changed = self._changed
                async with trio.open_nursery() as sending:
                    if self.role is Role.MASTER:
                        self._send_to_all(sending)
                    await changed.wait()
                    self._senders.clear()
                    sending.cancel_scope.cancel()

    def _send_to_all(self, sending: trio.Nursery) -> None:
        for other in self._roles:
            if other != self.name:
                link, path = self.member.links.get(other, Link()), socket_path(self.directory, other)
                sender = Sender(other, self._log, link, path, self.thawed)
                self._senders.append(sender)
                sending.start_soon(sender.run)

    async def _watch(self) -> None:
        while True:
            self.look()
            await trio.sleep(_LOOK)

    def _written(self) -> None:
        for sender in self._senders:
            sender.written()

    # As a replica ---------------------------------------------------------------------------------------------------

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        path = socket_path(self.directory, self.name)
        path.unlink(missing_ok=True)  # of a process that was killed
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.bind(str(path))
        sock.listen()
        task_status.started()
        await trio.serve_listeners(self._take_all, [trio.SocketListener(sock)])

    async def _take_all(self, stream: trio.SocketStream) -> None:
        """Take one master's changes, until it leaves."""
        with suppress(trio.BrokenResourceError):
            await self.thawed()
            await stream.send_all(encode_have(self._log.have()))
            lines = Lines(stream)
            while changes := [decode_change(line) for line in await lines.receive()]:
                await self.thawed()
                self.store.take(changes)
                await stream.send_all(encode_have({change.origin: change.number for change in changes}))


def _keep_quiet(_words: str) -> None:
    pass
