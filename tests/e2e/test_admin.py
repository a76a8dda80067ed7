"""The admin port of a gateway process: tokens, certificates and TLS, also after reloads."""

import secrets
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import processes
from tests.kit.processes import (
    HOSTS,
    Certificates,
    Gateway,
    GatewaySettings,
    free_port,
    running_gateway,
    running_key_managers,
    wait_until,
    write_config,
)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def key_managers(certificates: Certificates) -> Iterator[list[int]]:
    with running_key_managers(certificates, ("kms-1",)) as ports:
        yield ports


@pytest.fixture(autouse=True, params=[0, 2])
def _tls_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", request.param)


def write_token(certificates: Certificates, token: str) -> None:
    path = certificates.path("tokens")
    path.touch(0o600)
    path.write_text(token + "\n")


def status(gateway: Gateway, path: str, token: str = "", context: ssl.SSLContext | None = None) -> int:
    """Return the status of an answer; 0 if there is none."""
    scheme = "http" if context is None else "https"
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{gateway.admin_port}{path}")  # noqa: S310 - as above
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310 - as above
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            challenge = error.headers["WWW-Authenticate"]
            return error.code if (error.code == 401) == (challenge == 'Bearer realm="kmip-gateway"') else -1
    except OSError:
        return 0


def test_a_token_opens_the_metrics_and_is_replaced_at_once(certificates: Certificates, key_managers: list[int]) -> None:
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    write_token(certificates, old)
    settings = GatewaySettings(key_managers, extra='token_file = "tokens"\n[log]\nlevel = "debug"\n')
    with running_gateway(certificates, settings) as gateway:
        assert [status(gateway, path) for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 401]
        assert status(gateway, "/metrics", old) == 200
        assert status(gateway, "/metrics", new) == 401
        write_token(certificates, f"{old}\n{new}")
        wait_until(lambda: status(gateway, "/metrics", new) == 200, "the second token")
        assert status(gateway, "/metrics", old) == 200
        write_token(certificates, new)
        wait_until(lambda: status(gateway, "/metrics", old) == 401, "the end of the first token")
        said = gateway.log.read_text()
    assert "it has no valid token or certificate" in said
    assert old not in said
    assert new not in said


def test_tls_comes_with_a_reload_and_its_certificate_is_renewed(
    certificates: Certificates, key_managers: list[int]
) -> None:
    certificates.gateway_ca.issue_server("admin", HOSTS).write(*certificates.pair("admin"))
    strangers = ssl.create_default_context(cafile=str(certificates.path("gateway_ca.pem")))
    known = ssl.create_default_context(cafile=str(certificates.path("gateway_ca.pem")))
    known.load_cert_chain(*certificates.client("prometheus"))
    with running_gateway(certificates, GatewaySettings(key_managers)) as gateway:
        assert status(gateway, "/metrics") == 200
        path = certificates.path(f"gateway-{gateway.port}.toml")
        files = 'certificate = "admin.pem"\nprivate_key = "admin.key"\nclient_ca = "clients_ca.pem"\n'
        path.write_text(path.read_text().replace("[admin]\n", "[admin]\n" + files))
        gateway.process.send_signal(1)
        wait_until(lambda: status(gateway, "/metrics", context=known) == 200, "TLS")
        paths = ("/livez", "/readyz", "/metrics")
        assert [status(gateway, path, context=strangers) for path in paths] == [200, 200, 403]
        assert status(gateway, "/livez") == 0
        certificates.gateway_ca.issue_server("renewed", HOSTS).write(*certificates.pair("admin"))
        wait_until(lambda: "renewed" in shown(gateway, strangers), "the renewed certificate")
        assert status(gateway, "/metrics", context=known) == 200


def shown(gateway: Gateway, context: ssl.SSLContext) -> str:
    with (
        socket.create_connection(("127.0.0.1", gateway.admin_port), 10) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        return str(tls.getpeercert())


@pytest.mark.parametrize("command", ["check", "run"])
def test_an_open_address_without_a_secret_is_refused(certificates: Certificates, command: str) -> None:
    config = write_config(certificates, GatewaySettings([1]), free_port(), free_port())
    text = config.read_text()
    where = text.index("[admin]")
    config.write_text(text[:where] + text[where:].replace("127.0.0.1", "0.0.0.0", 1))  # noqa: S104 - refused
    done = subprocess.run(
        [sys.executable, "-m", "gateway", command, str(config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "admin.bind: 0.0.0.0:" in line
    assert "all of them could read the metrics; give a token_file" in line
