"""Key managers that replicate late: how many new keys clients find on new sessions, and the failover of masters.

PyKMIP's client asks, over real TLS, through a gateway with each remedy on and off.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio
from kmip.core import enums
from kmip.core.attributes import Name
from kmip.core.factories.attributes import AttributeFactory
from kmip.core.objects import Attribute
from kmip.pie.client import ProxyKmipClient
from kmip.pie.exceptions import KmipOperationFailure
from kmip_lab.keymanager.roles import Link, Member, Role, promote, two_plus_two, write_roles

from tests.kit.ledger import Exchange, Ledger, Outcome, RequestKind
from tests.kit.load import Caller, Keys
from tests.kit.observation import is_up, until
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    KeyManagerProcess,
    running_gateway,
    running_key_manager_processes,
    running_key_managers,
)

LAG: Final = 2.0  # s until the other masters have a change
ROUNDS: Final = 12  # of making a key and asking for it at once
MASTERS: Final = ("kms-1", "kms-2", "kms-3")

#: Each remedy on and off, as the configuration says it.
REMEDIES: Final = {
    "neither": 'mode = "shared"',
    "the window": 'mode = "async"\nfallback_on_not_found = false',
    "asking others": 'mode = "async"\nread_your_writes_window = 0.001',
    "both": 'mode = "async"',
}


@contextmanager
def late_masters(certificates: Certificates) -> Iterator[list[int]]:
    """Run three masters that replicate to each other after LAG seconds; yield their ports."""
    cluster = certificates.path("cluster")
    cluster.mkdir()
    links = {name: Link(delay=LAG) for name in MASTERS}
    write_roles(
        cluster,
        {
            name: Member(Role.MASTER, {other: link for other, link in links.items() if other != name})
            for name in MASTERS
        },
    )
    with running_key_managers(certificates, MASTERS, "--cluster", str(cluster)) as ports:
        yield ports


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Certificates, list[int]]]:
    certificates = Certificates(tmp_path_factory.mktemp("late"))
    with late_masters(certificates) as ports:
        yield certificates, ports


@pytest.fixture(scope="module", params=REMEDIES)
def remedy(request: pytest.FixtureRequest, masters: tuple[Certificates, list[int]]) -> Iterator[tuple[str, Gateway]]:
    certificates, ports = masters
    extra = f"[replication]\n{REMEDIES[request.param]}\nmin_lookups_per_second = 10.0"
    with running_gateway(certificates, GatewaySettings(ports, extra=extra)) as gateway:
        yield request.param, gateway


def finds(client: ProxyKmipClient, uid: str) -> bool:
    """Return True if a client gets this key now, on a session of its own."""
    with client:
        try:
            client.get(uid)
        except KmipOperationFailure as failure:
            if failure.reason is not enums.ResultReason.ITEM_NOT_FOUND:
                raise
            return False
        return True


def share_found(gateway: Gateway, reader: str) -> float:
    """Return the share of new keys that ``reader`` gets at once on a new session.

    Another client sends a Get now and then, so that the round robin is not in step with the readers.
    """
    found = 0
    for number in range(ROUNDS):
        if number % 2:
            assert not finds(gateway.client("somebody"), "nothing")
        with gateway.client("writer") as client:
            uid = client.create(enums.CryptographicAlgorithm.AES, 256)
        found += finds(gateway.client(reader), uid)
    return found / ROUNDS


def test_a_client_finds_at_once_what_it_made(remedy: tuple[str, Gateway]) -> None:
    """Either remedy is enough: read_your_writes_window, or fallback_on_not_found."""
    name, gateway = remedy
    share = share_found(gateway, "writer")

    print(f"{name:<16} a client finds {share:>4.0%} of what it made itself, at once, lag {LAG:g} s")
    assert (share == 1) is (name != "neither")


def test_another_client_finds_a_new_key_if_others_are_asked(remedy: tuple[str, Gateway]) -> None:
    name, gateway = remedy
    share = share_found(gateway, "reader")

    print(f"{name:<16} a client finds {share:>4.0%} of what another made, at once, lag {LAG:g} s")
    assert (share == 1) is (name in {"asking others", "both"})


def test_a_locate_by_name_finds_a_key_just_made_and_no_second_one_is_made(remedy: tuple[str, Gateway]) -> None:
    """Clients locate a key by name, and make it if they find none."""
    name, gateway = remedy
    made = 0
    for number in range(ROUNDS):
        wanted = f"{name} {number}"
        for _ in range(3):
            with gateway.client("writer") as client:
                if not client.locate(attributes=[_named(wanted)]):
                    client.create(enums.CryptographicAlgorithm.AES, 256, name=wanted)
                    made += 1

    print(f"{name:<16} {made - ROUNDS} second keys for {ROUNDS} names")
    assert (made == ROUNDS) is (name != "neither")


def _named(name: str) -> Attribute:
    value = Name.create(name, enums.NameType.UNINTERPRETED_TEXT_STRING)
    return AttributeFactory().create_attribute(enums.AttributeType.NAME, value)


# Two sites, a master and its synchronous standby at each -------------------------------------------------------------

CLIENTS: Final = 6
NEAR: Final = 0.001
FAR: Final = 0.5  # s on the links within a site, and between the two
BEFORE: Final = 1.5  # s of load before the kill
UNPROMOTED: Final = 3.0  # s from the kill to the promotion
AFTER: Final = 3.0  # s of load once the promoted one serves
SITES: Final = """
[health]
interval = 0.5
rise = 1
expect_text = "ServerType=master"
[replication]
mode = "async"
"""


@pytest.fixture
def two_sites(tmp_path: Path) -> Iterator[tuple[Gateway, list[KeyManagerProcess]]]:
    certificates = Certificates(tmp_path / "c")
    cluster = certificates.path("cluster")
    cluster.mkdir()
    roles = two_plus_two(NEAR, FAR)
    write_roles(cluster, roles)
    with (
        running_key_manager_processes(certificates, list(roles), cluster=cluster) as key_managers,
        running_gateway(certificates, GatewaySettings([one.port for one in key_managers], extra=SITES)) as gateway,
    ):
        yield gateway, key_managers


async def make_and_get(caller: Caller, ledger: Ledger, stop: trio.Event, rng: random.Random) -> None:
    """Make a key on one session and get it on the next, as clients do that keep no session."""
    while not stop.is_set():
        async with caller.session() as client:
            await caller.create(client)
        made = ledger.exchanges[-1]
        for _ in range(3 if made.outcome is Outcome.SUCCESS else 0):
            async with caller.session() as client:
                await caller.get(client, made.uid)
            await trio.sleep(rng.uniform(0, 0.1))
        await trio.sleep(rng.uniform(0, 0.1))


def print_outcomes(title: str, exchanges: list[Exchange]) -> None:
    """Print the outcomes and the slowest request of a period."""
    for kind in (RequestKind.CREATE, RequestKind.GET):
        of_kind = [one for one in exchanges if one.kind is kind]
        outcomes = Counter(one.outcome.value for one in of_kind)
        slowest = max((one.seconds for one in of_kind), default=0.0)
        print(f"{title:<28}{kind.value:<8}{dict(outcomes)}, slowest {slowest:.2f} s")


@pytest.mark.parametrize("masters_killed", [1, 2])
async def test_masters_are_killed_and_their_standbys_promoted(
    two_sites: tuple[Gateway, list[KeyManagerProcess]], masters_killed: int
) -> None:
    """No acknowledged key is lost; while a site has a master, no client waits for the promotion of the other site."""
    gateway, key_managers = two_sites
    ledger, stop = Ledger(), trio.Event()
    keys = Keys("gateway")
    callers = [Caller(gateway, f"client-{number}", keys, ledger, patience=30.0) for number in range(CLIENTS)]

    async with trio.open_nursery() as nursery:
        for number, caller in enumerate(callers):
            nursery.start_soon(make_and_get, caller, ledger, stop, random.Random(number))
        await trio.sleep(BEFORE)
        killed_at = time.time()
        for site in range(masters_killed):
            key_managers[2 * site].kill()
        await trio.sleep(UNPROMOTED)
        promoted_at = time.time()
        for site in range(masters_killed):
            master, standby = key_managers[2 * site], key_managers[2 * site + 1]
            promote(gateway.certificates.path("cluster"), standby.name, instead_of=master.name)
        for site in range(masters_killed):
            await until(partial(is_up, gateway, f"kms-{2 * site + 2}"), "the promoted standby", 20.0)
        serving_at = time.time()
        await trio.sleep(AFTER)
        stop.set()
    async with callers[0].session() as client:
        for uid in keys.uids:
            await callers[0].get(client, uid)

    served = [one for one in ledger.exchanges if one.began > killed_at and one.outcome is Outcome.SUCCESS]
    first = min(one.began + one.seconds for one in served)
    print(f"{masters_killed} of 2 masters killed; success again {first - killed_at:.2f} s after the kill,")
    print(
        f"the promoted serve {serving_at - promoted_at:.2f} s after their promotion ({UNPROMOTED:g} s after the kill)"
    )
    print_outcomes("before the kill", [one for one in ledger.exchanges if one.began < killed_at])
    print_outcomes("until the promoted serve", [one for one in ledger.exchanges if killed_at <= one.began < serving_at])
    print_outcomes("after it", [one for one in ledger.exchanges if serving_at <= one.began])

    assert ledger.anomalies == []
    assert {one.outcome for one in ledger.exchanges if one.began >= serving_at + 1} == {Outcome.SUCCESS}
    lost = {one.uid for one in ledger.of(RequestKind.CREATE) if one.outcome is Outcome.SUCCESS} - set(keys.values)
    assert lost == set()
    if masters_killed == 1:
        told = {one.outcome for one in ledger.of(RequestKind.CREATE)}
        assert told <= {Outcome.SUCCESS, Outcome.UNKNOWN, Outcome.NOT_MASTER}
