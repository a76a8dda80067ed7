"""The processes of a gateway: what each may do, what each holds in memory, and whose they are."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import create_key

from gateway.confinement import landlock_version
from gateway.kmip.spec import ResultStatus
from gateway.tls import client_context
from tests.kit import processes
from tests.kit.authorities import write_secret
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    free_port,
    running_gateway,
    running_key_managers,
    wait_until,
    write_config,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can look into processes, and change its user")
needs_landlock = pytest.mark.skipif(landlock_version() < 4, reason="this kernel has no Landlock, or an old one")


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    """Files in a directory that every user can enter; with RSA keys, which are long enough to be searched for."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Certificates(Path(directory), "rsa")


@pytest.fixture(scope="module")
def key_managers(certificates: Certificates) -> Iterator[list[int]]:
    with running_key_managers(certificates, ("kms-1",)) as ports:
        yield ports


@pytest.fixture(params=[0, 2])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(processes, "TLS_WORKERS", request.param)
    return int(request.param)


def processes_of(gateway: Gateway) -> list[int]:
    """Return the main process, then its children: the core and the TLS workers, if there are workers."""
    main = gateway.process.pid
    return [main, *sorted(map(int, Path(f"/proc/{main}/task/{main}/children").read_text().split()))]


def status_of(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def create(gateway: Gateway) -> ResultStatus:
    context = client_context(*gateway.certificates.client("alice"), gateway.certificates.path("gateway_ca.pem"))
    with trio.fail_after(20):
        async with connect(gateway.address, context) as client:
            return ResultStatus((await client.ask(create_key())).items[0].status)


def all_started(gateway: Gateway, workers: int) -> list[int]:
    expected = 2 + workers if workers else 1
    wait_until(lambda: len(processes_of(gateway)) == expected, "the start of all processes")
    return processes_of(gateway)


def test_no_process_leaves_a_core_or_gets_new_privileges(
    certificates: Certificates, key_managers: list[int], workers: int
) -> None:
    with running_gateway(certificates, GatewaySettings(key_managers)) as gateway:
        for process in all_started(gateway, workers):
            assert status_of(process)["NoNewPrivs"] == "1"
            limits = Path(f"/proc/{process}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits)
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            assert b"PRIVATE KEY" not in command
        assert trio.run(create, gateway) == ResultStatus.SUCCESS


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """A directory of the user nobody, for the control socket and the key of the marks."""
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, 65534, 65534)
        yield Path(directory)


@needs_root
def test_started_by_root_it_serves_and_reloads_as_its_user(
    certificates: Certificates,
    key_managers: list[int],
    workers: int,
    run_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a port below 1024, which only root can have."""
    ports = [next(port for port in range(701, 1000) if not processes.is_listening(port))]
    monkeypatch.setattr(processes, "free_port", lambda: ports.pop() if ports else free_port())
    control = run_directory / "control.sock"
    token = run_directory / "token"
    write_secret(token, "0" * 64)
    os.chown(token, 65534, 65534)
    extra = f'socket = "{control}"\ntoken_file = "{token}"\n'
    extra += f'[replication]\nmark_key_file = "{run_directory}/mark.key"\n'
    settings = GatewaySettings(key_managers, extra=extra, gateway='user = "nobody"')
    with as_nobody(certificates), running_gateway(certificates, settings) as gateway:
        assert gateway.port < 1024
        for process in all_started(gateway, workers):
            status = status_of(process)
            assert status["Uid"].split() == ["65534"] * 4
            assert status["Gid"].split() == ["65534"] * 4
            assert status["Groups"] == ""
            assert set(status["CapPrm"] + status["CapEff"]) == {"0"}
            # closed to other processes of the same user: the files in /proc are root's
            assert Path(f"/proc/{process}/mem").stat().st_uid == 0
        assert (run_directory / "mark.key").stat().st_uid == 65534
        assert trio.run(create, gateway) == ResultStatus.SUCCESS
        command = [sys.executable, "-m", "gateway", "reload", "--socket", str(control)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, gateway.log.read_text()
        assert trio.run(create, gateway) == ResultStatus.SUCCESS


class as_nobody:  # noqa: N801 - a block
    """Give the keys to nobody for the length of a block."""

    def __init__(self, certificates: Certificates) -> None:
        certificates.client("alice")
        certificates.credential("gateway")
        self._keys = list(certificates.directory.glob("*.key"))

    def __enter__(self) -> None:
        for key in self._keys:
            os.chown(key, 65534, 65534)

    def __exit__(self, *_error: object) -> None:
        for key in self._keys:
            os.chown(key, 0, 0)


@needs_root
def test_a_key_that_the_user_cannot_read_is_a_mistake_at_the_start(
    certificates: Certificates, key_managers: list[int], workers: int
) -> None:
    assert workers in {0, 2}
    settings = GatewaySettings(key_managers, gateway='user = "nobody"')
    config = write_config(certificates, settings, free_port(), free_port())
    for command in ("check", "run"):
        done = subprocess.run(
            [sys.executable, "-m", "gateway", command, str(config)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 2
        assert (
            "server.key can't be read by user \"nobody\" (Permission denied); let the gateway's user read it"
            in done.stderr
        )
        assert "Traceback" not in done.stderr


_ATTACK = """
import os, socket, sys
from pathlib import Path
from gateway import core, tls_worker

FILES = sorted(Path(sys.argv[2]).parent.glob("*.key"))  # a worker can't list them

def attack(name, config, backend):
    def tried(what, work):
        try:
            work()
        except PermissionError:
            print(f"{name}: {what} refused", file=sys.stderr, flush=True)
        except OSError as error:
            print(f"{name}: {what} {error}", file=sys.stderr, flush=True)
        else:
            print(f"{name}: {what} done", file=sys.stderr, flush=True)
    for file in FILES + [Path(config), Path("/etc/passwd")]:
        tried(f"open {file.name}", file.read_bytes)
    tried("write", (Path(config).parent / f"written-by-{name}").touch)
    tried("connect", lambda: socket.create_connection(("127.0.0.1", backend), 5).close())
    tried("listen", lambda: socket.create_server(("127.0.0.1", 0)).close())
    tried("run", lambda: os.posix_spawn("/bin/true", ["true"], {}))

def attacking(kind, name):
    run = kind.run
    async def attacked(self, *arguments, **named):
        attack(name, sys.argv[2], BACKEND)
        await run(self, *arguments, **named)
    kind.run = attacked

attacking(tls_worker.TlsWorker, "worker")
attacking(core.Core, "core")
"""


@needs_landlock
async def test_a_worker_opens_no_file_and_a_core_changes_none(
    certificates: Certificates, key_managers: list[int], workers: int
) -> None:
    """Both processes try it themselves, after their start."""
    patch = _ATTACK.replace("BACKEND", str(key_managers[0]))
    with running_gateway(certificates, GatewaySettings(key_managers), patch=patch) as gateway:
        all_started(gateway, workers)
        assert await create(gateway) == ResultStatus.SUCCESS
        said = gateway.log.read_text()
    tried = re.findall(r"^(worker|core): (.*) (\w+)$", said, re.MULTILINE)
    of_worker = {what: outcome for who, what, outcome in tried if who == "worker"}
    of_core = {what: outcome for who, what, outcome in tried if who == "core"}
    assert not list(certificates.directory.glob("written-by-*"))
    assert of_core["write"] == of_core["run"] == "refused"
    assert of_core["listen"] == ("refused" if workers else "done")  # a reload may add listeners
    assert of_core["connect"] == of_core["open credential-gateway.key"] == "done"
    if workers:
        assert len(of_worker) > 8, said
        assert set(of_worker.values()) == {"refused"}


def traces_of(key: Path) -> list[bytes]:
    """Return pieces of a private key in each form in which a process may hold it: PEM, DER, and OpenSSL's numbers."""
    private = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    numbers = private.private_numbers()
    lines = key.read_bytes().splitlines()[3:-3]
    primes = [number.to_bytes(128, order) for number in (numbers.p, numbers.q) for order in ("big", "little")]
    return [*lines, *(prime[16:48] for prime in primes)]


def memory_of(process: int) -> bytes:
    """Return what a process has in writable memory."""
    found = []
    with Path(f"/proc/{process}/maps").open() as maps, Path(f"/proc/{process}/mem").open("rb", 0) as memory:
        for line in maps:
            start, end, rights = re.match(r"(\w+)-(\w+) (\S+)", line).groups()  # type: ignore[union-attr]
            if rights.startswith("rw"):
                memory.seek(int(start, 16))
                try:
                    found.append(memory.read(int(end, 16) - int(start, 16)))
                except OSError:
                    continue
    return b"".join(found)


@needs_root
@pytest.mark.parametrize("workers", [2], indirect=True)
async def test_workers_and_supervisor_hold_no_key_of_an_identity(
    certificates: Certificates, key_managers: list[int], workers: int
) -> None:
    """The core does, which shows that the search would find it; the workers hold the key of the listener."""
    with running_gateway(certificates, GatewaySettings(key_managers)) as gateway:
        supervisor, core, *others = all_started(gateway, workers)
        assert await create(gateway) == ResultStatus.SUCCESS
        gateway.process.send_signal(signal.SIGHUP)
        server, credential = (traces_of(certificates.path(f"{name}.key")) for name in ("server", "credential-gateway"))
        await trio.to_thread.run_sync(
            wait_until, lambda: gateway.total("kmip_gateway_config_reloads_total", result="success") == 1, "the reload"
        )
        for process in (supervisor, core, *others):
            memory = memory_of(process)
            assert any(trace in memory for trace in server)
            assert any(trace in memory for trace in credential) is (process == core)


_STUCK_WORKER = """
import mmap, os, time
from gateway.front.channel import Kind
from gateway.tls_worker import TlsWorker
handle = TlsWorker._handle
have_stood = mmap.mmap(-1, 256)  # shared by all workers: one byte for each that has stood still
def stuck(self, message):
    if message.kind == Kind.LOG and have_stood[:].count(1) < 2:
        have_stood[os.getpid() % 256] = 1
        time.sleep(60)
    handle(self, message)
TlsWorker._handle = stuck
"""


@pytest.mark.parametrize("workers", [2], indirect=True)
async def test_a_worker_that_stands_still_is_replaced(
    certificates: Certificates, key_managers: list[int], workers: int, tmp_path: Path
) -> None:
    control = tmp_path / "control.sock"
    settings = GatewaySettings(key_managers, extra=f'socket = "{control}"\n', gateway="watchdog = 2")
    with running_gateway(certificates, settings, patch=_STUCK_WORKER) as gateway:
        before = all_started(gateway, workers)
        command = [sys.executable, "-m", "gateway", "log", "debug", "--socket", str(control)]
        await trio.run_process(command, capture_stdout=True)
        await trio.to_thread.run_sync(
            wait_until, lambda: gateway.log.read_text().count("TLS worker ended") >= workers, "the end of the workers"
        )
        after = all_started(gateway, workers)
        assert after[:2] == before[:2]
        assert not set(after[2:]) & set(before[2:])
        assert await create(gateway) == ResultStatus.SUCCESS
        said = gateway.log.read_text()
    assert "event loop stands still: ending this process" in said
    assert "in stuck" in said
