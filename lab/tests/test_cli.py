"""The command line of the laboratory: its commands, and the status with which it ends."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from kmip_lab import cli

_COMMANDS = ["certs", "compare", "demo", "keymanager", "promote", "report", "speed"]


def call(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_help_names_every_command() -> None:
    status, said, _ = call("--help")
    assert status == 0
    assert [line.split()[0] for line in said.partition("Commands:")[2].splitlines() if line[2:3].strip()] == _COMMANDS


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    status, said, _ = call(command, "--help")
    assert status == 0
    assert said.startswith(f"Usage: main {command}")


def test_the_version_is_that_of_the_distribution() -> None:
    assert call("--version") == (0, f"kmip-lab, version {version('kmip-gateway-lab')}\n", "")


def test_an_unknown_command_is_a_mistake() -> None:
    status, _, said = call("sped")
    assert status == 2
    assert "sped" in said


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "kmip_lab", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env=os.environ | {"TERM": ""}
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: kmip-lab ")


@pytest.mark.parametrize(("option", "kind"), [((), ec.EllipticCurvePrivateKey), (("--rsa",), rsa.RSAPrivateKey)])
def test_certs_writes_a_set_and_does_not_overwrite_it(tmp_path: Path, option: tuple[str, ...], kind: type) -> None:
    directory = tmp_path / "certificates"
    status, said, _ = call("certs", directory, *option)
    assert status == 0
    assert sorted(said.splitlines()) == sorted(str(path) for path in directory.iterdir())
    key = directory / "server.key"
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    status, _, wrong = call("certs", directory, *option)
    assert status == 1
    assert "holds" in wrong
    assert key.read_bytes() == before
    assert isinstance(load_pem_private_key(before, None), kind)
