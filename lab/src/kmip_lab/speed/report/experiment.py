"""The experiment, measurement by measurement."""

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import trio

from gateway.config import Address
from kmip_lab.scrape import CPU_SECONDS, SESSIONS_OPENED, scrape
from kmip_lab.speed.making import Maker
from kmip_lab.speed.operations import Keys
from kmip_lab.speed.report.cases import CASES, Case
from kmip_lab.speed.report.costs import COSTS, bound, factor
from kmip_lab.speed.report.house import House, house
from kmip_lab.speed.report.links import VARIANTS, roles_of
from kmip_lab.speed.report.results import BEYOND, NOTE, REPLICATION, Point
from kmip_lab.speed.result import Measurement
from kmip_lab.speed.running import measure
from kmip_lab.speed.worker import Plan

_REPEAT: Final = 100  # the note's
_FEWEST: Final = 5  # repeats at any scale
_SHORTEST: Final = 10.0  # seconds that a measurement should take, by the scale; it may take the note's repeats
_PAUSE: Final = 0.1  # seconds
_WARM_UP: Final = 5  # repeats of each client before the clock runs, through a gateway
_MOST_TRIES: Final = 10  # measurements of a gateway that goes on opening sessions; the last one counts

#: More clients than the note's: what is measured with them, and which numbers.
BEYOND_CASES: Final = ("single_kept", "two_fresh", "two_kept", "gateway_two")
BEYOND_CLIENTS: Final = (10, 20, 40, 80)

_BEYOND_OPERATION: Final = "get"

#: What replication is measured with.
REPLICATION_CASES: Final = ("two_kept", "gateway_two")
REPLICATION_CLIENTS: Final = (1, 5, 10)
_REPLICATION_OPERATION: Final = "create"


class Step(NamedTuple):
    """One measurement to do."""

    part: str
    operation: str
    case: str
    clients: int
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured: the scale, the operations, the numbers of clients."""

    scale: float
    operations: Sequence[str]
    clients: Sequence[int]
    beyond: Sequence[int] = BEYOND_CLIENTS
    replication: Sequence[int] = REPLICATION_CLIENTS

    def repeat(self, operation: str, case: Case, clients: int) -> int:
        """How often each client does an operation: the note's number by the scale, but more where that is soon done."""
        soon = bound(operation, case) * factor(operation, self.scale) / 60 * _SHORTEST / self.scale / clients
        return round(min(_REPEAT, max(self.least_repeat, soon)))

    @property
    def least_repeat(self) -> int:
        """How often each client does an operation at the least."""
        return max(_FEWEST, round(_REPEAT / self.scale))

    def plan(self) -> list[Step]:
        """All measurements, in order."""
        return [
            *(
                Step(NOTE, name, case, clients)
                for name in self.operations
                for case in CASES
                for clients in self.clients
            ),
            *(Step(BEYOND, _BEYOND_OPERATION, case, clients) for case in BEYOND_CASES for clients in self.beyond),
            *(
                Step(REPLICATION, _REPLICATION_OPERATION, case, clients, variant)
                for variant in VARIANTS
                for case in REPLICATION_CASES
                for clients in self.replication
            ),
        ]

    def measured(self) -> list[str]:
        """The operations that are measured in any part, each once."""
        return list(dict.fromkeys(step.operation for step in self.plan()))

    def seconds(self) -> float:
        """How long all measurements will take, without what is around them."""
        return sum(map(self._seconds, self.plan()))

    def _seconds(self, step: Step) -> float:
        case = CASES[step.case]
        operations = self.repeat(step.operation, case, step.clients) * step.clients
        return 60 * operations / bound(step.operation, case) / factor(step.operation, self.scale)


async def run(settings: Settings, begin: Callable[[Step], None], keep: Callable[[Point], None]) -> bool:
    """All measurements, one after the other: ``begin`` is told of each, ``keep`` is given what comes out.

    Returns true, for all were made.
    """
    for (operation, variant), steps in groupby(settings.plan(), lambda step: (step.operation, step.variant)):
        async with _laboratory(operation, variant, settings) as laboratory:
            for step in steps:
                begin(step)
                keep(await laboratory.measure(step))
    return True


class _Laboratory:
    """The house while one operation is measured, and the keys for that."""

    def __init__(self, place: House, keys: Keys, settings: Settings) -> None:
        self._place = place
        self._keys = keys
        self._settings = settings

    async def measure(self, step: Step) -> Point:
        """Measure one step: a gateway until it opens no session meanwhile, as one that has been running for long."""
        case = CASES[step.case]
        repeat = self._settings.repeat(step.operation, case, step.clients)
        plan = Plan(self._place.target(case), step.operation, repeat, case.sessions, self._keys)
        if not case.gateway:
            return await self._point(step, plan)
        admin = self._place.admins[case.servers]
        await self._measure(replace(plan, repeat=_WARM_UP), step.clients)
        for _ in range(_MOST_TRIES):
            before = await _said(admin)
            point = await self._point(step, plan)
            now = await _said(admin)
            opened = int(now[SESSIONS_OPENED] - before[SESSIONS_OPENED])
            if not opened:
                break
        spent = now[CPU_SECONDS] - before[CPU_SECONDS]
        return replace(point, gateway_cpu=spent / point.seconds, opened=opened)

    async def _point(self, step: Step, plan: Plan) -> Point:
        before = _processor_time()
        measured = await self._measure(plan, step.clients)
        cpu = _busy_since(before)
        times = factor(step.operation, self._settings.scale)
        return Point(
            part=step.part,
            operation=step.operation,
            case=step.case,
            clients=step.clients,
            per_minute=measured.per_minute / times,
            p50=_times(measured.percentile(0.5), times),
            p99=_times(measured.percentile(0.99), times),
            cpu=cpu,
            seconds=measured.seconds,
            errors=sum(measured.errors.values()) + measured.left_out,
            variant=step.variant,
        )

    async def settle(self, operation: str) -> None:
        """Wait until the keys have been replicated to every master."""
        masters = self._place.masters()
        plan = Plan(masters, operation, 1, "kept", self._keys)
        while not (await self._measure(plan, len(masters.addresses))).faultless:  # noqa: ASYNC110 - others' affair
            await trio.sleep(_PAUSE)

    async def _measure(self, plan: Plan, clients: int) -> Measurement:
        measured, _ = await trio.to_thread.run_sync(measure, plan, clients, abandon_on_cancel=True)
        return measured


async def _said(admin: Address) -> dict[str, float]:
    """What a gateway says of itself now."""
    return await trio.to_thread.run_sync(scrape, admin)


@asynccontextmanager
async def _laboratory(operation: str, variant: str, settings: Settings) -> AsyncIterator[_Laboratory]:
    times = factor(operation, settings.scale)
    costs, roles = COSTS.faster(times), roles_of(variant, times)
    with tempfile.TemporaryDirectory(prefix="kmip-gateway-report-") as directory:
        async with house(Path(directory), costs.handshake, costs.operations[operation], roles) as place:
            maker = Maker(place.masters())
            keys = await trio.to_thread.run_sync(maker.prepare, [operation])
            laboratory = _Laboratory(place, keys, settings)
            await laboratory.settle(operation)
            yield laboratory


def _times(seconds: float | None, factor: float) -> float | None:
    return None if seconds is None else seconds * factor


# What the machine spends, from /proc/stat ---------------------------------------------------------------------------

_IDLE: Final = (3, 4)  # idle, iowait


def _processor_time() -> tuple[int, int]:
    """Of all processors, in ticks: busy, and in all."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - sum(fields[index] for index in _IDLE), sum(fields)


def _busy_since(before: tuple[int, int]) -> float:
    busy, whole = (now - then for now, then in zip(_processor_time(), before, strict=True))
    return busy / whole if whole else 0.0
