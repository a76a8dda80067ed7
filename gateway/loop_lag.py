"""Lag of the event loop: how late a sleeping task wakes up, which is how long every other task has to wait."""

from typing import Final, Protocol

import trio

INTERVAL: Final = 0.25  # s between two measurements, which cost a wake-up of the process each


class Histogram(Protocol):
    """Takes the measurements, in seconds."""

    def observe(self, seconds: float) -> None:
        """Count one."""


async def measure_loop_lag(histogram: Histogram) -> None:
    """Measure the lag four times a second, until cancelled."""
    while True:
        due = trio.current_time() + INTERVAL
        await trio.sleep_until(due)
        histogram.observe(max(0.0, trio.current_time() - due))
