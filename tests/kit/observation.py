"""Observation of a chaos run: the gateway's metrics, and the load and the stalls of the machine."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tests.kit.ledger import Exclusion, Ledger
from tests.kit.processes import Gateway

EJECTIONS: Final = "kmip_gateway_backend_ejections_total"
STATE_CHANGES: Final = "kmip_gateway_backend_state_changes_total"
STATE: Final = "kmip_gateway_backend_state"
_EXCLUDED: Final = ("down", "ejected")  # states
_INTERVAL: Final = 0.25  # s between two looks at the metrics
_PULSE: Final = 0.02  # s


async def watch_backends(gateway: Gateway, names: dict[str, str], ledger: Ledger) -> None:
    """Record each exclusion of a key manager by the gateway, until cancelled.

    ``names`` gives each backend of the gateway its key manager's name.
    """
    seen = await trio.to_thread.run_sync(gateway.metrics)
    after = time.time()
    while True:
        await trio.sleep(_INTERVAL)
        began = time.time()
        metrics = await trio.to_thread.run_sync(gateway.metrics)
        before = time.time()
        for sample, value in metrics.items():
            exclusion = _exclusion(sample, names, after, before)
            if exclusion is not None:
                ledger.exclusions += [exclusion] * int(value - seen.get(sample, 0))
        seen, after = metrics, began


def _exclusion(sample: str, names: dict[str, str], after: float, before: float) -> Exclusion | None:
    family, _, rest = sample.partition("{")
    if family not in (EJECTIONS, STATE_CHANGES):
        return None
    labels = {name: value.strip('"') for name, _, value in (part.partition("=") for part in rest[:-1].split(","))}
    name = names[labels.pop("backend").partition("/")[0]]
    if family == EJECTIONS:
        return Exclusion(name, after, before, "ejected", labels.popitem()[1] if labels else "")
    return Exclusion(name, after, before, labels["state"]) if labels["state"] in _EXCLUDED else None


def all_up(gateway: Gateway, backends: int) -> bool:
    """Return True if all backends are up."""
    return gateway.total(STATE, state="up") == backends


@dataclass
class Machine:
    """Load and stalls of the machine: without a processor to spare, it makes any gateway look slow."""

    busy: float = 0.0  # share of all processors' time that any process used
    longest_stall: float = 0.0  # s by which a timer of this process was late

    def __str__(self) -> str:
        return (
            f"{'processors busy':<44}{self.busy:>12.0%}\n"
            f"{'longest stall of the clients':<44}{self.longest_stall:>10.3f} s"
        )

    async def watch(self) -> None:
        """Measure until cancelled."""
        before = _processor_times()
        while True:
            began = trio.current_time()
            await trio.sleep(_PULSE)
            self.longest_stall = max(self.longest_stall, trio.current_time() - began - _PULSE)
            busy, total = (now - then for now, then in zip(_processor_times(), before, strict=True))
            self.busy = busy / max(total, 1)


def _processor_times() -> tuple[int, int]:
    """Ticks in which the machine's processors were busy, and all."""
    with Path("/proc/stat").open() as lines:
        ticks = [int(field) for field in lines.readline().split()[1:9]]
    idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
    return sum(ticks) - idle, sum(ticks)


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float) -> None:
    """Wait until a condition is true; fail after so many seconds, with ``what`` in the message."""
    deadline = trio.current_time() + seconds
    while not await condition():
        assert trio.current_time() < deadline, f"{what}: not within {seconds:g} s"
        await trio.sleep(0.1)


async def is_up(gateway: Gateway, backend: str) -> bool:
    """Return True if the gateway's own metric says that a backend is up."""
    samples = await trio.to_thread.run_sync(gateway.metrics)
    return samples[f'kmip_gateway_backend_up{{backend="{backend}"}}'] == 1


async def is_down(gateway: Gateway, backend: str) -> bool:
    return not await is_up(gateway, backend)
