"""The heart: every fault with every effect. What the client got, how often the key managers executed, what became of
the pools, and the sign that health got.

Two key managers in memory, the real dispatcher, balancer, pools and sessions, in virtual time. The first one is the
faulty one, and is asked first.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import trio

from gateway.dispatcher import Answer, Dispatcher, DispatcherSettings
from gateway.errors import StreamClosedError
from gateway.identity import Identity, Principal
from gateway.kmip import compose
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultReason, ResultStatus
from gateway.metrics import Metrics
from gateway.policy import Effect, Refusal, effect_of
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import (
    LIMITS,
    Connection,
    FakeKeyManager,
    answer_to,
    answers,
    ask,
    breaks_while_it_is_asked,
    in_virtual_time,
    make_pool,
    never_answers,
)

PRINCIPAL = Principal(Identity("red", shared=False), "CN=ca", "CN=red", 0, float("inf"))


class House:
    """Two key managers, and all that stands before them."""

    def __init__(self, nursery: trio.Nursery, key_managers: int = 2) -> None:
        self.key_managers = [FakeKeyManager(f"kms-{number + 1}") for number in range(key_managers)]
        self.pools = []
        backends = []
        for key_manager in self.key_managers:
            slots = Slots(4)
            pool, observer = make_pool(key_manager, nursery.start_soon, slots=slots)
            self.pools.append((pool, observer))
            backends.append(Backend(key_manager.name, slots, {"red": pool}))
        self.metrics = Metrics("test")
        self.balancer = Balancer(backends)
        self.dispatcher = Dispatcher(self.balancer, DispatcherSettings(), metrics=self.metrics)

    @property
    def faulty(self) -> FakeKeyManager:
        return self.key_managers[0]

    @property
    def executed(self) -> int:
        """How often the key managers together executed what was asked."""
        return sum(len(key_manager.executed) for key_manager in self.key_managers)

    async def ask(self, request: Request) -> Answer:
        return await self.dispatcher.dispatch(request, PRINCIPAL)


@asynccontextmanager
async def house(key_managers: int = 2) -> AsyncIterator[House]:
    async with trio.open_nursery() as nursery:
        yield House(nursery, key_managers)
        nursery.cancel_scope.cancel()


# The faults ----------------------------------------------------------------------------------------------------------


def _hangs_up_unread(connection: Connection, _request: Request) -> None:
    connection.hang_up()


def _hangs_up_after_executing(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.hang_up()


def _resets_after_executing(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(StreamClosedError("connection lost: ECONNRESET"))


def _takes_nothing(_connection: Connection, _request: Request) -> None:
    raise StreamClosedError("connection broken: EPIPE", nothing_sent=True)


def _cuts_the_answer(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(answer_to(request)[:40], b"")


def _says_garbage(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(b"\xff" * 64)


def _says_a_broken_message(connection: Connection, request: Request) -> None:
    connection.execute(request)
    whole = answer_to(request)
    connection.say(whole[:8] + bytes(len(whole) - 8))


def _answers_another(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(answer_to(ask("another", Operation.QUERY)))


def _is_slow(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(answer_to(request), at=trio.current_time() + 3.0)


def _says_more(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.answer(request, b"\x42\x00\x7b\x01")


def _says_too_much(connection: Connection, request: Request) -> None:
    connection.execute(request)
    head = b"\x42\x00\x7b\x01" + (LIMITS.max_response_size * 2).to_bytes(4, "big")
    connection.say(head + bytes(1000))


def _is_not_the_master(connection: Connection, request: Request) -> None:
    results = [
        compose.Result(
            ResultStatus.OPERATION_FAILED,
            item.operation,
            item.unique_batch_item_id,
            ResultReason.PERMISSION_DENIED,
            "not master",
        )
        for item in request.items
    ]
    connection.say(compose.encode_response(request.version, results, now=0))


def _behaves(behaviour: Callable[[Connection, Request], None]) -> Callable[[FakeKeyManager], None]:
    def switch(key_manager: FakeKeyManager) -> None:
        key_manager.behaviour = behaviour

    return switch


def _refuses_the_credential(key_manager: FakeKeyManager) -> None:
    key_manager.refused.add("red")


def _is_unreachable(key_manager: FakeKeyManager) -> None:
    key_manager.is_reachable = False


class Cell(NamedTuple):
    """What a client should get, how often it should have been executed, and after how many seconds at the most."""

    result: str
    executed: int
    seconds: float = 0.5


OK, UNKNOWN, TOO_LARGE, PASSED_ON = "answered", "unknown", "response_too_large", "failed by the key manager"


class Row(NamedTuple):
    """A fault: how it is switched on, what a read and what a mutation should see, and the sign for health."""

    switch: Callable[[FakeKeyManager], None]
    read: Cell
    mutation: Cell
    sign: str


FAULTS = {
    "refuse": Row(FakeKeyManager.refuse, Cell(OK, 1), Cell(OK, 1), "hard"),
    "unreachable": Row(_is_unreachable, Cell(OK, 1, 3.5), Cell(OK, 1, 3.5), "hard"),
    "refuse credential": Row(_refuses_the_credential, Cell(OK, 1), Cell(OK, 1), "hard"),
    "takes nothing": Row(_behaves(_takes_nothing), Cell(OK, 1), Cell(OK, 1), "none"),
    "breaks while asked": Row(_behaves(breaks_while_it_is_asked), Cell(OK, 1), Cell(UNKNOWN, 0), "soft"),
    "reset before reading": Row(_behaves(_hangs_up_unread), Cell(OK, 1), Cell(UNKNOWN, 0), "soft"),
    "close after executing": Row(_behaves(_hangs_up_after_executing), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "reset after executing": Row(_behaves(_resets_after_executing), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "cut": Row(_behaves(_cuts_the_answer), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "garbage": Row(_behaves(_says_garbage), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "broken message": Row(_behaves(_says_a_broken_message), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "answers another": Row(_behaves(_answers_another), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "deaf": Row(_behaves(never_answers), Cell(OK, 2, 5.5), Cell(UNKNOWN, 1, 30.5), "soft"),
    "slow": Row(_behaves(_is_slow), Cell(OK, 1, 3.5), Cell(OK, 1, 3.5), "none"),
    "extra": Row(_behaves(_says_more), Cell(OK, 1), Cell(OK, 1), "none"),
    "too large": Row(_behaves(_says_too_much), Cell(TOO_LARGE, 1), Cell(TOO_LARGE, 1), "none"),
    "standby": Row(_behaves(_is_not_the_master), Cell(PASSED_ON, 0), Cell(PASSED_ON, 0), "none"),
}

REQUESTS = {
    "read": ask("key", Operation.GET),
    "mutation": ask("key", Operation.CREATE),
    "consuming": ask("key", Operation.ENCRYPT),
    "batch of both": ask("key", Operation.GET, Operation.CREATE, numbered=True),
    "batch of reads": ask("key", Operation.GET, Operation.LOCATE, numbered=True),
    "unknown operation": ask("key", 0x80000001),
}
READS = {"read", "batch of reads"}


def result_of(answer: Answer) -> str:
    """What the client got, in the words of the matrix; what the gateway itself says is checked for its word."""
    if answer.response is not None:
        failed = any(item.status != ResultStatus.SUCCESS for item in answer.response.items)
        return PASSED_ON if failed else OK
    assert answer.refusal is not None
    if answer.refusal is Refusal.OUTCOME_UNKNOWN:
        assert b"unknown" in answer.frame
        return UNKNOWN
    assert answer.refusal is not Refusal.RESPONSE_TOO_LARGE or b"larger" in answer.frame
    return str(answer.refusal.value)


def sign_of(house: House) -> str:
    """The sign that the faulty key manager's gate or breaker has got."""
    _pool, observer = house.pools[0]
    if observer.failed:
        return "hard"
    circuits = house.balancer.backends[0].breaker._circuits.values()
    if any(circuit.failures for circuit in circuits):
        return "soft"
    return "overdue" if any(circuit.is_overdue for circuit in circuits) else "none"


@pytest.mark.parametrize("asked", REQUESTS)
@pytest.mark.parametrize("fault", FAULTS)
@in_virtual_time
async def test_fault_and_effect(fault: str, asked: str) -> None:
    row = FAULTS[fault]
    cell = row.read if asked in READS else row.mutation
    async with house() as it:
        row.switch(it.faulty)
        began = trio.current_time()
        answer = await it.ask(REQUESTS[asked])
        assert trio.current_time() - began <= cell.seconds
        assert result_of(answer) == cell.result
        assert it.executed == cell.executed
        assert sign_of(it) == ("overdue" if fault == "deaf" and asked in READS else row.sign)
        await trio.sleep(30)  # a read that was answered elsewhere ends by then
        for pool, _ in it.pools:
            counts = pool.statistics()
            assert (counts.busy, counts.waiting) == (0, 0), pool
        it.faulty.recover()
        for _ in range(4):  # whoever comes later is served, and with its own answer
            later = await it.ask(ask("other key"))
            assert result_of(later) == OK
            assert b"other key" in later.frame


@pytest.mark.parametrize("asked", REQUESTS)
@pytest.mark.parametrize("fault", FAULTS)
@in_virtual_time
async def test_fault_everywhere(fault: str, asked: str) -> None:
    """Where every key manager has the fault, there is one true answer in bounded time, and no mutation runs twice."""
    row = FAULTS[fault]
    cell = row.read if asked in READS else row.mutation
    async with house() as it:
        for key_manager in it.key_managers:
            row.switch(key_manager)
        began = trio.current_time()
        answer = await it.ask(REQUESTS[asked])
        assert trio.current_time() - began <= 36
        assert answer.frame
        assert it.executed <= (2 if asked in READS else 1)
        if row.sign == "hard":
            assert answer.refusal is Refusal.NO_BACKEND
            assert it.executed == 0
        elif asked in READS and (row.sign == "soft" or fault == "takes nothing"):
            assert answer.refusal in {Refusal.BACKEND_FAILED, Refusal.NO_BACKEND}
        elif fault != "takes nothing":
            assert result_of(answer) == cell.result


# Reused sessions -----------------------------------------------------------------------------------------------------


def _dies_when_reused(connection: Connection, request: Request) -> None:
    """The peer has closed an idle session, and that shows only when it is asked."""
    if connection.sent and len(connection.sent) > 1:
        connection.hang_up()
    else:
        answers(connection, request)


class Idle(NamedTuple):
    """For how long a session had been idle when a request found it dead, and what should come of that."""

    seconds: float
    result: str
    executed: int


@pytest.mark.parametrize(
    ("asked", "idle"),
    [
        ("read", Idle(0.5, OK, 1)),
        ("read", Idle(20.0, OK, 1)),
        ("mutation", Idle(0.5, UNKNOWN, 0)),  # the race that can't be won, and is told truly
        ("mutation", Idle(20.0, OK, 1)),  # it had to prove itself first, and could not
        ("batch of both", Idle(20.0, OK, 1)),
    ],
)
@in_virtual_time
async def test_a_session_that_died_while_it_was_idle(asked: str, idle: Idle) -> None:
    async with house(key_managers=1) as it:
        it.faulty.behaviour = _dies_when_reused
        assert result_of(await it.ask(ask("first"))) == OK
        it.faulty.executed.clear()
        await trio.sleep(idle.seconds)
        assert result_of(await it.ask(REQUESTS[asked])) == idle.result
        assert it.executed == idle.executed
        assert sign_of(it) == "none"


@in_virtual_time
async def test_after_a_restart_all_idle_sessions_are_given_up_at_once() -> None:
    async with house(key_managers=1) as it:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(it.ask, ask("key"))
        assert len(it.faulty.open_connections) == 4
        it.faulty.behaviour = _dies_when_reused
        assert result_of(await it.ask(ask("key"))) == OK
        assert len(it.faulty.open_connections) == 1


# Every operation -----------------------------------------------------------------------------------------------------

#: The classes of the specification's operations, one letter each: R and r are repeated after they were sent, all
#: others are not; X is never forwarded.
CLASSES = {
    "R": "Locate Check GetAttributes GetAttributeList Validate Query DiscoverVersions Decrypt SignatureVerify "
    "MACVerify Hash GetConstraints Ping",
    "r": "Get ObtainLease RNGRetrieve Export",
    "U": "Encrypt Sign MAC RNGSeed Log",
    "S": "Cancel Poll Login Logout DelegatedLogin PKCS11 QueryAsynchronousRequests Process",
    "M": "Create CreateKeyPair Register Rekey DeriveKey Certify Recertify AddAttribute ModifyAttribute DeleteAttribute "
    "GetUsageAllocation Activate Revoke Destroy Archive Recover RekeyKeyPair CreateSplitKey JoinSplitKey Import "
    "AdjustAttribute SetAttribute SetDefaults SetConstraints CreateGroup Obliterate CreateUser CreateCredential "
    "Deactivate",
    "X": "Notify Put SetEndpointRole Interop Reprovision",
}
LETTERS = {name.upper(): letter for letter, names in CLASSES.items() for name in names.split()}
EFFECT_OF_LETTER = {
    "R": Effect.READ,
    "r": Effect.TOUCH,
    "U": Effect.CONSUME,
    "S": Effect.BOUND,
    "M": Effect.MUTATE,
}


def letter_of(operation: Operation) -> str:
    return LETTERS[operation.name.replace("_", "")]


@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
@in_virtual_time
async def test_every_operation_after_it_was_sent(operation: Operation) -> None:
    """Executed, and then the connection is lost: only what does no harm runs again."""
    letter = letter_of(operation)
    async with house() as it:
        it.faulty.behaviour = _resets_after_executing
        answer = await it.ask(ask("key", operation, version=(2, 1)))
        if letter == "X":
            assert (answer.refusal, it.executed) == (Refusal.NOT_SUPPORTED, 0)
        elif letter in "Rr":
            assert (result_of(answer), it.executed) == (OK, 2)
        else:
            assert (result_of(answer), it.executed) == (UNKNOWN, 1)


@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
def test_every_operation_has_its_effect(operation: Operation) -> None:
    letter = letter_of(operation)
    if letter != "X":
        assert effect_of(ask("key", operation, version=(2, 1))) is EFFECT_OF_LETTER[letter]


@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
@in_virtual_time
async def test_every_operation_before_it_was_sent(operation: Operation) -> None:
    """Nothing was sent: everything may be tried elsewhere."""
    if letter_of(operation) == "X":
        return
    async with house() as it:
        it.faulty.refuse()
        assert result_of(await it.ask(ask("key", operation, version=(2, 1)))) == OK
        assert it.executed == 1


# Bounds --------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_retries_are_bounded_by_the_budget() -> None:
    async with house() as it:
        retries = it.dispatcher._budgets.retries["red"]
        most = 0

        def breaks(connection: Connection, request: Request) -> None:
            nonlocal most
            most = max(most, retries.held)
            _resets_after_executing(connection, request)

        for key_manager in it.key_managers:
            key_manager.behaviour = breaks
        async with trio.open_nursery() as clients:
            for _ in range(100):
                clients.start_soon(it.ask, ask("key"))
        assert 3 <= most <= 20
        assert retries.held == retries.in_flight == 0


@in_virtual_time
async def test_a_read_alone_may_take_its_whole_deadline() -> None:
    """With nobody else to ask, giving up after one try's time would be an outage of the gateway's making."""
    async with house(key_managers=1) as it:
        it.faulty.operation_cost = 12.0
        assert result_of(await it.ask(ask("key"))) == OK


@in_virtual_time
async def test_a_read_that_is_slow_everywhere_is_answered_by_the_first() -> None:
    """A read that is slow everywhere is answered, as early as by the first."""
    async with house() as it:
        for key_manager in it.key_managers:
            key_manager.operation_cost = 12.0
        assert result_of(await it.ask(ask("key"))) == OK
        assert 12 <= trio.current_time() <= 13


@in_virtual_time
async def test_a_client_that_left_while_it_waited_is_not_executed() -> None:
    async with house(key_managers=1) as it:
        answer = await it.dispatcher.dispatch(ask("key", Operation.CREATE), PRINCIPAL, is_gone=lambda: True)
        assert answer.refusal is Refusal.CLIENT_DISCONNECTED
        assert it.executed == 0
        assert it.pools[0][0].statistics().busy == 0
