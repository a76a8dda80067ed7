"""Traffic: the identity, the backend and the clients that an operator asks about."""

from typing import Any

import pytest

from gateway.errors import ControlError
from gateway.traffic import Traffic


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ({}, True),
        ({"identity": "arrays"}, True),
        ({"identity": "tapes"}, False),
        ({"backend": "kms"}, True),
        ({"backend": "kms/2"}, True),
        ({"backend": "london"}, True),
        ({"backend": "kms/1"}, False),
        ({"address": "10.1.0.0/16"}, True),
        ({"address": "10.2.0.0/16"}, False),
        ({"identity": "arrays", "backend": "kms", "address": "10.1.2.3"}, True),
        ({"identity": "arrays", "backend": "kms", "address": "10.1.2.4"}, False),
    ],
)
def test_traffic_fits_if_every_part_does(arguments: dict[str, Any], fits: bool) -> None:
    traffic = Traffic.take(dict(arguments))
    assert traffic.fits("arrays", ["london", "kms/2"], "10.1.2.3:4567") is fits
    assert Traffic.take(dict(traffic.arguments())) == traffic


@pytest.mark.parametrize(
    ("client", "address", "fits"),
    [
        ("[fe80::1%eth0]:99", "fe80::/64", True),
        ("[::ffff:10.1.2.3]:99", "10.1.2.3", True),
        ("[::1]:99", "::1", True),
        ("", "10.1.2.3", False),
    ],
)
def test_addresses_of_clients(client: str, address: str, fits: bool) -> None:
    assert Traffic.take({"address": address}).fits("", (), client) is fits


def test_only_the_parts_are_taken_out_of_the_arguments() -> None:
    given = {"identity": "arrays", "failed": True}
    assert Traffic.take(given).arguments() == {"identity": "arrays"}
    assert given == {"failed": True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": "nine"}, "'nine' is no address; give an IP address or a network such as 10.1.0.0/16"),
        ({"identity": 3}, "identity is 3; give a text"),
        ({"backend": ["kms"]}, "backend is ['kms']; give a text"),
    ],
)
def test_wrong_parts_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ControlError) as raised:
        Traffic.take(arguments)
    assert str(raised.value) == message
