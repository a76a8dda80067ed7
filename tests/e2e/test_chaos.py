"""Chaos: key managers are killed, frozen, slowed down and made to misbehave under load; the ledger finds mistakes.

Four key managers, each a process of its own, two of them behind a relay and known by a name; two identities; clients
that never repeat a request, and one client of each identity whose only request breaks its session at every key manager.
At most two key managers are disturbed at any moment, so one that can answer is always up.

``make chaos`` runs it for a minute with 200 clients. Environment variables: CHAOS_SECONDS, CHAOS_CLIENTS, SEED;
CHAOS_LANES is how many key managers may be disturbed at once (0: a run without faults and poison, in which nothing may
fail); CHAOS_ONLY is a list of events, with commas, as the table at the end names them, or "poison".
"""

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import trio
from kmip_lab.keymanager import Store, read_journal

from tests.kit.fault_schedule import EVENTS, POISON_FAULT, FaultScheduler, Subject, Times
from tests.kit.ledger import Ledger, Stored
from tests.kit.load import Caller, Keys
from tests.kit.observation import Machine, all_up, watch_backends
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_manager_processes,
    wait_until,
)
from tests.kit.tcp_relay import Relay, resolver_environment, write_names

SECONDS: Final = float(os.environ.get("CHAOS_SECONDS", "12"))
CLIENTS: Final = int(os.environ.get("CHAOS_CLIENTS", "20"))  # of both identities together
LANES: Final = int(os.environ.get("CHAOS_LANES", "2"))  # key managers that are disturbed at once, at most
ONLY: Final = [name for name in os.environ.get("CHAOS_ONLY", "").split(",") if name]
RATE: Final = 200.0  # requests/s that all clients together make, at most: a machine with two cores has time to spare
THINK: Final = CLIENTS / RATE  # s between two requests of a client, on average
POISON_REPEATS: Final = 4
IDENTITIES: Final = ("red", "blue")
#: Key managers, and the addresses of those that are behind a relay.
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "atlanta-001": (),
    "atlanta-002": (),
    "london-001": ("127.0.0.2", "127.0.0.3"),
    "london-002": ("127.0.0.4", "127.0.0.5"),
}
TIMES: Final = Times(try_timeout=1.5, request=8.0)
DETECTION_TIME: Final = 2.0  # s in which the gateway must detect the master: some health checks, on a busy machine

SETTINGS: Final = f"""
[health]
interval = 0.3
timeout = 1.0
expect_text = "ServerType=master"

[failover]
try_timeout = {TIMES.try_timeout}

[deadlines]
request = {TIMES.request}

[balancing]
resolve_interval = 0.5
"""


class Setup(NamedTuple):
    """The programs under test, and the files of the run."""

    gateway: Gateway
    subjects: list[Subject]
    store: Path
    names: Path

    @property
    def relays(self) -> list[Relay]:
        """The relays in front of key managers."""
        return [one.relay for one in self.subjects if one.relay is not None]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    certificates = Certificates(tmp_path_factory.mktemp("chaos"))
    names = certificates.path("names.json")
    identities = [Identity(name, f'{{ subject_cn = "{name}-*" }}', credential=name) for name in IDENTITIES]
    with running_key_manager_processes(certificates, list(NAMES)) as key_managers:
        subjects = []
        for key_manager in key_managers:
            key_manager.set_faults(POISON_FAULT)
            hosts = NAMES[key_manager.name]
            relay = Relay(key_manager.port, hosts) if hosts else None
            subjects.append(Subject(key_manager, relay, f"{key_manager.name}.test"))
        write_names(names, {one.host: one.relay.host for one in subjects if one.relay is not None})
        settings = GatewaySettings(
            [one.address for one in subjects], identities, backend='probe = "query"', extra=SETTINGS
        )
        with running_gateway(certificates, settings, environment=resolver_environment(names)) as gateway:
            yield Setup(gateway, subjects, certificates.path("store.db"), names)


# The load -------------------------------------------------------------------------------------------------------------


async def live(caller: Caller, own: Keys, others: Keys, stop: trio.Event, rng: random.Random, *, kept: bool) -> None:
    """Create and Get, over long sessions or over short ones, until told to stop."""
    await trio.sleep(rng.uniform(0, THINK))
    while not stop.is_set():
        async with caller.session() as client:
            for _ in range(rng.randint(20, 200) if kept else rng.randint(1, 3)):
                if not own.uids or rng.random() < 0.25:
                    answer = await caller.create(client)
                elif others.uids and rng.random() < 0.03:
                    answer = await caller.get_foreign(client, rng.choice(others.uids))
                else:
                    answer = await caller.get(client, rng.choice(own.uids))
                if answer is None or stop.is_set():
                    break
                await trio.sleep(rng.expovariate(1 / THINK))


async def poison(caller: Caller, stop: trio.Event, rng: random.Random) -> None:
    """Send the request that breaks its session at every key manager, again and again, until told to stop.

    As clients do, this one repeats the request a few times at once before it pauses.
    """
    while not stop.is_set():
        async with caller.session() as client:
            await trio.sleep(rng.uniform(0.5, 1.5))
            for _ in range(POISON_REPEATS):
                if await caller.poison(client) is None or stop.is_set():
                    break


async def disturb(setup: Setup, ledger: Ledger, keys: dict[str, Keys], rng: random.Random) -> None:
    """Run the load and the faults for SECONDS, then one more second of load without faults."""
    calm, stop = trio.Event(), trio.Event()
    patience = TIMES.request + 5
    async with trio.open_nursery() as nursery:
        for own, others in (IDENTITIES, IDENTITIES[::-1]):
            for number in range(CLIENTS // len(IDENTITIES)):
                caller = Caller(setup.gateway, f"{own}-{number}", keys[own], ledger, patience=patience)
                chance = random.Random(rng.random())
                work = partial(live, caller, keys[own], keys[others], stop, chance, kept=number % 2 == 0)
                nursery.start_soon(work)
            if LANES and (not ONLY or "poison" in ONLY):
                caller = Caller(setup.gateway, f"{own}-poison", keys[own], ledger, patience=patience)
                nursery.start_soon(poison, caller, calm, random.Random(rng.random()))
        async with trio.open_nursery() as lanes:
            scheduler = FaultScheduler(
                setup.subjects,
                ledger,
                rng,
                store=setup.store,
                names=setup.names,
                credentials=IDENTITIES,
                times=TIMES,
                only=ONLY,
            )
            for _ in range(LANES if not ONLY or any(name in EVENTS for name in ONLY) else 0):
                lanes.start_soon(scheduler.run, calm)
            await trio.sleep(SECONDS)
            calm.set()
        await trio.sleep(1)
        stop.set()


# The comparison -------------------------------------------------------------------------------------------------------


async def settled(store: Path) -> None:
    """Wait until no key is made any more: a request may have waited in a frozen key manager."""
    keys = -1
    with closing(Store(store)) as reader:
        while (now := reader.count()) != keys:
            keys = now
            await trio.sleep(1)


#: Every key, with the name of the request that made it.
MADE: Final = """
    SELECT objects.uid, owner, material, value FROM objects JOIN attributes USING (uid)
    WHERE attributes.name = 'Contact Information'
"""


def complete_ledger(setup: Setup, ledger: Ledger, keys: dict[str, Keys]) -> None:
    """Add the journals and the store to the ledger, and check that the store has the values that clients got."""
    for one in setup.subjects:
        ledger.entries += read_journal(one.process.journal)
    values = {uid: value for own in keys.values() for uid, value in own.values.items()}
    with closing(sqlite3.connect(setup.store)) as connection:
        for uid, owner, material, request in connection.execute(MADE):
            ledger.stored[uid] = Stored(owner, request.decode())
            if values.get(uid, b"") not in material:
                ledger.anomalies.append(f"{uid} was answered with the value of another key")


@pytest.mark.timeout(SECONDS + 100)
async def test_clients_and_key_managers_agree_after_disturbances(setup: Setup) -> None:
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"SEED={seed}")
    gateway = setup.gateway
    ledger = Ledger(detection_time=DETECTION_TIME)
    keys = {identity: Keys(identity) for identity in IDENTITIES}
    machine = Machine()
    async with trio.open_nursery() as helpers:
        for relay in setup.relays:
            helpers.start_soon(relay.run)
        await trio.to_thread.run_sync(wait_until, lambda: all_up(gateway, len(NAMES)), "the key managers' being up")
        helpers.start_soon(machine.watch)
        helpers.start_soon(watch_backends, gateway, backend_names(), ledger)
        ledger.began = time.time()
        await disturb(setup, ledger, keys, random.Random(seed))
        ledger.ended = time.time()
        helpers.cancel_scope.cancel()
    await settled(setup.store)
    complete_ledger(setup, ledger, keys)
    print(ledger.summary())
    print(machine)
    print(f"{CLIENTS} clients, {SECONDS:g} s, SEED={seed}")
    mistakes = ledger.mistakes()
    assert not mistakes, "\n".join([f"SEED={seed}", *mistakes, "Disturbances:", ledger.log()])
    assert len(ledger.exchanges) > RATE / 10 * SECONDS


def backend_names() -> dict[str, str]:
    """Return the key manager's name for each name of a backend in the gateway's configuration."""
    return {f"kms-{number}": name for number, name in enumerate(NAMES, 1)}
