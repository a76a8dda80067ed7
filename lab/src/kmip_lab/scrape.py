"""What a gateway says of itself: its /metrics."""

from collections import defaultdict
from http.client import HTTPConnection
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from gateway.config import Address

SESSIONS_OPENED: Final = "kmip_gateway_sessions_opened_total"
CPU_SECONDS: Final = "process_cpu_seconds_total"
_TIMEOUT: Final = 10.0  # s


def scrape(admin: Address) -> dict[str, float]:
    """Every sample by its name, summed over labels; 0 for what there is none of. Raises OSError."""
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
