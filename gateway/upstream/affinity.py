"""Affinity: to which backend a client's requests go, after one that left something there which others may not have.

A change that was made on one key manager reaches the others late, where they replicate asynchronously; a stream or a
login never does. So for a while the client goes where it has been.
"""

from typing import Final

from gateway.identity import Principal
from gateway.policy import Effect
from gateway.upstream.backend import Backend

_MOST: Final = 100_000  # clients that are remembered; beyond, those that have waited longest are forgotten

_Client = tuple[str, str, str]


class Affinity:
    """Remembers, for ``window`` seconds after each such request, the backend of each client. Times are trio's.

    Where key managers share their objects (``is_shared``), only what they hold for themselves binds: requests of the
    effect BOUND follow each other, and nothing else does.
    """

    def __init__(self, window: float = 10.0, *, is_shared: bool = True, most: int = _MOST) -> None:
        self._window = window
        self.is_shared = is_shared
        self._most = most
        self._of: dict[_Client, tuple[Backend, float]] = {}  # ordered by time, since every window is as long

    def __repr__(self) -> str:
        return f"<Affinity of {len(self._of)} clients>"

    def __len__(self) -> int:
        return len(self._of)

    def note(self, principal: Principal, effect: Effect, backend: Backend, now: float) -> None:
        """A request of this effect is about to run on a backend, or has run there."""
        if not (effect is Effect.BOUND if self.is_shared else effect >= Effect.BOUND):
            return
        client = _client(principal)
        self._of.pop(client, None)
        self._forget(now)
        self._of[client] = (backend, now + self._window)

    def prefers(self, principal: Principal, effect: Effect, now: float) -> Backend | None:
        """The backend that a request of this effect should go to, if any."""
        if not self._of or (self.is_shared and effect is not Effect.BOUND):
            return None
        backend, until = self._of.get(_client(principal), _NOTHING)
        return backend if now < until else None

    def _forget(self, now: float) -> None:
        """Let go of those whose window has ended, and of the oldest where there are too many."""
        while self._of:
            oldest = next(iter(self._of))
            if self._of[oldest][1] > now and len(self._of) < self._most:
                break
            del self._of[oldest]


def _client(principal: Principal) -> _Client:
    return principal.identity.name, principal.issuer, principal.subject


_NOTHING: Final = (None, float("-inf"))
