"""Lag of the event loop."""

import time

import trio

from gateway.loop_lag import INTERVAL, measure_loop_lag
from tests.kit.front import until


class Lags(list[float]):
    """Keeps the measurements."""

    def observe(self, seconds: float) -> None:
        self.append(seconds)


async def test_a_task_that_holds_the_event_loop_is_measured() -> None:
    lags = Lags()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure_loop_lag, lags)
        await trio.sleep(INTERVAL / 2)
        time.sleep(INTERVAL)  # noqa: ASYNC251 - holds the event loop
        with trio.fail_after(10):
            await until(lambda: bool(lags))
        nursery.cancel_scope.cancel()
    assert INTERVAL / 4 < lags[0] < 10
