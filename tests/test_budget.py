"""Budgets: a fraction of the requests and a floor; tokens that come with time."""

from gateway.budget import RetryBudget, TokenBucket


def test_retries_are_a_fraction_of_the_requests_at_any_load() -> None:
    budget = RetryBudget(fraction=0.2, floor=0.0, most=20)
    granted = 0
    for _ in range(10_000):
        budget.request()
        granted += budget.withdraw(now=0.0)
    assert 1990 <= granted <= 2001  # one more from the bucket that the floor fills


def test_quiet_times_have_a_floor() -> None:
    budget = RetryBudget(fraction=0.2, floor=1.0)
    assert [budget.withdraw(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert budget.withdraw(1.0)
    assert not budget.withdraw(1.0)


def test_what_is_saved_up_is_bounded() -> None:
    budget = RetryBudget(fraction=0.2, floor=0.0, most=20)
    for _ in range(100_000):
        budget.request()
    assert sum(budget.withdraw(0.0) for _ in range(100)) <= 22


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=10, burst=5)
    assert sum(bucket.take(0.0) for _ in range(20)) == 5
    assert sum(bucket.take(1.0) for _ in range(20)) == 5  # ten came, five fit
    taken = sum(bucket.take(2.0 + step / 100) for step in range(1000))
    assert 103 <= taken <= 106
