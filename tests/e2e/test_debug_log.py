"""``kmip-gateway log debug``: connections, requests and sessions of some traffic, for a while, and no payload."""

import base64
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kmip.core.enums import CryptographicAlgorithm
from kmip.pie.client import ProxyKmipClient
from kmip.pie.exceptions import KmipOperationFailure

from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    wait_until,
)

TWO = [Identity(name, f'{{ subject_cn = "{name}-*" }}', credential=name) for name in ("red", "blue")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture(params=[0, 2])
def gateway(
    certificates: Certificates, key_managers: list[int], path: Path, request: pytest.FixtureRequest
) -> Iterator[Gateway]:
    log = '[log]\nlevel = "error"\nformat = "json"\n'
    settings = GatewaySettings(key_managers, TWO, extra=f'socket = "{path}"\n{log}', tls_workers=request.param)
    with running_gateway(certificates, settings) as gateway:
        yield gateway


def command(path: Path, *arguments: str) -> Any:
    words = [sys.executable, "-m", "gateway", *arguments, "--socket", str(path), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def lines(gateway: Gateway, event: str = "") -> list[Any]:
    found = [json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in found if not event or line["event"] == event]


def use(client: ProxyKmipClient) -> list[str]:
    """Create, get and destroy a key. Return the key, and its identifier, as a log might have them."""
    identifier = client.create(CryptographicAlgorithm.AES, 256)
    key = client.get(identifier).value
    client.destroy(identifier)
    return [identifier, key.hex(), key.hex().upper(), repr(key)[2:-1], base64.b64encode(key).decode()]


def knock(port: int, number: int) -> None:
    """Connect with bytes that are not TLS, so often that every worker is met."""
    for _ in range(number):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"this is not TLS at all")
            sock.settimeout(5)
            sock.recv(100)


def test_one_identity_is_logged_for_a_while_and_no_payload(gateway: Gateway, path: Path) -> None:
    secrets: list[str] = []
    with gateway.client("red-1") as red, gateway.client("blue-1") as blue:
        secrets += use(red) + use(blue)
        assert lines(gateway) == []
        begun = command(path, "log", "debug", "--identity", "red", "--for", "8s")
        ends_at = time.monotonic() + 8
        assert (begun["level"], begun["debug"]["identity"]) == ("error", "red")
        command(path, "reconnect", "kms-1")  # the sessions of both
        secrets += use(red) + use(blue)
        with pytest.raises(KmipOperationFailure):
            red.get("no-such-object")
        with gateway.client("red-2") as another:
            secrets += use(another)
        wait_until(lambda: len(lines(gateway, "client connection ended")) == 1, "the end of a client connection")
        wait_until(lambda: len(lines(gateway, "session opened")) >= 1, "a session")
        found = lines(gateway)
        assert time.monotonic() < ends_at
        wait_until(lambda: command(path, "log")["debug"] is None, "the end of debugging")
        before = len(lines(gateway))
        secrets += use(red) + use(blue)
        assert len(lines(gateway)) == before
    requests = [line for line in found if line["event"] == "request answered"]
    assert [line["operation"] for line in requests[:4]] == ["Create", "Get", "Destroy", "Get"]
    assert [line["result"] for line in requests[:4]] == ["success", "success", "success", "operation_failed"]
    assert len(requests) == 7
    assert {line["identity"] for line in requests} == {"red"}
    assert all(line["backend"] in {"kms-1", "kms-2"} and line["total_ms"] > 0 for line in requests)
    assert {line.get("identity", line.get("credential")) for line in found} == {"red"}
    connected, ended = (
        next(line for line in found if line["event"] == event)
        for event in ("client connected", "client connection ended")
    )
    assert connected["peer"] == ended["peer"] == requests[-1]["peer"]
    assert (ended["reason"], ended["requests"]) == ("client", 3)
    assert all(line["level"] in {"debug", "info"} for line in found)
    text = gateway.log.read_text()
    assert len(secrets) == 35
    assert not [secret for secret in [*secrets, "no-such-object", "PRIVATE KEY"] if secret in text]


def test_debugging_of_addresses_survives_a_reload_and_new_workers(
    gateway: Gateway, path: Path, certificates: Certificates
) -> None:
    config = certificates.path(f"gateway-{gateway.port}.toml")

    def failed() -> int:
        """Return the number of lines about failed handshakes, after two more."""
        knock(gateway.port, 2)
        return len(lines(gateway, "handshake failed"))

    command(path, "log", "debug", "--address", "192.0.2.0/24", "--for", "1h")
    assert failed() == 0
    command(path, "log", "debug", "--address", "127.0.0.0/8", "--for", "1h")
    wait_until(lambda: failed() > 0, "a line about a failed handshake")
    config.write_text(
        config.read_text().replace('level = "error"', 'level = "error"\nslow_request = 9')
        + ("[per_address]\nmax_half_open = 77\n")
    )
    changed = command(path, "reload")["changed"]
    assert set(changed) == {"log.slow_request", "per_address.max_half_open"}
    shown = command(path, "log")["debug"]
    assert (shown.pop("seconds") > 3500, shown) == (True, {"address": "127.0.0.0/8"})
    with gateway.client("blue-1") as blue:
        use(blue)
    wait_until(lambda: len(lines(gateway, "client connection ended")) == 1, "the end of a client connection")
    assert len(lines(gateway, "request answered")) == 3
    time.sleep(1.1)
    before = failed()
    wait_until(lambda: failed() > before, "a line of a new worker")
    command(path, "log", "error")
    assert command(path, "log") == {"level": "error", "debug": None}
    with gateway.client("blue-1") as blue:
        use(blue)
    assert len(lines(gateway, "request answered")) == 3
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(20) == 0
