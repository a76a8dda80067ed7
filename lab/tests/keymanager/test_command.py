"""The commands keymanager and promote: their options, and key managers in a process."""

import signal
import socket
import ssl
from pathlib import Path

import pytest
from click.testing import CliRunner
from kmip.core.enums import CryptographicAlgorithm
from kmip_lab.keymanager import Role, read_journal, read_roles, two_plus_two, write_roles
from kmip_lab.keymanager.command import keymanager, promote

from lab.tests.kit.key_managers import pykmip_client
from lab.tests.kit.keymanager_process import options, ready_port, running


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=lambda sign: sign.name)
def test_key_managers_of_one_command_share_a_store(certificates: Path, tmp_path: Path, sign: signal.Signals) -> None:
    names = ["atlanta-001", "london-001"]
    arguments = ["--bind=127.0.0.1:0", "--bind=127.0.0.1:0", *(f"--name={name}" for name in names)]
    kept = [f"--store={tmp_path / 'store.db'}", f"--journal={tmp_path / 'journal'}"]
    with running(*arguments, *kept, *options(certificates)) as process:
        atlanta, london = (ready_port(process, name) for name in names)
        with pykmip_client(certificates, atlanta) as client:
            uid = client.create(CryptographicAlgorithm.AES, 256)
        with pykmip_client(certificates, london) as client:
            assert client.get(uid).cryptographic_length == 256
            process.send_signal(sign)
            assert process.wait(10) == 0
    entries = read_journal(tmp_path / "journal")
    assert [(each.server, each.operation, each.uids) for each in entries] == [
        ("atlanta-001", "Create", [uid]),
        ("london-001", "Get", [uid]),
    ]


def test_a_port_in_use_is_an_error(certificates: Path) -> None:
    with running("--bind=127.0.0.1:0", *options(certificates)) as process:
        port = ready_port(process, "key-manager-1")
        result = CliRunner().invoke(keymanager, [f"--bind=127.0.0.1:{port}", *options(certificates)])
    assert result.exit_code == 1
    assert "in use" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bind=somewhere"], "has no port"),
        (["--bind=127.0.0.1:1", "--name=a", "--name=b"], "1 --bind and 2 --name"),
        (["--handshake-cost=-1"], "--handshake-cost"),
        (["--cost=Sing=1"], "no cost 'Sing'"),
        (["--cost=Get"], "not NAME=SECONDS"),
        (["--cost=Get=-1"], "0 or more"),
    ],
)
def test_invalid_options_are_reported(certificates: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(keymanager, [*arguments, *options(certificates)])
    assert result.exit_code == 2
    assert words in result.output


def test_a_private_key_of_another_certificate_is_an_error(certificates: Path) -> None:
    wrong = [*options(certificates), f"--private-key={certificates / 'client.key'}"]
    result = CliRunner().invoke(keymanager, wrong)
    assert result.exit_code == 1
    assert "kms.pem" in result.output


@pytest.mark.parametrize("option", ["--store", "--journal"])
def test_a_file_that_can_not_be_created_is_an_error(certificates: Path, tmp_path: Path, option: str) -> None:
    nowhere = f"{option}={tmp_path / 'nowhere' / 'file'}"
    result = CliRunner().invoke(keymanager, [nowhere, *options(certificates)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")


def test_help_says_not_for_production() -> None:
    assert "NOT FOR PRODUCTION" in CliRunner().invoke(keymanager, ["--help"]).output


@pytest.mark.parametrize(("option", "resumed"), [("--resumption", True), ("--no-resumption", False)])
def test_no_resumption_disables_session_resumption(certificates: Path, option: str, resumed: bool) -> None:
    context = ssl.create_default_context(cafile=certificates / "kms-ca.pem")
    context.load_cert_chain(certificates / "gateway-client.pem", certificates / "gateway-client.key")
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # in 1.3, the session ticket comes after the handshake
    with running("--bind=127.0.0.1:0", "--name=one", option, *options(certificates)) as process:
        address = "127.0.0.1", ready_port(process, "one")
        with socket.create_connection(address) as sock, context.wrap_socket(sock, server_hostname="localhost") as first:
            session = first.session
        with (
            socket.create_connection(address) as sock,
            context.wrap_socket(sock, server_hostname="localhost", session=session) as second,
        ):
            assert second.session_reused is resumed


def test_promote_makes_a_standby_a_master(tmp_path: Path) -> None:
    write_roles(tmp_path, two_plus_two())
    in_cluster = ["--cluster", str(tmp_path)]
    ended = CliRunner().invoke(promote, ["atlanta-002", "--instead-of", "atlanta-001", *in_cluster])
    assert (ended.exit_code, ended.output) == (0, "atlanta-002 is master, and atlanta-001 is a standby\n")
    roles = read_roles(tmp_path)
    assert (roles["atlanta-001"].role, roles["atlanta-002"].role) == (Role.STANDBY, Role.MASTER)

    CliRunner().invoke(promote, ["atlanta-001", *in_cluster])
    assert [member.role for member in read_roles(tmp_path).values()].count(Role.MASTER) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["paris-001"], "there is no key manager paris-001 in this cluster"),
        (["atlanta-002", "--instead-of", "paris-001"], "there is no key manager paris-001 in this cluster"),
    ],
)
def test_promoting_an_unknown_key_manager_changes_nothing(tmp_path: Path, arguments: list[str], says: str) -> None:
    write_roles(tmp_path, roles := two_plus_two())
    ended = CliRunner().invoke(promote, [*arguments, "--cluster", str(tmp_path)])
    assert (ended.exit_code, says in ended.output) == (1, True)
    assert read_roles(tmp_path) == roles


def test_promote_without_roles_file_is_an_error(tmp_path: Path) -> None:
    ended = CliRunner().invoke(promote, ["atlanta-002", "--cluster", str(tmp_path)])
    assert (ended.exit_code, "roles.json" in ended.output) == (1, True)
