"""The listener: connections that are accepted, isolated from each other, and drained."""

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.errors import StreamClosedError, TlsError
from gateway.tls import TlsStream
from tests.kit.front import (
    PART_OF_HELLO,
    Front,
    connect_tcp,
    number_of,
    open_front,
    request,
    until,
    wait_for_end,
)
from tests.kit.processes import Certificates
from tests.kit.settings import make_admission
from tests.kit.streams import TLS_1_2, TLS_1_3, cancelled_everywhere, client_tls, descriptors

pytestmark = pytest.mark.usefixtures("tls_ends_in")

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@pytest.fixture
async def front(certificates: Certificates) -> AsyncIterator[Front]:
    async with open_front(certificates) as front:
        yield front


async def test_half_open_connections_do_not_count_as_clients(certificates: Certificates) -> None:
    admission = make_admission(max_clients=1)
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect_tcp(front)).send(PART_OF_HELLO)
        await until(lambda: front.clients == 20)
        async with front.client() as client:
            assert number_of(await client.ask(request(3))) == 3


class Exhausted(socket.socket):
    """A listening socket in a process that runs out of resources for a while."""

    failures = (errno.EMFILE, errno.ENOBUFS, errno.ECONNABORTED)

    def accept(self) -> tuple[socket.socket, object]:
        """Raise the errors first."""
        if self.failures:
            number, *self.failures = self.failures  # type: ignore[assignment]
            raise OSError(number, "as if")
        return super().accept()


async def test_clients_wait_while_there_are_no_descriptors(certificates: Certificates, clock: MockClock) -> None:
    listening = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    async with open_front(certificates, listening=listening) as front, front.client() as client:
        assert number_of(await client.ask(request(3))) == 3
    assert 0.2 <= clock.current_time() < 1
    assert [entry["event"] for entry in front.log.entries] == [
        "cannot accept clients: out of file descriptors or memory; raise the limits of the process"
    ]  # at most once a second


# One client's faults --------------------------------------------------------------------------------------------------


async def test_internal_error_closes_only_the_connection_of_its_client(front: Front) -> None:
    async with front.client() as bystander:
        await bystander.ask(request())
        async with front.client() as unlucky:
            front.dispatcher.fault = RuntimeError("a bug")
            with pytest.raises(StreamClosedError):
                await unlucky.ask(request())
            front.dispatcher.fault = None
        assert number_of(await bystander.ask(request(8))) == 8
    assert front.errors == {"internal": 1}
    assert isinstance(front.log.entries[0]["exc_info"], RuntimeError)


# Drain ----------------------------------------------------------------------------------------------------------------


async def test_drain_ends_handshakes_and_new_connections(front: Front) -> None:
    with connect_tcp(front) as silent, connect_tcp(front) as half:
        half.send(b"\x16\x03\x01\x02\x00\x01")
        await until(lambda: front.clients == 2)
        front.drain()
        with trio.fail_after(5):
            await wait_for_end(silent)
            await wait_for_end(half)
        with pytest.raises(ConnectionRefusedError):
            connect_tcp(front)
    assert front.errors == {"drain": 2}


async def test_a_listener_that_is_drained_before_it_begins_serves_nobody(certificates: Certificates) -> None:
    async with open_front(certificates) as front:
        front.drain()
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionRefusedError):
            connect_tcp(front)


async def test_connections_that_arrive_with_the_drain_do_not_delay_it(certificates: Certificates) -> None:
    """A client wakes the listener, and a drain begins before ``accept``: trio runs tasks in random order."""
    for _ in range(20):
        async with open_front(certificates) as front, trio.open_nursery() as nursery:
            wakes, woken = socket.socketpair()

            async def drain(front: Front = front, woken: socket.socket = woken) -> None:
                await trio.lowlevel.wait_readable(woken)
                front.drain()

            nursery.start_soon(drain)
            await wait_all_tasks_blocked()
            with wakes, woken, connect_tcp(front) as client:
                wakes.send(b"!")
                await wait_for_end(client)
            await until(lambda: front.clients == 0)
            with pytest.raises(ConnectionRefusedError):
                connect_tcp(front)


async def test_drain_may_come_at_any_moment(front: Front) -> None:
    """The drain waits for no client, and each request is either answered or was never dispatched."""

    async def drained_after(step: int) -> bool:
        async with open_front(front.certificates) as drained, trio.open_nursery() as nursery:
            answered = trio.Event()
            instrument = DrainAtStep(drained, step)
            trio.lowlevel.add_instrument(instrument)
            nursery.start_soon(connect_and_ask, drained, answered)
            try:
                # Run in every tick, so that the drain falls between the event that wakes a task and the task's step.
                while not (instrument.drained or answered.is_set()):
                    await trio.lowlevel.checkpoint()
            finally:
                trio.lowlevel.remove_instrument(instrument)
            in_time = instrument.drained
            instrument.drain()
            await until(lambda: drained.clients == 0)
            nursery.cancel_scope.cancel()
        assert len(drained.dispatcher.asked) == drained.dispatcher.answered
        return in_time

    step = 1
    while await drained_after(step):
        step += 1
        assert step < 400
    assert step > 10


class DrainAtStep(trio.abc.Instrument):
    """Drains a listener after so many steps of any tasks."""

    def __init__(self, front: Front, step: int) -> None:
        self._front = front
        self._left = step
        self.drained = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - the name is trio's
        """Count the steps."""
        self._left -= 1
        if self._left == 0:
            self.drain()

    def drain(self) -> None:
        """Drain the listener."""
        if not self.drained:
            self.drained = True
            self._front.drain()


async def connect_and_ask(front: Front, answered: trio.Event | None = None) -> None:
    """Connect, send requests until the connection is closed; ignore a refused connection."""
    try:
        sock = connect_tcp(front)
    except ConnectionRefusedError:
        return
    stream = TlsStream(sock, client_tls(front.certificates), server_side=False, server_name="localhost")
    try:
        await stream.handshake()
        await stream.send_all(request())
        while await stream.receive_some():
            if answered is None:
                break
            answered.set()
    except (StreamClosedError, TlsError):
        pass
    finally:
        stream.close()


# Leaks ----------------------------------------------------------------------------------------------------------------


async def test_a_listener_cancelled_at_any_step_leaves_no_descriptor_behind(certificates: Certificates) -> None:
    async def story() -> None:
        async with open_front(certificates) as front:
            uses: list[Callable[[Front], Awaitable[None]]] = [connect_and_ask, connect_and_ask, connect_and_close]
            async with trio.open_nursery() as nursery:
                for use in uses:
                    nursery.start_soon(use, front)

    await story()
    before = descriptors()
    assert await cancelled_everywhere(story, 400) > 10
    assert descriptors() == before


async def connect_and_close(front: Front) -> None:
    """Close a connection before its handshake; ignore a refused connection."""
    with suppress(ConnectionRefusedError), connect_tcp(front):
        await trio.lowlevel.checkpoint()
