"""Messages to the service manager, and the sockets that it hands over."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from gateway.systemd import Notifier, inherited_sockets


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def heard(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_each_state_is_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier(environment(manager))

    notifier.ready()
    notifier.reloading()
    notifier.stopping("draining 3 requests")

    ready, reloading, stopping = heard(manager)
    assert ready == "READY=1"
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert stopping == "STOPPING=1\nSTATUS=draining 3 requests"


def test_an_abstract_address_is_understood() -> None:
    name = f"kmip-gateway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.setblocking(False)
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert heard(sock) == ["READY=1"]


def test_nothing_happens_without_a_service_manager(tmp_path: Path) -> None:
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "missing")}).ready()


async def test_the_watchdog_is_fed_three_times_in_its_interval(
    manager: socket.socket, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0
    notifier = Notifier(environment(manager, WATCHDOG_USEC="30000000"))
    with trio.move_on_after(60.5):
        await notifier.feed_watchdog()
    assert heard(manager) == ["WATCHDOG=1"] * 7


@pytest.mark.parametrize(
    "variables", [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}]
)
async def test_no_watchdog_is_fed_that_is_not_this_process_s(manager: socket.socket, variables: dict[str, str]) -> None:
    with trio.fail_after(5):
        await Notifier(environment(manager, **variables)).feed_watchdog()
    assert heard(manager) == []


_INHERIT = """
import os, sys
from gateway.systemd import inherited_sockets
os.environ["LISTEN_PID"] = str(os.getpid())
found = inherited_sockets()
print({name: sock.getsockname()[1] for name, sock in found.items()})
print([name for name in os.environ if name.startswith("LISTEN_")])
"""


def test_inherited_sockets_are_found_by_name_and_the_variables_are_removed() -> None:
    """In a process of its own, whose descriptors 3 and 4 are the sockets."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [sock.getsockname()[1] for sock in listening]
    script = f"exec 3<&{listening[0].fileno()} 4<&{listening[1].fileno()}; exec \"$0\" -c '{_INHERIT}'"
    done = subprocess.run(
        ["bash", "-c", script, sys.executable],
        pass_fds=[sock.fileno() for sock in listening],
        env=os.environ | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "kmip:legacy"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.splitlines() == [str({"kmip": ports[0], "legacy": ports[1]}), "[]"]
    for sock in listening:
        sock.close()


def test_sockets_of_another_process_are_left_alone() -> None:
    variables = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
    assert inherited_sockets(variables) == {}
    assert variables == {}
