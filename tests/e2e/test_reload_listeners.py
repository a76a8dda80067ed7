"""Listeners come and go by reload: with one process, and with TLS workers."""

import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key
from OpenSSL import SSL

from gateway.config import Address
from gateway.errors import GatewayError
from gateway.kmip.messages import Response
from gateway.kmip.spec import ResultReason, ResultStatus
from gateway.tls import client_context
from tests.kit import processes
from tests.kit.processes import (
    Certificates,
    GatewaySettings,
    Identity,
    free_port,
    running_gateway,
    running_key_managers,
)
from tests.kit.reloads import Load, Reloads, table, under_load
from tests.kit.worker_processes import workers_of

RETIRE = 2.0  # s
ALICE = Identity("alice", '{ subject_cn = "alice" }', shared=False, credential="alice")
BOB = Identity("bob", '{ subject_cn = "bob" }', shared=False, credential="bob")


@pytest.fixture(scope="module")
def key_managers(certificates: Certificates) -> Iterator[list[int]]:
    with running_key_managers(certificates, ("kms-1",), "--operation-cost", "0.3") as ports:
        yield ports


class Reloaded(Reloads):
    """A gateway whose listeners change."""

    def context(self, name: str = "alice") -> SSL.Context:
        certificates = self.gateway.certificates
        return client_context(*certificates.client(name), certificates.path("gateway_ca.pem"))

    @asynccontextmanager
    async def client(self, port: int | None = None, name: str = "alice") -> AsyncIterator[Client]:
        async with connect(Address("127.0.0.1", port or self.gateway.port), self.context(name)) as client:
            yield client

    async def serves(self, port: int) -> bool:
        async with self.client(port) as client:
            return succeeded(await client.ask(create_key()))

    def log(self) -> str:
        return self.gateway.log.read_text()


@pytest.fixture(params=[0, 2])
def it(
    request: pytest.FixtureRequest,
    certificates: Certificates,
    key_managers: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Reloaded]:
    monkeypatch.setattr(processes, "TLS_WORKERS", request.param)
    settings = GatewaySettings(key_managers, [ALICE, BOB], extra=f"[deadlines]\nretire = {RETIRE}\n")
    with running_gateway(certificates, settings) as gateway:
        yield Reloaded(gateway)


def listener(name: str, bind: str) -> str:
    return f"""
[[listeners]]
name = "{name}"
bind = "{bind}"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients_ca.pem"
"""


def succeeded(response: Response) -> bool:
    return response.items[0].status == ResultStatus.SUCCESS


def refuses(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


async def test_a_listener_is_added_and_removed(it: Reloaded) -> None:
    port = free_port()
    await it.look()
    await it.reload(it.original + listener("second", f"127.0.0.1:{port}"))
    async with it.client(port) as quiet, it.client(port) as busy, it.client() as other:
        for client in (quiet, busy, other):
            assert succeeded(await client.ask(create_key()))
        assert it.total("kmip_gateway_accepting", listener="second") == 1
        await busy.stream.send_all(create_key())
        await it.reload(it.original)
        assert refuses(port)
        assert 'accepting{listener="second"}' not in str(it.samples)
        assert succeeded(await busy.read_response())
        assert succeeded(await quiet.ask(create_key()))  # it stays until the deadline
        with trio.fail_after(RETIRE + 8):
            assert await quiet.stream.receive_some() == b""
            assert await busy.stream.receive_some() == b""
        if not processes.TLS_WORKERS:
            assert succeeded(await other.ask(create_key()))
    assert await it.serves(it.gateway.port)
    await it.reload(it.original + listener("second", f"127.0.0.1:{port}"))  # the port is free
    assert await it.serves(port)
    assert "internal error" not in it.log()


async def test_a_listener_moves_to_another_address(it: Reloaded) -> None:
    port = free_port()
    await it.look()
    async with it.client() as kept:
        assert succeeded(await kept.ask(create_key()))
        await it.reload(it.original.replace(f"127.0.0.1:{it.gateway.port}", f"127.0.0.1:{port}"))
        assert refuses(it.gateway.port)
        assert await it.serves(port)
        assert succeeded(await kept.ask(create_key()))
        assert it.total("kmip_gateway_accepting", listener="kmip") == 1
        await it.reload(it.original)
        assert refuses(port)
        assert await it.serves(it.gateway.port)


async def test_a_renamed_listener_keeps_its_address_and_refuses_nobody(it: Reloaded) -> None:
    await it.look()
    load = Load(it.gateway)
    text = it.original.replace(f"retire = {RETIRE}", "retire = 60.0")
    async with under_load(load, kept=1, fresh=2):
        for name in ("renamed", "kmip"):
            await it.reload(text.replace('name = "kmip"', f'name = "{name}"'))
            before = load.answered["fresh"]
            await it.until(lambda before=before: load.answered["fresh"] > before + 4)  # type: ignore[misc]
    assert load.failures == []


async def test_an_address_in_use_fails_the_reload_and_nothing_changes(it: Reloaded) -> None:
    await it.look()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = it.original.replace('name = "bob"', 'name = "robert"') + listener("second", f"127.0.0.1:{port}")
        await it.reload(text, "failure")
    assert f'listeners["second"].bind: cannot listen on 127.0.0.1:{port}' in it.log()
    async with it.client(name="bob") as bob:
        assert succeeded(await bob.ask(create_key()))
    await it.reload(it.original.replace(f"127.0.0.1:{it.gateway.port}", f"0.0.0.0:{it.gateway.port}"), "failure")
    assert 'restart the gateway: its own listener "kmip" has the port' in it.log()
    assert await it.serves(it.gateway.port)


async def test_a_listener_that_comes_back_keeps_its_clients(it: Reloaded) -> None:
    text = it.original + listener("second", f"127.0.0.1:{free_port()}")
    await it.look()
    await it.reload(text)
    if processes.TLS_WORKERS:
        pytest.skip("the clients of replaced workers leave in any case")
    async with it.client(int(text.rpartition("127.0.0.1:")[2].partition('"')[0])) as kept:
        assert succeeded(await kept.ask(create_key()))
        await it.reload(it.original)
        await it.reload(text)
        await trio.sleep(RETIRE + 1.5)
        assert succeeded(await kept.ask(create_key()))


# Clients over a reload ------------------------------------------------------------------------------------------------


async def test_clients_of_a_removed_identity_are_told(it: Reloaded) -> None:
    await it.look()
    async with it.client(name="bob") as bob, it.client(name="bob") as busy, it.client() as alice:
        for client in (bob, busy, alice):
            assert succeeded(await client.ask(create_key()))
        await busy.stream.send_all(create_key())
        await it.until(lambda: it.total("kmip_gateway_requests_in_flight") == 1)
        await it.reload(it.original.replace(table(it.original, "bob"), ""))
        assert succeeded(await busy.read_response())  # in flight: it finishes
        told = (await bob.ask(create_key())).items[0]
        assert told.reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
        assert await bob.stream.receive_some() == b""
        assert succeeded(await alice.ask(create_key()))


async def test_limits_of_an_address_reach_the_process_that_accepts(it: Reloaded) -> None:
    await it.look()
    assert await it.serves(it.gateway.port)
    before = workers_of(it.gateway) if processes.TLS_WORKERS else ()
    await it.reload(it.original + "\n[per_address]\nmax_clients = 2\n")
    if processes.TLS_WORKERS:
        await it.until(lambda: set(before).isdisjoint(workers_of(it.gateway)))
    await wait_for_workers(it)
    async with AsyncExitStack() as stack:
        served = 0
        for _ in range(6):
            try:
                client = await stack.enter_async_context(it.client())
                served += succeeded(await client.ask(create_key()))
            except (GatewayError, OSError):
                continue
        assert 1 <= served <= 2
    await it.until(lambda: it.total("kmip_gateway_limit_rejections_total", limit="address_max_clients") >= 1)
    await it.reload(it.original)
    await wait_for_workers(it)
    async with AsyncExitStack() as stack:
        for _ in range(6):
            assert succeeded(await (await stack.enter_async_context(it.client())).ask(create_key()))


async def test_many_reloads_leave_few_workers(it: Reloaded) -> None:
    """A client for each generation, which never asks again: earlier generations let go of theirs."""
    if not processes.TLS_WORKERS:
        pytest.skip("no workers")
    it.path.write_text(it.original.replace(f"retire = {RETIRE}", "retire = 600.0"))
    await it.look()
    async with AsyncExitStack() as stack:
        for number in range(8):
            client = await stack.enter_async_context(it.client())
            assert succeeded(await client.ask(create_key()))
            text = it.original.replace(f"retire = {RETIRE}", "retire = 600.0")
            await it.reload(f"{text}\n[per_address]\nmax_clients = {1000 + number}\n")
            assert len(workers_of(it.gateway)) <= 5 * processes.TLS_WORKERS
        await wait_for_workers(it, 3 * processes.TLS_WORKERS)
        assert await it.serves(it.gateway.port)


async def wait_for_workers(it: Reloaded, most: int | None = None) -> None:
    """Wait until replaced workers without clients have ended."""
    most = processes.TLS_WORKERS if most is None else most
    with trio.fail_after(15):
        while len(workers_of(it.gateway) if processes.TLS_WORKERS else ()) > most:  # noqa: ASYNC110 - other processes
            await trio.sleep(0.05)
    await trio.sleep(0.3)


def test_a_worker_that_dies_in_the_lame_duck_is_started_again(
    certificates: Certificates, key_managers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", 1)
    settings = GatewaySettings(key_managers, [ALICE], extra="[deadlines]\nlame_duck = 30\n")
    with running_gateway(certificates, settings) as gateway:
        (worker,) = workers_of(gateway)
        gateway.process.send_signal(signal.SIGTERM)
        processes.wait_until(lambda: not gateway.is_ready(), "the drain")
        os.kill(worker, signal.SIGKILL)
        processes.wait_until(lambda: not {worker} & {*workers_of(gateway)} and bool(workers_of(gateway)), "a start")
        it = Reloaded(gateway)
        assert trio.run(it.serves, gateway.port)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(10) == 0
