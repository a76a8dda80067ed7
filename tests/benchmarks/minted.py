"""Cost of minted credentials: certificates a second, processor time and memory for each client, many clients at once.

Run as ``python -m tests.benchmarks.minted [--clients N]``. The gateway, the key managers and the clients are processes
of their own; processor time is that of the gateway's process, so that a busy machine changes the rates only.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gateway.config.credentials import MintedKey
from gateway.kmip import compose
from gateway.kmip.decode import decode_response
from gateway.kmip.spec import Operation, ResultStatus
from gateway.tls.minting import IssuingCa
from tests.kit.authorities import Ca, common_name
from tests.kit.processes import Certificates, Gateway, GatewaySettings, Identity, running_gateway, running_key_managers
from tests.kit.witness import PlainClient

_LOCATE: Final = compose.encode_request((1, 4), [compose.Ask(Operation.LOCATE)])
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_RULE: Final = """
[[identities]]
name = "clients"
match = {{ subject_cn = "*" }}
credential = "minted"
client_issuer = "clients_ca.pem"
issuing_ca = "issuing.pem"
issuing_ca_key = "issuing.key"
[pool]
max_principals = {limit}
"""


def cpu(gateway: Gateway) -> float:
    """Return the processor time of the gateway's process so far, in seconds."""
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory(gateway: Gateway) -> float:
    """Return the resident memory of the gateway's process, in MiB."""
    return int(Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1]) * _PAGE / 2**20


def issue(kinds: Sequence[MintedKey]) -> None:
    """Print how many certificates one process issues a second, by the kind of key."""
    ca, client = Ca.make("Issuing CA"), Ca.make("Clients CA").issue(common_name("client"))
    for kind in kinds:
        issuing = IssuingCa([ca.certificate], ca.key, minted_key=kind)
        began, count = time.process_time(), 0
        while time.process_time() - began < 2:
            issuing.issue(client, datetime.now(UTC))
            count += 1
        print(f"certificates with {kind}: {count / (time.process_time() - began):.0f} a second of processor time")


class Site:
    """A gateway that mints, two key managers, and the certificates of many clients."""

    def __init__(self, running: ExitStack, clients: int, limit: int) -> None:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        self.certificates = Certificates(folder)
        issuing = Ca.make("Issuing CA")
        issuing.write(folder / "issuing")
        trusted = folder / "kms_clients_ca.pem"
        trusted.write_bytes(trusted.read_bytes() + issuing.pem)
        own = Identity("own", '{ fingerprint_sha256 = "' + "0" * 64 + '" }', shared=False)
        ports = running.enter_context(running_key_managers(self.certificates))
        settings = GatewaySettings(
            ports, [own], extra=_RULE.format(limit=limit), backend="max_sessions = 256", listener="idle_timeout = 600"
        )
        self.names = [f"client-{number}" for number in range(clients)]
        for name in self.names:
            self.certificates.client(name)
        self.gateway = running.enter_context(running_gateway(self.certificates, settings, is_measured=True))

    def connect(self, name: str) -> PlainClient:
        """Return a connected client."""
        pair = self.certificates.client(name)
        return PlainClient(self.gateway.port, *pair, self.certificates.path("gateway_ca.pem"))

    def ask_once(self, name: str, frame: bytes) -> None:
        """Connect, ask, and close."""
        with self.connect(name) as client:
            assert decode_response(client.ask(frame)).items[0].status == ResultStatus.SUCCESS


def one_after_the_other(site: Site) -> None:
    """Print the cost of each client's first request, and of a second one, on a session that is kept."""
    gateway = site.gateway
    site.ask_once(site.names[0], _LOCATE)
    for what in ("first", "second"):
        held, used, began = memory(gateway), cpu(gateway), time.monotonic()
        for name in site.names[1:]:
            site.ask_once(name, _LOCATE)
        count = len(site.names) - 1
        print(
            f"{what} request of each of {count} clients: {count / (time.monotonic() - began):.0f} a second,"
            f" {(cpu(gateway) - used) / count * 1000:.2f} ms of processor time each,"
            f" memory {held:.1f} -> {memory(gateway):.1f} MiB ({(memory(gateway) - held) * 1024 / count:.1f} KiB each)"
        )
    print(
        f"  minted: {gateway.total('kmip_gateway_minted_credentials'):.0f} kept,"
        f" {gateway.total('kmip_gateway_certificates_minted_total'):.0f} made; sessions opened:"
        f" {gateway.total('kmip_gateway_sessions_opened_total'):.0f}"
    )


def at_once(site: Site, clients: int, seconds: float) -> None:
    """Print the rate and the longest time of many clients that send requests at once, each as itself."""
    ended, times, failures = threading.Event(), list[float](), list[str]()

    def run(name: str) -> None:
        try:
            with site.connect(name) as client:
                while not ended.is_set():
                    began = time.monotonic()
                    if decode_response(client.ask(_LOCATE)).items[0].status != ResultStatus.SUCCESS:
                        failures.append(name)
                    times.append(time.monotonic() - began)
                    time.sleep(0.05)
        except OSError as error:
            failures.append(f"{name}: {error}")

    threads = [threading.Thread(target=run, args=(name,)) for name in site.names[:clients]]
    used, opened = cpu(site.gateway), site.gateway.total("kmip_gateway_sessions_opened_total")
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    ended.set()
    for thread in threads:
        thread.join(60)
    ordered = sorted(times)
    print(
        f"{clients} clients at once: {len(times) / seconds:.0f} requests a second, median"
        f" {ordered[len(ordered) // 2] * 1000:.0f} ms, p99 {ordered[len(ordered) * 99 // 100] * 1000:.0f} ms,"
        f" {len(failures)} failures, {(cpu(site.gateway) - used) / len(times) * 1000:.2f} ms of processor time each,"
        f" sessions opened: {site.gateway.total('kmip_gateway_sessions_opened_total') - opened:.0f}"
    )


def idle(site: Site, seconds: float) -> None:
    """Print the processor time of the gateway without requests, while it remembers all clients."""
    time.sleep(30)  # sessions are closed after 25 s
    used = cpu(site.gateway)
    time.sleep(seconds)
    print(
        f"without requests: {(cpu(site.gateway) - used) / seconds * 100:.1f} % of a processor,"
        f" {memory(site.gateway):.1f} MiB"
    )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=200)
    options = parser.parse_args()
    issue(["ec-p256", "ec-p384", "rsa-2048"])
    with ExitStack() as running:
        site = Site(running, options.clients, options.clients)
        one_after_the_other(site)
        at_once(site, min(options.at_once, options.clients), 10)
        idle(site, 10)


if __name__ == "__main__":
    main()
