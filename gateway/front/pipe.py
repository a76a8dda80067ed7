"""One end of the Unix socket pair between a TLS worker and the core: messages in order, in both directions."""

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from gateway.front.channel import HEAD, Kind, Message, MessageReader
from gateway.log import Log

_SENT_AT_ONCE: Final = 64 * 1024  # bytes of messages that are collected before they are sent
_MOST_PARTS: Final = 512  # of one sendmsg; the kernel's limit is 1,024
_READ_AT_ONCE: Final = 256 * 1024  # bytes
_BUFFER: Final = 1 << 20  # bytes that the kernel holds in each direction
_HIGH_WATER: Final = 1 << 20  # bytes that wait here, because the other process is busy, before senders should wait


class Pipe(trio.abc.Instrument):
    """Sends messages without waiting, and gives each message that arrives to a handler.

    While ``run`` runs, the messages of one round of the event loop are sent together before the loop waits: one system
    call, and the other process wakes once. Bytes that the kernel does not take are held, and sent by a task. A sender
    of much asks ``is_full`` first, and waits with ``wait_for_room``.
    """

    def __init__(self, sock: socket.socket, log: Log) -> None:
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._socket = sock
        self._reader = MessageReader()
        self._log = log
        self._parts: list[bytes] = []  # heads and payloads of this round
        self._size = 0  # bytes of these
        self._token: trio.lowlevel.TrioToken | None = None  # while ``run`` runs
        self._held = bytearray()
        self._has_held = trio.Event()
        self._has_room = trio.lowlevel.ParkingLot()
        self.is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else f"{len(self._held)} bytes held"
        return f"<Pipe, {state}>"

    @property
    def held(self) -> int:
        """The bytes that wait for the other process to read."""
        return len(self._held) + self._size

    @property
    def is_full(self) -> bool:
        """True if a sender should wait: the other process does not keep up."""
        return len(self._held) + self._size > _HIGH_WATER

    def send(self, kind: Kind, connection: int = 0, payload: bytes = b"") -> None:
        """Send a message, or hold it. After the pipe has closed, do nothing."""
        if self.is_closed:
            return
        self._parts.append(HEAD.pack(kind, connection, len(payload)))
        self._size += HEAD.size + len(payload)
        if payload:
            self._parts.append(payload)
        if self._token is None or self._size > _SENT_AT_ONCE or len(self._parts) >= _MOST_PARTS:
            self._flush(self._has_held.set, self.close)

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's interface
        """Send the messages of this round: the event loop is about to wait.

        trio calls this without a current task, so that tasks must be woken through its token.
        """
        token = self._token
        if self._parts and token is not None:
            self._flush(lambda: token.run_sync_soon(self._has_held.set), lambda: token.run_sync_soon(self.close))

    def _flush(self, on_held: Callable[[], None], on_broken: Callable[[], None]) -> None:
        """Send what the kernel takes, and hold the rest."""
        parts, size, sent = self._parts, self._size, 0
        self._parts, self._size = [], 0
        if not self._held:
            try:
                sent = self._socket.sendmsg(parts)
            except BlockingIOError:
                pass
            except OSError:
                on_broken()
                return
            if sent == size:
                return
        self._held += b"".join(parts)[sent:]
        on_held()

    async def wait_for_room(self) -> None:
        """Wait until the pipe is not full, or has closed."""
        while self.is_full and not self.is_closed:
            await self._has_room.park()

    async def run(self, handle: Callable[[Message], None]) -> None:
        """Read and write until either process closes its end; give ``handle`` each message."""
        if self.is_closed:
            return
        descriptor = self._socket.fileno()
        self._token = trio.lowlevel.current_trio_token()
        trio.lowlevel.add_instrument(self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, descriptor)
                with suppress(trio.ClosedResourceError):
                    while not self.is_closed:
                        await trio.lowlevel.wait_readable(descriptor)
                        self._read(handle)
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.remove_instrument(self)
            self._token = None
            self._flush_last()

    def _read(self, handle: Callable[[Message], None]) -> None:
        """Read what has arrived, and give each message to the handler. Closes the pipe at its end."""
        try:
            data = self._socket.recv(_READ_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        for message in self._reader.feed(data):
            try:
                handle(message)
            except Exception as error:  # noqa: BLE001 - a bug that affects one client must not end the gateway
                self._log.error("internal error: a message between processes was lost; report this bug", exc_info=error)

    async def _write(self, descriptor: int) -> None:
        while not self.is_closed:
            await self._has_held.wait()
            if self.is_closed:
                return
            with suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_writable(descriptor)
            if self.is_closed:
                return
            try:
                sent = self._socket.send(memoryview(self._held)[:_READ_AT_ONCE])
            except BlockingIOError:
                continue
            except OSError:
                self.close()
                return
            del self._held[:sent]
            if not self._held:
                self._has_held = trio.Event()
            if not self.is_full:
                self._has_room.unpark_all()

    def close(self) -> None:
        """Close this end; the tasks of ``run`` and of waiting senders end. To be called from the same event loop."""
        self._flush_last()
        self.is_closed = True
        self._held.clear()
        if self._socket.fileno() >= 0:
            if self._token is not None:
                trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        self._has_room.unpark_all()

    def _flush_last(self) -> None:
        """Send the messages of this round, as far as the kernel takes them at once."""
        if self._parts and not self.is_closed:
            self._flush(self._has_held.set, lambda: None)
