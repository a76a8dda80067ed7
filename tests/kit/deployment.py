"""A dispatcher before key managers in memory, as tests deploy it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from gateway.config import PoolConfig
from gateway.dispatcher import Answer, Dispatcher, DispatcherSettings, ReplicationPolicy
from gateway.identity import Identity, Principal
from gateway.kmip.decode import decode_response
from gateway.kmip.messages import Request
from gateway.kmip.spec import ResultStatus
from gateway.metrics import Metrics
from gateway.policy import Refusal
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.pool import Pool
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import (
    SETTINGS,
    FakeKeyManager,
    FakeObserver,
    make_pool,
    name_in,
)

CREDENTIALS = ("red", "blue")


def principal(credential: str, name: str = "alice") -> Principal:
    return Principal(Identity(credential, shared=False), "CN=ca", f"CN={name}", 0, float("inf"))


class Deployment:
    """Key managers in memory, each with a pool for each credential, and a dispatcher before them."""

    def __init__(
        self,
        nursery: trio.Nursery,
        key_managers: list[FakeKeyManager],
        pool: PoolConfig,
        times: DispatcherSettings,
        max_sessions: int,
        replication: Callable[[Balancer], ReplicationPolicy] | None = None,
    ) -> None:
        self.nursery = nursery
        self.key_managers = key_managers
        self.backends: list[Backend] = []
        self.observers: list[FakeObserver] = []
        for key_manager in self.key_managers:
            slots = Slots(max_sessions)
            pools: dict[str, Pool] = {}
            for credential in CREDENTIALS:
                pools[credential], observer = make_pool(
                    key_manager, nursery.start_soon, pool, credential=credential, slots=slots
                )
                self.observers.append(observer)
            self.backends.append(Backend(key_manager.name, slots, pools))
        self.metrics = Metrics("test")
        self.balancer = Balancer(self.backends)
        known = ReplicationPolicy() if replication is None else replication(self.balancer)
        self.dispatcher = Dispatcher(self.balancer, times, metrics=self.metrics, replication=known)

    @property
    def executed(self) -> list[tuple[str, str]]:
        """The operations that the key managers executed, as (credential, object)."""
        return [entry for key_manager in self.key_managers for entry in key_manager.executed]

    async def ask(self, request: Request, credential: str = "red", name: str = "alice") -> Answer:
        return await self.dispatcher.dispatch(request, principal(credential, name))

    def has_only_idle_sessions(self) -> bool:
        """Return True if every connection belongs to a session that is idle in its pool, and no slot is lost."""
        counts = [pool.statistics() for backend in self.backends for pool in backend.pools.values()]
        idle = sum(count.idle for count in counts)
        return (
            all((count.busy, count.waiting, count.opening) == (0, 0, 0) for count in counts)
            and idle == sum(len(key_manager.open_connections) for key_manager in self.key_managers)
            and idle == sum(backend.slots.used for backend in self.backends)
        )


@asynccontextmanager
async def deployment(
    *names: str | FakeKeyManager,
    pool: PoolConfig = SETTINGS,
    times: DispatcherSettings | None = None,
    max_sessions: int = 4,
    replication: Callable[[Balancer], ReplicationPolicy] | None = None,
) -> AsyncIterator[Deployment]:
    """Deploy a dispatcher before these key managers; a name stands for a key manager without faults."""
    key_managers = [name if isinstance(name, FakeKeyManager) else FakeKeyManager(name) for name in names]
    async with trio.open_nursery() as nursery:
        yield Deployment(nursery, key_managers, pool, times or DispatcherSettings(), max_sessions, replication)
        nursery.cancel_scope.cancel()


def refusal(answer: Answer) -> tuple[Refusal | None, int | None, str]:
    """Return the gateway's own answer: the reason, the Result Reason, and the Result Message."""
    assert answer.response is None
    (item,) = decode_response(answer.frame).items
    assert item.status == ResultStatus.OPERATION_FAILED
    return answer.refusal, item.reason, item.message or ""


def name_of(answer: Answer) -> str:
    """Return the object that a key manager's answer is about."""
    assert answer.response is not None, answer.detail
    return name_in(answer.response)
