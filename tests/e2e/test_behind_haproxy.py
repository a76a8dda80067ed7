"""HAProxy before two gateways, in TCP mode: it polls /readyz every second, and one gateway ends under load."""

import json
import random
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key
from OpenSSL import SSL

from gateway.errors import GatewayError
from gateway.kmip.spec import ResultStatus
from gateway.tls import client_context
from tests.kit import processes
from tests.kit.haproxy import HAPROXY, HaProxy, running_haproxy
from tests.kit.processes import (
    Certificates,
    GatewaySettings,
    running_gateway,
    running_key_managers,
)

LAME_DUCK: Final = 4.0  # s: three polls of /readyz, and time to spare
DRAIN: Final = 10.0  # s
CLIENT_HOST: Final = "127.0.0.9"  # where clients come from; HAProxy's own connections come from 127.0.0.1

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed: apt-get install haproxy")


@contextmanager
def clients_of_another_address(haproxy: HaProxy, certificates: Certificates) -> Iterator[None]:
    """Hold connections from CLIENT_HOST, as many as reach both gateways."""
    context = ssl.create_default_context(cafile=str(certificates.path("gateway_ca.pem")))
    context.load_cert_chain(*certificates.client("bob"))
    with ExitStack() as stack:
        for _ in range(4):
            address = (haproxy.address.host, haproxy.address.port)
            sock = stack.enter_context(socket.create_connection(address, 10, (CLIENT_HOST, 0)))
            stack.enter_context(context.wrap_socket(sock, server_hostname="localhost"))
        yield


def addresses(path: Path) -> set[str]:
    """Return the addresses of the clients that ``kmip-gateway status`` names."""
    words = [sys.executable, "-m", "gateway", "status", "--socket", str(path), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    status: dict[str, Any] = json.loads(done.stdout)
    return {str(client["address"]) for client in status["clients"]["most"]}


class Load:
    """Clients of HAProxy: with a new connection for each request, and with a kept connection.

    A client whose kept connection the gateway closed without an answer repeats its read on a new connection; no other
    request fails.
    """

    def __init__(self, haproxy: HaProxy, context: SSL.Context, uid: str) -> None:
        self.answered = {"fresh": 0, "kept": 0}
        self.is_over = False
        self._address = haproxy.address
        self._context = context
        self._uid = uid

    async def _ask(self, client: Client, kind: str) -> None:
        response = await client.ask(get_key(self._uid))
        assert response.items[0].status == ResultStatus.SUCCESS, response.items[0].message
        self.answered[kind] += 1

    async def fresh(self) -> None:
        while not self.is_over:
            async with connect(self._address, self._context) as client:
                await self._ask(client, "fresh")
            await trio.sleep(random.uniform(0, 0.02))

    async def kept(self) -> None:
        while not self.is_over:
            async with connect(self._address, self._context) as client:
                await self._ask(client, "kept")
                try:
                    while not self.is_over:
                        await trio.sleep(random.uniform(0, 0.1))
                        await self._ask(client, "kept")
                except GatewayError:  # closed between two requests, at the end of the lame duck
                    continue


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.mark.parametrize(("workers", "header"), [(0, ""), (2, "send-proxy-v2")], ids=["plain", "workers, PROXY v2"])
async def test_no_client_is_refused_while_a_gateway_ends(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, workers: int, header: str
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    listener = 'proxy_protocol = true\nproxy_from = ["127.0.0.1"]' if header else ""
    control = certificates.path("control.sock")
    deadlines = f"[deadlines]\nlame_duck = {LAME_DUCK}\ndrain = {DRAIN}\n"
    ending_settings = GatewaySettings([], listener=listener, extra=f'socket = "{control}"\n{deadlines}')
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, replace(ending_settings, backends=ports)) as ending,
        running_gateway(certificates, GatewaySettings(ports, listener=listener)) as staying,
        running_haproxy(certificates.directory, ending, staying, header) as haproxy,
    ):
        async with connect(haproxy.address, context) as client:
            uid = (await client.ask(create_key())).items[0].unique_identifiers[0].decode()
        with clients_of_another_address(haproxy, certificates):
            seen = addresses(control)
            assert (CLIENT_HOST in seen) is bool(header), seen
        load = Load(haproxy, context, uid)
        async with trio.open_nursery() as nursery:
            for work in (load.fresh, load.fresh, load.kept, load.kept, load.kept, load.kept):
                nursery.start_soon(work)
            await trio.sleep(1)
            ending.process.terminate()
            began = time.monotonic()
            assert await trio.to_thread.run_sync(lambda: ending.process.wait(LAME_DUCK + DRAIN)) == 0
            assert time.monotonic() - began >= LAME_DUCK
            assert await trio.to_thread.run_sync(haproxy.is_up, "two")
            before = dict(load.answered)
            await trio.sleep(1)
            assert all(load.answered[kind] > before[kind] for kind in before)
            load.is_over = True
        servers = haproxy.servers()
        assert {name: (int(row["econ"]), int(row["eresp"])) for name, row in servers.items()} == {
            "one": (0, 0),
            "two": (0, 0),
        }
        assert int(servers["one"]["stot"]) > 0
    assert "Traceback" not in ending.log.read_text()
