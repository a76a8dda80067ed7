"""Processes for tests: the gateway, simulated key managers, and PyKMIP's server.

Each process gets its own ports, is ready when the function that starts it returns, and ends with the block.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from kmip.core.enums import KMIPVersion
from kmip.pie.client import ProxyKmipClient
from kmip_lab.certs import Authority
from kmip_lab.faults import FaultSetting, write_faults
from kmip_lab.keymanager import Store

from gateway.config import Address

HOSTS = ["localhost", "127.0.0.1", "::1"]
START_TIMEOUT = 30.0  # s
#: ``kmip-gateway`` with /metrics rendered for every scrape: its interval of 1 s would be a wait in most tests.
_FRESH_METRICS = """
from gateway.admin import routes
from gateway.cli import main

routes.RENDERING_INTERVAL = 0.02
main(prog_name="kmip-gateway")
"""


_given: set[int] = set()


def free_port() -> int:
    """Return a port on which nothing listens, and which was not returned before.

    The port is below the range from which the kernel takes ports for outgoing connections.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        if port not in _given and not is_listening(port):
            _given.add(port)
            return port


def wait_until(condition: Callable[[], bool], what: str, timeout: float = START_TIMEOUT) -> None:
    """Wait for a condition. Raises AssertionError with ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:g} s")
        time.sleep(0.05)


def is_listening(port: int) -> bool:
    """Return True if a TCP connection to a port of 127.0.0.1 is accepted."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


class Certificates:
    """A directory of certificates from four CAs: of the gateway, clients, backends, and credentials for backends."""

    def __init__(self, directory: Path, key_type: str = "ecdsa") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.gateway_ca = Authority("Gateway CA", key_type)
        self.clients_ca = Authority("Clients CA", key_type)
        self.kms_ca = Authority("Key Manager CA", key_type)
        self.kms_clients_ca = Authority("Key Manager Clients CA", key_type)
        for name in ("gateway_ca", "clients_ca", "kms_ca", "kms_clients_ca"):
            authority: Authority = getattr(self, name)
            self.path(f"{name}.pem").write_bytes(authority.certificate_pem)
        self.gateway_ca.issue_server("gateway", HOSTS).write(*self.pair("server"))
        self.kms_ca.issue_server("kms", HOSTS).write(*self.pair("kms"))

    def path(self, name: str) -> Path:
        """Return the path of a file in this directory."""
        return self.directory / name

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the paths of a certificate and its key."""
        return self.path(f"{name}.pem"), self.path(f"{name}.key")

    def client(self, common_name: str, **names: Any) -> tuple[Path, Path]:
        """Return the certificate and the key of a client, made at the first call."""
        pair = self.pair(common_name)
        if not pair[0].exists():
            self.clients_ca.issue_client(common_name, **names).write(*pair)
        return pair

    def credential(self, common_name: str) -> tuple[Path, Path]:
        """Return a certificate and a key for the gateway to show the key managers, made at the first call."""
        pair = self.pair(f"credential-{common_name}")
        if not pair[0].exists():
            self.kms_clients_ca.issue_client(common_name).write(*pair)
        return pair


@dataclass
class Identity:
    """An identity rule of a gateway under test; ``credential`` is the common name shown to the key managers.

    ``policy`` is further lines of TOML.
    """

    name: str
    match: str = '{ subject_cn = "*" }'
    shared: bool = True
    credential: str = "gateway"
    policy: str = ""


def lapsed_identity(certificates: Certificates) -> Identity:
    """Return an identity with an expired certificate, which a key manager refuses."""
    ended = datetime.now(UTC) - timedelta(days=1)
    lapsed = certificates.kms_clients_ca.issue_client("lapsed", not_before=ended - timedelta(days=1), not_after=ended)
    lapsed.write(*certificates.pair("credential-lapsed"))
    return Identity("lapsed", '{ subject_cn = "lapsed" }', credential="lapsed")


def write_weak_key(certificates: Certificates) -> None:
    """Give the listener an RSA key of 1024 bits, which OpenSSL refuses."""
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point
    name = x509.Name([])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    certificate, private_key = certificates.pair("server")
    signed = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private_key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@dataclass
class Gateway:
    """A gateway in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    certificates: Certificates
    log: Path

    @property
    def address(self) -> Address:
        """The address of its listener."""
        return Address("127.0.0.1", self.port)

    def metrics(self) -> dict[str, float]:
        """Return every sample of /metrics, by name and labels as they are printed."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def total(self, family: str, **labels: str) -> float:
        """Return the sum of the samples of a family with these labels."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.partition("{")[0] == family and all(label in sample for label in wanted)
        )

    def is_ready(self) -> bool:
        """Return True if /readyz answers 200."""
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/readyz", timeout=5) as answer,
        ):
            return bool(answer.status == 200)
        return False

    def client(self, common_name: str = "client", version: KMIPVersion = KMIPVersion.KMIP_1_2) -> ProxyKmipClient:
        """Return a client of PyKMIP, to be opened."""
        certificate, key = self.certificates.client(common_name)
        return pykmip_client(self.port, certificate, key, self.certificates.path("gateway_ca.pem"), version)


def pykmip_client(port: int, certificate: Path, key: Path, ca: Path, version: KMIPVersion) -> ProxyKmipClient:
    """Return a client of PyKMIP for a port of 127.0.0.1, to be opened."""
    return ProxyKmipClient(
        hostname="127.0.0.1",
        port=port,
        cert=str(certificate),
        key=str(key),
        ca=str(ca),
        config_file=os.devnull,
        kmip_version=version,
    )


#: Number of TLS workers of gateway processes, so that the same tests run with and without them.
TLS_WORKERS: Final = int(os.environ.get("TLS_WORKERS", "0"))
#: The directory of an unpacked wheel whose gateway runs (`make test-compiled`), or "": that of the source runs.
COMPILED: Final = os.environ.get("COMPILED", "")


@dataclass
class GatewaySettings:
    """The parts of a configuration that tests vary.

    ``backends`` are ports of 127.0.0.1, or addresses. ``listener``, ``backend`` and ``identity`` are keys for each of
    these tables, ``backend_each`` for one backend after the other, ``gateway`` for that table; ``extra`` is TOML of its
    own, which begins in the table ``admin``.
    """

    backends: Sequence[int | str]
    identities: Sequence[Identity] = field(default_factory=lambda: [Identity("everyone")])
    tls_policy: str = "modern"
    listener: str = ""
    backend: str = ""
    backend_each: Sequence[str] = ()
    identity: str = ""
    gateway: str = ""
    extra: str = ""
    tls_workers: int = field(default_factory=lambda: TLS_WORKERS)  # tests change it


def write_config(certificates: Certificates, settings: GatewaySettings, port: int, admin_port: int) -> Path:
    """Write a configuration file beside the certificates, and return its path."""
    server, server_key = certificates.pair("server")
    parts = [
        f"""
[[listeners]]
name = "kmip"
bind = "127.0.0.1:{port}"
certificate = "{server.name}"
private_key = "{server_key.name}"
client_ca = "clients_ca.pem"
tls_policy = "{settings.tls_policy}"
{settings.listener}
[gateway]
tls_workers = {settings.tls_workers}
{settings.gateway}
[admin]
bind = "127.0.0.1:{admin_port}"
{settings.extra}
"""
    ]
    parts += [
        f"""
[[backends]]
name = "kms-{index}"
address = "{_address(backend)}"
ca = "kms_ca.pem"
server_name = "localhost"
{settings.backend}
{settings.backend_each[index - 1] if settings.backend_each else ""}
"""
        for index, backend in enumerate(settings.backends, 1)
    ]
    for identity in settings.identities:
        certificate, key = certificates.credential(identity.credential)
        parts.append(
            f"""
[[identities]]
name = "{identity.name}"
match = {identity.match}
shared = {str(identity.shared).lower()}
certificate = "{certificate.name}"
private_key = "{key.name}"
{identity.policy}
{settings.identity}
"""
        )
    path = certificates.path(f"gateway-{port}.toml")
    path.write_text("".join(parts))
    return path


def _address(backend: int | str) -> str:
    return backend if isinstance(backend, str) else f"127.0.0.1:{backend}"


@contextmanager
def running_gateway(
    certificates: Certificates,
    settings: GatewaySettings,
    stderr: int | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    is_measured: bool = False,
    patch: str = "",
) -> Iterator[Gateway]:
    """Run a gateway process. Its log goes to a file, or to ``stderr``. ``patch`` is Python that runs before it.

    ``environment`` is added to the environment variables of this process. /metrics is rendered for every scrape, unless
    the gateway ``is_measured``: a benchmark runs the program as it is. With ``COMPILED``, the compiled build runs.
    """
    port, admin_port = free_port(), free_port()
    config = write_config(certificates, settings, port, admin_port)
    log = certificates.path(f"gateway-{port}.log")
    program = ["-m", "gateway"] if is_measured else ["-c", patch + _FRESH_METRICS]
    build = {}
    if COMPILED:  # -P: a directory of the source must not come first
        program, build = ["-P", *program], {"PYTHONPATH": os.pathsep.join([COMPILED, *sys.path])}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *program, "run", str(config)],
            stderr=stderr or output,
            env={**os.environ, **build, **(environment or {})},
        )
    gateway = Gateway(process, port, admin_port, certificates, log)
    with ended(process):
        wait_until(lambda: process.poll() is not None or gateway.is_ready(), "the gateway's start")
        assert process.poll() is None, log.read_text()
        yield gateway


@contextmanager
def running_key_managers(
    certificates: Certificates, names: Sequence[str] = ("kms-1", "kms-2"), *options: str
) -> Iterator[list[int]]:
    """Run simulated key managers with one store in one process; yield their ports.

    ``options`` are further ones of ``kmip-lab keymanager``. The journal is ``journal.jsonl`` of the certificates.
    """
    ports = [free_port() for _ in names]
    certificate, key = certificates.pair("kms")
    command = [
        sys.executable,
        "-m",
        "kmip_lab",
        "keymanager",
        "--certificate",
        str(certificate),
        "--private-key",
        str(key),
    ]
    command += ["--client-ca", str(certificates.path("kms_clients_ca.pem"))]
    command += ["--journal", str(certificates.path("journal.jsonl")), *options]
    for name, port in zip(names, ports, strict=True):
        command += ["--name", name, "--bind", f"127.0.0.1:{port}"]
    log = certificates.path(f"keymanager-{ports[0]}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    with ended(process):
        ready = lambda: process.poll() is not None or all(is_listening(port) for port in ports)  # noqa: E731
        wait_until(ready, "the key managers' start")
        assert process.poll() is None, log.read_text()
        yield ports


class KeyManagerProcess:
    """A simulated key manager in a process of its own, to be killed, frozen, given faults or restarted.

    Key managers with the same certificates share a store, or replicate in the directory ``cluster``. ``options`` are
    further options of ``kmip-lab keymanager``.
    """

    def __init__(self, certificates: Certificates, name: str, *options: str, cluster: Path | None = None) -> None:
        self.name = name
        self.port = free_port()
        self.journal = certificates.path(f"journal-{name}.jsonl")
        self._faults = certificates.path(f"faults-{name}.json")
        self._log = certificates.path(f"keymanager-{name}.log")
        certificate, key = certificates.pair("kms")
        self._command = [sys.executable, "-m", "kmip_lab", "keymanager"]
        self._command += ["--name", name, "--bind", f"127.0.0.1:{self.port}"]
        self._command += ["--certificate", str(certificate), "--private-key", str(key)]
        self._command += ["--client-ca", str(certificates.path("kms_clients_ca.pem"))]
        store = ["--cluster", str(cluster)] if cluster else ["--store", str(certificates.path("store.db"))]
        self._command += [*store, "--journal", str(self.journal)]
        self._command += ["--faults", str(self._faults), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<KeyManagerProcess {self.name} on port {self.port}>"

    def launch(self) -> None:
        """Start the process, and do not wait."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)

    def wait_ready(self) -> None:
        """Wait until the key manager listens."""
        process = self._process
        assert process is not None
        wait_until(lambda: process.poll() is not None or is_listening(self.port), f"the start of {self.name}")
        assert process.poll() is None, self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop the process (SIGSTOP)."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue the process (SIGCONT)."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process, also a frozen one, and wait for its end."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def set_faults(self, *faults: FaultSetting) -> None:
        """Replace the faults of the key manager, within 50 ms."""
        write_faults(self._faults, {self.name: faults})


@contextmanager
def running_key_manager_processes(
    certificates: Certificates, names: Sequence[str], *options: str, cluster: Path | None = None
) -> Iterator[list[KeyManagerProcess]]:
    """Run simulated key managers that share a store or replicate in a directory, each in a process of its own."""
    Store(certificates.path("store.db")).close()  # two processes can't create it at the same time
    key_managers = [KeyManagerProcess(certificates, name, *options, cluster=cluster) for name in names]
    try:
        for key_manager in key_managers:
            key_manager.launch()
        for key_manager in key_managers:
            key_manager.wait_ready()
        yield key_managers
    finally:
        for key_manager in key_managers:
            key_manager.kill()


@contextmanager
def running_pykmip_server(
    certificates: Certificates, database: Path, *, before: str = "", settings: str = ""
) -> Iterator[int]:
    """Run the server of PyKMIP in a process of its own; yield its port.

    ``before`` is Python code that runs before the server starts, ``settings`` are further lines of its configuration.
    """
    port = free_port()
    certificate, key = certificates.pair("kms")
    log = certificates.path(f"pykmip-{port}.log")
    config = certificates.path(f"pykmip-{port}.conf")
    config.write_text(
        f"""
[server]
hostname=127.0.0.1
port={port}
certificate_path={certificate}
key_path={key}
ca_path={certificates.path("kms_clients_ca.pem")}
auth_suite=TLS1.2
database_path={database}
{settings}
"""
    )
    main = f"{before}\nfrom kmip.services.server.server import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", main, "-f", str(config), "-l", str(log)]
    with certificates.path(f"pykmip-{port}.out").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: process.poll() is not None or is_listening(port), "PyKMIP's start")
        assert process.poll() is None, certificates.path(f"pykmip-{port}.out").read_text()
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it has child processes, and does not end at SIGTERM
        process.wait()


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process with the block: by SIGTERM and, after 15 s, by SIGKILL."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
