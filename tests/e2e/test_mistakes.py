"""Mistakes of a configuration in the format of the log: at the start, while ports are opened, and at a reload."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit import processes
from tests.kit.processes import (
    Certificates,
    GatewaySettings,
    free_port,
    running_gateway,
    running_key_managers,
    wait_until,
    write_config,
)

JSON = '[log]\nformat = "json"'


@pytest.fixture(params=[0, 2])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(processes, "TLS_WORKERS", request.param)
    return int(request.param)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def errors_of(text: str) -> list[dict[str, Any]]:
    """Return the lines of a log that are errors; every line must be JSON."""
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if line["level"] == "error"]


def run(*arguments: str | Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "gateway", "run", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    return errors_of(done.stderr)


def test_mistakes_at_the_start_are_lines_of_json(certificates: Certificates, workers: int) -> None:
    config = write_config(certificates, GatewaySettings([free_port()], extra=JSON), free_port(), free_port())
    text = config.read_text()
    config.write_text(text.replace('"server.pem"', '"missing.pem"') + "[limits]\nmax_depth = 0\n")
    found = run(config)
    assert [(line["file"], line["key"]) for line in found] == [
        (str(config), 'listeners["kmip"].certificate'),
        (str(config), "limits.max_depth"),
    ]
    config.write_text(text.replace('"server.pem"', '"server.pem'))
    (line,) = run("--log-format", "json", config)
    assert (line["line"], line["key"]) == (5, None)
    assert line["detail"].startswith("a text does not end on its line")
    assert workers in {0, 2}


def test_ports_in_use_are_lines_of_json(certificates: Certificates, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = one.getsockname()[1], other.getsockname()[1]
        found = run(write_config(certificates, GatewaySettings([free_port()], extra=JSON), *ports))
    assert [line["key"] for line in found] == ['listeners["kmip"].bind', "admin.bind"]
    assert all("Address already in use; stop the process" in line["detail"] for line in found)
    assert workers in {0, 2}


def test_mistakes_of_a_reload_are_lines_of_json(certificates: Certificates, workers: int) -> None:
    with (
        running_key_managers(certificates, ("kms-1",)) as ports,
        running_gateway(certificates, GatewaySettings(ports, extra=JSON)) as gateway,
    ):
        config = certificates.path(f"gateway-{gateway.port}.toml")
        text = config.read_text()

        def reload_with(changed: str, number: int) -> list[str]:
            before = len(reload_errors())
            config.write_text(changed)
            gateway.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(reload_errors()) == before + number, "the mistakes")
            return reload_errors()[before:]

        def reload_errors() -> list[str]:
            whole = gateway.log.read_text().rpartition("\n")[0]
            return [line["detail"] for line in errors_of(whole) if line["component"] == "reload"]

        first, second = reload_with(text.replace('"kms_ca.pem"', '"missing.pem"') + "[limits]\nmax_depth = 0\n", 2)
        assert re.match(r': line \d+: backends\["kms-1"\]\.ca: there is no file ', first.removeprefix(str(config)))
        assert re.match(r": line \d+: limits\.max_depth: 0 is too little", second.removeprefix(str(config)))
        (third,) = reload_with(text.replace('format = "json"', 'format = "json'), 1)
        assert third.startswith(f"{config}: line ")
        config.write_text(text)
    assert workers in {0, 2}
