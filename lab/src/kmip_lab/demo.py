"""The demo: clients that open a session for every Get, straight to four key managers and through the gateway.

Everything is real but the HSM: four key managers in a process of their own, the gateway in another, mutual TLS between
all of them. What is shown is the difference that a pool of sessions makes where a handshake costs 60 ms.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final

import click
import trio
from OpenSSL import SSL
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gateway.config import Address
from gateway.errors import GatewayError
from gateway.kmip.spec import ResultStatus
from kmip_lab.client import client_context, connect, create_key, get_key
from kmip_lab.ending import unless_ended
from kmip_lab.programs import Place, prepare, programs

_HANDSHAKE_COST: Final = 0.06  # s, one at a time in each key manager
_CLIENTS: Final = 10
_DEFAULT_SECONDS: Final = 20.0  # of measuring, half of it straight and half through the gateway


@dataclass
class Measurement:
    """What one row of the table has counted so far; ``durations`` holds the seconds of each Get with its session."""

    title: str
    durations: list[float] = field(default_factory=list)
    errors: int = 0
    began: float = 0.0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Gets a second."""
        return len(self.durations) / self.seconds if self.seconds else 0.0

    def row(self) -> tuple[str, ...]:
        """The cells of the table."""
        ordered = sorted(self.durations)
        middle = f"{1000 * ordered[len(ordered) // 2]:.1f} ms" if ordered else "-"
        slow = f"{1000 * ordered[int(len(ordered) * 0.99)]:.1f} ms" if ordered else "-"
        return self.title, str(len(ordered)), f"{self.rate:.0f}", middle, slow, str(self.errors)


@click.command()
@click.option("--seconds", type=click.FloatRange(1), help="End by itself after measuring for so long.")
@click.option("--clients", default=_CLIENTS, show_default=True, type=click.IntRange(1), help="Clients at once.")
def demo(seconds: float | None, clients: int) -> None:
    """Show what the gateway does: clients with a session for every Get, without it and with it.

    Runs four simulated key managers and a gateway on this machine, prints both rates and their ratio, and stays up for
    clients of your own until Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="kmip-gateway-demo-") as directory:
        sys.exit(trio.run(unless_ended, partial(_demo, Path(directory), seconds, clients)) or 0)


async def _demo(directory: Path, seconds: float | None, clients: int) -> int:
    console = Console()
    place = prepare(directory)
    async with programs(place, handshake_cost=_HANDSHAKE_COST):
        measurements = await _measure(place, console, seconds or _DEFAULT_SECONDS, clients)
        _report(place, console, measurements)
        if seconds is None:
            _invite(place, console)
            console.print("\nCtrl-C ends the demo.")
            await trio.sleep_forever()
    return 0 if all(measurement.durations and not measurement.errors for measurement in measurements) else 1


# Measuring -----------------------------------------------------------------------------------------------------------


async def _measure(place: Place, console: Console, seconds: float, clients: int) -> list[Measurement]:
    straight = Measurement("straight to the key managers")
    through = Measurement("through the gateway")
    as_gateway = client_context(
        place.file("gateway-client.pem"), place.file("gateway-client.key"), place.file("kms-ca.pem")
    )
    as_client = client_context(place.file("client.pem"), place.file("client.key"), place.file("gateway-ca.pem"))
    async with connect(place.gateway, as_client, server_name="localhost") as client:
        created = await client.ask(create_key())
    request = get_key(created.items[0].unique_identifiers[0].decode())
    console.print(
        f"{clients} clients at once, a fresh session for every Get; a handshake costs each key manager "
        f"{1000 * _HANDSHAKE_COST:.0f} ms."
    )
    work = (
        (straight, as_gateway, list(place.key_managers.values())),
        (through, as_client, [place.gateway]),
    )
    with Live(console=console, refresh_per_second=4, get_renderable=lambda: _table([straight, through])):
        for measurement, context, addresses in work:
            await _load(measurement, context, addresses, request, seconds / 2, clients)
    return [straight, through]


async def _load(
    measurement: Measurement,
    context: SSL.Context,
    addresses: Sequence[Address],
    request: bytes,
    seconds: float,
    clients: int,
) -> None:
    turns = cycle(addresses)
    with _timed(measurement):
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_keep_time, measurement)
                for _ in range(clients):
                    nursery.start_soon(_client, measurement, context, turns, request)


async def _client(measurement: Measurement, context: SSL.Context, turns: Iterator[Address], request: bytes) -> None:
    """One client: connect, Get, close, and again."""
    while True:
        began = time.perf_counter()
        try:
            async with connect(next(turns), context, server_name="localhost") as client:
                response = await client.ask(request)
            if response.items[0].status == ResultStatus.SUCCESS:
                measurement.durations.append(time.perf_counter() - began)
            else:
                measurement.errors += 1
        except (GatewayError, OSError):
            measurement.errors += 1
            await trio.sleep(0.1)


@contextmanager
def _timed(measurement: Measurement) -> Iterator[None]:
    measurement.began = time.perf_counter()
    try:
        yield
    finally:
        measurement.seconds = time.perf_counter() - measurement.began


async def _keep_time(measurement: Measurement) -> None:
    while True:
        await trio.sleep(0.2)
        measurement.seconds = time.perf_counter() - measurement.began


# Showing -------------------------------------------------------------------------------------------------------------


def _ratio(measurements: Sequence[Measurement]) -> str:
    straight, through = measurements
    return f"{through.rate / straight.rate:.1f} x" if straight.rate and through.rate else "-"


def _table(measurements: Sequence[Measurement]) -> Table:
    table = Table(caption=f"ratio: {_ratio(measurements)}")
    for name in ("", "Gets", "Gets/s", "median", "99 %", "errors"):
        table.add_column(name, justify="left" if not name else "right")
    for measurement in measurements:
        table.add_row(*measurement.row())
    return table


def _report(place: Place, console: Console, measurements: Sequence[Measurement]) -> None:
    straight, through = measurements
    console.print(
        f"\nWithout the gateway {straight.rate:.0f} Gets/s, with it {through.rate:.0f} Gets/s: "
        f"[bold]ratio {_ratio(measurements)}[/bold]"
    )
    console.print(f"Metrics: http://{place.admin}/metrics")


def _invite(place: Place, console: Console) -> None:
    """Commands for a client of one's own, for as long as the demo stays up."""
    console.print("A client of your own (the certificates last as long as the demo):")
    certificate, key, ca = (place.file(name) for name in ("client.pem", "client.key", "gateway-ca.pem"))
    command = (
        f"openssl s_client -connect {place.gateway} -cert {certificate} -key {key} -CAfile {ca} "
        f"-verify_hostname localhost -quiet"
    )
    console.print(f"  {command}", soft_wrap=True, highlight=False)
    speed = (
        f"{sys.executable} -m kmip_lab speed --get --no-reuse --clients 1-10 --address {place.gateway} "
        f"--server-name localhost --certificate {certificate} --private-key {key} --ca {ca}"
    )
    console.print("or, to measure it with one to ten clients that open a session for every Get:")
    console.print(f"  {speed}", soft_wrap=True, highlight=False)
    pykmip = (
        f"from kmip.pie.client import ProxyKmipClient as C; c = C('{place.gateway.host}', {place.gateway.port}, "
        f"'{certificate}', '{key}', '{ca}', config_file='{os.devnull}'); c.open(); print(c.locate())"
    )
    console.print("or, with PyKMIP installed:")
    console.print(f'  python -c "{pykmip}"', soft_wrap=True, highlight=False)
