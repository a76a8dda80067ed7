"""The measurements of the experiment, in order."""

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import trio

from kmip_lab.report.cases import CASES, VARIANTS, Case, roles_of
from kmip_lab.report.costs import COSTS, bound, factor
from kmip_lab.report.environment import Environment, environment
from kmip_lab.report.results import BEYOND, NOTE, REPLICATION, ReportPoint
from kmip_lab.speed.client_process import ClientPlan
from kmip_lab.speed.measured_keys import MeasuredKeys
from kmip_lab.speed.operations import Keys
from kmip_lab.speed.processes import measure
from kmip_lab.speed.result import Measurement
from kmip_lab.tools.scrape import CPU_SECONDS, SESSIONS_OPENED, measured_with_full_pools
from kmip_lab.tools.usage import MachineUse

_REPEAT: Final = 100  # the note's
_FEWEST: Final = 5  # repeats at any scale
_SHORTEST: Final = 10.0  # seconds that a measurement should take, by the scale; it may take the note's repeats
_PAUSE: Final = 0.1  # seconds
_WARM_UP: Final = 5  # repeats of each client before the clock runs, through a gateway
_MOST_TRIES: Final = 10  # measurements of a gateway that goes on opening sessions; the last counts

#: The cases and numbers of clients beyond the note's ten.
BEYOND_CASES: Final = ("single_kept", "two_fresh", "two_kept", "gateway_two")
BEYOND_CLIENTS: Final = (10, 20, 40, 80)

_BEYOND_OPERATION: Final = "get"

#: The cases and numbers of clients with which replication is measured.
REPLICATION_CASES: Final = ("two_kept", "gateway_two")
REPLICATION_CLIENTS: Final = (1, 5, 10)
_REPLICATION_OPERATION: Final = "create"


class Step(NamedTuple):
    """One measurement of the plan."""

    part: str
    operation: str
    case: str
    clients: int
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """The scale, the operations, and the numbers of clients of each part."""

    scale: float
    operations: Sequence[str]
    clients: Sequence[int]
    beyond: Sequence[int] = BEYOND_CLIENTS
    replication: Sequence[int] = REPLICATION_CLIENTS

    def repeat(self, operation: str, case: Case, clients: int) -> int:
        """Return how often each client does an operation: the note's number by the scale, more if that is short."""
        soon = bound(operation, case) * factor(operation, self.scale) / 60 * _SHORTEST / self.scale / clients
        return round(min(_REPEAT, max(self.least_repeat, soon)))

    @property
    def least_repeat(self) -> int:
        """The least number of times that each client does an operation."""
        return max(_FEWEST, round(_REPEAT / self.scale))

    def plan(self) -> list[Step]:
        """Return all measurements in order."""
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
        """Return the operations that are measured in any part, each once."""
        return list(dict.fromkeys(step.operation for step in self.plan()))

    def seconds(self) -> float:
        """Return how long all measurements will take, without starting and ending programs."""
        return sum(map(self._seconds, self.plan()))

    def _seconds(self, step: Step) -> float:
        case = CASES[step.case]
        operations = self.repeat(step.operation, case, step.clients) * step.clients
        return 60 * operations / bound(step.operation, case) / factor(step.operation, self.scale)


async def run(settings: Settings, begin: Callable[[Step], None], keep: Callable[[ReportPoint], None]) -> bool:
    """Make all measurements, one after the other: call ``begin`` before each, and ``keep`` with each result.

    Return True once all were made.
    """
    for (operation, variant), steps in groupby(settings.plan(), lambda step: (step.operation, step.variant)):
        async with _measurements(operation, variant, settings) as measurements:
            for step in steps:
                begin(step)
                keep(await measurements.measure(step))
    return True


class _Measurements:
    """The environment while one operation is measured, and the keys for that."""

    def __init__(self, made: Environment, keys: Keys, settings: Settings) -> None:
        self._environment = made
        self._keys = keys
        self._settings = settings

    async def measure(self, step: Step) -> ReportPoint:
        """Measure one step; through a gateway again, until the gateway opens no session meanwhile."""
        case = CASES[step.case]
        repeat = self._settings.repeat(step.operation, case, step.clients)
        plan = ClientPlan(self._environment.target(case), step.operation, repeat, case.sessions, self._keys)
        if not case.gateway:
            return await self._point(step, plan)
        await self._measure(replace(plan, repeat=_WARM_UP), step.clients)
        admin = self._environment.admins[case.servers]
        point, grown = await measured_with_full_pools(partial(self._point, step, plan), admin, _MOST_TRIES)
        return replace(point, gateway_cpu=grown[CPU_SECONDS] / point.seconds, opened=int(grown[SESSIONS_OPENED]))

    async def _point(self, step: Step, plan: ClientPlan) -> ReportPoint:
        use = MachineUse()
        measured = await self._measure(plan, step.clients)
        cpu = use.busy()
        times = factor(step.operation, self._settings.scale)
        return ReportPoint(
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
        """Wait until the keys have been replicated to all masters."""
        masters = self._environment.masters()
        plan = ClientPlan(masters, operation, 1, "kept", self._keys)
        while not (await self._measure(plan, len(masters.addresses))).faultless:  # noqa: ASYNC110 - in other processes
            await trio.sleep(_PAUSE)

    async def _measure(self, plan: ClientPlan, clients: int) -> Measurement:
        measured, _ = await trio.to_thread.run_sync(measure, plan, clients, abandon_on_cancel=True)
        return measured


@asynccontextmanager
async def _measurements(operation: str, variant: str, settings: Settings) -> AsyncIterator[_Measurements]:
    times = factor(operation, settings.scale)
    costs, roles = COSTS.faster(times), roles_of(variant, times)
    with tempfile.TemporaryDirectory(prefix="kmip-gateway-report-") as directory:
        async with environment(Path(directory), costs.handshake, costs.operations[operation], roles) as made:
            measured_keys = MeasuredKeys(made.masters())
            keys = await trio.to_thread.run_sync(measured_keys.prepare, [operation])
            measurements = _Measurements(made, keys, settings)
            await measurements.settle(operation)
            yield measurements


def _times(seconds: float | None, factor: float) -> float | None:
    return None if seconds is None else seconds * factor
