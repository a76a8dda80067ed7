"""Faults of a chaos run: disturb key managers in random order, and record the disturbances in the ledger."""

import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import trio
from kmip_lab.faults import Fault, FaultSetting

from gateway.kmip.spec import Operation
from tests.kit.ledger import Disturbance, Ledger, Standby
from tests.kit.load import POISON
from tests.kit.processes import KeyManagerProcess
from tests.kit.tcp_relay import Relay, write_names

#: The fault that every key manager has all the time: no gateway can get an answer to this request.
POISON_FAULT: Final = FaultSetting(
    Fault.HANG_UP, operations=frozenset({Operation.GET}), unique_identifiers=frozenset({POISON})
)
_LOOK: Final = 0.1  # s after which a key manager knows its faults: it looks at their file every 50 ms
_GRACE: Final = 2.0  # s after a disturbance in which its failures may still be counted
_RESTART_GRACE: Final = 0.2  # s, for events in which sessions break at once, and can be opened again soon
_PATIENCE: Final = 6.0  # s in which the gateway should have closed all swallowed flows of a busy backend
_KEYS: Final = frozenset({Operation.CREATE, Operation.GET})


@dataclass(frozen=True)
class Subject:
    """A key manager to disturb. With a ``relay``, the gateway reaches it there, by the host name ``host``."""

    process: KeyManagerProcess
    relay: Relay | None = None
    host: str = ""

    @property
    def name(self) -> str:
        """The key manager's name."""
        return self.process.name

    @property
    def address(self) -> int | str:
        """The address that the gateway is configured with."""
        return self.process.port if self.relay is None else f"{self.host}:{self.relay.port}"


class Times(NamedTuple):
    """Seconds of the gateway's configuration that disturbances are made for."""

    try_timeout: float
    request: float


class FaultScheduler:
    """Disturbs one key manager at a time for each running call of ``run``, and restores it after each event.

    ``names`` is the file of the fake resolver, ``credentials`` the common names that the gateway shows.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        ledger: Ledger,
        rng: random.Random,
        *,
        store: Path,
        names: Path,
        credentials: Sequence[str],
        times: Times,
        only: Collection[str] = (),
    ) -> None:
        self._subjects = subjects
        self._ledger = ledger
        self._rng = rng
        self._store = store
        self._names = names
        self._credentials = credentials
        self._times = times
        self._events = [name for name in EVENTS if not only or name in only]
        self._disturbed: set[Subject] = set()
        self._remaining: list[str] = []

    async def run(self, stop: trio.Event) -> None:
        """Cause events until ``stop`` is set; return when the last victim is restored."""
        while not stop.is_set():
            await trio.sleep(self._rng.uniform(0.1, 1.0))
            name = self._draw()
            event = EVENTS[name]
            victim = self._rng.choice(
                [one for one in self._subjects if one not in self._disturbed and (one.relay or not event.needs_relay)]
            )
            self._disturbed.add(victim)
            grace = self._times.request + 1 if event.hangs else _GRACE
            credential = self._rng.choice(self._credentials) if event.of_credential else ""
            with self._recorded(victim, name, grace=grace, is_slow=event.is_slow, credential=credential):
                await event.act(self, victim, credential) if event.of_credential else await event.act(self, victim)
            self._disturbed.remove(victim)
            self._ledger.events[name] += 1

    def _draw(self) -> str:
        """Draw an event; every event comes once before any event comes again."""
        self._remaining = self._remaining or self._rng.sample(self._events, len(self._events))
        return self._remaining.pop()

    @contextmanager
    def _recorded(
        self, victim: Subject, event: str, *, grace: float = _GRACE, is_slow: bool = False, credential: str = ""
    ) -> Iterator[None]:
        one = Disturbance(victim.name, event, time.time(), grace=grace, is_slow=is_slow, credential=credential)
        self._ledger.disturbances.append(one)
        try:
            yield
        finally:
            one.ended = time.time()

    # Processes -------------------------------------------------------------------------------------------------------

    async def kill(self, victim: Subject) -> None:
        """Send SIGKILL, and start a new process after up to 1.5 s."""
        await trio.to_thread.run_sync(victim.process.kill)
        self._ledger.kills += 1
        await trio.sleep(self._rng.uniform(0, 1.5))
        victim.process.launch()
        await trio.to_thread.run_sync(victim.process.wait_ready)

    async def freeze(self, victim: Subject) -> None:
        """Send SIGSTOP, and SIGCONT after 0.5 to 4 s."""
        await trio.to_thread.run_sync(self._freeze_outside_of_transactions, victim.process)
        await trio.sleep(self._rng.uniform(0.5, 4))
        victim.process.thaw()

    def _freeze_outside_of_transactions(self, victim: KeyManagerProcess) -> None:
        """Freeze a key manager that does not hold the lock of the store.

        A key manager that is frozen while it holds the lock would stop the others, which real key managers do not do.
        """
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

    # Answers ---------------------------------------------------------------------------------------------------------

    async def demote(self, victim: Subject) -> None:
        """Make the key manager a standby for 1 to 4 s."""
        began = time.time()
        await self._misbehave(victim, FaultSetting(Fault.STANDBY))
        self._ledger.standbys.append(Standby(victim.name, began, time.time()))

    async def reset(self, victim: Subject) -> None:
        """Execute, then reset the connection."""
        await self._misbehave(victim, FaultSetting(Fault.RESET_AFTER_EXECUTING, operations=self._some()))

    async def cut(self, victim: Subject) -> None:
        """Execute, send a part of the answer and close."""
        size = self._rng.choice([0, self._rng.randrange(1, 100)])
        await self._misbehave(victim, FaultSetting(Fault.CUT, bytes=size, operations=self._some()))

    async def garbage(self, victim: Subject) -> None:
        """Answer with random bytes."""
        await self._misbehave(victim, FaultSetting(Fault.GARBAGE, operations=self._some()))

    async def repeat(self, victim: Subject) -> None:
        """Send the answer, whole or in part, again behind the answer: it must not be taken for the next answer."""
        size = self._rng.choice([8, 4096])
        await self._misbehave(victim, FaultSetting(Fault.EXTRA, bytes=size, operations=self._some()))

    async def slow(self, victim: Subject) -> None:
        """Answer everything late: keys after more than a try's time, or all operations within a health check's."""
        slow_keys = FaultSetting(
            Fault.SLOW,
            seconds=self._rng.uniform(1.3 * self._times.try_timeout, 0.6 * self._times.request),
            operations=_KEYS,
        )
        slow_all = FaultSetting(Fault.SLOW, seconds=self._rng.uniform(0.1, 0.5))
        await self._misbehave(victim, self._rng.choice([slow_keys, slow_all]))

    async def hang(self, victim: Subject) -> None:
        """Answer nothing more on a session that has asked for a Create."""
        await self._misbehave(victim, FaultSetting(Fault.DEAF, operations=frozenset({Operation.CREATE})))

    async def refuse_credential(self, victim: Subject, credential: str) -> None:
        """End all sessions as a restart does, and refuse one credential for 2 to 4 s."""
        with self._recorded(victim, "service restarted", grace=_RESTART_GRACE):
            victim.process.set_faults(POISON_FAULT, FaultSetting(Fault.REFUSE, reset=True))
            await trio.sleep(2 * _LOOK)
            victim.process.set_faults(
                POISON_FAULT, FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({credential}))
            )
            await trio.sleep(_LOOK)
        await trio.sleep(self._rng.uniform(2, 4))
        victim.process.set_faults(POISON_FAULT)
        await trio.sleep(_LOOK)

    async def _misbehave(self, victim: Subject, fault: FaultSetting) -> None:
        victim.process.set_faults(POISON_FAULT, fault)
        await trio.sleep(self._rng.uniform(1, 4))
        victim.process.set_faults(POISON_FAULT)
        await trio.sleep(_LOOK)

    def _some(self) -> frozenset[Operation]:
        """Draw all operations (the empty set), or operations that no health check uses."""
        return self._rng.choice([frozenset(), _KEYS, frozenset({Operation.CREATE}), frozenset({Operation.GET})])

    # The network -----------------------------------------------------------------------------------------------------

    async def swallow(self, victim: Subject) -> None:
        """Swallow the flows that exist; connections that are opened from now on pass."""
        assert victim.relay is not None
        victim.relay.swallow()
        await self._wait_for_swallowed(victim.relay)

    async def move(self, victim: Subject) -> None:
        """Change the address of its host name; soon after, close the old one, and reset or swallow the flows to it."""
        assert victim.relay is not None
        victim.relay.open_elsewhere()
        self.write_names()
        await trio.sleep(self._rng.uniform(0, 1.5))
        victim.relay.close_old_address(swallow=self._rng.random() < 0.5)
        await self._wait_for_swallowed(victim.relay)

    def write_names(self) -> None:
        """Write the present addresses of the key managers to the file of the fake resolver."""
        write_names(self._names, {one.host: one.relay.host for one in self._subjects if one.relay is not None})

    async def _wait_for_swallowed(self, relay: Relay) -> None:
        """Wait for a second, then until the gateway has closed all swallowed flows; at most _PATIENCE s."""
        await trio.sleep(1)
        with trio.move_on_after(_PATIENCE - 1):
            while relay.swallowed:  # noqa: ASYNC110 - not for long
                await trio.sleep(_LOOK)


class Event(NamedTuple):
    """A kind of disturbance.

    After an event that ``hangs``, some requests end only with their deadline. An event ``of_credential`` gets the
    credential to refuse as its second argument.
    """

    act: Callable[..., Awaitable[None]]
    needs_relay: bool = False
    hangs: bool = False
    is_slow: bool = False
    of_credential: bool = False


EVENTS: Final = {
    "killed and restarted": Event(FaultScheduler.kill),
    "frozen": Event(FaultScheduler.freeze),
    "demoted and promoted": Event(FaultScheduler.demote),
    "reset after executing": Event(FaultScheduler.reset),
    "answers cut": Event(FaultScheduler.cut),
    "slow": Event(FaultScheduler.slow, is_slow=True),
    "garbage": Event(FaultScheduler.garbage),
    "answers repeated": Event(FaultScheduler.repeat),
    "hanging on Create": Event(FaultScheduler.hang, hangs=True),
    "credential refused": Event(FaultScheduler.refuse_credential, of_credential=True),
    "flows swallowed": Event(FaultScheduler.swallow, needs_relay=True, hangs=True),
    "address changed": Event(FaultScheduler.move, needs_relay=True, hangs=True),
}
