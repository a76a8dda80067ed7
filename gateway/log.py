"""Events, one line each, to standard error: what happened, then what it was about.

Nothing that is logged comes out of a payload. Names of operations, backends, rules and reasons do; keys, identifiers of
objects and credentials do not, at any level.
"""

import logging
import sys
import time
from typing import TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

Log = FilteringBoundLogger

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Throttle:
    """At most one line in ``interval`` seconds for each key; how many were left out is told with the next.

    Keys are few: reasons and the like, nothing that a client can choose.
    """

    def __init__(self, interval: float = 1.0) -> None:
        self._interval = interval
        self._said: dict[str, tuple[float, int]] = {}

    def warn(self, log: Log, key: str, event: str, **fields: object) -> None:
        """Log a warning, unless one with this key was logged just now."""
        now = time.monotonic()
        at, left_out = self._said.get(key, (float("-inf"), 0))
        if now - at < self._interval:
            self._said[key] = (at, left_out + 1)
            return
        self._said[key] = (now, 0)
        log.warning(event, **fields, **({"left_out": left_out} if left_out else {}))


class LossyFile:
    """A text file that drops what can't be written: a full disk, a closed pipe, or no file at all, stops no request."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self.dropped = 0

    def write(self, text: str) -> int:
        """Write, or count what could not be written."""
        try:
            if self._file is not None:
                return self._file.write(text)
        except OSError:
            pass
        self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """Flush, or count what could not be written."""
        try:
            if self._file is not None:
                self._file.flush()
        except OSError:
            self.dropped += 1


def configure(level: str, form: str) -> LossyFile:
    """Set up logging for this process: ``level`` by name, ``form`` ``text`` or ``json``. Returns where lines go."""
    file = LossyFile(sys.stderr)  # None where the process was started without
    renderer: structlog.typing.Processor
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr is not None and sys.stderr.isatty(), pad_event_to=32)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", file)),
        cache_logger_on_first_use=True,
    )
    return file


def get(room: str) -> Log:
    """The logger of a room."""
    logger: Log = structlog.get_logger(room=room)
    return logger
