"""A gateway under a service manager: what it says over the notify socket, and sockets that it is handed.

The service manager is this test: a datagram socket for notifications, and a listening socket as descriptor 3.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import create_key

from gateway.config import Address
from gateway.kmip.spec import ResultStatus
from gateway.tls import client_context
from tests.kit import processes
from tests.kit.processes import (
    Certificates,
    GatewaySettings,
    free_port,
    is_listening,
    running_key_managers,
    wait_until,
    write_config,
)

WATCHDOG = 1.5  # s

pytestmark = pytest.mark.parametrize("workers", [0, 2])


@pytest.fixture(scope="module")
def key_managers(certificates: Certificates) -> Iterator[list[int]]:
    with running_key_managers(certificates, ("kms-1",)) as ports:
        yield ports


@pytest.fixture(autouse=True)
def _tls_workers(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)


class Manager:
    """The service manager's end of the notify socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.setblocking(False)
        self.heard: list[str] = []

    def has_heard(self, message: str) -> bool:
        """Return True if a message was sent that begins so."""
        try:
            while True:
                self.heard.append(self._sock.recv(4096).decode())
        except BlockingIOError:
            return any(each.startswith(message) for each in self.heard)

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@contextmanager
def service(config: Path, manager: Manager, sockets: Sequence[socket.socket] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Run a gateway as systemd does: WATCHDOG_PID and LISTEN_PID are the main process."""
    copies = " ".join(f"{3 + index}<&{sock.fileno()}" for index, sock in enumerate(sockets))
    script = (
        f'{f"exec {copies};" if copies else ""} export LISTEN_PID=$$ WATCHDOG_PID=$$; exec "$0" -m gateway run "$1"'
    )
    environment = os.environ | {
        "NOTIFY_SOCKET": str(manager.path),
        "WATCHDOG_USEC": str(int(WATCHDOG * 1e6)),
        "LISTEN_FDS": str(len(sockets)),
        "LISTEN_FDNAMES": "kmip",
    }
    log = config.with_suffix(".log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["bash", "-c", script, sys.executable, str(config)],
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=[sock.fileno() for sock in sockets],
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def until(condition: Callable[[], bool], what: str) -> None:
    await trio.to_thread.run_sync(wait_until, condition, what)


def configured(certificates: Certificates, key_managers: list[int], port: int, extra: str = "") -> Path:
    return write_config(certificates, GatewaySettings(key_managers, extra=extra), port, free_port())


async def create(certificates: Certificates, port: int) -> ResultStatus:
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    with trio.fail_after(20):
        async with connect(Address("127.0.0.1", port), context) as client:
            return ResultStatus((await client.ask(create_key())).items[0].status)


async def test_the_manager_hears_ready_watchdog_and_stopping(
    certificates: Certificates, key_managers: list[int], manager: Manager
) -> None:
    port = free_port()
    config = configured(certificates, key_managers, port, "[deadlines]\nlame_duck = 3.0\n")
    with service(config, manager) as process:
        await until(lambda: manager.has_heard("READY=1"), "READY")
        assert is_listening(port)
        assert await create(certificates, port) == ResultStatus.SUCCESS
        began = time.monotonic()
        manager.heard.clear()
        await until(lambda: manager.has_heard("WATCHDOG=1") and manager.heard.count("WATCHDOG=1") >= 3, "the watchdog")
        assert time.monotonic() - began < 2 * WATCHDOG
        process.terminate()
        await until(lambda: manager.has_heard("STOPPING=1\nSTATUS=draining for at most 13 s"), "STOPPING")
        assert is_listening(port)
        assert await trio.to_thread.run_sync(lambda: process.wait(20)) == 0


async def test_on_an_inherited_socket_no_client_is_refused_during_a_restart(
    certificates: Certificates, key_managers: list[int], manager: Manager
) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listening:
        port = listening.getsockname()[1]
        config = configured(certificates, key_managers, port)  # its bind would fail: the address is in use
        with service(config, manager, [listening]) as process:
            assert await create(certificates, port) == ResultStatus.SUCCESS
            process.terminate()
            assert await trio.to_thread.run_sync(lambda: process.wait(20)) == 0
        async with trio.open_nursery() as nursery:
            answers = list[ResultStatus]()

            @nursery.start_soon
            async def early() -> None:
                answers.append(await create(certificates, port))

            await trio.sleep(0.2)
            assert not answers
            with service(config, manager, [listening]):
                await until(lambda: bool(answers), "the answer of the next gateway")
        assert answers == [ResultStatus.SUCCESS]


def test_a_handed_socket_without_a_listener_ends_the_start_with_a_mistake(
    certificates: Certificates, key_managers: list[int], manager: Manager
) -> None:
    config = configured(certificates, key_managers, free_port())
    config.write_text(config.read_text().replace('name = "kmip"', 'name = "other"'))
    with socket.create_server(("127.0.0.1", 0)) as listening, service(config, manager, [listening]) as process:
        assert process.wait(20) == 2
    assert (
        'there is no such listener; set FileDescriptorName to one of "other"' in config.with_suffix(".log").read_text()
    )
