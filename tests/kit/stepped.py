"""A trio run that the test ticks step by step, so that the test can act between any two ticks.

Trio runs here as the guest of a loop that is the test itself (trio's "guest mode"). Plain functions of trio can be
called between ticks: events set, tasks started, scopes cancelled. The clock stands still until ``pass_time``.
"""

from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Self

import outcome
import trio
from trio.testing import MockClock

_STUCK: Final = 30.0  # s of real time after which a tick is taken to be stuck
_RESTLESS: Final = 10_000  # ticks after which the tasks are taken to run for ever


class SteppedTrio:
    """A run of trio for the length of a block. Tasks are started in its ``nursery``."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery
        self._clock = MockClock()
        self._turns: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._ended: outcome.Outcome[None] | None = None

    def __enter__(self) -> Self:
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._turns.put,
            done_callback=self._end,
            host_uses_signal_set_wakeup_fd=True,
            restrict_keyboard_interrupt_to_checkpoints=True,
            clock=self._clock,
        )
        self._token = trio.lowlevel.current_trio_token()
        self.settle()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the run. Raises what a task has raised."""
        if self._ended is None:
            self.nursery.cancel_scope.cancel()
        while self._ended is None:
            self._turns.get(timeout=_STUCK)()
        self._ended.unwrap()

    async def _main(self) -> None:
        async with trio.open_nursery() as self.nursery:
            await trio.sleep_forever()

    def _end(self, ended: outcome.Outcome[None]) -> None:
        self._ended = ended

    def start(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Start a task; it runs with the next tick."""
        self.nursery.start_soon(function, *arguments)

    def tick(self, times: int = 1) -> None:
        """Run every runnable task until it waits again."""
        for _ in range(times):
            self._token.run_sync_soon(_nothing)  # there may be nothing to do, and nothing to wake trio
            self._turn()

    def settle(self) -> None:
        """Tick until every task waits."""
        for _ in range(_RESTLESS):
            self.tick()
            statistics = trio.lowlevel.current_statistics()
            if not statistics.tasks_runnable and statistics.seconds_to_next_deadline > 0:
                return
        raise AssertionError(f"not settled after {_RESTLESS} ticks")

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and settle."""
        self._clock.jump(seconds)
        self.settle()

    def _turn(self) -> None:
        self._turns.get(timeout=_STUCK)()
        if self._ended is not None:
            self._ended.unwrap()
            raise AssertionError("the run has ended by itself")


def _nothing() -> None:
    pass
