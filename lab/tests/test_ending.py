"""Commands that end before their time, and work that tells a mistake."""

import signal

import pytest
import trio
from kmip_lab.ending import interrupted_by_sigterm, unless_ended

from gateway.errors import GatewayError


async def test_a_mistake_comes_as_it_is() -> None:
    async def work() -> None:
        raise GatewayError("a client process was killed by signal 9")

    with pytest.raises(GatewayError, match="killed by signal 9"):
        await unless_ended(work)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_ends_the_work(number: signal.Signals) -> None:
    async def work() -> bool:
        signal.raise_signal(number)
        await trio.sleep_forever()
        return True

    assert await unless_ended(work) is None


async def test_work_that_is_not_ended_gives_what_it_gives() -> None:
    async def work() -> int:
        return 7

    assert await unless_ended(work) == 7


def test_sigterm_is_an_interrupt_for_a_block_and_not_after_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
