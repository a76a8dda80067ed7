"""Turns: their number in a tick, their order, and that no turn is lost."""

from collections import Counter
from itertools import pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.front.turns import Share, Turns

FREE = 8  # turns that are free between two ticks
LANES = 2  # queued turns a tick


class Principals:
    """Takes turns for principals, and notes the principal of each turn, by tick."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.turns = Turns(clock=lambda: 0.0)
        self.shares: dict[str, Share] = {}
        self.order: list[str] = []
        self.ticks: Counter[int] = Counter()
        self.tick = 0
        self.charges: dict[str, float] = {}
        self._nursery = nursery

    def asks(self, principal: str, times: int = 1, rounds: int = 1) -> None:
        """Let each of the principal's connections take turns, in sequence."""
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


async def wait_until_idle(principals: Principals) -> None:
    """Wait until no turn waits."""
    await wait_all_tasks_blocked()
    assert repr(principals.turns) == "<Turns: 0 waiting, 0 lanes>"
    assert not any(share.waiting for share in principals.shares.values())


def test_first_turns_of_a_tick_are_free() -> None:
    turns, share = Turns(clock=lambda: 0.0), Share()
    assert [turns.take(share) for _ in range(FREE)] == [None] * FREE


async def test_turn_beyond_the_free_turns_waits_one_tick() -> None:
    turns, share = Turns(clock=lambda: 0.0), Share()
    for _ in range(10):
        assert [turns.take(share) for _ in range(FREE)] == [None] * FREE
        turn = turns.take(share)
        assert turn is not None
        await turn


def test_turns_that_are_far_apart_are_all_there_at_once() -> None:
    """At such a rate a tick has few turns: none needs to wait for a new tick."""
    now = 0.0
    turns, share = Turns(clock=lambda: now), Share()
    for _ in range(100):
        assert turns.take(share) is None
        now += 0.001


async def test_turns_of_a_busy_principal_in_a_tick_are_bounded() -> None:
    async with trio.open_nursery() as nursery, trio.open_nursery() as busy:
        principals = Principals(busy)
        nursery.start_soon(principals.count_ticks)
        principals.asks("busy", 200, rounds=3)
        while len(principals.order) < 600:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert max(principals.ticks.values()) <= FREE + 2 * LANES
    assert principals.turns.waiting == 0


async def test_principal_alone_gets_every_turn() -> None:
    async with trio.open_nursery() as nursery, trio.open_nursery() as busy:
        principals = Principals(busy)
        nursery.start_soon(principals.count_ticks)
        principals.asks("busy", 400)
        while len(principals.order) < 400:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert principals.tick <= 400 / LANES + 5


async def test_a_newcomer_passes_the_queue_of_a_busy_principal() -> None:
    async with trio.open_nursery() as nursery:
        principals = Principals(nursery)
        principals.asks("busy", 100, rounds=5)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        before = len(principals.order)
        principals.asks("calm")
        while "calm" not in principals.order:
            await trio.lowlevel.checkpoint()
        assert principals.order.index("calm") - before <= 3 * LANES
    await wait_until_idle(principals)


async def test_principal_with_one_connection_waits_for_a_few_turns_at_most() -> None:
    async with trio.open_nursery() as nursery:
        principals = Principals(nursery)
        principals.asks("busy", 100, rounds=20)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        principals.asks("calm", rounds=200)
    places = [place for place, principal in enumerate(principals.order) if principal == "calm"]
    assert len(places) == 200
    assert max(later - place for place, later in pairwise(places)) <= FREE
    await wait_until_idle(principals)


async def test_principals_with_queues_get_the_same_number_of_turns() -> None:
    async with trio.open_nursery() as nursery:
        principals = Principals(nursery)
        for principal, connections in [("a", 300), ("b", 50), ("c", 50)]:
            principals.asks(principal, connections, rounds=10)
        for _ in range(60):
            await trio.lowlevel.checkpoint()
        begin = len(principals.order)
        while len(principals.order) < begin + 600:
            await trio.lowlevel.checkpoint()
        shares = Counter(principals.order[begin : begin + 600])
        assert all(190 <= shares[principal] <= 210 for principal in "abc")
    await wait_until_idle(principals)


async def test_charged_turns_are_deducted_later() -> None:
    async with trio.open_nursery() as nursery:
        principals = Principals(nursery)
        principals.charges["heavy"] = 4
        for principal in ("heavy", "light"):
            principals.asks(principal, 100, rounds=10)
        for _ in range(60):
            await trio.lowlevel.checkpoint()
        begin = len(principals.order)
        while len(principals.order) < begin + 600:
            await trio.lowlevel.checkpoint()
        shares = Counter(principals.order[begin : begin + 600])
        assert shares["light"] == pytest.approx(5 * shares["heavy"], rel=0.1)
    await wait_until_idle(principals)


async def test_a_charge_uses_up_the_free_turns_of_its_tick() -> None:
    turns, share = Turns(clock=lambda: 0.0), Share()
    assert turns.take(share) is None
    turns.charge(share, 20)
    turn = turns.take(share)
    assert turn is not None
    await turn
    assert turns.take(share) is None


@pytest.mark.parametrize("after", [0, 1, 5, 30])
async def test_cancelled_turn_leaves_the_queue(after: int) -> None:
    async with trio.open_nursery() as nursery:
        principals = Principals(nursery)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as cancelled:
                other = Principals(cancelled)
                other.turns, other.order = principals.turns, principals.order
                other.asks("gone", 100)
                principals.asks("here", 100)
                for _ in range(after):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
    assert principals.order.count("here") == 100
    await wait_until_idle(principals)


async def test_charges_are_forgotten_when_the_queue_is_empty() -> None:
    """A principal that was charged while no turn waited is not delayed behind later turns."""
    async with trio.open_nursery() as nursery:
        principals = Principals(nursery)
        principals.charges["heavy"] = 1000
        principals.asks("heavy", 30)
        await wait_until_idle(principals)
        principals.charges.clear()
        principals.asks("light", 100, rounds=4)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        principals.asks("heavy")
        before = len(principals.order)
        while "heavy" not in principals.order[before:]:
            await trio.lowlevel.checkpoint()
        assert principals.order.index("heavy", before) - before <= FREE
    await wait_until_idle(principals)
