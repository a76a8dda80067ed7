"""The balancer: backends in the order in which a request should try them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import cycle
from typing import Final

from gateway.kmip.messages import Version
from gateway.policy import Effect
from gateway.upstream.backend import Backend
from gateway.upstream.health import HealthState

#: Ranks: the lowest is tried first. Priorities (0 to 9) count tens; a backend at which a request would have to wait, or
#: at which one is overdue, comes after the others of its own tier, and before the next tier.
_TIER: Final = 10
_WAIT: Final = 1
_OVERDUE: Final = 2
_FAILING: Final = 1_000
_DOWN: Final = 2_000
_STANDBY: Final = 3_000  # it would answer, and refuse

_TOUCH: Final = Effect.TOUCH  # a member of an enumeration is slow to come by

Choose = Callable[[Sequence[Backend]], Backend]


class Balancer:
    """Chooses among the backends that are best for a request, by weight and turn, or by what is under way.

    ``backends`` may be replaced at any time.
    """

    def __init__(self, backends: Iterable[Backend], policy: str = "round-robin") -> None:
        self._choose: Choose = _POLICIES[policy]
        self._takes_turns = self._choose is _in_turn
        self.backends = tuple(backends)

    def __repr__(self) -> str:
        return f"<Balancer of {len(self.backends)} backends>"

    @property
    def backends(self) -> Sequence[Backend]:
        """All backends there are."""
        return self._backends

    @backends.setter
    def backends(self, backends: Sequence[Backend]) -> None:
        self._backends = backends
        for backend in backends:
            backend.turn = 0  # the turns are made of these: from what an old list has left, some would get none at all
        self._turns = [_turns(backends, Effect.READ), _turns(backends, Effect.MUTATE)] if self._takes_turns else []

    def order(
        self, credential: str, effect: Effect, version: Version, preferred: Backend | None = None
    ) -> Iterator[Backend]:
        """Yield each backend that may run such a request once, best first; it is asked anew for each next one.

        ``preferred`` comes before all, if it is available and may. Those that don't speak the version are passed over,
        unless none does. Those that are failing come last: where nothing else is left, trying them is better than
        giving up. Where all are replaced meanwhile, it goes on with those that have come.
        """
        if preferred is not None:
            first = preferred if self._is_there(preferred, credential, effect, version) else None
        else:
            first = self._next_if_ready(credential, effect, version)
        if first is not None:
            yield first
        tried = [first]
        while left := [one for one in self._candidates(effect, version) if one not in tried]:
            best = _FAILING * 10
            equals: list[Backend] = []
            for backend in left:
                rank = _rank(backend, credential, effect)
                if rank < best:
                    best = rank
                    equals = [backend]
                elif rank == best:
                    equals.append(backend)
            chosen = equals[0] if len(equals) == 1 else self._choose(equals)
            tried.append(chosen)
            yield chosen

    def _candidates(self, effect: Effect, version: Version) -> list[Backend]:
        """Those that may run such a request and speak its version; where none does, those that may run it."""
        able = [one for one in self._backends if one.accepts(effect)]
        return [one for one in able if one.speaks(version)] or able

    def _next_if_ready(self, credential: str, effect: Effect, version: Version) -> Backend | None:
        """Whose turn it is in the best tier, if no other can be better: it is up, and has a session at hand.

        That is so nearly always, and costs the same however many backends there are.
        """
        if not self._takes_turns:
            return None
        backend = next(self._turns[effect > _TOUCH], None)
        if backend is None or not backend.health.serves or not backend.speaks(version):
            return None
        breaker = backend.breaker
        if not backend.allows(credential, effect) or (not breaker.is_quiet and breaker.is_overdue(credential, effect)):
            return None
        pool = backend.pools[credential]
        return backend if pool.has_room and not pool.is_failing else None

    def _is_there(self, backend: Backend, credential: str, effect: Effect, version: Version) -> bool:
        return backend in self._backends and _is_available(backend, credential, effect, version)

    def preferred_backend(
        self, stays: Sequence[str], credential: str, effect: Effect, version: Version, *, is_new: bool
    ) -> Backend | None:
        """The first of these backends that is available to a credential for such a request.

        None for a request that only makes something new (``is_new``), where one of a better tier is available: nothing
        binds that to a backend, and the client comes back to its tier.
        """
        available = {one.stable_id: one for one in self._backends if _is_available(one, credential, effect, version)}
        preferred = next((available[name] for name in stays if name in available), None)
        if preferred is None or not is_new:
            return preferred
        best = min(one.options.priority for one in available.values())
        return preferred if preferred.options.priority <= best else None

    def has_other(self, tried: Collection[Backend], credential: str, effect: Effect, version: Version) -> bool:
        """Return True if such a request could be sent to a backend that was not tried, and may be answered there soon.

        A backend at which requests are overdue is no help.
        """
        return any(
            other not in tried
            and _is_available(other, credential, effect, version)
            and not other.breaker.is_overdue(credential, effect)
            for other in self._backends
        )

    def room_elsewhere(self, backend: Backend, credential: str, effect: Effect) -> int:
        """Return how many requests that wait at this backend others could serve without a wait."""
        return sum(
            other.pools[credential].room
            for other in self._backends
            if other is not backend
            and other.accepts(effect)
            and other.is_available_to(credential, effect)
            and not other.breaker.is_overdue(credential, effect)
        )

    def serves_elsewhere(self, backend: Backend, credential: str) -> bool:
        """Return True if another backend is available to a credential."""
        return any(other.is_reachable_with(credential) for other in self._backends if other is not backend)


def _is_available(backend: Backend, credential: str, effect: Effect, version: Version) -> bool:
    return backend.is_available_to(credential, effect) and backend.accepts(effect) and backend.speaks(version)


def _rank(backend: Backend, credential: str, effect: Effect) -> int:
    pool = backend.pools[credential]
    rank = backend.options.priority * _TIER
    if not backend.health.serves:
        return rank + (_STANDBY if backend.health.state is HealthState.STANDBY else _DOWN)
    if pool.is_failing or not backend.allows(credential, effect):
        return rank + _FAILING
    if backend.breaker.is_overdue(credential, effect):
        return rank + _OVERDUE
    return rank if pool.has_room else rank + _WAIT


def _turns(backends: Iterable[Backend], effect: Effect) -> Iterator[Backend]:
    """The backends of the best tier that may run requests of an effect, in turn, for ever."""
    candidates = [backend for backend in backends if backend.accepts(effect)]
    best = min((backend.options.priority for backend in candidates), default=0)
    tier = [backend for backend in candidates if backend.options.priority == best]
    return cycle([_in_turn(tier) for _ in range(sum(backend.options.weight for backend in tier))])


def _in_turn(backends: Sequence[Backend]) -> Backend:
    """Smooth weighted round robin: each gains its weight, the richest is chosen and pays for all."""
    total = 0
    chosen = backends[0]
    for backend in backends:
        weight = backend.options.weight
        backend.turn += weight
        total += weight
        if backend.turn > chosen.turn:
            chosen = backend
    chosen.turn -= total
    return chosen


def _least_in_flight(backends: Sequence[Backend]) -> Backend:
    """The fewest exchanges under way for its weight; in turn among equals."""
    least = min(backend.in_flight / backend.options.weight for backend in backends)
    equals = [backend for backend in backends if backend.in_flight / backend.options.weight == least]
    return _in_turn(equals)


_POLICIES: Final[dict[str, Choose]] = {"round-robin": _in_turn, "least-outstanding": _least_in_flight}
