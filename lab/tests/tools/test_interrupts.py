"""Work that a signal ends, and work that raises a mistake."""

import signal

import pytest
import trio
from click import ClickException
from kmip_lab.tools.interrupts import interrupted_by_sigterm, run_until_signal

from gateway.errors import GatewayError


async def test_a_mistake_is_raised_by_itself() -> None:
    async def work() -> None:
        raise GatewayError("a client process was killed by signal 9")

    with pytest.raises(GatewayError, match="killed by signal 9"):
        await run_until_signal(work)


async def test_a_mistake_in_a_group_is_raised_by_itself() -> None:
    async def fail() -> None:
        raise ClickException("nginx ended by itself")

    async def work() -> None:
        async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
            nursery.start_soon(trio.sleep_forever)
            inner.start_soon(fail)

    with pytest.raises(ClickException, match="nginx ended"):
        await run_until_signal(work)


async def test_a_group_with_another_error_stays_a_group() -> None:
    async def work() -> None:
        raise BaseExceptionGroup("two", [GatewayError("one"), RuntimeError("two")])

    with pytest.raises(BaseExceptionGroup):
        await run_until_signal(work)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_ends_the_work(number: signal.Signals) -> None:
    async def work() -> bool:
        signal.raise_signal(number)
        await trio.sleep_forever()
        return True

    assert await run_until_signal(work) is None


async def test_the_result_of_work_is_returned() -> None:
    async def work() -> int:
        return 7

    assert await run_until_signal(work) == 7


def test_sigterm_is_an_interrupt_for_a_block_and_not_after_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
