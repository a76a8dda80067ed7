"""One frozen backend of four: slow requests until the gateway ejects the backend, and none after the ejection."""

import random
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import pytest
import trio

from tests.kit.ledger import Exchange, Ledger, Outcome, RequestKind
from tests.kit.load import Caller, Keys, get_until_stopped
from tests.kit.observation import is_down, is_up, until
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    KeyManagerProcess,
    running_gateway,
    running_key_manager_processes,
)

CLIENTS: Final = 20
PAUSE: Final = 0.05  # s between two Gets of a client, on average
SLOW: Final = 0.5  # s: a Get that takes longer met the frozen backend, or the machine is busy
STUCK: Final = 2.5  # s: a Get that waits for a frozen backend takes longer; no other does, also on a busy machine
BEFORE: Final = 1.0  # s of load before the freeze
AFTER: Final = 2.0  # s of load after the ejection
EJECTION: Final = 20.0  # s in which the backend must be ejected
RETURN: Final = 20.0  # s in which a thawed backend must be back
PATIENCE: Final = 40.0  # s, more than the gateway's own deadline


@pytest.fixture(scope="module")
def key_managers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Certificates, list[KeyManagerProcess]]]:
    certificates = Certificates(tmp_path_factory.mktemp("frozen"))
    with running_key_manager_processes(certificates, [f"kms-{number}" for number in range(1, 5)]) as key_managers:
        yield certificates, key_managers


@pytest.fixture(scope="module")
def gateway(key_managers: tuple[Certificates, list[KeyManagerProcess]]) -> Iterator[Gateway]:
    certificates, processes = key_managers
    ports = [process.port for process in processes]
    with running_gateway(certificates, GatewaySettings(ports)) as gateway:
        yield gateway


def print_slow_gets(when: str, exchanges: Sequence[Exchange]) -> None:
    slow = sorted(one.seconds for one in exchanges if one.seconds > SLOW)
    share = len(slow) / len(exchanges) if exchanges else 0.0
    seconds = f", {slow[0]:.2f} to {slow[-1]:.2f} s" if slow else ""
    print(f"{when:<40}{len(exchanges):>7} Gets{len(slow):>6} slow ({share:.1%}){seconds}")


async def test_a_frozen_backend_is_ejected(
    gateway: Gateway, key_managers: tuple[Certificates, list[KeyManagerProcess]]
) -> None:
    frozen = key_managers[1][1]
    ledger, keys, stop = Ledger(), Keys("gateway"), trio.Event()
    callers = [Caller(gateway, f"client-{number}", keys, ledger, patience=PATIENCE) for number in range(CLIENTS)]
    async with callers[0].session() as client:
        await callers[0].create(client)
    async with trio.open_nursery() as nursery:
        for caller in callers:
            nursery.start_soon(partial(get_until_stopped, caller, keys, stop, random.Random(0), pause=PAUSE))
        await trio.sleep(BEFORE)
        assert await is_up(gateway, frozen.name)
        frozen.freeze()
        at_freeze = time.time()
        await until(lambda: is_down(gateway, frozen.name), "the ejection", EJECTION)
        at_ejection = time.time()
        await trio.sleep(AFTER)
        frozen.thaw()
        at_thaw = time.time()
        await until(lambda: is_up(gateway, frozen.name), "the return", RETURN)
        at_return = time.time()
        await trio.sleep(1)
        stop.set()

    gets = ledger.of(RequestKind.GET)
    after = [one for one in gets if at_ejection < one.began < at_thaw]
    print(f"frozen: ejected after {at_ejection - at_freeze:.1f} s; thawed: back after {at_return - at_thaw:.1f} s")
    print_slow_gets("before the freeze", [one for one in gets if one.began + one.seconds < at_freeze])
    print_slow_gets(
        "from the freeze to the ejection",
        [one for one in gets if at_freeze < one.began + one.seconds and one.began <= at_ejection],
    )
    print_slow_gets("ejected", after)
    print_slow_gets("from the thaw on", [one for one in gets if one.began >= at_thaw])
    assert [one for one in gets if one.outcome is not Outcome.SUCCESS] == []
    assert ledger.anomalies == []
    assert [one for one in after if one.seconds > STUCK] == []
    assert len(after) > CLIENTS
