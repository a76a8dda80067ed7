"""What the gateway itself spends: CPU time of its process, per request and per session, on this machine.

Four simulated key managers that answer at once, the gateway, and clients in this process, over real mutual TLS 1.3 with
P-256. The time is the kernel's account of the gateway's process, user and system, so that clients and key managers may
share the cores without being counted.
"""

import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import click
import trio
from OpenSSL import SSL
from rich.console import Console
from rich.table import Table

from kmip_lab.client import client_context, connect, create_key, get_key
from kmip_lab.programs import Place, prepare, programs

_CLIENTS: Final = 8
_WARM_UP: Final = 1.0  # s

Work = Callable[[], Awaitable[None]]


@click.command()
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(1), help="How long each case runs.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="How often; the best counts.")
def cpu(seconds: float, rounds: int) -> None:
    """Measure the gateway's own CPU time per Get: on kept sessions, and on a fresh session each."""
    with tempfile.TemporaryDirectory(prefix="kmip-gateway-cpu-") as directory:
        trio.run(_cpu, Path(directory), seconds, rounds)


async def _cpu(directory: Path, seconds: float, rounds: int) -> None:
    place = prepare(directory)
    table = Table("case", "Gets/s", "gateway CPU per Get")
    async with programs(place) as running:
        context = client_context(*place.pair("client"), place.file("gateway-ca.pem"))
        async with connect(place.gateway, context, server_name="localhost") as client:
            created = await client.ask(create_key())
        request = get_key(created.items[0].unique_identifiers[0].decode())
        for title, case in (("kept session", _kept), ("fresh session", _fresh)):
            results = [await _measure(running.gateway, case, place, context, request, seconds) for _ in range(rounds)]
            rate, cost = min(results, key=lambda result: result[1])
            table.add_row(title, f"{rate:.0f}", f"{1e6 * cost:.0f} us")
    Console().print(table)


async def _measure(
    process: int,
    case: Callable[[Place, SSL.Context, bytes, list[int]], Awaitable[None]],
    place: Place,
    context: SSL.Context,
    request: bytes,
    seconds: float,
) -> tuple[float, float]:
    """Gets a second, and the gateway's CPU seconds per Get."""
    done = [0]
    async with trio.open_nursery() as nursery:
        for _ in range(_CLIENTS):
            nursery.start_soon(case, place, context, request, done)
        await trio.sleep(_WARM_UP)
        before, count = cpu_seconds(process), done[0]
        await trio.sleep(seconds)
        spent, count = cpu_seconds(process) - before, done[0] - count
        nursery.cancel_scope.cancel()
    return count / seconds, spent / max(count, 1)


async def _kept(place: Place, context: SSL.Context, request: bytes, done: list[int]) -> None:
    async with connect(place.gateway, context, server_name="localhost") as client:
        while True:
            await client.ask(request)
            done[0] += 1


async def _fresh(place: Place, context: SSL.Context, request: bytes, done: list[int]) -> None:
    while True:
        async with connect(place.gateway, context, server_name="localhost") as client:
            await client.ask(request)
        done[0] += 1


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far, from /proc."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
