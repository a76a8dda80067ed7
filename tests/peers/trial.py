"""A trial: a client before a key manager, directly and through the gateway without and with TLS workers."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tests.kit.processes import Certificates, GatewaySettings, running_gateway
from tests.peers.peer import ClientPeer, Front, PeerError, ServerPeer, Software, Target

WORKERS: Final = (0, 2)


class Trial(NamedTuple):
    """A client, a key manager, the type of their keys (``ecdsa`` or ``rsa``), and a balancer before the gateways."""

    client: ClientPeer
    server: ServerPeer
    key_type: str = "ecdsa"
    front: Front | None = None

    @property
    def software(self) -> tuple[Software, ...]:
        """All peers of the trial."""
        front = () if self.front is None else (self.front.software,)
        return (self.client.software, self.server.software, *front)

    @property
    def name(self) -> str:
        """The client, the front, the key manager, and the type of keys if it is not the usual one."""
        keys = "" if self.key_type == "ecdsa" else f" ({self.key_type.upper()} keys)"
        front = "" if self.front is None else f" by {self.front.software.name}"
        return f"{self.client.software.name}{front} to {self.server.software.name}{keys}"


class Difference(NamedTuple):
    """A line that is not the same through the gateway; ``reason`` is empty if it should be the same."""

    workers: int
    direct: str
    through: str
    reason: str


class Outcome(NamedTuple):
    """The result of a trial: the lines of the direct run, and the differences. ``skipped`` is a reason, or empty."""

    trial: Trial
    lines: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    skipped: str = ""

    @property
    def is_good(self) -> bool:
        """True if the trial ran, or was left out, and each difference has a reason."""
        return all(difference.reason for difference in self.differences)


def run_trial(trial: Trial, builds: Path, directory: Path, workers: tuple[int, ...] = WORKERS) -> Outcome:
    """Build what is needed, and run a trial. Raises PeerError if a driver fails."""
    for software in trial.software:
        if (missing := software.missing()) is not None:
            return Outcome(trial, skipped=f"{software.name}: {missing}")
    client_build, server_build = (_built(side.software.name, side, builds) for side in (trial.client, trial.server))
    certificates = Certificates(directory, trial.key_type)
    with trial.server.running(certificates, server_build) as ports:
        direct = trial.client.drive(
            Target(
                tuple(f"127.0.0.1:{port}" for port in ports),
                certificates.path("kms_ca.pem"),
                *certificates.credential("gateway"),
            ),
            client_build,
        )
        if not direct:
            raise PeerError(f"{trial.name}: the driver printed nothing")
        differences: list[Difference] = []
        for number in workers:
            with ExitStack() as running:
                listener = "" if trial.front is None else trial.front.listener
                settings = GatewaySettings(ports, listener=listener, tls_workers=number)
                gateways = [running.enter_context(running_gateway(certificates, settings)) for _ in range(2)]
                addresses = [f"127.0.0.1:{gateway.port}" for gateway in gateways]
                if trial.front is not None:
                    addresses = [f"127.0.0.1:{running.enter_context(trial.front.running(certificates, gateways))}"]
                credential = certificates.client("client")
                target = Target(tuple(addresses), certificates.path("gateway_ca.pem"), *credential)
                through = trial.client.drive(target, client_build)
            differences += compare(direct, through, number, trial.client.differences)
    return Outcome(trial, tuple(direct), tuple(differences))


def compare(direct: list[str], through: list[str], workers: int, reasons: Mapping[str, str]) -> Iterator[Difference]:
    """Yield the differences of two runs, line by line; a line that one run lacks is empty."""
    for number in range(max(len(direct), len(through))):
        first, second = (lines[number] if number < len(lines) else "" for lines in (direct, through))
        if first != second:
            reason = next((reason for start, reason in reasons.items() if first.startswith(start)), "")
            yield Difference(workers, first, second, reason)


def _built(name: str, side: ClientPeer | ServerPeer, builds: Path) -> Path:
    build = builds / name.replace(" ", "-")
    if not (build / ".built").exists():
        build.mkdir(parents=True, exist_ok=True)
        side.software.build(build)
        (build / ".built").touch()
    return build
