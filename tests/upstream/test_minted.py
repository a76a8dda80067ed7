"""Minted credentials: one for each client, made when needed, renewed in time, and the least recently used go."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import trio
from cryptography import x509
from OpenSSL import SSL

from gateway.config import IdentityConfig, MatchConfig, PoolConfig
from gateway.errors import BackendError, MintingError
from gateway.identity import Identities, Principal
from gateway.metrics import Metrics
from gateway.tls.minting import IssuingCa
from gateway.upstream import minted
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.minted import MintedCredentials, open_minted_session
from gateway.upstream.open_session import VALIDATION_REQUESTS, SessionTarget
from gateway.upstream.session import Session
from tests.kit.authorities import Ca, common_name
from tests.kit.fake_backends import LIMITS, FakeStream, in_virtual_time, validated

CLIENTS, ISSUING = Ca.make("Clients CA"), Ca.make("Issuing CA")


class Clock:
    """The wall clock of minted certificates; trio's clock is apart."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    it = Clock()

    monkeypatch.setattr(minted, "time", it)
    return it


class Held:
    """Minted credentials, the pools that are in use, and the credentials that were forgotten."""

    def __init__(self, limit: int = 3, **options: Any) -> None:
        self.metrics = Metrics("test")
        self.in_use: set[str] = set()
        self.forgotten: list[str] = []
        self.cas = {"storage": IssuingCa([ISSUING.certificate], ISSUING.key, **options)}
        self.credentials = MintedCredentials(
            PoolConfig(max_principals=limit),
            self.cas,
            self.metrics,
            is_unused=lambda credential: credential not in self.in_use,
            forget=self.forgotten.append,
        )

    def minted_total(self, result: str) -> float:
        return self.metrics.certificates_minted.labels("storage", result).value


def principal(name: str, *sans: x509.GeneralName) -> Principal:
    rule = IdentityConfig.model_construct(name="storage", match=MatchConfig(subject_cn=("*",)), shared=False)
    found = Identities([rule], issuers={"storage": [CLIENTS.certificate]}).identify(
        CLIENTS.issue(common_name(name), sans)
    )
    assert found is not None
    return found


ALICE, BOB, CAROL, DAVE = (principal(name) for name in ("alice", "bob", "carol", "dave"))


def use(held: Held, client: Principal) -> None:
    held.credentials.leave(held.credentials.enter(client))


# Certificates ---------------------------------------------------------------------------------------------------------


async def test_a_certificate_is_made_once_and_kept() -> None:
    held = Held()
    credential = held.credentials.enter(ALICE)
    assert not credential.is_usable
    first = await credential.current()
    assert credential.is_usable
    assert await credential.current() is first
    assert first.certificate.subject == common_name("alice")
    assert held.minted_total("issued") == 1


async def test_a_certificate_is_renewed_after_two_thirds_of_its_life(clock: Clock) -> None:
    held = Held(lifetime=900)
    credential = held.credentials.enter(ALICE)
    first = await credential.current()
    clock.now += 599
    assert await credential.current() is first
    clock.now += 2
    second = await credential.current()
    assert second is not first
    assert second.ends == pytest.approx(clock.now + 900, abs=1)
    clock.now += 901
    assert not credential.is_usable


async def test_another_issuing_ca_is_used_for_the_next_session() -> None:
    held = Held()
    credential = held.credentials.enter(ALICE)
    await credential.current()
    other = Ca.make("New issuing CA")
    held.cas["storage"] = IssuingCa([other.certificate], other.key)
    held.credentials.renew("databases")
    assert (await credential.current()).certificate.issuer == common_name("Issuing CA")
    held.credentials.renew("storage")
    assert (await credential.current()).certificate.issuer == common_name("New issuing CA")


@in_virtual_time
async def test_a_refusal_is_repeated_for_half_a_minute_without_a_try() -> None:
    constraints = x509.NameConstraints([x509.DNSName("example.com")], None)
    held = Held()
    ca = Ca.make("Constrained CA", constraints=constraints)
    held.cas["storage"] = IssuingCa([ca.certificate], ca.key)
    credential = held.credentials.enter(principal("eve", x509.DNSName("eve.example.org")))
    for _ in range(5):
        with pytest.raises(MintingError, match="Constrained CA does not permit the names"):
            await credential.current()
    assert held.minted_total("refused") == 1
    held.cas["storage"] = Held().cas["storage"]
    await trio.sleep(31)
    await credential.current()
    assert held.minted_total("issued") == 1


async def test_slow_keys_are_made_in_a_thread_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(minted_key="rsa-2048")
    threads: list[Callable[..., object]] = []
    run_sync = trio.to_thread.run_sync

    async def note(function: Callable[..., Any], *arguments: Any) -> Any:
        threads.append(function)
        return await run_sync(function, *arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", note)
    credential = held.credentials.enter(ALICE)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(credential.current)
    assert len(threads) == 1


async def test_a_credential_of_an_identity_without_a_ca_is_refused() -> None:
    held = Held()
    credential = held.credentials.enter(ALICE)
    held.cas.clear()
    with pytest.raises(MintingError, match="a reload has removed it"):
        await credential.current()


def test_repr_shows_counts_and_no_keys() -> None:
    held = Held()
    assert repr(held.credentials.enter(ALICE)) == "<MintedCredential of storage: no certificate>"
    assert repr(held.credentials) == "<MintedCredentials of 1 principals>"


# The limit ------------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_principal_is_forgotten() -> None:
    held = Held(limit=3)
    for client in (ALICE, BOB, CAROL, ALICE, DAVE):
        use(held, client)
    assert held.forgotten == [BOB.credential]
    assert len(held.credentials) == 3


def test_a_principal_with_requests_under_way_is_never_forgotten() -> None:
    held = Held(limit=1)
    alice = held.credentials.enter(ALICE)
    bob = held.credentials.enter(BOB)
    assert held.forgotten == []
    assert len(held.credentials) == 2
    held.credentials.leave(alice)
    held.credentials.leave(bob)
    use(held, CAROL)
    assert held.forgotten == [ALICE.credential, BOB.credential]
    assert len(held.credentials) == 1


def test_a_principal_with_sessions_in_use_is_not_forgotten() -> None:
    held = Held(limit=1)
    use(held, ALICE)
    held.in_use.add(ALICE.credential)
    use(held, BOB)
    assert held.forgotten == []
    held.in_use.clear()
    use(held, CAROL)
    assert held.forgotten == [ALICE.credential, BOB.credential]


def test_ten_thousand_clients_never_exceed_the_limit() -> None:
    held = Held(limit=10)
    names = principal("x")
    assert names.names is not None
    for number in range(10_000):
        use(held, names._replace(names=names.names._replace(credential=f"storage/{number}")))
        assert len(held.credentials) <= 10
    assert len(held.forgotten) == 9990


@in_virtual_time
async def test_a_removed_identity_is_forgotten_after_its_last_request(nursery: trio.Nursery) -> None:
    held = Held()
    use(held, ALICE)
    bob = held.credentials.enter(BOB)
    nursery.start_soon(held.credentials.retire, "storage")
    await trio.sleep(1)
    assert held.forgotten == [ALICE.credential]
    held.credentials.leave(bob)
    await trio.sleep(1)
    assert held.forgotten == [ALICE.credential, BOB.credential]
    await held.credentials.retire("storage")


# Sessions -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> SessionTarget:
    async def opened(shown: SessionTarget) -> Session:
        assert shown.minted is not None
        return validated(Session(FakeStream(), shown.minted.certificate.subject.rfc4514_string(), limits=LIMITS))

    monkeypatch.setattr(minted, "open_session", opened)
    return SessionTarget(
        "kms-1",
        Endpoint(),
        SSL.Context(SSL.TLS_METHOD),
        None,
        frozenset(),
        LIMITS,
        VALIDATION_REQUESTS["query"],
    )


@in_virtual_time
async def test_a_session_shows_its_principal_and_ends_before_its_certificate(target: SessionTarget) -> None:
    held = Held(lifetime=900)
    ends = []
    for _ in range(50):
        session = await open_minted_session(target, held.credentials.enter(ALICE))
        assert session.backend == "CN=alice"
        ends.append(session.expires_at - trio.current_time())
    assert all(600 <= end <= 600 + 300 * 0.75 + 1 for end in ends)
    assert max(ends) - min(ends) > 100  # they are not replaced together
    assert timedelta(seconds=max(ends)) < timedelta(seconds=900)


@in_virtual_time
async def test_a_session_without_a_certificate_fails_before_anything_is_sent(target: SessionTarget) -> None:
    held = Held()
    credential = held.credentials.enter(ALICE)
    held.cas.clear()
    with pytest.raises(BackendError, match="a reload has removed it") as failed:
        await open_minted_session(target, credential)
    assert failed.value.reason == "credential"
