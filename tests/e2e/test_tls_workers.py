"""TLS workers as processes: deaths, drains, resumption, and refusals, with real clients and key managers."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key
from OpenSSL import SSL

from gateway.errors import GatewayError
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.kmip.ttlv import text
from gateway.tls import client_context
from tests.kit import processes
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    running_gateway,
    running_key_managers,
    wait_until,
    write_config,
)
from tests.kit.worker_processes import core_of, worker_of, workers_of

WORKERS = 2


@pytest.fixture
def gateway(certificates: Certificates, key_managers: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(processes, "TLS_WORKERS", WORKERS)
    with running_gateway(certificates, GatewaySettings(key_managers)) as gateway:
        wait_until(lambda: len(workers_of(gateway)) == WORKERS, "the workers' start")
        yield gateway


def is_running(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def context_of(certificates: Certificates) -> SSL.Context:
    return client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))


async def made_key(client: Client) -> str:
    created = (await client.ask(create_key())).items[0]
    assert created.status == ResultStatus.SUCCESS
    return created.unique_identifiers[0].decode()


async def test_a_killed_worker_costs_its_own_clients_only(certificates: Certificates, gateway: Gateway) -> None:
    context = context_of(certificates)
    async with trio.open_nursery() as nursery, connect(gateway.address, context) as first:
        uid = await made_key(first)
        clients: dict[int, list[Client]] = {worker: [] for worker in workers_of(gateway)}

        async def hold(*, task_status: trio.TaskStatus[Client]) -> None:
            async with connect(gateway.address, context) as client:
                task_status.started(client)
                await trio.sleep_forever()

        while not all(clients.values()) or sum(map(len, clients.values())) < 8:
            client: Client = await nursery.start(hold)
            port = client.stream._socket.getsockname()[1]
            clients[worker_of(port, gateway)].append(client)
        killed, *others = workers_of(gateway)
        if worker_of(first.stream._socket.getsockname()[1], gateway) == killed:
            killed, others = others[0], [killed]
        core = core_of(gateway)
        os.kill(killed, signal.SIGKILL)
        for client in clients[killed]:
            with pytest.raises(GatewayError):
                await client.ask(get_key(uid))
        for client in clients[others[0]]:
            assert (await client.ask(get_key(uid))).items[0].status == ResultStatus.SUCCESS
        await trio.to_thread.run_sync(
            wait_until, lambda: len(workers_of(gateway)) == WORKERS, "the start of another worker"
        )
        assert core_of(gateway) == core
        for _ in range(20):
            async with connect(gateway.address, context) as fresh:
                assert (await fresh.ask(get_key(uid))).items[0].status == ResultStatus.SUCCESS
        nursery.cancel_scope.cancel()
    assert "TLS worker ended" in gateway.log.read_text()


async def test_the_end_of_the_core_ends_everything_at_once(certificates: Certificates, gateway: Gateway) -> None:
    async with connect(gateway.address, context_of(certificates)) as client:
        await made_key(client)
        workers = workers_of(gateway)
        os.kill(core_of(gateway), signal.SIGKILL)
        status = await trio.to_thread.run_sync(lambda: gateway.process.wait(10))
    assert status == 128 + signal.SIGKILL
    assert not any(is_running(worker) for worker in workers)
    with socket.socket() as sock:
        assert sock.connect_ex((gateway.address.host, gateway.address.port)) != 0


async def test_a_drain_answers_the_request_in_flight_and_refuses_connections(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", WORKERS)
    with running_key_managers(certificates, ("kms-1",), "--operation-cost", "1.0") as ports:
        settings = GatewaySettings(ports, extra="[deadlines]\ndrain = 20\n")
        with running_gateway(certificates, settings) as gateway:
            context = context_of(certificates)
            async with connect(gateway.address, context) as idle, connect(gateway.address, context) as busy:
                await busy.stream.send_all(create_key())
                await trio.to_thread.run_sync(
                    wait_until, lambda: gateway.total("kmip_gateway_requests_in_flight") == 1, "the request's start"
                )
                gateway.process.send_signal(signal.SIGTERM)
                assert await idle.stream.receive_some() == b""
                with socket.socket() as sock:
                    assert sock.connect_ex((gateway.address.host, gateway.address.port)) != 0
                assert (await busy.read_response()).items[0].status == ResultStatus.SUCCESS
                assert await busy.stream.receive_some() == b""
            assert await trio.to_thread.run_sync(lambda: gateway.process.wait(10)) == 0


def test_a_session_resumes_on_every_worker(certificates: Certificates, gateway: Gateway) -> None:
    context = ssl.create_default_context(cafile=str(certificates.path("gateway_ca.pem")))
    context.load_cert_chain(*certificates.client("alice"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    session: ssl.SSLSession | None = None
    workers = set()
    for _ in range(60):
        with (
            socket.create_connection((gateway.address.host, gateway.address.port)) as sock,
            context.wrap_socket(sock, server_hostname="localhost", session=session) as tls,
        ):
            assert tls.session_reused == (session is not None)
            session = session or tls.session
            workers.add(worker_of(tls.getsockname()[1], gateway))
    assert len(workers) == WORKERS


def test_counts_of_handshakes_and_errors_reach_the_metrics(gateway: Gateway) -> None:
    for _ in range(5):
        with socket.create_connection((gateway.address.host, gateway.address.port)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            sock.recv(100)
    name = "kmip_gateway_client_connection_errors_total"
    wait_until(lambda: gateway.total(name) == 5, "the counts of the workers")


def test_restarts_cpu_time_and_memory_of_workers_reach_the_metrics(gateway: Gateway) -> None:
    def total(name: str, **labels: str) -> float:
        return gateway.total(f"kmip_gateway_{name}", **labels)

    wait_until(lambda: total("worker_cpu_seconds_total") > 0, "the reports of the workers")
    wait_until(lambda: total("event_loop_lag_seconds_count", process="worker") > 4, "the lag of the workers")
    assert total("workers") == WORKERS
    assert total("worker_resident_memory_bytes") > WORKERS * 10_000_000
    assert total("worker_restarts_total") == 0
    before = total("worker_cpu_seconds_total")

    os.kill(workers_of(gateway)[0], signal.SIGKILL)

    wait_until(lambda: total("worker_restarts_total") == 1 and total("workers") == WORKERS, "the next worker")
    assert total("worker_cpu_seconds_total") >= before


COUNTED = (
    "requests_total",
    "request_size_bytes_count",
    "request_size_bytes_sum",
    "response_size_bytes_count",
    "response_size_bytes_sum",
    "batch_items_count",
    "backend_requests_total",
    "client_handshakes_total",
    "session_age_seconds_count",
)


async def test_counts_go_on_over_the_end_of_workers_and_a_reload(certificates: Certificates, gateway: Gateway) -> None:
    def counted() -> dict[str, float]:
        return {name: gateway.total(f"kmip_gateway_{name}") for name in COUNTED}

    async def use() -> None:
        async with connect(gateway.address, context_of(certificates)) as client:
            uid = text(Tag.UNIQUE_IDENTIFIER, await made_key(client))
            asked = [Ask(Operation.GET, uid, bytes([index])) for index in range(3)]
            answers = (await client.ask(encode_request((1, 2), asked))).items
            assert [item.status for item in answers] == [ResultStatus.SUCCESS] * 3

    def end_a_worker() -> None:
        os.kill(workers_of(gateway)[0], signal.SIGKILL)
        wait_until(lambda: gateway.total("kmip_gateway_worker_restarts_total") == 1, "another worker")

    def replace_all_workers() -> None:
        config = certificates.path(f"gateway-{gateway.port}.toml")
        config.write_text(config.read_text() + "\n[per_address]\nmax_half_open = 77\n")
        before = workers_of(gateway)
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not set(workers_of(gateway)) & set(before), "other workers")

    await use()
    seen = [await trio.to_thread.run_sync(counted)]
    for change in (end_a_worker, replace_all_workers):
        await trio.to_thread.run_sync(change)
        await use()
        seen.append(await trio.to_thread.run_sync(counted))

    for before, now in pairwise(seen):
        assert all(now[name] >= before[name] for name in COUNTED), (before, now)
        assert now["request_size_bytes_count"] >= before["request_size_bytes_count"] + 2
        assert now["batch_items_count"] == before["batch_items_count"] + 1
    assert gateway.total("kmip_gateway_tls_ticket_key_age_seconds") > 0


@pytest.mark.parametrize("taken", ["listener", "admin"])
def test_an_address_in_use_is_a_mistake_of_one_line(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", WORKERS)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        ports = (port, processes.free_port()) if taken == "listener" else (processes.free_port(), port)
        config = write_config(certificates, GatewaySettings([1]), *ports)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "run", str(config)],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "cannot listen on" in line]
    assert line.startswith(str(config))
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 15
