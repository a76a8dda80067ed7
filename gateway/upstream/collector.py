"""Collector: gauges of backends and their pools, which are read during a scrape."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import trio

from gateway.fast_metrics import Reading
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend

_STATES: Final = ("up", "standby", "down", "ejected", "half_open", "drained")


def collect_pools(
    metrics: Metrics, backends: Callable[[], Sequence[Backend]], identities: Callable[[], Iterable[str]] = tuple
) -> None:
    """Read the gauges from ``backends()`` at each scrape, so that requests need not update them.

    ``identities`` returns the names of the identities in the configuration. Each backend is read when its lines are
    written: a scrape lets other tasks run between two parts of a metric.
    """

    def each(read: Callable[[Backend], Iterable[Reading]]) -> Callable[[], Iterable[Reading]]:
        return lambda: (reading for backend in list(backends()) for reading in read(backend))

    metrics.backend_up.set_function(each(lambda backend: [([backend.name], float(backend.is_live))]))
    metrics.backend_identity_up.set_function(each(lambda backend: _identities_up(backend, identities())))
    metrics.backend_weight.set_function(each(lambda backend: [([backend.name], backend.options.weight)]))
    metrics.backend_last_health_check.set_function(
        each(lambda backend: [([backend.name], backend.last_health_check_success)])
    )
    metrics.pool_oldest_waiter.set_function(each(_oldest_waiter))
    metrics.backend_state.set_function(
        each(lambda backend: [([backend.name, state], float(backend.state == state)) for state in _STATES])
    )
    metrics.sessions.set_function(each(_sessions))
    metrics.sessions_max.set_function(each(lambda backend: [([backend.name], backend.slots.limit)]))
    metrics.pool_waiters.set_function(
        each(lambda backend: [([backend.name], sum(pool.statistics().waiting for pool in backend.pools.values()))])
    )
    metrics.session_idle_limit.set_function(
        each(lambda backend: [([backend.name, backend.idle_limit.source], backend.idle_limit.effective)])
    )


def _identities_up(backend: Backend, identities: Iterable[str]) -> Iterator[Reading]:
    for name in list(identities):
        yield [backend.name, name], float(backend.is_reachable_with(name))


def _oldest_waiter(backend: Backend) -> list[Reading]:
    now = trio.current_time()
    waits = [pool.waiters.longest_wait(now) for pool in backend.pools.values()]
    return [([backend.name], max(waits, default=0.0))]


def _sessions(backend: Backend) -> list[Reading]:
    counts = [pool.statistics() for pool in backend.pools.values()]
    return [
        ([backend.name, "idle"], sum(count.idle for count in counts)),
        ([backend.name, "busy"], sum(count.busy for count in counts)),
        ([backend.name, "opening"], sum(count.opening for count in counts)),
    ]
