"""Tests of timers: each fires at its time, unless it was stopped or postponed before."""

import math
from collections.abc import Awaitable, Callable

import trio

from gateway.timers import Timer, TimerHeap
from tests.kit.fake_backends import in_virtual_time


class RecordingHeap:
    """A TimerHeap in a nursery, and the times at which timers fired."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.fired: list[tuple[str, float]] = []
        self.tasks = 0
        self._nursery = nursery
        self.timers = TimerHeap(self._spawn)

    def _spawn(self, run: Callable[[], Awaitable[None]]) -> None:
        self.tasks += 1
        self._nursery.start_soon(run)

    def set(self, timer: Timer, due: float, name: str = "it") -> None:
        self.timers.set(timer, due, lambda: self.fired.append((name, trio.current_time())))


@in_virtual_time
async def test_a_timer_fires_once_at_its_time() -> None:
    async with trio.open_nursery() as nursery:
        heap, timer = RecordingHeap(nursery), Timer()
        heap.set(timer, 5)
        await trio.sleep(20)
        assert heap.fired == [("it", 5)]
        assert timer.due == math.inf


@in_virtual_time
async def test_a_stopped_timer_does_not_fire_and_leaves_the_heap() -> None:
    async with trio.open_nursery() as nursery:
        heap, timer = RecordingHeap(nursery), Timer()
        heap.set(timer, 5)
        timer.stop()
        await trio.sleep(20)
        assert heap.fired == []
        assert repr(heap.timers) == "<TimerHeap of 0 entries>"
        assert not nursery.child_tasks


@in_virtual_time
async def test_a_postponed_timer_fires_at_the_last_time_only() -> None:
    async with trio.open_nursery() as nursery:
        heap, timer = RecordingHeap(nursery), Timer()
        for due in (5, 7, 11, 100):
            heap.set(timer, due)
        await trio.sleep(200)
        assert heap.fired == [("it", 100)]


@in_virtual_time
async def test_a_timer_that_is_brought_forward_fires_at_the_earlier_time() -> None:
    async with trio.open_nursery() as nursery:
        heap, timer = RecordingHeap(nursery), Timer()
        heap.set(timer, 30)
        await trio.sleep(1)
        heap.set(timer, 3)
        await trio.sleep(200)
        assert heap.fired == [("it", 3)]


@in_virtual_time
async def test_a_stopped_timer_can_be_set_again() -> None:
    async with trio.open_nursery() as nursery:
        heap, timer = RecordingHeap(nursery), Timer()
        heap.set(timer, 30)
        timer.stop()
        await trio.sleep(1)
        heap.set(timer, 40, "again")
        await trio.sleep(200)
        assert heap.fired == [("again", 40)]


@in_virtual_time
async def test_an_action_may_set_its_own_timer_again() -> None:
    async with trio.open_nursery() as nursery:
        heap, timer = RecordingHeap(nursery), Timer()
        heap.timers.set(timer, 5, lambda: heap.set(timer, 8))
        await trio.sleep(200)
        assert heap.fired == [("it", 8)]


@in_virtual_time
async def test_many_timers_fire_in_order_with_a_single_task() -> None:
    async with trio.open_nursery() as nursery:
        heap = RecordingHeap(nursery)
        for due in (7, 3, 9, 1, 3):
            heap.set(Timer(), due, str(due))
        await trio.sleep(20)
        assert heap.fired == [("1", 1), ("3", 3), ("3", 3), ("7", 7), ("9", 9)]
        assert heap.tasks == 1


@in_virtual_time
async def test_a_timer_set_for_every_request_has_one_entry_in_the_heap() -> None:
    async with trio.open_nursery() as nursery:
        heap, timer = RecordingHeap(nursery), Timer()
        for _ in range(1000):
            heap.set(timer, trio.current_time() + 5)
            timer.stop()
            await trio.sleep(0.01)
            assert repr(heap.timers) in {"<TimerHeap of 1 entries>", "<TimerHeap of 0 entries>"}
