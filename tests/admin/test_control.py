"""The control socket: who may use it, what it answers, and what it refuses."""

import json
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.admin.control import ControlServer, control_socket, request
from gateway.errors import ConfigError, ControlError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


async def echo(arguments: Mapping[str, Any]) -> Any:
    return dict(arguments)


async def refuse(_arguments: Mapping[str, Any]) -> Any:
    raise ControlError("no backend is named atlanta-009; there are atlanta-001")


async def fail(_arguments: Mapping[str, Any]) -> Any:
    raise ZeroDivisionError


class Lines:
    """A subscription whose lines never end."""

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"{}\n" * 1000

    def close(self) -> None:
        pass


class Silence(Lines):
    """A subscription without lines."""

    async def receive(self) -> bytes:
        await trio.sleep_forever()
        return b""


class Broken(Lines):
    """A subscription that fails."""

    async def receive(self) -> bytes:
        raise ZeroDivisionError


async def lines(_arguments: Mapping[str, Any]) -> Any:
    return Lines()


async def silence(_arguments: Mapping[str, Any]) -> Any:
    return Silence()


async def broken(_arguments: Mapping[str, Any]) -> Any:
    return Broken()


COMMANDS = {"echo": echo, "refuse": refuse, "fail": fail, "lines": lines, "silence": silence, "broken": broken}


@asynccontextmanager
async def serving(path: Path, users: frozenset[int] | None = None) -> AsyncIterator[None]:
    with control_socket(path) as listening:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ControlServer(COMMANDS, users=users).run, listening)
            yield
            nursery.cancel_scope.cancel()


async def raw(path: Path, data: bytes) -> dict[str, Any]:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        received = b"".join([chunk async for chunk in stream])
    answer: dict[str, Any] = json.loads(received)
    return answer


async def test_a_command_is_answered_with_its_result(path: Path) -> None:
    async with serving(path):
        assert await request(path, "echo", {"backend": "atlanta-001"}) == {"backend": "atlanta-001"}
        assert await request(path, "echo") == {}


async def test_a_refusal_comes_in_the_gateways_own_words(path: Path) -> None:
    async with serving(path):
        with pytest.raises(ControlError, match="no backend is named atlanta-009"):
            await request(path, "refuse")


async def test_a_fault_is_told_apart_from_a_refusal_and_ends_nothing(path: Path) -> None:
    async with serving(path):
        with pytest.raises(ControlError, match="its log says why"):
            await request(path, "fail")
        assert await request(path, "echo", {"still": "there"}) == {"still": "there"}


async def test_an_unknown_command_is_answered_with_the_known_ones(path: Path) -> None:
    async with serving(path):
        with pytest.raises(ControlError, match="'ech'; there are broken, echo, fail, lines, refuse, silence"):
            await request(path, "ech")


@pytest.mark.parametrize("command", ["lines", "silence", "broken"])
async def test_a_subscriber_that_leaves_without_reading_ends_nothing(path: Path, command: str) -> None:
    async with serving(path):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as leaving:
                leaving.connect(str(path))
                leaving.sendall(json.dumps({"command": command}).encode() + b"\n")
                await wait_all_tasks_blocked(0.01) if command != "lines" else await trio.sleep(0.01)
            await trio.sleep(0.01)  # the kernel resets: bytes were left unread
        assert await request(path, "echo", {"still": "there"}) == {"still": "there"}


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"[]\n",
        b"7\n",
        b"{}\n",
        b'{"command": 7}\n',
        b'{"command": "echo", "arguments": []}\n',
        b"\xff\n",
        b"",
        b"[" * 60_000 + b"\n",
    ],
)
async def test_garbage_is_refused_in_words(path: Path, data: bytes) -> None:
    async with serving(path):
        answer = await raw(path, data)
        assert "a request is" in answer["error"] or "command is" in answer["error"]
        assert await request(path, "echo") == {}


async def test_a_request_without_end_is_refused(path: Path) -> None:
    async with serving(path):
        assert "at most 65536 bytes" in (await raw(path, bytes(70_000)))["error"]
        assert await request(path, "echo") == {}


async def test_a_silent_client_is_cut_off_and_few_are_served_at_once(path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with serving(path):
        silent = [await trio.open_unix_socket(str(path)) for _ in range(8)]
        await wait_all_tasks_blocked(0.02)
        with pytest.raises(ControlError, match="closed the connection"):
            await request(path, "echo")
        answers = [await stream.receive_some(1000) for stream in silent]
        assert all(b"in time" in answer for answer in answers)
        assert await request(path, "echo") == {}
        for stream in silent:
            await stream.aclose()


async def test_another_user_is_refused(path: Path) -> None:
    async with serving(path, users=frozenset({os.geteuid() + 1})):
        with pytest.raises(ControlError, match="may not control this gateway"):
            await request(path, "echo")


async def test_a_refusal_that_is_sent_before_the_request_is_shown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = trio.Event()
    connect = trio.open_unix_socket

    async def connected_late(name: str) -> trio.SocketStream:
        stream = await connect(name)
        await closed.wait()
        return stream

    async def refuse_at_once(listening: socket.socket) -> None:
        await trio.lowlevel.wait_readable(listening)
        sock, _address = listening.accept()
        with sock:
            sock.sendall(b'{"error": "user 7 may not control this gateway"}\n')
        closed.set()

    monkeypatch.setattr(trio, "open_unix_socket", connected_late)
    with control_socket(path) as listening:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse_at_once, listening)
            with pytest.raises(ControlError, match="user 7 may not control"):
                await request(path, "echo")


def test_the_socket_is_for_its_owner_only_and_goes_with_the_block(path: Path) -> None:
    with control_socket(path):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_a_socket_that_a_killed_gateway_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with control_socket(path):
        assert path.exists()


@pytest.fixture
def occupied(path: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield path


def test_the_socket_of_a_running_gateway_is_a_mistake(occupied: Path) -> None:
    with pytest.raises(ConfigError, match="another process listens"), control_socket(occupied):
        pass
    assert occupied.exists()


def test_a_file_that_is_no_socket_is_a_mistake(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"), control_socket(path):
        pass
    assert path.read_text() == "precious"


def test_a_directory_that_is_missing_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't listen"), control_socket(tmp_path / "none" / "control.sock"):
        pass


async def test_no_gateway_is_told_from_a_refusal(path: Path) -> None:
    with pytest.raises(ControlError, match="no gateway can be reached"):
        await request(path, "echo")
