"""The audit trail of a running gateway: a line for each request under faults, a full disk, and no secrets.

``make audit`` sends 100,000 requests. Environment variables: AUDIT_REQUESTS, SEED.
"""

import itertools
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key
from OpenSSL import SSL

from gateway.audit.verify import Verifier
from gateway.errors import GatewayError
from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Response
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.tls import client_context
from tests.kit import processes
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    KeyManagerProcess,
    running_gateway,
    running_key_manager_processes,
    running_key_managers,
    wait_until,
)
from tests.kit.revocation import crl_of

REQUESTS: Final = int(os.environ.get("AUDIT_REQUESTS", "3000"))
CLIENTS: Final = 12
TIMES: Final = """
[failover]
try_timeout = 0.5
[deadlines]
request = 3.0
[pool]
queue_timeout = 2.0
[health]
interval = 0.3
"""
NAMES: Final = ("atlanta-001", "atlanta-002", "london-001")


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def audit(**settings: Any) -> str:
    return "[audit]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


def context(gateway: Gateway) -> SSL.Context:
    return client_context(*gateway.certificates.client("alice"), gateway.certificates.path("gateway_ca.pem"))


def files_of(path: Path) -> list[Path]:
    """Return the files of a trail, the oldest first."""
    moved = sorted(path.parent.glob(f"{path.name}.*"), key=lambda file: -int(file.suffix[1:]))
    return [*moved, path]


def lines_of(path: Path) -> list[bytes]:
    return [line for file in files_of(path) for line in file.read_bytes().splitlines(keepends=True)]


def fault_in(lines: Sequence[bytes]) -> str:
    verifier = Verifier(None, from_middle=True)
    verifier.read("trail", lines)
    return verifier.finish(ended=True)


async def until(condition: Callable[[], bool]) -> None:
    await trio.to_thread.run_sync(wait_until, condition, "the condition")


def stop(gateway: Gateway) -> None:
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(30) == 0, gateway.log.read_text()


# Every request has one line -------------------------------------------------------------------------------------------


class Load:
    """Clients that send numbered requests, and remember which were answered."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.numbers = iter(range(REQUESTS))
        self.answered: set[str] = set()
        self.left: set[str] = set()  # requests whose client did not wait, or got no answer
        self.uids: list[str] = ["none"]

    def request(self, number: int) -> bytes:
        """Return a Create, a Get, or a batch; its Client Correlation Value is the number."""
        header = [ttlv.text(Tag.CLIENT_CORRELATION_VALUE, f"request-{number}")]
        uid = ttlv.text(Tag.UNIQUE_IDENTIFIER, self.rng.choice(self.uids))
        kind = self.rng.random()
        if kind < 0.1:
            asks = [Ask(Operation.CREATE, _payload_of(create_key()), None)]
        elif kind < 0.2:
            asks = [Ask(Operation.GET, uid, bytes([index])) for index in range(self.rng.randint(2, 5))]
        else:
            asks = [Ask(Operation.GET, uid)]
        return encode_request((1, 4), asks, header=header)

    async def run(self, gateway: Gateway, tls: SSL.Context) -> None:
        """Be one client after the other until all requests are sent."""
        while True:
            number = next(self.numbers, None)
            if number is None:
                return
            try:
                async with connect(gateway.address, tls, server_name="localhost") as client:
                    for each in itertools.chain([number], itertools.islice(self.numbers, self.rng.randint(0, 50))):
                        if not await self._ask(client, each):
                            break
            except (GatewayError, OSError):
                self.left.add(f"request-{number}")

    async def _ask(self, client: Client, number: int) -> bool:
        """Ask; return False if the client leaves, perhaps without its answer."""
        name, frame = f"request-{number}", self.request(number)
        self.left.add(name)
        if self.rng.random() < 0.02:
            await client.stream.send_all(frame)
            return False
        response = None
        with trio.move_on_after(10):
            response = await client.ask(frame)
        if response is None:
            return False
        self.left.discard(name)
        self.answered.add(name)
        item = response.items[0]
        if item.operation == Operation.CREATE and item.status == ResultStatus.SUCCESS:
            self.uids.append(item.unique_identifiers[0].decode())
        return True


def _payload_of(frame: bytes) -> bytes:
    item = decode_request(frame).items[0]
    start, end = item.fields[Tag.REQUEST_PAYLOAD]
    return frame[start:end]


async def disturb(key_managers: Sequence[KeyManagerProcess], rng: random.Random) -> None:
    """Freeze or kill one key manager after the other, for ever."""
    while True:
        one = rng.choice(key_managers)
        if rng.random() < 0.5:
            one.freeze()
            try:
                await trio.sleep(rng.uniform(0.2, 1.0))
            finally:
                one.thaw()
        else:
            await trio.to_thread.run_sync(one.kill)
            try:
                await trio.sleep(0.2)
            finally:
                one.launch()
            await trio.to_thread.run_sync(one.wait_ready)
        await trio.sleep(rng.uniform(0.2, 0.6))


@pytest.mark.timeout(120 + REQUESTS / 50)
@pytest.mark.parametrize("workers", [0, 2])
async def test_every_request_has_one_line_and_any_change_is_found(
    certificates: Certificates, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"SEED={seed}")
    rng = random.Random(seed)
    path = certificates.path("audit.jsonl")
    load = Load(rng)
    settings = audit(to="file", file=path.name, max_size=500_000, keep=1000) + TIMES
    with running_key_manager_processes(certificates, NAMES) as key_managers:
        ports = [one.port for one in key_managers]
        with running_gateway(certificates, GatewaySettings(ports, extra=settings)) as gateway:
            tls = context(gateway)
            async with trio.open_nursery() as disturbing:
                disturbing.start_soon(disturb, key_managers, rng)
                async with trio.open_nursery() as clients:
                    for _ in range(CLIENTS):
                        clients.start_soon(load.run, gateway, tls)
                disturbing.cancel_scope.cancel()
            lost = gateway.total("kmip_gateway_audit_records_lost_total")
            await trio.to_thread.run_sync(stop, gateway)
    files = files_of(path)
    lines = lines_of(path)
    facts = [json.loads(line) for line in lines]
    counts = Counter(line["correlation"] for line in facts if line["event"] == "request")
    print(f"{len(lines)} lines, {len(files)} files, {len(load.answered)} answered, {len(load.left)} left, SEED={seed}")
    assert lost == 0
    assert {name for name in load.answered if counts[name] != 1} == set()
    assert {name for name in load.left if counts[name] > 1} == set()
    assert counts.keys() <= load.answered | load.left
    assert len(load.answered) > REQUESTS * 0.8
    results = Counter(line["result"] for line in facts if line["event"] == "request")
    assert results["success"] > REQUESTS / 2
    verified = [sys.executable, "-m", "gateway", "audit", "verify", "--ended", *map(str, files)]
    ended = await trio.run_process(verified, capture_stdout=True, capture_stderr=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert_changes_are_found(lines[-5000:], rng)


def assert_changes_are_found(lines: Sequence[bytes], rng: random.Random) -> None:
    """Drop, swap and edit lines, each at ten places."""
    for _ in range(10):
        position = rng.randrange(1, len(lines) - 1)  # the hash of the first line of a part can't be checked
        assert fault_in([*lines[:position], *lines[position + 1 :]])
        swapped = list(lines)
        swapped[position], swapped[position + 1] = swapped[position + 1], swapped[position]
        assert fault_in(swapped)
        edited = bytearray(lines[position])
        edited[rng.randrange(len(edited) - 1)] ^= 1
        assert fault_in([*lines[:position], bytes(edited), *lines[position + 1 :]])


# If it can't be written -----------------------------------------------------------------------------------------------


async def ask(gateway: Gateway, *frames: bytes) -> list[Response]:
    async with connect(gateway.address, context(gateway), server_name="localhost") as client:
        return [await client.ask(frame) for frame in frames]


@pytest.mark.parametrize("workers", [0, 2])
async def test_with_a_full_disk_requests_go_on_if_the_trail_may_fail(
    certificates: Certificates, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    settings = audit(to="file", file="/dev/full", max_queued=65536)
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, GatewaySettings(ports, extra=settings)) as gateway,
    ):
        answers = await ask(gateway, create_key(), *[get_key("none")] * 300)
        assert answers[0].items[0].status == ResultStatus.SUCCESS
        assert gateway.total("kmip_gateway_audit_failing") == 1
        assert gateway.total("kmip_gateway_audit_records_lost_total") > 50
        assert gateway.total("kmip_gateway_audit_queued_bytes") < 70_000
        await trio.to_thread.run_sync(stop, gateway)
    assert "audit trail not written to its end" in gateway.log.read_text()


@pytest.mark.parametrize("workers", [0, 2])
async def test_nothing_is_forwarded_without_a_trail_that_must_be_written(
    certificates: Certificates, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    path = certificates.path("log.sock")
    settings = audit(to="syslog", syslog=str(path), on_failure="refuse")
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, GatewaySettings(ports, extra=settings)) as gateway,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon,
    ):
        refused = await ask(gateway, create_key(), get_key("none"))
        assert [answer.items[0].message for answer in refused] == [
            "the gateway can't write its audit trail, and serves no request without it; try again later"
        ] * 2
        assert gateway.total("kmip_gateway_backend_requests_total") == 0

        daemon.bind(str(path))
        daemon.settimeout(10)
        await until(lambda: gateway.total("kmip_gateway_audit_failing") == 0)
        (served,) = await ask(gateway, create_key())
        assert served.items[0].status == ResultStatus.SUCCESS
        lines: list[bytes] = []
        while not lines or b'"result":"success"' not in lines[-1]:
            lines.append(daemon.recv(65536).partition(b": ")[2] + b"\n")
    verifier = Verifier(None)
    verifier.read("syslog", lines)
    assert verifier.finish() == ""
    assert [json.loads(line)["event"] for line in lines[-2:]] == ["intent", "request"]


def executed(certificates: Certificates) -> int:
    """Return the number of Creates that the key managers have executed."""
    return certificates.path("journal.jsonl").read_text().count('"Create"')


@pytest.mark.parametrize("workers", [0, 2])
async def test_no_change_is_forwarded_whose_line_went_with_a_removed_file(
    certificates: Certificates, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    path = certificates.path("audit.jsonl")
    settings = audit(to="file", file=path.name, on_failure="refuse")
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, GatewaySettings(ports, extra=settings)) as gateway,
    ):
        await ask(gateway, create_key())
        before = executed(certificates)
        path.unlink()
        (refused,) = await ask(gateway, create_key())
        assert "can't write its audit trail" in str(refused.items[0].message)
        assert executed(certificates) == before > 0
        await until(lambda: gateway.total("kmip_gateway_audit_failing") == 0)
        (served,) = await ask(gateway, create_key())
        assert served.items[0].status == ResultStatus.SUCCESS
        await trio.to_thread.run_sync(stop, gateway)
    found = [json.loads(line) for line in lines_of(path)]
    done = [line for line in found if line["event"] == "request" and line["result"] == "success"]
    assert done[-1]["intent"] in {line["seq"] for line in found if line["event"] == "intent"}
    assert "the file was removed with its lines" in gateway.log.read_text()


@pytest.mark.parametrize("workers", [0, 2])
async def test_with_a_disk_that_fills_each_change_has_its_line_or_is_refused(
    certificates: Certificates, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    path = certificates.path("audit.jsonl")
    settings = audit(to="file", file=path.name, on_failure="refuse")
    room = 30_000  # bytes of a file of this process: more is an error, in the middle of a line, as on a full disk
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY))\n"
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, GatewaySettings(ports, extra=settings), patch=limit) as gateway,
    ):
        answers = await ask(gateway, *[create_key()] * 60)
        refused = [answer for answer in answers if answer.items[0].status != ResultStatus.SUCCESS]
        assert 0 < len(refused) < 60
        assert {str(answer.items[0].message).partition(",")[0] for answer in refused} == {
            "the gateway can't write its audit trail"
        }
        assert executed(certificates) == 60 - len(refused)
        assert path.stat().st_size == room
        core = json.loads(path.read_text().splitlines()[0])["process"]
        resource.prlimit(core, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await until(lambda: gateway.total("kmip_gateway_audit_failing") == 0)
        (served,) = await ask(gateway, create_key())
        assert served.items[0].status == ResultStatus.SUCCESS
        await trio.to_thread.run_sync(stop, gateway)
    verifier = Verifier(None)
    verifier.read("trail", lines_of(path))
    assert verifier.finish(ended=True) == ""
    found = [json.loads(line) for line in lines_of(path)]
    done = [line for line in found if line["event"] == "request" and line["result"] == "success"]
    assert len(done) == 61 - len(refused)
    assert {line["intent"] for line in done} <= {line["seq"] for line in found if line["event"] == "intent"}


async def test_logrotate_moves_the_file_and_has_it_reopened(certificates: Certificates) -> None:
    path = certificates.path("audit.jsonl")
    settings = 'socket = "control.sock"\n' + audit(to="file", file=path.name, max_size=0)
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, GatewaySettings(ports, extra=settings)) as gateway,
    ):
        for command in (True, False):
            await ask(gateway, create_key())
            path.rename(path.with_name("moved-1" if command else "moved-2"))
            if command:
                arguments = ["audit", "reopen", "--socket", str(certificates.path("control.sock"))]
                await trio.run_process([sys.executable, "-m", "gateway", *arguments], capture_stdout=True)
            else:
                gateway.process.send_signal(signal.SIGUSR1)
            await until(path.exists)
        await ask(gateway, create_key())
        await trio.to_thread.run_sync(stop, gateway)
    verifier = Verifier(None)
    for name in ("moved-1", "moved-2", "audit.jsonl"):
        with certificates.path(name).open("rb") as file:
            verifier.read(name, file)
    assert verifier.finish(ended=True) == ""
    commands = [json.loads(line) for line in lines_of(certificates.path("moved-2")) if b'"command"' in line]
    assert [(line["command"], line["result"], line["user"]) for line in commands] == [
        ("audit-reopen", "done", os.geteuid())
    ]


async def test_a_client_without_an_identity_has_a_line_with_its_certificate(certificates: Certificates) -> None:
    """One that asks nothing has no request line: its connection line says who it was."""
    trail = certificates.path("audit.jsonl")
    identities = [Identity("alice", '{ subject_cn = "alice" }', shared=False)]
    extra = audit(to="file", file=str(trail))
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, GatewaySettings(ports, identities=identities, extra=extra)) as gateway,
    ):
        stranger = client_context(*certificates.client("eve"), certificates.path("gateway_ca.pem"))
        async with connect(gateway.address, stranger, server_name="localhost"):
            pass
        await until(lambda: b'"not_authenticated"' in trail.read_bytes())
    (line,) = [line for line in map(json.loads, lines_of(trail)) if line["event"] == "connection"]
    certificate = x509.load_pem_x509_certificate(certificates.client("eve")[0].read_bytes())
    assert line["certificate"] == certificate.fingerprint(hashes.SHA256()).hex()


async def test_a_change_of_a_crl_and_a_mistake_in_it_have_a_line(certificates: Certificates) -> None:
    path, crl = certificates.path("audit.jsonl"), certificates.path("clients.crl")
    crl.write_bytes(crl_of(certificates.clients_ca))
    with (
        running_key_managers(certificates) as ports,
        running_gateway(
            certificates, GatewaySettings(ports, listener='client_crl = "clients.crl"', extra=audit(to="file"))
        ) as gateway,
    ):
        for number, content in enumerate((crl_of(certificates.clients_ca), b"no list"), 1):
            new = certificates.path("new.crl")
            new.write_bytes(content)
            new.rename(crl)
            await until(lambda number=number: path.read_bytes().count(b'"event":"reload"') == number)  # type: ignore[misc]
        await trio.to_thread.run_sync(stop, gateway)
    used, refused = (json.loads(line) for line in lines_of(path) if b'"reload"' in line)
    assert (used["result"], used["changed"]) == ("success", [f"file {crl}"])
    assert refused["result"] == "failure"
    assert "clients.crl" in refused["mistakes"][0]


def test_a_gateway_without_a_writable_place_does_not_start(certificates: Certificates) -> None:
    settings = GatewaySettings([5696], extra=audit(to="file", file="none/audit.jsonl"))
    config = processes.write_config(certificates, settings, 20_000, 20_001)

    ended = subprocess.run([sys.executable, "-m", "gateway", "run", str(config)], capture_output=True, check=False)

    assert ended.returncode == 2
    assert b"audit.file: there is no directory" in ended.stderr
