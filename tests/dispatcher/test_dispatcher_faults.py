"""Every fault with every effect: the client's answer, the number of executions, the pools, and the sign for health.

Two key managers in memory, the real dispatcher, balancer, pools and sessions, in virtual time. The first key manager is
the faulty one, and is asked first.
"""

from typing import NamedTuple

import pytest
import trio

from gateway.dispatcher import Answer
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultStatus
from gateway.policy import Effect, Refusal, effect_of
from tests.kit.backend_faults import FAULTS, OK, PASSED_ON, READS, REQUESTS, UNKNOWN, resets_after_executing
from tests.kit.deployment import Deployment, deployment, principal
from tests.kit.fake_backends import (
    Connection,
    answers,
    ask,
    in_virtual_time,
)


def result_of(answer: Answer) -> str:
    """Return the client's result in the words of the table, after a check of the gateway's own Result Message."""
    if answer.response is not None:
        failed = any(item.status != ResultStatus.SUCCESS for item in answer.response.items)
        return PASSED_ON if failed else OK
    assert answer.refusal is not None
    if answer.refusal is Refusal.OUTCOME_UNKNOWN:
        assert b"unknown" in answer.frame
        return UNKNOWN
    assert answer.refusal is not Refusal.RESPONSE_TOO_LARGE or b"larger" in answer.frame
    return str(answer.refusal.value)


def sign_of(it: Deployment) -> str:
    """Return the sign that the gate (hard) or breaker (soft, overdue) of the faulty key manager has got."""
    if it.observers[0].failed:
        return "hard"
    circuits = it.balancer.backends[0].breaker._circuits.values()
    if any(circuit.failures for circuit in circuits):
        return "soft"
    return "overdue" if any(circuit.overdue for circuit in circuits) else "none"


@pytest.mark.parametrize("asked", REQUESTS)
@pytest.mark.parametrize("fault", FAULTS)
@in_virtual_time
async def test_each_fault_at_the_first_backend_with_each_effect(fault: str, asked: str) -> None:
    row = FAULTS[fault]
    cell = row.read if asked in READS else row.mutation
    async with deployment("kms-1", "kms-2") as it:
        row.switch(it.key_managers[0])
        began = trio.current_time()
        answer = await it.ask(REQUESTS[asked])
        assert trio.current_time() - began <= cell.seconds
        assert result_of(answer) == cell.result
        assert len(it.executed) == cell.executed
        assert sign_of(it) == ("overdue" if fault == "deaf" and asked in READS else row.sign)
        await trio.sleep(30)  # an exchange that lost its race ends by then
        for backend in it.backends:
            pool = backend.pools["red"]
            counts = pool.statistics()
            assert (counts.busy, counts.waiting) == (0, 0), pool
        it.key_managers[0].recover()
        for _ in range(4):  # later requests get their own answers
            later = await it.ask(ask("other key"))
            assert result_of(later) == OK
            assert b"other key" in later.frame


@pytest.mark.parametrize("asked", REQUESTS)
@pytest.mark.parametrize("fault", FAULTS)
@in_virtual_time
async def test_each_fault_at_every_backend_with_each_effect(fault: str, asked: str) -> None:
    """If every key manager has the fault, there is a true answer in bounded time, and no change runs twice."""
    row = FAULTS[fault]
    cell = row.read if asked in READS else row.mutation
    async with deployment("kms-1", "kms-2") as it:
        for key_manager in it.key_managers:
            row.switch(key_manager)
        began = trio.current_time()
        answer = await it.ask(REQUESTS[asked])
        assert trio.current_time() - began <= 36
        assert answer.frame
        assert len(it.executed) <= (2 if asked in READS else 1)
        if row.sign == "hard":
            assert answer.refusal is Refusal.NO_BACKEND
            assert len(it.executed) == 0
        elif asked in READS and (row.sign == "soft" or fault == "takes nothing"):
            assert answer.refusal in {Refusal.BACKEND_FAILED, Refusal.NO_BACKEND}
        elif fault != "takes nothing":
            assert result_of(answer) == cell.result


# Reused sessions ------------------------------------------------------------------------------------------------------


def _dies_when_reused(connection: Connection, request: Request) -> None:
    """Hang up on the second request of a session, as a peer that has closed it while it was idle."""
    if connection.sent and len(connection.sent) > 1:
        connection.hang_up()
    else:
        answers(connection, request)


class Idle(NamedTuple):
    """Seconds for which a dead session had been idle, and the expected result and executions."""

    seconds: float
    result: str
    executed: int


@pytest.mark.parametrize(
    ("asked", "idle"),
    [
        ("read", Idle(0.5, OK, 1)),
        ("read", Idle(20.0, OK, 1)),
        ("mutation", Idle(0.5, UNKNOWN, 0)),  # sent before the close was seen
        ("mutation", Idle(20.0, OK, 1)),  # the session failed its validation
        ("batch of both", Idle(20.0, OK, 1)),
    ],
)
@in_virtual_time
async def test_a_session_that_died_while_it_was_idle(asked: str, idle: Idle) -> None:
    async with deployment("kms-1") as it:
        it.key_managers[0].behaviour = _dies_when_reused
        assert result_of(await it.ask(ask("first"))) == OK
        it.key_managers[0].executed.clear()
        await trio.sleep(idle.seconds)
        assert result_of(await it.ask(REQUESTS[asked])) == idle.result
        assert len(it.executed) == idle.executed
        assert sign_of(it) == "none"


@in_virtual_time
async def test_after_a_restart_all_idle_sessions_are_closed_at_once() -> None:
    async with deployment("kms-1") as it:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(it.ask, ask("key"))
        assert len(it.key_managers[0].open_connections) == 4
        it.key_managers[0].behaviour = _dies_when_reused
        assert result_of(await it.ask(ask("key"))) == OK
        assert len(it.key_managers[0].open_connections) == 1


# Every operation ------------------------------------------------------------------------------------------------------

#: The classes of the specification's operations, one letter each: R and r are repeated after they were sent, the rest
#: is not; X is never forwarded.
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
    "S": Effect.STATEFUL,
    "M": Effect.MUTATE,
}


def letter_of(operation: Operation) -> str:
    return LETTERS[operation.name.replace("_", "")]


@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
@in_virtual_time
async def test_every_operation_after_it_was_sent(operation: Operation) -> None:
    """The connection is lost after the execution: only reads run again."""
    letter = letter_of(operation)
    async with deployment("kms-1", "kms-2") as it:
        it.key_managers[0].behaviour = resets_after_executing
        answer = await it.ask(ask("key", operation, version=(2, 1)))
        if letter == "X":
            assert (answer.refusal, len(it.executed)) == (Refusal.NOT_SUPPORTED, 0)
        elif letter in "Rr":
            assert (result_of(answer), len(it.executed)) == (OK, 2)
        else:
            assert (result_of(answer), len(it.executed)) == (UNKNOWN, 1)


@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
def test_every_operation_has_its_effect(operation: Operation) -> None:
    letter = letter_of(operation)
    if letter != "X":
        assert effect_of(ask("key", operation, version=(2, 1))) is EFFECT_OF_LETTER[letter]


@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
@in_virtual_time
async def test_every_operation_before_it_was_sent(operation: Operation) -> None:
    """Nothing was sent: every operation may be tried at another backend."""
    if letter_of(operation) == "X":
        return
    async with deployment("kms-1", "kms-2") as it:
        it.key_managers[0].refuse()
        assert result_of(await it.ask(ask("key", operation, version=(2, 1)))) == OK
        assert len(it.executed) == 1


# Bounds ---------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_retries_are_bounded_by_the_budget() -> None:
    async with deployment("kms-1", "kms-2") as it:
        retries = it.dispatcher._budgets.retries["red"]
        most = 0

        def breaks(connection: Connection, request: Request) -> None:
            nonlocal most
            most = max(most, retries.held)
            resets_after_executing(connection, request)

        for key_manager in it.key_managers:
            key_manager.behaviour = breaks
        async with trio.open_nursery() as clients:
            for _ in range(100):
                clients.start_soon(it.ask, ask("key"))
        assert 3 <= most <= 20
        assert retries.held == retries.in_flight == 0


@in_virtual_time
async def test_a_read_at_the_only_backend_may_take_its_whole_deadline() -> None:
    """No other backend can be asked: an error after ``try_timeout`` would be an outage made by the gateway."""
    async with deployment("kms-1") as it:
        it.key_managers[0].operation_cost = 12.0
        assert result_of(await it.ask(ask("key"))) == OK


@in_virtual_time
async def test_a_read_that_is_slow_everywhere_is_answered_by_the_first() -> None:
    """The answer comes as early as without a hedge."""
    async with deployment("kms-1", "kms-2") as it:
        for key_manager in it.key_managers:
            key_manager.operation_cost = 12.0
        assert result_of(await it.ask(ask("key"))) == OK
        assert 12 <= trio.current_time() <= 13


@in_virtual_time
async def test_a_request_whose_client_left_while_it_waited_is_not_sent() -> None:
    async with deployment("kms-1") as it:
        answer = await it.dispatcher.dispatch(
            ask("key", Operation.CREATE), principal("red"), client_disconnected=lambda: True
        )
        assert answer.refusal is Refusal.CLIENT_DISCONNECTED
        assert {labels: counter.value for labels, counter in it.metrics.client_aborts.children()} == {("queued",): 1}
        assert len(it.executed) == 0
        assert it.backends[0].pools["red"].statistics().busy == 0
