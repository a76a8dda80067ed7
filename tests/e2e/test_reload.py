"""Reloads of a gateway process under load: fresh and kept clients notice none of them."""

from pathlib import Path

import pytest
import trio
from cryptography import x509
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import create_key
from OpenSSL import SSL

from gateway.kmip.spec import ResultStatus
from gateway.tls import client_context
from tests.kit.processes import (
    HOSTS,
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_managers,
)
from tests.kit.reloads import OPENED, SESSIONS, Load, Reloads, table, under_load

ALICE = Identity("alice", '{ subject_cn = "alice" }', shared=False, credential="alice")
BOB = Identity("bob", '{ subject_cn = "bob" }', shared=False, credential="bob")


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def test_clients_notice_no_reload(certificates: Certificates) -> None:
    with running_key_managers(certificates, ("kms-1", "kms-2")) as ports:
        settings = GatewaySettings(ports, [ALICE, BOB], extra="[pool]\nmin_idle = 6\n")
        with running_gateway(certificates, settings) as gateway:
            it = Reloads(gateway)
            one, bob = table(it.original, "kms-2"), table(it.original, "bob")
            await it.until(lambda: it.total(SESSIONS, state="idle") + it.total(SESSIONS, state="busy") >= 24)
            async with under_load(Load(gateway)) as load:
                await trio.sleep(0.5)
                opened = it.total(OPENED)
                await it.reload(it.original)
                await it.reload(it.original.replace('name = "kms-2"', 'name = "kms-2"\nweight = 3'))
                await it.reload(it.original + "\n[limits]\nmax_clients = 500\n")
                await it.reload(it.original + "\n[limits]\nmax_clients = 0\n", "failure")
                await it.reload("not TOML", "failure")
                assert it.total(OPENED) == opened  # nothing above costs a session
                first, second = (it.total(OPENED, backend=name) for name in ("kms-1", "kms-2"))
                await it.reload(it.original.replace(one, ""))
                await it.reload(it.original)
                await it.until(lambda: it.total(OPENED, backend="kms-2") >= second + 12)
                assert it.total(OPENED, backend="kms-1") == first
                first = it.total(OPENED)
                await it.reload(it.original.replace(bob, ""))
                assert it.total(OPENED) == first
                await it.reload(it.original)
                await it.until(lambda: it.total(OPENED) >= first + 12)
                assert it.total(OPENED) == first + 12  # bob's
                certificates.kms_clients_ca.issue_client("bob").write(*certificates.pair("credential-bob"))
                await it.files_changed()
                await it.until(lambda: it.total(OPENED) >= first + 24)
                certificates.gateway_ca.issue_server("renewed", HOSTS).write(*certificates.pair("server"))
                await it.files_changed()
                await trio.sleep(1)
                before = dict(load.answered)
                await trio.sleep(0.5)
                assert all(load.answered[kind] > before[kind] + 3 for kind in before)
                assert it.total(OPENED) == first + 24
                await it.look()
            assert load.failures == []
            assert it.total("kmip_gateway_local_errors_total") == 0
            assert it.total("kmip_gateway_client_connection_errors_total") == 0
            assert it.total("kmip_gateway_session_open_failures_total") == 0
        text = gateway.log.read_text()
        assert "Traceback" not in text
        assert "internal error" not in text


async def test_new_connections_get_the_renewed_certificate(certificates: Certificates) -> None:
    with (
        running_key_managers(certificates, ("kms-1",)) as ports,
        running_gateway(certificates, GatewaySettings(ports, [ALICE])) as gateway,
    ):
        it = Reloads(gateway)
        context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
        async with connect(gateway.address, context) as kept:
            assert (await kept.ask(create_key())).items[0].status == ResultStatus.SUCCESS
            certificates.gateway_ca.issue_server("renewed", HOSTS).write(*certificates.pair("server"))
            await it.reload(it.original)
            with trio.fail_after(15):
                while "renewed" not in await shown(gateway, context):  # noqa: ASYNC110 - as above
                    await trio.sleep(0.1)
            await trio.sleep(0.5)
            assert {await shown(gateway, context) for _ in range(20)} == {"CN=renewed"}
            assert (await kept.ask(create_key())).items[0].status == ResultStatus.SUCCESS


async def shown(gateway: Gateway, context: SSL.Context) -> str:
    """Return the subject of the certificate that the gateway shows to a new connection."""
    async with connect(gateway.address, context) as client:
        certificate = x509.load_der_x509_certificate(client.stream.peer_certificate_der() or b"")
    return certificate.subject.rfc4514_string()
