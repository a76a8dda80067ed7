"""The service manager's side of a process: readiness, watchdog and inherited sockets (sd_notify(3), sd_listen_fds(3)).

Everything here does nothing if no service manager has set its environment variables.
"""

import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import Final

import trio

_FIRST_DESCRIPTOR: Final = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Tells the service manager what the process does, over the datagram socket of ``NOTIFY_SOCKET``."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # the abstract name space of Linux
            self._address = "\0" + self._address[1:]
        self._watchdog = _watchdog_interval(environment)

    def ready(self) -> None:
        """Say that clients are served, at the start and at the end of a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a reload has begun; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """Say that the process drains. ``status`` is one line, which ``systemctl status`` shows."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    async def feed_watchdog(self) -> None:
        """Feed the watchdog from the event loop, for ever: a loop that stands still is restarted.

        Returns at once if the unit has no WatchdogSec.
        """
        while self._watchdog:
            self._send("WATCHDOG=1")
            await trio.sleep(self._watchdog / 3)

    def _send(self, message: str) -> None:
        """Send a datagram; a service manager that takes none costs the gateway nothing."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message.encode(), self._address)
        except OSError:
            return


def _watchdog_interval(environment: Mapping[str, str]) -> float:
    """Return the seconds of WatchdogSec, or 0 if there is none, or if it is another process's."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0


def inherited_sockets(environment: MutableMapping[str, str] = os.environ) -> dict[str, socket.socket]:
    """Return the listening sockets that the service manager opened, by their FileDescriptorName.

    The variables are removed, as sd_listen_fds(3) advises, so that no child takes the sockets for its own. A name that
    stands twice keeps its first socket; the others are closed.
    """
    owner, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if owner != str(os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, socket.socket] = {}
    for index in range(int(count)):
        sock = socket.socket(fileno=_FIRST_DESCRIPTOR + index)
        sock.set_inheritable(False)
        name = names[index] if index < len(names) else ""
        if name in found:
            sock.close()
        else:
            found[name] = sock
    return found
