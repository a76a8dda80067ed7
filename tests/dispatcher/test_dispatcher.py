"""Requests and answers: one request in, one answer out. (Each fault by itself: test_dispatcher_faults.)"""

from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from typing import Any, Final, NamedTuple

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from gateway.config import DeadlinesConfig, PolicyConfig
from gateway.dispatcher import Answer, DispatcherSettings
from gateway.errors import StreamClosedError
from gateway.kmip.decode import decode_response
from gateway.kmip.messages import Request, Version
from gateway.kmip.spec import Operation
from gateway.permissions import Permissions
from gateway.policy import Effect, Refusal, effect_of
from gateway.upstream.maintenance import maintain_pools
from gateway.upstream.session import Session
from tests.kit.deployment import CREDENTIALS, deployment, name_of, principal, refusal
from tests.kit.fake_backends import (
    SETTINGS,
    Behaviour,
    Connection,
    FakeKeyManager,
    answer_to,
    answers,
    ask,
    breaks_while_it_is_asked,
    in_virtual_time,
    lease,
    name_in,
    never_answers,
)


class FakePayer:
    """A payer that holds at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def hold(self, size: int) -> str | None:
        if self.held + size > self.limit:
            return "limit"
        self.held += size
        return None


def _answers_in_parts(connection: Connection, request: Request) -> None:
    connection.execute(request)
    frame = answer_to(request)
    if name_in(request):
        connection.say(frame[:50], frame[50:])
    else:
        connection.say(frame)


# Bytes of answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "why", "words"),
    [
        (Operation.GET, Refusal.OVERLOADED, "try again later"),
        (Operation.CREATE, Refusal.OUTCOME_UNKNOWN, "outcome is unknown"),
    ],
)
@in_virtual_time
async def test_an_answer_over_the_buffer_limit_is_refused_with_the_reason(
    operation: int, why: Refusal, words: str
) -> None:
    """Each request is tried once, since every key manager's answer is as long, and counts against no backend."""
    payer = FakePayer(60)
    async with deployment("atlanta", "boston") as it:
        for key_manager in it.key_managers:
            key_manager.behaviour = _answers_in_parts
        for _ in range(10):
            answer = await it.dispatcher.dispatch(ask("key-1", operation), principal("red"), payer=payer)
            assert refusal(answer)[0] is why
            assert words in refusal(answer)[2]
        assert len(it.executed) == 10
        assert all(backend.breaker.is_quiet for backend in it.backends)
        assert payer.held == 0


@in_virtual_time
async def test_bytes_of_an_answer_are_held_and_released() -> None:
    payer = FakePayer(1000)
    async with deployment("atlanta") as it:
        it.key_managers[0].behaviour = _answers_in_parts
        answer = await it.dispatcher.dispatch(ask("key-1"), principal("red"), payer=payer)
        assert name_of(answer) == "key-1"
        assert payer.held == 0


# Without faults -------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_answer_is_the_key_managers_own_byte_for_byte() -> None:
    async with deployment("atlanta") as it:
        request = ask("key-1")

        answer = await it.ask(request)

        assert answer.frame == answer_to(request)
        assert it.key_managers[0].connections[0].sent == [request.frame]
        assert it.has_only_idle_sessions()


@in_virtual_time
async def test_key_managers_take_turns() -> None:
    async with deployment("atlanta", "boston", "london", "paris") as it:
        for number in range(40):
            assert name_of(await it.ask(ask(f"key-{number}"))) == f"key-{number}"

        assert [len(key_manager.executed) for key_manager in it.key_managers] == [10, 10, 10, 10]
        assert it.has_only_idle_sessions()


@in_virtual_time
async def test_a_request_is_sent_with_its_identitys_credential_only() -> None:
    async with deployment("atlanta", "london", max_sessions=2) as it:
        async with trio.open_nursery() as clients:
            for number in range(40):
                credential = CREDENTIALS[number % 2]
                clients.start_soon(it.ask, ask(f"{credential}-{number}"), credential)

        assert len(it.executed) == 40
        assert {(credential, name.partition("-")[0]) for credential, name in it.executed} == {
            ("red", "red"),
            ("blue", "blue"),
        }


# Nothing was sent -----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_unreachable_backend_is_skipped_and_the_next_is_tried() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].refuse()

        for number in range(10):
            assert name_of(await it.ask(ask(f"key-{number}", Operation.CREATE))) == f"key-{number}"

        assert len(it.key_managers[1].executed) == 10
        assert len(it.key_managers[0].attempts) == 1  # later requests do not try it first


@pytest.mark.parametrize(("version", "reason"), [((1, 0), 0x100), ((1, 4), 0x100), ((2, 0), 0x2A), ((2, 1), 0x2A)])
@in_virtual_time
async def test_no_reachable_backend_is_reported_in_the_clients_version(version: Version, reason: int) -> None:
    async with deployment("atlanta", "london") as it:
        for key_manager in it.key_managers:
            key_manager.refuse()

        answer = await it.ask(ask("key-1", version=version))

        assert refusal(answer) == (Refusal.NO_BACKEND, reason, "no key manager can be reached")
        assert decode_response(answer.frame).version == version
        assert "refused (connect: connect)" in answer.detail  # for the log only
        assert it.executed == []
        assert it.has_only_idle_sessions()


@in_virtual_time
async def test_time_spent_on_connecting_is_not_taken_off_the_queue_time() -> None:
    """Two attempts take three seconds each; the request may still wait for the third key manager, which is busy."""
    async with deployment("atlanta", "boston", "london", max_sessions=1) as it:
        it.key_managers[0].is_reachable = it.key_managers[1].is_reachable = False
        london = it.backends[2].pools["red"]
        session = await lease(london)
        answers_got: list[Answer] = []

        async def client() -> None:
            answers_got.append(await it.ask(ask("key-1", Operation.CREATE)))

        it.nursery.start_soon(client)
        await trio.sleep(8)
        assert london.statistics().waiting == 1
        london.give_back(session)
        await trio.sleep(1)

        assert [name_of(answer) for answer in answers_got] == ["key-1"]


NOT_PASSED_ON = [
    Operation.NOTIFY,
    Operation.PUT,
    Operation.SET_ENDPOINT_ROLE,
    Operation.INTEROP,
    Operation.REPROVISION,
]


@pytest.mark.parametrize("operation", NOT_PASSED_ON, ids=lambda operation: operation.name)
@in_virtual_time
async def test_a_refused_operation_reaches_no_key_manager(operation: Operation) -> None:
    async with deployment("atlanta") as it:
        alone = await it.ask(ask("key-1", operation, version=(2, 1)))
        hidden = await it.ask(ask("key-1", Operation.GET, operation, numbered=True, version=(2, 1)))

        assert refusal(alone)[:2] == (Refusal.NOT_SUPPORTED, 0x05)
        assert [item.reason for item in decode_response(hidden.frame).items] == [0x100, 0x05]
        assert it.key_managers[0].attempts == []


@in_virtual_time
async def test_the_policy_refuses_a_whole_batch_before_anything_is_sent() -> None:
    async with deployment("atlanta") as it:
        client = principal("red")
        limited = Permissions(PolicyConfig(allow=("read", "Create"), max_batch_items=3))
        client = client._replace(identity=client.identity._replace(permissions=limited))

        async def reasons(*operations: Operation, **options: Any) -> tuple[Refusal | None, list[int | None], str]:
            answer = await it.dispatcher.dispatch(ask("key-1", *operations, numbered=True, **options), client)
            return answer.refusal, [item.reason for item in decode_response(answer.frame).items], answer.detail

        assert await reasons(Operation.CREATE, Operation.DESTROY, Operation.GET) == (
            Refusal.NOT_PERMITTED,
            [0x100, 0x0C, 0x100],
            "operation 2 of 3, Destroy: not in allow",
        )
        assert (await reasons(Operation.REVOKE, version=(2, 1)))[:2] == (Refusal.NOT_PERMITTED, [0x0C])
        assert (await reasons(*[Operation.GET] * 4))[1] == [0x0C] * 4
        assert it.key_managers[0].attempts == []
        samples = next(iter(it.metrics.policy_refusals.collect())).samples
        counted = {tuple(sample.labels.values()): sample.value for sample in samples if sample.name.endswith("_total")}
        assert counted == {("red", "Destroy"): 1, ("red", "Revoke"): 1, ("red", "Batch"): 1}

        assert (await reasons(Operation.CREATE, Operation.GET))[:2] == (None, [None, None])

        limited.change(PolicyConfig())  # as a reload does
        assert (await reasons(Operation.REVOKE))[0] is None


# Time -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "reason"), [((1, 4), 0x100), ((2, 1), 0x3A)])
@in_virtual_time
async def test_all_waits_for_sessions_together_end_after_queue_timeout(version: Version, reason: int) -> None:
    async with deployment("atlanta", "london", max_sessions=1) as it:
        for backend in it.backends:
            await lease(backend.pools["red"])

        answer = await it.ask(ask("key-1", version=version))

        assert trio.current_time() == pytest.approx(2 * 0.06 + 5.0)
        assert refusal(answer) == (
            Refusal.OVERLOADED,
            reason,
            "too many requests are waiting for key managers; try again later",
        )
        assert "no session free within 5 s" in answer.detail
        assert [observer.wait_timeouts for observer in it.observers if observer.waits] == [1, 1]
        assert it.executed == []
        assert [backend.pools["red"].statistics().waiting for backend in it.backends] == [0, 0]


@in_virtual_time
async def test_a_full_queue_is_reported_at_once_without_a_backends_name() -> None:
    async with deployment("atlanta", pool=SETTINGS.model_copy(update={"queue_length": 0}), max_sessions=1) as it:
        await lease(it.backends[0].pools["red"])
        began = trio.current_time()

        answer = await it.ask(ask("key-1"))

        assert trio.current_time() == began
        assert answer.refusal is Refusal.OVERLOADED
        assert b"atlanta" not in answer.frame
        assert "atlanta" in answer.detail


@in_virtual_time
async def test_overload_is_reported_though_another_backend_is_unreachable() -> None:
    async with deployment("atlanta", "london", max_sessions=1) as it:
        await lease(it.backends[0].pools["red"])
        it.key_managers[1].refuse()

        answer = await it.ask(ask("key-1"))

        assert answer.refusal is Refusal.OVERLOADED


def answers_all_but_probes(connection: Connection, request: Request) -> None:
    if name_in(request):
        answers(connection, request)


@in_virtual_time
async def test_the_deadline_covers_validation_before_the_request_is_sent() -> None:
    """Validations of idle sessions get no answer until the deadline; the request is not sent then."""
    async with deployment("atlanta", "london", times=DispatcherSettings(deadlines=DeadlinesConfig(request=2.0))) as it:
        for key_manager, backend in zip(it.key_managers, it.backends, strict=True):
            backend.pools["red"].give_back(await lease(backend.pools["red"]))
            key_manager.behaviour = answers_all_but_probes
        await trio.sleep(2)
        began = trio.current_time()

        answer = await it.ask(ask("key-1", Operation.CREATE))

        assert trio.current_time() == pytest.approx(began + 2.0)
        assert answer.refusal in {Refusal.DEADLINE, Refusal.OVERLOADED}
        assert it.executed == []


@in_virtual_time
async def test_a_change_without_an_answer_ends_as_outcome_unknown() -> None:
    async with deployment("atlanta", "london") as it:
        for key_manager in it.key_managers:
            key_manager.behaviour = never_answers

        answer = await it.ask(ask("key-1", Operation.CREATE))

        assert trio.current_time() == pytest.approx(30.0)
        why, reason, message = refusal(answer)
        assert (why, reason) == (Refusal.OUTCOME_UNKNOWN, 0x100)
        assert "unknown" in message
        assert it.executed == [("red", "key-1")]
        assert it.has_only_idle_sessions()


@in_virtual_time
async def test_a_cancelled_exchange_leaves_no_session_behind() -> None:
    """As in a shutdown: the late answer must not reach another client."""
    async with deployment("atlanta") as it:
        it.key_managers[0].operation_cost = 2.0
        with trio.move_on_after(1):
            await it.ask(ask("slow", Operation.CREATE))
        it.key_managers[0].operation_cost = 0.0

        assert name_of(await it.ask(ask("fast"))) == "fast"
        assert it.observers[0].results == {"cancelled": 1, "answered": 1}
        assert it.has_only_idle_sessions()


# Sessions that are lost while they are used ---------------------------------------------------------------------------


@in_virtual_time
async def test_reads_move_to_another_backend_when_theirs_goes_down() -> None:
    async with deployment("atlanta", "london") as it:
        it.key_managers[0].behaviour = never_answers
        got: dict[str, Answer] = {}

        async def client(name: str, operation: Operation) -> None:
            got[name] = await it.ask(ask(name, operation))

        for name, operation in {"read": Operation.GET, "london": Operation.GET, "mutation": Operation.CREATE}.items():
            it.nursery.start_soon(client, name, operation)
            await trio.sleep(0.5)
        assert it.key_managers[0].executed == [("red", "read"), ("red", "mutation")]

        it.backends[0].on_down(lambda _credential: True)
        await trio.sleep(0.5)

        assert name_of(got["read"]) == "read"
        assert "mutation" not in got  # the key manager may be working on it
        assert it.metrics.retries.labels("interrupted", "answered").value == 1


@in_virtual_time
async def test_a_session_with_surplus_bytes_is_not_used_again() -> None:
    def says_more(connection: Connection, request: Request) -> None:
        connection.execute(request)
        connection.answer(request, answer_to(ask("of-another")))

    async with deployment("atlanta") as it:
        it.key_managers[0].behaviour = says_more

        assert [name_of(await it.ask(ask(f"key-{number}"))) for number in range(3)] == ["key-0", "key-1", "key-2"]

        assert len(it.key_managers[0].connections) == 3


# Everything at once ---------------------------------------------------------------------------------------------------


def hangs_up(connection: Connection, _request: Request) -> None:
    connection.hang_up()


def works_and_hangs_up(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.hang_up()


def works_and_answers_half(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(answer_to(request)[:40], b"")


def works_and_answers_another(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(answer_to(ask("of-another", Operation.QUERY)))


def works_and_says_more(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.answer(request, answer_to(ask("of-another")))


def takes_nothing(_connection: Connection, _request: Request) -> None:
    raise StreamClosedError("connection broken: EPIPE", nothing_sent=True)


BEHAVIOURS: Final = [
    answers,
    hangs_up,
    works_and_hangs_up,
    works_and_answers_half,
    works_and_answers_another,
    works_and_says_more,
    takes_nothing,
    breaks_while_it_is_asked,
    never_answers,
]
OPERATIONS: Final = [Operation.GET, Operation.LOCATE, Operation.CREATE, Operation.ENCRYPT, 0x80000001]


class Moody(FakeKeyManager):
    """A key manager that repeats a list of behaviours for requests, and a list of moods for connections."""

    def __init__(self, name: str, behaviours: Sequence[Behaviour], moods: Sequence[str]) -> None:
        super().__init__(name)
        self._behaviours = cycle(behaviours)
        self._moods = cycle(moods)
        self.behaviour = self._behave

    def _behave(self, connection: Connection, request: Request) -> None:
        next(self._behaviours)(connection, request)

    async def _open(self, credential: str) -> Session:
        mood = next(self._moods)
        self.is_reachable = mood != "is unreachable"
        self.refusal = {"refuses": self._refusal("connect"), "is odd": OSError("odd")}.get(mood)
        return await super()._open(credential)


class Story(NamedTuple):
    """Requests, as (credential, operation, seconds until the next), and the lists of each key manager."""

    arrivals: list[tuple[str, int, float]]
    key_managers: list[tuple[list[Behaviour], list[str]]]


stories = st.builds(
    Story,
    arrivals=st.lists(
        st.tuples(
            st.sampled_from(CREDENTIALS), st.sampled_from(OPERATIONS), st.sampled_from([0.0, 0.001, 0.07, 1.5, 7.0])
        ),
        min_size=1,
        max_size=20,
    ),
    key_managers=st.lists(
        st.tuples(
            st.lists(st.one_of(st.just(answers), st.sampled_from(BEHAVIOURS)), min_size=1, max_size=8),
            st.lists(
                st.sampled_from(["lets in", "lets in", "refuses", "is unreachable", "is odd"]), min_size=1, max_size=4
            ),
        ),
        min_size=1,
        max_size=3,
    ),
)


class Outcome(NamedTuple):
    """A request's object and effect, its answer, and the seconds that it took."""

    name: str
    effect: Effect
    answer: Answer
    seconds: float


async def live_through(story: Story) -> None:
    outcomes: list[Outcome] = []
    moody = [Moody(f"kms-{number}", *moods) for number, moods in enumerate(story.key_managers)]
    async with deployment(*moody, max_sessions=2) as it:
        for backend in it.backends:
            it.nursery.start_soon(maintain_pools, list(backend.pools.values()), 3.0)

        async def client(credential: str, name: str, operation: int) -> None:
            request = ask(name, operation)
            began = trio.current_time()
            answer = await it.ask(request, credential)
            outcomes.append(Outcome(name, effect_of(request), answer, trio.current_time() - began))

        async with trio.open_nursery() as clients:
            for number, (credential, operation, gap) in enumerate(story.arrivals):
                clients.start_soon(client, credential, f"{credential}-{number}", operation)
                await trio.sleep(gap)
        check_books(outcomes, it.executed, len(story.arrivals))

        for backend in it.backends:
            backend.close()
        await trio.sleep(10)
        assert [backend.slots.used for backend in it.backends] == [0] * len(it.backends)
        assert [key_manager.open_connections for key_manager in it.key_managers] == [[]] * len(it.key_managers)


def check_books(outcomes: list[Outcome], executed: list[tuple[str, str]], asked: int) -> None:
    """Compare the clients' answers with the operations that the key managers executed."""
    assert len(outcomes) == asked
    assert all(name.startswith(credential) for credential, name in executed), "done as somebody else"
    times = Counter(name for _, name in executed)
    for name, effect, answer, seconds in outcomes:
        may_repeat = effect <= Effect.TOUCH
        assert seconds <= 30.001
        assert may_repeat or times[name] <= 1, "done twice"
        if answer.response is not None:
            assert name_in(answer.response) == name, "the answer to somebody else"
            assert times[name] >= 1
        elif answer.refusal is Refusal.OUTCOME_UNKNOWN:
            assert not may_repeat
        elif answer.refusal is Refusal.BACKEND_FAILED:
            assert may_repeat
        else:
            assert answer.refusal in {Refusal.NO_BACKEND, Refusal.OVERLOADED, Refusal.DEADLINE}
            assert may_repeat or times[name] == 0, "said not to be done, and done"


@settings(max_examples=200, deadline=None)
@given(stories)
def test_no_request_is_lost_or_run_twice_or_answered_to_another_client(story: Story) -> None:
    trio.run(live_through, story, clock=MockClock(autojump_threshold=0))


@in_virtual_time
async def test_waiters_of_a_removed_backend_are_served_by_its_replacement() -> None:
    async with deployment("before", "after", max_sessions=1) as it:
        before, after = it.backends
        it.balancer.backends = (before,)
        it.key_managers[0].operation_cost = 1.0
        given_to: list[Answer] = []

        async def create(number: int) -> None:
            given_to.append(await it.ask(ask(f"key-{number}", Operation.CREATE)))

        async with trio.open_nursery() as clients:
            for number in range(5):
                clients.start_soon(create, number)
            await trio.sleep(0.5)  # the first is being answered, the others wait
            it.balancer.backends = (after,)
            before.close("removed")

        assert [answer.refusal for answer in given_to] == [None] * 5
        assert [len(key_manager.executed) for key_manager in it.key_managers] == [1, 4]
        it.balancer.backends = (before,)
        assert "the key manager has left this address" in (await it.ask(ask("key"))).detail
