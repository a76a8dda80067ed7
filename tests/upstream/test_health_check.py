"""Tests of the health check: verdicts, credentials, and the reactions to a change of state."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture
from trio.testing import wait_all_tasks_blocked

from gateway.config import HealthConfig
from gateway.errors import BackendError
from gateway.kmip import compose, ttlv
from gateway.kmip.messages import Request, Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from gateway.log import Log, get
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.health import Health
from gateway.upstream.health_check import HealthChecker
from gateway.upstream.maintenance import watch
from gateway.upstream.open_session import VALIDATION_REQUESTS
from gateway.upstream.pool import Pool
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import (
    Behaviour,
    Connection,
    FakeKeyManager,
    answers,
    ask,
    in_virtual_time,
    make_pool,
    name_in,
    never_answers,
    use,
)

CREDENTIALS = ("red", "blue")
STEADY = HealthConfig(interval=2.0, timeout=2.0, jitter=0.0)


@pytest.fixture
def atlanta() -> FakeKeyManager:
    return FakeKeyManager()


def backend_of(key_manager: FakeKeyManager, nursery: trio.Nursery, credentials: Sequence[str] = CREDENTIALS) -> Backend:
    slots = Slots(4)
    pools = {
        credential: make_pool(key_manager, nursery.start_soon, credential=credential, slots=slots)[0]
        for credential in credentials
    }
    return Backend(key_manager.name, slots, pools, health=Health(HealthConfig(rise=2, fall=3)))


def checker_of(
    backend: Backend, settings: HealthConfig = STEADY, probe: str = "discover-versions", log: Log | None = None
) -> HealthChecker:
    """Return a checker that tries the backend's credentials in their order."""
    request = VALIDATION_REQUESTS[probe]
    return HealthChecker(backend, list(backend.pools), request, settings, Metrics("test"), log or get("test"))


@pytest.fixture
def logged() -> LogCapture:
    return LogCapture()


def problems(logged: LogCapture) -> list[Any]:
    """Return the lines but for the first success."""
    return [entry for entry in logged.entries if entry["event"] != "key manager reached"]


@pytest.fixture
def log(logged: LogCapture) -> Log:
    """Return a log whose entries ``logged`` captures."""
    logger: Log = structlog.wrap_logger(
        None, processors=[logged], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger


async def states(checker: HealthChecker, backend: Backend, number: int) -> list[str]:
    """Check so many times, and return the backend's state after each check."""
    found = []
    for _ in range(number):
        await checker.check()
        found.append(backend.state)
    return found


# Probing -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_checks_repeat_on_one_session(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    backend = backend_of(atlanta, nursery)
    asked_at = []

    def notes_when(connection: Connection, request: Request) -> None:
        asked_at.append(trio.current_time())
        answers(connection, request)

    atlanta.behaviour = notes_when
    nursery.start_soon(checker_of(backend).run)
    await trio.sleep(60)

    assert len(atlanta.attempts) == 1
    assert 29 <= len(asked_at) <= 32
    assert repr(backend.health).startswith("<Health up: serves")
    assert backend.slots.used == 0  # the session belongs to no pool


@in_virtual_time
async def test_a_check_follows_the_backend_to_its_new_address(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend)
    atlanta.host = "192.0.2.2"
    await checker.check()

    backend.set_hosts(("192.0.2.1",))
    atlanta.host = "192.0.2.1"
    await states(checker, backend, 2)

    assert [len(connection.sent) for connection in atlanta.connections] == [2, 3]
    assert [connection.closed for connection in atlanta.connections] == [["politely"], []]


@in_virtual_time
async def test_a_lack_of_descriptors_says_nothing_of_the_backend(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend)
    atlanta.refuse("resources")
    assert await states(checker, backend, 5) == ["up"] * 5

    atlanta.refuse()
    assert await states(checker, backend, 1) == ["down"]  # the first verdict counts at once


@in_virtual_time
async def test_jitter_spreads_the_times_of_checks(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    asked_at = []

    def notes_when(connection: Connection, request: Request) -> None:
        asked_at.append(trio.current_time())
        answers(connection, request)

    atlanta.behaviour = notes_when
    nursery.start_soon(checker_of(backend_of(atlanta, nursery), STEADY.model_copy(update={"jitter": 0.2})).run)
    await trio.sleep(600)

    gaps = [later - earlier for earlier, later in pairwise(asked_at[2:])]
    assert min(gaps) >= 1.6
    assert max(gaps) <= 2.4 + 0.01
    assert max(gaps) - min(gaps) > 0.5


@in_virtual_time
async def test_the_state_changes_after_rise_or_fall_checks(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend)
    assert await states(checker, backend, 2) == ["up", "up"]

    atlanta.behaviour = never_answers
    assert await states(checker, backend, 3) == ["up", "up", "down"]

    atlanta.recover()
    assert await states(checker, backend, 2) == ["down", "up"]


@in_virtual_time
async def test_a_backend_that_is_down_at_the_start_is_down_at_once(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    backend = backend_of(atlanta, nursery)
    atlanta.refuse()

    assert await states(checker_of(backend), backend, 1) == ["down"]


@in_virtual_time
async def test_a_session_closed_between_checks_is_no_failure(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend)
    for _ in range(5):
        await checker.check()
        atlanta.hang_up()

    assert repr(backend.health) == "<Health up: serves x5>"
    assert len(atlanta.attempts) == 5
    await checker.check()
    assert len(atlanta.open_connections) == 1


FAILURES: dict[str, Callable[[FakeKeyManager], None]] = {
    "refuses": FakeKeyManager.refuse,
    "is unreachable": lambda atlanta: setattr(atlanta, "is_reachable", False),
    "never answers": lambda atlanta: setattr(atlanta, "behaviour", never_answers),
    "hangs up": lambda atlanta: setattr(atlanta, "behaviour", lambda connection, _request: connection.hang_up()),
    "is odd": lambda atlanta: setattr(atlanta, "refusal", ValueError("error parsing asn1 value")),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
@in_virtual_time
async def test_a_failing_check_ends_in_time_and_leaves_no_connection(
    nursery: trio.Nursery, atlanta: FakeKeyManager, failure: Callable[[FakeKeyManager], None]
) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend)
    await checker.check()
    atlanta.hang_up()
    failure(atlanta)

    for number in range(1, 11):
        began = trio.current_time()
        await checker.check()
        assert trio.current_time() - began <= STEADY.timeout + 0.001
        assert repr(backend.health).endswith(f"fails x{number}>")

    assert backend.state == "down"
    assert atlanta.open_connections == []


@in_virtual_time
async def test_the_session_is_closed_when_the_checker_is_cancelled(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    backend = backend_of(atlanta, nursery)
    async with trio.open_nursery() as probing:
        probing.start_soon(checker_of(backend).run)
        await trio.sleep(1)
        assert len(atlanta.open_connections) == 1
        probing.cancel_scope.cancel()

    assert atlanta.open_connections == []


# Which credential it shows ------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_refused_credential_fails_no_check_while_another_works(
    nursery: trio.Nursery, atlanta: FakeKeyManager, logged: LogCapture, log: Log
) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend, log=log)
    assert await states(checker, backend, 2) == ["up", "up"]

    atlanta.refused.add("red")
    atlanta.hang_up()

    assert await states(checker, backend, 5) == ["up"] * 5
    assert [connection.credential for connection in atlanta.open_connections] == ["blue"]
    assert problems(logged) == [
        {
            "event": "key manager refuses the credential of the health check: another identity's is used instead",
            "log_level": "error",
            "backend": "atlanta",
            "credential": "red",
            "instead": "blue",
            "reason": "credential",
            "detail": "refused",
        }
    ]


@in_virtual_time
async def test_a_working_credential_is_used_until_it_is_refused(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend)
    atlanta.refused.add("red")
    await checker.check()
    attempts = len(atlanta.attempts)

    atlanta.refused = {"blue"}
    assert await states(checker, backend, 3) == ["up"] * 3
    assert len(atlanta.attempts) == attempts  # on its session

    atlanta.hang_up()
    assert await states(checker, backend, 3) == ["up"] * 3
    assert [connection.credential for connection in atlanta.open_connections] == ["red"]


@in_virtual_time
async def test_a_check_tries_three_credentials_and_the_next_goes_on(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    names = [f"app-{number}" for number in range(8)]
    backend = backend_of(atlanta, nursery, names)
    checker = checker_of(backend)
    atlanta.refused.update(names[:7])

    handshakes = []
    for _ in range(4):
        before = len(atlanta.attempts)
        await checker.check()
        handshakes.append(len(atlanta.attempts) - before)

    assert handshakes == [3, 3, 2, 0]
    assert [connection.credential for connection in atlanta.open_connections] == ["app-7"]


@in_virtual_time
async def test_the_credential_that_served_clients_last_is_tried_first(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    names = [f"app-{number}" for number in range(8)]
    backend = backend_of(atlanta, nursery, names)
    atlanta.refused.update(names[:7])
    await use(backend.pools["app-7"], "key-1")
    backend.pools["app-7"].answered_at = trio.current_time()

    await checker_of(backend).check()

    assert repr(backend.health) == "<Health up: serves x1>"
    assert len(atlanta.attempts) == 3  # the client's, the check's own credential, app-7


@in_virtual_time
async def test_slow_refusals_are_continued_by_the_next_check(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend)
    atlanta.handshake_cost = 1.5
    atlanta.refused.add("red")

    assert await states(checker, backend, 3) == ["down", "down", "up"]


@in_virtual_time
async def test_a_key_manager_that_accepts_no_credential_is_down(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend)
    assert await states(checker, backend, 1) == ["up"]
    atlanta.refused.update(CREDENTIALS)
    atlanta.hang_up()

    assert await states(checker, backend, 4) == ["up", "up", "down", "down"]
    assert backend.health.reason == "credential"
    assert backend.health.detail == "no session with the credential of any of red, blue: refused"

    atlanta.recover()
    assert await states(checker, backend, 2) == ["down", "up"]


@in_virtual_time
async def test_refusals_do_not_count_while_older_sessions_answer(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend)
    assert await states(checker, backend, 1) == ["up"]
    atlanta.refused.update(CREDENTIALS)
    atlanta.hang_up()

    for _ in range(10):
        await trio.sleep(1)
        backend.pools["blue"].answered_at = trio.current_time()
        await trio.sleep(1)
        assert await states(checker, backend, 1) == ["up"]

    assert await states(checker, backend, 3) == ["up", "up", "down"]


@in_virtual_time
async def test_a_failure_of_the_key_manager_is_no_refusal(
    nursery: trio.Nursery, atlanta: FakeKeyManager, logged: LogCapture, log: Log
) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend, log=log)
    atlanta.refuse("hostname")
    await checker.check()
    assert len(atlanta.attempts) == 1
    assert backend.health.reason == "hostname"

    atlanta.recover()
    assert await states(checker, backend, 2) == ["down", "up"]
    assert [connection.credential for connection in atlanta.open_connections] == ["red"]
    assert problems(logged) == []


# A check that fails beside clients that are answered ------------------------------------------------------------------


def never_answers_health_checks(connection: Connection, request: Request) -> None:
    if name_in(request):
        answers(connection, request)


@in_virtual_time
async def test_a_failed_check_does_not_count_while_clients_are_answered(
    nursery: trio.Nursery, atlanta: FakeKeyManager, logged: LogCapture, log: Log
) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend, log=log)
    assert await states(checker, backend, 1) == ["up"]
    atlanta.behaviour = never_answers_health_checks

    async with trio.open_nursery() as clients:
        clients.start_soon(clients_of, backend.pools["blue"])
        assert await states(checker, backend, 10) == ["up"] * 10
        clients.cancel_scope.cancel()

    assert problems(logged) == [
        {
            "event": "health check failed, and does not count: the key manager answers clients",
            "log_level": "warning",
            "backend": "atlanta",
            "reason": "timeout",
            "detail": "no answer to the health check within 2 s",
        }
    ]
    assert await states(checker, backend, 3) == ["up", "up", "down"]  # no client asks any more


async def clients_of(pool: Pool) -> None:
    """Send a request once a second, for ever."""
    while True:
        await use(pool, "key-1")
        pool.answered_at = trio.current_time()
        await trio.sleep(1)


@in_virtual_time
async def test_an_answer_from_before_the_check_does_not_outweigh_it(
    nursery: trio.Nursery, atlanta: FakeKeyManager
) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend)
    assert await states(checker, backend, 1) == ["up"]
    atlanta.behaviour = never_answers
    backend.pools["blue"].answered_at = trio.current_time()
    await trio.sleep(0.001)

    assert await states(checker, backend, 3) == ["up", "up", "down"]


@pytest.mark.parametrize(
    ("settings", "probe", "state"),
    [
        (STEADY.model_copy(update={"expect_status": "success"}), "discover-versions", "down"),
        (STEADY.model_copy(update={"expect_text": "ServerType=master"}), "query", "standby"),
    ],
)
@in_virtual_time
async def test_a_standby_answer_counts_although_clients_are_answered(
    nursery: trio.Nursery, atlanta: FakeKeyManager, settings: HealthConfig, probe: str, state: str
) -> None:
    backend = backend_of(atlanta, nursery)

    def fails_and_answers_clients(connection: Connection, request: Request) -> None:
        backend.pools["blue"].answered_at = trio.current_time()
        connection.say(compose.failure(request, ResultReason.GENERAL_FAILURE, "no"))

    atlanta.behaviour = fails_and_answers_clients

    assert await states(checker_of(backend, settings, probe), backend, 1) == [state]
    assert backend.health.reason
    assert backend.health.detail


@in_virtual_time
async def test_a_fault_of_the_gateway_does_not_end_the_checks(
    nursery: trio.Nursery, atlanta: FakeKeyManager, logged: LogCapture, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_of(atlanta, nursery)
    fault = RuntimeError("a fault")
    faults = [fault]
    checked = backend.health.checked

    def stumbles(*finding: Any) -> bool:
        if faults:
            raise faults.pop()
        return checked(*finding)

    monkeypatch.setattr(backend.health, "checked", stumbles)
    nursery.start_soon(checker_of(backend, log=log).run)
    await trio.sleep(5)

    assert repr(backend.health) == "<Health up: serves x2>"
    assert [(entry["log_level"], entry["exc_info"]) for entry in problems(logged)] == [("error", fault)]


# Answers that succeed ---------------------------------------------------------------------------------------------


def with_server_information(text: str) -> Behaviour:
    """Make a behaviour that answers Query with this server information."""

    def answers_query(connection: Connection, request: Request) -> None:
        payload = ttlv.text(Tag.VENDOR_IDENTIFICATION, text)
        result = compose.Result(ResultStatus.SUCCESS, request.items[0].operation, payload=payload)
        connection.say(compose.encode_response(request.version, [result]))

    return answers_query


@in_virtual_time
async def test_a_standby_is_recognized_and_serves_once_promoted(nursery: trio.Nursery, atlanta: FakeKeyManager) -> None:
    backend = backend_of(atlanta, nursery)
    checker = checker_of(backend, STEADY.model_copy(update={"expect_text": "ServerType=master"}), "query")

    atlanta.behaviour = with_server_information("ServerType=clone")
    assert await states(checker, backend, 1) == ["standby"]

    atlanta.behaviour = with_server_information("ServerType=master")
    assert await states(checker, backend, 1) == ["up"]


@pytest.mark.parametrize(("must_succeed", "state"), [(False, "up"), (True, "down")])
@in_virtual_time
async def test_an_error_answer_is_a_success_unless_expect_status_says_so(
    nursery: trio.Nursery, atlanta: FakeKeyManager, must_succeed: bool, state: str
) -> None:
    backend = backend_of(atlanta, nursery)
    atlanta.behaviour = lambda connection, request: connection.say(
        compose.failure(request, ResultReason.GENERAL_FAILURE, "no")
    )

    checker = checker_of(backend, STEADY.model_copy(update={"expect_status": "success" if must_succeed else "answer"}))

    assert await states(checker, backend, 1) == [state]


def versions(*spoken: Version) -> bytes:
    return b"".join(
        ttlv.structure(
            Tag.PROTOCOL_VERSION,
            ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, major),
            ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, minor),
        )
        for major, minor in spoken
    )


@pytest.mark.parametrize(
    ("payload", "learned"),
    [
        (versions((2, 1), (1, 4)), {(2, 1), (1, 4)}),
        (b"", None),
        (ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, 1), None),
        (ttlv.structure(Tag.PROTOCOL_VERSION), None),
        (b"\x42\x00\x69\x01\x00\x00\x00\x08" + bytes(4), None),
    ],
    ids=["two", "none", "something else", "an empty one", "cut"],
)
@in_virtual_time
async def test_versions_are_learned_from_readable_answers(
    nursery: trio.Nursery, atlanta: FakeKeyManager, payload: bytes, learned: set[Version] | None
) -> None:
    def discovers(connection: Connection, request: Request) -> None:
        padded = payload + bytes(-len(payload) % 8)
        result = compose.Result(ResultStatus.SUCCESS, Operation.DISCOVER_VERSIONS, payload=padded)
        connection.say(compose.encode_response(request.version, [result]))

    backend = backend_of(atlanta, nursery)
    atlanta.behaviour = discovers

    await checker_of(backend).check()

    assert backend.versions == (None if learned is None else frozenset(learned))
    assert backend.state == "up"


# Acting on it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others_serve", [True, False])
@in_virtual_time
async def test_a_backend_that_goes_down_is_logged_and_its_sessions_closed(
    nursery: trio.Nursery, atlanta: FakeKeyManager, logged: LogCapture, log: Log, others_serve: bool
) -> None:
    backend, metrics = backend_of(atlanta, nursery), Metrics("test")
    red = backend.pools["red"]
    idle, busy = await red.wait(), await red.wait()
    red.give_back(idle)
    busy.is_repeatable = True
    atlanta.behaviour = never_answers
    ended = []

    async def read() -> None:
        try:
            await busy.exchange(ask("key-1"))
        except BackendError as error:
            ended.append(error.reason)
        finally:
            red.give_back(busy)

    nursery.start_soon(read)
    others = [backend_of(FakeKeyManager("london"), nursery)] if others_serve else []
    balancer = Balancer([backend, *others])
    nursery.start_soon(lambda: watch(backend, balancer=balancer, metrics=metrics, log=log))
    await wait_all_tasks_blocked()

    backend.health = Health(HealthConfig(fall=1))
    await checker_of(backend).check()
    await trio.sleep(1)

    assert red.statistics().idle == 0
    assert ended == ["interrupted"] * others_serve
    assert problems(logged) == [
        {
            "event": "backend state changed",
            "log_level": "warning",
            "backend": "atlanta",
            "state": "down",
            "before": "up",
            "reason": "timeout",
            "detail": "no answer to the health check within 2 s",
        }
    ]
    assert metrics.backend_state_changes.labels("atlanta", "down").value == 1
