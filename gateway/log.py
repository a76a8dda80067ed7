"""The log: a line for each event, to standard error, with the event's text first and its fields after it.

No line has anything out of a payload, at any level: no keys, no identifiers of objects, no credentials. Names of
operations, backends, rules and reasons are fine.
"""

import logging
import os
import select
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

from gateway.traffic import Traffic

Log = FilteringBoundLogger

_QUOTED: Final = 200  # characters of a peer's text that a line repeats
_FIELD: Final = 2000  # characters of any field
_TRACEBACK: Final = 20_000  # characters
_REMEMBERED: Final = 60  # lines
_REPORTED: Final = 20  # lines that a TLS worker passes on at once
_TURN: Final = 60.0  # intervals that a key of a Throttle with too many lines waits for the other keys
_DEBUG_LINES: Final = 100  # of level debug in a second

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def quoted(text: str) -> str:
    """Return a peer's text fit for a log line: in one line, without control characters, cut to 200 characters.

    For Result Messages, names out of certificates and headers, and messages of exceptions that such text has caused.
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
    """Return a structlog processor that cuts long fields, and escapes control characters if ``form`` is ``text``.

    A terminal obeys escape sequences, and a line feed would forge the beginning of a line. JSON escapes both
    itself. Callers pass a peer's text through ``quoted``; this processor covers a call that forgot to.
    """

    def bound(_logger: Any, _method: str, event: Any) -> Any:
        for key, value in event.items():
            if key == "exception":
                lines = _cut(_escaped(str(value), kept="\n"), _TRACEBACK).splitlines()
                event[key] = "\n".join(f"  {line}" for line in lines)  # only an event begins in the first column
            elif key not in {"timestamp", "level"}:
                event[key] = _bounded(value, escapes=form == "text")
        return event

    return bound


class Throttle:
    """Log at most one line in ``interval`` seconds for each key; the next line has the number skipped as ``left_out``.

    ``most`` bounds the lines in a second, whatever their keys. After a second with more, keys that were logged in the
    last 60 intervals wait, so that every key has its turn.

    Keys are kept for ever, so that they must be few: reasons, names of backends, nothing that a client can choose.
    """

    def __init__(self, interval: float = 1.0, *, most: float = float("inf")) -> None:
        self._interval = interval
        self._most = most
        self._logged: dict[str, tuple[float, int]] = {}  # when a key was logged last, and how many lines since
        self._second = float("-inf")  # when the present second began
        self._wanted = 0  # lines in the present second, and those that ``most`` kept out of the log
        self._had_more = False  # in the second before

    def warn(self, log: Log, key: str, event: str, **fields: object) -> bool:
        """Log a warning, unless it must be left out. Return True if it was logged."""
        return self._log(log.warning, key, event, fields)

    def error(self, log: Log, key: str, event: str, **fields: object) -> bool:
        """Log an error, unless it must be left out. Return True if it was logged."""
        return self._log(log.error, key, event, fields)

    def info(self, log: Log, key: str, event: str, **fields: object) -> bool:
        """Log at level info, unless the line must be left out. Return True if it was logged."""
        return self._log(log.info, key, event, fields)

    def _log(self, write: Callable[..., Any], key: str, event: str, fields: dict[str, object]) -> bool:
        left_out = self.take(key)
        if left_out is None:
            return False
        write(event, **fields, **({"left_out": left_out} if left_out else {}))
        return True

    def take(self, key: str) -> int | None:
        """Return how many lines were left out before a line that may be logged now; None to leave this one out."""
        now = time.monotonic()
        at, left_out = self._logged.get(key, (float("-inf"), 0))
        if not self._may_log(now, at):
            self._logged[key] = (at, left_out + 1)
            return None
        self._logged[key] = (now, 0)
        return left_out

    def _may_log(self, now: float, at: float) -> bool:
        """Return True if a key that was logged last at the time ``at`` may be logged now."""
        if now - self._second >= 1.0:
            self._had_more = now - self._second < 2.0 and self._wanted > self._most
            self._second, self._wanted = now, 0
        if now - at < self._interval * (_TURN if self._had_more else 1.0):
            return False
        self._wanted += 1
        return self._wanted <= self._most


_AT_ONCE: Final = select.PIPE_BUF  # bytes that a pipe which polls as writable takes without blocking


class LossyFile:
    """A text file that drops messages rather than block or raise, so that the log stops no request.

    Messages are dropped if the disk is full, the pipe is closed, there is no file at all, or the reader of a pipe or a
    socket does not read. ``dropped`` counts them. When the file takes messages again, the line that ``notice(number of
    messages dropped meanwhile)`` returns is written first.
    """

    def __init__(self, file: TextIO | None, notice: Callable[[int], str] = str) -> None:
        self._file = file
        self._notice = notice
        self._write_some = _unbuffered_write(file)
        self._unannounced = 0  # messages dropped since the last successful write
        self._is_cut = False  # True if the last message was written in part
        self.dropped = 0

    def write(self, text: str) -> int:
        """Write a message, or drop and count it."""
        if self._write_some is not None:
            self._offer(self._write_some, text.encode("utf-8", "backslashreplace"))
            return len(text)
        try:
            if self._file is not None:
                return self._file.write(text)
        except OSError:
            pass
        self.dropped += 1
        return len(text)

    def _offer(self, write_some: Callable[[bytes], int], message: bytes) -> None:
        if self._unannounced:
            message = self._notice(self._unannounced).encode() + b"\n" + message
        if self._is_cut:
            message = b"\n" + message
        written = 0
        try:
            while written < len(message):
                written += write_some(message[written : written + _AT_ONCE])
        except OSError:  # the buffer or the disk is full, or the reader has closed
            pass
        if written:
            self._is_cut = written < len(message)
            self._unannounced = 0
        if written < len(message):
            self._unannounced += 1
            self.dropped += 1

    def flush(self) -> None:
        """Flush; count a dropped message if that fails."""
        try:
            if self._file is not None:
                self._file.flush()
        except OSError:
            self.dropped += 1


def _unbuffered_write(file: TextIO | None) -> Callable[[bytes], int] | None:
    """Return a function that writes without a buffer and without waiting for a reader, or raises OSError.

    None for files that are neither a regular file, a pipe, a terminal nor a socket.
    """
    if file is None:
        return None
    try:
        descriptor = file.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # a file object without a descriptor
        return None
    if stat.S_ISFIFO(mode):
        return partial(_write_to_pipe, descriptor)
    if stat.S_ISCHR(mode) and os.isatty(descriptor):
        return _write_to_terminal(descriptor)
    if stat.S_ISREG(mode):  # not through a buffer, which would keep the lines that a full disk has not taken
        return partial(os.write, descriptor)
    return partial(_send_to_socket, descriptor) if stat.S_ISSOCK(mode) else None


def _write_to_terminal(descriptor: int) -> Callable[[bytes], int] | None:
    """Return a function that does not wait for a terminal that was stopped (Ctrl-S), or whose reader does not read.

    The terminal is opened again, because a shell shares the descriptor that this process was given. None if it can't
    be opened.
    """
    try:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return partial(os.write, os.open(os.ttyname(descriptor), flags))
    except OSError:
        return None


def _write_to_pipe(descriptor: int, data: bytes) -> int:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(descriptor, data)


def _send_to_socket(descriptor: int, data: bytes) -> int:
    sock = socket.socket(fileno=descriptor)
    try:
        return sock.send(data, socket.MSG_DONTWAIT)
    finally:
        sock.detach()


class _DebugTime(NamedTuple):
    """A time in which lines below the level are logged, too, if they are about ``traffic``."""

    traffic: Traffic
    until: float  # of time.monotonic

    @property
    def seconds(self) -> float:
        """The seconds that are left; 0 if the time has ended."""
        return max(0.0, self.until - time.monotonic())

    def shows(self, event: Mapping[str, Any]) -> bool:
        """Return True if a line is to be logged, whatever its level is."""
        if not self.seconds:
            return False
        identity = event.get("identity") or event.get("credential", "")
        backends = (event.get("backend", ""), *event.get("tried", ()))
        return self.traffic.fits(identity, backends, event.get("peer", ""))


_lowest: Final = [logging.INFO]  # one level: logging belongs to the process
_debug: Final[list[_DebugTime]] = []  # at most one
_debug_throttle = Throttle(0.0, most=_DEBUG_LINES)
_files: Final[list[LossyFile]] = []  # at most one: logging belongs to the process


def configure(level: str, form: str) -> LossyFile:
    """Set up logging for this process: ``level`` by name, ``form`` ``text`` or ``json``. Return the log's file."""
    set_level(level)
    file = LossyFile(sys.stderr, lambda number: _drop_notice(processors, number))  # sys.stderr may be None
    _files[:] = [file]
    logging.basicConfig(stream=cast("TextIO", file), level=logging.WARNING)  # lines of libraries must not block either
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
        _remember,
        renderer,
    ]
    structlog.configure(
        processors=[_drop_below_level, *processors],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", file)),
        cache_logger_on_first_use=True,
    )
    return file


def set_level(level: str) -> None:
    """Change the level at run time, also for loggers that exist: ``debug``, ``info``, ``warning`` or ``error``."""
    _lowest[:] = [_LEVELS[level]]


def begin_debug(traffic: Traffic, seconds: float) -> None:
    """Log all lines about some traffic for so many seconds, whatever the level is. A second call replaces the first."""
    _debug[:] = [_DebugTime(traffic, time.monotonic() + seconds)]


def end_debug() -> None:
    """End ``begin_debug``."""
    _debug.clear()


def shows_debug() -> bool:
    """Return True if lines of level debug may be logged now."""
    return _lowest[0] == logging.DEBUG or (bool(_debug) and any(each.seconds for each in _debug))  # mostly of none


def debugs(about: Mapping[str, Any]) -> bool:
    """Return True if a line of level debug with these fields may be logged now: ask this before a line in a request."""
    return _lowest[0] == logging.DEBUG or any(each.shows(about) for each in _debug)


def state() -> dict[str, Any]:
    """Return the level, and under ``debug`` the seconds that are left with the parts of the traffic; else None."""
    level = next(name for name, number in _LEVELS.items() if number == _lowest[0])
    times = [{"seconds": round(each.seconds, 3), **each.traffic.arguments()} for each in _debug if each.seconds]
    return {"level": level, "debug": times[0] if times else None}


def adopt(other: Mapping[str, Any]) -> None:
    """Log as another process does, whose ``state`` this is."""
    set_level(other["level"])
    end_debug()
    if other["debug"] is not None:
        given = dict(other["debug"])
        seconds = given.pop("seconds")
        begin_debug(Traffic.take(given), seconds)


_recent: Final[deque[dict[str, object]]] = deque(maxlen=_REMEMBERED)
_unreported: Final[deque[dict[str, object]]] = deque(maxlen=_REPORTED)


def recent() -> list[dict[str, object]]:
    """Return the last lines, the newest first, but none of level debug: fields by their names, as values of JSON.

    They are those of this process, and those that ``add_recent`` took.
    """
    return sorted(_recent, key=lambda event: str(event.get("timestamp", "")), reverse=True)


def take_unreported() -> list[dict[str, object]]:
    """Return the lines of this process since the last call, at most the last 20 of them, as ``recent`` has them."""
    lines = list(_unreported)
    _unreported.clear()
    return lines


def add_recent(lines: Sequence[Mapping[str, object]], **fields: object) -> None:
    """Have ``recent`` also return lines of another process, at most 20, with further fields."""
    _recent.extend({**_plain(line), **fields} for line in lines[-_REPORTED:])


def _remember(_logger: Any, method: str, event: Any) -> Any:
    if method != "debug":
        line = _plain(event)
        _recent.append(line)
        _unreported.append(line)
    return event


def _plain(event: Mapping[str, object]) -> dict[str, object]:
    return {
        str(key)[:_QUOTED]: value if isinstance(value, bool | int | None) else _bounded(_listed(value), escapes=False)
        for key, value in event.items()
        if key != "exception"
    }


def _listed(value: object) -> object:
    """Return a list of texts for a list, else a text: JSON has neither paths nor infinity."""
    return [str(each) for each in value] if isinstance(value, list | tuple) else str(value)


def _drop_below_level(_logger: Any, method: str, event: Any) -> Any:
    if _LEVELS.get(method, logging.ERROR) < _lowest[0] and not any(each.shows(event) for each in _debug):
        raise structlog.DropEvent
    if method == "debug":
        left_out = _debug_throttle.take("")
        if left_out is None:
            raise structlog.DropEvent
        if left_out:
            event["left_out"] = left_out
    return event


def messages_dropped() -> int:
    """Return how many messages were dropped since ``configure``; 0 if it was not called."""
    return sum(file.dropped for file in _files)


def _drop_notice(processors: Sequence[structlog.typing.Processor], number: int) -> str:
    """Return the line about dropped messages. No logger renders it, because a line is being written then."""
    event: Any = {
        "event": "log messages dropped: standard error was not being read, or its disk was full",
        "number": number,
        "component": "log",
    }
    for processor in processors:
        event = processor(None, "warning", event)
    return str(event)


def get(component: str) -> Log:
    """Return a logger whose lines have the field ``component``."""
    logger: Log = structlog.get_logger(component=component)
    return logger
