"""Clients that ask again and again, and key managers that are checked and kept warm as in the running gateway."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from gateway import log
from gateway.config import HealthConfig, PoolConfig
from gateway.kmip.messages import Request
from gateway.kmip.spec import ResultStatus
from gateway.upstream.backend import Backend
from gateway.upstream.health_check import HealthChecker
from gateway.upstream.maintenance import maintain_pools, watch
from gateway.upstream.open_session import VALIDATION_REQUESTS
from tests.kit.deployment import Deployment
from tests.kit.fake_backends import ask

#: One session is kept warm for each credential.
WARM: Final = PoolConfig(min_idle=1, lifetime_spread=0.0)
_HEALTH_CHECK: Final = VALIDATION_REQUESTS["discover-versions"]


def maintain(it: Deployment, *, credential: str = "red") -> None:
    """Check, keep warm and watch every backend, as Upstream does. ``credential`` is that of the health check."""
    said = log.get("test")
    for backend in it.backends:
        checker = HealthChecker(backend, [credential], _HEALTH_CHECK, HealthConfig(jitter=0.0), it.metrics, said)
        it.nursery.start_soon(checker.run)
        it.nursery.start_soon(maintain_pools, backend.pools.values(), 3.0)
        it.nursery.start_soon(partial(watch, backend, balancer=it.balancer, metrics=it.metrics, log=said))


def failures_of(backend: Backend) -> int:
    """The number of failures in a row that count against a backend."""
    return max((circuit.failures for circuit in backend.breaker._circuits.values()), default=0)


class Tally:
    """Outcomes of requests: "ok", "failed" (by the key manager), or the reason of a refusal; and the slowest's time."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0

    def __repr__(self) -> str:
        return f"<Tally {dict(self.outcomes)}, the slowest took {self.slowest:.1f} s>"

    @property
    def failures(self) -> int:
        """The number of requests whose outcome was not "ok"."""
        return self.outcomes.total() - self.outcomes["ok"]

    def clear(self) -> None:
        """Reset the outcomes and the slowest time."""
        self.outcomes.clear()
        self.slowest = 0.0

    async def ask(self, it: Deployment, request: Request, credential: str = "red", name: str = "alice") -> None:
        """Ask a request, and count its outcome."""
        began = trio.current_time()
        answer = await it.ask(request, credential, name)
        self.slowest = max(self.slowest, trio.current_time() - began)
        if answer.refusal is not None:
            outcome = str(answer.refusal.value)
        else:
            assert answer.response is not None
            outcome = "ok" if answer.response.items[0].status == ResultStatus.SUCCESS else "failed"
        self.outcomes[outcome] += 1


def get(_client: int, _round: int) -> Request:
    """Return a Get of the same key each time."""
    return ask("key")


async def client(
    it: Deployment,
    tally: Tally,
    number: int,
    pause: float,
    request: Callable[[int, int], Request] = get,
    credential: str = "red",
) -> None:
    """Ask for ever, with a pause after each answer. ``request`` makes a request of two numbers: client and round."""
    turn = 0
    while True:
        turn += 1
        await tally.ask(it, request(number, turn), credential, f"client-{number}")
        await trio.sleep(pause)
