"""``kmip-gateway check --connect`` before real key managers: well, killed, frozen, refusing, expired, of another CA."""

import json
import socketserver
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kmip_lab.certs import Authority
from kmip_lab.faults import Fault, FaultSetting
from kmip_lab.keymanager import read_journal

from tests.kit.authorities import Ca
from tests.kit.processes import (
    Certificates,
    GatewaySettings,
    Identity,
    KeyManagerProcess,
    free_port,
    lapsed_identity,
    running_key_manager_processes,
    write_config,
)

TWO = [Identity(name, f'{{ subject_cn = "{name}-*" }}', credential=name) for name in ("red", "blue")]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def key_managers(certificates: Certificates) -> Iterator[list[KeyManagerProcess]]:
    with running_key_manager_processes(certificates, ["kms-1", "kms-2"]) as running:
        yield running


def configured(certificates: Certificates, backends: list[int | str], **settings: Any) -> Path:
    return write_config(
        certificates, GatewaySettings(backends, **{"identities": TWO, **settings}), free_port(), free_port()
    )


def check(config: Path, *options: str) -> tuple[int, Any]:
    """Run ``check --connect --json``; return the exit status and the outcome."""
    command = [sys.executable, "-m", "gateway", "check", "--connect", "--json", *options, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def outcomes(found: Any) -> list[tuple[str, str, str, str]]:
    return [(each["backend"], each["identity"], each["result"], each["reason"]) for each in found["attempts"]]


def test_every_backend_and_identity_is_tried(certificates: Certificates, key_managers: list[KeyManagerProcess]) -> None:
    config = configured(certificates, [it.port for it in key_managers])
    status, found = check(config)
    assert status == 0
    assert outcomes(found) == [(f"kms-{number}", name, "ok", "") for number in (1, 2) for name in ("red", "blue")]
    for attempt in found["attempts"]:
        assert attempt["tls"] == "TLSv1.3"
        assert "1.4" in attempt["versions"]
        assert attempt["milliseconds"] > 0
        assert datetime.fromisoformat(attempt["certificate_ends"]) > datetime.now(UTC)


def test_a_killed_key_manager_is_one_row_with_its_remedy(
    certificates: Certificates, key_managers: list[KeyManagerProcess]
) -> None:
    key_managers[0].kill()
    status, found = check(configured(certificates, [it.port for it in key_managers]))
    assert status == 1
    assert outcomes(found) == [
        ("kms-1", "", "failed", "connect"),
        ("kms-2", "red", "ok", ""),
        ("kms-2", "blue", "ok", ""),
    ]
    assert found["attempts"][0]["detail"].endswith("Connection refused")
    assert "see that the key manager runs" in found["attempts"][0]["remedy"]


def test_a_frozen_key_manager_ends_at_the_deadline(
    certificates: Certificates, key_managers: list[KeyManagerProcess]
) -> None:
    key_managers[0].freeze()
    config = configured(certificates, [it.port for it in key_managers])
    config.write_text(config.read_text() + "[deadlines]\nconnect = 0.5\n")
    status, found = check(config)
    assert status == 1
    assert outcomes(found)[:2] == [("kms-1", "red", "failed", "timeout"), ("kms-1", "blue", "failed", "timeout")]
    assert "raise [deadlines] connect" in found["attempts"][0]["remedy"]
    assert found["attempts"][0]["detail"] == "connected, but no TLS handshake within 0.5 s"


@pytest.mark.parametrize(
    ("fault", "detail"),
    [
        (Fault.FREEZE, "connected, but no TLS handshake"),
        (Fault.SLOW, "TLS handshake made, but no answer"),
    ],
)
def test_a_silent_address_is_left_alone_after_two_tries(
    certificates: Certificates, key_managers: list[KeyManagerProcess], fault: Fault, detail: str
) -> None:
    if fault is Fault.FREEZE:
        key_managers[0].freeze()
    else:
        key_managers[0].set_faults(FaultSetting(fault, seconds=60))
    identities = [
        *TWO,
        *(Identity(f"more-{each}", f'{{ subject_cn = "more-{each}" }}', credential="blue") for each in range(30)),
    ]
    config = configured(certificates, [key_managers[0].port], identities=identities)
    config.write_text(config.read_text() + "[deadlines]\nconnect = 0.5\n")
    status, found = check(config)
    assert status == 1
    assert [each[2:] for each in outcomes(found)] == [("failed", "timeout")] * 2 + [("not tried", "silent")] * 30
    assert detail in found["attempts"][0]["detail"]
    assert "got no answer" in found["attempts"][2]["detail"]


def test_no_operation_that_changes_anything_is_sent(
    certificates: Certificates, key_managers: list[KeyManagerProcess]
) -> None:
    for probe in ("query", "discover-versions"):
        config = configured(certificates, [it.port for it in key_managers], backend=f'probe = "{probe}"')
        status, _found = check(config)
        assert status == 0
    sent = {entry.operation for each in key_managers for entry in read_journal(each.journal)}
    assert sent == {"Query", "DiscoverVersions"}


def test_a_refused_credential_fails_alone(certificates: Certificates, key_managers: list[KeyManagerProcess]) -> None:
    for key_manager in key_managers:
        key_manager.set_faults(FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({"blue"})))
    status, found = check(configured(certificates, [it.port for it in key_managers]))
    assert status == 1
    assert [each[2:] for each in outcomes(found)] == [("ok", ""), ("failed", "credential")] * 2
    assert "have the key manager accept the certificate" in found["attempts"][1]["remedy"]
    assert found["attempts"][1]["tls"] == "TLSv1.3"


def test_an_expired_certificate_of_an_identity_is_named(
    certificates: Certificates, key_managers: list[KeyManagerProcess]
) -> None:
    identities = [lapsed_identity(certificates), *TWO]
    status, found = check(configured(certificates, [key_managers[0].port], identities=identities))
    assert status == 1
    assert outcomes(found)[0] == ("kms-1", "lapsed", "failed", "lapsed")
    assert "credential-lapsed.pem" in found["attempts"][0]["detail"]
    assert [warning["key"] for warning in found["warnings"]] == ['identities["lapsed"].certificate']


def test_expired_and_foreign_certificates_of_key_managers(certificates: Certificates, tmp_path: Path) -> None:
    ended = datetime.now(UTC) - timedelta(days=1)
    kms = certificates.kms_ca.issue_server("kms", ["localhost"], not_before=ended - timedelta(days=1), not_after=ended)
    kms.write(*certificates.pair("kms"))
    with running_key_manager_processes(certificates, ["kms-1"]) as (expired,):
        other = Certificates(tmp_path / "other")
        with running_key_manager_processes(other, ["kms-2"]) as (foreign,):
            status, found = check(configured(certificates, [expired.port, foreign.port], identities=TWO[:1]))
    assert status == 1
    assert [each[3] for each in outcomes(found)] == ["expired", "unknown_ca"]
    assert "clock" in found["attempts"][0]["remedy"]
    assert "set ca of this backend" in found["attempts"][1]["remedy"]


def test_a_wrong_name_is_shown_beside_the_names_of_the_certificate(
    certificates: Certificates, key_managers: list[KeyManagerProcess]
) -> None:
    config = configured(certificates, [key_managers[0].port], identities=TWO[:1])
    config.write_text(config.read_text().replace('server_name = "localhost"', 'server_name = "kms.example"'))
    status, found = check(config)
    (attempt,) = found["attempts"]
    assert (status, attempt["reason"]) == (1, "hostname")
    assert "it is for localhost, 127.0.0.1" in attempt["detail"]
    assert attempt["certificate_ends"] is not None


def test_a_name_that_does_not_resolve_is_one_row(certificates: Certificates) -> None:
    status, found = check(configured(certificates, ["kms.invalid:5696"]))
    assert status == 1
    assert outcomes(found) == [("kms-1", "", "failed", "resolve")]


def test_a_port_without_tls_is_named(certificates: Certificates) -> None:
    class Greeter(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"220 mail.example ESMTP\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status, found = check(configured(certificates, [server.server_address[1]], identities=TWO[:1]))
        server.shutdown()
    assert (status, outcomes(found)[0][3]) == (1, "not_tls")
    assert "KMIP port" in found["attempts"][0]["remedy"]


def test_an_expired_certificate_does_not_hide_another_reason(certificates: Certificates) -> None:
    class Greeter(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"220 mail.example ESMTP\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        identities = [lapsed_identity(certificates), *TWO]
        _, found = check(configured(certificates, [server.server_address[1]], identities=identities))
        server.shutdown()
    assert {each[3] for each in outcomes(found)} == {"not_tls"}


def test_a_key_manager_with_old_versions_of_tls_is_named(certificates: Certificates) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.pair("kms"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1

    class Old(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), context.wrap_socket(self.request, server_side=True):
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Old) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _, found = check(configured(certificates, [server.server_address[1]], identities=TWO[:1]))
        server.shutdown()
    assert outcomes(found)[0][3] == "version"
    assert "offer TLS 1.2 or 1.3" in found["attempts"][0]["remedy"]


def test_a_certificate_that_ends_soon_fails_with_strict_only(certificates: Certificates) -> None:
    soon = datetime.now(UTC) + timedelta(days=5)
    certificates.kms_ca.issue_server("kms", ["localhost"], not_after=soon).write(*certificates.pair("kms"))
    with running_key_manager_processes(certificates, ["kms-1"]) as (key_manager,):
        config = configured(certificates, [key_manager.port], identities=TWO[:1])
        plain, strict = check(config), check(config, "--strict")
    assert [plain[0], strict[0]] == [0, 1]
    assert outcomes(plain[1]) == [("kms-1", "red", "warning", "ends_soon")]


def test_minted_credentials_need_a_clients_certificate(certificates: Certificates, tmp_path: Path) -> None:
    issuing = Ca.make("Issuing CA")
    issuing.write(tmp_path / "issuing")
    trusted = certificates.path("kms_clients_ca.pem")
    trusted.write_bytes(trusted.read_bytes() + issuing.pem)
    minted = """
[[identities]]
name = "arrays"
match = { subject_cn = "array-*" }
credential = "minted"
client_issuer = "clients_ca.pem"
issuing_ca = "issuing.pem"
issuing_ca_key = "issuing.key"
"""
    client, _ = certificates.client("array-1")
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(Authority("Strangers").issue_client("array-1").certificate_pem)
    with running_key_manager_processes(certificates, ["kms-1"]) as (key_manager,):
        config = configured(certificates, [key_manager.port], identities=TWO[:1])
        config.write_text(config.read_text() + minted)
        without, of_client, of_stranger = (
            check(config),
            check(config, "--certificate", str(client)),
            check(config, "--certificate", str(stranger)),
        )
    assert [outcomes(found)[1][2:] for _, found in (without, of_client, of_stranger)] == [
        ("not tried", "minted"),
        ("ok", ""),
        ("not tried", "minted"),
    ]
    assert [status for status, _ in (without, of_client, of_stranger)] == [0, 0, 0]


def test_the_table_is_for_people(certificates: Certificates, key_managers: list[KeyManagerProcess]) -> None:
    key_managers[0].kill()
    config = configured(certificates, [it.port for it in key_managers])
    command = [sys.executable, "-m", "gateway", "check", "--connect", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["backend", "address", "identity", "result", "ms", "TLS", "KMIP", "certificate", "until"]
    assert lines[1].split()[:4] == ["kms-1", f"127.0.0.1:{key_managers[0].port}", "any", "failed"]
    assert lines[3].startswith("    remedy: ")
    assert lines[-1] == "sessions: 2 ok, 0 warning, 1 failed, 0 not tried"
