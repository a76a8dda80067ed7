"""Turns: how many a tick has, whose comes first, and that none is lost."""

from collections import Counter
from itertools import pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.front.turns import Share, Turns

FREE = 8  # turns that are free between two ticks
LANES = 2  # queued turns a tick


class Crowd:
    """Takes turns for principals, and notes whose came when, by tick."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.turns = Turns(clock=lambda: 0.0)
        self.shares: dict[str, Share] = {}
        self.order: list[str] = []
        self.ticks: Counter[int] = Counter()
        self.tick = 0
        self.charges: dict[str, float] = {}
        self._nursery = nursery

    def asks(self, principal: str, times: int = 1, rounds: int = 1) -> None:
        """Have so many connections of a principal take so many turns each, one after the other."""
        share = self.shares.setdefault(principal, Share())
        for _ in range(times):
            self._nursery.start_soon(self._ask, principal, share, rounds)

    async def _ask(self, principal: str, share: Share, rounds: int) -> None:
        for _ in range(rounds):
            await trio.lowlevel.checkpoint()
            turn = self.turns.take(share)
            if turn is not None:
                await turn
            self.order.append(principal)
            self.ticks[self.tick] += 1
            if principal in self.charges:
                self.turns.charge(share, self.charges[principal])

    async def count_ticks(self) -> None:
        """Count the event loop's ticks while a turn is waited for."""
        while True:
            self.tick += 1
            await trio.lowlevel.checkpoint()


async def all_done(crowd: Crowd) -> None:
    """Wait until nobody waits for a turn."""
    await wait_all_tasks_blocked()
    assert repr(crowd.turns) == "<Turns: 0 waiting, 0 lanes>"
    assert not any(share.waiting for share in crowd.shares.values())


def test_a_few_turns_are_there_at_once() -> None:
    turns, share = Turns(clock=lambda: 0.0), Share()
    assert [turns.take(share) for _ in range(FREE)] == [None] * FREE


async def test_a_turn_beyond_the_free_ones_waits_for_the_next_tick_and_no_longer() -> None:
    turns, share = Turns(clock=lambda: 0.0), Share()
    for _ in range(10):
        assert [turns.take(share) for _ in range(FREE)] == [None] * FREE
        turn = turns.take(share)
        assert turn is not None
        await turn


def test_turns_that_are_far_apart_are_all_there_at_once() -> None:
    """At such a rate no tick has many: nothing need wait to find out whether a new one has begun."""
    now = 0.0
    turns, share = Turns(clock=lambda: now), Share()
    for _ in range(100):
        assert turns.take(share) is None
        now += 0.005


async def test_a_tick_has_a_bounded_number_of_turns_of_a_busy_principal() -> None:
    async with trio.open_nursery() as nursery, trio.open_nursery() as busy:
        crowd = Crowd(busy)
        nursery.start_soon(crowd.count_ticks)
        crowd.asks("busy", 200, rounds=3)
        while len(crowd.order) < 600:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert max(crowd.ticks.values()) <= FREE + 2 * LANES
    assert crowd.turns.waiting == 0


async def test_a_busy_principal_gets_every_turn_if_nobody_else_wants_one() -> None:
    async with trio.open_nursery() as nursery, trio.open_nursery() as busy:
        crowd = Crowd(busy)
        nursery.start_soon(crowd.count_ticks)
        crowd.asks("busy", 400)
        while len(crowd.order) < 400:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert crowd.tick <= 400 / LANES + 5


async def test_a_newcomer_passes_the_queue_of_a_busy_principal() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        crowd.asks("busy", 100, rounds=5)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        before = len(crowd.order)
        crowd.asks("calm")
        while "calm" not in crowd.order:
            await trio.lowlevel.checkpoint()
        assert crowd.order.index("calm") - before <= 3 * LANES
    await all_done(crowd)


async def test_a_neighbour_with_one_connection_never_waits_for_more_than_a_few_turns() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        crowd.asks("busy", 100, rounds=20)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        crowd.asks("calm", rounds=200)
    places = [place for place, principal in enumerate(crowd.order) if principal == "calm"]
    assert len(places) == 200
    assert max(later - place for place, later in pairwise(places)) <= FREE
    await all_done(crowd)


async def test_principals_with_queues_get_the_same_number_of_turns() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        for principal, connections in [("a", 300), ("b", 50), ("c", 50)]:
            crowd.asks(principal, connections, rounds=10)
        for _ in range(60):
            await trio.lowlevel.checkpoint()
        begin = len(crowd.order)
        while len(crowd.order) < begin + 600:
            await trio.lowlevel.checkpoint()
        shares = Counter(crowd.order[begin : begin + 600])
        assert all(190 <= shares[principal] <= 210 for principal in "abc")
    await all_done(crowd)


async def test_a_principal_that_is_charged_gets_as_many_turns_less() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        crowd.charges["heavy"] = 4
        for principal in ("heavy", "light"):
            crowd.asks(principal, 100, rounds=10)
        for _ in range(60):
            await trio.lowlevel.checkpoint()
        begin = len(crowd.order)
        while len(crowd.order) < begin + 600:
            await trio.lowlevel.checkpoint()
        shares = Counter(crowd.order[begin : begin + 600])
        assert shares["light"] == pytest.approx(5 * shares["heavy"], rel=0.1)
    await all_done(crowd)


async def test_a_charge_uses_up_the_free_turns_of_its_tick() -> None:
    turns, share = Turns(clock=lambda: 0.0), Share()
    assert turns.take(share) is None
    turns.charge(share, 20)
    turn = turns.take(share)
    assert turn is not None
    await turn
    assert turns.take(share) is None


@pytest.mark.parametrize("after", [0, 1, 5, 30])
async def test_a_turn_that_is_cancelled_is_nobodys_loss(after: int) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as cancelled:
                other = Crowd(cancelled)
                other.turns, other.order = crowd.turns, crowd.order
                other.asks("gone", 100)
                crowd.asks("here", 100)
                for _ in range(after):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
    assert crowd.order.count("here") == 100
    await all_done(crowd)


async def test_debts_end_with_the_queue() -> None:
    """A principal that was charged while nobody waited is not put off behind all that comes later."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        crowd.charges["heavy"] = 1000
        crowd.asks("heavy", 30)
        await all_done(crowd)
        crowd.charges.clear()
        crowd.asks("light", 100, rounds=4)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        crowd.asks("heavy")
        before = len(crowd.order)
        while "heavy" not in crowd.order[before:]:
            await trio.lowlevel.checkpoint()
        assert crowd.order.index("heavy", before) - before <= FREE
    await all_done(crowd)
