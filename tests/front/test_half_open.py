"""The bound on half-open connections: the order in which they are closed."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.front.half_open import HalfOpenConnections
from gateway.front.sources import HalfOpen, Source


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        yield sock


class Connections:
    """Half-open connections of numbered addresses."""

    def __init__(self, sock: socket.socket, spoken: frozenset[int] = frozenset()) -> None:
        self.sock = sock
        self.registry = HalfOpenConnections(10, lambda sock: sock.fileno() in spoken)
        self.sources = [Source(bytes([number])) for number in range(5)]

    def add(self, source: int) -> HalfOpen:
        half_open = HalfOpen(self.sock, f"192.0.2.{source}", 1)
        half_open.source = self.sources[source]
        self.registry.add(half_open)
        return half_open


def test_address_with_the_most_loses_its_oldest(sock: socket.socket) -> None:
    connections = Connections(sock)
    first, flood = connections.add(0), [connections.add(1) for _ in range(4)]
    for victim in flood[:3]:
        assert connections.registry.evict_one(connections.sources[2], now=0)
        assert victim.evicted
    assert len(connections.registry) == 2
    assert not first.evicted


def test_oldest_goes_first_if_every_address_has_one(sock: socket.socket) -> None:
    connections = Connections(sock)
    everyone = [connections.add(source) for source in range(4)]
    for victim in everyone:
        assert connections.registry.evict_one(connections.sources[4], now=0)
        assert victim.evicted
    assert not connections.registry.evict_one(connections.sources[4], now=0)


def test_connection_whose_hello_waits_for_the_gateway_is_not_closed(sock: socket.socket) -> None:
    connections = Connections(sock, frozenset({sock.fileno()}))
    connections.add(0)
    assert not connections.registry.evict_one_of(connections.sources[0], now=100)


def test_answered_connection_has_a_second_unless_its_address_has_the_most(sock: socket.socket) -> None:
    connections = Connections(sock)
    answered = [connections.add(0) for _ in range(3)]
    for half_open in answered:
        connections.registry.answer(half_open, now=5)
    assert not connections.registry.evict_one_of(connections.sources[0], now=5.9)
    assert connections.registry.evict_one_of(connections.sources[0], now=6)
    assert answered[0].evicted
    assert connections.registry.evict_one(connections.sources[1], now=5.1)  # an address without connections
    assert answered[1].evicted
    assert not connections.registry.evict_one(connections.sources[1], now=5.1)  # a connection of each address


def test_evicted_connection_may_be_answered_and_removed_again(sock: socket.socket) -> None:
    connections = Connections(sock)
    half_open = connections.add(0)
    connections.registry.evict_one_of(connections.sources[0], now=0)
    connections.registry.answer(half_open, now=0)
    connections.registry.remove(half_open)
    connections.registry.remove(half_open)
    assert (len(connections.registry), connections.sources[0].half_open) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "answer", "evict"]), st.integers(0, 4)), max_size=60))
def test_numbers_agree_whatever_happens(steps: list[tuple[str, int]]) -> None:
    with socket.socket() as sock:
        connections, there = Connections(sock), list[HalfOpen]()
        for step, source in steps:
            if step == "add":
                there.append(connections.add(source))
            elif step == "evict":
                most = max(each.half_open for each in connections.sources)
                before = [each.half_open for each in connections.sources]
                if connections.registry.evict_one(connections.sources[source], now=100):
                    (loser,) = [i for i, each in enumerate(connections.sources) if each.half_open != before[i]]
                    assert before[loser] == most
            elif there:
                half_open = there[source % len(there)]
                if step == "answer":
                    connections.registry.answer(half_open, now=1)
                else:
                    there.remove(half_open)
                    connections.registry.remove(half_open)
            alive = [half_open for half_open in there if not half_open.evicted]
            assert len(connections.registry) == len(alive)
            for each in connections.sources:
                assert each.half_open == sum(half_open.source is each for half_open in alive)
