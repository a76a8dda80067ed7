"""Measure hostile peers: the cost of each attack to a neighbour, from real processes.

Every row starts a gateway before key managers that use little processor time, and a neighbour: a client of another
identity that sends one Get after the other, at first alone, then while attackers work. Attackers are processes of their
own, bounded in time, and stay on loopback. The rows use the command line, the configuration and the ports only, so that
two revisions can be compared: ``--json`` keeps the figures of a run, and ``--before`` shows them beside the figures of
the next run.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import click
import trio
from kmip_lab.compare import wire
from kmip_lab.tools import usage
from kmip_lab.tools.clients import connect

from gateway.errors import GatewayError
from gateway.kmip import compose, ttlv
from gateway.kmip.spec import Operation, Tag
from tests.benchmarks.attackers import Attack
from tests.benchmarks.crowd import Reads, ask_once, ask_until, context_of
from tests.benchmarks.outages import Figures, Row, measure, only_option, table
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    ended,
    free_port,
    is_listening,
    running_gateway,
    wait_until,
)

_ALONE: Final = 4.0  # s
_LEAD: Final = 1.0  # s of attack before the neighbour is measured
_PAUSE: Final = 0.002  # s between the neighbour's requests
_LIVEZ_EVERY: Final = 0.1  # s
_LIVEZ_PATIENCE: Final = 40.0  # s
_MEMORY_EVERY: Final = 0.2  # s
_MIB: Final = 1 << 20
_DESCRIPTORS: Final = 20_000
_PROCESSORS: Final = frozenset(os.sched_getaffinity(0))
_QUIET: Final = 3.0  # s after an attack, before memory is read and the neighbour measured again
_SETTINGS: Final = """
[deadlines]
drain = 0.5
[log]
level = "error"
"""


@dataclass
class _Options:
    """Seconds of each attack, and of each hold of many connections; the command line may change them.

    With ``apart``, the gateway has a processor of its own, as it has when its peers are other machines: attackers share
    the other processors with the neighbour and the key managers, and run only when these are idle.
    """

    attack: float = 8.0
    hold: float = 20.0
    apart: bool = False


_options = _Options()


class Attacker(NamedTuple):
    """An attack by name: see ``attackers``, also for ``number`` and ``sources``."""

    name: str
    number: int = 1
    sources: int = 1
    identity: str = "hostile"


@contextmanager
def _gateway(certificates: Certificates, *, listener: str = "", extra: str = "") -> Iterator[Gateway]:
    """Run a gateway before two key managers in one process, whose answers use little processor time."""
    ports = [free_port(), free_port()]
    certificate, key = certificates.pair("kms")
    command = [sys.executable, "-m", "kmip_lab.compare.backend", str(certificate), str(key)]
    command += [str(certificates.path("kms_clients_ca.pem")), *map(str, ports)]
    identities = [Identity(name, f'{{ subject_cn = "{name}-*" }}', credential=name) for name in ("hostile", "calm")]
    settings = GatewaySettings(ports, identities, listener=listener, extra=_SETTINGS + extra)
    with ended(subprocess.Popen(command)):
        wait_until(lambda: all(map(is_listening, ports)), "the key managers' start")
        with running_gateway(certificates, settings, is_measured=True) as gateway:
            if _options.apart:
                _set_apart(gateway)
            yield gateway


def _set_apart(gateway: Gateway) -> None:
    """Move the gateway to the last processor; this process runs on the other processors."""
    own = max(_PROCESSORS)
    for process in _processes(gateway):
        for task in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(task.name), {own})


@dataclass
class _Watch:
    """Observations of the gateway: the slowest /livez in seconds, and the most memory in MiB."""

    livez: float = 0.0
    memory: float = 0.0
    began: list[float] = field(default_factory=list)  # of /livez under way


def _memory(gateway: Gateway) -> float:
    """Return the memory of all processes of the gateway in MiB (PSS)."""
    return usage.whole_memory(_processes(gateway)) / _MIB


def _processes(gateway: Gateway) -> list[int]:
    """Return the gateway's process; with TLS workers, the supervisor, the core and the workers."""
    return [gateway.process.pid, *usage.children(gateway.process.pid)]


def _memory_by_process(gateway: Gateway, when: str) -> Figures:
    """Return the memory of each kind of process in MiB; nothing without TLS workers."""
    supervisor, *children = _processes(gateway)
    if not children:
        return {}
    kinds = {"supervisor": [supervisor], "core": children[:1], "workers": children[1:]}
    return {f"memory {when}: {kind}, MiB": usage.whole_memory(numbers) / _MIB for kind, numbers in kinds.items()}


async def _ask_livez(gateway: Gateway) -> None:
    with trio.move_on_after(_LIVEZ_PATIENCE), suppress(OSError, trio.BrokenResourceError):
        async with await trio.open_tcp_stream("127.0.0.1", gateway.admin_port) as stream:
            await stream.send_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            async for _ in stream:
                pass


@asynccontextmanager
async def _watched(gateway: Gateway) -> AsyncIterator[_Watch]:
    """Watch the gateway for the length of a block."""
    watch = _Watch(memory=_memory(gateway))

    async def ask() -> None:
        while True:
            began = trio.current_time()
            watch.began.append(began)
            await _ask_livez(gateway)
            watch.began.clear()
            watch.livez = max(watch.livez, trio.current_time() - began)
            await trio.sleep(_LIVEZ_EVERY)

    async def weigh() -> None:
        while True:
            watch.memory = max(watch.memory, _memory(gateway))
            await trio.sleep(_MEMORY_EVERY)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(weigh)
        yield watch
        watch.livez = max(watch.livez, *(trio.current_time() - began for began in watch.began), 0.0)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _attacked(gateway: Gateway, attackers: Sequence[Attacker], seconds: float) -> AsyncIterator[Figures]:
    """Attack for so many seconds; the attackers run when the block begins, and report their counts at its end."""
    done: Figures = {}
    processes = [_started(gateway, attacker, seconds) for attacker in attackers]
    try:
        for attacker, process in zip(attackers, processes, strict=True):
            if attacker.name in _READY and process.stdout is not None:
                await trio.to_thread.run_sync(process.stdout.readline)
        yield done
        for attacker, process in zip(attackers, processes, strict=True):
            done |= {f"attack: {name}": value for name, value in (await _outcome(attacker, process)).items()}
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _started(gateway: Gateway, attacker: Attacker, seconds: float) -> subprocess.Popen[bytes]:
    certificate, key = gateway.certificates.client(f"{attacker.identity}-1")
    attack = Attack(
        gateway.port,
        gateway.admin_port,
        str(certificate),
        str(key),
        str(gateway.certificates.path("gateway_ca.pem")),
        seconds,
        attacker.number,
        attacker.sources,
    )
    command = [sys.executable, "-m", "tests.benchmarks.attackers", attacker.name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if _options.apart:
        os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(attack)).encode())
    process.stdin.close()
    return process


_READY: Final = {"half_open", "idle"}  # attackers that say when all their connections are open


async def _outcome(attacker: Attacker, process: subprocess.Popen[bytes]) -> Figures:
    assert process.stdout is not None
    said = b""
    with trio.move_on_after(60):
        said = await trio.to_thread.run_sync(process.stdout.read, abandon_on_cancel=True)
    lines = said.splitlines()
    found: Figures = json.loads(lines[-1]) if lines else {f"{attacker.name} did not end": 1}
    return found


Ask = Callable[[Gateway, Reads, float], Awaitable[None]]


async def _keep_asking(gateway: Gateway, reads: Reads, until: float) -> None:
    await ask_until(gateway, context_of(gateway, "calm-1"), wire.REQUEST, reads, until=until, pause=_PAUSE)


async def _ask_afresh(gateway: Gateway, reads: Reads, until: float) -> None:
    """Send a request on each of many new connections; a refused connection is a failed request."""
    context = context_of(gateway, "calm-1")
    while trio.current_time() < until:
        before = len(reads.ended)
        try:
            with trio.fail_after(5):
                async with connect(gateway.address, context, server_name="localhost") as client:
                    await ask_once(client, wire.REQUEST, reads)
        except (GatewayError, OSError, trio.TooSlowError) as error:
            if len(reads.ended) == before:
                reads.refused(repr(error))
        await trio.sleep(0.02)


_LARGE: Final = compose.encode_request(
    (1, 2), [compose.Ask(Operation.ENCRYPT, ttlv.octets(Tag.DATA, bytes(20 * 1024)))]
)


async def _ask_large(gateway: Gateway, reads: Reads, until: float) -> None:
    """Send requests of 20 KiB, which the gateway counts against its limit of memory."""
    await ask_until(gateway, context_of(gateway, "calm-1"), _LARGE, reads, until=until, pause=_PAUSE)


def _percentile(reads: Reads, share: float) -> float:
    """Return a percentile of seconds, in milliseconds."""
    times = sorted(read.seconds for read in reads.ended)
    return times[min(len(times) - 1, int(len(times) * share))] * 1000 if times else float("nan")


def _figures(when: str, reads: Reads) -> Figures:
    return {
        f"{when}: p50, ms": _percentile(reads, 0.5),
        f"{when}: p99, ms": _percentile(reads, 0.99),
        f"{when}: longest, ms": reads.longest * 1000,
        f"{when}: requests": len(reads.ended),
        f"{when}: failed": reads.failed,
    }


def _ratios(alone: Reads, attacked: Reads) -> Figures:
    return {
        "ratio of p50": _percentile(attacked, 0.5) / _percentile(alone, 0.5),
        "ratio of p99": _percentile(attacked, 0.99) / _percentile(alone, 0.99),
    }


async def _asked(gateway: Gateway, ask: Ask, seconds: float) -> Reads:
    reads = Reads()
    await ask(gateway, reads, trio.current_time() + seconds)
    return reads


async def _compare(
    certificates: Certificates,
    attackers: Sequence[Attacker],
    *,
    ask: Ask = _keep_asking,
    listener: str = "",
    extra: str = "",
    lead: float = _LEAD,
) -> Figures:
    """Measure a neighbour alone, and ``lead`` seconds after the beginning of an attack."""
    for attacker in attackers:
        certificates.client(f"{attacker.identity}-1")
    with _gateway(certificates, listener=listener, extra=extra) as gateway:
        await _asked(gateway, ask, 0.5)
        memory = _memory(gateway)
        alone = await _asked(gateway, ask, _ALONE)
        async with (
            _watched(gateway) as watch,
            _attacked(gateway, attackers, lead + _options.attack + 1) as done,
        ):
            await trio.sleep(lead)
            attacked = await _asked(gateway, ask, _options.attack)
        await trio.sleep(_QUIET)
        return {
            **_figures("alone", alone),
            **_figures("attacked", attacked),
            **_ratios(alone, attacked),
            "livez at worst, s": watch.livez,
            "memory before, MiB": memory,
            "memory at most, MiB": watch.memory,
            "memory after, MiB": _memory(gateway),
            **done,
        }


async def _hold(certificates: Certificates, attacker: Attacker) -> Figures:
    """Measure a client before, while and after many connections are held."""
    with _gateway(certificates) as gateway:
        await _asked(gateway, _keep_asking, 0.5)
        memory, parts = _memory(gateway), _memory_by_process(gateway, "before")
        before = await _asked(gateway, _keep_asking, _ALONE)
        async with _watched(gateway) as watch, _attacked(gateway, [attacker], _options.hold + 1) as done:
            during = await _asked(gateway, _keep_asking, _options.hold)
            held = _memory(gateway)
            parts |= _memory_by_process(gateway, "during")
        await trio.sleep(_QUIET)
        after = await _asked(gateway, _keep_asking, _ALONE)
        return {
            **_figures("before", before),
            **_figures("during", during),
            **_figures("after", after),
            **_ratios(before, during),
            "livez at worst, s": watch.livez,
            "memory before, MiB": memory,
            "memory during, MiB": held,
            "memory at most, MiB": watch.memory,
            "memory after, MiB": _memory(gateway),
            **parts,
            **done,
        }


async def _over_the_limit(certificates: Certificates) -> Figures:
    """An identity with ``max_clients = 5`` opens 170 connections to a listener for 150 clients."""
    certificate, key = certificates.credential("few")
    identity = f"""
[[identities]]
name = "few"
match = {{ subject_cn = "few-1" }}
certificate = "{certificate.name}"
private_key = "{key.name}"
max_clients = 5
"""
    attackers = [Attacker("over_the_limit", 170, identity="few")]
    return await _compare(certificates, attackers, ask=_ask_afresh, listener="max_clients = 150", extra=identity)


_BUFFERS: Final = "[limits]\nmax_buffered = 8388608\n"
_MANY: Final = 2000

ROWS: Final = {
    "b1": Row("KeyUpdate flood by three connections", 120, partial(_compare, attackers=[Attacker("key_updates")] * 3)),
    "b2": Row("requests of 130,000 empty fields", 120, partial(_compare, attackers=[Attacker("empty_fields")])),
    "b3": Row(
        "ClientHellos in one-byte records, 8 a second", 120, partial(_compare, attackers=[Attacker("tiny_records", 8)])
    ),
    "b4": Row(
        "2,000 half-open connections of one address; the neighbour connects anew each time",
        120,
        partial(_compare, attackers=[Attacker("half_open", _MANY)], ask=_ask_afresh),
    ),
    "b4-limit": Row(
        "170 connections of an identity with max_clients = 5; the neighbour connects anew", 120, _over_the_limit
    ),
    "b6": Row(
        "unfinished requests fill max_buffered of 8 MiB; the neighbour's requests are 20 KiB",
        120,
        partial(_compare, attackers=[Attacker("unfinished_requests")], ask=_ask_large, extra=_BUFFERS),
    ),
    "b7": Row(
        "400 busy connections of one client", 120, partial(_compare, attackers=[Attacker("busy", 400)], lead=4.0)
    ),
    "b8-h2": Row("HTTP/2 rapid reset on the admin port", 120, partial(_compare, attackers=[Attacker("h2_resets", 4)])),
    "b8-scrape": Row("eight scrapers that pipeline", 120, partial(_compare, attackers=[Attacker("scrapes", 8)])),
    "b8-hog": Row("admin connections without end", 120, partial(_compare, attackers=[Attacker("admin_connections")])),
    "half-open": Row(
        "2,000 half-open connections are held", 900, partial(_hold, attacker=Attacker("half_open", _MANY, 20))
    ),
    "idle": Row("2,000 idle connections are held", 900, partial(_hold, attacker=Attacker("idle", _MANY, 20))),
}


_FILE: Final = click.Path(dir_okay=False, path_type=Path)


@click.command()
@only_option(ROWS)
@click.option("--seconds", default=8.0, show_default=True, help="How long each attack is looked at.")
@click.option("--hold", default=20.0, show_default=True, help="How long many connections are held; 300 for the record.")
@click.option("--apart", is_flag=True, help="Give the gateway a processor of its own; attackers yield to the others.")
@click.option("--json", "save", type=_FILE, help="Write the figures to this file, too.")
@click.option("--before", type=_FILE, help="A file of --json, to show its figures beside the new ones.")
def main(only: list[str], seconds: float, hold: float, apart: bool, save: Path | None, before: Path | None) -> None:
    """Measure attacks with real processes, some six minutes for all rows, and print a Markdown table.

    One run each: on a machine that does other work the ratios of p99 tell more than the times.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _DESCRIPTORS), hard))
    _options.attack, _options.hold, _options.apart = seconds, hold, apart
    if apart:
        os.sched_setaffinity(0, _PROCESSORS - {max(_PROCESSORS)})
    earlier = None if before is None else json.loads(before.read_text())
    found: dict[str, Figures] = {}
    for key in only:
        began = time.monotonic()
        found[key] = trio.run(measure, ROWS[key])
        click.echo(f"row {key}: {time.monotonic() - began:.0f} s", err=True)
        if save is not None:
            save.write_text(json.dumps(found, indent=2) + "\n")
    click.echo(table(found, earlier, ROWS))


if __name__ == "__main__":
    main()
