"""Floods of TLS records against a gateway with TLS workers: kept clients and the admin port are served as before.

The attackers are threads of this process, bounded in time, and stay on loopback.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import pytest
import trio
from kmip_lab.tools import usage
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key

from gateway.kmip.spec import ResultStatus
from gateway.tls import client_context
from tests.kit import processes
from tests.kit.attackers import HostilePeer
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    running_gateway,
    running_key_managers,
)

WORKERS: Final = 2
SECONDS: Final = 4.0  # of the attack
KEPT: Final = 10  # clients; one worker may get few of them, but hardly none
ERRORS: Final = "kmip_gateway_client_connection_errors_total"
#: A ClientHello of 131,000 bytes in records of one byte each.
TINY_RECORDS: Final = b"".join(
    b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in b"\x01\x01\xff\xb8\x03\x03" + bytes(130_998)
)


@pytest.fixture
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def gateway(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(processes, "TLS_WORKERS", WORKERS)
    control = certificates.path("control.sock")
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, GatewaySettings(ports, extra=f'socket = "{control}"\n')) as gateway,
    ):
        yield gateway


def connected(gateway: Gateway, source: str) -> socket.socket:
    return socket.create_connection((gateway.address.host, gateway.address.port), 10, (source, 0))


def update_keys(gateway: Gateway) -> None:
    """Send KeyUpdates until the gateway closes the connection."""
    with HostilePeer(connected(gateway, "127.0.0.2"), *gateway.certificates.client("mallory")) as peer:
        if peer.shake_hands():
            peer.update_keys(100_000)


def send_tiny_records(gateway: Gateway) -> None:
    """Send the ClientHello in one-byte records; no certificate is needed."""
    with connected(gateway, "127.0.0.3") as sock:
        sock.sendall(TINY_RECORDS)


def attack(gateway: Gateway, how: Callable[[Gateway], None], until: float) -> None:
    while time.monotonic() < until:
        with suppress(OSError):
            how(gateway)
        time.sleep(0.05)


async def test_kept_clients_and_the_admin_port_notice_no_flood(certificates: Certificates, gateway: Gateway) -> None:
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    certificates.client("mallory")
    assert len(usage.children(gateway.process.pid)) == 1 + WORKERS
    async with connect(gateway.address, context) as client:
        uid = (await client.ask(create_key())).items[0].unique_identifiers[0].decode()
    answered = [0] * KEPT
    scraped = 0
    until = time.monotonic() + SECONDS

    async def ask(client: Client, index: int) -> None:
        response = await client.ask(get_key(uid))
        assert response.items[0].status == ResultStatus.SUCCESS, response.items[0].message
        answered[index] += 1

    async def keep(index: int, *, task_status: trio.TaskStatus[None]) -> None:
        async with connect(gateway.address, context) as client:
            await ask(client, index)
            task_status.started()
            while time.monotonic() < until:
                await trio.sleep(0.02)
                await ask(client, index)

    async def scrape() -> None:
        nonlocal scraped
        while time.monotonic() < until:
            assert await trio.to_thread.run_sync(gateway.is_ready)
            await trio.to_thread.run_sync(gateway.metrics)
            scraped += 1
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        for index in range(KEPT):
            await nursery.start(keep, index)
        until = time.monotonic() + SECONDS
        attackers = [
            threading.Thread(target=attack, args=(gateway, how, until))
            for how in (update_keys, update_keys, send_tiny_records)
        ]
        for attacker in attackers:
            attacker.start()
        nursery.start_soon(scrape)
    for attacker in attackers:
        await trio.to_thread.run_sync(attacker.join)
    assert min(answered) > 1
    assert scraped > 1
    errors = {reason: gateway.total(ERRORS, reason=reason) for reason in ("records", "handshake_too_large")}
    assert min(errors.values()) > 0, errors
    assert gateway.total("kmip_gateway_local_errors_total") == 0
    async with connect(gateway.address, context) as client:
        assert (await client.ask(get_key(uid))).items[0].status == ResultStatus.SUCCESS
    text = gateway.log.read_text()
    assert "Traceback" not in text
    assert "TLS worker ended" not in text
