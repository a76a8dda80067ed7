"""The commands of the control socket, against a core with key managers in this process."""

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from kmip_lab.keymanager import KeyManager, Store
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key
from structlog.testing import LogCapture

from gateway import log, tls
from gateway.admin.control import request
from gateway.config import Config, load
from gateway.core import Core, ListenAddresses
from gateway.errors import ControlError
from gateway.kmip.spec import ResultStatus
from gateway.tls import client_context
from tests.kit.processes import Certificates, GatewaySettings, free_port, write_config
from tests.kit.revocation import crl_of


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("control"))


@pytest.fixture
async def key_managers(certificates: Certificates, nursery: trio.Nursery) -> AsyncIterator[list[KeyManager]]:
    context = tls.server_context(*certificates.pair("kms"), certificates.path("kms_clients_ca.pem"))
    store = Store()
    found = [KeyManager(name, store, context=context) for name in ("kms-1", "kms-2")]
    for key_manager in found:
        await nursery.start(key_manager.serve, ("127.0.0.1", 0))
    yield found
    store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def config(certificates: Certificates, key_managers: list[KeyManager], path: Path) -> Config:
    ports = [key_manager.port for key_manager in key_managers]
    certificates.path("clients.crl").write_bytes(crl_of(certificates.clients_ca))
    settings = GatewaySettings(ports, listener='client_crl = "clients.crl"\n', extra=f'socket = "{path}"\n')
    return load(write_config(certificates, settings, free_port(), free_port()))


@pytest.fixture
def logged() -> Iterator[LogCapture]:
    before = structlog.get_config()
    captured = LogCapture()
    structlog.configure(processors=[captured], cache_logger_on_first_use=False)
    yield captured
    structlog.configure(**before)


@asynccontextmanager
async def running(config: Config, core: Core | None = None) -> AsyncIterator[ListenAddresses]:
    core = core or Core(config)
    async with trio.open_nursery() as nursery:
        bound: ListenAddresses = await nursery.start(core.run)
        yield bound
        core.drain()


@asynccontextmanager
async def client_of(certificates: Certificates, bound: ListenAddresses) -> AsyncIterator[Client]:
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    async with connect(bound.listeners[0], context) as client:
        yield client


async def readiness(bound: ListenAddresses) -> str:
    """Return the text of /readyz."""
    async with await trio.open_tcp_stream(bound.admin.host, bound.admin.port) as stream:
        await stream.send_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join([part async for part in stream])
    return answer.rpartition(b"\r\n\r\n")[2].decode().strip()


async def create(client: Client, number: int) -> None:
    for _ in range(number):
        assert (await client.ask(create_key())).items[0].status == ResultStatus.SUCCESS


async def until(path: Path, condition: Callable[[Any], bool]) -> Any:
    """Return the first status that meets a condition."""
    with trio.fail_after(10):
        while True:
            status = await request(path, "status")
            if condition(status):
                return status
            await trio.sleep(0.05)


def requests_of(core: Core, name: str) -> float:
    """Return the number of requests that a backend has answered to clients."""
    core.metrics.flush()
    return core.metrics.backend_requests.labels(name, "answered").value


def backend(status: Any, name: str) -> Any:
    return next(each for each in status["backends"] if each["name"] == name)


async def test_the_status_tells_backends_pools_clients_and_certificates(
    certificates: Certificates, config: Config, path: Path
) -> None:
    async with running(config) as bound, client_of(certificates, bound) as client:
        await create(client, 4)
        status = await until(path, lambda status: all(each["sessions"]["idle"] for each in status["backends"]))
    assert status["gateway"]["process"] == os.getpid()
    first = backend(status, "kms-1")
    assert first["address"] == str(config.backends[0].address)
    assert (first["state"], first["role"], first["weight"], first["last_error"]) == ("up", "rw", 1, None)
    assert first["sessions"] == {"idle": 1, "busy": 0, "opening": 0, "limit": 64}
    assert status["pools"] == {"everyone": {"idle": 2, "busy": 0, "opening": 0, "waiting": 0}}
    assert status["clients"] == {
        "connections": 1,
        "identities": 1,
        "addresses": 1,
        "requests_in_flight": 0,
        "most": [{"identity": "everyone", "address": "127.0.0.1", "connections": 1}],
    }
    assert status["workers"] == []
    ends = {(each["role"], each["name"]): each["ends"] for each in status["certificates"]}
    assert ("listener", "kmip") in ends
    assert ends["client_crl", "kmip: CN=Clients CA"] == min(ends.values())
    assert not os.path.exists(path)  # noqa: ASYNC240, PTH110


async def test_a_backend_that_can_not_be_reached_is_shown_with_its_error(
    certificates: Certificates, path: Path, key_managers: list[KeyManager]
) -> None:
    settings = GatewaySettings([key_managers[0].port, free_port()], extra=f'socket = "{path}"\n')
    async with running(load(write_config(certificates, settings, free_port(), free_port()))):
        status = await until(path, lambda status: backend(status, "kms-2")["state"] == "down")
    second = backend(status, "kms-2")
    assert "refused" in second["last_error"]["text"].lower()
    assert second["since"] >= status["gateway"]["started"]


async def test_a_drained_backend_gets_no_request_until_it_is_enabled(
    certificates: Certificates, config: Config, path: Path, logged: LogCapture
) -> None:
    core = Core(config)
    async with running(config, core) as bound, client_of(certificates, bound) as client:
        await create(client, 4)
        (answer,) = (await request(path, "drain", {"backend": "kms-1"}))["backends"]
        assert (answer["state"], answer["sessions"]["idle"]) == ("drained", 0)
        before = requests_of(core, "kms-1")
        await create(client, 6)
        assert requests_of(core, "kms-1") == before
        await trio.sleep(0.6)  # two rounds of maintenance, which must not warm it
        status = await request(path, "status")
        assert backend(status, "kms-1")["sessions"]["idle"] == 0
        assert backend(status, "kms-1")["state"] == "drained"
        await request(path, "drain", {"backend": "kms-2"})
        refused = (await client.ask(create_key())).items[0]
        assert refused.status == ResultStatus.OPERATION_FAILED
        assert await readiness(bound) == "all key managers are drained: see kmip-gateway enable"
        await request(path, "enable", {"backend": "kms-1"})
        await create(client, 3)
        assert backend(await request(path, "status"), "kms-1")["sessions"]["idle"] >= 1
    changes = [entry for entry in logged.entries if entry["event"] == "control command"]
    assert [(entry["command"], entry["arguments"], entry["user"]) for entry in changes] == [
        ("drain", "backend=kms-1", os.geteuid()),
        ("drain", "backend=kms-2", os.geteuid()),
        ("enable", "backend=kms-1", os.geteuid()),
    ]


async def test_a_weight_changes_the_share(certificates: Certificates, config: Config, path: Path) -> None:
    core = Core(config)
    async with running(config, core) as bound, client_of(certificates, bound) as client:
        await until(path, lambda status: all(each["sessions"]["idle"] for each in status["backends"]))
        await request(path, "weight", {"backend": "kms-2", "weight": 3})
        assert backend(await request(path, "status"), "kms-2")["weight"] == 3
        await create(client, 8)
    assert [requests_of(core, name) for name in ("kms-1", "kms-2")] == [2, 6]


async def test_a_reconnect_replaces_the_sessions(config: Config, path: Path) -> None:
    async with running(config):
        await until(path, lambda status: all(each["sessions"]["idle"] for each in status["backends"]))
        assert await request(path, "reconnect", {"backend": "kms-1"}) == {"sessions": 1, "seconds": 0.25}


@pytest.mark.parametrize(
    ("command", "arguments", "refusal"),
    [
        ("drain", {"backend": "kms-9"}, "no backend is named 'kms-9'; there are kms-1, kms-2"),
        ("enable", {}, "no backend is named None"),
        ("drain", {"backend": ["kms-1"]}, r"no backend is named \['kms-1'\]"),
        ("drain", {"backend": {"kms-1": 1}}, "no backend is named {'kms-1': 1}"),
        ("log", {"level": {}}, "no log level is named {}"),
        ("weight", {"backend": "kms-1", "weight": 0}, "0 is no weight"),
        ("weight", {"backend": "kms-1", "weight": True}, "True is no weight"),
        ("weight", {"backend": "kms-1"}, "None is no weight"),
        ("log", {"level": "info", "identity": "everyone"}, "log info is for all lines; only log debug is for some"),
        ("log", {"level": "debug", "identity": "red"}, "no identity is named red; there are everyone, unidentified"),
        ("log", {"level": "debug", "backend": "kms-9"}, "no backend is named kms-9; there are kms-1, kms-2"),
        ("log", {"level": "debug", "address": "nine"}, "'nine' is no address"),
        ("log", {"level": "debug", "failed": True}, "no filter failed; there are identity, backend, address"),
        ("log", {"level": "debug", "seconds": 0}, "0 is no time for debug lines; give 1 to 86400 seconds"),
        ("log", {"level": "debug", "seconds": True}, "True is no time for debug lines"),
        ("log", {"level": "debug", "seconds": 1e9}, "is no time for debug lines"),
        ("log", {"level": "loud"}, "no log level is named 'loud'; there are debug, info, warning, error"),
    ],
)
async def test_a_wrong_argument_is_refused(
    config: Config, path: Path, command: str, arguments: dict[str, Any], refusal: str
) -> None:
    async with running(config):
        with pytest.raises(ControlError, match=refusal):
            await request(path, command, arguments)


async def test_the_log_level_changes_at_once(config: Config, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    log.configure("info", "json")
    logger = log.get("test")
    try:
        async with running(config):
            logger.info("first")
            assert await request(path, "log", {"level": "error"}) == {"level": "error", "debug": None}
            logger.info("second")
            await request(path, "log", {"level": "info"})
            logger.info("third")
    finally:
        structlog.configure(**before)
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert [event for event in events if event in {"first", "second", "third"}] == ["first", "third"]


async def test_debug_lines_are_for_a_while_and_any_other_level_ends_them(config: Config, path: Path) -> None:
    try:
        async with running(config):
            begun = await request(path, "log", {"level": "debug"})
            assert (begun["level"], begun["debug"].keys()) == ("info", {"seconds"})
            assert 590 < begun["debug"]["seconds"] <= 600
            arguments = {"identity": "everyone", "backend": "kms-1", "address": "10.0.0.0/8", "seconds": 90}
            begun = await request(path, "log", {"level": "debug", **arguments})
            shown = await request(path, "log-state")
            assert 80 < shown["debug"].pop("seconds") <= begun["debug"].pop("seconds") <= 90
            del arguments["seconds"]
            assert shown == begun == {"level": "info", "debug": arguments}
            await request(path, "log", {"level": "info"})
            assert await request(path, "log-state") == {"level": "info", "debug": None}
    finally:
        log.end_debug()


async def test_the_configuration_is_shown_as_loaded(config: Config, path: Path) -> None:
    async with running(config):
        shown = await request(path, "config")
    assert shown["deadlines"]["drain"] == 10.0
    assert shown["backends"][0]["address"] == str(config.backends[0].address)
    assert shown["identities"][0]["match"]["subject_cn"] == ["*"]
    assert shown["identities"][0]["private_key"] == str(config.identities[0].private_key)
    assert "PRIVATE" not in json.dumps(shown)
    assert set(shown) == set(Config.model_fields)
