"""A pipe between two processes: order, back-pressure, and the end."""

import socket
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway import log
from gateway.front.channel import Kind, Message, encode
from gateway.front.pipe import Pipe


@pytest.fixture
async def pipes() -> AsyncIterator[tuple[Pipe, Pipe]]:
    one, other = (Pipe(sock, log.get("test")) for sock in socket.socketpair())
    yield one, other
    one.close()
    other.close()


async def test_messages_arrive_in_order_in_both_directions(pipes: tuple[Pipe, Pipe], nursery: trio.Nursery) -> None:
    heard: list[list[Message]] = [[], []]
    for pipe, messages in zip(pipes, heard, strict=True):
        nursery.start_soon(pipe.run, messages.append)
    for number in range(1000):
        pipes[0].send(Kind.FRAME, number, b"frame %d" % number)
        pipes[1].send(Kind.ANSWER, number, b"answer %d" % number)
    await wait_all_tasks_blocked()
    assert heard[0] == [Message(Kind.ANSWER, number, b"answer %d" % number) for number in range(1000)]
    assert heard[1] == [Message(Kind.FRAME, number, b"frame %d" % number) for number in range(1000)]
    nursery.cancel_scope.cancel()


async def test_a_process_that_does_not_read_makes_senders_wait(pipes: tuple[Pipe, Pipe], nursery: trio.Nursery) -> None:
    one, other = pipes
    heard: list[Message] = []
    nursery.start_soon(one.run, heard.append)
    sent = 0
    while not one.is_full:
        one.send(Kind.ANSWER, sent, bytes(100_000))
        sent += 1
        assert sent < 1000
    waited = []

    async def send_one_more() -> None:
        await one.wait_for_room()
        waited.append(one.held)

    nursery.start_soon(send_one_more)
    await wait_all_tasks_blocked()
    assert waited == []
    nursery.start_soon(other.run, heard.append)
    await wait_all_tasks_blocked(0.05)
    assert waited[0] <= 1 << 20
    assert [message.connection for message in heard] == list(range(sent))
    assert one.held == 0
    nursery.cancel_scope.cancel()


async def test_the_end_of_the_other_process_ends_the_pipe_and_all_waits(pipes: tuple[Pipe, Pipe]) -> None:
    one, other = pipes
    while not one.is_full:
        one.send(Kind.ANSWER, 1, bytes(100_000))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, lambda _message: None)
            nursery.start_soon(one.wait_for_room)
            await wait_all_tasks_blocked()
            other.close()
    assert one.is_closed
    assert one.held == 0
    one.send(Kind.ANSWER, 1, b"nothing happens")


async def test_a_handler_that_fails_for_one_message_gets_the_next(
    pipes: tuple[Pipe, Pipe], nursery: trio.Nursery
) -> None:
    heard: list[int] = []

    def handle(message: Message) -> None:
        if message.connection == 2:
            raise ZeroDivisionError
        heard.append(message.connection)

    nursery.start_soon(pipes[0].run, handle)
    for number in (1, 2, 3):
        pipes[1].send(Kind.FRAME, number)
    await wait_all_tasks_blocked()
    assert heard == [1, 3]
    nursery.cancel_scope.cancel()


async def test_messages_of_one_round_of_the_event_loop_are_sent_together(nursery: trio.Nursery) -> None:
    sock, end = socket.socketpair()
    end.setblocking(False)
    pipe = Pipe(sock, log.get("test"))
    nursery.start_soon(pipe.run, lambda _message: None)
    await wait_all_tasks_blocked()
    for number in (1, 2):
        pipe.send(Kind.FRAME, number, b"frame")
    with pytest.raises(BlockingIOError):
        end.recv(100)
    await wait_all_tasks_blocked()
    assert end.recv(100) == encode(Kind.FRAME, 1, b"frame") + encode(Kind.FRAME, 2, b"frame")
    pipe.send(Kind.FRAME, 3)
    pipe.close()
    assert end.recv(100) == encode(Kind.FRAME, 3)
    nursery.cancel_scope.cancel()
    end.close()


async def test_a_reset_found_before_the_event_loop_waits_ends_the_pipe() -> None:
    sock, end = socket.socketpair()
    pipe = Pipe(sock, log.get("test"))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.run, lambda _message: None)
            await wait_all_tasks_blocked()
            pipe.send(Kind.FRAME, 1)
            end.close()
    assert pipe.is_closed
