"""A key manager's certificate is replaced under load: by a certificate of the same CA, and of an unknown CA."""

import pytest
from cryptography import x509
from kmip.core import enums
from kmip.pie.client import ProxyKmipClient
from kmip.pie.exceptions import KmipOperationFailure
from kmip_lab.certs import Authority

from tests.kit.processes import (
    HOSTS,
    Certificates,
    Gateway,
    GatewaySettings,
    KeyManagerProcess,
    running_gateway,
    running_key_manager_processes,
    wait_until,
)
from tests.kit.revocation import crl_of


def is_served(client: ProxyKmipClient) -> bool:
    try:
        client.locate()
    except KmipOperationFailure as failure:
        return failure.reason is not enums.ResultReason.GENERAL_FAILURE
    return True


def rotate(certificates: Certificates, authority: Authority, key_manager: KeyManagerProcess) -> None:
    authority.issue_server("kms", HOSTS).write(*certificates.pair("kms"))
    key_manager.kill()
    key_manager.launch()
    key_manager.wait_ready()


def reasons(gateway: Gateway) -> float:
    return gateway.total("kmip_gateway_session_open_failures_total", reason="unknown_ca")


def test_a_certificate_is_replaced_under_a_kept_client(tmp_path_factory: pytest.TempPathFactory) -> None:
    certificates = Certificates(tmp_path_factory.mktemp("rotation"))
    with (
        running_key_manager_processes(certificates, ["kms-1"]) as (key_manager,),
        running_gateway(certificates, GatewaySettings([key_manager.port])) as gateway,
        gateway.client() as client,
    ):
        assert is_served(client)
        rotate(certificates, certificates.kms_ca, key_manager)
        wait_until(lambda: is_served(client), "service after a renewal")
        assert reasons(gateway) == 0
        rotate(certificates, Authority("A stranger"), key_manager)
        wait_until(lambda: not is_served(client) and reasons(gateway) > 0, "the stranger's being noticed")
        assert not any(is_served(client) for _ in range(5))
        rotate(certificates, certificates.kms_ca, key_manager)
        wait_until(lambda: is_served(client), "service from the right one")


def test_a_revoked_key_manager_gets_no_request_any_more(tmp_path_factory: pytest.TempPathFactory) -> None:
    certificates = Certificates(tmp_path_factory.mktemp("revoked"))
    certificate = x509.load_pem_x509_certificate(certificates.pair("kms")[0].read_bytes())
    crl = certificates.path("kms.crl")
    crl.write_bytes(crl_of(certificates.kms_ca))
    with (
        running_key_manager_processes(certificates, ["kms-1"]) as (key_manager,),
        running_gateway(certificates, GatewaySettings([key_manager.port], backend='crl = "kms.crl"')) as gateway,
        gateway.client() as client,
    ):
        assert is_served(client)
        crl.write_bytes(crl_of(certificates.kms_ca, [certificate]))
        failures = "kmip_gateway_session_open_failures_total"
        wait_until(lambda: gateway.total(failures, reason="revoked") > 0 and not is_served(client), "the revocation")
        assert gateway.total("kmip_gateway_sessions", state="idle") == 0
        assert "the key manager's certificate is not accepted: revoked" in gateway.log.read_text()
        crl.write_bytes(crl_of(certificates.kms_ca))
        wait_until(lambda: is_served(client), "service after the end of the revocation")
