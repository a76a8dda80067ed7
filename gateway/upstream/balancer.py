"""Balancer: yields backends in the order in which a request should try them.

1. The preferred backend, if it is available: the one that holds the client's latest changes.
2. With round robin, the next in turn of the best tier, if no other backend can rank before it: the fast path.
3. All other backends that may run the request, by rank (see ``_rank``), those of equal rank by the policy.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import cycle
from typing import Final

from gateway.config import Balancing, BalancingConfig
from gateway.kmip.messages import Version
from gateway.policy import Effect
from gateway.upstream.backend import Backend
from gateway.upstream.health import HealthState

#: Ranks: the lowest is tried first. Tiers (priorities 0 to 9) count tens. Within a tier, a backend that has no free
#: session comes later, and one at which a request is overdue comes last. Backends that fail come after all tiers.
_TIER: Final = 10
_WAIT: Final = 1
_OVERDUE: Final = 2
_FAILING: Final = 1_000
_DOWN: Final = 2_000
_STANDBY: Final = 3_000  # it would answer with an error

_DEFAULT_POLICY: Final = BalancingConfig().policy

Choose = Callable[[Sequence[Backend]], Backend]


class Balancer:
    """Chooses among the backends that are best for a request, by weighted round robin or by exchanges in flight.

    ``backends`` may be replaced at any time.
    """

    def __init__(self, backends: Iterable[Backend], policy: Balancing = _DEFAULT_POLICY) -> None:
        self._backends: Sequence[Backend] = tuple(backends)
        self.set_policy(policy)

    def __repr__(self) -> str:
        return f"<Balancer of {len(self.backends)} backends>"

    def set_policy(self, policy: Balancing) -> None:
        """Choose by this policy from now on."""
        self._choose: Choose = _POLICIES[policy]
        self._takes_turns = self._choose is _in_turn
        self.backends = self._backends

    @property
    def backends(self) -> Sequence[Backend]:
        """All backends, in the order of the configuration."""
        return self._backends

    @backends.setter
    def backends(self, backends: Sequence[Backend]) -> None:
        self._backends = backends
        for backend in backends:
            backend.turn = 0  # a stale value from a previous list could starve a backend
        self._turns = [_turns(backends, Effect.READ), _turns(backends, Effect.MUTATE)] if self._takes_turns else []

    def order(
        self, credential: str, effect: Effect, version: Version, preferred: Backend | None = None
    ) -> Iterator[Backend]:
        """Yield each backend that may run such a request, once, best first.

        Ranks are computed anew for each backend that is yielded, among the backends that exist then. ``preferred``
        comes first if it is available; if it is not, rank decides. Failing backends come last: a try at a failing
        backend is better than an error without a try.
        """
        if preferred is None:
            first = self._next_if_ready(credential, effect, version)
        else:
            is_usable = preferred in self._backends and _is_available(preferred, credential, effect, version)
            first = preferred if is_usable else None
        if first is not None:
            yield first
        tried = [first]
        while left := [backend for backend in self._candidates(effect, version) if backend not in tried]:
            chosen = self._best(left, credential, effect)
            tried.append(chosen)
            yield chosen

    def _best(self, backends: Sequence[Backend], credential: str, effect: Effect) -> Backend:
        """Return the backend of the lowest rank; among equals the policy chooses."""
        ranks = [_rank(backend, credential, effect) for backend in backends]
        best = min(ranks)
        return self._choose([backend for backend, rank in zip(backends, ranks, strict=True) if rank == best])

    def _candidates(self, effect: Effect, version: Version) -> list[Backend]:
        """Return the backends that may run such a request and speak its version; if none speaks it, all that may."""
        able = [backend for backend in self._backends if backend.accepts(effect)]
        return [backend for backend in able if backend.speaks(version)] or able

    def _next_if_ready(self, credential: str, effect: Effect, version: Version) -> Backend | None:
        """Return the next in turn of the best tier, if it is up and has a free session; no other can rank before it.

        Nearly every request takes this path, which costs the same however many backends there are.
        """
        if not self._takes_turns:
            return None
        backend = next(self._turns[not effect.is_read], None)
        if backend is None or not backend.health.serves or not backend.speaks(version):
            return None
        breaker = backend.breaker
        if not backend.allows(credential, effect) or (not breaker.is_quiet and breaker.is_overdue(credential, effect)):
            return None
        pool = backend.pools.get(credential)
        if pool is None:
            return backend if backend.has_room_for(credential) and not backend.is_failing_with(credential) else None
        return backend if pool.has_room and not pool.is_failing else None

    def preferred_backend(
        self, stable_ids: Sequence[str], credential: str, effect: Effect, version: Version, *, is_new: bool
    ) -> Backend | None:
        """Return the first of these backends that is available to a credential for such a request.

        None for a request that only creates objects (``is_new``) if a backend of a better tier is available: such a
        request needs no earlier change, and the client returns to the better tier.
        """
        available = {
            backend.stable_id: backend
            for backend in self._backends
            if _is_available(backend, credential, effect, version)
        }
        preferred = next((available[name] for name in stable_ids if name in available), None)
        if preferred is None or not is_new:
            return preferred
        best = min(backend.options.priority for backend in available.values())
        return preferred if preferred.options.priority <= best else None

    def has_other(self, tried: Collection[Backend], credential: str, effect: Effect, version: Version) -> bool:
        """Return True if such a request could be sent to a backend that was not tried and has no overdue request."""
        return any(
            other not in tried
            and _is_available(other, credential, effect, version)
            and not other.breaker.is_overdue(credential, effect)
            for other in self._backends
        )

    def room_elsewhere(self, backend: Backend, credential: str, effect: Effect) -> int:
        """Return how many requests that wait at this backend the other backends could serve without a wait."""
        return sum(
            other.room_for(credential)
            for other in self._backends
            if other is not backend
            and other.accepts(effect)
            and other.is_available_to(credential, effect)
            and not other.breaker.is_overdue(credential, effect)
        )

    def serves_elsewhere(self, backend: Backend, credential: str) -> bool:
        """Return True if a different backend is reachable with a credential."""
        return any(other.is_reachable_with(credential) for other in self._backends if other is not backend)


def _is_available(backend: Backend, credential: str, effect: Effect, version: Version) -> bool:
    return backend.is_available_to(credential, effect) and backend.accepts(effect) and backend.speaks(version)


def _rank(backend: Backend, credential: str, effect: Effect) -> int:
    """Return the rank of a backend for a request: that of its tier, and a penalty for its state now."""
    rank = backend.options.priority * _TIER
    if not backend.health.serves:
        return rank + (_STANDBY if backend.health.state is HealthState.STANDBY else _DOWN)
    if backend.is_failing_with(credential) or not backend.allows(credential, effect):
        return rank + _FAILING
    if backend.breaker.is_overdue(credential, effect):
        return rank + _OVERDUE
    return rank if backend.has_room_for(credential) else rank + _WAIT


def _turns(backends: Iterable[Backend], effect: Effect) -> Iterator[Backend]:
    """Yield the backends of the best tier that may run requests of an effect, in turn, for ever.

    The turns are computed once, for as many requests as the weights add up to, and then repeat.
    """
    candidates = [backend for backend in backends if backend.accepts(effect)]
    best = min((backend.options.priority for backend in candidates), default=0)
    tier = [backend for backend in candidates if backend.options.priority == best]
    return cycle([_in_turn(tier) for _ in range(sum(backend.options.weight for backend in tier))])


def _in_turn(backends: Sequence[Backend]) -> Backend:
    """Choose by smooth weighted round robin, as nginx does.

    Each backend's ``turn`` gains its weight; the greatest is chosen, and loses the sum of the weights.
    """
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
    """Choose the backend with fewest exchanges in flight for its weight; among equals by round robin."""
    least = min(backend.in_flight / backend.options.weight for backend in backends)
    equals = [backend for backend in backends if backend.in_flight / backend.options.weight == least]
    return _in_turn(equals)


_POLICIES: Final[dict[str, Choose]] = {"round-robin": _in_turn, "least-outstanding": _least_in_flight}
