"""The control socket of a gateway process: every command of the command line, with and without TLS workers."""

import json
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import create_key

from gateway.kmip.spec import ResultStatus
from gateway.tls import client_context
from tests.kit import processes
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    running_gateway,
    wait_until,
)

pytestmark = pytest.mark.parametrize("workers", [0, 2])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def gateway(
    certificates: Certificates, key_managers: list[int], workers: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gateway]:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    with running_gateway(certificates, GatewaySettings(key_managers, extra=f'socket = "{path}"\n')) as gateway:
        yield gateway


def command(path: Path, *arguments: str) -> Any:
    """Run a command of kmip-gateway; return its result."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments, "--socket", str(path), "--json"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


async def test_commands_under_load_cost_no_request(
    certificates: Certificates, gateway: Gateway, path: Path, workers: int
) -> None:
    """Kept and fresh clients go on while a backend is drained, enabled, weighted and reconnected."""
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    answered = 0
    is_over = False

    async def load(*, kept: bool) -> None:
        nonlocal answered
        while not is_over:
            async with connect(gateway.address, context) as client:
                while not is_over:
                    assert (await client.ask(create_key())).items[0].status == ResultStatus.SUCCESS
                    answered += 1
                    await trio.sleep(0.02)
                    if not kept:
                        break

    async def do(*arguments: str) -> Any:
        return await trio.to_thread.run_sync(command, path, *arguments)

    def sent_to(name: str) -> float:
        return gateway.total("kmip_gateway_backend_requests_total", backend=name)

    async with trio.open_nursery() as nursery:
        for kept in (True, True, False):
            nursery.start_soon(lambda kept=kept: load(kept=kept))  # type: ignore[misc]
        await do("drain", "kms-1")
        await trio.sleep(1.2)  # metrics are rendered once a second
        before = await trio.to_thread.run_sync(sent_to, "kms-1")
        await trio.sleep(1.2)
        assert await trio.to_thread.run_sync(sent_to, "kms-1") == before
        assert (
            await trio.to_thread.run_sync(
                lambda: gateway.total("kmip_gateway_backend_state", backend="kms-1", state="drained")
            )
            == 1
        )
        status = await do("status")
        drained = status["backends"][0]
        assert (drained["state"], drained["sessions"]["idle"], drained["sessions"]["busy"]) == ("drained", 0, 0)
        assert status["clients"]["connections"] >= 2
        assert [worker["worker"] for worker in status["workers"]] == list(range(workers))
        await do("enable", "kms-1")
        await do("weight", "kms-1", "3")
        await do("reconnect", "kms-1")
        await trio.sleep(1.2)
        assert await trio.to_thread.run_sync(sent_to, "kms-1") > before
        is_over = True
    assert answered > 0
    log = gateway.log.read_text()
    assert log.count("control command") == 4
    assert "Traceback" not in log


def test_the_log_level_changes_in_all_processes(gateway: Gateway, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def knock() -> int:
        """Return the number of lines about handshakes that fail, after some of them."""
        for _ in range(6):
            with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
                sock.sendall(b"this is not TLS at all")
                sock.settimeout(5)
                sock.recv(100)
            time.sleep(0.05)
        time.sleep(1.1)  # a line a second for each reason
        return gateway.log.read_text().count("handshake failed")

    wait_until(lambda: knock() > 0, "a line about a failed handshake")
    command(path, "log", "error")
    time.sleep(0.2)
    before = gateway.log.read_text().count("handshake failed")
    assert knock() == before
    command(path, "log", "info")
    time.sleep(0.2)
    assert knock() > before
    config = gateway.certificates.path(f"gateway-{gateway.port}.toml")
    config.write_text(config.read_text() + '[log]\nlevel = "error"\n')
    assert command(path, "reload")["changed"] == ["log.level"]
    time.sleep(0.2)
    before = gateway.log.read_text().count("handshake failed")
    assert knock() == before


def test_the_configuration_is_shown_and_the_socket_goes_with_the_gateway(
    gateway: Gateway, path: Path, workers: int
) -> None:
    shown = command(path, "config")
    assert shown["gateway"]["tls_workers"] == workers
    assert shown["admin"]["socket"] == str(path)
    words = [sys.executable, "-m", "gateway", "config", "--socket", str(path)]
    printed = tomllib.loads(subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout)
    assert printed["listeners"][0]["bind"] == shown["listeners"][0]["bind"]
    assert printed["identities"][0]["match"] == {"subject_cn": shown["identities"][0]["match"]["subject_cn"]}
    gateway.process.terminate()
    assert gateway.process.wait(20) == 0
    assert not path.exists()


def test_a_reload_says_what_has_changed_and_keeps_a_weight_set_by_hand(
    certificates: Certificates, gateway: Gateway, path: Path, workers: int
) -> None:
    file = certificates.path(f"gateway-{gateway.port}.toml")

    def weights() -> list[int]:
        return [backend["weight"] for backend in command(path, "status")["backends"]]

    command(path, "weight", "kms-1", "7")
    text = file.read_text()
    file.write_text(text + "[failover]\ntry_timeout = 4.0\n")
    assert command(path, "reload")["changed"] == ["failover.try_timeout"]
    assert weights() == [7, 1]
    file.write_text(text.replace('name = "kms-1"', 'name = "kms-1"\nweight = 3'))
    command(path, "reload")
    assert weights() == [3, 1]
    file.write_text(text.replace("kms_ca.pem", "missing.pem") + "[limits]\nmax_depth = 0\n")
    words = [sys.executable, "-m", "gateway", "reload", "--socket", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    heading, *mistakes = done.stderr.splitlines()
    assert "configuration not reloaded" in heading
    assert "max_depth" in " ".join(mistakes)
    assert weights() == [3, 1]
    assert command(path, "status")["gateway"]["tls_workers"] == workers
