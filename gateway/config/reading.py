"""Files that settings name: read whole, if they are regular files of a bearable size."""

import errno
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

MAX_FILE: Final = 16 * 1024 * 1024  # bytes
#: Directories with the descriptors of a process, in which a shell names the pipes that it has made for a command.
_DESCRIPTORS: Final = (Path("/dev"), Path("/proc"))


class FileError(ValueError):
    """A file that can't be used. The text is for the operator; ``fault`` is the text without the path."""

    def __init__(self, path: Path, fault: str, text: str = "") -> None:
        super().__init__(text or f"{path} {fault}")
        self.fault = fault


class MissingFileError(FileError):
    """There is no file of this path."""


def read_file(path: Path, kind: str, *, if_missing: str = "", if_too_large: str = "", most: int = MAX_FILE) -> bytes:
    """Return the contents of a file. Raises FileError, as MissingFileError if there is none.

    ``kind`` says in a message which file to give instead, such as "a file in PEM"; ``if_missing`` and ``if_too_large``
    what else to do. A named pipe or a device is refused, because a read of it may never end; so is a file of more than
    ``most`` bytes.
    """
    try:
        data = _read(path, kind, most)
    except FileNotFoundError:
        raise _missing(path, if_missing) from None
    except OSError as error:
        raise FileError(path, _why_unreadable(kind, error)) from None
    if len(data) > most:
        remedy = if_too_large or f"give the path of {kind}"
        raise FileError(path, f"has more than {most // 1024 // 1024} MiB; {remedy}")
    return data


def _read(path: Path, kind: str, most: int) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(file).st_mode
        if stat.S_ISFIFO(mode) and any(path.is_relative_to(directory) for directory in _DESCRIPTORS):
            os.set_blocking(file, True)  # its writer is a command that ends
        elif not stat.S_ISREG(mode):
            is_what = "is a directory" if stat.S_ISDIR(mode) else "is not a file"
            raise FileError(path, f"{is_what}; give the path of {kind}")
        with os.fdopen(file, "rb", closefd=False) as opened:
            return opened.read(most + 1)
    finally:
        os.close(file)


def _missing(path: Path, if_missing: str) -> MissingFileError:
    with suppress(OSError):
        fault = f"is a link to {path.readlink()}, and there is no such file; correct the link"
        return MissingFileError(path, fault)
    remedy = "correct the path (a relative path begins in the directory of the configuration)"
    if "~" in path.parts or "$" in str(path):
        remedy = 'write the path in full, without "~" and variables'
    elif if_missing:
        remedy = f"{if_missing}, or {remedy}"
    return MissingFileError(path, f"there is no such file; {remedy}", f"there is no file {path}; {remedy}")


def _why_unreadable(kind: str, error: OSError) -> str:
    if error.errno == errno.ENXIO:  # a socket
        return f"is not a file; give the path of {kind}"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"can't be read by {_user()} ({error.strerror}); let the gateway's user read it"
    return f"can't be read ({error.strerror}); correct the path"


def _user() -> str:
    number = os.geteuid()
    try:
        return f'user "{pwd.getpwuid(number).pw_name}"'
    except (KeyError, OSError):
        return f"user {number}"
