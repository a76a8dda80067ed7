"""Clients for the measurement of outages, and the counters that a gateway exports."""

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.request import urlopen

import trio
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key
from OpenSSL import SSL
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gateway.errors import GatewayError
from gateway.kmip.spec import ResultStatus
from gateway.tls import client_context
from tests.kit.processes import Gateway

PATIENCE: Final = 40.0  # s that a client waits for an answer; more than the gateway's own deadline
_RECONNECT: Final = 0.1  # s before a client whose connection was lost connects again


class Read(NamedTuple):
    """A request as its client saw it. ``began`` is in trio's seconds; ``error`` is empty after a success."""

    began: float
    seconds: float
    error: str


@dataclass
class Reads:
    """The requests of a crowd of clients that have ended."""

    ended: list[Read] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """The number of requests without a successful answer."""
        return sum(bool(read.error) for read in self.ended)

    @property
    def longest(self) -> float:
        """Seconds that the slowest request took, successful or not; 0 without any."""
        return max((read.seconds for read in self.ended), default=0.0)

    def refused(self, error: str) -> None:
        """Record a request that could not be sent because its connection was refused."""
        now = trio.current_time()
        self.ended.append(Read(now, 0.0, error))

    def since(self, began: float) -> "Reads":
        """The requests that ended after this moment."""
        return Reads([read for read in self.ended if read.began + read.seconds > began])


def context_of(gateway: Gateway, name: str) -> SSL.Context:
    """Return the TLS context of the client with this common name."""
    return client_context(*gateway.certificates.client(name), gateway.certificates.path("gateway_ca.pem"))


async def created_key(gateway: Gateway, name: str) -> str:
    """Create a key as this client, and return its unique identifier."""
    async with connect(gateway.address, context_of(gateway, name), server_name="localhost") as client:
        response = await client.ask(create_key())
        return response.items[0].unique_identifiers[0].decode()


async def ask_until(
    gateway: Gateway, context: SSL.Context, frame: bytes, reads: Reads, *, until: float, pause: float = 0.0
) -> None:
    """Send a request again and again over one connection, until a moment; connect again if the connection is lost."""
    while trio.current_time() < until:
        try:
            async with connect(gateway.address, context, server_name="localhost") as client:
                while trio.current_time() < until:
                    await ask_once(client, frame, reads)
                    await trio.sleep(pause)
        except (GatewayError, OSError):
            await trio.sleep(_RECONNECT)


async def ask_once(client: Client, frame: bytes, reads: Reads) -> None:
    """Send a request and note its end. Raises GatewayError if the connection is lost, OSError without an answer."""
    began, error = trio.current_time(), "cancelled"
    try:
        with trio.fail_after(PATIENCE):
            item = (await client.ask(frame)).items[0]
        error = "" if item.status == ResultStatus.SUCCESS else item.message or "failed"
    except trio.TooSlowError:
        error = f"no answer within {PATIENCE:g} s"
        raise TimeoutError(error) from None
    except GatewayError as lost:
        error = repr(lost)
        raise
    finally:
        reads.ended.append(Read(began, trio.current_time() - began, error))


class Counters:
    """The samples of a gateway at one moment."""

    def __init__(self, samples: list[Sample], families: set[str]) -> None:
        self._samples = samples
        self._families = families

    def total(self, family: str, **labels: str) -> float:
        """Return the sum of a family's samples with these labels; not a number if the family is not exported."""
        if family.removesuffix("_total") not in self._families:
            return math.nan
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == family and labels.items() <= sample.labels.items()
        )

    @property
    def handshakes(self) -> float:
        """The handshakes with key managers for the pools, successful or not; health checks are not counted."""
        return self.total("kmip_gateway_sessions_opened_total") + self.failed_opens

    @property
    def failed_opens(self) -> float:
        """The sessions that could not be opened."""
        return self.total("kmip_gateway_session_open_failures_total")


async def counters_of(gateway: Gateway) -> Counters:
    """Scrape a gateway."""
    return await trio.to_thread.run_sync(_scrape, gateway.admin_port)


def _scrape(port: int) -> Counters:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    return Counters([sample for family in families for sample in family.samples], {family.name for family in families})
