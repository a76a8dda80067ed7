"""The configurations of the proxies."""

from dataclasses import replace
from pathlib import Path

import pytest
from kmip_lab.certs import DevelopmentSet
from kmip_lab.compare.configurations import ProxySettings, gateway, haproxy, nginx

from gateway.config import Address


@pytest.fixture
def settings() -> ProxySettings:
    addresses = [Address("127.0.0.1", port) for port in (5697, 5698)]
    return ProxySettings(DevelopmentSet(Path("/c")), Address("127.0.0.1", 1), Address("127.0.0.1", 2), addresses)


def test_every_configuration_names_every_backend(settings: ProxySettings) -> None:
    for text in (gateway(settings), haproxy(settings), nginx(settings, "load_module x.so;")):
        assert "127.0.0.1:5697" in text
        assert "127.0.0.1:5698" in text


def test_the_gateway_has_one_identity_for_the_only_client(settings: ProxySettings) -> None:
    assert 'match = { subject_cn = "client" }\nshared = false' in gateway(settings)


def test_the_gateway_has_the_tls_workers_that_are_asked_for(settings: ProxySettings) -> None:
    assert "tls_workers = 0\n" in gateway(settings)
    assert "tls_workers = 2\n" in gateway(replace(settings, tls_workers=2))
