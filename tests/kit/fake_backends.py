"""Key managers in memory: scripted streams, openers that succeed, fail or hang, pools, and observers."""

from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config import DeadlinesConfig, FailoverConfig, LimitsConfig, PoolConfig
from gateway.errors import BackendError, PoolBusyError, Stage, StreamClosedError, StreamInterruptedError
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request, Response, Version
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.policy import Effect
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.maintenance import maintain_pools
from gateway.upstream.open_session import Opener
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session
from gateway.upstream.slots import Slots

LIMITS: Final = LimitsConfig(max_response_size=1 << 16)
DEADLINES: Final = DeadlinesConfig()
FAILOVER: Final = FailoverConfig()


# Messages ------------------------------------------------------------------------------------------------------------


def ask(
    name: str, *operations: int, version: Version = (1, 4), numbered: bool = False, header: tuple[bytes, ...] = ()
) -> Request:
    """Return a request about the object of this name: Get, or the given operations."""
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, name)
    asks = [
        compose.Ask(operation, payload, bytes([index]) if numbered else None)
        for index, operation in enumerate(operations or (Operation.GET,))
    ]
    return decode_request(compose.encode_request(version, asks, header=header))


def answer_to(request: Request) -> bytes:
    """Return the right answer: success for every item, about the object that the request names."""
    results = [
        compose.Result(
            ResultStatus.SUCCESS,
            item.operation,
            item.unique_batch_item_id,
            payload=b"".join(ttlv.text(Tag.UNIQUE_IDENTIFIER, name.decode()) for name in item.unique_identifiers),
        )
        for item in request.items
    ]
    return compose.encode_response(request.version, results, now=0)


def name_in(message: Request | Response) -> str:
    """Return the name of the object that a message is about; "" for a validation request."""
    names = message.items[0].unique_identifiers
    return names[0].decode() if names else ""


# Streams -------------------------------------------------------------------------------------------------------------


class FakeStream:
    """The session's side of a connection; the test is the other side.

    ``answer`` holds the chunks that the other side sends after the first request. An empty chunk is the end of the
    stream, and an exception is raised; after the last chunk the other side is silent, until the test calls ``say``.
    """

    def __init__(self, *answer: bytes | Exception) -> None:
        self.next_answer = answer
        self.sent: list[bytes] = []
        self.closed: list[str] = []
        self.takes_bytes = True
        self.spoke_unasked = False
        self.is_swallowed = False  # the network takes bytes, and delivers none
        self._said: deque[tuple[float, bytes | Exception]] = deque()
        self._news = trio.lowlevel.ParkingLot()
        self._waits = False
        self._interrupted = False

    def say(self, *chunks: bytes | Exception, at: float = 0.0) -> None:
        """Send chunks from the other side, which arrive at the time ``at`` or later."""
        self._said.extend((at, chunk) for chunk in chunks)
        self._news.unpark_all()

    def hang_up(self) -> None:
        """Close the other side."""
        self.say(b"")

    async def receive_some(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while (at := self._said[0][0] if self._said else float("inf")) > trio.current_time() and not self.closed:
            with trio.move_on_at(at):
                await self._park()
        if self.closed:
            raise StreamClosedError("closed on this side")
        chunk = self._said[0][1]
        if chunk != b"":
            self._said.popleft()
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    async def send_all(self, data: bytes) -> None:
        if self.closed:
            raise StreamClosedError("closed on this side", nothing_sent=True)
        while not self.takes_bytes:
            await self._park()
            if self.closed:
                raise StreamClosedError("closed on this side")
        self.sent.append(data)
        self.say(*self.next_answer)
        self.next_answer = ()

    async def _park(self) -> None:
        self._waits = True
        try:
            await self._news.park()
        finally:
            self._waits = False
        if self._interrupted:
            self._interrupted = False
            raise StreamInterruptedError

    def interrupt(self) -> None:
        if self._waits:
            self._interrupted = True
            self._news.unpark_all()

    def is_unacknowledged(self, seconds: float) -> bool:
        return self.is_swallowed and seconds >= 0

    def is_readable(self) -> bool:
        return any(at <= trio.current_time() for at, _chunk in self._said)

    is_flooded = False

    def is_quiet(self) -> bool:
        arrived = [chunk for at, chunk in self._said if at <= trio.current_time()]
        self.spoke_unasked = self.spoke_unasked or any(isinstance(chunk, bytes) and chunk for chunk in arrived)
        return not self.closed and not arrived

    def close(self) -> None:
        self._close("at once")

    def close_politely(self) -> None:
        self._close("politely")

    def _close(self, how: str) -> None:
        if not self.closed:
            self.closed.append(how)
            self._news.unpark_all()


# Key managers --------------------------------------------------------------------------------------------------------


class Connection(FakeStream):
    """A connection to a FakeKeyManager, opened with a credential."""

    def __init__(self, key_manager: "FakeKeyManager", credential: str) -> None:
        super().__init__()
        self.key_manager = key_manager
        self.credential = credential

    def __repr__(self) -> str:
        return f"<Connection to {self.key_manager.name} as {self.credential}{', closed' * bool(self.closed)}>"

    async def send_all(self, data: bytes) -> None:
        await super().send_all(data)
        self.key_manager.behaviour(self, decode_request(data))

    def execute(self, request: Request) -> None:
        """Run a request, and record it."""
        if name_in(request):
            self.key_manager.executed.append((self.credential, name_in(request)))

    def answer(self, request: Request, *more: bytes) -> None:
        """Send the right answer after ``operation_cost``, and then ``more``."""
        self.say(answer_to(request), *more, at=trio.current_time() + self.key_manager.operation_cost)


Behaviour = Callable[[Connection, Request], None]


def answers(connection: Connection, request: Request) -> None:
    """Behave properly: run the request, and answer."""
    connection.execute(request)
    connection.answer(request)


def never_answers(connection: Connection, request: Request) -> None:
    """Run the request, and never answer."""
    connection.execute(request)


def hangs_up_after(connection: Connection, request: Request) -> None:
    """Run the request, and close instead of answering."""
    connection.execute(request)
    connection.hang_up()


class FakeKeyManager:
    """A key manager in memory, whose faults can be set at any time.

    ``behaviour`` is called for each request, ``greeting`` for each new connection. ``refusal`` is raised for every
    connection attempt; a credential in ``refused`` is refused; with ``is_reachable`` False attempts wait for ever.
    Costs are in seconds. Sessions lead to ``host`` as it was when they began. ``executed`` lists the operations that
    ran: the credential and the object.
    """

    def __init__(self, name: str = "atlanta", *, handshake_cost: float = 0.06, operation_cost: float = 0.005) -> None:
        self.name = name
        self.handshake_cost = handshake_cost
        self.operation_cost = operation_cost
        self.behaviour: Behaviour = answers
        self.greeting: Callable[[Connection], None] = lambda _connection: None
        self.refusal: Exception | None = None
        self.refused: set[str] = set()
        self.is_reachable = True
        self.host = ""
        self.attempts: list[float] = []
        self.connections: list[Connection] = []
        self.executed: list[tuple[str, str]] = []

    def __repr__(self) -> str:
        return f"<FakeKeyManager {self.name}: {len(self.open_connections)} connections>"

    @property
    def open_connections(self) -> list[Connection]:
        """The connections that the gateway has not closed."""
        return [connection for connection in self.connections if not connection.closed]

    def refuse(self, reason: str = "connect") -> None:
        """From now on, refuse every connection; the reason "resources" stands for a lack in the gateway itself."""
        self.refusal = self._refusal(reason)

    def _refusal(self, reason: str) -> BackendError:
        return BackendError("refused", backend=self.name, stage=Stage.CONNECT, reason=reason)

    def recover(self) -> None:
        """From now on, behave properly."""
        self.refusal = None
        self.refused.clear()
        self.is_reachable = True
        self.behaviour = answers

    def hang_up(self) -> None:
        """Close every connection from the key manager's side."""
        for connection in self.open_connections:
            connection.hang_up()

    def opener(self, credential: str) -> Opener:
        """Return a function that opens sessions with this credential."""
        return partial(self._open, credential)

    async def _open(self, credential: str) -> Session:
        self.attempts.append(trio.current_time())
        host = self.host
        await trio.sleep(self.handshake_cost if self.is_reachable else float("inf"))
        if self.refusal is not None:
            raise self.refusal
        if credential in self.refused:
            raise self._refusal("credential")
        connection = Connection(self, credential)
        self.connections.append(connection)
        self.greeting(connection)
        return validated(Session(connection, self.name, limits=LIMITS, peer=host))


def validated(session: Session) -> Session:
    """Return the session as if it had answered its validation request."""
    session.stage = Stage.READ
    return session


def breaks_while_it_is_asked(_connection: Connection, _request: Request) -> None:
    """Break the connection while the request is sent."""
    raise StreamClosedError("connection broken: EPIPE")


# Pools ---------------------------------------------------------------------------------------------------------------


class FakeObserver:
    """Counts the events of a pool."""

    def __init__(self) -> None:
        self.opened = 0
        self.failed: list[str] = []
        self.closed: Counter[str] = Counter()
        self.results: Counter[str] = Counter()
        self.reused = 0
        self.stale: Counter[str] = Counter()
        self.waits: list[float] = []
        self.wait_timeouts = 0
        self.idle_at_close: list[float] = []
        self.ejections: list[tuple[str, Effect]] = []
        self.learned: list[float] = []
        self.ceilings: list[int] = []

    def session_opened(self, seconds: float) -> None:
        assert seconds >= 0
        self.opened += 1

    def session_open_failed(self, error: BackendError) -> None:
        assert error.stage is Stage.CONNECT
        self.failed.append(error.reason)

    def session_closed(self, reason: str, age: float) -> None:
        assert age >= 0
        self.closed[reason] += 1

    def closed_while_idle(self, seconds: float) -> None:
        self.idle_at_close.append(seconds)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def wait_timed_out(self) -> None:
        self.wait_timeouts += 1

    def found_stale(self, when: str) -> None:
        self.stale[when] += 1

    def exchanged(self, result: str, seconds: float, *, is_reused: bool) -> None:
        assert seconds >= 0
        self.results[result] += 1
        self.reused += is_reused

    def ejected(self, credential: str, effect: Effect) -> None:
        self.ejections.append((credential, effect))

    def ceiling_learned(self, ceiling: int, limit: int) -> None:
        assert ceiling <= limit
        self.ceilings.append(ceiling)

    def idle_limit_learned(self, limit: IdleLimit) -> None:
        self.learned.append(limit.effective)


#: No spread, so that a test knows the times.
SETTINGS: Final = PoolConfig(min_idle=0, lifetime_spread=0.0)

Spawn = Callable[[Callable[[], Awaitable[None]]], None]


def make_pool(
    key_manager: FakeKeyManager,
    spawn: Spawn,
    settings: PoolConfig = SETTINGS,
    *,
    failover: FailoverConfig = FAILOVER,
    credential: str = "red",
    slots: Slots | None = None,
    endpoint: Endpoint | None = None,
    keeps_warm: bool = True,
) -> tuple[Pool, FakeObserver]:
    """Return a pool of four sessions at most, or as ``slots`` allows, to a key manager, and its observer."""
    observer = FakeObserver()
    pool = Pool(
        key_manager.name,
        credential,
        settings,
        deadlines=DEADLINES,
        failover=failover,
        slots=Slots(4) if slots is None else slots,
        opener=key_manager.opener(credential),
        spawn=spawn,
        observer=observer,
        endpoint=endpoint,
        keeps_warm=keeps_warm,
    )
    return pool, observer


async def lease(pool: Pool) -> Session:
    """Borrow a session, as the dispatcher does."""
    return pool.take() or await pool.wait()


async def use(pool: Pool, name: str) -> str:
    """Get a key on a borrowed session. Return the name of the key in the answer."""
    session = await lease(pool)
    try:
        return name_in(await session.exchange(ask(name)))
    finally:
        pool.give_back(session)


class WaitingClient:
    """A client that waits for a session in a task of its own, and keeps the outcome."""

    def __init__(self, pool: Pool, nursery: trio.Nursery, principal: str = "alice") -> None:
        self.pool = pool
        self.principal = principal
        self.session: Session | None = None
        self.error: BackendError | PoolBusyError | None = None
        self.ended_at: float | None = None
        self.scope = trio.CancelScope()
        nursery.start_soon(self._wait)

    async def _wait(self) -> None:
        with self.scope:
            try:
                self.session = await self.pool.wait(self.principal)
            except (BackendError, PoolBusyError) as error:
                self.error = error
        self.ended_at = trio.current_time()


async def waiting(pool: Pool, nursery: trio.Nursery, number: int, principal: str = "alice") -> list[WaitingClient]:
    """Start so many clients that wait for a session, one after the other, and return them."""
    waiters = []
    for _ in range(number):
        waiters.append(WaitingClient(pool, nursery, principal))
        await wait_all_tasks_blocked()
    return waiters


@asynccontextmanager
async def kept_warm(*pools: Pool) -> AsyncIterator[None]:
    """Maintain these pools for the length of a block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(maintain_pools, pools, 3.0)
        yield
        nursery.cancel_scope.cancel()


# Time --------------------------------------------------------------------------------------------------------------


def _run_in_virtual_time(function: Callable[[], Awaitable[object]], **settings: Any) -> object:
    settings["clock"] = MockClock(autojump_threshold=0)
    return trio.run(function, **settings)


#: For tests in virtual time: time passes only when every task waits, and then at once.
in_virtual_time: Final = pytest.mark.trio(run=_run_in_virtual_time)
