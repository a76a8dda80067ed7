"""Reachability: refuse new connections while no key manager can be reached.

A client with a list of gateways tries the next gateway only if its connection is refused; see docs/failover.md.
"""

from collections.abc import Callable, Iterable
from typing import Final, Protocol

import trio

from gateway.log import Log

UNREACHABLE_FOR: Final = 5.0  # s without any reachable key manager before connections are refused
_INTERVAL: Final = 0.2  # s between two checks


class Reachability:
    """Decides from a series of checks whether new connections are accepted. Times are trio's seconds."""

    def __init__(self) -> None:
        self.accepts = True
        self._unreachable_since: float | None = None

    def __repr__(self) -> str:
        return f"<Reachability {'accepts' if self.accepts else 'refuses'}, none since {self._unreachable_since}>"

    def update(self, now: float, *, reachable: bool) -> bool:
        """Update the decision after a check. Return True if the decision has changed.

        The time is counted from the first check that found no key manager, so that a pause of this process does not
        count as time without key managers.
        """
        before = self.accepts
        if reachable:
            self.accepts, self._unreachable_since = True, None
        elif self._unreachable_since is None:
            self._unreachable_since = now
        elif now - self._unreachable_since >= UNREACHABLE_FOR:
            self.accepts = False
        return self.accepts is not before


class Acceptor(Protocol):
    """Accepts connections: a Listener, or the TLS workers of a core."""

    def stop_accepting(self) -> None:
        """Have the kernel refuse new connections."""

    def resume_accepting(self) -> None:
        """Accept new connections again."""


async def refuse_while_unreachable(listeners: Iterable[Acceptor], is_reachable: Callable[[], bool], log: Log) -> None:
    """Stop all listeners from accepting while ``is_reachable`` returns False for 5 s and more. Runs for ever."""
    reachability = Reachability()
    while True:
        await trio.sleep(_INTERVAL)
        if reachability.update(trio.current_time(), reachable=is_reachable()):
            _log_change(reachability, log)
        for listener in listeners:
            if reachability.accepts:
                listener.resume_accepting()
            else:
                listener.stop_accepting()


async def log_while_unreachable(is_reachable: Callable[[], bool], log: Log) -> None:
    """Log when no key manager could be reached for 5 s, and when one can be reached again. Runs for ever."""
    reachability = Reachability()
    while True:
        await trio.sleep(_INTERVAL)
        if not reachability.update(trio.current_time(), reachable=is_reachable()):
            continue
        if reachability.accepts:
            log.info("a key manager can be reached again: clients are served")
        else:
            log.error("no key manager can be reached: clients get errors", seconds=UNREACHABLE_FOR)


def _log_change(reachability: Reachability, log: Log) -> None:
    if reachability.accepts:
        log.info("accepting new connections again: a key manager can be reached")
        return
    log.error(
        "refusing new connections: no key manager can be reached; connected clients get errors",
        seconds=UNREACHABLE_FOR,
        key="failover.when_none",
    )
