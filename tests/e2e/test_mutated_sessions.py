"""Mutated sessions against a running gateway: another client is served, and every resource is returned afterwards.

MUTATED_SECONDS (5 in the suite) and SEED choose length and course; `make fuzz` runs longer.
"""

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import get_key
from OpenSSL import SSL

from gateway.errors import GatewayError
from tests.benchmarks.crowd import Counters, Reads, ask_until, context_of, counters_of, created_key
from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import TARGETS
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_managers,
)

SECONDS = float(os.environ.get("MUTATED_SECONDS", "5"))
SEED = int(os.environ.get("SEED", "1"))
ATTACKERS = 4
WARM_UP = 2.0  # s, after which code and pools have the memory that they need
SETTLE = 20.0  # s until everything is given back
MORE_MEMORY = 24 * 1024 * 1024  # bytes
MORE_DESCRIPTORS = 4

pytestmark = pytest.mark.timeout(120 + 2 * SECONDS)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    certificates = Certificates(tmp_path_factory.mktemp("mutated"))
    identities = [Identity(name, f'{{ subject_cn = "{name}-*" }}', credential=name) for name in ("hostile", "calm")]
    settings = GatewaySettings([], identities, extra="[deadlines]\nrequest = 6\n")
    with running_key_managers(certificates) as ports:
        settings.backends = ports
        with running_gateway(certificates, settings) as gateway:
            yield gateway


def seeds() -> list[bytes]:
    """The messages of the fuzzer's corpus that are meant to be requests."""
    corpus = Path(__file__).parents[1] / "fuzz" / "corpus"
    found = [path.read_bytes() for name in ("request", "marks") for path in sorted((corpus / name).iterdir())]
    return [seed for seed in found if seed.startswith(b"\x42\x00\x78")]


async def attack(gateway: Gateway, context: SSL.Context, seed: int, until: float) -> None:
    """Open session after session, each with some mutated messages, cut and abandoned at any place."""
    rng = random.Random(seed)
    mutator = Mutator(seeds(), rng)
    while trio.current_time() < until:
        try:
            async with connect(gateway.address, context, server_name="localhost") as client:
                for _ in range(rng.randrange(1, 8)):
                    message = mutator.mutated()
                    cut = rng.randrange(len(message) + 1) if rng.random() < 0.3 else len(message)
                    await client.stream.send_all(message[:cut])
                    if rng.random() < 0.05:
                        break
                    await client.stream.send_all(message[cut:])
                    with trio.move_on_after(0.15):
                        await client.read_response()
                if rng.random() < 0.5:
                    client.stream.close()  # without close_notify
        except (GatewayError, OSError):
            pass


def leftovers(now: Counters, before: Counters) -> str:
    """Return what has not been given back; nothing if everything has."""
    descriptors = now.total("process_open_fds") - before.total("process_open_fds")
    memory = now.total("process_resident_memory_bytes") - before.total("process_resident_memory_bytes")
    held = {
        "connections": now.total("kmip_gateway_client_connections"),
        "requests in flight": now.total("kmip_gateway_requests_in_flight"),
        "bytes buffered": now.total("kmip_gateway_memory_buffered_bytes"),
        "busy sessions": now.total("kmip_gateway_sessions", state="busy"),
        "more descriptors": max(0.0, descriptors - MORE_DESCRIPTORS),
        "more bytes of memory": max(0.0, memory - MORE_MEMORY),
    }
    return ", ".join(f"{value:g} {name}" for name, value in held.items() if value)


async def settled(gateway: Gateway, before: Counters) -> str:
    """Wait until everything has been given back, for a while; return what has not."""
    for _ in range(int(SETTLE / 0.5)):
        if not (left := leftovers(await counters_of(gateway), before)):
            break
        await trio.sleep(0.5)
    return left


async def test_mutated_sessions_leave_nothing_behind(gateway: Gateway) -> None:
    frame = get_key(await created_key(gateway, "calm-1"))
    hostile, calm = context_of(gateway, "hostile-1"), context_of(gateway, "calm-1")
    reads = Reads()

    async def bombard(seconds: float, seed: int) -> None:
        until = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for number in range(ATTACKERS):
                nursery.start_soon(attack, gateway, hostile, seed * ATTACKERS + number, until)
            nursery.start_soon(partial(ask_until, gateway, calm, frame, reads, until=until, pause=0.02))

    await bombard(WARM_UP, SEED)
    await trio.sleep(1)
    before = await counters_of(gateway)
    await bombard(SECONDS, SEED + 1)

    assert await settled(gateway, before) == ""
    assert [read.error for read in reads.ended if read.error] == []
    assert len(reads.ended) > 20
    log = gateway.log.read_text(errors="replace")
    assert "report this bug" not in log
    assert "Traceback" not in log
    assert gateway.process.poll() is None


def test_seeds_are_whole_requests() -> None:
    for seed in seeds():
        TARGETS["request"](seed)
    assert len(seeds()) > 10
