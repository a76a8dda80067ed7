"""Affinity: to which backends a client's requests go, after some that left something there which others may not have.

A change that was made on one key manager reaches the others late, where they replicate asynchronously; a stream or a
login never does. So for a while the client goes where it has been.
"""

from collections.abc import Collection
from typing import Final

from gateway.identity import Principal
from gateway.policy import Effect

_MOST: Final = 100_000  # clients that are remembered; beyond, those that have waited longest are forgotten
_MOST_GONE: Final = 1_000  # objects that a client destroyed on one backend; beyond, the first are forgotten

_Client = tuple[str, str, str]


class Stay:
    """What a client left on one backend, as marks know it, and ``until`` when its requests go there, in trio's time.

    ``is_bound`` says whether that backend alone will ever have it, as a stream or a login. ``notes`` counts the
    requests for which it was noted, ``gone`` holds the identifiers of what the client destroyed there.
    """

    __slots__ = ("backend", "gone", "is_bound", "notes", "until")

    def __init__(self, backend: str, *, is_bound: bool) -> None:
        self.backend = backend
        self.is_bound = is_bound
        self.until = float("-inf")
        self.notes = 0
        self.gone: dict[bytes, None] = {}

    def __repr__(self) -> str:
        return f"<Stay at {self.backend} until {self.until:g}{', bound' if self.is_bound else ''}>"

    def destroyed(self, identifiers: Collection[bytes]) -> None:
        """These objects are no more, whatever others still say."""
        self.gone.update(dict.fromkeys(identifiers))
        while len(self.gone) > _MOST_GONE:
            del self.gone[next(iter(self.gone))]


class Affinity:
    """Remembers, for ``window`` seconds after each such request, the backends of each client. Times are trio's.

    Where key managers share their objects (``is_shared``), only what they hold for themselves binds: requests of the
    effect BOUND follow each other, and nothing else does. Backends are known as in Backend.stable_id.
    """

    def __init__(self, window: float, *, is_shared: bool = True, most: int = _MOST) -> None:
        self._window = window
        self.is_shared = is_shared
        self._most = most
        #: Clients, and the stays of each, in the order in which they were noted last.
        self._of: dict[_Client, list[Stay]] = {}
        #: Until when somebody under an identity has lately changed something on a backend.
        self._changed: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return f"<Affinity of {len(self._of)} clients>"

    def __len__(self) -> int:
        return len(self._of)

    def note(self, principal: Principal, effect: Effect, backend: str, now: float) -> Stay | None:
        """A request of this effect is about to run on a backend, or has run there: the client's next ones follow it.

        Gives what to ``drop`` if it did not run after all; None where it binds nothing.
        """
        is_bound = effect is Effect.BOUND
        if not is_bound and (self.is_shared or effect < Effect.BOUND):
            return None
        client = _client(principal)
        stays = [one for one in self._of.pop(client, ()) if one.until > now]
        stay = next((one for one in stays if one.backend == backend and one.is_bound is is_bound), None)
        if stay is None:
            stay = Stay(backend, is_bound=is_bound)
        else:
            stays.remove(stay)
        stay.until = now + self._window
        stay.notes += 1
        self._forget(now)
        self._of[client] = [*stays, stay]
        if not is_bound:
            self._note_change((principal.identity.name, backend), now)
        return stay

    def _note_change(self, changed: tuple[str, str], now: float) -> None:
        if changed not in self._changed:  # backends come and go with the addresses of a name
            self._changed = {one: until for one, until in self._changed.items() if until > now}
        self._changed[changed] = now + self._window

    def drop(self, principal: Principal, stay: Stay) -> None:
        """What was noted did not run: the stay ends, unless it was noted for another request, too."""
        stay.notes -= 1
        client = _client(principal)
        stays = self._of.get(client, [])
        if not stay.notes and stay in stays:
            stays.remove(stay)
            if not stays:
                del self._of[client]

    def stays(self, principal: Principal, now: float, *, is_bound: bool) -> list[Stay]:
        """What a client left where, the last first; a backend may stand there twice.

        For a request that may depend on what a key manager holds for itself (``is_bound``), what is so held comes
        first; for others it does not count.
        """
        if is_bound < self.is_shared:
            return []
        stays = reversed(self._of.get(_client(principal), ()))
        found = [stay for stay in stays if stay.until > now and stay.is_bound <= is_bound]
        return sorted(found, key=lambda stay: not stay.is_bound)

    def changed_lately(self, identity: str, backend: str, now: float) -> bool:
        """Whether anybody under an identity has changed something on a backend within the window."""
        return self._changed.get((identity, backend), now) > now

    def _forget(self, now: float) -> None:
        """Let go of those whose window has ended, and of the oldest where there are too many."""
        while self._of:
            oldest = next(iter(self._of))
            if max(stay.until for stay in self._of[oldest]) > now and len(self._of) < self._most:
                break
            del self._of[oldest]


def _client(principal: Principal) -> _Client:
    return principal.identity.name, principal.issuer, principal.subject
