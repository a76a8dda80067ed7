"""Processor time and memory of processes and of the machine, read from the kernel (proc(5)).

A proxy may be several processes. Each program leads a session of its own, so that all its processes are found by the
session's number.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_SESSION, _USER_TIME, _SYSTEM_TIME = 3, 11, 12  # in /proc/PID/stat, counted from the field after the name
_CPU_CLOCK: Final = 2  # CPUCLOCK_SCHED, in the last three bits of the number of a process's clock
_IDLE: Final = (3, 4)  # idle and iowait in /proc/stat
_TICKS: Final = os.sysconf("SC_CLK_TCK")
#: Pages that no file backs. A proxy's program and its libraries are on disk, and shared with other processes.
_OWN: Final = ("Pss_Anon", "Pss_Shmem")


def processes(sessions: Iterable[int]) -> list[int]:
    """Return the numbers of all processes in these sessions."""
    wanted = set(sessions)
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            with suppress(OSError):  # it has ended in the meantime
                if int(_stat(int(directory.name))[_SESSION]) in wanted:
                    found.append(int(directory.name))
    return sorted(found)


def children(number: int) -> list[int]:
    """Return the numbers of a process's children that run, the oldest first."""
    return [int(word) for word in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


def cpu_seconds(numbers: Iterable[int]) -> float:
    """Return user and system time of these processes so far, in seconds, with that of threads that have ended."""
    return sum(map(_cpu_seconds, numbers))


def memory(numbers: Iterable[int]) -> int:
    """Return the bytes of memory that these processes hold and that no file backs.

    A page that several processes share since a fork counts once in all, as a proportional part of each.
    """
    return sum(_proportional(number, *_OWN) for number in numbers)


def whole_memory(numbers: Iterable[int]) -> int:
    """Return the bytes of memory of these processes, with their parts of the pages that they share (PSS)."""
    return sum(_proportional(number, "Pss") for number in numbers)


def _cpu_seconds(number: int) -> float:
    """Read the process's own clock (clock_getcpuclockid(3)), or its ticks if the kernel has no such clock."""
    try:
        return time.clock_gettime((~number << 3) | _CPU_CLOCK)
    except OSError:
        fields = _stat(number)
        return (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) / _TICKS


class MachineUse:
    """How busy all processors of this machine are, from the moment at which the object is made."""

    def __init__(self) -> None:
        self._busy, self._all = _ticks()
        self._own, self._began = _own_seconds(), time.monotonic()

    def busy(self) -> float:
        """Return the share of all processors' time that was not idle so far, from 0 to 1."""
        busy, ticks = _ticks()
        return (busy - self._busy) / (ticks - self._all) if ticks > self._all else 0.0

    def of_others(self) -> float:
        """Return how many processors other programs took so far, on average.

        This process and its children that have ended are no others. Interrupts, and time that a hypervisor gave to
        other machines, count as others.
        """
        seconds = time.monotonic() - self._began
        taken = (_ticks()[0] - self._busy) / _TICKS - (_own_seconds() - self._own)
        return max(0.0, taken / seconds) if seconds else 0.0


def _own_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _ticks() -> tuple[int, int]:
    """Return the ticks of all processors so far: busy, and in all, from /proc/stat."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - sum(fields[index] for index in _IDLE), sum(fields)


def _proportional(number: int, *names: str) -> int:
    lines = (line.split() for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[0].rstrip(":") in names)


def _stat(number: int) -> list[str]:
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
