"""The configurations, as their own programs take them."""

import platform
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest
from kmip_lab.certs import write_development_set
from kmip_lab.compare.configurations import ProxySettings
from kmip_lab.compare.proxies import (
    INSTALL,
    PROXIES,
    gateway_name,
    interpreter,
    missing,
    program_name,
    tls_workers,
    version,
)

from gateway.config import Address


@pytest.fixture
def settings(tmp_path: Path) -> ProxySettings:
    files = write_development_set(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        front, spare = (Address(*sock.getsockname()[:2]) for sock in (one, other))
    return ProxySettings(files, front, spare, [Address("127.0.0.1", 5697), Address("127.0.0.1", 5698)])


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_accepts_its_configuration(name: str, settings: ProxySettings) -> None:
    why = missing(name)
    if why is not None:
        pytest.skip(f"{why}: {INSTALL}")
    ended = subprocess.run(PROXIES[name](settings).check, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("name", ["haproxy", "nginx"])
def test_the_versions_of_a_proxy_and_its_openssl_are_found(name: str) -> None:
    if missing(name) is not None:
        pytest.skip(f"{missing(name)}: {INSTALL}")
    assert "?" not in version(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("'--enable-shared' '--enable-optimizations' '--with-lto'", "optimised by a profile"),
        ("'--with-dtrace' '--with-wheel-pkg-dir=/usr/share/python-wheels/'", "Debian's build"),
        ("'--prefix=/opt/python'", "without --enable-optimizations"),
        ("", "without --enable-optimizations"),
    ],
)
def test_the_build_of_the_gateways_python_is_found(options: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sysconfig.get_config_vars(), "CONFIG_ARGS", options)
    assert interpreter().startswith(f"Python {platform.python_version()} ({words}; ")


@pytest.mark.parametrize("name", PROXIES)
def test_only_the_owner_can_read_private_keys(name: str, settings: ProxySettings) -> None:
    PROXIES[name](settings)
    secrets = [*settings.files.directory.glob("*.key"), *settings.files.directory.glob("*-pair.pem")]
    assert {file.stat().st_mode & 0o077 for file in secrets} == {0}


def test_a_gateway_with_tls_workers_has_a_name_of_its_own() -> None:
    assert [gateway_name(number) for number in (0, 2)] == ["gateway", "gateway-2"]
    assert [program_name(name) for name in ("gateway", "gateway-12", "nginx")] == ["gateway", "gateway", "nginx"]
    assert [tls_workers(name) for name in ("gateway", "gateway-12", "nginx")] == [0, 12, 0]
