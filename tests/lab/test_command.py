"""The command: key managers in a process of their own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from kmip.core.enums import CryptographicAlgorithm

from gateway.lab.keymanager import read_journal
from gateway.lab.keymanager.command import keymanager
from tests.lab.conftest import pykmip_client

PROGRAM = "from gateway.lab.keymanager.command import keymanager; keymanager()"


def options(certificates: Path) -> list[str]:
    return [
        f"--certificate={certificates / 'kms.pem'}",
        f"--private-key={certificates / 'kms.key'}",
        f"--client-ca={certificates / 'kms-clients-ca.pem'}",
    ]


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready_port(process: subprocess.Popen[str], name: str) -> int:
    """The port in the next ready line, which must be of this key manager."""
    assert process.stdout is not None
    line = process.stdout.readline()
    begin, end = f"key manager {name} listening on 127.0.0.1:", " (simulated: not for production)\n"
    assert line.startswith(begin), line
    assert line.endswith(end), line
    return int(line.removeprefix(begin).removesuffix(end))


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
    assert [(one.server, one.operation, one.uids) for one in entries] == [
        ("atlanta-001", "Create", [uid]),
        ("london-001", "Get", [uid]),
    ]


def test_a_port_that_is_taken(certificates: Path) -> None:
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
        (["--cost=Sing=1"], "no cost called 'Sing'"),
        (["--cost=Get"], "not NAME=SECONDS"),
        (["--cost=Get=-1"], "from 0 on"),
    ],
)
def test_mistakes_are_named(certificates: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(keymanager, [*arguments, *options(certificates)])
    assert result.exit_code == 2
    assert words in result.output


def test_a_key_that_does_not_belong_to_its_certificate(certificates: Path) -> None:
    wrong = [*options(certificates), f"--private-key={certificates / 'client.key'}"]
    result = CliRunner().invoke(keymanager, wrong)
    assert result.exit_code == 1
    assert "kms.pem" in result.output


@pytest.mark.parametrize("option", ["--store", "--journal"])
def test_a_file_that_can_not_be_made(certificates: Path, tmp_path: Path, option: str) -> None:
    nowhere = f"{option}={tmp_path / 'nowhere' / 'file'}"
    result = CliRunner().invoke(keymanager, [nowhere, *options(certificates)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")


def test_help_says_what_it_is_not_for() -> None:
    assert "NOT FOR PRODUCTION" in CliRunner().invoke(keymanager, ["--help"]).output
