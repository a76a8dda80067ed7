"""An identity with a credential that all key managers refuse floods the gateway: other identities are not affected."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest
import trio
from kmip_lab.faults import Fault, FaultSetting, write_faults

from tests.kit.ledger import Ledger, Outcome, RequestKind
from tests.kit.load import Caller, Keys, get_until_stopped
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_managers,
)

SECONDS: Final = 4.0
CLIENTS: Final = 5  # of the welcome identity
HAMMERS: Final = 10  # clients of the refused identity
QUICK: Final = 2.5  # s; a wait for a session that can't be opened takes longer, however busy the machine
NAMES: Final = ("kms-1", "kms-2", "kms-3", "kms-4")
PATIENCE: Final = 40.0  # s, more than the gateway's own deadline


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    certificates = Certificates(tmp_path_factory.mktemp("refused"))
    faults = certificates.path("faults.json")
    unwanted = FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({"unwanted"}))
    write_faults(faults, {name: [unwanted] for name in NAMES})
    identities = [Identity(name, f'{{ subject_cn = "{name}-*" }}', credential=name) for name in ("welcome", "unwanted")]
    with (
        running_key_managers(certificates, NAMES, "--faults", str(faults)) as ports,
        running_gateway(certificates, GatewaySettings(ports, identities)) as gateway,
    ):
        yield gateway


async def hammer(caller: Caller, stop: trio.Event) -> None:
    """Create without end, at once again after each refusal."""
    while not stop.is_set():
        async with caller.session() as client:
            await caller.create(client)
            await trio.sleep(0.01)


def backends_up(gateway: Gateway) -> list[float]:
    samples = gateway.metrics()
    return [samples[f'kmip_gateway_backend_up{{backend="{name}"}}'] for name in NAMES]


async def test_a_refused_credential_does_not_slow_down_another_identity(gateway: Gateway) -> None:
    welcome, unwanted, stop = Ledger(), Ledger(), trio.Event()
    keys, rng = Keys("welcome"), random.Random(0)
    callers = [Caller(gateway, f"welcome-{number}", keys, welcome, patience=PATIENCE) for number in range(CLIENTS)]
    hammers = [
        Caller(gateway, f"unwanted-{number}", Keys("unwanted"), unwanted, patience=PATIENCE)
        for number in range(HAMMERS)
    ]
    async with callers[0].session() as client:
        await callers[0].create(client)
    ups = []
    async with trio.open_nursery() as nursery:
        for caller in hammers:
            nursery.start_soon(hammer, caller, stop)
        for number, caller in enumerate(callers):
            work = partial(get_until_stopped, caller, keys, stop, rng, pause=0.02, kept=number % 2 == 0)
            nursery.start_soon(work)
        for _ in range(int(SECONDS)):
            await trio.sleep(1)
            ups += await trio.to_thread.run_sync(backends_up, gateway)
        stop.set()

    gets, creates = welcome.of(RequestKind.GET), unwanted.of(RequestKind.CREATE)
    slowest = max(one.seconds for one in gets)
    print(f"welcome: {len(gets)} Gets, the slowest took {slowest:.3f} s; unwanted: {len(creates)} Creates refused")
    assert [one for one in gets if one.outcome is not Outcome.SUCCESS] == []
    assert [one for one in creates if one.outcome is not Outcome.ERROR] == []
    assert [*welcome.anomalies, *unwanted.anomalies] == []
    assert slowest < QUICK
    assert set(ups) == {1}
    assert len(gets) > 20 * SECONDS
    assert len(creates) >= HAMMERS
