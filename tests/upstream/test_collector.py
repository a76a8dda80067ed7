"""Tests of the collector: a scrape shows the current states of backends and pools."""

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import wait_all_tasks_blocked

from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.collector import collect_pools
from gateway.upstream.health import Verdict
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import FakeKeyManager, in_virtual_time, lease, make_pool


def backend(name: str, nursery: trio.Nursery, limit: int = 2) -> Backend:
    key_manager, slots = FakeKeyManager(name), Slots(limit)
    pools = {
        credential: make_pool(key_manager, nursery.start_soon, credential=credential, slots=slots)[0]
        for credential in ("red", "blue")
    }
    return Backend(name, slots, pools)


def scrape(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a metric family, by the values of their labels."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
        if sample.name == f"kmip_gateway_{name}"
    }


@in_virtual_time
async def test_many_identities_are_read_between_the_parts_of_a_scrape(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics("test")
    backends = [backend(name, nursery) for name in ("atlanta", "london")]
    names = [f"identity-{number}" for number in range(1000)]
    collect_pools(metrics, lambda: backends, lambda: names)
    read: list[str] = []

    def is_reachable_with(_backend: Backend, name: str) -> bool:
        read.append(name)
        return True

    monkeypatch.setattr(Backend, "is_reachable_with", is_reachable_with)

    most = before = 0
    for _part in metrics.exposition_parts():
        most, before = max(most, len(read) - before), len(read)

    assert len(read) == 2000
    assert most <= 200  # lines of a part


@in_virtual_time
async def test_a_scrape_counts_sessions_over_all_credentials(nursery: trio.Nursery) -> None:
    atlanta, london = backend("atlanta", nursery), backend("london", nursery, limit=7)
    metrics = Metrics("test")
    collect_pools(metrics, lambda: [atlanta, london])
    red, blue = atlanta.pools["red"], atlanta.pools["blue"]
    red.give_back(await lease(red))
    await lease(blue)
    nursery.start_soon(lease, blue)
    nursery.start_soon(lease, blue)
    await wait_all_tasks_blocked()

    sessions = scrape(metrics, "sessions")
    assert {labels: value for labels, value in sessions.items() if value} == {
        ("atlanta", "idle"): 1,
        ("atlanta", "busy"): 1,
    }
    assert len(sessions) == 6
    assert scrape(metrics, "pool_waiters") == {("atlanta",): 2, ("london",): 0}
    assert scrape(metrics, "sessions_max") == {("atlanta",): 2, ("london",): 7}
    assert scrape(metrics, "backend_up") == {("atlanta",): 1, ("london",): 1}
    assert scrape(metrics, "session_idle_limit_seconds") == {
        ("atlanta", "config"): 25,
        ("london", "config"): 25,
    }


@in_virtual_time
async def test_a_scrape_shows_the_current_states(nursery: trio.Nursery) -> None:
    atlanta, london = backend("atlanta", nursery), backend("london", nursery)
    there = [atlanta, london]
    metrics = Metrics("test")
    collect_pools(metrics, lambda: there)
    assert scrape(metrics, "backend_state")["atlanta", "up"] == 1

    atlanta.health.checked(Verdict.FAILS)
    there.remove(london)

    assert scrape(metrics, "backend_up") == {("atlanta",): 0}
    assert scrape(metrics, "backend_state") == {
        ("atlanta", "up"): 0,
        ("atlanta", "standby"): 0,
        ("atlanta", "down"): 1,
        ("atlanta", "ejected"): 0,
        ("atlanta", "half_open"): 0,
        ("atlanta", "drained"): 0,
    }
