"""Events, one line each, to standard error: what happened, then what it was about.

Nothing that is logged comes out of a payload. Names of operations, backends, rules and reasons do; keys, identifiers of
objects and credentials do not, at any level.
"""

import logging
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

Log = FilteringBoundLogger

_QUOTED: Final = 200  # characters of a peer's text that a line repeats
_FIELD: Final = 2000  # characters of any field
_TRACEBACK: Final = 20_000

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def quoted(text: str) -> str:
    """Return a peer's text as a line may repeat it: on one line, without control characters, cut to 200 characters.

    For Result Messages, names out of certificates and headers, and the words of exceptions that such text has caused.
    """
    return _cut(_escaped(text[: _QUOTED + 1]), _QUOTED)


def _escaped(text: str, *, kept: str = "") -> str:
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode() for each in text
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _bounded(value: object, *, escapes: bool) -> object:
    if isinstance(value, str):
        text = value[: _FIELD + 1]
        return _cut(_escaped(text) if escapes else text, _FIELD)
    return [_bounded(each, escapes=escapes) for each in value] if isinstance(value, list | tuple) else value


def _bounds(form: str) -> Callable[[Any, str, Any], Any]:
    """Return a processor that keeps every field short, and control characters out of lines of text.

    A terminal obeys escape sequences, and a line feed would begin a line that nobody has logged. JSON escapes them
    itself. ``quoted`` is the rule for a peer's text; this is the net for what was forgotten.
    """

    def bound(_logger: Any, _method: str, event: Any) -> Any:
        for key, value in event.items():
            if key == "exception":
                lines = _cut(_escaped(str(value), kept="\n"), _TRACEBACK).splitlines()
                event[key] = "\n".join(f"  {line}" for line in lines)  # an event begins at a line's beginning
            elif key not in {"timestamp", "level"}:
                event[key] = _bounded(value, escapes=form == "text")
        return event

    return bound


class Throttle:
    """At most one line in ``interval`` seconds for each key; how many were left out is told with the next.

    Keys are few: reasons and the like, nothing that a client can choose.
    """

    def __init__(self, interval: float = 1.0) -> None:
        self._interval = interval
        self._said: dict[str, tuple[float, int]] = {}

    def warn(self, log: Log, key: str, event: str, **fields: object) -> None:
        """Log a warning, unless a line with this key was logged just now."""
        self._say(log.warning, key, event, fields)

    def error(self, log: Log, key: str, event: str, **fields: object) -> None:
        """Log an error, unless a line with this key was logged just now."""
        self._say(log.error, key, event, fields)

    def _say(self, say: Callable[..., Any], key: str, event: str, fields: dict[str, object]) -> None:
        now = time.monotonic()
        at, left_out = self._said.get(key, (float("-inf"), 0))
        if now - at < self._interval:
            self._said[key] = (at, left_out + 1)
            return
        self._said[key] = (now, 0)
        say(event, **fields, **({"left_out": left_out} if left_out else {}))


_AT_ONCE: Final = select.PIPE_BUF  # bytes that a pipe takes without waiting, if it says that it takes some


class LossyFile:
    """A text file that drops what can't be written: a full disk, a closed pipe, or no file at all, stops no request.

    Nor does a pipe or a socket whose reader stands still. ``say_lost`` gives the line that says how many messages that
    has cost, when it goes on.
    """

    def __init__(self, file: TextIO | None, say_lost: Callable[[int], str] = str) -> None:
        self._file = file
        self._say_lost = say_lost
        self._take = _taker_of(file)
        self._lost = 0  # messages since something was written
        self._is_cut = False  # whether the last one was written in part
        self.dropped = 0

    def write(self, text: str) -> int:
        """Write, or count what could not be written. A text is a message."""
        if self._take is not None:
            self._offer(self._take, text.encode("utf-8", "backslashreplace"))
            return len(text)
        try:
            if self._file is not None:
                return self._file.write(text)
        except OSError:
            pass
        self.dropped += 1
        return len(text)

    def _offer(self, take: Callable[[bytes], int], message: bytes) -> None:
        if self._lost:
            message = self._say_lost(self._lost).encode() + b"\n" + message
        if self._is_cut:
            message = b"\n" + message
        written = 0
        try:
            while written < len(message):
                written += take(message[written : written + _AT_ONCE])
        except OSError:  # there is no room, or nobody reads any more
            pass
        if written:
            self._is_cut = written < len(message)
            self._lost = 0
        if written < len(message):
            self._lost += 1
            self.dropped += 1

    def flush(self) -> None:
        """Flush, or count what could not be written."""
        try:
            if self._file is not None:
                self._file.flush()
        except OSError:
            self.dropped += 1


def _taker_of(file: TextIO | None) -> Callable[[bytes], int] | None:
    """What writes to a pipe or a socket without waiting, or raises OSError; None for a file that is neither."""
    if file is None:
        return None
    try:
        descriptor = file.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # a file of Python's own
        return None
    if stat.S_ISFIFO(mode):
        return partial(_write_to_pipe, descriptor)
    return partial(_send_to_socket, descriptor) if stat.S_ISSOCK(mode) else None


def _write_to_pipe(descriptor: int, data: bytes) -> int:
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    if not room.poll(0):
        raise BlockingIOError
    return os.write(descriptor, data)


def _send_to_socket(descriptor: int, data: bytes) -> int:
    sock = socket.socket(fileno=descriptor)
    try:
        return sock.send(data, socket.MSG_DONTWAIT)
    finally:
        sock.detach()


def configure(level: str, form: str) -> LossyFile:
    """Set up logging for this process: ``level`` by name, ``form`` ``text`` or ``json``. Returns where lines go."""
    file = LossyFile(
        sys.stderr, lambda number: _rendered(processors, number)
    )  # None where the process was started without
    logging.basicConfig(stream=cast("TextIO", file), level=logging.WARNING)  # what libraries say must not wait either
    renderer: structlog.typing.Processor
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr is not None and sys.stderr.isatty(), pad_event_to=32)
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _bounds(form),
        renderer,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", file)),
        cache_logger_on_first_use=True,
    )
    return file


def _rendered(processors: Sequence[structlog.typing.Processor], number: int) -> str:
    """The line that says what was lost. It is made where a line is being written, when no logger would take another."""
    event: Any = {"event": "log messages lost: their reader stood still", "number": number, "room": "log"}
    for processor in processors:
        event = processor(None, "warning", event)
    return str(event)


def get(room: str) -> Log:
    """The logger of a room."""
    logger: Log = structlog.get_logger(room=room)
    return logger
