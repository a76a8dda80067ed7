"""Endpoint: the addresses of a backend and the trust in its answers, as its pools and its health check share them."""

from collections.abc import Callable
from typing import Final

from gateway.config import Address
from gateway.upstream.session import Session

_NOWHERE: Final = Address("", 0)
_DISTRUST: Final = 600.0  # s for which a key manager is distrusted after a session with a fault


class Endpoint:
    """The configured ``address`` of a backend, and the IP addresses that sessions may lead to.

    ``hosts`` are the IP addresses of the backend at the last lookup of its name, in the resolver's order; sessions are
    opened to them, and sessions to any other address are closed. Empty means unknown: any address will do.
    ``connect_failed`` is called when no connection could be made.

    ``is_distrusted`` is True for ten minutes after the key manager has sent bytes that no request asked for, or has
    answered a different request. Meanwhile each session is validated before each request, so that bytes which the key
    manager still sends are not taken for the answer.
    """

    __slots__ = ("_distrusted_until", "address", "connect_failed", "hosts", "is_distrusted")

    def __init__(self, address: Address = _NOWHERE, hosts: tuple[str, ...] = ()) -> None:
        self.address = address
        self.hosts = hosts
        self.connect_failed: Callable[[], None] = lambda: None
        self.is_distrusted = False
        self._distrusted_until = float("-inf")

    def __repr__(self) -> str:
        return f"<Endpoint {self.address}: {', '.join(self.hosts) or 'any address'}>"

    def distrust(self, now: float) -> None:
        """Distrust the key manager for ten minutes."""
        self.is_distrusted = True
        self._distrusted_until = now + _DISTRUST

    def end_distrust_if_due(self, now: float) -> None:
        """End the distrust after its ten minutes. Each pool calls this in each round of maintenance."""
        if now >= self._distrusted_until:
            self.is_distrusted = False

    def is_current(self, session: Session) -> bool:
        """Return True if a session leads to an address that the backend has now."""
        return not self.hosts or session.peer in self.hosts
