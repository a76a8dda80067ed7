"""Reloads of a gateway process under load: fresh and kept clients notice none of them."""

import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography import x509
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key
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

ALICE = Identity("alice", '{ subject_cn = "alice" }', shared=False, credential="alice")
BOB = Identity("bob", '{ subject_cn = "bob" }', shared=False, credential="bob")
RELOADS = "kmip_gateway_config_reloads_total"
OPENED = "kmip_gateway_sessions_opened_total"
SESSIONS = "kmip_gateway_sessions"


class Load:
    """Clients that ask without a break: kept ones, and one with a fresh connection for each request."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.context = client_context(
            *gateway.certificates.client("alice"), gateway.certificates.path("gateway_ca.pem")
        )
        self.answered = {"kept": 0, "fresh": 0}
        self.uid = ""

    async def prepare(self) -> None:
        async with connect(self.gateway.address, self.context) as client:
            self.uid = (await client.ask(create_key())).items[0].unique_identifiers[0].decode()

    async def ask(self, client: Client, kind: str) -> None:
        response = await client.ask(get_key(self.uid))
        assert response.items[0].status == ResultStatus.SUCCESS, response.items[0].message
        self.answered[kind] += 1
        await trio.sleep(random.uniform(0, 0.02))

    async def keep(self) -> None:
        async with connect(self.gateway.address, self.context) as client:
            while True:
                await self.ask(client, "kept")

    async def come_and_go(self) -> None:
        while True:
            async with connect(self.gateway.address, self.context) as client:
                await self.ask(client, "fresh")


class Reloads:
    """The configuration file of a gateway process, and its reloads."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.path = gateway.certificates.path(f"gateway-{gateway.port}.toml")
        self.original = self.path.read_text()
        self.samples: dict[str, float] = {}  # at the last look

    async def look(self) -> None:
        """Read all metrics, and check that no counter has gone backwards. In a thread: the clients here go on."""
        before, self.samples = self.samples, await trio.to_thread.run_sync(self.gateway.metrics)
        lower = [name for name in before if "_total" in name and self.samples.get(name, 0.0) < before[name]]
        assert lower == []

    def total(self, family: str, **labels: str) -> float:
        """Return the sum of the samples of a family with these labels, at the last look."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(
            value
            for sample, value in self.samples.items()
            if sample.partition("{")[0] == family and all(label in sample for label in wanted)
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(15):
            await self.look()
            while not condition():
                await trio.sleep(0.1)
                await self.look()

    async def reload(self, text: str, result: str = "success") -> None:
        """Write the file, send SIGHUP, and wait until the reload is counted."""
        before = self.total(RELOADS, result=result)
        self.path.write_text(text)
        self.gateway.process.send_signal(signal.SIGHUP)
        await self.until(lambda: self.total(RELOADS, result=result) == before + 1)

    async def files_changed(self) -> None:
        """Wait until the gateway has noticed by itself that files have changed."""
        before = self.total(RELOADS)
        await self.until(lambda: self.total(RELOADS) == before + 1)


def table(text: str, name: str) -> str:
    """Return the table of a backend or an identity, with its head."""
    start = text.rindex("\n[[", 0, text.index(f'name = "{name}"'))
    end = text.find("\n[[", start + 1)
    return text[start : end if end > 0 else None]


@asynccontextmanager
async def under_load(gateway: Gateway) -> AsyncIterator[Load]:
    load = Load(gateway)
    await load.prepare()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(load.keep)
        nursery.start_soon(load.come_and_go)
        yield load
        nursery.cancel_scope.cancel()


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
            async with under_load(gateway) as load:
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
