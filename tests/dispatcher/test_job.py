"""Jobs: route, waits, failures, and the resources that a request holds."""

import pytest
import trio

from gateway.budget import RetryBudget
from gateway.config import FailoverConfig, ReplicationConfig
from gateway.dispatcher.job import Budgets, DispatcherSettings, Job
from gateway.kmip.decode import decode_response
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation
from gateway.policy import effect_of
from gateway.upstream.backend import Backend
from gateway.upstream.session import Session
from gateway.upstream.slots import Slots
from tests.kit.deployment import principal
from tests.kit.fake_backends import LIMITS, FakeStream, answer_to, ask, in_virtual_time

ATLANTA, LONDON = (Backend(name, Slots(1), {}) for name in ("atlanta", "london"))


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


def job(
    request: Request | None = None,
    *,
    retries: RetryBudget | None = None,
    payer: FakePayer | None = None,
) -> Job:
    request = request or ask("key")
    retries = retries or RetryBudget(retry_ratio=0.2, min_retries=3)
    settings, now = DispatcherSettings(), trio.current_time()
    return Job(request, principal("red"), effect_of(request), settings, retries, lambda: False, payer, now)


@pytest.mark.parametrize(
    ("operation", "is_read"), [(Operation.GET, True), (Operation.LOCATE, True), (Operation.ENCRYPT, False)]
)
@in_virtual_time
async def test_a_job_is_a_read_if_it_may_be_repeated(operation: Operation, is_read: bool) -> None:
    await trio.sleep(7)
    made = job(ask("key", operation))
    assert (made.is_read, made.deadline) == (is_read, 37.0)


@in_virtual_time
async def test_each_round_tries_each_backend_of_its_route_once() -> None:
    made = job()
    for number in (1, 2):
        made.begin_round((iter((ATLANTA, LONDON)), LONDON, ()))
        assert [made.next_backend() for _ in range(3)] == [ATLANTA, LONDON, None]
        assert (made.tried, made.rounds, made.preferred) == ([ATLANTA, LONDON], number, LONDON)


@in_virtual_time
async def test_a_job_is_tied_to_its_source_or_its_preferred_backend() -> None:
    preferring, bound = job(), job()
    preferring.start_at(ATLANTA, only=False)
    bound.start_at(ATLANTA, only=True)
    assert [preferring.is_tied_to(backend) for backend in (ATLANTA, LONDON)] == [True, False]
    assert all(bound.is_tied_to(backend) for backend in (ATLANTA, LONDON))
    assert not job().is_tied_to(ATLANTA)


@in_virtual_time
async def test_failures_are_kept_until_they_are_taken() -> None:
    made = job()
    made.add_failure(ATLANTA, 1.0)
    made.add_failure(LONDON, 2.0)
    assert made.take_failures() == [(ATLANTA, 1.0), (LONDON, 2.0)]
    assert not made.failures


@in_virtual_time
async def test_a_second_race_begins_only_when_the_first_is_over() -> None:
    made, session = job(), Session(FakeStream(), "atlanta", limits=LIMITS)
    first = made.join_race(session)
    assert made.join_race(session) is first
    assert made.is_racing
    first.over()
    assert not made.is_racing
    assert made.join_race(session) is not first


@in_virtual_time
async def test_a_second_session_is_tried_once_for_a_doubt() -> None:
    made = job()
    assert [made.doubt_once() for _ in range(3)] == [True, False, False]


@in_virtual_time
async def test_a_token_is_taken_once_and_released_at_the_end() -> None:
    budget = RetryBudget(retry_ratio=0.0, min_retries=1)
    made, other = job(retries=budget), job(retries=budget)
    assert await made.get_token()
    assert await made.get_token()
    assert budget.held == 1
    assert not await other.get_token(2.0)
    assert trio.current_time() == 2.0
    made.release()
    assert budget.held == 0


@in_virtual_time
async def test_without_any_token_a_request_does_not_wait() -> None:
    assert not await job(retries=RetryBudget(retry_ratio=0.0, min_retries=0)).get_token()
    assert trio.current_time() == 0


@in_virtual_time
async def test_held_answers_are_within_the_limit_and_released_at_the_end() -> None:
    response = decode_response(answer_to(ask("key")))
    payer = FakePayer(len(response.frame))
    made = job(payer=payer)
    assert made.hold(response)
    assert not made.hold(response)
    made.release()
    assert (payer.held, made.held) == (0, 0)


def test_each_identity_has_budgets_of_its_own() -> None:
    budgets = Budgets(
        DispatcherSettings(
            failover=FailoverConfig(retry_ratio=0.0, min_retries=1),
            replication=ReplicationConfig(lookup_ratio=0.0, min_lookups_per_second=0.1),
        )
    )
    for identity in ("red", "blue"):
        assert [budgets.retries[identity].take() for _ in range(2)] == [True, False]
        assert [budgets.lookups[identity].withdraw(0.0) for _ in range(2)] == [True, False]
    assert repr(budgets) == "<Budgets of 2 identities>"
