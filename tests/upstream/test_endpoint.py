"""Tests of the endpoint of a backend: its addresses, and the distrust after a fault."""

from gateway.config import Address
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.session import Session
from tests.kit.fake_backends import LIMITS, FakeStream, in_virtual_time


def session_to(peer: str) -> Session:
    return Session(FakeStream(), "atlanta", limits=LIMITS, peer=peer)


@in_virtual_time
async def test_sessions_to_addresses_of_the_last_lookup_are_current() -> None:
    endpoint = Endpoint(Address("kms.example", 5696), ("192.0.2.1", "192.0.2.2"))
    assert [endpoint.is_current(session_to(f"192.0.2.{number}")) for number in (1, 2, 3)] == [True, True, False]
    assert repr(endpoint) == "<Endpoint kms.example:5696: 192.0.2.1, 192.0.2.2>"


@in_virtual_time
async def test_every_session_is_current_before_the_first_lookup() -> None:
    assert Endpoint().is_current(session_to("192.0.2.1"))


def test_distrust_ends_after_ten_minutes() -> None:
    endpoint = Endpoint()
    endpoint.distrust(100.0)
    endpoint.end_distrust_if_due(699.0)
    assert endpoint.is_distrusted
    endpoint.end_distrust_if_due(700.0)
    assert not endpoint.is_distrusted


def test_a_second_fault_renews_the_distrust() -> None:
    endpoint = Endpoint()
    endpoint.distrust(100.0)
    endpoint.distrust(500.0)
    endpoint.end_distrust_if_due(700.0)
    assert endpoint.is_distrusted
