"""End a command on SIGTERM or SIGINT together with the programs that it has started."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click
import trio

from gateway.errors import GatewayError

_T = TypeVar("_T")


async def run_until_signal(work: Callable[[], Awaitable[_T]]) -> _T | None:
    """Run ``work``, and return its result, or None if SIGTERM or SIGINT cancelled it.

    A GatewayError or a ClickException from the work is raised by itself, also if the work raised it in a group.
    """
    result, mistake = None, None
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on, signals, nursery.cancel_scope)
            try:
                result = await work()
            except (GatewayError, click.ClickException) as error:
                mistake = error
            except BaseExceptionGroup as group:
                mistake = _only_mistake(group)
                if mistake is None:
                    raise
            nursery.cancel_scope.cancel()
    if mistake is not None:
        raise mistake
    return result


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt in a block without trio, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def _cancel_on(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


def _only_mistake(group: BaseExceptionGroup[BaseException]) -> GatewayError | click.ClickException | None:
    """Return the first mistake of a group that holds nothing but mistakes; None if it holds anything else."""
    found: list[GatewayError | click.ClickException] = []
    for error in group.exceptions:
        inner = _only_mistake(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(inner, GatewayError | click.ClickException):
            return None
        found.append(inner)
    return found[0]
