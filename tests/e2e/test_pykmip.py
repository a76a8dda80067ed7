"""PyKMIP's client through the gateway to PyKMIP's servers, and to simulated key managers: two of either kind."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from kmip.core import enums
from kmip.pie import objects
from kmip.pie.exceptions import KmipOperationFailure

from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    running_gateway,
    running_key_managers,
    running_pykmip_server,
)

VERSIONS = list(enums.KMIPVersion)
GONE = {enums.ResultReason.ITEM_NOT_FOUND, enums.ResultReason.OBJECT_DESTROYED}


@pytest.fixture(scope="module", params=["pykmip-servers", "simulated-key-managers"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    certificates = Certificates(tmp_path_factory.mktemp(request.param))
    with ExitStack() as running:
        if request.param == "pykmip-servers":
            database = certificates.path("shared.db")
            ports = [running.enter_context(running_pykmip_server(certificates, database)) for _ in range(2)]
        else:
            ports = running.enter_context(running_key_managers(certificates))
        yield running.enter_context(running_gateway(certificates, GatewaySettings(ports)))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_key_is_made_used_and_destroyed(gateway: Gateway, version: enums.KMIPVersion) -> None:
    with gateway.client(version=version) as client:
        uid = client.create(enums.CryptographicAlgorithm.AES, 256)
        key = client.get(uid)
        assert len(key.value) == 32
        assert uid in client.locate()
        client.activate(uid)
        with pytest.raises(KmipOperationFailure):
            client.destroy(uid)
        client.revoke(enums.RevocationReasonCode.CESSATION_OF_OPERATION, uid)
        client.destroy(uid)
        with pytest.raises(KmipOperationFailure) as failure:
            client.get(uid)
        assert failure.value.reason in GONE


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_registered_object_comes_back(gateway: Gateway, version: enums.KMIPVersion) -> None:
    value = bytes(range(16))
    with gateway.client(version=version) as client:
        uid = client.register(objects.SymmetricKey(enums.CryptographicAlgorithm.AES, 128, value))
    with gateway.client(version=version) as client:
        assert client.get(uid).value == value


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_key_pair_is_made(gateway: Gateway, version: enums.KMIPVersion) -> None:
    with gateway.client(version=version) as client:
        public, private = client.create_key_pair(
            enums.CryptographicAlgorithm.RSA,
            2048,
            public_usage_mask=[enums.CryptographicUsageMask.VERIFY],
            private_usage_mask=[enums.CryptographicUsageMask.SIGN],
        )
        assert isinstance(client.get(public), objects.PublicKey)
        assert isinstance(client.get(private), objects.PrivateKey)


def test_sessions_to_both_servers_are_kept_after_their_clients_left(gateway: Gateway) -> None:
    opened = gateway.total("kmip_gateway_sessions_opened_total")
    answered = {name: _answered(gateway, name) for name in ("kms-1", "kms-2")}
    for _ in range(10):
        with gateway.client() as client:
            client.locate()
    assert {name: _answered(gateway, name) - answered[name] for name in answered} == {"kms-1": 5, "kms-2": 5}
    assert gateway.total("kmip_gateway_sessions_opened_total") == opened


def _answered(gateway: Gateway, backend: str) -> float:
    return gateway.total("kmip_gateway_backend_requests_total", backend=backend, result="answered")
