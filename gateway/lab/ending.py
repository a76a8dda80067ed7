"""How a command of the lab ends before its time: with all the programs that it has started."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

_T = TypeVar("_T")


async def unless_ended(work: Callable[[], Awaitable[_T]]) -> _T | None:
    """Do some work; None where SIGTERM or SIGINT ended it, and what it had begun was undone."""
    result = None
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end, signals, nursery.cancel_scope)
            result = await work()
            nursery.cancel_scope.cancel()
    return result


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """For a block without trio: SIGTERM raises KeyboardInterrupt in it, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def _end(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
