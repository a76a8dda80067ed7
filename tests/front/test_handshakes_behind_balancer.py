"""Listeners behind a load balancer: the PROXY header names the client, and only listed balancers may send one."""

import socket
from collections.abc import Callable

import pytest
import trio
from kmip_lab.tools.clients import Client
from trio.testing import MockClock

from gateway.config import PerAddressConfig
from gateway.kmip.spec import ResultReason
from gateway.tls import TlsStream
from tests.kit.front import (
    NAME,
    NO_CLIENT,
    Front,
    connect_tcp,
    is_open,
    number_of,
    open_front,
    request,
    until,
    wait_for_end,
)
from tests.kit.processes import Certificates
from tests.kit.proxy_headers import TCP4, TLVS, v2
from tests.kit.settings import listener_config, make_admission
from tests.kit.streams import client_tls

pytestmark = pytest.mark.usefixtures("tls_ends_in")

BEHIND = listener_config(NAME, proxy_protocol=True, proxy_from=("127.0.0.1", "2001:db8::/32"))
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.7 8080 5696\r\n"


async def shake_hands(front: Front, header: bytes, pieces: int = 1) -> Client:
    sock = connect_tcp(front)
    for at in range(0, len(header), -(-len(header) // pieces)):
        sock.send(header[at : at - (-len(header) // pieces)])
        await trio.lowlevel.checkpoint()
    stream = TlsStream(sock, client_tls(front.certificates), server_side=False)
    await stream.handshake()
    return Client(stream)


@pytest.mark.parametrize("pieces", [1, 13])
@pytest.mark.parametrize("header", [V1, v2(0x21, 0x11, TCP4 + TLVS)], ids=["version 1", "version 2"])
async def test_client_behind_balancer_is_logged_with_its_own_address(
    certificates: Certificates, header: bytes, pieces: int
) -> None:
    async with open_front(certificates, settings=BEHIND, match=NO_CLIENT) as front:
        client = await shake_hands(front, header, pieces)
        answer = await client.ask(request())
        assert answer.items[0].reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
        client.stream.close_politely()
    assert [entry["peer"] for entry in front.log.entries] == ["192.0.2.1:8080"]


async def test_limits_are_applied_to_the_address_of_the_header(certificates: Certificates) -> None:
    admission = make_admission(per_address=PerAddressConfig(max_clients=1))
    async with open_front(certificates, settings=BEHIND, admission=admission) as front:
        first = await shake_hands(front, V1)
        assert number_of(await first.ask(request(1))) == 1
        with connect_tcp(front) as second:
            second.send(V1)
            await wait_for_end(second)
        other = await shake_hands(front, V1.replace(b"192.0.2.1", b"192.0.2.2"))
        assert number_of(await other.ask(request(2))) == 2
        for client in (first, other):
            client.stream.close_politely()
        await until(lambda: front.clients == 0)
        assert front.errors == {"limit": 1}
        assert front.log.entries[0]["peer"] == "192.0.2.1:8080"
    assert len(admission.sources) == 0


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", v2(0x20, 0x00, b"")], ids=["UNKNOWN", "LOCAL"])
async def test_client_without_address_in_its_header_has_the_balancers(
    certificates: Certificates, header: bytes
) -> None:
    async with open_front(certificates, settings=BEHIND, match=NO_CLIENT) as front:
        client = await shake_hands(front, header)
        await client.ask(request())
        client.stream.close_politely()
    (entry,) = front.log.entries
    assert entry["peer"].startswith("127.0.0.1:")


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01", b"PROXY TCP4 192.0.2.1\r\n", v2(0x21, 0x12, TCP4)],
    ids=["TLS", "broken", "datagrams"],
)
async def test_connection_without_a_valid_header_is_closed_and_counted(certificates: Certificates, sent: bytes) -> None:
    async with open_front(certificates, settings=BEHIND) as front:
        with connect_tcp(front) as sock:
            sock.send(sent)
            with trio.fail_after(5):
                await wait_for_end(sock)
        await until(lambda: front.clients == 0)
        assert front.errors == {"proxy_header": 1}
        assert front.log.entries[0]["setting"] == "listeners.proxy_protocol"


async def test_connection_from_outside_proxy_from_is_closed_and_counted(certificates: Certificates) -> None:
    async with open_front(certificates, settings=BEHIND) as front:
        with connect_tcp(front, "127.0.0.2") as sock:
            sock.send(V1)
            await wait_for_end(sock)
        assert front.errors == {"proxy_source": 1}
        assert front.log.entries[0]["setting"] == "listeners.proxy_from"
        assert front.log.entries[0]["peer"].startswith("127.0.0.2:")


async def test_health_check_of_a_balancer_is_counted_as_client_closed(certificates: Certificates) -> None:
    async with open_front(certificates, settings=BEHIND) as front:
        connect_tcp(front).close()
        await until(lambda: front.errors == {"client_closed": 1})
        assert front.log.entries == []


async def test_header_comes_under_the_handshake_deadline(certificates: Certificates, clock: MockClock) -> None:
    async with open_front(certificates, settings=BEHIND) as front:
        began = clock.current_time()
        with connect_tcp(front) as silent, connect_tcp(front) as half:
            half.send(V1[:20])
            for sock in (silent, half):
                await wait_for_end(sock)
        assert clock.current_time() - began == pytest.approx(10, abs=0.5)
        await until(lambda: front.errors == {"handshake_timeout": 2})


async def test_oldest_connection_without_header_is_evicted(
    certificates: Certificates,
) -> None:
    admission = make_admission(max_half_open=3, per_address=PerAddressConfig(max_half_open=1))
    async with open_front(certificates, settings=BEHIND, admission=admission) as front:
        silent = [connect_tcp(front) for _ in range(5)]
        await until(lambda: front.errors == {"evicted": 2})
        assert [is_open(sock) for sock in silent] == [False] * 2 + [True] * 3
        client = await shake_hands(front, V1)
        assert number_of(await client.ask(request(2))) == 2
        client.stream.close_politely()
        for sock in silent:
            sock.close()
    assert len(admission.half_open) == 0


def drain(front: Front) -> None:
    front.drain()


def refuse_and_drain(front: Front) -> None:
    front.listener.stop_accepting()
    front.drain()


@pytest.mark.parametrize("end", [drain, refuse_and_drain])
async def test_drain_does_not_wait_for_a_header(certificates: Certificates, end: Callable[[Front], None]) -> None:
    async with open_front(certificates, settings=BEHIND) as front:
        with connect_tcp(front) as silent, connect_tcp(front) as half:
            half.send(V1[:20])
            await until(lambda: front.clients == 2)
            end(front)
            with trio.fail_after(5):
                await wait_for_end(silent)
                await wait_for_end(half)
        await until(lambda: front.errors == {"drain": 2})


@pytest.mark.parametrize("header", [V1, v2(0x21, 0x11, TCP4)], ids=["version 1", "version 2"])
async def test_unexpected_header_is_logged_with_the_setting(certificates: Certificates, header: bytes) -> None:
    async with open_front(certificates) as front:
        with connect_tcp(front) as sock:
            sock.send(header)
            await wait_for_end(sock)
        await until(lambda: front.clients == 0)
        assert front.errors == {"not_tls": 1}
        (entry,) = front.log.entries
        assert "PROXY" in entry["event"]
        assert entry["setting"] == "listeners.proxy_protocol"


async def test_mapped_address_of_a_balancer_matches_its_ipv4_address(certificates: Certificates) -> None:
    """A socket on :: sees IPv4 clients as ::ffff:a.b.c.d."""
    listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    async with open_front(certificates, settings=BEHIND, listening=listening) as front:
        client = await shake_hands(front, V1)
        assert number_of(await client.ask(request(6))) == 6
        client.stream.close_politely()
