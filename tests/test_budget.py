"""Budgets: retries in flight, lookups as a share of the requests, tokens that come with time."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.budget import LookupBudget, RetryBudget, TokenBucket
from tests.kit.fake_backends import in_virtual_time

# Retries -------------------------------------------------------------------------------------------------------------


def taken(budget: RetryBudget) -> int:
    """Take every token that there is."""
    number = 0
    while budget.take():
        number += 1
    return number


@pytest.mark.parametrize(("in_flight", "tokens"), [(0, 3), (1, 3), (15, 3), (20, 4), (100, 20), (1000, 200)])
def test_retry_tokens_are_a_share_of_the_requests_in_flight_or_a_few(in_flight: int, tokens: int) -> None:
    budget = RetryBudget(retry_ratio=0.2, min_retries=3)
    budget.in_flight = in_flight
    assert taken(budget) == tokens
    assert not budget.take()


def test_free_tokens_are_those_that_can_be_taken() -> None:
    budget = RetryBudget(retry_ratio=0.2, min_retries=3)
    assert (budget.free, budget.take(), budget.free) == (3, True, 2)
    budget.in_flight = 100
    assert (budget.held, budget.free) == (1, 19)
    budget.change(retry_ratio=0.0, min_retries=0)
    assert (budget.held, budget.free) == (1, 0)


def test_a_retry_token_is_held_until_it_is_given_back() -> None:
    budget = RetryBudget(retry_ratio=0.0, min_retries=1)
    for _ in range(100):
        assert budget.take()
        assert not budget.take()
        budget.give_back()
    assert budget.held == 0


@pytest.mark.parametrize(("ratio", "least", "is_nothing"), [(0.0, 0, True), (0.1, 0, False), (0.0, 1, False)])
def test_a_retry_budget_without_share_and_floor_is_nothing(ratio: float, least: int, is_nothing: bool) -> None:
    assert RetryBudget(retry_ratio=ratio, min_retries=least).is_nothing is is_nothing


async def retry(budget: RetryBudget, name: str, order: list[str], seconds: float = 1.0) -> None:
    """Wait for a token, and hold it for some time."""
    await budget.wait()
    order.append(name)
    try:
        await trio.sleep(seconds)
    finally:
        budget.give_back()


@in_virtual_time
async def test_retries_without_a_token_wait_for_one_in_turn() -> None:
    budget, order = RetryBudget(retry_ratio=0.0, min_retries=1), list[str]()
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(retry, budget, name, order)
            await wait_all_tasks_blocked()
        await trio.sleep(0.5)
        assert order == ["a"]
    assert order == ["a", "b", "c"]
    assert trio.current_time() == 3
    assert budget.held == 0


@in_virtual_time
async def test_a_newcomer_does_not_pass_the_retries_that_wait() -> None:
    budget, order = RetryBudget(retry_ratio=0.2, min_retries=1), list[str]()
    assert budget.take()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retry, budget, "a", order)
        await wait_all_tasks_blocked()
        budget.in_flight = 10
        assert not budget.take()
        nursery.start_soon(retry, budget, "b", order)  # it finds that there are two tokens by now
        await wait_all_tasks_blocked()
        assert order == ["a"]
        budget.give_back()


@in_virtual_time
async def test_a_retry_that_is_cancelled_while_it_waits_keeps_no_token() -> None:
    budget, order = RetryBudget(retry_ratio=0.0, min_retries=1), list[str]()
    assert budget.take()
    with trio.move_on_after(1):
        await budget.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retry, budget, "a", order)
        await wait_all_tasks_blocked()
        budget.give_back()
    assert order == ["a"]
    assert budget.held == 0


@in_virtual_time
async def test_a_retry_that_is_cancelled_as_its_turn_comes_passes_the_token_on() -> None:
    budget, order = RetryBudget(retry_ratio=0.0, min_retries=1), list[str]()
    assert budget.take()
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_and_give_back, scope, budget)
            await budget.wait()
        nursery.start_soon(retry, budget, "a", order)
    assert order == ["a"]
    assert budget.held == 0


async def _cancel_and_give_back(scope: trio.CancelScope, budget: RetryBudget) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()
    budget.give_back()


# Lookups -------------------------------------------------------------------------------------------------------------


def test_lookups_are_a_share_of_the_requests_at_any_load() -> None:
    budget = LookupBudget(lookup_ratio=0.2, min_lookups_per_second=0.0, most=20)
    granted = 0
    for _ in range(10_000):
        budget.request()
        granted += budget.withdraw(now=0.0)
    assert 1990 <= granted <= 2001  # one more from the bucket that the floor fills


def test_lookups_have_a_floor_in_quiet_times() -> None:
    budget = LookupBudget(lookup_ratio=0.2, min_lookups_per_second=1.0)
    assert [budget.withdraw(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert budget.withdraw(1.0)
    assert not budget.withdraw(1.0)


def test_lookups_that_are_saved_up_are_bounded() -> None:
    budget = LookupBudget(lookup_ratio=0.2, min_lookups_per_second=0.0, most=20)
    for _ in range(100_000):
        budget.request()
    assert sum(budget.withdraw(0.0) for _ in range(100)) <= 22


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=10, burst=5)
    assert sum(bucket.take(0.0) for _ in range(20)) == 5
    assert sum(bucket.take(1.0) for _ in range(20)) == 5  # ten came, five fit
    later = sum(bucket.take(2.0 + step / 100) for step in range(1000))
    assert 103 <= later <= 106


def test_a_changed_retry_budget_keeps_the_tokens_that_are_held() -> None:
    budget = RetryBudget(retry_ratio=0.0, min_retries=1)
    assert budget.take()
    assert not budget.take()
    budget.change(retry_ratio=0.0, min_retries=2)
    assert budget.take()
    budget.change(retry_ratio=0.0, min_retries=1)
    assert not budget.take()


def test_another_share_of_lookups_keeps_the_saved_ones() -> None:
    budget = LookupBudget(lookup_ratio=1.0, min_lookups_per_second=0.0)
    budget.request()
    budget.change(lookup_ratio=0.0, min_lookups_per_second=0.0)
    assert budget.withdraw(0.0)
