"""The end of a gateway: by signals, with requests in flight; and the message of a gateway that can't start."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import create_key

from gateway.kmip.spec import ResultStatus
from gateway.tls import client_context
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    free_port,
    running_gateway,
    running_key_managers,
    wait_until,
    write_config,
)

COST = 1.5  # s of a key manager for one operation
DRAIN = 20.0  # s; far more than any test here takes
IN_FLIGHT = "kmip_gateway_requests_in_flight"

each_signal = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture(scope="module")
def slow_key_managers(certificates: Certificates) -> Iterator[list[int]]:
    with running_key_managers(certificates, ("kms-1",), "--operation-cost", str(COST)) as ports:
        yield ports


def settings(backends: list[int], drain: float = DRAIN, lame_duck: float = 0.0) -> GatewaySettings:
    return GatewaySettings(backends, extra=f"[deadlines]\ndrain = {drain}\nlame_duck = {lame_duck}\n")


def refuses(gateway: Gateway) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((gateway.address.host, gateway.address.port)) != 0


async def ended(gateway: Gateway, within: float) -> int:
    """Wait for the end of the process, and return its exit status."""
    return await trio.to_thread.run_sync(lambda: gateway.process.wait(within))


async def is_in_flight(gateway: Gateway) -> None:
    def in_flight() -> bool:
        return gateway.total(IN_FLIGHT) == 1

    await trio.to_thread.run_sync(wait_until, in_flight, "the request's start")


@each_signal
async def test_requests_in_flight_are_answered_and_idle_clients_closed(
    certificates: Certificates, slow_key_managers: list[int], number: signal.Signals
) -> None:
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    with running_gateway(certificates, settings(slow_key_managers)) as gateway, socket.socket() as silent:
        silent.connect((gateway.address.host, gateway.address.port))  # begins no handshake
        async with connect(gateway.address, context) as idle, connect(gateway.address, context) as busy:
            await busy.stream.send_all(create_key())
            await is_in_flight(gateway)
            began = time.monotonic()
            gateway.process.send_signal(number)
            with trio.fail_after(DRAIN / 2):
                assert await idle.stream.receive_some() == b""
                await trio.to_thread.run_sync(wait_until, lambda: refuses(gateway), "the end of listening")
                answer = await busy.read_response()
            assert answer.items[0].status == ResultStatus.SUCCESS
            assert await busy.stream.receive_some() == b""
        assert await ended(gateway, DRAIN / 2) == 0
        assert time.monotonic() - began < DRAIN / 2
        assert b"Traceback" not in gateway.log.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signals_without_a_meaning_do_not_end_the_gateway(
    certificates: Certificates, slow_key_managers: list[int], number: signal.Signals
) -> None:
    with running_gateway(certificates, settings(slow_key_managers)) as gateway:
        gateway.process.send_signal(number)
        wait_until(lambda: b"signal ignored" in gateway.log.read_bytes(), "the line about it")
        assert gateway.is_ready()


async def test_a_request_beyond_the_drain_time_gets_an_error(
    certificates: Certificates, slow_key_managers: list[int]
) -> None:
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    with running_gateway(certificates, settings(slow_key_managers, 0.2)) as gateway:
        async with connect(gateway.address, context) as busy:
            await busy.stream.send_all(create_key())
            await is_in_flight(gateway)
            gateway.process.terminate()
            answer = await busy.read_response()  # a closed connection would have some clients repeat it
            assert answer.items[0].status == ResultStatus.OPERATION_FAILED
            assert "unknown" in str(answer.items[0].message)
            assert await busy.stream.receive_some() == b""
        assert await ended(gateway, 5) == 0
        assert b"Traceback" not in gateway.log.read_bytes()


@each_signal
async def test_a_second_signal_ends_the_waiting_and_tells_the_client(
    certificates: Certificates, slow_key_managers: list[int], number: signal.Signals
) -> None:
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    with running_gateway(certificates, settings(slow_key_managers)) as gateway:
        async with connect(gateway.address, context) as busy:
            await busy.stream.send_all(create_key())
            await is_in_flight(gateway)
            gateway.process.send_signal(number)
            await trio.to_thread.run_sync(wait_until, lambda: refuses(gateway), "the end of listening")
            gateway.process.send_signal(number)
            answer = await busy.read_response()
            assert "unknown" in str(answer.items[0].message)
            assert await ended(gateway, COST / 2) == 0
        assert b"Traceback" not in gateway.log.read_bytes()
    assert drained(gateway) == {"requests_answered": 0, "requests_cut_off": 1, "connections_cut_off": 1}


@each_signal
@pytest.mark.parametrize("workers", [0, 2])
async def test_a_signal_to_all_processes_is_a_first_one(
    certificates: Certificates, slow_key_managers: list[int], number: signal.Signals, workers: int
) -> None:
    """Ctrl-C, ``timeout``, and systemd's KillMode=control-group signal every process of the gateway."""
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    varied = replace(settings(slow_key_managers), tls_workers=workers)
    with running_gateway(certificates, varied, patch="import os; os.setpgid(0, 0)") as gateway:
        async with connect(gateway.address, context) as busy:
            await busy.stream.send_all(create_key())
            await is_in_flight(gateway)
            os.killpg(gateway.process.pid, number)
            assert (await busy.read_response()).items[0].status == ResultStatus.SUCCESS
        assert await ended(gateway, DRAIN / 2) == 0


async def test_a_lame_duck_fails_readyz_first_and_serves_new_clients(
    certificates: Certificates, slow_key_managers: list[int]
) -> None:
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    with running_gateway(certificates, settings(slow_key_managers, lame_duck=10.0)) as gateway:
        await trio.to_thread.run_sync(wait_until, gateway.is_ready, "the start")
        async with connect(gateway.address, context) as kept:
            gateway.process.terminate()
            await trio.to_thread.run_sync(wait_until, lambda: not gateway.is_ready(), "the end of readiness")
            async with connect(gateway.address, context) as late:
                assert (await late.ask(create_key())).items[0].status == ResultStatus.SUCCESS
            assert (await kept.ask(create_key())).items[0].status == ResultStatus.SUCCESS
            assert await kept.stream.receive_some() == b""
        assert await ended(gateway, DRAIN) == 0
    assert drained(gateway) == {"requests_answered": 2, "requests_cut_off": 0, "connections_cut_off": 0}


async def test_a_second_signal_ends_the_lame_duck_too(certificates: Certificates, slow_key_managers: list[int]) -> None:
    with running_gateway(certificates, settings(slow_key_managers, lame_duck=60.0)) as gateway:
        gateway.process.terminate()
        await trio.to_thread.run_sync(wait_until, lambda: not gateway.is_ready(), "the end of readiness")
        assert not refuses(gateway)
        gateway.process.terminate()
        assert await ended(gateway, DRAIN / 2) == 0


async def test_under_load_a_balancer_that_polls_readyz_sees_no_refusal(certificates: Certificates) -> None:
    """Fresh and kept clients go to two gateways; one ends. A balancer leaves it at the first 503 of /readyz."""
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    poll = 0.5  # s between two looks at /readyz
    answered = {"fresh": 0, "kept": 0}
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, settings(ports, lame_duck=10 * poll)) as ending,
        running_gateway(certificates, settings(ports)) as staying,
    ):
        for gateway in (ending, staying):
            await trio.to_thread.run_sync(wait_until, gateway.is_ready, "the start")
        usable = [ending, staying]
        until = time.monotonic() + 14 * poll

        async def balance() -> None:
            while time.monotonic() < until:
                ready = await trio.to_thread.run_sync(lambda: [each for each in (ending, staying) if each.is_ready()])
                usable[:] = ready or usable
                await trio.sleep(poll)

        async def fresh() -> None:
            while time.monotonic() < until:
                async with connect(random.choice(usable).address, context) as client:
                    assert (await client.ask(create_key())).items[0].status == ResultStatus.SUCCESS
                answered["fresh"] += 1
                await trio.sleep(0.02)

        async def kept() -> None:
            while time.monotonic() < until:
                gateway = random.choice(usable)
                async with connect(gateway.address, context) as client:
                    while time.monotonic() < until and gateway in usable:  # as a balancer closes what has no server
                        assert (await client.ask(create_key())).items[0].status == ResultStatus.SUCCESS
                        answered["kept"] += 1
                        await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(balance)
            for work in (fresh, fresh, kept, kept):
                nursery.start_soon(work)
            await trio.sleep(2 * poll)
            ending.process.terminate()
        assert await ended(ending, DRAIN / 2) == 0
    assert answered["fresh"] > 0
    assert answered["kept"] > 0
    how = drained(ending)
    assert (how["requests_cut_off"], how["connections_cut_off"]) == (0, 0)


def drained(gateway: Gateway) -> dict[str, int]:
    """Return the numbers of the last line of a log."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", gateway.log.read_text().splitlines()[-1])
    assert "drained" in line, line
    return {name: int(value) for name, value in re.findall(r"(\w+_(?:answered|cut_off))=(\d+)", line)}


@each_signal
def test_a_signal_ends_a_gateway_without_clients_and_key_managers(
    certificates: Certificates, number: signal.Signals
) -> None:
    config = write_config(certificates, settings([free_port()]), port := free_port(), free_port())
    process = run(config)
    try:
        wait_until(lambda: _is_open(port), "the start")
        process.send_signal(number)
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert b"Traceback" not in said


def _is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def run(config: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gateway", "run", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def mistake(config: Path) -> str:
    """Return the single line that a gateway prints if it can't start, besides its first line of the log."""
    process = run(config)
    said, wrong = process.communicate(timeout=30)
    assert (process.returncode, said) == (2, b"")
    (line,) = [line for line in wrong.decode().splitlines() if " starting " not in line]
    return line


@pytest.mark.parametrize("taken", ['listeners["kmip"].bind', "admin.bind"])
def test_an_address_in_use_is_one_clear_line(certificates: Certificates, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port: int = other.getsockname()[1]
        ports = (port, free_port()) if taken.startswith("listeners") else (free_port(), port)
        config = write_config(certificates, settings([free_port()]), *ports)
        line = mistake(config)
    assert line.startswith(f"{config}: {taken}: cannot listen on 127.0.0.1:{port}: Address already in use")


def test_missing_files_are_one_clear_line_each(certificates: Certificates, tmp_path: Path) -> None:
    missing = tmp_path / "gateway.toml"
    assert mistake(missing).startswith(f"{missing}: ")
    config = write_config(certificates, settings([free_port()]), free_port(), free_port())
    other = config.with_name("other.toml")
    other.write_text(config.read_text().replace('"server.key"', '"lost.key"'))
    line = mistake(other)
    assert re.match(rf'{re.escape(str(other))}: line [0-9]+: listeners\["kmip"\]\.private_key: ', line)
    assert "lost.key" in line
