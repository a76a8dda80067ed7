"""Waits for a descriptor: to read, to write, and by a callback; their ends."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing

from gateway.readiness import Readiness


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    with here, there:
        yield here, there


Ends = tuple[socket.socket, socket.socket]


async def _read(ready: Readiness) -> None:
    await ready.readable()


async def _write(ready: Readiness) -> None:
    await ready.writable()


async def test_bytes_end_a_wait_to_read(ends: Ends) -> None:
    here, there = ends
    ready = Readiness(here.fileno())
    for byte in (b"1", b"2", b"3"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, ready)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            there.send(byte)
        assert here.recv(9) == byte
    ready.close()


async def test_bytes_that_came_before_the_wait_end_it(ends: Ends) -> None:
    here, there = ends
    ready = Readiness(here.fileno())
    there.send(b"1")
    await ready.readable()
    await trio.sleep(0.01)
    await ready.readable()  # still unread
    assert here.recv(9) == b"1"
    ready.close()


async def test_unread_bytes_do_not_keep_the_event_loop_awake(ends: Ends) -> None:
    here, there = ends
    ready = Readiness(here.fileno())
    there.send(b"1")
    await ready.readable()
    rounds = 0

    class Rounds(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's interface
            nonlocal rounds
            rounds += 1

    trio.lowlevel.add_instrument(instrument := Rounds())
    await trio.sleep(0.05)
    trio.lowlevel.remove_instrument(instrument)
    assert rounds < 10
    ready.close()


async def test_a_reset_ends_the_wait_and_does_not_keep_the_loop_awake(ends: Ends) -> None:
    here, there = ends
    ready = Readiness(here.fileno())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read, ready)
        await trio.testing.wait_all_tasks_blocked()
        there.close()
    began = time.process_time()
    await trio.sleep(0.3)
    assert time.process_time() - began < 0.2
    ready.close()


async def test_room_ends_a_wait_to_write_beside_a_wait_to_read(ends: Ends) -> None:
    here, there = ends
    ready = Readiness(here.fileno())
    with suppress(BlockingIOError):
        while True:
            here.send(bytes(65536))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read, ready)
        with trio.move_on_after(0.05) as scope:
            await ready.writable()
        assert scope.cancelled_caught
        async with trio.open_nursery() as writing:
            writing.start_soon(_write, ready)
            await trio.testing.wait_all_tasks_blocked()
            with suppress(BlockingIOError):
                while True:
                    there.recv(1 << 20)
        assert nursery.child_tasks
        there.send(b"1")
    ready.close()


async def test_cancelling_ends_a_wait_and_the_next_wait_works(ends: Ends) -> None:
    here, there = ends
    ready = Readiness(here.fileno())
    with trio.move_on_after(0.01) as scope:
        await ready.readable()
    assert scope.cancelled_caught
    there.send(b"1")
    await ready.readable()
    ready.close()


async def test_closing_ends_both_waits(ends: Ends) -> None:
    here, _there = ends
    ready = Readiness(here.fileno())
    with suppress(BlockingIOError):
        while True:
            here.send(bytes(65536))

    async def wait(wait_for: str) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(ready, wait_for)()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "readable")
        nursery.start_soon(wait, "writable")
        await trio.testing.wait_all_tasks_blocked()
        ready.close()


async def test_two_readers_at_once_are_an_error(ends: Ends) -> None:
    here, _there = ends
    ready = Readiness(here.fileno())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read, ready)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await ready.readable()
        nursery.cancel_scope.cancel()
    ready.close()


async def test_a_number_is_free_for_the_next_descriptor(ends: Ends) -> None:
    here, there = ends
    number = here.fileno()
    for _ in range(3):
        ready = Readiness(number)
        there.send(b"1")
        await ready.readable()
        ready.close()
        here.close()
        there.close()
        here, there = socket.socketpair()
        assert here.fileno() == number
    here.close()
    there.close()


async def test_a_callback_serves_a_descriptor(ends: Ends) -> None:
    here, there = ends
    ready = Readiness(here.fileno())
    received: list[bytes] = []

    def act() -> None:
        received.append(here.recv(9))
        if received[-1] == b"end":
            raise ValueError("end")

    async def serve() -> None:
        with pytest.raises(ValueError, match="end"):
            await ready.serve(act)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for data in (b"1", b"2", b"end"):
            there.send(data)
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert received == [b"1", b"2", b"end"]
    ready.close()


async def test_a_callback_may_close(ends: Ends) -> None:
    here, there = ends
    ready = Readiness(here.fileno())

    def act() -> None:
        ready.close()
        here.close()

    there.send(b"1")
    with pytest.raises(trio.ClosedResourceError):
        await ready.serve(act)


async def test_closing_ends_the_callbacks(ends: Ends) -> None:
    here, there = ends
    ready = Readiness(here.fileno())
    called = 0

    def act() -> None:
        nonlocal called
        called += 1
        here.recv(9)

    async def serve() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ready.serve(act)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        ready.close()
    there.send(b"1")
    await trio.sleep(0.01)
    assert called == 0
