"""New connections are refused while no key manager can be reached, and accepted again afterwards."""

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial

import pytest
import structlog
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.front.reachability import UNREACHABLE_FOR, Reachability, log_while_unreachable, refuse_while_unreachable
from tests.kit.fake_backends import in_virtual_time
from tests.kit.front import NAME, Front, number_of, open_front, request
from tests.kit.processes import Certificates

HOSTS = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}
each_family = pytest.mark.parametrize("host", HOSTS)


# The decision ---------------------------------------------------------------------------------------------------------


def looks(*times: tuple[float, bool]) -> list[bool]:
    reachability = Reachability()
    decided = []
    for now, reachable in times:
        reachability.update(now, reachable=reachable)
        decided.append(reachability.accepts)
    return decided


def test_connections_are_refused_after_5_s_without_a_key_manager() -> None:
    assert looks((0, False), (4.9, False), (5.0, False), (60, False)) == [True, True, False, False]


def test_connections_are_accepted_once_a_key_manager_is_reachable() -> None:
    assert looks((0, False), (5, False), (5.2, True), (5.4, False), (10.3, False), (10.4, False)) == [
        True,
        False,
        True,
        True,
        True,
        False,
    ]


def test_reachable_key_manager_restarts_the_five_seconds() -> None:
    assert looks((0, False), (4, True), (5, False), (9, False), (10, False)) == [True, True, True, True, False]


def test_a_pause_of_the_process_is_not_counted() -> None:
    assert looks((0, True), (100, False), (104, False), (105, False)) == [True, True, True, False]


def test_only_a_change_is_reported() -> None:
    reachability = Reachability()
    times = [(0, False), (5, False), (6, False), (7, True), (8, True)]
    assert [reachability.update(now, reachable=reachable) for now, reachable in times] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert repr(reachability) == "<Reachability accepts, none since None>"


@in_virtual_time
async def test_an_outage_is_logged_as_an_error_and_its_end() -> None:
    captured = structlog.testing.LogCapture()
    is_reachable = [True]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            log_while_unreachable, lambda: is_reachable[0], structlog.wrap_logger(None, processors=[captured])
        )
        await trio.sleep(20)
        assert captured.entries == []
        is_reachable[0] = False
        await trio.sleep(4)
        assert captured.entries == []
        await trio.sleep(20)
        is_reachable[0] = True
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [(entry["log_level"], entry["event"]) for entry in captured.entries] == [
        ("error", "no key manager can be reached: clients get errors"),
        ("info", "a key manager can be reached again: clients are served"),
    ]


# Listeners ------------------------------------------------------------------------------------------------------------


def listening_on(host: str) -> socket.socket:
    """A listening socket as the gateway makes it, on a fixed port."""
    sock = socket.socket(HOSTS[host], socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    while True:
        try:
            sock.bind((host, random.randrange(20_000, 32_000)))
        except OSError:
            continue
        sock.listen()
        return sock


@asynccontextmanager
async def front_on(certificates: Certificates, host: str) -> AsyncIterator[tuple[Front, tuple[str, int]]]:
    listening = listening_on(host)
    async with open_front(certificates, listening=listening, host=host) as front:
        await wait_all_tasks_blocked()
        yield front, (host, front.address.port)


def is_refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


@each_family
async def test_a_listener_refuses_and_accepts_again_and_its_clients_stay(certificates: Certificates, host: str) -> None:
    async with front_on(certificates, host) as (front, address), front.client() as kept:
        assert number_of(await kept.ask(request(1))) == 1
        for number in range(2, 5):  # again and again
            front.listener.stop_accepting()
            front.listener.stop_accepting()  # no change
            assert is_refused(address)
            assert front.count("accepting", listener=NAME) == 0
            assert number_of(await kept.ask(request(number))) == number
            assert is_refused(address)

            front.listener.resume_accepting()
            front.listener.resume_accepting()
            assert front.count("accepting", listener=NAME) == 1
            async with front.client() as new:
                assert number_of(await new.ask(request(9))) == 9
    assert front.log.entries == []


@each_family
async def test_no_other_process_can_listen_while_connections_are_refused(certificates: Certificates, host: str) -> None:
    async with front_on(certificates, host) as (front, address), front.client() as kept:
        await kept.ask(request())  # an open connection must not keep the listener from listening again
        front.listener.stop_accepting()
        with closing(socket.socket(HOSTS[host], socket.SOCK_STREAM)) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(address)
        front.listener.resume_accepting()
        assert not is_refused(address)


async def test_connections_in_the_backlog_are_reset(certificates: Certificates) -> None:
    async with front_on(certificates, "127.0.0.1") as (front, address):
        with socket.create_connection(address) as waiting:
            front.listener.stop_accepting()
            with pytest.raises(ConnectionResetError):
                waiting.recv(1)
        assert front.clients == 0


async def test_a_listener_that_refuses_can_be_drained(certificates: Certificates) -> None:
    async with front_on(certificates, "127.0.0.1") as (front, address):
        async with front.client() as kept:
            await kept.ask(request())
            front.listener.stop_accepting()
            await wait_all_tasks_blocked()
            front.drain()
            with trio.fail_after(5):
                assert await kept.stream.receive_some() == b""
        for change in (front.listener.resume_accepting, front.listener.stop_accepting):
            change()  # without effect
            assert is_refused(address)
            assert front.count("accepting", listener=NAME) == 0


async def test_a_listener_that_was_drained_does_not_begin_again(certificates: Certificates) -> None:
    async with front_on(certificates, "127.0.0.1") as (front, address):
        front.listener.stop_accepting()
        front.drain()
        front.listener.resume_accepting()
        await wait_all_tasks_blocked()
        assert is_refused(address)


@pytest.fixture
def quick_clock() -> MockClock:
    """Jump after 5 ms without activity: the listeners look every 50 ms, over a hundred times."""
    return MockClock(autojump_threshold=0.005)


class Occupied(socket.socket):
    """A socket whose port is in use by another process while it does not listen."""

    is_taken = False

    def listen(self, backlog: int = 128, /) -> None:
        """Fail while the port is taken."""
        if self.is_taken:
            raise OSError(98, "Address already in use")
        super().listen(backlog)


async def test_listener_that_cannot_listen_again_logs_it_and_retries(certificates: Certificates) -> None:
    plain = listening_on("127.0.0.1")
    listening = Occupied(fileno=plain.detach())
    async with open_front(certificates, listening=listening) as front:
        await wait_all_tasks_blocked()
        address = (front.address.host, front.address.port)
        front.listener.stop_accepting()
        listening.is_taken = True
        front.listener.resume_accepting()
        assert is_refused(address)
        listening.is_taken = False
        front.listener.resume_accepting()
        async with front.client() as client:
            assert number_of(await client.ask(request(5))) == 5
    assert [(entry["event"], entry["reason"]) for entry in front.log.entries] == [
        ("cannot listen: another process may use the port; trying again", "Address already in use")
    ]


async def test_listeners_accept_while_a_key_manager_is_reachable(
    certificates: Certificates,
    quick_clock: MockClock,  # noqa: ARG001 - pytest-trio uses the clock of an argument only
) -> None:
    reachable = False
    async with front_on(certificates, "127.0.0.1") as (front, address), trio.open_nursery() as nursery:
        log = structlog.wrap_logger(None, processors=[front.log])
        nursery.start_soon(partial(refuse_while_unreachable, [front.listener], lambda: reachable, log))
        await trio.sleep(UNREACHABLE_FOR - 0.1)
        assert not is_refused(address)
        await trio.sleep(0.5)
        assert is_refused(address)
        assert [entry["log_level"] for entry in front.log.entries] == ["error"]
        await trio.sleep(1)
        assert is_refused(address)

        reachable = True
        await trio.sleep(0.25)
        assert not is_refused(address)
        assert [entry["log_level"] for entry in front.log.entries] == ["error", "info"]
        await trio.sleep(1)
        assert not is_refused(address)
        nursery.cancel_scope.cancel()
    assert front.errors.keys() <= {"client_closed"}  # connections without a handshake
