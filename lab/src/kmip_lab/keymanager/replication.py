"""Replication: one key manager of a cluster, as a master that sends changes and as a replica that stores them.

For the laboratory only: the key managers of a cluster, in one process or several, share a directory. Its file
roles.json has their roles. Each key manager keeps its objects in NAME.sqlite, and receives changes, unprotected, on the
Unix socket NAME.socket.

A replica first says which changes it has. Each master then sends the changes that the replica lacks, also those of
masters that are down, and after them its own changes in the order in which they were made. Changes that a killed master
had not sent are missing at the other key managers until it is a master again.
"""

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from kmip_lab.keymanager.replication_sender import Lines, Sender, decode_change, encode_last_numbers
from kmip_lab.keymanager.roles import (
    Access,
    Link,
    Member,
    Role,
    Roles,
    read_roles,
    roles_file,
    roles_file_state,
    socket_path,
)
from kmip_lab.keymanager.store import Store

_RELOAD_INTERVAL: Final = 0.05  # seconds between checks of the roles' file


class Replication:
    """The replication of one key manager in the cluster of ``directory``. Pass it to a KeyManager, which runs it.

    ``store`` is by default the file NAME.sqlite in the directory. ``on_error`` is called with a message if the roles'
    file can't be read later. Raises OSError, ValueError and sqlite3.Error.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        store: Store | None = None,
        on_error: Callable[[str], object] | None = None,
    ) -> None:
        self.name = name
        self.directory = directory
        self.store = Store(directory / f"{name}.sqlite", logged_as=name) if store is None else store
        if self.store.log is None:
            raise ValueError(f"{self.store!r} keeps no log of its changes")
        self._log = self.store.log
        self._log.on_change = self._on_change
        self._on_error = on_error or _ignore
        #: Waits while the fault "freeze" stops this key manager.
        self.thawed: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self._file_state: tuple[int, int, int] | None = None
        self._roles: Roles = {}
        self._roles_changed = trio.Event()
        self._senders: list[Sender] = []
        self.reload(strict=True)

    def __repr__(self) -> str:
        return f"<Replication {self.name}: {self.role.value}, {self._senders}>"

    @property
    def member(self) -> Member:
        """The entry of this key manager in roles.json."""
        return self._roles[self.name]

    @property
    def role(self) -> Role:
        """The role of this key manager in roles.json, as last read."""
        return self.member.role

    def access(self) -> Access:
        """Reload the roles, and return which operations this key manager executes."""
        self.reload()
        if self.role is Role.MASTER:
            return Access.FULL
        return Access.READ_ONLY if self.member.serves_reads else Access.INFORMATION_ONLY

    def reload(self, *, strict: bool = False) -> None:
        """Read the roles if the file has changed.

        If it can't be read, the roles stay, and ``on_error`` is called once; with ``strict``, raises ValueError.
        """
        state = roles_file_state(self.directory)
        if state == self._file_state and not strict:
            return
        self._file_state = state
        try:
            roles = read_roles(self.directory, self.name)
        except (OSError, ValueError) as error:
            if strict:
                raise ValueError(f"{roles_file(self.directory)}: {error}") from None
            self._on_error(f"{roles_file(self.directory)}: {error}; the roles stay as they were")
            return
        if self._roles.get(self.name) != roles[self.name] or self._roles.keys() != roles.keys():
            self._roles_changed.set()
            self._roles_changed = trio.Event()
        for sender in self._senders:
            # This replica may lack changes of a master that is down: they are sent on connection. Synchronous links are
            # not reconnected: meanwhile, writes would not wait for the replica.
            if not sender.link.synchronous:
                sender.reconnect()
        self._roles = roles

    @property
    def in_step(self) -> tuple[str, ...]:
        """The replicas that have all changes of this key manager, except changes that are being sent now.

        A synchronous replica that is in step has every change whose request was answered.
        """
        return tuple(sender.name for sender in self._senders if sender.in_step)

    async def synchronize(self) -> None:
        """Wait until the synchronous replicas that are in sync have all changes, or their timeouts have passed."""
        last = self._log.last
        for sender in self._senders:
            if sender.link.synchronous:
                await sender.wait_for(last)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Replicate until cancelled. Raises OSError if the Unix socket can't be opened."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen)
            nursery.start_soon(self._watch_roles)
            task_status.started()
            while True:
                changed = self._roles_changed
                async with trio.open_nursery() as senders:
                    if self.role is Role.MASTER:
                        self._start_senders(senders)
                    await changed.wait()
                    self._senders.clear()
                    senders.cancel_scope.cancel()

    def _start_senders(self, nursery: trio.Nursery) -> None:
        for replica in self._roles:
            if replica != self.name:
                link, path = self.member.links.get(replica, Link()), socket_path(self.directory, replica)
                sender = Sender(replica, self._log, link, path, self.thawed)
                self._senders.append(sender)
                nursery.start_soon(sender.run)

    async def _watch_roles(self) -> None:
        while True:
            self.reload()
            await trio.sleep(_RELOAD_INTERVAL)

    def _on_change(self) -> None:
        for sender in self._senders:
            sender.on_change()

    # As a replica -----------------------------------------------------------------------------------------------------

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        path = socket_path(self.directory, self.name)
        path.unlink(missing_ok=True)  # left by a killed process
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.bind(str(path))
        sock.listen()
        task_status.started()
        await trio.serve_listeners(self._receive_changes, [trio.SocketListener(sock)])

    async def _receive_changes(self, stream: trio.SocketStream) -> None:
        """Store and acknowledge one master's changes, until it disconnects."""
        with suppress(trio.BrokenResourceError):
            await self.thawed()
            await stream.send_all(encode_last_numbers(self._log.last_numbers()))
            lines = Lines(stream)
            while changes := [decode_change(line) for line in await lines.receive()]:
                await self.thawed()
                self.store.apply(changes)
                await stream.send_all(encode_last_numbers({change.origin: change.number for change in changes}))


def _ignore(_message: str) -> None:
    pass
