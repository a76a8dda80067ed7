"""What the pools look like at the moment of a scrape."""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.upstream.backend import Backend


class PoolCollector(Collector):
    """Reads the states of all pools when somebody asks, so that requests need not keep gauges."""

    def __init__(self, backends: Callable[[], Sequence[Backend]]) -> None:
        self._backends = backends

    def collect(self) -> Iterable[Metric]:
        """The families, freshly counted."""
        up = GaugeMetricFamily("kmip_gateway_backend_up", "1 while sessions to it can be had.", labels=["backend"])
        sessions = GaugeMetricFamily("kmip_gateway_sessions", "Sessions, by state.", labels=["backend", "state"])
        maximum = GaugeMetricFamily("kmip_gateway_sessions_max", "max_sessions of the backend.", labels=["backend"])
        waiters = GaugeMetricFamily(
            "kmip_gateway_pool_waiters", "Requests that wait for a session.", labels=["backend"]
        )
        states = GaugeMetricFamily(
            "kmip_gateway_backend_state", "1 for the state that it is in.", labels=["backend", "state"]
        )
        limits = GaugeMetricFamily(
            "kmip_gateway_session_effective_idle_limit_seconds",
            "How long sessions may be idle, by the settings or as learned.",
            labels=["backend", "source"],
        )
        for backend in self._backends():
            counts = [pool.statistics() for pool in backend.pools.values()]
            up.add_metric([backend.name], float(backend.is_live))
            maximum.add_metric([backend.name], backend.slots.limit)
            waiters.add_metric([backend.name], sum(count.waiting for count in counts))
            limits.add_metric([backend.name, backend.idle_limit.source], backend.idle_limit.effective)
            for state in ("up", "standby", "down", "ejected", "half_open"):
                states.add_metric([backend.name, state], float(backend.state == state))
            for state in ("idle", "busy", "opening"):
                sessions.add_metric([backend.name, state], sum(getattr(count, state) for count in counts))
        yield from (up, states, sessions, maximum, waiters, limits)
