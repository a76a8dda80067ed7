"""A client of a TLS worker, as the core sees it: requests, answers, ends, and the end of the worker."""

import json
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway import log
from gateway.errors import ClientAbandonedError, MessageTooLargeError, StreamClosedError
from gateway.front.channel import Kind, Message, Opening, encode_error
from gateway.front.pipe import Pipe
from gateway.front.worker_link import WorkerLink, WorkerLinks

OPENING = Opening("kmip", "192.0.2.1:4711", "TLSv1.3", resumed=False, seconds=0.002, certificate=b"certificate")


class Worker(NamedTuple):
    """The worker's end of a pipe: it sends what a test tells, and keeps what it hears."""

    pipe: Pipe
    heard: list[Message]
    links: list[WorkerLink]
    counted: list[bytes]

    async def open(self, number: int = 1) -> WorkerLink:
        """Open a connection; return the core's link to it."""
        self.pipe.send(Kind.OPENED, number, OPENING.encode())
        await wait_all_tasks_blocked()
        return self.links[-1]


@pytest.fixture
async def worker(nursery: trio.Nursery) -> AsyncIterator[Worker]:
    core, end = (Pipe(sock, log.get("test")) for sock in socket.socketpair())
    worker = Worker(end, [], [], [])

    async def receive(link: WorkerLink) -> None:
        worker.links.append(link)
        await trio.sleep_forever()

    links = WorkerLinks(core, receive, worker.counted.append)
    nursery.start_soon(links.run)
    nursery.start_soon(end.run, worker.heard.append)
    yield worker
    nursery.cancel_scope.cancel()
    core.close()
    end.close()


async def test_requests_are_returned_whole_and_answers_are_sent(worker: Worker) -> None:
    link = await worker.open()
    assert link.peer_certificate_der() == b"certificate"
    for number in range(3):
        worker.pipe.send(Kind.FRAME, 1, b"request %d" % number)
        assert await link.receive_some() == b"request %d" % number
        assert link.send_now(b"answer") == 6
    await wait_all_tasks_blocked()
    assert worker.heard == [Message(Kind.ANSWER, 1, b"answer")] * 3


async def test_a_request_waits_for_its_turn(worker: Worker) -> None:
    link = await worker.open()
    turn = trio.Event()
    link.before_read = turn.wait
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await link.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        worker.pipe.send(Kind.BEGUN, 1)
        await wait_all_tasks_blocked()
        assert link.is_read_delayed
        worker.pipe.send(Kind.FRAME, 1, b"request")
        await wait_all_tasks_blocked()
        assert (received, link.is_read_delayed) == ([], True)
        turn.set()
    assert (received, link.is_read_delayed) == ([b"request"], False)


async def test_the_end_of_a_client_is_an_empty_result(worker: Worker) -> None:
    link = await worker.open()
    assert not link.peer_has_left()
    worker.pipe.send(Kind.ENDED, 1)
    assert await link.receive_some() == b""
    assert link.peer_has_left()


@pytest.mark.parametrize("error", [MessageTooLargeError("large", version=(1, 4)), ClientAbandonedError("unread")])
async def test_the_error_of_the_worker_is_raised_where_the_core_reads(worker: Worker, error: Exception) -> None:
    link = await worker.open()
    worker.pipe.send(Kind.FAILED, 1, encode_error(error))  # type: ignore[arg-type]
    with pytest.raises(type(error), match=str(error)):
        await link.receive_some()


async def test_a_client_that_leaves_during_its_request_is_noticed(worker: Worker) -> None:
    link = await worker.open()
    worker.pipe.send(Kind.FRAME, 1, b"request")
    await link.receive_some()
    worker.pipe.send(Kind.LEFT, 1)
    await wait_all_tasks_blocked()
    assert link.peer_has_left()
    assert link.send_now(b"answer") == 6  # to be thrown away by the worker


async def test_a_closed_link_tells_the_worker_once_and_raises(worker: Worker) -> None:
    link = await worker.open()
    await link.aclose(linger=1.5)
    link.close()
    await wait_all_tasks_blocked()
    assert [(message.kind, json.loads(message.payload)) for message in worker.heard] == [(Kind.CLOSE, 1.5)]
    with pytest.raises(StreamClosedError):
        link.send_now(b"answer")
    with pytest.raises(StreamClosedError):
        await link.receive_some()
    worker.pipe.send(Kind.FRAME, 1, b"too late")
    await wait_all_tasks_blocked()


async def test_a_worker_that_does_not_keep_up_takes_no_answer_now(worker: Worker) -> None:
    link = await worker.open()
    pipe = link._pipe
    while not pipe.is_full:
        pipe.send(Kind.ANSWER, 99, bytes(100_000))
    assert link.send_now(b"answer") == 0
    await link.send_all(b"answer")
    await wait_all_tasks_blocked()
    assert worker.heard[-1] == Message(Kind.ANSWER, 1, b"answer")


async def test_the_end_of_the_worker_is_the_end_of_its_clients(worker: Worker) -> None:
    reading, asking = await worker.open(1), await worker.open(2)
    worker.pipe.send(Kind.FRAME, 2, b"request")
    await asking.receive_some()

    errors: list[StreamClosedError] = []

    async def read() -> None:
        try:
            await reading.receive_some()
        except StreamClosedError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        worker.pipe.close()
    assert "has ended" in str(errors[0])
    assert asking.peer_has_left()
    with pytest.raises(StreamClosedError):
        asking.send_now(b"answer")


async def test_counts_are_passed_on(worker: Worker) -> None:
    worker.pipe.send(Kind.COUNTED, 0, b"[]")
    await wait_all_tasks_blocked()
    assert worker.counted == [b"[]"]


async def test_a_drain_lets_a_request_on_its_way_arrive(worker: Worker) -> None:
    link = await worker.open()
    worker.pipe.send(Kind.FRAME, 1, b"request")  # crosses the next message
    assert not link.is_idle()
    assert await link.receive_some() == b"request"
    assert worker.heard == [Message(Kind.CLOSE_IF_IDLE, 1, b"")]
    worker.pipe.send(Kind.ENDED, 1)
    assert await link.receive_some() == b""
    assert not link.is_idle()
    await wait_all_tasks_blocked()
    assert len(worker.heard) == 1
