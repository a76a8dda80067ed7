"""Reloads of a gateway process under load: its file, its metrics, and clients that count what goes wrong."""

import random
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key

from gateway.errors import GatewayError
from gateway.kmip.spec import ResultStatus
from gateway.tls import TlsStream, client_context
from tests.kit.processes import Gateway

RELOADS: Final = "kmip_gateway_config_reloads_total"
OPENED: Final = "kmip_gateway_sessions_opened_total"
SESSIONS: Final = "kmip_gateway_sessions"
_COUNTERS: Final = ("_total", "_count", "_bucket", "_sum")  # ends of the names of samples that never go backwards


class Reloads:
    """The configuration file of a gateway process, and its reloads."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.path = gateway.certificates.path(f"gateway-{gateway.port}.toml")
        self.original = self.path.read_text()
        self.samples: dict[str, float] = {}  # at the last look
        self.looks = 0

    async def look(self) -> None:
        """Read all metrics, and check that no counter has gone backwards. In a thread: the clients here go on.

        The series of an identity end when a reload removes it.
        """
        samples = await trio.to_thread.run_sync(self.gateway.metrics)
        before, self.samples = self.samples, samples
        self.looks += 1
        known = {"unidentified", *re.findall(r'(?m)^name = "(.*)"$', self.path.read_text())}
        counters = [name for name in before if name.partition("{")[0].endswith(_COUNTERS) and _identity(name) in known]
        assert [name for name in counters if samples.get(name, 0.0) < before[name]] == []

    def total(self, family: str, **labels: str) -> float:
        """Return the sum of the samples of a family with these labels, at the last look."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(
            value
            for sample, value in self.samples.items()
            if sample.partition("{")[0] == family and all(label in sample for label in wanted)
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        """Look at the metrics until a condition holds. Raises trio.TooSlowError after 15 s."""
        with trio.fail_after(15):
            await self.look()
            while not condition():
                await trio.sleep(0.1)
                await self.look()

    async def reload(self, text: str, result: str = "success") -> None:
        """Write the file, send SIGHUP, and wait until the reload is counted."""
        before = self.total(RELOADS, result=result)
        self.path.write_text(text)
        self.gateway.process.send_signal(signal.SIGHUP)
        await self.until(lambda: self.total(RELOADS, result=result) == before + 1)

    async def files_changed(self) -> None:
        """Wait until the gateway has noticed by itself that files have changed."""
        before = self.total(RELOADS)
        await self.until(lambda: self.total(RELOADS) == before + 1)


def _identity(sample: str) -> str:
    """Return the identity in the labels of a sample, or "unidentified"."""
    found = re.search(r'[{,]identity="(.*?)"', sample)
    return "unidentified" if found is None else found[1]


def table(text: str, name: str) -> str:
    """Return the table of a backend, an identity or a listener, with its head."""
    start = text.rindex("\n[[", 0, text.index(f'name = "{name}"'))
    end = text.find("\n[[", start + 1)
    return text[start : end if end > 0 else None]


@dataclass
class Failure:
    """A request without its answer, or a connection that was refused. ``port`` is the client's own."""

    kind: str
    port: int
    time: float  # trio's
    error: str


class Load:
    """Clients that ask without a break: kept ones, and some with a fresh connection for each request.

    A kept client looks before each request if the gateway has closed its connection, as a client with a list of idle
    connections does, and connects again: ``let_go`` counts that. All else that goes wrong is in ``failures``.
    """

    def __init__(self, gateway: Gateway, *, think: float = 0.02) -> None:
        self.gateway = gateway
        self.context = client_context(
            *gateway.certificates.client("alice"), gateway.certificates.path("gateway_ca.pem")
        )
        self.answered = {"kept": 0, "fresh": 0}
        self.failures: list[Failure] = []
        self.let_go = 0
        self.uid = ""
        self._think = think

    async def prepare(self) -> None:
        """Create the key that all clients read."""
        async with connect(self.gateway.address, self.context) as client:
            self.uid = (await client.ask(create_key())).items[0].unique_identifiers[0].decode()

    async def _ask(self, client: Client, kind: str) -> None:
        response = await client.ask(get_key(self.uid))
        assert response.items[0].status == ResultStatus.SUCCESS, response.items[0].message
        self.answered[kind] += 1
        await trio.sleep(random.uniform(0, self._think))

    async def keep(self) -> None:
        """Ask over one connection; after its end, over the next."""

        async def converse(client: Client) -> None:
            while not client.stream.peer_has_left():
                await self._ask(client, "kept")
            self.let_go += 1

        while True:
            await self._connect("kept", converse)

    async def come_and_go(self) -> None:
        """Ask over a fresh connection each time."""
        while True:
            await self._connect("fresh", lambda client: self._ask(client, "fresh"))

    async def _connect(self, kind: str, converse: Callable[[Client], Awaitable[None]]) -> None:
        """Connect and converse; note any failure, also of the handshake, with the client's port."""
        address, port = self.gateway.address, 0
        stream: TlsStream | None = None
        with trio.socket.socket() as connected:
            try:
                await connected.connect((address.host, address.port))
                port = connected.getsockname()[1]
                sock = socket.socket(fileno=connected.detach())
                stream = TlsStream(sock, self.context, server_side=False, server_name=address.host)
                await stream.handshake()
                await converse(Client(stream))
            except (OSError, GatewayError, AssertionError) as error:
                self.failures.append(Failure(kind, port, trio.current_time(), repr(error)))
            finally:
                if stream is not None:
                    stream.close_politely()


@asynccontextmanager
async def under_load(load: Load, *, kept: int = 4, fresh: int = 1) -> AsyncIterator[Load]:
    """Run clients for the length of a block."""
    await load.prepare()
    async with trio.open_nursery() as nursery:
        for _ in range(kept):
            nursery.start_soon(load.keep)
        for _ in range(fresh):
            nursery.start_soon(load.come_and_go)
        yield load
        nursery.cancel_scope.cancel()
