"""State machine test of two pools that share a backend: events in any order and between any ticks."""

import os
from collections.abc import Iterator
from typing import Final

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.config import FailoverConfig
from gateway.errors import BackendError, PoolBusyError, Stage, StreamClosedError
from gateway.kmip.messages import Request
from gateway.upstream.maintenance import maintain_pools, validate
from gateway.upstream.open_session import Opener
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session, SessionState, SupersededError
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import (
    LIMITS,
    SETTINGS,
    Connection,
    FakeKeyManager,
    answer_to,
    ask,
    make_pool,
    name_in,
    validated,
)
from tests.kit.stepped import SteppedTrio

#: EXAMPLES sets the number of event sequences to try; `make machine` tries 2000.
EXAMPLES: Final = int(os.environ.get("EXAMPLES", "100"))
pytestmark = pytest.mark.timeout(600 + EXAMPLES)  # a sequence takes some 30 ms; shrinking a failure takes minutes

CREDENTIALS: Final = ("red", "blue")
TURN: Final = 0.25  # s between two rounds of maintenance
CALM: Final = 60  # rounds in which a properly working key manager must have served every client


class Attempt:
    """A connection attempt that waits for the test's decision."""

    def __init__(self, credential: str) -> None:
        self.credential = credential
        self.decided = trio.Event()
        self.refusal: Exception | None = None


class HeldKeyManager(FakeKeyManager):
    """A key manager that holds every connection attempt and every request until the test decides."""

    def __init__(self) -> None:
        super().__init__()
        self.connecting: list[Attempt] = []
        self.asked: list[tuple[Connection, Request]] = []
        self.behaviour = lambda connection, request: self.asked.append((connection, request))

    def opener(self, credential: str) -> Opener:
        async def open_when_decided() -> Session:
            attempt = Attempt(credential)
            self.connecting.append(attempt)
            try:
                await attempt.decided.wait()
            finally:
                if attempt in self.connecting:
                    self.connecting.remove(attempt)
            if attempt.refusal is not None:
                raise attempt.refusal
            connection = Connection(self, credential)
            self.connections.append(connection)
            return validated(Session(connection, self.name, limits=LIMITS))

        return open_when_decided

    def decide(self, attempt: Attempt, refusal: Exception | None = None) -> None:
        """Accept or refuse the attempt."""
        self.connecting.remove(attempt)
        attempt.refusal = refusal
        attempt.decided.set()

    @property
    def open_requests(self) -> list[tuple[Connection, Request]]:
        """The requests that could still be answered."""
        self.asked = [(connection, request) for connection, request in self.asked if not connection.closed]
        return self.asked

    @property
    def silent_connections(self) -> list[Connection]:
        """Connections on which no answer is due."""
        asked = {connection for connection, _request in self.open_requests}
        return [connection for connection in self.open_connections if connection not in asked]


class Client:
    """A client that gets a key and keeps the outcome, with the same calls to the pool as the dispatcher.

    ``session`` is lent; it is ``abandoned`` after a different backend has answered, while its exchange continues.
    """

    def __init__(self, name: str, principal: str, pool: Pool, nursery: trio.Nursery, *, is_repeatable: bool) -> None:
        self.name = name
        self.nursery = nursery
        self.has_left = False
        self.abandoned: Session | None = None
        self.principal = principal
        self.is_repeatable = is_repeatable
        self.scope = trio.CancelScope()
        self.session: Session | None = None
        self.end: str | None = None
        self._pool = pool

    def __repr__(self) -> str:
        return f"<Client {self.name}: {self.end}>"

    async def run(self) -> None:
        self.end = "left"
        with self.scope:
            self.end = None
            self.end = await self._ask()
        if self.scope.cancelled_caught:
            self.end = "left"

    async def _ask(self) -> str:
        try:
            session = self._pool.take() or await self._pool.wait(self.principal)
        except (BackendError, PoolBusyError) as error:
            return error.reason
        self.session = session
        session.is_repeatable = self.is_repeatable
        session.client_disconnected = lambda: self.has_left
        is_new = not session.is_reused
        try:
            response = await session.exchange(ask(self.name))
        except SupersededError:
            self.abandoned = session
            self._pool.abandon(session)
            self.nursery.start_soon(self._finish, session)
            return "answered elsewhere"
        except BackendError as error:
            if error.reason == "closed" and is_new:
                self._pool.opening.closed_by_peer(session, trio.current_time())
            return error.reason
        finally:
            self.session = None
            if self.abandoned is None:
                self._pool.give_back(session)
        self._pool.answered_at = trio.current_time()
        assert name_in(response) == self.name, "an answer has reached a different client"
        return "answered"

    async def _finish(self, session: Session) -> None:
        try:
            if session.stage > Stage.SEND:
                response = await session.exchange(ask(self.name), is_sent=True)
                assert name_in(response) == self.name, "an answer has reached a different client"
        except BackendError:
            pass
        finally:
            self.abandoned = None
            self._pool.give_back(session)


def pauses() -> st.SearchStrategy[int | None]:
    """Draw the number of ticks until the next event; None stands for ticks until every task waits."""
    return st.sampled_from([None, 0, 1, 2, 3])


def choices() -> st.SearchStrategy[int]:
    """Draw an index, which selects an object modulo their number."""
    return st.integers(0, 7)


class PoolMachine(RuleBasedStateMachine):
    """The events that can happen, and the invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.trio = SteppedTrio()
        self.trio.__enter__()
        self.atlanta = HeldKeyManager()
        self.slots = Slots(3)
        self.most = self.slots.limit
        self.is_tended = False
        self.clients: list[Client] = []
        made = {
            credential: make_pool(
                self.atlanta,
                self.trio.nursery.start_soon,
                SETTINGS.model_copy(
                    update={"min_idle": 1, "queue_length": 4, "max_lifetime": 300.0, "lifetime_spread": 0.1}
                ),
                failover=FailoverConfig(max_ejection_time=4.0),
                credential=credential,
                slots=self.slots,
            )
            for credential in CREDENTIALS
        }
        self.pools = {credential: pool for credential, (pool, _) in made.items()}
        self.observers = [observer for _, observer in made.values()]

    @initialize(limit=st.sampled_from([1, 2, 3, 4, 8]), is_tended=st.booleans())
    def begin(self, limit: int, is_tended: bool) -> None:
        self.slots.limit = self.most = limit
        self.is_tended = is_tended
        if is_tended:
            self.trio.start(maintain_pools, list(self.pools.values()), 3.0)

    def teardown(self) -> None:
        try:
            self._all_is_served_in_the_end()
            self._nothing_is_left()
        finally:
            self.trio.__exit__(None, None, None)

    # Clients

    @rule(
        credential=st.sampled_from(CREDENTIALS),
        principal=st.sampled_from(["alice", "bob"]),
        number=st.integers(1, 4),
        is_repeatable=st.booleans(),
        pause=pauses(),
    )
    def clients_ask(self, credential: str, principal: str, number: int, is_repeatable: bool, pause: int | None) -> None:
        for _ in range(number):
            name = f"{credential}-{len(self.clients)}"
            client = Client(name, principal, self.pools[credential], self.trio.nursery, is_repeatable=is_repeatable)
            self.clients.append(client)
            self.trio.start(client.run)
        self._pause(pause)

    @precondition(lambda self: self._living())
    @rule(choice=choices(), pause=pauses())
    def a_client_leaves(self, choice: int, pause: int | None) -> None:
        living = self._living()
        living[choice % len(living)].scope.cancel()
        self._pause(pause)

    @precondition(lambda self: self._waiting() and (self.atlanta.open_requests or self.atlanta.connecting))
    @rule(choice=choices(), leaves_first=st.booleans(), pause=pauses())
    def a_client_leaves_the_queue_as_a_session_comes(self, choice: int, leaves_first: bool, pause: int | None) -> None:
        waiting = self._waiting()
        if leaves_first:
            waiting[choice % len(waiting)].scope.cancel()
        if self.atlanta.open_requests:
            connection, request = self._next_request(choice)
            connection.say(answer_to(request))
        else:
            self.atlanta.decide(self.atlanta.connecting[0])
        if not leaves_first:
            self.trio.tick()
            waiting[choice % len(waiting)].scope.cancel()
        self._pause(pause)

    @precondition(lambda self: self._lent())
    @rule(choice=choices(), pause=pauses())
    def another_backend_answers_first(self, choice: int, pause: int | None) -> None:
        lent = self._lent()
        session = lent[choice % len(lent)].session
        assert session is not None
        session.supersede()
        self._pause(pause)

    @precondition(lambda self: self._lent())
    @rule(choice=choices(), pause=pauses())
    def a_client_disconnects_and_the_gateway_does_not_know(self, choice: int, pause: int | None) -> None:
        lent = self._lent()
        lent[choice % len(lent)].has_left = True
        self._pause(pause)

    # The key manager

    @precondition(lambda self: self.atlanta.connecting)
    @rule(choice=choices(), number=st.integers(1, 3), pause=pauses())
    def it_lets_in(self, choice: int, number: int, pause: int | None) -> None:
        for _ in range(min(number, len(self.atlanta.connecting))):
            connecting = self.atlanta.connecting
            self.atlanta.decide(connecting[choice % len(connecting)])
        self._pause(pause)

    @precondition(lambda self: self.atlanta.connecting)
    @rule(
        choice=choices(),
        reason=st.sampled_from(["connect", "timeout", "credential", "validation", "resources", "odd"]),
        number=st.integers(1, 3),
        pause=pauses(),
    )
    def it_refuses(self, choice: int, reason: str, number: int, pause: int | None) -> None:
        for _ in range(min(number, len(self.atlanta.connecting))):
            connecting = self.atlanta.connecting
            refused = BackendError("refused", backend="atlanta", stage=Stage.CONNECT, reason=reason)
            self.atlanta.decide(connecting[choice % len(connecting)], OSError("odd") if reason == "odd" else refused)
        self._pause(pause)

    @precondition(lambda self: self.atlanta.open_requests)
    @rule(choice=choices(), number=st.integers(1, 3), cut=st.integers(0, 60), pause=pauses())
    def it_answers(self, choice: int, number: int, cut: int, pause: int | None) -> None:
        for _ in range(min(number, len(self.atlanta.open_requests))):
            connection, request = self._next_request(choice)
            answer = answer_to(request)
            connection.say(*filter(None, (answer[:cut], answer[cut:])))
        self._pause(pause)

    @precondition(lambda self: self.atlanta.open_requests)
    @rule(choice=choices(), apart=st.booleans(), pause=pauses())
    def it_answers_and_says_more(self, choice: int, apart: bool, pause: int | None) -> None:
        connection, request = self._next_request(choice)
        answer, more = answer_to(request), answer_to(ask("nobodys"))
        connection.say(*((answer, more) if apart else (answer + more,)))
        self._pause(pause)

    @precondition(lambda self: self.atlanta.open_requests)
    @rule(choice=choices(), how=st.sampled_from(["closes", "half", "garbage", "reset", "mismatch"]), pause=pauses())
    def it_does_not_answer_properly(self, choice: int, how: str, pause: int | None) -> None:
        connection, request = self._next_request(choice)
        chunks: dict[str, tuple[bytes | Exception, ...]] = {
            "closes": (b"",),
            "half": (answer_to(request)[:20], b""),
            "garbage": (b"garbage!",),
            "reset": (StreamClosedError("ECONNRESET"),),
            "mismatch": (answer_to(ask("nobodys", 1)),),
        }
        connection.say(*chunks[how])
        self._pause(pause)

    @precondition(lambda self: self.atlanta.silent_connections)
    @rule(choice=choices(), speaks=st.booleans(), pause=pauses())
    def it_closes_or_speaks_unasked(self, choice: int, speaks: bool, pause: int | None) -> None:
        silent = self.atlanta.silent_connections
        silent[choice % len(silent)].say(answer_to(ask("nobodys")) if speaks else b"")
        self._pause(pause)

    # Other events

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.1, 3.1, 10.1, 20.1, 25.1, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.trio.pass_time(seconds)
        if self.is_tended and seconds > TURN:
            self._no_slot_is_free_for_a_pool_without_session()

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0]), pause=pauses())
    def the_gate_pauses(self, seconds: float, pause: int | None) -> None:
        self.slots.gate.wait_until(trio.current_time() + seconds)
        self._pause(pause)

    @rule(pause=pauses())
    def the_health_check_is_answered(self, pause: int | None) -> None:
        self.slots.gate.reached()
        self.slots.serve()
        self._pause(pause)

    @rule(credential=st.sampled_from(CREDENTIALS), idle_for=st.sampled_from([0.0, 1.0, 10.0]), pause=pauses())
    def idle_sessions_are_doubted(self, credential: str, idle_for: float, pause: int | None) -> None:
        pool = self.pools[credential]
        for session in pool.lend_for_validation(trio.current_time() - idle_for):
            self.trio.start(validate, pool, session, 3.0)
        self._pause(pause)

    @rule(credential=st.sampled_from(CREDENTIALS), pause=pauses())
    def closed_sessions_are_dropped(self, credential: str, pause: int | None) -> None:
        self.pools[credential].drop_closed()
        self._pause(pause)

    @rule(credential=st.sampled_from(CREDENTIALS), pause=pauses())
    def it_turns_down(self, credential: str, pause: int | None) -> None:
        pool = self.pools[credential]
        pool.drop_idle("ejected")
        pool.interrupt_repeatable()
        pool.waiters.fail_all(BackendError("down", backend="atlanta", stage=Stage.CONNECT, reason="down"))
        self._pause(pause)

    @rule(limit=st.sampled_from([1, 2, 3, 5, 9]), pause=pauses())
    def the_limit_changes(self, limit: int, pause: int | None) -> None:
        self.slots.limit = limit
        self._pause(pause)

    @precondition(lambda self: len(self.clients) > 12)
    @rule(credential=st.sampled_from(CREDENTIALS), pause=pauses())
    def a_pool_closes(self, credential: str, pause: int | None) -> None:
        self.pools[credential].close()
        self._pause(pause)

    # Invariants

    @invariant()
    def slots_are_counted_and_bounded(self) -> None:
        for pool in self.pools.values():
            counts = pool.statistics()
            assert self.slots.held(pool) == counts.idle + counts.busy + counts.opening
        assert self.slots.used == sum(self.slots._held.values())
        assert 0 not in self.slots._held.values()
        assert self.slots.gate.under_way == sum(pool.statistics().opening for pool in self.pools.values())
        self.most = max(self.slots.limit, min(self.most, self.slots.used))
        assert self.slots.used <= self.most, "more than the limit, and more than there were when it was lowered"

    @invariant()
    def sessions_are_in_one_place_and_of_one_credential(self) -> None:
        held = list(self._held_sessions())
        assert len(held) == len(set(held)), "in two places"
        for pool in self.pools.values():
            for session in (*pool._idle, *pool._busy):
                assert _connection(session).credential == pool.credential
            assert {session.state for session in pool._idle} <= {SessionState.IDLE}

    @invariant()
    def sessions_are_lent_once(self) -> None:
        lent = [
            session for client in self.clients for session in (client.session, client.abandoned) if session is not None
        ]
        assert len(lent) == len(set(lent))
        assert set(lent) <= {session for pool in self.pools.values() for session in pool._busy}

    @invariant()
    def sessions_are_held_or_closed_once(self) -> None:
        held = {_connection(session) for session in self._held_sessions() if session.state is not SessionState.CLOSED}
        open_connections = set(self.atlanta.open_connections)
        assert held <= open_connections
        # A session that is validated twice before it is lent belongs to the attempt that opens it. That is so although
        # ``is_suspicious`` is unset: of two attempts at once, the first to succeed unsets it.
        being_opened = sum(pool.opening.under_way for pool in self.pools.values())
        assert len(open_connections - held) <= being_opened
        assert sum(observer.opened - observer.closed.total() for observer in self.observers) == len(
            list(self._held_sessions())
        )

    @invariant()
    def abandoned_sessions_are_busy(self) -> None:
        for pool in self.pools.values():
            assert {session for session, holder in self.slots.abandoned.items() if holder is pool} <= pool._busy
        assert self.slots._reclaimed <= {session for pool in self.pools.values() for session in pool._busy}
        for pool in self.pools.values():
            assert pool._validating <= pool._busy

    @invariant()
    def nobody_waits_while_a_session_is_idle(self) -> None:
        for pool in self.pools.values():
            assert not (pool.statistics().waiting and pool.statistics().idle)

    @invariant()
    def a_closed_pool_keeps_nothing_and_nobody(self) -> None:
        for pool in self.pools.values():
            assert not (pool._closed and (pool.statistics().waiting or pool.statistics().idle))

    def _no_slot_is_free_for_a_pool_without_session(self) -> None:
        """Check the invariant that holds after a round of maintenance."""
        for pool in self.pools.values():
            may_open = self.slots.gate.has_room(trio.current_time()) and self.slots.has_room()
            if may_open and pool.needs_session:
                assert self.slots.held(pool), "it waits although it may open a session"

    # Helpers

    def _pause(self, ticks: int | None) -> None:
        if ticks is None:
            self.trio.settle()
        else:
            self.trio.tick(ticks)

    def _living(self) -> list[Client]:
        return [client for client in self.clients if client.end is None]

    def _lent(self) -> list[Client]:
        return [client for client in self._living() if client.session is not None]

    def _waiting(self) -> list[Client]:
        return [client for client in self._living() if client.session is None]

    def _held_sessions(self) -> Iterator[Session]:
        for pool in self.pools.values():
            yield from pool._idle
            yield from pool._busy

    def _next_request(self, choice: int) -> tuple[Connection, Request]:
        asked = self.atlanta.open_requests
        return asked.pop(choice % len(asked))

    def _behave_properly(self) -> None:
        for attempt in list(self.atlanta.connecting):
            self.atlanta.decide(attempt)
        while self.atlanta.open_requests:
            connection, request = self.atlanta.asked.pop()
            connection.say(answer_to(request))
        self.trio.settle()

    def _all_is_served_in_the_end(self) -> None:
        self.trio.start(maintain_pools, list(self.pools.values()), 3.0)
        for _ in range(CALM):
            self._behave_properly()
            self.trio.pass_time(0.3)
        self._behave_properly()  # a warm session may have been validated in the last round
        assert [client for client in self.clients if client.end is None] == []
        assert self.atlanta.asked == []

    def _nothing_is_left(self) -> None:
        """Close the pools while sessions are lent and being opened, and check that nothing is left."""
        for credential in CREDENTIALS:
            self.clients_ask(credential, "alice", 2, is_repeatable=False, pause=None)
        for pool in self.pools.values():
            pool.close()
        for _ in range(3):
            self._behave_properly()
        assert self._living() == []
        assert self.slots.used == self.slots.gate.under_way == 0
        assert not self.slots.abandoned
        assert not self.slots._reclaimed
        assert self.atlanta.open_connections == []
        assert {pool.statistics() for pool in self.pools.values()} == {(0, 0, 0, 0)}


def _connection(session: Session) -> Connection:
    stream = session._stream
    assert isinstance(stream, Connection)
    return stream


PoolMachine.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)
TestPool = PoolMachine.TestCase
