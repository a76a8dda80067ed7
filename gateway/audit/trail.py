"""Trail: the audit trail of a gateway, as the event loop sees it: lines are sealed and queued here.

A line gets its number and hash when it is queued, and the writer loses none that was queued. If the queue is full, a
record gets no number: it is counted as lost, and a line ``lost`` with the count follows as soon as there is room.
"""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import trio

from gateway.audit.chain import Chain, field_of
from gateway.audit.lines import members
from gateway.audit.refused import RefusedConnections
from gateway.audit.sinks import FileSink, Sink, StreamSink, SyslogSink, Tail
from gateway.audit.writer import Order, Writer
from gateway.config import AuditConfig
from gateway.errors import AuditError, ConfigError
from gateway.log import Log

_STDOUT: Final = 1
_TICK: Final = 1.0  # s between two looks at the writer, and between two sums of refused connections
_COMMIT: Final = 5.0  # s for a record to get to the disk, before a change is refused
_LAST_WRITE: Final = 5.0  # s for the last lines to be written at the end
_REMIND: Final = 60.0  # s between two log lines about a trail that can't be written


class Trail:
    """The audit trail. ``key`` makes the chain one of HMACs.

    ``open`` must be called first, and ``close`` last; ``run`` is a task of the time between. ``writes_all`` is False if
    reads get no line. ``refuses`` is True if a request must not be served without its line.
    """

    def __init__(self, settings: AuditConfig, key: bytes | None, log: Log, *, version: str = "") -> None:
        self.settings = settings
        self.lost = 0  # records, since the start
        self.refused = RefusedConnections(self.add_event)
        self._version = version
        self._log = log
        self._key = key
        self._chain = Chain(key)
        self._unannounced = 0  # of those lost
        self._size = 0  # bytes of the file in use, with those that are queued
        self._second, self._second_text = 0, ""
        self._writer: Writer | None = None  # while open
        #: Waiting until ``synced`` of the writer has reached a count, or ``errors`` is no longer the other.
        self._waiting: dict[trio.Event, tuple[int, int]] = {}
        self._token: trio.lowlevel.TrioToken | None = None
        self._was_failing: float | None = None  # when that was logged last
        self._errors = 0  # that were seen
        self._order_error: str | None = None  # that was logged
        self.settings_changed()

    def __repr__(self) -> str:
        return f"<Trail to {self.settings.to}, {self._chain.sequence} lines>"

    def settings_changed(self) -> None:
        """Use the settings as they are now."""
        settings = self.settings
        self.writes_all = settings.requests == "all"
        self.refuses = settings.on_failure == "refuse"
        if self._writer is not None and isinstance(self._writer.sink, FileSink):
            self._writer.sink.keep = settings.keep

    # Begin and end ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file, and begin with a line ``start``. Raises ConfigError. To be called in the event loop."""
        facts: dict[str, Any] = {"version": self._version, "process": os.getpid(), "continues": False}
        sink = self._make_sink()
        writer = Writer(sink, self._on_progress)
        if isinstance(sink, FileSink):
            tail = self._go_on(sink)
            facts["continues"] = tail.sequence > 0
            if tail.incomplete:
                facts["incomplete"] = tail.incomplete
                writer.append(b"\n")
        self._token = trio.lowlevel.current_trio_token()
        self._writer = writer
        self._append(self._event("start", {**facts, "previous": self._chain.last}))
        writer.start()

    def _make_sink(self) -> Sink:
        settings = self.settings
        if settings.to == "file":
            return FileSink(settings.file, keep=settings.keep)
        return StreamSink(os.dup(_STDOUT)) if settings.to == "stdout" else SyslogSink(settings.syslog)

    def _go_on(self, sink: FileSink) -> Tail:
        """Continue the chain that is in the file, or in the file moved away last; return the end of it.

        The last line may have been written in part when the machine or the gateway stopped. A file with lines of
        another kind, keyed or not, is moved away.
        """
        try:
            tail = sink.tail()
            if tail.sequence:
                self._chain.go_on(tail.sequence, tail.last)
            if tail.size and tail.field != field_of(self._key):
                sink.rotate()
                tail = tail._replace(size=0, incomplete=0)
        except OSError as error:
            raise ConfigError(
                [f"audit.file: can't continue {self.settings.file} ({error.strerror}); let the gateway's user read it"]
            ) from None
        self._size = tail.size
        return tail

    async def close(self, reason: str = "stopped") -> None:
        """Write a line ``stop`` and all that is queued, for at most 5 s."""
        writer = self._writer
        if writer is None:
            return
        self.refused.flush()
        self._announce_lost()
        self._size = 0  # the last line begins no file
        self._append(self._event("stop", {"reason": reason}))
        writer.order(Order.STOP)
        await trio.to_thread.run_sync(writer.join, _LAST_WRITE, abandon_on_cancel=True)
        if writer.queued:
            self._log.error("audit trail not written to its end", bytes=writer.queued, reason=writer.error)
        self._writer = None

    async def run(self) -> None:
        """Once a second, write the sums of refused connections, and log if the trail can't be written."""
        while True:
            await trio.sleep(_TICK)
            self.refused.flush()
            self._announce_lost()
            self._log_state()

    # Lines -----------------------------------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """The number of the last line."""
        return self._chain.sequence

    @property
    def queued(self) -> int:
        """Bytes that are not written yet."""
        return 0 if self._writer is None else self._writer.queued

    @property
    def error(self) -> str | None:
        """The reason why the trail can't be written at present, or None."""
        return None if self._writer is None else self._writer.error

    @property
    def is_impaired(self) -> bool:
        """True if a further line would be lost, or can't be written at present."""
        writer = self._writer
        return writer is None or writer.error is not None or writer.queued >= self.settings.max_queued

    def add(self, fields: str) -> bool:
        """Queue a line; ``fields`` are members in ASCII. Return False, and count it as lost, if the queue is full."""
        writer = self._writer
        if writer is None or writer.appended - writer.written >= self.settings.max_queued:
            self.lost += 1
            self._unannounced += 1
            return False
        if self._unannounced:
            self._announce_lost()
        self._append(fields)
        return True

    def add_event(self, event: str, facts: Mapping[str, Any]) -> None:
        """Queue a line about an event that is no request."""
        self.add(self._event(event, facts))

    async def commit(self, fields: str) -> int:
        """Queue a line, and wait until it is on the disk. Return its number.

        Raises AuditError if the trail can't be written, after 5 s at the latest. The line may be written later then.
        """
        writer = self._writer
        if writer is None or self.is_impaired or not self.add(fields):
            raise AuditError(self.error or "the queue of the audit trail is full")
        number = self._chain.sequence
        await self._synced(writer)
        return number

    async def _synced(self, writer: Writer) -> None:
        reached, event, errors = writer.appended, trio.Event(), writer.errors
        self._waiting[event] = reached, errors
        writer.commit()  # last: the thread may be done before this returns
        try:
            with trio.move_on_after(_COMMIT):
                await event.wait()
        finally:
            del self._waiting[event]
        if writer.errors != errors:  # the data of a failed attempt may be lost, whatever a further attempt reports
            raise AuditError(writer.last_error)
        if writer.synced < reached:
            raise AuditError(f"the audit trail was not written within {_COMMIT:g} s")

    async def reopen(self) -> None:
        """Begin a new file at the path, after another program has moved the file away. Raises AuditError."""
        writer = self._writer
        if writer is None:
            raise AuditError("the audit trail is not open")
        self._begin_file(writer, Order.REOPEN)
        await self._synced(writer)
        if writer.order_error is not None:
            raise AuditError(writer.order_error)

    def _append(self, fields: str) -> None:
        writer = self._writer
        assert writer is not None  # noqa: S101 - callers have looked
        now = time.time()
        second = int(now)
        if second != self._second:  # by RFC 3339, with microseconds; the text of a second is kept
            self._second = second
            self._second_text = time.strftime('"time":"%Y-%m-%dT%H:%M:%S', time.gmtime(second))
        line = self._chain.seal(f'{self._second_text}.{int((now - second) * 1_000_000):06d}Z",{fields}')
        writer.append(line)
        self._size += len(line)
        if self._size >= self.settings.max_size and self.settings.max_size and self.settings.to == "file":
            self._begin_file(writer, Order.ROTATE)

    def _begin_file(self, writer: Writer, order: Order) -> None:
        """Have the lines from now on in another file, which begins with a line that has the hash of the line before."""
        writer.order(order)
        self._size = 0
        self._append(self._event("file", {"reason": order.value, "previous": self._chain.last}))

    def _event(self, event: str, facts: Mapping[str, Any]) -> str:
        return members({"event": event, **facts})

    def _announce_lost(self) -> None:
        """Say how many records were lost, once the queue is half empty."""
        if self._unannounced and self.queued < self.settings.max_queued / 2:
            lost, self._unannounced = self._unannounced, 0
            self._append(self._event("lost", {"count": lost}))

    # The writer's progress -------------------------------------------------------------------------------------------

    def _on_progress(self) -> None:
        """Wake those that wait for the disk. Called by the writer's thread."""
        if self._waiting and self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._wake_waiting, idempotent=True)

    def _wake_waiting(self) -> None:
        writer = self._writer
        for event, (reached, errors) in list(self._waiting.items()):
            if writer is None or writer.errors != errors or writer.synced >= reached:
                event.set()

    def _log_state(self) -> None:
        writer, now = self._writer, trio.current_time()
        if writer is None:
            return
        if writer.error is not None or writer.errors != self._errors:  # also an error that has passed since
            self._errors = writer.errors
            if self._was_failing is None or now - self._was_failing >= _REMIND:
                self._was_failing = now
                self._log.error(
                    "audit trail cannot be written; trying again every second",
                    reason=writer.last_error,
                    queued=writer.queued,
                    lost=self.lost,
                    on_failure=self.settings.on_failure,
                )
        if writer.error is None and self._was_failing is not None:
            self._was_failing = None
            self._log.warning("audit trail is written again", lost=self.lost)
        if writer.order_error is not None and writer.order_error != self._order_error:
            self._log.error("audit file cannot be rotated; writing on to the file in use", reason=writer.order_error)
        self._order_error = writer.order_error
