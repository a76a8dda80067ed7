"""Sinks: the places that the audit trail is written to: a file, standard output, or the syslog socket.

All methods may block, and raise OSError: only the writer's thread calls them.
"""

import errno
import fcntl
import logging
import os
import select
from contextlib import suppress
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, Protocol

from gateway.audit.chain import parse
from gateway.errors import ConfigError

_TAIL: Final = 16 * 1024 * 1024  # bytes of a file's end in which its last line is looked for
_IDENT: Final = "kmip-gateway: "


class Sink(Protocol):
    """A place for lines. ``takes_many`` is True if one call of ``write`` may have several lines."""

    takes_many: bool

    def write(self, data: bytes) -> int:
        """Write some of the bytes; return the number of those written."""

    def sync(self) -> None:
        """Have the kernel put all that was written on the disk, if there is one."""

    def rotate(self) -> None:
        """Move the file away, and begin a new one."""

    def reopen(self) -> None:
        """Open the path again: another program has moved the file away."""

    def close(self) -> None:
        """Put what was written on the disk, if there is one, and close."""


class Tail(NamedTuple):
    """The end of a trail: the size of its file in bytes, and the number and the hash of its last line.

    ``field`` is the name of that hash; "" if there is no line. ``incomplete`` is the number of bytes behind the last
    line feed.
    """

    size: int
    sequence: int
    last: str
    field: str
    incomplete: int


def _tail_of(path: Path) -> Tail | None:
    """Read the end of a file; None if no line of a trail is there."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        data = file.read()
    incomplete = len(data) - (data.rfind(b"\n") + 1)
    for line in reversed(data[: len(data) - incomplete].split(b"\n")):
        if (sealed := parse(line)) is not None:
            return Tail(size, sealed.sequence, sealed.digest, sealed.field, incomplete)
    return None


class FileSink:
    """A file with mode 0600, which is only appended to. ``keep`` is the number of files besides it that stay.

    A file that was moved away is named FILE.1, the one before FILE.2, and so on. Raises ConfigError if the file can't
    be opened, or is locked by another gateway.
    """

    takes_many = True

    def __init__(self, path: Path, *, keep: int) -> None:
        self.path = path
        self.keep = keep
        try:
            self._descriptor = _open(path)
        except BlockingIOError:
            raise ConfigError(
                [f"audit.file: another process writes {path}; give each gateway a file of its own"]
            ) from None
        except OSError as error:
            raise ConfigError(
                [f"audit.file: {path} can't be written ({error.strerror}); let the gateway's user write it"]
            ) from None

    def __repr__(self) -> str:
        return f"<FileSink {self.path}>"

    def tail(self) -> Tail:
        """Return the end of the trail as it is: in the file, or, if that has no line, in the file moved away last."""
        size = os.fstat(self._descriptor).st_size
        found = _tail_of(self.path) if size else None
        if found is not None:
            return found
        with suppress(OSError):
            before = _tail_of(self._moved(1))
            if before is not None:
                return Tail(size, before.sequence, before.last, before.field, 0)
        return Tail(size, 0, "", "", 0)

    def write(self, data: bytes) -> int:
        """Append. Raises FileNotFoundError once the file was removed; the next call writes to a new one."""
        self._check_present()
        return os.write(self._descriptor, data)

    def sync(self) -> None:
        """Wait until all data is on the disk. Raises FileNotFoundError as ``write`` does."""
        os.fdatasync(self._descriptor)
        self._check_present()

    def _check_present(self) -> None:
        """Raise FileNotFoundError if the file was removed, and begin a new one at the path.

        The kernel takes data for a removed file, which is lost when the file is closed.
        """
        if not os.fstat(self._descriptor).st_nlink:
            self.reopen()
            raise FileNotFoundError(errno.ENOENT, "the file was removed with its lines; going on in a new one")

    def rotate(self) -> None:
        """Move the files, remove the oldest, and begin a new file."""
        if self._is_in_use():  # it is not after a rotation that failed halfway
            for number in range(self.keep, 1, -1):
                with suppress(FileNotFoundError):
                    self._moved(number - 1).replace(self._moved(number))
            self.path.replace(self._moved(1))
        self.reopen()

    def reopen(self) -> None:
        """Open the path, whatever is there by now; the file in use is closed once that has succeeded."""
        with suppress(OSError):
            os.fdatasync(self._descriptor)
        if self._is_in_use():
            return  # the path is still that of the file in use, whose lock would be refused
        descriptor = _open(self.path)
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _is_in_use(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def close(self) -> None:
        """Put all data on the disk, and close."""
        with suppress(OSError):
            os.fdatasync(self._descriptor)
        os.close(self._descriptor)

    def _moved(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
    descriptor = os.open(path, flags, 0o600)
    try:
        if not path.is_file():  # a device, such as /dev/full, takes no lock
            return descriptor
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class StreamSink:
    """A descriptor that is open already: standard output."""

    takes_many = True

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __repr__(self) -> str:
        return f"<StreamSink {self._descriptor}>"

    def write(self, data: bytes) -> int:
        """Write, and wait for a reader that is slow."""
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # another process that shares the pipe has made it so
            select.select([], [self._descriptor], [], 1.0)
            return 0

    def sync(self) -> None:
        """Do nothing: the reader has what was written."""

    rotate = reopen = close = sync


class SyslogSink:
    """The socket of the local syslog daemon, or of journald: a message for each line, facility auth, level info."""

    takes_many = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handler: _RaisingHandler | None = None

    def __repr__(self) -> str:
        return f"<SyslogSink {self.path}>"

    def write(self, data: bytes) -> int:
        """Send one line."""
        if self._handler is None:
            self._handler = _RaisingHandler(address=str(self.path), facility=SysLogHandler.LOG_AUTHPRIV)
        self._handler.emit(logging.makeLogRecord({"msg": data.rstrip(b"\n").decode(), "levelname": "INFO"}))
        return len(data)

    def sync(self) -> None:
        """Do nothing: the daemon has the message."""

    rotate = reopen = sync

    def close(self) -> None:
        """Close the socket."""
        if self._handler is not None:
            self._handler.close()


class _RaisingHandler(SysLogHandler):
    """A handler that raises OSError; the standard library's would print a traceback and lose the line."""

    ident = _IDENT
    append_nul = False

    def handleError(self, _record: logging.LogRecord) -> NoReturn:  # noqa: N802
        raise  # noqa: PLE0704 - ``emit`` calls this while it handles the error
