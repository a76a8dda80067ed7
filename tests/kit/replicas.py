"""Key managers in memory that replicate late, and a dispatcher before them, in virtual time."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import trio

from gateway.dispatcher import Answer, DispatcherSettings, ReplicationPolicy
from gateway.kmip import compose, ttlv
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from gateway.upstream.affinity import Affinity
from gateway.upstream.health import Verdict
from gateway.upstream.maintenance import maintain_pools
from tests.kit.deployment import Deployment, deployment
from tests.kit.fake_backends import Connection, FakeKeyManager


class Replica(FakeKeyManager):
    """A key manager in memory that replicates its changes to the other replicas after ``lag`` seconds.

    ``has`` holds the time from which it has each key, ``states`` the later states of each key with their times; a key
    begins as pre-active.
    """

    def __init__(self, name: str, lag: float) -> None:
        super().__init__(name, operation_cost=0.001)
        self.lag = lag
        self.others: list[Replica] = []
        self.has: dict[str, float] = {}
        self.states: dict[str, list[tuple[float, str]]] = {}
        self.made = 0
        self.asked: list[int] = []
        self.behaviour = answers_for_itself

    def answer(self, request: Request) -> bytes:
        missing = ResultReason.ITEM_NOT_FOUND if request.version < (2, 0) else ResultReason.OBJECT_NOT_FOUND
        results = [
            self._execute(item.operation, item.unique_identifiers, item.unique_batch_item_id, missing)
            for item in request.items
        ]
        return compose.encode_response(request.version, results, now=0)

    def state(self, name: str) -> str | None:
        """Return a key's present state at this replica; None if it does not have the key."""
        now = trio.current_time()
        if self.has.get(name, float("inf")) > now:
            return None
        return next((state for at, state in reversed(self.states.get(name, [])) if at <= now), "pre-active")

    def becomes(self, name: str, state: str) -> None:
        """Change a key's state: here now, at the other replicas after the lag."""
        now = trio.current_time()
        for one in (self, *self.others):
            one.states.setdefault(name, []).append((now if one is self else now + self.lag, state))

    def _execute(self, operation: int, names: list[bytes], number: bytes | None, missing: int) -> compose.Result:
        self.asked.append(operation)
        name = names[0].decode() if names else next(iter(self.has), "")
        state = self.state(name)
        payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, name)
        failure: int | None = None
        if operation == Operation.CREATE:
            self.made += 1
            self.has[name] = trio.current_time()
            for other in self.others:
                other.has.setdefault(name, trio.current_time() + self.lag)
        elif operation == Operation.LOCATE:
            payload = payload if state not in GONE else b""
        elif name and state in GONE:
            failure = missing
        elif operation == Operation.ACTIVATE and state != "pre-active":
            failure = ResultReason.PERMISSION_DENIED  # as 1.x says of a wrong state
        elif operation == Operation.GET and state == "archived":
            failure = ResultReason.OBJECT_ARCHIVED
        elif operation in _BECOMES:
            self.becomes(name, _BECOMES[operation])
        if failure is not None:
            return compose.Result(ResultStatus.OPERATION_FAILED, operation, number, failure, "no")
        if operation == Operation.GET_ATTRIBUTES:
            payload += ttlv.text(Tag.STATE, state or "")
        return compose.Result(ResultStatus.SUCCESS, operation, number, payload=payload)


GONE = (None, "destroyed")
_BECOMES: dict[int, str] = {Operation.ACTIVATE: "active", Operation.DESTROY: "destroyed", Operation.ARCHIVE: "archived"}


def answers_for_itself(connection: Connection, request: Request) -> None:
    """Execute a request and answer it."""
    key_manager = connection.key_manager
    assert isinstance(key_manager, Replica)
    connection.say(key_manager.answer(request), at=trio.current_time() + key_manager.operation_cost)


def replicas(*names: str, lag: float = 2.0) -> list[Replica]:
    group = [Replica(name, lag) for name in names]
    for one in group:
        one.others = [other for other in group if other is not one]
    return group


def late(*, window: float = 0.0, fallback: bool = False) -> ReplicationPolicy:
    """Return the policy with these remedies; by default, none."""
    return ReplicationPolicy(Affinity(window, is_shared=False) if window else None, fallback_on_not_found=fallback)


@asynccontextmanager
async def late_deployment(
    key_managers: Sequence[Replica], replication: ReplicationPolicy, times: DispatcherSettings | None = None
) -> AsyncIterator[Deployment]:
    async with deployment(*key_managers, replication=lambda _balancer: replication, times=times) as it:
        yield it


def status(answer: Answer) -> tuple[int, int | None]:
    assert answer.response is not None, answer.detail
    item = answer.response.items[0]
    return item.status, item.reason


FOUND = (ResultStatus.SUCCESS, None)
MISSING = (ResultStatus.OPERATION_FAILED, ResultReason.ITEM_NOT_FOUND)


def goes_down(key_manager: FakeKeyManager) -> None:
    """Close every connection to a key manager, and refuse new ones."""
    key_manager.refuse()
    key_manager.hang_up()


def is_back(it: Deployment, place: int) -> None:
    """Let a key manager accept sessions again, and its pools open them."""
    it.key_managers[place].recover()
    it.key_managers[place].behaviour = answers_for_itself
    it.nursery.start_soon(maintain_pools, it.backends[place].pools.values(), 3.0)


@contextmanager
def taken_for_down(it: Deployment, place: int) -> Iterator[None]:
    """Let the health checks of a backend fail for the length of a block."""
    health = it.backends[place].health
    for _ in range(3):
        health.checked(Verdict.FAILS)
    yield
    for _ in range(2):
        health.checked(Verdict.SERVES)


def state_in(answer: Answer) -> str:
    """Return the State in the answer to a Get Attributes."""
    assert answer.response is not None, answer.detail
    found = ttlv.find(answer.frame, *answer.response.items[0].fields[Tag.RESPONSE_PAYLOAD], Tag.STATE)
    assert found is not None
    return ttlv.read_text(answer.frame, found)
