"""A gateway's own metrics, read from its admin port."""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from http.client import HTTPConnection
from typing import Final, TypeVar

import trio
from prometheus_client.parser import text_string_to_metric_families

from gateway.config import Address

SESSIONS_OPENED: Final = "kmip_gateway_sessions_opened_total"
CPU_SECONDS: Final = "process_cpu_seconds_total"
_TIMEOUT: Final = 10.0  # s

_T = TypeVar("_T")


def scrape(admin: Address) -> dict[str, float]:
    """Return every sample by its name, summed over its labels; 0 for names without a sample. Raises OSError."""
    connection = HTTPConnection(admin.host, admin.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] += sample.value
    return found


async def measured_with_full_pools(
    measure: Callable[[], Awaitable[_T]], admin: Address, most: int
) -> tuple[_T, dict[str, float]]:
    """Repeat a measurement until the gateway opens no session meanwhile, ``most`` times at the most.

    A gateway that has been running for long has full pools, and this is how a new gateway gets there. Return the last
    result, and by how much each sample of the gateway grew meanwhile.
    """
    after = await trio.to_thread.run_sync(scrape, admin)
    for _ in range(most):
        before, result = after, await measure()
        after = await trio.to_thread.run_sync(scrape, admin)
        if after[SESSIONS_OPENED] == before[SESSIONS_OPENED]:
            break
    return result, {name: value - before.get(name, 0.0) for name, value in after.items()}
