"""Listening sockets: their ports, and refusing connections for a while."""

import socket

import pytest

from gateway.config import Address
from gateway.errors import ConfigError
from gateway.listening import accept_connections, address_of, listen, refuse_connections

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
