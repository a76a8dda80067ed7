"""The balancer: backends in the order in which a request should try them."""

from collections.abc import Iterator, Sequence

from gateway.upstream.backend import Backend
from gateway.upstream.pool import Pool


class Balancer:
    """Round robin: each request begins one backend further than the last."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self.backends = tuple(backends)
        self._next = 0

    def __repr__(self) -> str:
        return f"<Balancer of {len(self.backends)} backends>"

    def order(self, credential: str) -> Iterator[Pool]:
        """Yield the credential's pool at each backend once, best first.

        Those with a session at hand or room for one come first, then those where one would have to wait. What can't be
        reached comes last: where nothing else is left, trying it is better than giving up.
        """
        start = self._next
        self._next = (start + 1) % len(self.backends)
        waiting: list[Pool] = []
        failing: list[Pool] = []
        for backend in (*self.backends[start:], *self.backends[:start]):
            pool = backend.pools[credential]
            if pool.is_failing:
                failing.append(pool)
            elif pool.has_room:
                yield pool
            else:
                waiting.append(pool)
        yield from waiting
        yield from failing
