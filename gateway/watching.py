"""Files that change while the gateway runs: certificates that a tool renews, secrets that a platform replaces.

The files are looked at once a second, by name: a renewed file, a replaced directory (Kubernetes swaps a symbolic link)
and a file on a network are noticed alike, which notifications of the kernel can't do.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import trio

_INTERVAL: Final = 1.0  # s between two looks
_SETTLED: Final = 1.0  # s without a further change, before a change is told: a certificate and its key are two files

_State = dict[Path, tuple[int, int, int, int] | None]


class FileWatch:
    """Watches the files that ``files`` names at each look; their contents are not read."""

    def __init__(self, files: Callable[[], Iterable[Path]], *, interval: float = _INTERVAL, settled: float = _SETTLED):
        self._files = files
        self._interval = interval
        self._settled = settled
        self._state = self._look()

    async def changed(self) -> list[Path]:
        """Wait until files have changed, and have then been left alone for a while; return their names, sorted.

        A file that is missing counts as changed when it goes and when it comes. A file that is named for the first
        time does not.
        """
        changed: set[Path] = set()
        quiet_since = trio.current_time()
        while not changed or trio.current_time() - quiet_since < self._settled:
            await trio.sleep(self._interval)
            state = self._look()
            differing = {path for path in state if path in self._state and state[path] != self._state[path]}
            self._state = state
            if differing:
                changed |= differing
                quiet_since = trio.current_time()
        return sorted(changed)

    def add_new(self) -> None:
        """Watch the files that are named for the first time from now on, not only from the next look on.

        For the end of a reload, which has just read them. Changes of other files since the last look are not lost.
        """
        self._state = self._look() | self._state

    def _look(self) -> _State:
        return {path: _fingerprint(path) for path in self._files()}


def _fingerprint(path: Path) -> tuple[int, int, int, int] | None:
    """Return inode, size, and the times of change of the contents and of the inode; None if it can't be looked at.

    The inode changes with the permissions: a file that could not be read may be readable from then on.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
