"""Alarms ring at their time, and only those that were not stopped or put off until then."""

import math
from collections.abc import Awaitable, Callable

import trio

from gateway.alarm import Alarm, Alarms
from tests.kit.fake_backends import in_virtual_time


class Board:
    """Alarms in a nursery, and when they rang."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.rang: list[tuple[str, float]] = []
        self.tasks = 0
        self._nursery = nursery
        self.alarms = Alarms(self._spawn)

    def _spawn(self, run: Callable[[], Awaitable[None]]) -> None:
        self.tasks += 1
        self._nursery.start_soon(run)

    def set(self, alarm: Alarm, due: float, name: str = "it") -> None:
        self.alarms.set(alarm, due, lambda: self.rang.append((name, trio.current_time())))


@in_virtual_time
async def test_an_alarm_rings_once_at_its_time() -> None:
    async with trio.open_nursery() as nursery:
        board, alarm = Board(nursery), Alarm()
        board.set(alarm, 5)
        await trio.sleep(20)
        assert board.rang == [("it", 5)]
        assert alarm.due == math.inf


@in_virtual_time
async def test_an_alarm_that_is_stopped_does_not_ring_and_is_forgotten() -> None:
    async with trio.open_nursery() as nursery:
        board, alarm = Board(nursery), Alarm()
        board.set(alarm, 5)
        alarm.stop()
        await trio.sleep(20)
        assert board.rang == []
        assert repr(board.alarms) == "<Alarms 0 listed>"
        assert not nursery.child_tasks


@in_virtual_time
async def test_an_alarm_that_is_put_off_rings_then_and_not_before() -> None:
    async with trio.open_nursery() as nursery:
        board, alarm = Board(nursery), Alarm()
        for due in (5, 7, 11, 100):
            board.set(alarm, due)
        await trio.sleep(200)
        assert board.rang == [("it", 100)]


@in_virtual_time
async def test_an_alarm_that_is_brought_forward_rings_at_the_earlier_time() -> None:
    async with trio.open_nursery() as nursery:
        board, alarm = Board(nursery), Alarm()
        board.set(alarm, 30)
        await trio.sleep(1)
        board.set(alarm, 3)
        await trio.sleep(200)
        assert board.rang == [("it", 3)]


@in_virtual_time
async def test_an_alarm_that_was_stopped_can_be_set_again() -> None:
    async with trio.open_nursery() as nursery:
        board, alarm = Board(nursery), Alarm()
        board.set(alarm, 30)
        alarm.stop()
        await trio.sleep(1)
        board.set(alarm, 40, "again")
        await trio.sleep(200)
        assert board.rang == [("again", 40)]


@in_virtual_time
async def test_an_alarm_may_be_set_by_what_it_rings() -> None:
    async with trio.open_nursery() as nursery:
        board, alarm = Board(nursery), Alarm()
        board.alarms.set(alarm, 5, lambda: board.set(alarm, 8))
        await trio.sleep(200)
        assert board.rang == [("it", 8)]


@in_virtual_time
async def test_many_alarms_ring_in_their_order_and_one_task_looks_after_all() -> None:
    async with trio.open_nursery() as nursery:
        board = Board(nursery)
        for due in (7, 3, 9, 1, 3):
            board.set(Alarm(), due, str(due))
        await trio.sleep(20)
        assert board.rang == [("1", 1), ("3", 3), ("3", 3), ("7", 7), ("9", 9)]
        assert board.tasks == 1


@in_virtual_time
async def test_an_alarm_that_is_set_for_every_request_is_listed_once() -> None:
    async with trio.open_nursery() as nursery:
        board, alarm = Board(nursery), Alarm()
        for _ in range(1000):
            board.set(alarm, trio.current_time() + 5)
            alarm.stop()
            await trio.sleep(0.01)
            assert repr(board.alarms) in {"<Alarms 1 listed>", "<Alarms 0 listed>"}
