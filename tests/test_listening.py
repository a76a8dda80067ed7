"""Listening sockets: their ports, and refusing connections for a while."""

import socket
from contextlib import suppress

import pytest

from gateway.config import Address, ListenerConfig
from gateway.errors import ConfigError
from gateway.listening import (
    accept_connections,
    address_of,
    listen,
    listening_sockets,
    refuse_connections,
    stop_listening,
)

LOOPBACK = Address("127.0.0.1", 0)


def test_a_listener_on_port_0_keeps_its_port_while_it_refuses() -> None:
    with listen("listener", LOOPBACK) as sock:
        address = sock.getsockname()
        refuse_connections(sock)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        accept_connections(sock)
        socket.create_connection(address).close()


def test_no_other_process_gets_the_port_while_it_refuses() -> None:
    with listen("listener", LOOPBACK) as sock:
        refuse_connections(sock)
        with pytest.raises(ConfigError, match="cannot listen on"):
            listen("other", address_of(sock))


def test_a_copy_in_another_process_refuses_and_accepts_too() -> None:
    with listen("listener", LOOPBACK) as sock, sock.dup() as copy:
        refuse_connections(copy)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(sock.getsockname())
        accept_connections(copy)
        with socket.create_connection(sock.getsockname()):
            sock.accept()[0].close()


def test_an_address_in_use_is_a_mistake_that_names_the_setting() -> None:
    with listen("listener", LOOPBACK) as sock, pytest.raises(ConfigError) as caught:
        listen("admin.bind", address_of(sock))
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("admin.bind: cannot listen on 127.0.0.1:")


def listener(name: str, port: int = 0) -> ListenerConfig:
    return ListenerConfig.model_construct(name=name, bind=Address("127.0.0.1", port))


def can_connect(sock: socket.socket) -> bool:
    with socket.socket() as client:
        return client.connect_ex(sock.getsockname()) == 0


def test_an_inherited_socket_takes_the_place_of_the_bind_and_listens_on() -> None:
    with listen("systemd", LOOPBACK) as inherited, listen("other process", LOOPBACK) as taken:
        listeners = [listener("kmip", address_of(taken).port), listener("own")]
        with listening_sockets(listeners, {"kmip": inherited}) as sockets:
            assert list(sockets) == ["kmip", "own"]
            assert address_of(sockets["kmip"]) == address_of(inherited)
            assert sockets["kmip"].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
            refuse_connections(sockets["kmip"])  # as at the drain of a gateway that can reach no key manager
            assert not can_connect(inherited)
            own = sockets["own"]
        assert own.fileno() == -1
        assert can_connect(inherited)


def test_an_inherited_socket_that_a_killed_gateway_left_refusing_listens_again() -> None:
    with listen("systemd", LOOPBACK) as inherited:
        refuse_connections(inherited)
        with listening_sockets([listener("kmip")], {"kmip": inherited}):
            assert can_connect(inherited)


def test_an_inherited_socket_without_a_listener_is_a_mistake() -> None:
    with (
        listen("systemd", LOOPBACK) as inherited,
        pytest.raises(ConfigError) as caught,
        listening_sockets([listener("kmip")], {"kmip-gateway.socket": inherited}),
    ):
        pass
    (mistake,) = caught.value.mistakes
    assert mistake.endswith('there is no such listener; set FileDescriptorName to one of "kmip"')


def test_an_inherited_socket_of_another_family_is_a_mistake() -> None:
    with (
        socket.socket(socket.AF_UNIX) as inherited,
        pytest.raises(ConfigError, match="not of TCP"),
        listening_sockets([listener("kmip")], {"kmip": inherited}),
    ):
        pass


def test_several_sockets_listen_on_one_address_if_all_reuse_the_port() -> None:
    with listen("first", LOOPBACK, reuse_port=True) as first:
        with listen("second", address_of(first), reuse_port=True) as second:
            taken = {first: 0, second: 0}
            first.setblocking(False)
            second.setblocking(False)
            for _ in range(100):
                with socket.create_connection(first.getsockname()):
                    for sock in taken:
                        with suppress(BlockingIOError):
                            sock.accept()[0].close()
                            taken[sock] += 1
            assert sum(taken.values()) == 100
            assert min(taken.values()) > 10
        with pytest.raises(ConfigError, match="cannot listen on"):
            listen("third", address_of(first))


def bound(name: str, address: Address) -> ListenerConfig:
    return ListenerConfig.model_construct(name=name, bind=address)


def test_a_configuration_opens_only_the_sockets_that_are_missing() -> None:
    with listening_sockets([listener("one"), listener("two")]) as sockets:
        one = sockets["one"]
        following = sockets.prepare([listener("one"), listener("three")])
        assert list(following.opened) == ["three"]
        (left,) = sockets.use(following)
        assert (list(sockets), sockets["one"]) == (["one", "three"], one)
        assert not sockets.listens_on(left)
        stop_listening(left)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(left.getsockname())
        left.close()


def test_two_listeners_can_exchange_their_addresses() -> None:
    with listen("free", LOOPBACK) as first, listen("free", LOOPBACK) as second:
        addresses = [address_of(first), address_of(second)]
    with listening_sockets([bound("one", addresses[0]), bound("two", addresses[1])]) as sockets:
        following = sockets.prepare([bound("one", addresses[1]), bound("two", addresses[0])])
        for sock in sockets.use(following):
            assert sockets.listens_on(sock)  # under its new name
            sock.close()
        assert [address_of(sockets[name]) for name in ("one", "two")] == addresses[::-1]
        assert can_connect(sockets["one"])
        assert can_connect(sockets["two"])


def test_a_configuration_with_an_address_in_use_opens_nothing() -> None:
    with listen("taken", LOOPBACK) as taken, listening_sockets([listener("one")]) as sockets:
        with pytest.raises(ConfigError, match="cannot listen on"):
            sockets.prepare([listener("one"), listener("two"), bound("three", address_of(taken))])
        assert list(sockets) == ["one"]


def test_a_removed_listener_leaves_its_address_to_a_new_one() -> None:
    with listen("one", LOOPBACK) as sock:
        stop_listening(sock)
        listen("two", address_of(sock)).close()


def test_an_own_socket_in_the_way_is_told() -> None:
    with listen("free", LOOPBACK) as free:
        address = address_of(free)
    with listening_sockets([bound("one", address)]) as sockets, pytest.raises(ConfigError) as caught:
        sockets.prepare([bound("one", Address("0.0.0.0", address.port))])  # noqa: S104 - that is the point
    (mistake,) = caught.value.mistakes
    assert mistake.endswith('or restart the gateway: its own listener "one" has the port')


def test_an_inherited_listener_is_not_removed_by_a_reload() -> None:
    with (
        listen("systemd", LOOPBACK) as inherited,
        listening_sockets([listener("kmip")], {"kmip": inherited}) as sockets,
    ):
        with pytest.raises(ConfigError, match="there is no such listener"):
            sockets.prepare([listener("other")])
        assert sockets.prepare([listener("kmip")]).opened == {}
