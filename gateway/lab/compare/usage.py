"""What processes have used so far, as the kernel's /proc says (proc(5)): CPU time, memory of their own.

A proxy may be several processes. Each program of the comparison leads a session of its own, so that all its processes
are found by the session's number.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_SESSION, _USER_TIME, _SYSTEM_TIME = 3, 11, 12  # in /proc/PID/stat, counted from the field after the name
_TICKS: Final = os.sysconf("SC_CLK_TCK")
#: Pages that nobody else would pay for: a proxy's program and its libraries are on disk, whoever else runs them.
_OWN: Final = ("RssAnon", "RssShmem")


def processes(sessions: Iterable[int]) -> list[int]:
    """The numbers of all processes in these sessions."""
    wanted = set(sessions)
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            with suppress(OSError):  # it has ended in the meantime
                if int(_stat(int(directory.name))[_SESSION]) in wanted:
                    found.append(int(directory.name))
    return sorted(found)


def cpu_seconds(numbers: Iterable[int]) -> float:
    """User and system time of these processes so far, in seconds."""
    fields = [_stat(number) for number in numbers]
    return sum(int(each[_USER_TIME]) + int(each[_SYSTEM_TIME]) for each in fields) / _TICKS


def memory(numbers: Iterable[int]) -> int:
    """Bytes of memory that these processes hold and that no file backs."""
    return sum(_own(Path(f"/proc/{number}/status").read_text()) for number in numbers)


def _own(status: str) -> int:
    lines = (line.split() for line in status.splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words and words[0].rstrip(":") in _OWN)


def _stat(number: int) -> list[str]:
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
