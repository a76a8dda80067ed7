"""The commands to a gateway that runs: what they send and print, and their exit status. The gateway is a stand-in."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from gateway import cli, control_cli
from gateway.errors import ControlError

SESSIONS = {"idle": 3, "busy": 1, "opening": 0, "limit": 64}
BACKEND = {"name": "atlanta", "state": "drained", "weight": 5, "in_flight": 1, "sessions": SESSIONS}
STATUS = {
    "gateway": {
        "version": "0.1.0",
        "process": 7,
        "supervisor": 6,
        "started": "2026-01-01T00:00:00+00:00",
        "tls_workers": 2,
    },
    "backends": [
        {
            **BACKEND,
            "address": "atlanta:5696",
            "hosts": ["192.0.2.1"],
            "role": "rw",
            "priority": 0,
            "since": "2026-01-01T00:00:01+00:00",
            "last_error": {"text": "can't connect", "time": "2026-01-01T00:00:02+00:00"},
            "pools": {},
        }
    ],
    "pools": {"storage": {"idle": 3, "busy": 1, "opening": 0, "waiting": 2}},
    "clients": {
        "connections": 9,
        "identities": 1,
        "addresses": 1,
        "requests_in_flight": 1,
        "most": [{"identity": "storage", "address": "192.0.2.9", "connections": 9}],
    },
    "workers": [{"worker": 0, "replaced": False, "clients": 2}, {"worker": 0, "replaced": True, "clients": 7}],
    "certificates": [{"role": "listener", "name": "kmip", "ends": "2027-01-01T00:00:00+00:00"}],
}

Sent = list[tuple[Path, str, Mapping[str, Any]]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Sent]:
    """Return a function that sets the gateway's answer, or its error, and returns the list of what is sent."""

    def answer(result: Any) -> Sent:
        sent: Sent = []

        async def request(path: Path, command: str, arguments: Mapping[str, Any]) -> Any:
            await trio.lowlevel.checkpoint()
            sent.append((path, command, arguments))
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(control_cli, "request", request)
        return sent

    return answer


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("command", "sent", "result", "expected"),
    [
        (
            ["drain", "atlanta"],
            {"backend": "atlanta"},
            {"backends": [BACKEND]},
            "atlanta: drained, weight 5, 1 requests in flight, sessions: 3 idle, 1 busy, 0 opening of 64\n",
        ),
        (
            ["reconnect", "atlanta"],
            {"backend": "atlanta"},
            {"sessions": 8, "seconds": 2.0},
            "sessions to be replaced: 8, within 2 s; busy ones after their request\n",
        ),
        (["log", "error"], {"level": "error"}, {"level": "error", "debug": None}, "log level error\n"),
        (
            ["log", "debug"],
            {"level": "debug"},
            {"level": "info", "debug": {"seconds": 599.8}},
            "log level info\ndebug for 10 min 0 s more: everything\n",
        ),
        (
            ["log", "debug", "--identity", "storage", "--backend", "atlanta", "--address", "10.0.0.0/8", "--for", "2h"],
            {"level": "debug", "identity": "storage", "backend": "atlanta", "address": "10.0.0.0/8", "seconds": 7200},
            {"level": "info", "debug": {"seconds": 7.2, "identity": "storage", "address": "10.0.0.0/8"}},
            "log level info\ndebug for 0 min 7 s more: identity storage, address 10.0.0.0/8\n",
        ),
        (["enable", "atlanta"], {"backend": "atlanta"}, {"backends": []}, ""),
        (["weight", "atlanta", "5"], {"backend": "atlanta", "weight": 5}, {"backends": []}, ""),
        (
            ["config"],
            {},
            {"deadlines": {"drain": 10.0}, "backends": [{"name": "atlanta"}]},
            '[deadlines]\ndrain = 10.0\n\n[[backends]]\nname = "atlanta"\n',
        ),
    ],
)
def test_a_command_is_sent_and_its_result_is_printed(
    answers: Callable[[Any], Sent], command: list[str], sent: Mapping[str, Any], result: Any, expected: str
) -> None:
    requests = answers(result)
    assert call(*command, "--socket", "/run/control.sock") == (0, expected, "")
    assert requests == [(Path("/run/control.sock"), command[0], sent)]
    status, said, _ = call(*command, "--socket", "/run/control.sock", "--json")
    assert (status, json.loads(said)) == (0, result)


def test_the_status_is_printed_for_people(answers: Callable[[Any], Sent]) -> None:
    answers(STATUS)
    status, said, _ = call("status", "--socket", "control.sock")
    assert status == 0
    for line in (
        "kmip-gateway 0.1.0, processes 6 (supervisor) and 7 (core), started 2026-01-01T00:00:00+00:00",
        "  atlanta at atlanta:5696: drained since 2026-01-01T00:00:01+00:00, rw, priority 0, weight 5",
        "    sessions: 3 idle, 1 busy, 0 opening of 64; 1 requests in flight",
        "    last error 2026-01-01T00:00:02+00:00: can't connect",
        "  storage: 3 idle, 1 busy, 0 opening, 2 requests waiting",
        "clients: 9 connections of 1 identities from 1 addresses; 1 requests in flight",
        "  9 storage 192.0.2.9",
        "  0: 2 clients",
        "  0: 7 clients, replaced by a reload",
        "  2027-01-01T00:00:00+00:00 listener kmip",
    ):
        assert line in said.splitlines()


def test_a_refusal_is_status_1_in_words_or_in_json(answers: Callable[[Any], Sent]) -> None:
    answers(ControlError("no backend is named atlanta-009"))
    assert call("drain", "atlanta-009", "--socket", "s") == (1, "", "no backend is named atlanta-009\n")
    status, said, _ = call("drain", "atlanta-009", "--socket", "s", "--json")
    assert (status, json.loads(said)) == (1, {"error": "no backend is named atlanta-009"})


def test_a_gateway_that_does_not_run_is_status_1(tmp_path: Path) -> None:
    status, _, wrong = call("status", "--socket", tmp_path / "none.sock")
    assert status == 1
    assert "no gateway can be reached" in wrong


def test_the_configuration_names_the_socket_relative_to_its_directory(
    answers: Callable[[Any], Sent], tmp_path: Path
) -> None:
    requests = answers({"level": "info", "debug": None})
    config = tmp_path / "gateway.toml"
    config.write_text('[admin]\nsocket = "control.sock"\n[[backends]]\nbroken = true\n')
    assert call("log", "info", "--config", config)[0] == 0
    config.write_text('[admin]\nsocket = "/run/control.sock"\n')
    assert call("log", "info", "--config", config)[0] == 0
    assert [path for path, _, _ in requests] == [tmp_path / "control.sock", Path("/run/control.sock")]


def test_log_without_a_level_asks_for_the_level(answers: Callable[[Any], Sent]) -> None:
    requests = answers({"level": "warning", "debug": None})
    assert call("log", "--socket", "s") == (0, "log level warning\n", "")
    assert requests == [(Path("s"), "log-state", {})]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (None, "No such file"),
        ("[admin", "is not TOML"),
        ("", "[admin] socket is missing"),
        ("admin = 7", "[admin] socket is missing"),
        ('[admin]\nsocket = ""', "[admin] socket is missing"),
    ],
)
def test_a_configuration_without_a_socket_is_status_2(tmp_path: Path, text: str | None, wrong: str) -> None:
    config = tmp_path / "gateway.toml"
    if text is not None:
        config.write_text(text)
    status, _, said = call("status", "--config", config)
    assert status == 2
    assert wrong in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--socket", "a", "--config", "b"],
        ["drain", "--socket", "a"],
        ["weight", "atlanta", "0", "--socket", "a"],
        ["log", "loud", "--socket", "a"],
        ["log", "info", "--identity", "storage", "--socket", "a"],
        ["log", "--for", "10m", "--socket", "a"],
        ["log", "debug", "--for", "10", "--socket", "a"],
        ["log", "debug", "--for", "ten", "--socket", "a"],
    ],
)
def test_a_mistake_in_the_command_line_is_status_2(arguments: list[str]) -> None:
    assert call(*arguments)[0] == 2
