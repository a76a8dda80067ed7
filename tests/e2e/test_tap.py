"""``kmip-gateway tap`` before a real gateway, with and without TLS workers."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kmip.core.enums import CryptographicAlgorithm
from kmip.pie.exceptions import KmipOperationFailure

from tests.kit import processes
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    wait_until,
)

pytestmark = pytest.mark.parametrize("workers", [0, 2])
TWO = [Identity(name, f'{{ subject_cn = "{name}-*" }}', credential=name) for name in ("red", "blue")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def gateway(
    certificates: Certificates, key_managers: list[int], workers: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gateway]:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    audit = '[audit]\nto = "file"\nfile = "audit.log"\n'  # both observers at once
    settings = GatewaySettings(key_managers, TWO, extra=f'socket = "{path}"\n{audit}')
    with running_gateway(certificates, settings) as gateway:
        yield gateway


def log_has(gateway: Gateway, text: str, times: int = 1) -> bool:
    return gateway.log.read_text().count(text) >= times


@contextmanager
def tap(gateway: Gateway, path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``tap --json``, and wait until the gateway shows it requests."""
    before = gateway.log.read_text().count("command=tap")
    command = [sys.executable, "-m", "gateway", "tap", "--json", "--socket", str(path), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: log_has(gateway, "command=tap", before + 1), "the tap")
            yield process
        finally:
            process.kill()


def shown(process: subprocess.Popen[str]) -> list[Any]:
    """Return the lines of a tap that ends by itself."""
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def test_requests_are_shown_as_they_are_answered(gateway: Gateway, path: Path) -> None:
    with gateway.client("red-1") as client:  # connected before the tap
        identifier = client.create(CryptographicAlgorithm.AES, 256)
        with tap(gateway, path, "--count", "2") as process:
            key = client.get(identifier)
            client.destroy(identifier)
            get, destroy = shown(process)
    assert get["identity"] == "red"
    assert get["client"].startswith("127.0.0.1:")
    assert get["items"] == [{"operation": "Get", "ids": [identifier], "status": "Success"}]
    assert get["backend"] in {"kms-1", "kms-2"}
    assert (get["tries"], get["result"], destroy["items"][0]["operation"]) == (1, "success", "Destroy")
    assert 0 < get["exchange"] <= get["seconds"]
    assert get["queue"] + get["exchange"] <= get["seconds"] + 0.001
    assert key.value.hex() not in json.dumps([get, destroy])
    audit = gateway.certificates.path("audit.log").read_text()
    assert f'"operation":"Get","ids":["{identifier}"]' in audit


def test_filters_choose_requests(gateway: Gateway, path: Path) -> None:
    with (
        gateway.client("red-1") as red,
        gateway.client("blue-1") as blue,
        tap(gateway, path, "--identity", "blue", "--failed", "--operation", "get", "--count", "1") as process,
    ):
        blue.destroy(blue.create(CryptographicAlgorithm.AES, 256))
        for client, missing in ((red, "none-of-red"), (blue, "none-of-blue")):
            with pytest.raises(KmipOperationFailure):
                client.get(missing)
        (found,) = shown(process)
    assert found["items"][0]["ids"] == ["none-of-blue"]
    assert found["items"][0]["reason"] == "ItemNotFound"


def test_a_tap_ends_by_ctrl_c_and_with_the_gateway(gateway: Gateway, path: Path) -> None:
    with tap(gateway, path) as interrupted, tap(gateway, path) as left:
        interrupted.send_signal(signal.SIGINT)
        out, err = interrupted.communicate(timeout=10)
        assert (interrupted.returncode, out, err) == (0, "", "")
        gateway.process.terminate()
        out, err = left.communicate(timeout=20)
    assert left.returncode == 1
    assert "closed the connection: it ends" in json.loads(out)["error"]
    assert gateway.process.wait(15) == 0


@pytest.mark.usefixtures("gateway")
def test_an_unknown_identity_is_named(path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "tap", "--socket", str(path), "--identity", "green"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr == "no identity is named green; there are red, blue, unidentified\n"


def test_a_reader_that_stands_still_loses_lines_and_delays_nobody(gateway: Gateway, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as still, gateway.client("red-1") as client:
        still.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        still.connect(str(path))
        still.sendall(b'{"command": "tap"}\n')
        wait_until(lambda: log_has(gateway, "command=tap"), "the tap")
        identifier = client.create(CryptographicAlgorithm.AES, 256)
        for _ in range(4000):
            client.get(identifier)
        still.settimeout(10)
        received = bytearray()
        while b'{"lost":' not in received[-40:] or not received.endswith(b"\n"):
            received += still.recv(65536)
    _, *lines, last = map(json.loads, received.splitlines())
    assert last["lost"] > 0
    assert len(lines) + last["lost"] == 4001
