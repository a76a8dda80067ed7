"""Writer: the thread that writes the audit trail, so that a slow disk or reader stops no request.

The event loop appends whole lines; the thread takes all that have come within 20 ms and writes them with one call. A
line that was taken is kept until it is written: after an error, the thread tries again once a second. So the file never
lacks a line in the middle, and the event loop decides what must not be appended (``Trail``).
"""

import threading
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final

from gateway.audit.sinks import Sink

_COLLECT: Final = 0.02  # s in which further lines may come, before all are written together
_RETRY: Final = 1.0  # s after an error
_CHUNK: Final = 256 * 1024  # bytes that are written with one call, at most, besides the last line of them


class Order(Enum):
    """Work that the writer does between two lines."""

    ROTATE = "rotate"
    REOPEN = "reopen"
    STOP = "stop"


class Writer(threading.Thread):
    """Writes what ``append`` is given, in order. ``on_progress`` is called in this thread after each attempt.

    ``appended`` and ``written`` count bytes; ``synced`` is the count up to which lines are on the disk. ``error`` is
    the text of the latest error, None once a write has succeeded; ``last_error`` keeps it. ``errors`` counts them: a
    commit during which an error came has failed, also if the next attempt succeeds. ``order_error`` is that of the
    latest order, which is not repeated: lines go on to the file in use.
    """

    def __init__(self, sink: Sink, on_progress: Callable[[], None]) -> None:
        super().__init__(name="audit", daemon=True)  # a thread that hangs in a write must not stop the end
        self.sink = sink
        self.appended = 0
        self.written = 0
        self.synced = 0
        self.error: str | None = None
        self.last_error = ""
        self.errors = 0
        self.order_error: str | None = None
        self._on_progress = on_progress
        self._items: deque[bytes | Order] = deque()
        self._pending = b""  # taken, and not written yet
        self._order: Order | None = None  # likewise
        self._wanted = 0  # the count up to which lines must be on the disk
        self._is_asleep = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._is_stopping = False
        self._is_finished = False

    def __repr__(self) -> str:
        return f"<Writer to {self.sink!r}, {self.queued} bytes queued{', failing' * (self.error is not None)}>"

    # Of the event loop -----------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Bytes that were appended and not written yet."""
        return self.appended - self.written

    def append(self, line: bytes) -> None:
        """Add a line to those that are to be written."""
        self.appended += len(line)
        self._items.append(line)
        if self._is_asleep:
            self._is_asleep = False
            self._wake.set()

    def order(self, order: Order) -> None:
        """Add work that is done after the lines that were appended before."""
        self._is_stopping = self._is_stopping or order is Order.STOP
        self._items.append(order)
        self.hurry()

    def commit(self) -> None:
        """Have all that was appended so far put on the disk, at once."""
        self._wanted = self.appended
        self.hurry()

    def hurry(self) -> None:
        """Have the thread write now."""
        self._hurry.set()
        self._wake.set()

    # Of the thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Write until STOP; after that, what can't be written at the first attempt is left."""
        while not self._is_finished:
            self._is_asleep = True  # before the look at the lines: ``append`` looks in the other order
            if self.error is None and not self._items and not self._hurry.is_set():
                self._wake.wait()
            self._is_asleep = False
            self._wake.clear()
            self._hurry.wait(_COLLECT if self.error is None else _RETRY)
            self._hurry.clear()
            try:
                self._write()
                self._sync()
                self.error = None
            except OSError as error:
                self.error = self.last_error = error.strerror or str(error)
                self.errors += 1
                self._is_finished = self._is_stopping
            self._on_progress()
        self.sink.close()

    def _write(self) -> None:
        while not self._is_finished and self._take():
            while self._pending:
                count = self.sink.write(self._pending)
                self._pending = self._pending[count:]
                self.written += count
            if self._order is not None:
                self._sync()  # the lines before: after the order, ``sync`` is about another file
                self._obey(self._order)
                self._order = None

    def _take(self) -> bool:
        """Take lines up to the next order; return False if there is nothing to be done."""
        if self._pending or self._order is not None:
            return True
        lines: list[bytes] = []
        size = 0
        while self._items and size < _CHUNK:
            item = self._items.popleft()
            if isinstance(item, Order):
                self._order = item
                break
            lines.append(item)
            size += len(item)
            if not self.sink.takes_many:
                break
        self._pending = b"".join(lines)
        return bool(lines) or self._order is not None

    def _obey(self, order: Order) -> None:
        if order is Order.STOP:
            self._is_finished = True
            return
        try:
            if order is Order.ROTATE:
                self.sink.rotate()
            else:
                self.sink.reopen()
            self.order_error = None
        except OSError as error:
            self.order_error = error.strerror or str(error)

    def _sync(self) -> None:
        if self._wanted > self.synced:
            written = self.written
            self.sink.sync()
            self.synced = written
