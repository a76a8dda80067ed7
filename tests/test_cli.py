"""The command line: what it says, and with which status it ends."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner
from OpenSSL import SSL

from gateway import cli
from tests.kit.processes import (
    Certificates,
    GatewaySettings,
    Identity,
    free_port,
    lapsed_identity,
    write_config,
    write_weak_key,
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def config(certificates: Certificates) -> Path:
    return write_config(certificates, GatewaySettings([free_port()]), free_port(), free_port())


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """``run`` sets up logging for its process, which is everybody's here."""
    yield
    structlog.reset_defaults()


def call(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", ["--help", "-h"])
def test_help_names_the_products_commands_and_no_others(name: str) -> None:
    status, said, _ = call(name)
    assert status == 0
    assert re.findall(r"\n  (\w+)  ", said.partition("Commands:")[2]) == [
        "audit",
        "check",
        "config",
        "decode",
        "drain",
        "enable",
        "log",
        "reconnect",
        "reload",
        "run",
        "status",
        "tap",
        "weight",
    ]


@pytest.mark.parametrize("command", sorted(cli.main.commands))
def test_every_command_has_a_help_text(command: str) -> None:
    status, said, _ = call(command, "--help")
    assert status == 0
    assert said.startswith(f"Usage: main {command}")


def test_the_version_is_that_of_the_package_and_of_openssl() -> None:
    openssl = SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()
    assert call("--version") == (0, f"kmip-gateway, version {version('kmip-gateway')}, interpreted, {openssl}\n", "")


def test_an_unknown_command_is_a_mistake() -> None:
    status, _, said = call("rum")
    assert status == 2
    assert "rum" in said


def test_check_prints_a_summary(config: Path) -> None:
    status, said, wrong = call("check", config)
    assert (status, wrong) == (0, "")
    assert said.endswith(f"{config}: no mistakes\n")
    assert len(said.splitlines()) > 3


def test_check_prints_warnings_last(certificates: Certificates) -> None:
    identities = [lapsed_identity(certificates), Identity("app-1")]
    config = write_config(certificates, GatewaySettings([free_port()], identities), free_port(), free_port())
    status, said, wrong = call("check", config)
    assert (status, wrong) == (0, "")
    assert said.splitlines()[-2] == f"{config}: no mistakes"
    assert said.splitlines()[-1].startswith('warning: identities["lapsed"].certificate: ')


def test_strict_takes_warnings_for_mistakes(certificates: Certificates, config: Path) -> None:
    assert call("check", "--strict", config)[0] == 0
    identities = [lapsed_identity(certificates), Identity("app-1")]
    lapsed = write_config(certificates, GatewaySettings([free_port()], identities), free_port(), free_port())
    status, said, _ = call("check", "--strict", lapsed)
    assert status == 2
    assert said.splitlines()[-2] == f"{lapsed}: warnings, which --strict takes for mistakes"
    assert said.splitlines()[-1].startswith("warning: ")


@pytest.mark.parametrize(
    "options",
    [["--explain", "x.pem", "--connect"], ["--explain", "x.pem", "--strict"], ["--certificate", "x.pem"]],
)
def test_options_of_check_that_do_not_go_together(config: Path, options: list[str]) -> None:
    status, _, said = call("check", *options, config)
    assert status == 2
    assert "Usage: " in said


def test_run_names_all_ports_in_use(certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = one.getsockname()[1], other.getsockname()[1]
        status, _, mistakes = call("run", write_config(certificates, GatewaySettings([free_port()]), *ports))
    assert status == 2
    lines = mistakes.splitlines()[-2:]
    assert f'listeners["kmip"].bind: cannot listen on 127.0.0.1:{ports[0]}: Address already in use' in lines[0]
    assert f"admin.bind: cannot listen on 127.0.0.1:{ports[1]}: Address already in use" in lines[1]


@pytest.mark.parametrize("command", ["check", "run"])
def test_all_mistakes_are_printed(config: Path, command: str) -> None:
    wrong = config.with_name("wrong.toml")
    wrong.write_text(config.read_text().replace("bind", "bnid").replace('"server.pem"', '"missing.pem"'))
    status, said, mistakes = call(command, wrong)
    assert (status, said) == (2, "")
    lines = mistakes.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith(f"{wrong}: ") for line in lines)
    assert any("missing.pem" in line for line in lines)


def test_check_prints_findings_as_json(certificates: Certificates, config: Path) -> None:
    status, said, wrong = call("check", "--json", config)
    assert (status, wrong, json.loads(said)) == (0, "", {"mistakes": [], "warnings": []})
    identities = [lapsed_identity(certificates), Identity("app-1")]
    lapsed = write_config(certificates, GatewaySettings([free_port()], identities), free_port(), free_port())
    for options, expected in ([], 0), (["--strict"], 2):
        status, said, wrong = call("check", "--json", *options, lapsed)
        assert (status, wrong) == (expected, "")
        (warning,) = json.loads(said)["warnings"]
        assert (warning["file"], warning["key"]) == (str(lapsed), 'identities["lapsed"].certificate')


@pytest.mark.parametrize("options", [[], ["--explain", "none.pem"], ["--connect"], ["--strict"]])
def test_check_prints_mistakes_as_json(config: Path, options: list[str]) -> None:
    wrong = config.with_name("wrong.toml")
    wrong.write_text(config.read_text().replace('"server.pem"', '"missing.pem"'))
    status, said, mistakes = call("check", "--json", *options, wrong)
    assert (status, mistakes) == (2, "")
    found = json.loads(said)
    assert found["warnings"] == []
    (mistake,) = found["mistakes"]
    assert mistake == {
        "file": str(wrong),
        "line": 5,
        "key": 'listeners["kmip"].certificate',
        "message": mistake["message"],
    }
    assert mistake["message"].startswith("there is no file ")


def test_check_names_a_clients_file_as_json(config: Path) -> None:
    status, said, wrong = call("check", "--json", "--explain", "none.pem", config)
    assert (status, wrong) == (2, "")
    (mistake,) = json.loads(said)["mistakes"]
    assert (mistake["file"], mistake["key"]) == ("none.pem", None)


def test_a_weak_key_is_a_mistake_in_json(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    write_weak_key(certificates)
    config = write_config(certificates, GatewaySettings([free_port()]), free_port(), free_port())
    status, said, _ = call("check", "--json", config)
    (mistake,) = json.loads(said)["mistakes"]
    assert (status, mistake["file"], mistake["key"]) == (2, str(config), 'listeners["kmip"].certificate')


@pytest.mark.parametrize(
    ("section", "options", "is_json"),
    [
        ('[log]\nformat = "json"\n', [], True),
        ('[log]\nformat = "json"\nlevel = "loud"\n', [], True),
        ('[log]\nformat = "json"\n', ["--log-format", "text"], False),
        ('[log]\nformat = "jason"\n', [], False),
        ('[[log]]\nformat = "json"\n', [], False),
        ("[log\n", [], False),
        ("[log\n", ["--log-format", "json"], True),
    ],
)
def test_mistakes_of_run_have_the_format_of_the_log(
    config: Path, section: str, options: list[str], *, is_json: bool
) -> None:
    wrong = config.with_name("wrong.toml")
    wrong.write_text(config.read_text() + "[pool]\nmin_idle = -1\n" + section)
    status, said, mistakes = call("run", *options, wrong)
    assert (status, said) == (2, "")
    if is_json:
        found = [json.loads(line) for line in mistakes.splitlines()]
        assert {(each["event"], each["file"]) for each in found} == {("mistake in the configuration", str(wrong))}
    else:
        assert all(line.startswith(f"{wrong}: ") for line in mistakes.splitlines())


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("kind", ["missing", "directory", "garbage"])
def test_a_file_that_is_no_configuration_is_a_mistake_of_one_line(tmp_path: Path, command: str, kind: str) -> None:
    path = tmp_path / "gateway.toml"
    if kind == "directory":
        path.mkdir()
    elif kind == "garbage":
        path.write_bytes(b"\xff\x00[[")
    status, said, mistakes = call(command, path)
    assert (status, said) == (2, "")
    assert len(mistakes.splitlines()) == 1
    assert mistakes.startswith(f"{path}: ")


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_weak_key_is_a_mistake(tmp_path: Path, command: str) -> None:
    certificates = Certificates(tmp_path)
    write_weak_key(certificates)
    config = write_config(certificates, GatewaySettings([free_port()]), free_port(), free_port())
    status, _, mistakes = call(command, config)
    assert status == 2
    *logged, line = mistakes.splitlines()
    assert len(logged) == (command == "run")
    assert line.startswith(f'{config}: listeners["kmip"].certificate: ')


@pytest.mark.parametrize("command", ["check", "run"])
def test_an_old_openssl_is_refused(config: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SSL, "OPENSSL_VERSION_NUMBER", 0x3060_0000)
    status, said, wrong = call(command, config)
    assert (status, said) == (2, "")
    (line,) = wrong.splitlines()
    assert "is too old" in line
    assert "cryptography>=48" in line


def test_python_m_gateway_is_the_command() -> None:
    """Also from elsewhere, and without what only a terminal has."""
    command = [sys.executable, "-m", "gateway", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env=os.environ | {"TERM": ""}
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: kmip-gateway ")
    assert done.stderr == ""


def test_the_gateway_does_not_import_the_lab() -> None:
    code = "import sys, gateway.cli; print([name for name in sys.modules if name.startswith('kmip_lab')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"
