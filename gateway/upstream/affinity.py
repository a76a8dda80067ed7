"""Affinity: to which backends a client's requests go, after some that left something there which others may not have.

A change that was made on one key manager reaches the others late, where they replicate asynchronously; a stream or a
login never does. So for a while the client goes where it has been.
"""

from typing import Final

from gateway.identity import Principal
from gateway.policy import Effect

_MOST: Final = 100_000  # clients that are remembered; beyond, those that have waited longest are forgotten

_Client = tuple[str, str, str]
_Stay = tuple[str, bool]  # a backend, as marks know it, and whether what was left there is bound to it for ever


class Affinity:
    """Remembers, for ``window`` seconds after each such request, the backends of each client. Times are trio's.

    Where key managers share their objects (``is_shared``), only what they hold for themselves binds: requests of the
    effect BOUND follow each other, and nothing else does. Backends are known as in Backend.known_as.
    """

    def __init__(self, window: float = 10.0, *, is_shared: bool = True, most: int = _MOST) -> None:
        self._window = window
        self.is_shared = is_shared
        self._most = most
        #: Until when; clients and the backends of each in the order in which they were noted last.
        self._of: dict[_Client, dict[_Stay, float]] = {}

    def __repr__(self) -> str:
        return f"<Affinity of {len(self._of)} clients>"

    def __len__(self) -> int:
        return len(self._of)

    def note(self, principal: Principal, effect: Effect, backend: str, now: float) -> bool:
        """A request of this effect is about to run on a backend, or has run there. Returns whether that is news."""
        is_bound = effect is Effect.BOUND
        if not is_bound and (self.is_shared or effect < Effect.BOUND):
            return False
        client, stay = _client(principal), (backend, is_bound)
        stays = {one: until for one, until in self._of.pop(client, {}).items() if until > now}
        is_news = stays.pop(stay, None) is None
        stays[stay] = now + self._window
        self._forget(now)
        self._of[client] = stays
        return is_news

    def drop(self, principal: Principal, effect: Effect, backend: str) -> None:
        """What was noted did not run."""
        client = _client(principal)
        stays = self._of.get(client, {})
        stays.pop((backend, effect is Effect.BOUND), None)
        if not stays:
            self._of.pop(client, None)

    def stays(self, principal: Principal, now: float, *, is_bound: bool) -> list[str]:
        """The backends on which a client left something, the last one first.

        For a request that may depend on what a key manager holds for itself (``is_bound``), those come first on which
        it left such; for others they don't count.
        """
        if is_bound < self.is_shared:
            return []
        stays = reversed(self._of.get(_client(principal), {}).items())
        found = [stay for stay, until in stays if until > now and stay[1] <= is_bound]
        return list(dict.fromkeys(backend for backend, _ in sorted(found, key=lambda stay: not stay[1])))

    def _forget(self, now: float) -> None:
        """Let go of those whose window has ended, and of the oldest where there are too many."""
        while self._of:
            oldest = next(iter(self._of))
            if max(self._of[oldest].values()) > now and len(self._of) < self._most:
                break
            del self._of[oldest]


def _client(principal: Principal) -> _Client:
    return principal.identity.name, principal.issuer, principal.subject
