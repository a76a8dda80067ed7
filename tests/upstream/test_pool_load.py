"""Tests of pools under load: many clients cause few handshakes at a weak key manager, and no identity starves."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import trio

from gateway.config import HealthConfig, PoolConfig
from gateway.errors import BackendError, Stage
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation
from gateway.log import get
from gateway.upstream.health_check import HealthChecker
from gateway.upstream.maintenance import maintain_pools, watch
from gateway.upstream.open_session import VALIDATION_REQUESTS
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session
from gateway.upstream.slots import Slots
from tests.kit.deployment import Deployment, deployment
from tests.kit.fake_backends import (
    FAILOVER,
    LIMITS,
    SETTINGS,
    Connection,
    FakeKeyManager,
    answer_to,
    ask,
    in_virtual_time,
    make_pool,
    name_in,
    use,
    validated,
)

WARM = SETTINGS.model_copy(update={"min_idle": 1})


class SerialKeyManager(FakeKeyManager):
    """An HSM that makes handshakes one by one, also for peers that have given up.

    ``wasted`` counts handshakes that the gateway gave up; ``most`` is the greatest number under way at once.
    """

    def __init__(self, handshake_cost: float = 0.05) -> None:
        super().__init__("hsm", handshake_cost=handshake_cost)
        self.free_at = 0.0
        self.under_way = 0
        self.most = self.wasted = 0

    def forget(self) -> None:
        """Reset the counts."""
        self.attempts.clear()
        self.most = self.wasted = 0

    async def _open(self, credential: str) -> Session:
        self.attempts.append(trio.current_time())
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if self.refusal is not None:
                await trio.sleep(0.001)
                raise self.refusal
            self.free_at = max(trio.current_time(), self.free_at) + self.handshake_cost
            await trio.sleep_until(self.free_at)
        except trio.Cancelled:
            self.wasted += 1
            raise
        finally:
            self.under_way -= 1
        connection = Connection(self, credential)
        self.connections.append(connection)
        return validated(Session(connection, self.name, limits=LIMITS))


def pools_of(
    key_manager: FakeKeyManager, nursery: trio.Nursery, number: int, slots: Slots, settings: PoolConfig = WARM
) -> list[Pool]:
    """Start the maintained pools of so many identities, and return them."""
    pools = [
        make_pool(key_manager, nursery.start_soon, settings, credential=f"id{index}", slots=slots)[0]
        for index in range(number)
    ]
    nursery.start_soon(maintain_pools, pools, 3.0)
    return pools


async def time_until_warm(pools: Sequence[Pool], sessions: int = 1) -> float:
    """Return the seconds until every pool has so many idle sessions, 600 at most."""
    began = trio.current_time()
    for _ in range(600 * 20):
        if all(pool.statistics().idle >= sessions for pool in pools):
            break
        await trio.sleep(0.05)
    return trio.current_time() - began


# Handshakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identities", [20, 200])
@in_virtual_time
async def test_all_identities_are_warm_soon_after_a_start(nursery: trio.Nursery, identities: int) -> None:
    """An HSM that makes twenty handshakes a second needs 10 s for 200."""
    hsm = SerialKeyManager()
    slots = Slots(400)
    pools = pools_of(hsm, nursery, identities, slots)
    longest = identities * hsm.handshake_cost + 3  # 13 s for 200

    assert await time_until_warm(pools) <= longest
    assert (len(hsm.attempts), hsm.wasted) == (identities, 0)
    assert hsm.most <= 16

    hsm.refuse()
    hsm.hang_up()
    await trio.sleep(2)
    hsm.forget()
    await trio.sleep(18)
    assert len(hsm.attempts) <= 18 / 1.5 + 1
    assert hsm.most == 1
    hsm.recover()
    hsm.forget()

    assert await time_until_warm(pools) <= longest
    assert (len(hsm.attempts), hsm.wasted) == (identities, 0)
    assert hsm.most <= 16
    assert slots.used == identities
    assert slots.gate.under_way == 0


@in_virtual_time
async def test_requests_go_before_warm_sessions_at_start(nursery: trio.Nursery) -> None:
    hsm = SerialKeyManager()
    pools = pools_of(hsm, nursery, 200, Slots(400))
    await trio.sleep(0.01)

    with trio.fail_after(1):
        await use(pools[100], "key-1")


@in_virtual_time
async def test_many_warm_sessions_are_opened_a_few_at_a_time(nursery: trio.Nursery) -> None:
    hsm = SerialKeyManager()
    slots = Slots(64)
    pools = pools_of(hsm, nursery, 1, slots, SETTINGS.model_copy(update={"min_idle": 64}))
    assert await time_until_warm(pools, 64) <= 64 * hsm.handshake_cost + 1
    assert hsm.most <= 16

    hsm.refuse()
    hsm.hang_up()
    await trio.sleep(5)
    hsm.recover()
    hsm.forget()

    assert await time_until_warm(pools, 64) <= 64 * hsm.handshake_cost + 3
    assert (len(hsm.attempts), hsm.wasted) == (64, 0)
    assert hsm.most <= 16


class LimitedKeyManager(FakeKeyManager):
    """A key manager that accepts so many sessions, and refuses more after the handshake."""

    most = 4

    async def _open(self, credential: str) -> Session:
        if len(self.open_connections) < self.most:
            return await super()._open(credential)
        self.attempts.append(trio.current_time())
        await trio.sleep(self.handshake_cost)
        raise BackendError("too many sessions", backend=self.name, stage=Stage.CONNECT, reason="validation")


def ask_for_ever(pool: Pool, nursery: trio.Nursery, clients: int, tally: Counter[str]) -> None:
    """Start clients that send the next request as soon as they are answered."""

    async def client() -> None:
        while True:
            try:
                await use(pool, "key-1")
                pool.answered_at = trio.current_time()
                tally["answered"] += 1
            except BackendError as error:
                tally[error.reason] += 1
                await trio.sleep(0.25)

    for _ in range(clients):
        nursery.start_soon(client)


@in_virtual_time
async def test_a_limit_of_the_key_manager_is_learned_and_seldom_tried(nursery: trio.Nursery) -> None:
    """64 sessions are allowed by the settings, 4 by the key manager, and 20 clients ask."""
    limited = LimitedKeyManager(operation_cost=0.05)
    slots, tally = Slots(64), Counter[str]()
    pool, observer = make_pool(limited, nursery.start_soon, WARM, slots=slots)
    nursery.start_soon(maintain_pools, [pool], 3.0)
    ask_for_ever(pool, nursery, 20, tally)
    await trio.sleep(10)
    limited.attempts.clear()
    tally.clear()

    await trio.sleep(180)

    assert len(limited.attempts) <= 10
    assert tally.keys() == {"answered"}
    assert tally["answered"] >= 0.95 * 180 * 4 / 0.05
    assert observer.ceilings == [4]


class SlowKeyManager(LimitedKeyManager):
    """A key manager that answers further sessions too late."""

    async def _open(self, credential: str) -> Session:
        try:
            return await super()._open(credential)
        except BackendError as error:
            raise BackendError(
                "no session within 3 s", backend=self.name, stage=error.stage, reason="timeout"
            ) from None


@in_virtual_time
async def test_sessions_that_open_too_slowly_teach_no_limit(nursery: trio.Nursery) -> None:
    slow = SlowKeyManager(operation_cost=0.05)
    slots, tally = Slots(64), Counter[str]()
    pool, observer = make_pool(slow, nursery.start_soon, WARM, slots=slots)
    nursery.start_soon(maintain_pools, [pool], 3.0)
    ask_for_ever(pool, nursery, 20, tally)

    await trio.sleep(30)

    assert len(slow.attempts) > 2
    assert observer.ceilings == []


@in_virtual_time
async def test_a_lack_of_descriptors_teaches_no_limit(nursery: trio.Nursery) -> None:
    """Open sessions answer while this process can't open more sessions."""
    atlanta = FakeKeyManager(operation_cost=0.05)
    pool, observer = make_pool(atlanta, nursery.start_soon, WARM, slots=Slots(64))
    nursery.start_soon(maintain_pools, [pool], 3.0)
    tally = Counter[str]()
    ask_for_ever(pool, nursery, 2, tally)
    await trio.sleep(1)
    atlanta.refuse("resources")
    ask_for_ever(pool, nursery, 20, tally)
    await trio.sleep(5)
    atlanta.recover()
    await trio.sleep(5)

    assert tally.keys() == {"answered"}
    assert observer.ceilings == []
    assert pool.statistics().busy > 10


@in_virtual_time
async def test_a_limit_of_the_key_manager_that_is_raised_is_used(nursery: trio.Nursery) -> None:
    limited = LimitedKeyManager(operation_cost=0.05)
    slots, tally = Slots(8), Counter[str]()
    pool, _ = make_pool(limited, nursery.start_soon, WARM, slots=slots)
    nursery.start_soon(maintain_pools, [pool], 3.0)
    ask_for_ever(pool, nursery, 20, tally)
    await trio.sleep(10)
    assert slots.used == 4

    limited.most = 64
    await trio.sleep(70)

    assert slots.used == 8
    assert tally.keys() == {"answered"}


@in_virtual_time
async def test_a_learned_limit_is_shared_by_the_identities(nursery: trio.Nursery) -> None:
    limited = LimitedKeyManager(operation_cost=0.05)
    slots = Slots(64)
    pools = pools_of(limited, nursery, 3, slots)
    tallies = [Counter[str]() for _ in pools]
    for pool, tally in zip(pools, tallies, strict=True):
        ask_for_ever(pool, nursery, 10, tally)
    await trio.sleep(30)
    limited.attempts.clear()
    for tally in tallies:
        tally.clear()

    await trio.sleep(120)

    assert len(limited.attempts) <= 20
    for tally in tallies:
        assert tally["answered"] >= 0.5 * 120 * (4 / 3) / 0.05
        assert tally.total() - tally["answered"] <= 0.01 * tally["answered"]


def closes_at_once(connection: Connection) -> None:
    connection.hang_up()


@pytest.mark.parametrize("clients", [0, 8])
@in_virtual_time
async def test_closing_after_validation_costs_few_handshakes(nursery: trio.Nursery, clients: int) -> None:
    strange = FakeKeyManager()
    strange.greeting = closes_at_once
    slots, tally = Slots(64), Counter[str]()
    pool, observer = make_pool(strange, nursery.start_soon, WARM, slots=slots)
    nursery.start_soon(maintain_pools, [pool], 3.0)
    ask_for_ever(pool, nursery, clients, tally)

    await trio.sleep(60)

    assert len(strange.attempts) <= 2 * 60
    assert "validation" in observer.failed
    assert tally["answered"] == 0

    strange.greeting = lambda _connection: None
    await trio.sleep(FAILOVER.max_ejection_time + 1)
    before = tally["answered"]
    await trio.sleep(1)
    assert pool.statistics().idle == 1 or tally["answered"] > before


# Fair shares -------------------------------------------------------------------------------------------------------


def slow_key_pairs(seconds: Callable[[], float]) -> Callable[[Connection, Request], None]:
    """Make a behaviour for which Create Key Pair takes so long, and every other operation 5 ms."""

    def behaviour(connection: Connection, request: Request) -> None:
        connection.execute(request)
        is_slow = request.items[0].operation == Operation.CREATE_KEY_PAIR
        connection.say(answer_to(request), at=trio.current_time() + (seconds() if is_slow else 0.005))

    return behaviour


def maintain(it: Deployment) -> None:
    """Run maintenance, watch and health check of each backend, as the gateway does."""
    for backend in it.backends:
        probe = VALIDATION_REQUESTS["discover-versions"]
        checker = HealthChecker(backend, list(backend.pools), probe, HealthConfig(jitter=0.0), it.metrics, get("test"))
        it.nursery.start_soon(checker.run)
        it.nursery.start_soon(maintain_pools, backend.pools.values(), 3.0)
        it.nursery.start_soon(partial(watch, backend, balancer=it.balancer, metrics=it.metrics, log=get("test")))


@pytest.mark.parametrize(("spread", "pause"), [(0.0, 1.0), (5.0, 5.0)])
@in_virtual_time
async def test_slow_changes_of_one_identity_delay_no_other(spread: float, pause: float) -> None:
    """140 clients of red make key pairs of 20 s with 2 x 64 slots; blue reads now and then."""
    varied = random.Random(1)
    async with deployment("atlanta", "london", max_sessions=64, pool=WARM) as it:
        for key_manager in it.key_managers:
            key_manager.behaviour = slow_key_pairs(lambda: varied.uniform(20 - spread, 20 + spread))
        maintain(it)
        await trio.sleep(5)

        async def red(number: int) -> None:
            while True:
                await it.ask(ask(f"key-{number}", Operation.CREATE_KEY_PAIR), "red", f"client-{number}")

        for number in range(140):
            it.nursery.start_soon(red, number)
        await trio.sleep(3)
        waits = []
        for _ in range(40):
            began = trio.current_time()
            answer = await it.ask(ask("key"), "blue", "bob")
            assert answer.response is not None, answer.detail
            waits.append(trio.current_time() - began)
            await trio.sleep(pause)

        assert max(waits) <= 1.0
        assert sum(backend.pools["red"].statistics().busy for backend in it.backends) >= 2 * (64 - 8)


def slow_if_named(connection: Connection, request: Request) -> None:
    """Answer a validation request at once, and every other request after 20 s."""
    connection.execute(request)
    connection.say(answer_to(request), at=trio.current_time() + (20.0 if name_in(request) else 0.005))


@in_virtual_time
async def test_an_identity_that_reads_rarely_keeps_its_warm_session(nursery: trio.Nursery) -> None:
    slots = Slots(64)
    atlanta = FakeKeyManager()
    atlanta.behaviour = slow_if_named
    red, blue = (
        make_pool(atlanta, nursery.start_soon, WARM, credential=name, slots=slots)[0] for name in ("red", "blue")
    )
    nursery.start_soon(maintain_pools, [red, blue], 3.0)
    await trio.sleep(5)
    ask_for_ever(red, nursery, 140, Counter())

    for _ in range(3):
        await trio.sleep(600)
        assert slots.held(red) == 63
        session = blue.take()
        assert session is not None
        blue.give_back(session)
