"""What processes have used so far, as the kernel says (proc(5)): CPU time, memory of their own.

A proxy may be several processes. Each program of the comparison leads a session of its own, so that all its processes
are found by the session's number.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_SESSION, _USER_TIME, _SYSTEM_TIME = 3, 11, 12  # in /proc/PID/stat, counted from the field after the name
_CPU_CLOCK: Final = 2  # CPUCLOCK_SCHED, in the last three bits of the number of a process's clock
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
    """User and system time of these processes so far, in seconds; of threads that have ended, too."""
    return sum(map(_cpu_seconds, numbers))


def memory(numbers: Iterable[int]) -> int:
    """Bytes of memory that these processes hold and that no file backs."""
    return sum(_own(Path(f"/proc/{number}/status").read_text()) for number in numbers)


def _cpu_seconds(number: int) -> float:
    """To the nanosecond by the process's own clock (clock_getcpuclockid(3)), and by ticks where the kernel has none."""
    try:
        return time.clock_gettime((~number << 3) | _CPU_CLOCK)
    except OSError:
        fields = _stat(number)
        return (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) / _TICKS


def _own(status: str) -> int:
    lines = (line.split() for line in status.splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words and words[0].rstrip(":") in _OWN)


def _stat(number: int) -> list[str]:
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
