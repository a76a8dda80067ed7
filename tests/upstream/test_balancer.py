"""Tests of the balancer: the best backend first, equals in turn, failing backends last."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import BackendOptions
from gateway.kmip.messages import Version
from gateway.policy import Effect
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.breaker import Breaker
from gateway.upstream.health import Health, Verdict
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import in_virtual_time


class FakePool:
    """The part of a pool that the balancer uses."""

    def __init__(self) -> None:
        self.has_room = True
        self.is_failing = False
        self.room = 1


def backend(name: str, *, weight: int = 1, priority: int = 0, writable: bool = True) -> Backend:
    pools: dict[str, Any] = {"red": FakePool(), "blue": FakePool()}
    return Backend(
        name, Slots(1), pools, options=BackendOptions(weight=weight, priority=priority, role="rw" if writable else "ro")
    )


def pool_of(it: Backend, credential: str = "red") -> FakePool:
    pool: Any = it.pools[credential]
    assert isinstance(pool, FakePool)
    return pool


def turn(it: Backend, verdict: Verdict) -> None:
    """Report a verdict of the first health check, which counts at once."""
    it.health = Health()
    it.health.checked(verdict)


def ejects(it: Backend, credential: str = "red", effect: Effect = Effect.READ) -> None:
    """Fail exchanges with a credential until the backend is ejected."""
    now = trio.current_time()
    for _ in range(3):
        it.breaker.failed(credential, effect, now, now)


def order(
    balancer: Balancer, credential: str = "red", effect: Effect = Effect.READ, version: Version = (1, 4)
) -> list[str]:
    return [each.name for each in balancer.order(credential, effect, version)]


def first(balancer: Balancer, **what: Any) -> str:
    """Return the backend that would get a request."""
    return order(balancer, **what)[0]


def firsts(balancer: Balancer, number: int) -> list[str]:
    return [next(balancer.order("red", Effect.READ, (1, 4))).name for _ in range(number)]


# In turn -----------------------------------------------------------------------------------------------------------


def test_each_gets_every_fourth_request() -> None:
    served = firsts(Balancer([backend(name) for name in "abcd"]), 400)

    assert Counter(served) == {"a": 100, "b": 100, "c": 100, "d": 100}
    assert served[:8] == served[4:12]


def test_each_is_tried_once() -> None:
    balancer = Balancer([backend(name) for name in "abcd"])

    for _ in range(10):
        assert sorted(order(balancer)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("how", ["failing", "without room", "down"])
def test_a_skipped_backends_share_is_spread_over_all_others(how: str) -> None:
    backends = [backend(name) for name in "abcd"]
    pool_of(backends[1]).is_failing = how == "failing"
    pool_of(backends[1]).has_room = how != "without room"
    if how == "down":
        turn(backends[1], Verdict.FAILS)

    assert Counter(firsts(Balancer(backends), 300)) == {"a": 100, "c": 100, "d": 100}


def test_weights_are_shares_and_are_spread_smoothly() -> None:
    served = firsts(Balancer([backend("a", weight=5), backend("b"), backend("c")]), 700)

    assert Counter(served) == {"a": 500, "b": 100, "c": 100}
    assert served[:7] == ["a", "a", "b", "a", "c", "a", "a"]
    assert max(len(run) for run in "".join(served).replace("b", " ").replace("c", " ").split()) <= 4


@given(st.lists(st.sets(st.integers(0, 3)), max_size=200))
def test_a_backend_that_was_away_gets_its_usual_share_afterwards(away: list[set[int]]) -> None:
    backends = [backend(name) for name in "abcd"]
    balancer = Balancer(backends)
    for failing in away:
        for index, each in enumerate(backends):
            pool_of(each).is_failing = index in failing
        firsts(balancer, 1)
    for each in backends:
        pool_of(each).is_failing = False

    served = Counter(firsts(balancer, 40))

    assert max(served.values()) - min(served[each.name] for each in backends) <= 4


def test_the_credentials_take_turns_together() -> None:
    balancer = Balancer([backend("a"), backend("b")])
    served = Counter(first(balancer, credential=credential) for credential in ["red", "blue"] * 50)

    assert served == {"a": 50, "b": 50}


# Ranks -------------------------------------------------------------------------------------------------------------


def test_ready_backends_come_first_and_standby_ones_last() -> None:
    room, waiting, failing, down, standby = (
        backend(name) for name in ("room", "waiting", "failing", "down", "standby")
    )
    pool_of(waiting).has_room = False
    pool_of(failing).is_failing = True
    turn(down, Verdict.FAILS)
    turn(standby, Verdict.STANDBY)

    balancer = Balancer([standby, down, failing, waiting, room])

    assert order(balancer) == ["room", "waiting", "failing", "down", "standby"]


@in_virtual_time
async def test_overdue_comes_after_waiting_and_an_open_breaker_after_both() -> None:
    slow, waiting, ejected, room = (backend(name) for name in ("slow", "waiting", "ejected", "room"))
    slow.breaker.overdue("blue", Effect.READ, "request")
    pool_of(waiting).has_room = False
    ejects(ejected)

    balancer = Balancer([ejected, slow, waiting, room])

    assert order(balancer) == ["room", "waiting", "slow", "ejected"]


@in_virtual_time
async def test_an_answer_ends_being_overdue() -> None:
    a, b = backend("a"), backend("b")
    a.breaker.overdue("red", Effect.READ, "request")
    balancer = Balancer([a, b])
    assert firsts(balancer, 3) == ["b"] * 3
    a.breaker.answered("red", Effect.READ, trio.current_time())
    assert sorted(firsts(balancer, 2)) == ["a", "b"]


@in_virtual_time
async def test_a_half_open_backend_gets_one_request_at_first() -> None:
    a, b = backend("a"), backend("b")
    ejects(a)
    await trio.sleep(1)
    balancer = Balancer([a, b])
    assert set(firsts(balancer, 4)) == {"a", "b"}
    trials = a.breaker.enter("red", Effect.READ, trio.current_time())
    assert firsts(balancer, 3) == ["b"] * 3
    a.breaker.leave(trials)
    assert set(firsts(balancer, 4)) == {"a", "b"}


@in_virtual_time
async def test_a_backend_that_failed_once_keeps_its_share() -> None:
    a, b = backend("a"), backend("b")
    a.breaker.failed("red", Effect.READ, 0.0, trio.current_time())

    assert Counter(firsts(Balancer([a, b]), 40)) == {"a": 20, "b": 20}


def test_a_credentials_failure_is_its_own() -> None:
    a, b = backend("a"), backend("b")
    pool_of(a, "red").is_failing = True
    balancer = Balancer([a, b])

    assert [first(balancer, credential="red") for _ in range(4)] == ["b", "b", "b", "b"]
    assert sorted(first(balancer, credential="blue") for _ in range(4)) == ["a", "a", "b", "b"]


def test_a_lower_tier_serves_only_where_a_higher_one_can_not() -> None:
    near, far = backend("near", priority=0), backend("far", priority=1)
    balancer = Balancer([far, near])
    assert firsts(balancer, 3) == ["near", "near", "near"]

    pool_of(near).has_room = False
    assert order(balancer) == ["near", "far"]  # a request waits in its own tier before the next tier is tried

    pool_of(near).is_failing = True
    assert order(balancer) == ["far", "near"]


def test_the_order_is_decided_anew_for_each_next_backend() -> None:
    a, b, c = backend("a"), backend("b"), backend("c")
    trying = Balancer([a, b, c]).order("red", Effect.READ, (1, 4))
    assert next(trying).name == "a"

    pool_of(b).is_failing = True  # while a was tried

    assert [each.name for each in trying] == ["c", "b"]


def test_backends_may_be_replaced_while_a_request_is_tried() -> None:
    """Removed backends fail their waiting requests, which must find the new backends."""
    balancer = Balancer([backend("a"), backend("b"), stays := backend("c")])
    trying = balancer.order("red", Effect.READ, (1, 4))
    assert next(trying).name == "a"

    balancer.backends = (stays, backend("d"))
    assert next(trying).name in "cd"
    balancer.backends = (*balancer.backends, backend("e"))

    assert len({each.name for each in trying} - {"a", "b"}) == 2
    assert sorted(order(balancer)) == ["c", "d", "e"]


@given(st.integers(1, 6), st.integers(1, 6), st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=20))
def test_a_fleet_that_gets_smaller_or_larger_is_shared_evenly(before: int, after: int, busy: list[set[int]]) -> None:
    backends = [backend(name) for name in "abcdef"]
    balancer = Balancer(backends[:before])
    for full in busy:
        for index, each in enumerate(backends):
            pool_of(each).has_room = index not in full
        firsts(balancer, 1)
    for each in backends:
        pool_of(each).has_room = True

    balancer.backends = tuple(backends[:after])

    assert Counter(firsts(balancer, after * 10)) == {each.name: 10 for each in backends[:after]}


# Roles and versions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", Effect, ids=lambda effect: effect.name)
def test_changes_go_to_writable_backends(effect: Effect) -> None:
    balancer = Balancer([backend("copy", writable=False), backend("master")])
    reads = effect <= Effect.TOUCH

    assert sorted(order(balancer, effect=effect)) == (["copy", "master"] if reads else ["master"])


def test_no_backend_is_tried_if_none_is_writable() -> None:
    assert order(Balancer([backend("copy", writable=False)]), effect=Effect.MUTATE) == []


def test_backends_without_the_version_are_passed_over_unless_none_has_it() -> None:
    old, new, unasked = backend("old"), backend("new"), backend("unasked")
    old.versions = frozenset({(1, 0), (1, 1)})
    new.versions = frozenset({(1, 4), (2, 1)})
    balancer = Balancer([old, new, unasked])

    assert sorted(order(balancer, version=(2, 1))) == ["new", "unasked"]
    assert sorted(order(Balancer([old, new]), version=(3, 0))) == ["new", "old"]


# Others ------------------------------------------------------------------------------------------------------------


def test_has_other_needs_an_available_backend_that_may_run_the_request() -> None:
    a, b = backend("a"), backend("b")
    balancer = Balancer([a, b])
    assert balancer.has_other([a], "red", Effect.MUTATE, (1, 4))
    assert not Balancer([a]).has_other([a], "red", Effect.READ, (1, 4))

    pool_of(b).is_failing = True
    assert not balancer.has_other([a], "red", Effect.READ, (1, 4))
    assert balancer.has_other([a], "blue", Effect.READ, (1, 4))

    b.versions = frozenset({(1, 0)})
    assert not balancer.has_other([a], "blue", Effect.READ, (1, 4))


@pytest.mark.parametrize(
    ("state", "orders"),
    [
        ("overdue", {"baz"}),  # last of its tier, before the next tier
        ("overdue for changes", {"abz", "baz"}),
        ("open", {"bza"}),
        ("open for changes", {"abz", "baz"}),
        ("open for blue", {"abz", "baz"}),
    ],
)
@in_virtual_time
async def test_a_backend_whose_exchanges_fail_or_are_overdue_comes_later(state: str, orders: set[str]) -> None:
    a, b, z = backend("a"), backend("b"), backend("z", priority=1)
    a.breaker = Breaker(credentials=2)
    effect = Effect.MUTATE if "changes" in state else Effect.READ
    credential = "blue" if "blue" in state else "red"
    if "overdue" in state:
        a.breaker.overdue(credential, effect, "request")
    else:
        for _ in range(3):
            a.breaker.failed(credential, effect, 0.0, trio.current_time())
    balancer = Balancer([a, b, z])

    assert {"".join(order(balancer)) for _ in range(10)} == orders


@in_virtual_time
async def test_has_other_ignores_backends_with_overdue_requests() -> None:
    a, b, c = backend("a"), backend("b"), backend("c", writable=False)
    balancer = Balancer([a, b, c])
    b.breaker.overdue("red", Effect.READ, "request")
    assert balancer.has_other([a], "red", Effect.READ, (1, 4))
    assert not balancer.has_other([a, c], "red", Effect.READ, (1, 4))
    assert not balancer.has_other([a], "red", Effect.MUTATE, (1, 4))
    b.breaker.answered("red", Effect.READ, trio.current_time())
    assert balancer.has_other([a, c], "red", Effect.READ, (1, 4))


@in_virtual_time
async def test_room_elsewhere_counts_backends_that_may_run_the_request() -> None:
    a, b, c, d = backend("a"), backend("b"), backend("c", writable=False), backend("d")
    balancer = Balancer([a, b, c, d])
    pool_of(b).room, pool_of(c).room, pool_of(d).room = 2, 3, 10
    pool_of(d).is_failing = True
    assert balancer.room_elsewhere(a, "red", Effect.READ) == 5
    assert balancer.room_elsewhere(a, "red", Effect.MUTATE) == 2
    b.breaker.overdue("red", Effect.READ, "request")
    assert balancer.room_elsewhere(a, "red", Effect.READ) == 3


def test_serves_elsewhere_needs_good_health_and_a_working_pool() -> None:
    a, b = backend("a"), backend("b")
    balancer = Balancer([a, b])
    assert balancer.serves_elsewhere(a, "red")
    pool_of(b).is_failing = True
    assert not balancer.serves_elsewhere(a, "red")
    assert balancer.serves_elsewhere(a, "blue")
    turn(b, Verdict.FAILS)
    assert not balancer.serves_elsewhere(a, "blue")


def test_least_outstanding_chooses_the_least_load_for_its_weight() -> None:
    a, b, c = backend("a"), backend("b", weight=4), backend("c")
    balancer = Balancer([a, b, c], "least-outstanding")

    a.in_flight, b.in_flight, c.in_flight = 2, 4, 2
    assert firsts(balancer, 2) == ["b", "b"]

    b.in_flight = 12
    assert sorted(firsts(balancer, 4)) == ["a", "a", "c", "c"]


@given(
    states=st.lists(
        st.tuples(st.booleans(), st.booleans(), st.sampled_from(Verdict), st.integers(0, 3), st.integers(1, 5)),
        min_size=1,
        max_size=8,
    )
)
def test_every_backend_is_tried_once_the_better_before_the_worse(
    states: list[tuple[bool, bool, Verdict, int, int]],
) -> None:
    backends = {}
    for number, (has_room, is_failing, verdict, priority, weight) in enumerate(states):
        each = backend(str(number), priority=priority, weight=weight)
        pool_of(each).has_room, pool_of(each).is_failing = has_room, is_failing
        turn(each, verdict)
        backends[each.name] = each

    tried = order(Balancer(backends.values()))

    assert sorted(tried) == sorted(backends)
    available = [backends[name].is_available_to("red", Effect.READ) for name in tried]
    assert available == sorted(available, reverse=True)
    for one, other in pairwise(backends[name] for name in tried):
        if one.is_available_to("red", Effect.READ) and other.is_available_to("red", Effect.READ):
            assert one.options.priority <= other.options.priority


def test_the_policy_changes_at_run_time() -> None:
    balancer = Balancer([], "round-robin")
    assert balancer._takes_turns
    balancer.set_policy("least-outstanding")
    assert not balancer._takes_turns


@in_virtual_time
async def test_a_drained_backend_is_never_tried_not_even_as_the_last() -> None:
    await trio.lowlevel.checkpoint()
    atlanta, london = backend("atlanta"), backend("london")
    balancer = Balancer([atlanta, london])
    atlanta.is_drained = True
    balancer.backends = balancer.backends
    assert firsts(balancer, 3) == ["london"] * 3
    assert order(balancer, effect=Effect.MUTATE) == ["london"]
    preferred = balancer.preferred_backend(["atlanta"], "red", Effect.READ, (1, 4), is_new=False)
    assert preferred is None
    assert [each.name for each in balancer.order("red", Effect.READ, (1, 4), preferred=atlanta)] == ["london"]
    london.is_drained = True
    balancer.backends = balancer.backends
    assert order(balancer) == []
