"""``speed`` with a simulated key manager: every operation, every kind of session, and errors."""

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from kmip_lab.cli import main
from kmip_lab.keymanager import read_journal
from kmip_lab.speed.operations import OPERATIONS

from lab.tests.kit.speed_server import Serve, SpeedServer

ALL = [f"--{name}" for name in OPERATIONS]


def speed(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["speed", *arguments])


def measured(server: SpeedServer, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    result = speed(*server.options, "--json", *arguments)
    assert result.exit_code == status, result.output
    measurements: list[dict[str, Any]] = json.loads(result.stdout)["measurements"]
    return measurements


def executed(server: SpeedServer) -> Counter[str]:
    """Return how often each operation was executed with success."""
    return Counter(entry.operation for entry in read_journal(server.journal) if entry.result == "Success")


@pytest.mark.parametrize("version", ["1.0", "1.4", "2.1"])
def test_every_operation_is_measured_and_all_keys_are_destroyed(serve: Serve, version: str) -> None:
    with serve() as server:
        found = measured(server, *ALL, "--repeat=3", "--clients=2", f"--kmip-version={version}")
        count = executed(server)
    assert [one["operation"] for one in found] == list(OPERATIONS)
    for one in found:
        assert (one["operations"], one["errors"], one["left_out"]) == (6, [], 0)
        assert one["full_handshakes"] == 2
        assert one["operations_per_minute"] == pytest.approx(60 * 6 / one["seconds"], rel=0.01)
        assert 0 < one["p50_ms"] <= one["p99_ms"]
    assert count["Get"] == 12
    assert count["Create"] == 2 + 6  # the key and the one it is wrapped under, and those that were measured
    assert count["CreateKeyPair"] == 12
    assert count["Destroy"] == 2 + 6 + 2 * 12


@pytest.mark.parametrize(
    ("option", "sessions", "full", "resumed"),
    [("--no-reuse", "fresh", 8, 0), ("--resume", "resumed", 2, 6)],
)
def test_a_session_for_every_operation(serve: Serve, option: str, sessions: str, full: int, resumed: int) -> None:
    with serve() as server:
        (one,) = measured(server, "--get", option, "--repeat=4", "--clients=2")
        discovered = executed(server)["DiscoverVersions"]
    assert one["sessions"] == sessions
    assert (one["full_handshakes"], one["resumed_handshakes"]) == (full, resumed)
    assert discovered == 8 + 2  # each session begins with it, and those that make and destroy the key


def test_sessions_that_begin_without_discover_versions(serve: Serve) -> None:
    with serve() as server:
        measured(server, "--get", "--no-reuse", "--no-discover", "--repeat=2")
        assert "DiscoverVersions" not in executed(server)


def test_a_range_of_clients_and_keys_that_are_left(serve: Serve) -> None:
    with serve() as server:
        found = measured(server, "--create", "--clients=1-2,4", "--repeat=2", "--keep")
        count = executed(server)
    assert [(one["clients"], one["operations"]) for one in found] == [(1, 2), (2, 4), (4, 8)]
    assert count["Create"] == 14
    assert "Destroy" not in count


def test_a_table_is_printed_without_json(serve: Serve) -> None:
    with serve() as server:
        result = speed(*server.options, "--get", "--repeat=2")
    assert result.exit_code == 0
    assert "sessions kept (cached)" in result.stdout
    assert "per minute" in result.stdout


def test_a_qclient_configuration_file_with_an_encrypted_key(serve: Serve, tmp_path: Path) -> None:
    with serve() as server:
        key = load_pem_private_key((server.certificates / "gateway-client.key").read_bytes(), None)
        (tmp_path / "key.pem").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
        )
        here = server.certificates
        files = f"Certificate=PEM:'{here}/gateway-client.pem', CA_Cert=PEM:'{here}/kms-ca.pem'"
        where = f"Host='127.0.0.1', Port='{server.port}', {files}, Private=PEM:'key.pem'"
        for password, status in (":'password'", 0), (":'wrong'", 2), ("", 2):
            (tmp_path / "kmip.cfg").write_text(f"Session={{\n{where}{password}}}")
            result = speed(f"@{tmp_path / 'kmip.cfg'}", "--get", "--repeat=2", "--clients=2")
            assert result.exit_code == status, result.output
            if status:
                said = f"{tmp_path / 'kmip.cfg'}:2: Session: Private: {tmp_path / 'key.pem'}: "
                assert result.stderr.startswith(said)
                assert len(result.stderr.splitlines()) == 1


def test_each_file_of_a_qclient_configuration_that_is_no_pem_is_a_line(tmp_path: Path) -> None:
    """Each is reported with the line that names it, unless an option replaces it."""
    (tmp_path / "empty.pem").touch()
    files = [f"{name}=PEM:'empty.pem'" for name in ("CA_Cert", "Public", "Private")]
    (tmp_path / "kmip.cfg").write_text("Session={Host=localhost,\n" + ",\n".join(files) + "}")
    result = speed(f"@{tmp_path / 'kmip.cfg'}", "--get", f"--ca={tmp_path / 'empty.pem'}")
    assert result.exit_code == 2
    empty = tmp_path / "empty.pem"
    assert result.stderr.splitlines() == [
        f"{tmp_path}/kmip.cfg:3: Session: Public: {empty}: holds no certificate in PEM; give the client's certificate",
        f"{tmp_path}/kmip.cfg:4: Session: Private: {empty}: holds no private key in PEM; give one",
        f"CA {empty}: holds no certificate in PEM; give the CA that the server's certificate comes from",
    ]


# Errors and mistakes --------------------------------------------------------------------------------------------------


def test_a_server_that_refuses_is_counted_by_its_reason(serve: Serve) -> None:
    with serve({"fault": "standby", "operations": ["Get"]}) as server:
        (one,) = measured(server, "--get", "--repeat=3", "--clients=2", status=1)
        result = speed(*server.options, "--get", "--repeat=3")
    (error,) = one["errors"]
    assert (one["operations"], error["kind"], error["count"]) == (0, "refused: GeneralFailure", 6)
    assert "standby" in error["example"]
    assert one["full_handshakes"] == 2  # a refusal leaves the session usable
    assert one["p50_ms"] is None
    assert "3 x refused: GeneralFailure" in result.stdout
    assert result.exit_code == 1


def test_some_errors_among_many_operations(serve: Serve) -> None:
    with serve({"fault": "reset_before_reading", "operations": ["Get"], "times": 3}) as server:
        (one,) = measured(server, "--get", "--repeat=20", status=1)
    assert one["operations"] == 17
    assert sum(error["count"] for error in one["errors"]) == 3
    assert one["full_handshakes"] == 4
    assert not any("trust" in error["example"] for error in one["errors"])


def test_operations_that_a_client_left_out_are_counted(serve: Serve) -> None:
    with serve({"fault": "deaf", "operations": ["Get"]}) as server:
        (one,) = measured(server, "--get", "--repeat=15", "--timeout=0.1", status=1)
    assert one["errors"][0]["kind"] == "no answer in time"
    assert one["errors"][0]["count"] == 10
    assert one["left_out"] == 5


def test_a_port_without_a_server_is_an_error(certificates: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server = SpeedServer(f"127.0.0.1:{unused.getsockname()[1]}", certificates, certificates)
        result = speed(*server.options, "--get")
    assert result.exit_code == 1
    assert result.stderr == f"Error: can't connect to {server.address}: Connection refused\n"


def test_the_servers_certificate_is_of_another_ca(serve: Serve) -> None:
    with serve({"fault": "wrong_certificate"}) as server:
        result = speed(*server.options, "--get")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: handshake with {server.address}: certificate verify failed, its certificate does not come from "
        f"{server.certificates / 'kms-ca.pem'}; give the right --ca, or CA_Cert in a configuration file\n"
    )


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        (b"", "the server did not answer in time"),
        (b"220 mail.example.com ESMTP ready\r\n", "wrong version number"),
    ],
)
def test_a_server_that_does_not_speak_tls_is_an_error(certificates: Path, greeting: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = SpeedServer(f"127.0.0.1:{listener.getsockname()[1]}", certificates, certificates)

        def greet() -> None:
            with listener.accept()[0] as client:
                client.sendall(greeting)
                client.settimeout(10)
                while client.recv(4096):
                    pass

        with ThreadPoolExecutor(1) as pool:
            pool.submit(greet)
            result = speed(*server.options, "--get", "--timeout=0.3")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: handshake with {server.address}: {words}, is it the port of a KMIP server, which speaks TLS?\n"
    )


def test_the_servers_certificate_is_for_another_name(serve: Serve) -> None:
    with serve() as server:
        result = speed(*server.options, "--get", "--server-name=kmip.example.com")
    assert result.exit_code == 1
    assert "the server's certificate is not for kmip.example.com" in result.stderr


def test_the_server_does_not_know_the_client(serve: Serve) -> None:
    with serve() as server:
        options = [*server.options, *server.credential("client")]
        result = speed(*options, "--get")
    assert result.exit_code == 1
    assert "does the server trust the client's certificate?" in result.stderr or "alert" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--get"], "--address is missing; give it, or a qClient configuration file as @FILE"),
        ([], "nothing to measure; give one or more of --get, --wrap, --create, --create-rsa"),
        (["repot"], "'repot' is no command and no configuration file"),
        (["--get", "--clients=0"], "'0' is not within 1 to 1000"),
        (["--get", "--clients=many"], "'many' is no number of clients; write 5, 1-10 or 1,2,5"),
        (["--get", "--kmip-version=1.9"], "'1.9' is not supported; choose from 1.0"),
        (["--get", "--address=here"], "has no port"),
        (["--get", "--server-name=a..b"], "'a..b' is no host name, and no IP address"),
        (["--get", "--server-name="], "'' is no host name"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], words: str) -> None:
    result = speed(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_key_that_is_not_the_certificates(certificates: Path) -> None:
    files = [f"--certificate={certificates / 'client.pem'}", f"--private-key={certificates / 'kms.key'}"]
    result = speed("--get", "--address=127.0.0.1:1", *files, f"--ca={certificates / 'client.key'}")
    assert result.exit_code == 2
    first, second = result.stderr.splitlines()
    assert "give the two that belong together" in first
    assert second.startswith(f"CA {certificates / 'client.key'}: holds no certificate in PEM; give the CA")
