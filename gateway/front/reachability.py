"""Reachability: new clients are refused while no key manager can be reached.

A client with a list of gateways goes to the next one only if this one refuses its connection; see docs/failover.md.
"""

from collections.abc import Callable, Iterable
from typing import Final

import trio

from gateway.front.listener import Listener
from gateway.log import Log

UNREACHABLE_FOR: Final = 5.0  # s without any reachable key manager before connections are refused
_INTERVAL: Final = 0.2  # s between two looks


class Reachability:
    """Decides from one look after the other whether new connections are accepted. Times are trio's seconds."""

    def __init__(self) -> None:
        self.accepts = True
        self._unreachable_since: float | None = None

    def __repr__(self) -> str:
        return f"<Reachability {'accepts' if self.accepts else 'refuses'}, none since {self._unreachable_since}>"

    def looked(self, now: float, *, reachable: bool) -> bool:
        """Take one look into account. Returns whether the decision has changed.

        The time is counted from the first look that found nobody, so that a process that stood still does not take
        its own pause for the key managers' absence.
        """
        before = self.accepts
        if reachable:
            self.accepts, self._unreachable_since = True, None
        elif self._unreachable_since is None:
            self._unreachable_since = now
        elif now - self._unreachable_since >= UNREACHABLE_FOR:
            self.accepts = False
        return self.accepts is not before


async def refuse_while_unreachable(listeners: Iterable[Listener], is_reachable: Callable[[], bool], log: Log) -> None:
    """Stop and resume all listeners' accepting as ``is_reachable`` says, for ever."""
    reachability = Reachability()
    while True:
        await trio.sleep(_INTERVAL)
        if reachability.looked(trio.current_time(), reachable=is_reachable()):
            _say(reachability, log)
        for listener in listeners:
            if reachability.accepts:
                listener.resume_accepting()
            else:
                listener.stop_accepting()


def _say(reachability: Reachability, log: Log) -> None:
    if reachability.accepts:
        log.info("accepting new connections again: a key manager can be reached")
        return
    log.error(
        "refusing new connections: no key manager can be reached; connected clients get errors",
        seconds=UNREACHABLE_FOR,
        key="failover.when_none",
    )
