"""The command ``demo``: clients that open a session for every Get, to four key managers and through the gateway.

Everything is real but the HSM: four key managers and the gateway, each a process, with mutual TLS between all of them.
The demo shows the difference that a pool of sessions makes if a handshake costs 60 ms; then it kills a key manager
while the clients go on, and counts the errors.
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
from kmip_lab.certs import DevelopmentSet
from kmip_lab.tools.clients import connect, created_key
from kmip_lab.tools.interrupts import run_until_signal
from kmip_lab.tools.programs import Running, Site, prepare, programs
from kmip_lab.tools.requests import get_key
from kmip_lab.tools.statistics import percentile
from kmip_lab.tools.tables import milliseconds, terminal
from kmip_lab.tools.usage import MachineUse

_HANDSHAKE_COST: Final = 0.06  # s, one at a time in each key manager
_CLIENTS: Final = 10
_PHASES: Final = 3  # straight, through the gateway, and while a key manager is killed
_DEFAULT_SECONDS: Final = 30.0  # of all phases together
_ERROR_PAUSE: Final = 0.1  # s before a client tries again after an error
_KILLED: Final = "london-002"
_BUSY: Final = 0.9  # share of the processors' time from which on they limit the rate


@dataclass
class DemoPhase:
    """The counts of one row of the table; ``durations`` holds the seconds of each Get with its session."""

    title: str
    durations: list[float] = field(default_factory=list)
    errors: int = 0
    began: float = 0.0
    seconds: float = 0.0
    busy: float = 0.0

    @property
    def rate(self) -> float:
        """Gets a second."""
        return len(self.durations) / self.seconds if self.seconds else 0.0

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        ordered = sorted(self.durations)
        middle, slow = milliseconds(percentile(ordered, 0.5)), milliseconds(percentile(ordered, 0.99))
        return self.title, str(len(ordered)), f"{self.rate:.0f}", middle, slow, str(self.errors)


@click.command()
@click.option("--seconds", type=click.FloatRange(1), help="End by itself after measuring for this time.")
@click.option("--clients", default=_CLIENTS, show_default=True, type=click.IntRange(1), help="Clients at once.")
def demo(seconds: float | None, clients: int) -> None:
    """Show the gateway's gain: clients with a session for every Get, without the gateway and with it.

    Runs four simulated key managers and a gateway on this machine, prints both rates and their ratio, kills one of the
    key managers while the clients go on, and stays up for clients of your own until Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="kmip-gateway-demo-") as directory:
        sys.exit(trio.run(run_until_signal, partial(_demo, Path(directory), seconds, clients)) or 0)


async def _demo(directory: Path, seconds: float | None, clients: int) -> int:
    console = Console()
    site = prepare(directory)
    async with programs(site, handshake_cost=_HANDSHAKE_COST) as running:
        phases = await _measure(site, running, console, seconds or _DEFAULT_SECONDS, clients)
        _report(console, phases)
        if seconds is None:
            _invite(site, console)
            console.print("\nCtrl-C ends the demo.")
            await trio.sleep_forever()
    return 0 if all(phase.durations and not phase.errors for phase in phases) else 1


# Measuring -----------------------------------------------------------------------------------------------------------


async def _measure(site: Site, running: Running, console: Console, seconds: float, clients: int) -> list[DemoPhase]:
    straight = DemoPhase("straight to the key managers")
    through = DemoPhase("through the gateway")
    failover = DemoPhase(f"the same, {_KILLED} killed")
    phases = [straight, through, failover]
    as_gateway, as_client = site.files.gateway_context(), site.files.client_context()
    request = get_key(await created_key(site.gateway, as_client))
    console.print(
        f"{clients} clients at once, a fresh session for every Get; a handshake costs each key manager "
        f"{1000 * _HANDSHAKE_COST:.0f} ms."
    )
    each = seconds / _PHASES
    with Live(console=console, refresh_per_second=4, get_renderable=lambda: _table(phases)):
        await _load(straight, as_gateway, list(site.key_managers.values()), request, each, clients)
        await _load(through, as_client, [site.gateway], request, each, clients)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_kill_after, each / 4, running)
            await _load(failover, as_client, [site.gateway], request, each, clients)
    return phases


async def _kill_after(seconds: float, running: Running) -> None:
    await trio.sleep(seconds)
    running.key_managers[_KILLED].kill()


async def _load(
    phase: DemoPhase,
    context: SSL.Context,
    addresses: Sequence[Address],
    request: bytes,
    seconds: float,
    clients: int,
) -> None:
    turns = cycle(addresses)
    with _timed(phase), trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_time, phase)
            for _ in range(clients):
                nursery.start_soon(_client, phase, context, turns, request)


async def _client(phase: DemoPhase, context: SSL.Context, turns: Iterator[Address], request: bytes) -> None:
    """Connect, get the key, close, and begin again."""
    while True:
        began = time.perf_counter()
        try:
            async with connect(next(turns), context, server_name="localhost") as client:
                response = await client.ask(request)
            if response.items[0].status == ResultStatus.SUCCESS:
                phase.durations.append(time.perf_counter() - began)
            else:
                phase.errors += 1
        except (GatewayError, OSError):
            phase.errors += 1
            await trio.sleep(_ERROR_PAUSE)


@contextmanager
def _timed(phase: DemoPhase) -> Iterator[None]:
    use = MachineUse()
    phase.began = time.perf_counter()
    try:
        yield
    finally:
        phase.seconds = time.perf_counter() - phase.began
        phase.busy = use.busy()


async def _keep_time(phase: DemoPhase) -> None:
    """Keep the rate in the table right while the phase lasts."""
    while True:
        phase.seconds = time.perf_counter() - phase.began
        await trio.sleep(0.1)


# Showing --------------------------------------------------------------------------------------------------------------


def _ratio(phases: Sequence[DemoPhase]) -> str:
    straight, through = phases[:2]
    return f"{through.rate / straight.rate:.1f} x" if straight.rate and through.rate else "-"


def _table(phases: Sequence[DemoPhase]) -> Table:
    columns = ("", "Gets", "Gets/s", "median", "99 %", "errors")
    return terminal(columns, [phase.row() for phase in phases], caption=f"ratio: {_ratio(phases)}")


def _report(console: Console, phases: Sequence[DemoPhase]) -> None:
    straight, through, failover = phases
    console.print(
        f"\nWithout the gateway {straight.rate:.0f} Gets/s, with it {through.rate:.0f} Gets/s: "
        f"[bold]ratio {_ratio(phases)}[/bold]"
    )
    console.print(
        f"{_KILLED} was killed while the clients went on: {len(failover.durations)} Gets, "
        f"{failover.errors} errors through the gateway."
    )
    busy = max(phase.busy for phase in (through, failover))
    if busy >= _BUSY:
        console.print(
            f"The processors were the limit: all {os.cpu_count()} were {busy:.0%} busy with clients, gateway and key "
            "managers. On more or faster processors the ratio is higher."
        )


def _invite(site: Site, console: Console) -> None:
    """Print commands for a client of the reader's own, for as long as the demo stays up."""
    console.print(f"Metrics: http://{site.admin}/metrics")
    console.print("A client of your own (the certificates last as long as the demo):")
    certificate, key, ca = _client_files(site.files)
    command = (
        f"openssl s_client -connect {site.gateway} -cert {certificate} -key {key} -CAfile {ca} "
        f"-verify_hostname localhost -quiet"
    )
    console.print(f"  {command}", soft_wrap=True, highlight=False)
    speed = (
        f"{sys.executable} -m kmip_lab speed --get --no-reuse --clients 1-10 --address {site.gateway} "
        f"--server-name localhost --certificate {certificate} --private-key {key} --ca {ca}"
    )
    console.print("or, to measure it with one to ten clients that open a session for every Get:")
    console.print(f"  {speed}", soft_wrap=True, highlight=False)
    pykmip = (
        f"from kmip.pie.client import ProxyKmipClient as C; c = C('{site.gateway.host}', {site.gateway.port}, "
        f"'{certificate}', '{key}', '{ca}', config_file='{os.devnull}'); c.open(); print(c.locate())"
    )
    console.print("or, with PyKMIP installed:")
    console.print(f'  python -c "{pykmip}"', soft_wrap=True, highlight=False)


def _client_files(files: DevelopmentSet) -> tuple[Path, Path, Path]:
    """Return a client's certificate, its private key, and the CA of the gateway's certificate."""
    return *files.pair("client"), files.file("gateway-ca.pem")
