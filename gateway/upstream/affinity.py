"""Affinity: after a change, a client's requests prefer the backend that ran the change, for a short window.

The other backends may not have the change yet; see "Affinity" in gateway/dispatcher/replication.py. All
times are trio's, in seconds.
"""

from collections.abc import Collection
from typing import Final

from gateway.identity import Principal
from gateway.policy import Effect

_MAX_CLIENTS: Final = 100_000  # beyond, the clients whose latest change is the oldest are forgotten
_MAX_DESTROYED: Final = 1_000  # destroyed objects of one entry; beyond, the first are forgotten

_Client = tuple[str, str, str]
_Key = tuple[str, bool]


class AffinityEntry:
    """A client's preference for one backend, until ``expires_at``.

    ``backend`` is the backend's ``stable_id``. ``is_stateful`` is True if the client left state there that never
    replicates (a login, a multi-part operation, an asynchronous request), and False if it changed objects, which
    replicate. ``requests`` counts the requests that created or renewed the entry. ``destroyed_ids`` are identifiers of
    the objects that the client has destroyed there, the oldest first.
    """

    __slots__ = ("backend", "destroyed_ids", "expires_at", "is_stateful", "requests")

    def __init__(self, backend: str, *, is_stateful: bool) -> None:
        self.backend = backend
        self.is_stateful = is_stateful
        self.expires_at = float("-inf")
        self.requests = 0
        self.destroyed_ids: dict[bytes, None] = {}

    def __repr__(self) -> str:
        return f"<AffinityEntry {self.backend} until {self.expires_at:g}{', stateful' * self.is_stateful}>"

    def add_destroyed(self, identifiers: Collection[bytes]) -> None:
        """Record that the client has destroyed these objects; at most 1,000 are remembered."""
        self.destroyed_ids.update(dict.fromkeys(identifiers))
        while len(self.destroyed_ids) > _MAX_DESTROYED:
            del self.destroyed_ids[next(iter(self.destroyed_ids))]


class Affinity:
    """The affinity entries of all clients. An entry lasts ``window`` seconds after each request that creates it.

    If the key managers share their objects (``is_shared``), only requests of the effect STATEFUL create entries, and
    only stateful requests follow them. Backends are given by their ``stable_id``.
    """

    def __init__(self, window: float, *, is_shared: bool = True, max_clients: int = _MAX_CLIENTS) -> None:
        self.window = window
        self.is_shared = is_shared
        self._max_clients = max_clients
        #: Clients in the order of their latest note; each client's entries in the order of theirs.
        self._entries: dict[_Client, dict[_Key, AffinityEntry]] = {}
        #: Time until which an identity counts as having changed objects on a backend.
        self._changed: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return f"<Affinity of {len(self._entries)} clients>"

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, principal: Principal, effect: Effect, backend: str, now: float) -> AffinityEntry | None:
        """Create or renew the client's entry for a backend: a request of this effect is being sent, or was answered.

        Return the entry, for ``drop`` if the request turns out not to have run; None if such a request creates none.
        """
        is_stateful = effect is Effect.STATEFUL
        if not is_stateful and (self.is_shared or effect < Effect.STATEFUL):
            return None
        client, key = _client(principal), (backend, is_stateful)
        entries = self._entries.pop(client, {})
        entry = entries.pop(key, None)
        if entry is None or entry.expires_at <= now:
            entry = AffinityEntry(backend, is_stateful=is_stateful)
        entry.expires_at = now + self.window
        entry.requests += 1
        self._forget(now)
        live = {key: other for key, other in entries.items() if other.expires_at > now}
        self._entries[client] = {**live, key: entry}  # now the latest entry of the latest client
        if not is_stateful:
            self._note_change((principal.identity.name, backend), now)
        return entry

    def _note_change(self, identity_and_backend: tuple[str, str], now: float) -> None:
        if identity_and_backend not in self._changed:  # remove expired keys: addresses of a name come and go
            self._changed = {key: until for key, until in self._changed.items() if until > now}
        self._changed[identity_and_backend] = now + self.window

    def drop(self, principal: Principal, entry: AffinityEntry) -> None:
        """Undo one ``note``: remove the entry, unless another request has also created or renewed it."""
        entry.requests -= 1
        client, key = _client(principal), (entry.backend, entry.is_stateful)
        entries = self._entries.get(client, {})
        if not entry.requests and entries.get(key) is entry:
            del entries[key]
            if not entries:
                del self._entries[client]

    def entries(self, principal: Principal, now: float, *, is_stateful: bool) -> list[AffinityEntry]:
        """Return a client's entries, the latest first; a backend may have two.

        For a request that may depend on state of one server (``is_stateful``), stateful entries come first; for any
        other request they are left out.
        """
        if self.is_shared and not is_stateful:
            return []
        latest_first = reversed(self._entries.get(_client(principal), {}).values())
        found = [entry for entry in latest_first if entry.expires_at > now and (is_stateful or not entry.is_stateful)]
        return sorted(found, key=lambda entry: not entry.is_stateful)

    def changed_lately(self, identity: str, backend: str, now: float) -> bool:
        """Return True if any client of an identity has changed objects on a backend within the window."""
        return self._changed.get((identity, backend), now) > now

    def _forget(self, now: float) -> None:
        """Remove the oldest clients: all whose entries have expired, and more until there is space for one client."""
        while self._entries:
            oldest = next(iter(self._entries))
            is_live = max(entry.expires_at for entry in self._entries[oldest].values()) > now
            if is_live and len(self._entries) < self._max_clients:
                break
            del self._entries[oldest]


def _client(principal: Principal) -> _Client:
    return principal.identity.name, principal.issuer, principal.subject
