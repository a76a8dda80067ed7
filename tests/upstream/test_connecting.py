"""Tests of connecting: the known addresses are tried in order, each beside those that do not answer."""

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
import trio

from gateway.config import Address
from gateway.upstream import connecting
from gateway.upstream.connecting import connect, look_up, peer_of
from tests.kit.fake_names import Names
from tests.kit.streams import cancelled_everywhere, descriptors

DEADLINE = 10.0  # s of real time, in which each test must end
NAME = "kms.example.com"


@contextmanager
def listening_on(*hosts: str) -> Iterator[int]:
    """Yield a port with a listener at each of these addresses, and no listener at any other."""
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server((hosts[0], 0)))
        port: int = first.getsockname()[1]
        for host in hosts[1:]:
            stack.enter_context(socket.create_server((host, port)))
        yield port


@contextmanager
def silent_at(host: str, port: int) -> Iterator[None]:
    """Make an address that never answers: its backlog is full, so that Linux drops further connections."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((host, port))
        listening.listen(0)
        stack.enter_context(socket.create_connection((host, port)))
        yield


async def peer_among(port: int, hosts: Sequence[str]) -> str:
    with trio.fail_after(DEADLINE):
        sock = await connect(Address(NAME, port), hosts)
    with sock:
        return peer_of(sock)


async def test_known_addresses_are_connected_to_without_a_name_server() -> None:
    trio.socket.set_custom_hostname_resolver(Names(None))
    with listening_on("127.0.0.1") as port:
        assert await peer_among(port, ["127.0.0.1"]) == "127.0.0.1"


async def test_a_name_whose_addresses_are_not_known_is_looked_up() -> None:
    resolver = Names(["127.0.0.2", "127.0.0.1"])
    trio.socket.set_custom_hostname_resolver(resolver)
    with listening_on("127.0.0.1") as port:
        assert await peer_among(port, []) == "127.0.0.1"
    assert await look_up(Address(NAME, 5696)) == ["127.0.0.2", "127.0.0.1"]
    resolver.hosts = []
    with pytest.raises(OSError, match="no address"):
        await look_up(Address(NAME, 5696))


async def test_an_address_that_refuses_is_followed_by_the_next() -> None:
    with listening_on("127.0.0.1") as port:
        assert await peer_among(port, ["127.0.0.2", "127.0.0.1"]) == "127.0.0.1"


async def test_an_address_that_is_silent_is_joined_by_the_next() -> None:
    """This happens on a machine with a broken IPv6 route."""
    before = descriptors()
    with listening_on("127.0.0.1") as port, silent_at("127.0.0.2", port):
        assert await peer_among(port, ["127.0.0.2", "127.0.0.1"]) == "127.0.0.1"
    assert descriptors() == before


async def test_an_ipv6_address_is_an_address() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
            assert await peer_among(listening.getsockname()[1], ["127.0.0.1", "::1"]) == "::1"
    except OSError as error:
        if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            raise
        pytest.skip("this machine has no IPv6")


async def test_of_two_connections_made_at_once_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "_HEAD_START", 0.0)
    with listening_on("127.0.0.1", "127.0.0.2", "127.0.0.3") as port:
        before = descriptors()
        assert await peer_among(port, ["127.0.0.1", "127.0.0.2", "127.0.0.3"]) in {
            "127.0.0.1",
            "127.0.0.2",
            "127.0.0.3",
        }
        assert descriptors() == before


async def test_if_no_address_answers_the_error_names_each() -> None:
    with listening_on("127.0.0.1") as port, pytest.raises(OSError, match="refused") as caught:
        await peer_among(port, ["127.0.0.2", "127.0.0.3"])
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.strerror == "127.0.0.2: Connection refused; 127.0.0.3: Connection refused"


async def test_cancelling_at_any_step_leaks_no_descriptor() -> None:
    with listening_on("127.0.0.1") as port, silent_at("127.0.0.2", port):
        before = descriptors()

        async def story() -> None:
            await peer_among(port, ["127.0.0.2", "127.0.0.1"])

        assert await cancelled_everywhere(story) > 5
        assert descriptors() == before


@pytest.mark.parametrize(
    ("sockaddr", "host"),
    [
        (("192.0.2.1", 5696), "192.0.2.1"),
        (("2001:db8::1", 5696, 0, 0), "2001:db8::1"),
        (("fe80::1", 5696, 0, 2), "fe80::1%2"),
        (("fe80::1%eth0", 5696, 0, 2), "fe80::1%eth0"),
    ],
)
def test_a_link_local_address_keeps_its_zone(sockaddr: tuple[str | int, ...], host: str) -> None:
    assert connecting._host(sockaddr) == host


def test_a_peer_that_has_left_has_no_address() -> None:
    with socket.socket() as sock:
        assert peer_of(sock) == ""
