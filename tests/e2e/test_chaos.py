"""Chaos: key managers are killed, frozen, demoted and made to misbehave under load; then the books are balanced.

Four key managers, each a process of its own; two identities; 20 clients that never repeat a request. At any moment at
most two key managers are disturbed, so that at least one is entirely healthy. ``make chaos`` runs it for a minute;
CHAOS_SECONDS and SEED say how long, and which chaos.
"""

import os
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import trio

from gateway.kmip.spec import Operation
from gateway.lab.faults import Fault, FaultSetting
from gateway.lab.keymanager import Store, read_journal
from tests.e2e.books import Books, Standby, Stored
from tests.e2e.harness import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    KeyManagerProcess,
    running_gateway,
    running_key_manager_processes,
)
from tests.e2e.load import Caller, Keys

SECONDS: Final = float(os.environ.get("CHAOS_SECONDS", "20"))
CLIENTS: Final = 10  # of each identity
IDENTITIES: Final = ("red", "blue")
NAMES: Final = ("atlanta-001", "atlanta-002", "london-001", "london-002")
LANES: Final = 2  # key managers that are disturbed at once, at most
REQUEST: Final = 8.0  # s: the gateway's deadline, and so the end of every wait
THINK: Final = 0.04  # s between two requests of a client, on average
NOTICE: Final = 2.0  # s in which the gateway must see who is master: some probes, and a busy machine

SETTINGS: Final = f"""
[health]
interval = 0.3
timeout = 1.0
serving_text = "ServerType=master"

[failover]
try_timeout = 1.5

[deadlines]
request = {REQUEST}
"""


class House(NamedTuple):
    """What is running."""

    gateway: Gateway
    key_managers: list[KeyManagerProcess]
    store: Path


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    certificates = Certificates(tmp_path_factory.mktemp("chaos"))
    identities = [Identity(name, f'{{ subject_cn = "{name}-*" }}', credential=name) for name in IDENTITIES]
    with running_key_manager_processes(certificates, NAMES) as key_managers:
        ports = [key_manager.port for key_manager in key_managers]
        settings = GatewaySettings(ports, identities, backend='probe = "query"', extra=SETTINGS)
        with running_gateway(certificates, settings) as gateway:
            yield House(gateway, key_managers, certificates.path("store.db"))


# The conductor --------------------------------------------------------------------------------------------------------


class Conductor:
    """Disturbs key managers, in a few lanes at once, and leaves each as it found it."""

    def __init__(self, house: House, books: Books, rng: random.Random) -> None:
        self._key_managers = house.key_managers
        self._store = house.store
        self._books = books
        self._rng = rng
        self._disturbed: set[KeyManagerProcess] = set()
        self._deck: list[str] = []

    async def conduct(self, stop: trio.Event) -> None:
        """One thing after the other, until told to stop; ends when its last victim is well again."""
        while not stop.is_set():
            await trio.sleep(self._rng.uniform(0.1, 1.0))
            victim = self._rng.choice([one for one in self._key_managers if one not in self._disturbed])
            name = self._draw()
            self._disturbed.add(victim)
            await EVENTS[name](self, victim)
            self._disturbed.remove(victim)
            self._books.events[name] += 1

    def _draw(self) -> str:
        """Each event comes once before one comes again."""
        self._deck = self._deck or self._rng.sample(list(EVENTS), len(EVENTS))
        return self._deck.pop()

    async def kill(self, victim: KeyManagerProcess) -> None:
        await trio.to_thread.run_sync(victim.kill)
        self._books.kills += 1
        await trio.sleep(self._rng.uniform(0, 1.5))
        victim.launch()
        await trio.to_thread.run_sync(victim.wait_ready)

    async def freeze(self, victim: KeyManagerProcess) -> None:
        await trio.to_thread.run_sync(self._freeze_outside_of_transactions, victim)
        await trio.sleep(self._rng.uniform(0.5, 4))
        victim.thaw()

    def _freeze_outside_of_transactions(self, victim: KeyManagerProcess) -> None:
        """One that is frozen with the store's lock would freeze all: that is a fault of the laboratory, not theirs."""
        while True:
            victim.freeze()
            time.sleep(0.01)
            with closing(sqlite3.connect(self._store, timeout=0.1, isolation_level=None)) as connection:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    victim.thaw()
                else:
                    return

    async def demote(self, victim: KeyManagerProcess) -> None:
        began = time.time()
        await self._misbehave(victim, FaultSetting(Fault.STANDBY))
        self._books.standbys.append(Standby(victim.name, began, time.time()))

    async def reset(self, victim: KeyManagerProcess) -> None:
        await self._misbehave(victim, FaultSetting(Fault.RESET_AFTER_EXECUTING, operations=self._some()))

    async def cut(self, victim: KeyManagerProcess) -> None:
        size = self._rng.choice([0, self._rng.randrange(1, 100)])
        await self._misbehave(victim, FaultSetting(Fault.CUT, bytes=size, operations=self._some()))

    async def slow(self, victim: KeyManagerProcess) -> None:
        seconds = self._rng.uniform(0.2, 3)
        await self._misbehave(victim, FaultSetting(Fault.SLOW, seconds=seconds, operations=self._some()))

    async def garbage(self, victim: KeyManagerProcess) -> None:
        await self._misbehave(victim, FaultSetting(Fault.GARBAGE, operations=self._some()))

    async def repeat(self, victim: KeyManagerProcess) -> None:
        """The answer again behind the answer, whole or in part: it must never be taken for the next one's."""
        size = self._rng.choice([8, 4096])
        await self._misbehave(victim, FaultSetting(Fault.EXTRA, bytes=size, operations=self._some()))

    async def _misbehave(self, victim: KeyManagerProcess, fault: FaultSetting) -> None:
        victim.set_faults(fault)
        await trio.sleep(self._rng.uniform(1, 4))
        victim.set_faults()
        await trio.sleep(0.1)  # until it knows

    def _some(self) -> frozenset[Operation]:
        """All operations, or such as a probe does not meet."""
        return self._rng.choice(
            [
                frozenset(),
                frozenset({Operation.CREATE, Operation.GET}),
                frozenset({Operation.CREATE}),
                frozenset({Operation.GET}),
            ]
        )


EVENTS: Final[dict[str, Callable[[Conductor, KeyManagerProcess], Awaitable[None]]]] = {
    "killed and restarted": Conductor.kill,
    "frozen": Conductor.freeze,
    "demoted and promoted": Conductor.demote,
    "reset after executing": Conductor.reset,
    "answers cut": Conductor.cut,
    "slow": Conductor.slow,
    "garbage": Conductor.garbage,
    "answers repeated": Conductor.repeat,
}


# The load -------------------------------------------------------------------------------------------------------------


async def live(caller: Caller, own: Keys, others: Keys, stop: trio.Event, rng: random.Random, *, kept: bool) -> None:
    """Create and Get, over long sessions or over short ones, until told to stop."""
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


async def disturb(house: House, books: Books, keys: dict[str, Keys], rng: random.Random) -> None:
    """Load and chaos for a while; both end well."""
    calm, stop = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        for own, others in (IDENTITIES, IDENTITIES[::-1]):
            for number in range(CLIENTS):
                caller = Caller(house.gateway, f"{own}-{number}", keys[own], books, patience=REQUEST + 5)
                chance = random.Random(rng.random())
                work = partial(live, caller, keys[own], keys[others], stop, chance, kept=number % 2 == 0)
                nursery.start_soon(work)
        async with trio.open_nursery() as lanes:
            conductor = Conductor(house, books, rng)
            for _ in range(LANES):
                lanes.start_soon(conductor.conduct, calm)
            await trio.sleep(SECONDS)
            calm.set()
        await trio.sleep(1)
        stop.set()


# The balance ----------------------------------------------------------------------------------------------------------


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


def close_books(house: House, books: Books, keys: dict[str, Keys]) -> None:
    """Write down what the key managers did, and whether the store has the values that clients were given."""
    for key_manager in house.key_managers:
        books.entries += read_journal(key_manager.journal)
    values = {uid: value for own in keys.values() for uid, value in own.values.items()}
    with closing(sqlite3.connect(house.store)) as connection:
        for uid, owner, material, request in connection.execute(MADE):
            books.stored[uid] = Stored(owner, request.decode())
            if values.get(uid, b"") not in material:
                books.oddities.append(f"{uid} was answered with the value of another key")


@pytest.mark.timeout(SECONDS + 100)
async def test_the_books_balance(house: House) -> None:
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"SEED={seed}")
    books = Books(notice=NOTICE)
    keys = {identity: Keys(identity) for identity in IDENTITIES}
    await disturb(house, books, keys, random.Random(seed))
    await settled(house.store)
    close_books(house, books, keys)
    print(books.sheet())
    mistakes = books.mistakes()
    assert not mistakes, "\n".join([f"SEED={seed}", *mistakes])
    assert len(books.asked) > 100 * SECONDS
