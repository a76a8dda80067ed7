"""Tests of the fair queue: principals take turns, and the requests of each keep their order."""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.upstream.queue import FairQueue


class Waiter(NamedTuple):
    """The principal and the arrival of a waiting request."""

    principal: str
    since: float


def queue_of(principals: str) -> FairQueue[Waiter]:
    """Return a queue to which these principals, a letter each, were added a second apart."""
    queue: FairQueue[Waiter] = FairQueue()
    for second, principal in enumerate(principals):
        queue.append(Waiter(principal, float(second)))
    return queue


def served(queue: FairQueue[Waiter]) -> str:
    return "".join(queue.popleft().principal for _ in range(len(queue)))


@pytest.mark.parametrize(
    ("came", "turns"),
    [
        ("", ""),
        ("aaa", "aaa"),
        ("aaaab", "abaaa"),
        ("aaaabb", "ababaa"),
        ("aabbcc", "abcabc"),
        ("abcaaa", "abcaaa"),
    ],
)
def test_turns_are_taken_between_principals(came: str, turns: str) -> None:
    assert served(queue_of(came)) == turns


def test_a_principal_that_comes_again_comes_after_all_that_wait() -> None:
    queue = queue_of("aab")
    assert queue.popleft().principal == "a"

    queue.append(Waiter("c", 3.0))

    assert served(queue) == "bac"


def test_waiters_of_one_principal_are_served_in_order() -> None:
    queue = queue_of("abab")

    assert [queue.popleft() for _ in range(4)] == [("a", 0), ("b", 1), ("a", 2), ("b", 3)]


def test_a_waiter_that_leaves_takes_no_turn() -> None:
    queue = queue_of("aab")

    queue.remove(Waiter("a", 0.0))

    assert len(queue) == 2
    assert Waiter("a", 0.0) not in queue
    assert served(queue) == "ab"
    assert repr(queue) == "<FairQueue 0 waiting, of 0 principals>"


def test_the_oldest_waiter_of_all_principals_is_known() -> None:
    queue = queue_of("aabc")
    queue.popleft()

    assert queue.oldest() == ("a", 1)
    assert [queue.since(place) for place in range(4)] == [1, 2, 3, float("inf")]


@pytest.mark.parametrize(
    ("came", "newcomer", "makes_place"),
    [
        ("aaaab", "b", ("a", 3)),  # the newest of the principal that fills it
        ("aab", "b", None),  # two of one principal and one of the other: neither fills it
        ("aaab", "b", ("a", 2)),
        ("aaaa", "a", None),  # the principal that fills it gets no place
        ("aaaabbbc", "c", ("a", 3)),
    ],
)
def test_a_full_queue_rejects_the_principal_that_fills_it(
    came: str, newcomer: str, makes_place: tuple[str, float] | None
) -> None:
    """The newcomer is in the queue already."""
    assert queue_of(came).newest_of_the_longest(newcomer) == makes_place


@settings(max_examples=500)
@given(st.lists(st.sampled_from(["a", "b", "c", "turn", "first leaves", "last leaves"]), max_size=60))
def test_no_waiter_is_lost_and_no_principal_is_served_twice_in_a_row(steps: list[str]) -> None:
    queue: FairQueue[Waiter] = FairQueue()
    there: list[Waiter] = []
    last, passed_over = "", set[Waiter]()
    for second, step in enumerate(steps):
        if step in "abc":
            there.append(Waiter(step, float(second)))
            queue.append(there[-1])
        elif step == "turn" and there:
            gone = queue.popleft()
            first_of_its_own = next(waiter for waiter in there if waiter.principal == gone.principal)
            assert gone == first_of_its_own
            assert gone.principal != last or not passed_over & set(there)
            there.remove(gone)
            last = gone.principal
            passed_over = {waiter for waiter in there if waiter.principal != last}
        elif there:
            gone = queue.oldest() if step == "first leaves" else there[-1]
            assert gone in {there[0], there[-1]}
            queue.remove(gone)
            there.remove(gone)
        assert len(queue) == len(there)
        assert [queue.since(place) for place in range(len(there))] == [waiter.since for waiter in there]

    assert sorted(served(queue)) == sorted(waiter.principal for waiter in there)


def test_the_queue_lists_principals_and_waiters() -> None:
    queue = queue_of("aab")
    assert [waiter.since for waiter in queue.all()] == [0, 1, 2]
    assert (queue.has("b"), queue.has("c")) == (True, False)
    assert list(queue.principals()) == ["a", "b"]
    assert [queue.count(principal) for principal in "abc"] == [2, 1, 0]
    queue.remove(Waiter("b", 2.0))
    assert list(queue.principals()) == ["a"]


def test_a_passed_over_principal_gets_a_turn_only_if_alone() -> None:
    queue = queue_of("aabc")
    turns = [queue.popleft(passed_over=["a"]).principal for _ in range(4)]
    assert turns == ["b", "c", "a", "a"]
