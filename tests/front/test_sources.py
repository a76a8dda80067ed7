"""Source addresses: which connections count together, and the bound on remembered addresses."""

import pytest

from gateway.config import PerAddressConfig
from gateway.front.sources import HalfOpen, Sources, packed_address, plain_address
from tests.kit.streams import connected


@pytest.mark.parametrize(
    ("one", "other", "are_the_same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("fe80::1%1", "fe80::2%2", True),
        ("0.0.0.0", "::", False),  # noqa: S104 - nothing is bound
    ],
)
def test_addresses_count_together_within_32_and_64_bits(one: str, other: str, are_the_same: bool) -> None:
    sources = Sources(PerAddressConfig())
    assert (sources.connect(one) is sources.connect(other)) is are_the_same


def test_prefix_lengths_are_settings() -> None:
    sources = Sources(PerAddressConfig(ipv4_prefix=24, ipv6_prefix=48))
    assert sources.connect("192.0.2.1") is sources.connect("192.0.2.254")
    assert sources.connect("192.0.2.1") is not sources.connect("192.0.3.1")
    assert sources.connect("2001:db8::1") is sources.connect("2001:db8:0:ffff::1")
    assert sources.connect("2001:db8::1") is not sources.connect("2001:db8:1::1")


def test_addresses_without_connections_are_forgotten() -> None:
    sources = Sources(PerAddressConfig())
    for number in range(1000):
        sources.disconnect(sources.connect(f"10.0.{number // 250}.{number % 250}"))
    assert len(sources) == 0


def test_rates_of_the_last_10000_addresses_are_remembered() -> None:
    sources = Sources(PerAddressConfig(handshakes_per_second=1))
    first = sources.connect("10.9.9.9")
    assert first.bucket is not None
    assert first.bucket.take(0.0)
    sources.disconnect(first)
    again = sources.connect("10.9.9.9")
    assert again.bucket is first.bucket
    assert not first.bucket.take(0.0)
    for number in range(12_000):
        sources.disconnect(sources.connect(f"10.0.{number // 250}.{number % 250}"))
    assert len(sources) == 10_001
    assert sources.connect("10.9.9.9") is first  # it has a connection


def test_mapped_address_is_written_as_ipv4() -> None:
    assert plain_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain_address("2001:db8::1") == "2001:db8::1"
    assert packed_address("::ffff:192.0.2.1") == bytes([192, 0, 2, 1])


def test_peer_is_written_with_brackets_if_it_is_ipv6() -> None:
    one, other = connected()
    with one, other:
        assert HalfOpen(one, "192.0.2.1", 5).peer == "192.0.2.1:5"
        assert HalfOpen(one, "2001:db8::1", 5).peer == "[2001:db8::1]:5"
