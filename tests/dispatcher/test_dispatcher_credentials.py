"""Credentials of requests: the password of an identity, and the minted credential of a client."""

from functools import partial
from typing import Any

import pytest
import trio
from cryptography import x509

from gateway.config import PoolConfig
from gateway.dispatcher import Dispatcher, DispatcherSettings
from gateway.identity import Identity, OwnNames, Principal
from gateway.kmip import ttlv
from gateway.kmip.authentication import username_and_password
from gateway.kmip.messages import Request
from gateway.kmip.spec import CredentialType, Operation, ResultReason, Tag
from gateway.metrics import Metrics
from gateway.policy import Refusal
from gateway.tls.minting import IssuingCa
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.maintenance import maintain_pools
from gateway.upstream.minted import MintedCredentials
from gateway.upstream.passwords import Password
from gateway.upstream.pool import Pool
from gateway.upstream.slots import Slots
from tests.kit.authorities import Ca, common_name
from tests.kit.deployment import name_of, principal, refusal
from tests.kit.fake_backends import Connection, FakeKeyManager, answers, ask, in_virtual_time, make_pool
from tests.kit.messages import authentication, credential, ticket_credential

CLIENTS, ISSUING = Ca.make("Clients CA"), Ca.make("Issuing CA")
OWN = authentication(credential(CredentialType.USERNAME_AND_PASSWORD))


class Site:
    """Two key managers, a dispatcher, and the Authentication of each request that the key managers got."""

    def __init__(self, nursery: trio.Nursery, client_credential: Any = "refuse", *, limit: int = 1000) -> None:
        self.shown: list[tuple[str, bytes | None]] = []
        self.key_managers = [FakeKeyManager("atlanta"), FakeKeyManager("london")]
        self.backends = []
        for key_manager in self.key_managers:
            key_manager.behaviour = self._answer
            slots = Slots(4)
            make = partial(make_pool, key_manager, nursery.start_soon, slots=slots)
            fixed = {name: make(credential=name)[0] for name in FIXED}
            backend = Backend(key_manager.name, slots, fixed, mints=True)
            backend.build_pool = lambda client, make=make: make(credential=client.credential, keeps_warm=False)[0]
            nursery.start_soon(maintain_pools, backend.pools.values(), 3.0)
            self.backends.append(backend)
        metrics = Metrics("test")
        self.cas = {"storage": IssuingCa([ISSUING.certificate], ISSUING.key)}
        self.minted = MintedCredentials(
            PoolConfig(max_principals=limit), self.cas, metrics, is_unused=self._is_unused, forget=self._forget
        )
        password = Password(username_and_password("app", b"secret"), client_credential)
        self.dispatcher = Dispatcher(
            Balancer(self.backends),
            DispatcherSettings(),
            metrics=metrics,
            passwords={"red": password},
            minted=self.minted,
        )

    def _answer(self, connection: Connection, request: Request) -> None:
        span = request.fields.get(Tag.AUTHENTICATION)
        self.shown.append((connection.credential, None if span is None else request.frame[span[0] - 8 : span[1]]))
        answers(connection, request)

    def _pools(self, credential: str) -> list[Pool]:
        return [backend.pools[credential] for backend in self.backends if credential in backend.pools]

    def _is_unused(self, credential: str) -> bool:
        return all(pool.is_unused for pool in self._pools(credential))

    def _forget(self, credential: str) -> None:
        for backend in self.backends:
            if credential in backend.pools:
                backend.remove_pool(credential)

    @property
    def executed(self) -> list[tuple[str, str]]:
        return [entry for key_manager in self.key_managers for entry in key_manager.executed]


FIXED = ("red", "blue")


def client(name: str, *sans: x509.GeneralName) -> Principal:
    der = CLIENTS.issue(common_name(name), sans)
    names = OwnNames(f"storage/{name}", der)
    return Principal(Identity("storage", shared=False), "CN=Clients CA", f"CN={name}", 0, float("inf"), names)


# Passwords ------------------------------------------------------------------------------------------------------------


def is_of_the_gateway(shown: bytes | None) -> bool:
    return shown is not None and ttlv.text(Tag.USERNAME, "app") in shown and b"secret" in shown


@in_virtual_time
async def test_a_password_is_in_the_requests_of_its_identity_only(nursery: trio.Nursery) -> None:
    site = Site(nursery)
    for name in ("red", "blue"):
        answer = await site.dispatcher.dispatch(ask(f"{name}-1", Operation.GET, Operation.GET), principal(name))
        assert name_of(answer) == f"{name}-1"
    assert [(credential, is_of_the_gateway(shown)) for credential, shown in site.shown] == [
        ("red", True),
        ("blue", False),
    ]


@pytest.mark.parametrize("own", [OWN, authentication(ticket_credential(b"ticket"))], ids=["password", "ticket"])
@in_virtual_time
async def test_a_client_that_brings_a_credential_is_refused(nursery: trio.Nursery, own: bytes) -> None:
    site = Site(nursery)
    answer = await site.dispatcher.dispatch(ask("1", header=(own,)), principal("red"))
    assert refusal(answer)[:2] == (Refusal.CLIENT_CREDENTIAL, ResultReason.AUTHENTICATION_NOT_SUCCESSFUL)
    assert site.shown == []
    await site.dispatcher.dispatch(ask("1", header=(own,)), principal("blue"))
    assert site.shown == [("blue", own)]


@pytest.mark.parametrize(("rule", "is_own"), [("replace", False), ("pass", True)])
@in_virtual_time
async def test_a_clients_credential_is_replaced_or_passed(nursery: trio.Nursery, rule: str, is_own: bool) -> None:
    site = Site(nursery, rule)
    for header in ((OWN,), ()):
        await site.dispatcher.dispatch(ask("1", header=header), principal("red"))
    assert [shown == OWN for _credential, shown in site.shown] == [is_own, False]
    assert [is_of_the_gateway(shown) for _credential, shown in site.shown] == [not is_own, True]


@in_virtual_time
async def test_a_retried_request_has_one_password(nursery: trio.Nursery) -> None:
    site = Site(nursery)
    await site.dispatcher.dispatch(ask("1"), principal("red"))
    site.key_managers[0].hang_up()
    site.key_managers[0].refuse()
    for _ in range(4):
        await site.dispatcher.dispatch(ask("1"), principal("red"))
    assert len(site.shown) == 5
    assert len({shown for _credential, shown in site.shown}) == 1


# Minted credentials ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_clients_use_sessions_of_their_own_and_keep_them(nursery: trio.Nursery) -> None:
    site = Site(nursery)
    alice, bob = client("alice"), client("bob")
    async with trio.open_nursery() as clients:
        for number in range(40):
            who = alice if number % 2 else bob
            clients.start_soon(site.dispatcher.dispatch, ask(f"{who.credential}-{number}"), who)
    assert len(site.executed) == 40
    assert all(key.startswith(credential) for credential, key in site.executed)
    assert sum(len(key_manager.open_connections) for key_manager in site.key_managers) <= 8


@in_virtual_time
async def test_a_client_that_may_not_be_shown_is_refused_with_the_reason(nursery: trio.Nursery) -> None:
    site = Site(nursery)
    ca = Ca.make("Constrained CA", constraints=x509.NameConstraints([x509.DNSName("example.com")], None))
    site.cas["storage"] = IssuingCa([ca.certificate], ca.key)
    eve = client("eve", x509.DNSName("eve.example.org"))
    answer = await site.dispatcher.dispatch(ask("1"), eve)
    assert refusal(answer)[:2] == (Refusal.NOT_MINTED, ResultReason.AUTHENTICATION_NOT_SUCCESSFUL)
    assert "CN=Constrained CA does not permit the names" in answer.detail
    assert [key_manager.attempts for key_manager in site.key_managers] == [[], []]
    assert site.backends[0].pools.keys() == set(FIXED)
    inside = client("ann", x509.DNSName("ann.example.com"))
    assert name_of(await site.dispatcher.dispatch(ask("1"), inside)) == "1"


@in_virtual_time
async def test_beyond_the_limit_pools_go_and_no_request_fails(nursery: trio.Nursery) -> None:
    site = Site(nursery, limit=2)
    clients = [client(f"client-{number}") for number in range(6)]
    for number in range(60):
        who = clients[number % 6]
        assert name_of(await site.dispatcher.dispatch(ask(who.credential), who)) == who.credential
        assert len(site.minted) <= 2
        assert sum(len(backend.pools) - len(FIXED) for backend in site.backends) <= 4
    assert all(credential == key for credential, key in site.executed)


@in_virtual_time
async def test_many_clients_at_once_beyond_the_limit_are_all_served(nursery: trio.Nursery) -> None:
    site = Site(nursery, limit=3)
    clients = [client(f"client-{number}") for number in range(20)]

    async def run(who: Principal) -> None:
        for _ in range(5):
            assert name_of(await site.dispatcher.dispatch(ask(who.credential), who)) == who.credential

    async with trio.open_nursery() as running:
        for who in clients:
            running.start_soon(run, who)
    assert all(credential == key for credential, key in site.executed)
    assert len(site.executed) == 100
    await site.dispatcher.dispatch(ask("1"), client("last"))
    assert len(site.minted) <= 3


@in_virtual_time
async def test_the_budgets_are_those_of_the_identity(nursery: trio.Nursery) -> None:
    site = Site(nursery)
    for number in range(20):
        await site.dispatcher.dispatch(ask("1"), client(f"client-{number}"))
    assert set(site.dispatcher._budgets.retries) == {"storage"}
    assert site.dispatcher.requests_in_flight("storage") == 0
