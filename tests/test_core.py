"""Core: one process of the gateway is built from a configuration, run, and drained."""

import os
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import structlog
import trio
from kmip_lab.keymanager import KeyManager, Store
from kmip_lab.keymanager.journal import Journal, read_journal
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key
from OpenSSL import SSL
from trio.testing import wait_all_tasks_blocked

from gateway import log, tls
from gateway.config import Address, Config, load
from gateway.config.key_files import mark_keys
from gateway.core import Core, ListenAddresses
from gateway.errors import ConfigError
from gateway.kmip import compose
from gateway.kmip.spec import ResultReason, ResultStatus
from gateway.tls import client_context
from tests.kit.processes import (
    Certificates,
    GatewaySettings,
    Identity,
    free_port,
    lapsed_identity,
    write_config,
    write_weak_key,
)
from tests.kit.streams import descriptors


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("core"))


@pytest.fixture
async def key_manager(certificates: Certificates, nursery: trio.Nursery) -> AsyncIterator[KeyManager]:
    context = tls.server_context(*certificates.pair("kms"), certificates.path("kms_clients_ca.pem"))
    store = Store()
    key_manager = KeyManager("kms-1", store, context=context)
    await nursery.start(key_manager.serve, ("127.0.0.1", 0))
    yield key_manager
    store.close()


def configure(certificates: Certificates, backend: int, *, extra: str = "", port: int = 0, admin: int = 0) -> Config:
    """Return a configuration with one backend, by default on free ports."""
    path = write_config(
        certificates, GatewaySettings([backend], extra=extra), port or free_port(), admin or free_port()
    )
    return load(path)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[tuple[Core, ListenAddresses]]:
    """Run a core during a block, and drain it at the end."""
    core = Core(config)
    async with trio.open_nursery() as nursery:
        bound: ListenAddresses = await nursery.start(core.run)
        yield core, bound
        core.drain()


@asynccontextmanager
async def client_of(certificates: Certificates, bound: ListenAddresses) -> AsyncIterator[Client]:
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    async with connect(bound.listeners[0], context) as client:
        yield client


async def http(address: Address, path: str) -> bytes:
    stream = await trio.open_tcp_stream(address.host, address.port)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join([chunk async for chunk in stream])


async def until_ready(bound: ListenAddresses) -> None:
    for _ in range(100):
        if b" 200 " in await http(bound.admin, "/readyz"):
            return
        await trio.sleep(0.02)
    raise AssertionError("not ready")


async def test_a_key_is_created_and_retrieved(certificates: Certificates, key_manager: KeyManager) -> None:
    async with running(configure(certificates, key_manager.port)) as (_core, bound):
        await until_ready(bound)
        async with client_of(certificates, bound) as client:
            created = await client.ask(create_key())
            uid = created.items[0].unique_identifiers[0].decode()
            got = await client.ask(get_key(uid))
        assert got.items[0].status == ResultStatus.SUCCESS
        metrics = (await http(bound.admin, "/metrics")).decode()
    assert 'kmip_gateway_requests_total{operation="Get",protocol_version="1.2",result="success"} 1.0' in metrics
    for role, name in [
        ("listener", "kmip"),
        ("client_ca", "kmip"),
        ("backend_client", "everyone"),
        ("backend_ca", "kms-1"),
    ]:
        assert f'kmip_gateway_certificate_not_after_timestamp_seconds{{name="{name}",role="{role}"}}' in metrics


async def test_an_expired_identity_certificate_does_not_stop_other_identities(
    certificates: Certificates, key_manager: KeyManager, capsys: pytest.CaptureFixture[str]
) -> None:
    before = structlog.get_config()
    log.configure("error", "text")
    settings = GatewaySettings([key_manager.port], [lapsed_identity(certificates), Identity("everyone")])
    path = write_config(certificates, settings, free_port(), free_port())
    async with running(load(path)) as (_core, bound):
        await until_ready(bound)
        async with client_of(certificates, bound) as client:
            created = await client.ask(create_key())
        ready = await http(bound.admin, "/readyz")
    structlog.configure(**before)

    assert created.items[0].status == ResultStatus.SUCCESS
    assert b" 200 " in ready
    said = capsys.readouterr().err
    assert "own certificate is not valid: key managers may refuse this identity" in said
    assert "identity=lapsed" in said
    assert "key manager refuses the credential of the health check: another identity's is used instead" in said
    assert "instead=everyone" in said


def tcp_times() -> Counter[tuple[int, int]]:
    """Count keep-alive (s) and user timeout (ms) of all TCP sockets of this process."""
    times: Counter[tuple[int, int]] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as sock:
            options = (socket.TCP_KEEPIDLE, socket.TCP_USER_TIMEOUT)
            idle, user = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
            times[idle, user] += 1
    return times


async def test_connections_have_the_tcp_timeouts_of_the_configuration(
    certificates: Certificates, key_manager: KeyManager
) -> None:
    extra = "[pool]\ntcp_keepalive = 7\ntcp_user_timeout = 21.5\n"
    config = configure(certificates, key_manager.port, extra=extra)
    listener = config.listeners[0].model_copy(update={"tcp_keepalive": 33, "tcp_user_timeout": 99.0})
    async with running(config.model_copy(update={"listeners": (listener,)})) as (_core, bound):
        await until_ready(bound)
        async with client_of(certificates, bound) as client:
            await client.ask(create_key())
            times = tcp_times()
    assert times[7, 21_500] >= 1
    assert times[33, 99_000] == 2  # the client's connection, and the listening socket that it has them from


async def test_without_a_key_manager_livez_succeeds_and_readyz_fails(certificates: Certificates) -> None:
    async with running(configure(certificates, free_port())) as (_core, bound):
        for _ in range(100):
            answer = await http(bound.admin, "/readyz")
            if b" 503 " in answer:
                break
            await trio.sleep(0.02)
        assert answer.endswith(b"no key manager can be reached\n")
        assert b" 200 " in await http(bound.admin, "/livez")
        async with client_of(certificates, bound) as client:
            answered = await client.ask(compose.query((2, 1)))
        assert answered.items[0].reason == ResultReason.INTERNAL_SERVER_ERROR


async def test_a_drain_answers_requests_in_flight_and_accepts_no_clients(
    certificates: Certificates, nursery: trio.Nursery
) -> None:
    slow = KeyManager("slow", Store(), context=_kms_context(certificates), operation_cost=0.3)
    await nursery.start(slow.serve, ("127.0.0.1", 0))
    async with running(configure(certificates, slow.port)) as (core, bound):
        await until_ready(bound)
        async with client_of(certificates, bound) as idle, client_of(certificates, bound) as busy:
            await busy.stream.send_all(create_key())
            await wait_all_tasks_blocked(0.02)
            core.drain()
            assert await idle.stream.receive_some() == b""
            idle.stream.close()
            assert (await http(bound.admin, "/readyz")).endswith(b"draining\n")
            assert b"kmip_gateway_draining 1.0" in await http(bound.admin, "/metrics")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((bound.listeners[0].host, bound.listeners[0].port))
            answer = await busy.read_response()
            assert answer.items[0].status == ResultStatus.SUCCESS
            assert await busy.stream.receive_some() == b""
    slow.engine.store.close()


async def test_a_drain_ends_at_its_deadline(certificates: Certificates, nursery: trio.Nursery) -> None:
    stuck = KeyManager("stuck", Store(), context=_kms_context(certificates), operation_cost=3600)
    await nursery.start(stuck.serve, ("127.0.0.1", 0))
    config = configure(certificates, stuck.port, extra="[deadlines]\ndrain = 0.2\n")
    with trio.fail_after(10):
        async with running(config) as (core, bound):
            await until_ready(bound)
            async with client_of(certificates, bound) as client:
                await client.stream.send_all(create_key())
                await wait_all_tasks_blocked(0.02)
                core.drain()
                answer = await client.read_response()  # a closed connection would have some clients repeat it
                assert "unknown" in str(answer.items[0].message)
    stuck.engine.store.close()


async def test_a_core_drained_before_it_runs_ends_at_once(certificates: Certificates) -> None:
    for _ in range(5):  # which of its tasks begins first is left to chance
        core = Core(configure(certificates, free_port()))
        core.drain()
        with trio.fail_after(5):
            await core.run()


async def test_a_core_may_be_cancelled(certificates: Certificates, key_manager: KeyManager) -> None:
    config = configure(certificates, key_manager.port)
    for _ in range(2):
        before = descriptors()
        async with trio.open_nursery() as nursery:
            bound: ListenAddresses = await nursery.start(Core(config).run)
            await until_ready(bound)
            async with client_of(certificates, bound) as client:
                await client.ask(create_key())
                nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked(0.02)
    assert descriptors() == before


SECOND = """
[[listeners]]
name = "second"
bind = "127.0.0.1:{port}"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients_ca.pem"
"""


@pytest.mark.parametrize("taken", ['listeners["kmip"].bind', 'listeners["second"].bind', "admin.bind"])
async def test_an_address_in_use_is_a_mistake_of_the_setting(certificates: Certificates, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port: int = other.getsockname()[1]
        ports = {key: port if key == taken else free_port() for key in ('listeners["kmip"].bind', "admin.bind")}
        second = SECOND.format(port=port if "second" in taken else free_port())
        config = configure(
            certificates,
            free_port(),
            extra=second,
            port=ports['listeners["kmip"].bind'],
            admin=ports["admin.bind"],
        )
        before = descriptors()
        with pytest.raises(ConfigError) as refused:
            await Core(config).run()
        assert descriptors() == before
    (mistake,) = refused.value.mistakes
    assert mistake.startswith(f"{taken}: cannot listen on 127.0.0.1:{port}: Address already in use")


async def test_a_weak_key_is_a_mistake_of_the_setting(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    write_weak_key(certificates)
    config = configure(certificates, free_port())
    before = descriptors()
    with pytest.raises(ExceptionGroup) as refused:
        await Core(config).run()
    assert descriptors() == before
    (mistake,) = _mistakes([refused.value])
    assert mistake.startswith('listeners["kmip"].certificate: OpenSSL refuses it')


def _mistakes(errors: Iterable[BaseException]) -> list[str]:
    found: list[str] = []
    for error in errors:
        if isinstance(error, BaseExceptionGroup):
            found += _mistakes(error.exceptions)
        elif isinstance(error, ConfigError):
            found += error.mistakes
    return found


def _kms_context(certificates: Certificates) -> SSL.Context:
    return tls.server_context(*certificates.pair("kms"), certificates.path("kms_clients_ca.pem"))


# Marks ----------------------------------------------------------------------------------------------------------------


async def test_a_mark_key_file_is_made_once_for_its_owner_only(certificates: Certificates) -> None:
    config = configure(certificates, free_port(), extra='[replication]\nmark_key_file = "made.key"')
    async with running(config):
        made = certificates.path("made.key").read_text()
    async with running(config):
        pass

    assert len(mark_keys(certificates.path("made.key"))[0]) == 32
    assert certificates.path("made.key").stat().st_mode & 0o777 == 0o600
    assert certificates.path("made.key").read_text() == made
    assert not list(certificates.directory.glob(".made.key*"))


async def test_without_a_writable_mark_key_file_a_temporary_key_is_used(
    certificates: Certificates, capsys: pytest.CaptureFixture[str]
) -> None:
    before = structlog.get_config()
    log.configure("warning", "text")
    async with running(configure(certificates, free_port(), extra='[replication]\nmark_key_file = "/proc/mark.key"')):
        pass
    structlog.configure(**before)

    told = capsys.readouterr().err
    assert "using a temporary key" in told
    assert "/proc/mark.key" in told


async def test_without_marks_no_mark_key_file_is_made(certificates: Certificates) -> None:
    extra = '[replication]\nmarks = false\nmark_key_file = "unused.key"'
    async with running(configure(certificates, free_port(), extra=extra)):
        pass

    assert not certificates.path("unused.key").exists()


async def test_a_backend_with_probe_query_gets_no_discover_versions(
    certificates: Certificates, key_manager: KeyManager
) -> None:
    """Neither by the health check nor to validate a session: some key managers count unknown operations."""
    key_manager.engine.journal = Journal(certificates.path("asked.jsonl"))
    settings = GatewaySettings([key_manager.port], backend='probe = "query"')
    config = load(write_config(certificates, settings, free_port(), free_port()))
    async with running(config) as (_core, bound), client_of(certificates, bound) as client:
        for _ in range(2):
            await client.ask(create_key())
            await trio.sleep(1.1)  # longer than pool.validate_after

    operations = {entry.operation for entry in read_journal(certificates.path("asked.jsonl"))}
    assert operations == {"Query", "Create"}


async def test_a_private_key_open_to_other_users_is_logged_at_the_start(
    certificates: Certificates, capsys: pytest.CaptureFixture[str]
) -> None:
    before = structlog.get_config()
    log.configure("warning", "text")
    config = configure(certificates, free_port())
    certificates.path("server.key").chmod(0o644)

    async with running(config):
        pass

    structlog.configure(**before)
    certificates.path("server.key").chmod(0o600)
    told = capsys.readouterr().err
    assert "other users can read or change a file with a secret" in told
    assert "server.key" in told
    assert "mode 0644" in told


@pytest.mark.parametrize(("allowed", "told"), [(11_191, True), (11_192, False)])
async def test_a_low_limit_of_descriptors_is_logged_at_the_start(
    certificates: Certificates,
    allowed: int,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """10,000 clients, 1,000 half-open connections, 64 that get an answer, 64 sessions, and 64 for other uses."""
    before = structlog.get_config()
    log.configure("warning", "text")
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (allowed, 1 << 20))

    async with running(configure(certificates, free_port())):
        pass

    structlog.configure(**before)
    assert ("fewer descriptors" in capsys.readouterr().err) is told
