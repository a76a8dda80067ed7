"""How a command of the lab ends before its time: with all the programs that it has started."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click
import trio

from gateway.errors import GatewayError

_T = TypeVar("_T")


async def unless_ended(work: Callable[[], Awaitable[_T]]) -> _T | None:
    """Do some work; None where SIGTERM or SIGINT ended it, and what it had begun was undone.

    A mistake that the work tells, a GatewayError or a ClickException, is raised as it is, and not in a group.
    """
    result, mistake = None, None
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end, signals, nursery.cancel_scope)
            try:
                result = await work()
            except (GatewayError, click.ClickException) as error:
                mistake = error
            nursery.cancel_scope.cancel()
    if mistake is not None:
        raise mistake
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
