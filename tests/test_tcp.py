"""Tests of TCP timeouts over the loopback: a vanished peer is noticed, a single lost packet is not taken for that."""

import socket
from collections.abc import Iterator

import pytest

from gateway.config import PoolConfig
from gateway.tcp import is_unacknowledged, set_timeouts
from tests.kit.streams import connected, cut_off, reconnect

DEADLINE = 20.0  # s of real time, in which each test must end


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a connection."""
    ends = connected()
    for end in ends:
        end.settimeout(DEADLINE)
    yield ends
    for end in ends:
        end.close()


def times_of(sock: socket.socket) -> tuple[int, ...]:
    """Return keep-alive on or off, idle and interval (s), count, and the user timeout (ms)."""
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    values = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    return (sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *values)


@pytest.mark.parametrize(
    ("timeouts", "times"),
    [
        (PoolConfig(tcp_keepalive=5, tcp_user_timeout=10.0), (1, 5, 2, 3, 10_000)),
        (PoolConfig(tcp_keepalive=60, tcp_user_timeout=120.0), (1, 60, 20, 3, 120_000)),
        (PoolConfig(tcp_keepalive=1, tcp_user_timeout=2.5), (1, 1, 1, 3, 2500)),
    ],
)
def test_a_dead_peer_is_noticed_after_about_twice_the_silence(
    pair: tuple[socket.socket, socket.socket], timeouts: PoolConfig, times: tuple[int, ...]
) -> None:
    set_timeouts(pair[0], timeouts)
    assert times_of(pair[0]) == times


def test_accepted_connections_inherit_the_listening_sockets_times() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        set_timeouts(listening, PoolConfig(tcp_keepalive=60, tcp_user_timeout=120.0))
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert times_of(accepted) == (1, 60, 20, 3, 120_000)


def test_a_connection_that_has_ended_is_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    set_timeouts(pair[0], PoolConfig(tcp_keepalive=5, tcp_user_timeout=10.0))
    assert not is_unacknowledged(pair[0], 0)


def test_a_silent_connection_ends_if_its_peer_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    set_timeouts(pair[0], PoolConfig(tcp_keepalive=1, tcp_user_timeout=2.0))
    cut_off(pair[1])
    with pytest.raises(TimeoutError, match="Connection timed out"):  # the kernel's; the deadline's is "timed out"
        pair[0].recv(1)


def test_one_lost_probe_ends_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    set_timeouts(pair[0], PoolConfig(tcp_keepalive=1, tcp_user_timeout=3.0))
    pair[0].settimeout(1.4)  # in which the first probe is lost
    cut_off(pair[1])
    with pytest.raises(TimeoutError, match=r"^timed out"):
        pair[0].recv(1)
    reconnect(pair[1])
    with pytest.raises(TimeoutError, match=r"^timed out"):
        pair[0].recv(1)
    pair[1].sendall(b"x")
    assert pair[0].recv(1) == b"x"


def test_a_connection_ends_if_sent_data_is_not_acknowledged(pair: tuple[socket.socket, socket.socket]) -> None:
    set_timeouts(pair[0], PoolConfig(tcp_keepalive=60, tcp_user_timeout=1.0))
    cut_off(pair[1])
    pair[0].sendall(b"request")
    with pytest.raises(TimeoutError, match="Connection timed out"):
        pair[0].recv(1)


def test_data_is_unacknowledged_until_the_peers_kernel_has_taken_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pair[0].sendall(b"taken, though nobody reads it")
    assert not is_unacknowledged(pair[0], 0)

    cut_off(pair[1])
    pair[0].sendall(b"swallowed")
    assert is_unacknowledged(pair[0], 0)
    assert not is_unacknowledged(pair[0], 3600)

    reconnect(pair[1])
    assert len(pair[1].recv(29)) == 29
    assert len(pair[1].recv(9)) == 9  # sent again by the kernel, and with that acknowledged
    assert not is_unacknowledged(pair[0], 0)
