"""A trial: a client before a key manager, directly and through the gateway without and with TLS workers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tests.kit.processes import Certificates, GatewaySettings, running_gateway
from tests.peers.build import NotFetchedError, Software, built
from tests.peers.peer import ClientPeer, Front, KnownDifference, ServerPeer, Target, is_error
from tests.peers.run import PeerError

WORKERS: Final = (0, 2)


class Trial(NamedTuple):
    """A client, a key manager, the type of their keys (``ecdsa`` or ``rsa``), and a balancer before the gateways.

    ``faults`` are faults of a gateway that the client must notice: see tests/peers/faulty.py.
    """

    client: ClientPeer
    server: ServerPeer
    key_type: str = "ecdsa"
    front: Front | None = None
    faults: tuple[str, ...] = ()

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
    """The result of a trial: the lines of the direct run, and the differences. ``skipped`` is a reason, or empty.

    ``unnoticed`` are faults of the gateway that the client did not notice.
    """

    trial: Trial
    lines: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    skipped: str = ""
    unnoticed: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """True if each difference has a reason, and each fault was noticed; also if the trial was left out."""
        return all(difference.reason for difference in self.differences) and not self.unnoticed

    @property
    def errors(self) -> int:
        """The number of lines that are errors: operations that the key manager or the client does not know."""
        return sum(map(is_error, self.lines))


def run_trial(trial: Trial, builds: Path, directory: Path, workers: tuple[int, ...] = WORKERS) -> Outcome:
    """Build what is needed, and run a trial.

    The trial is left out if this machine lacks a tool, or can't fetch the software. Raises PeerError if the software
    can't be built, or a driver fails; AssertionError if the key manager or the gateway does not start.
    """
    for software in trial.software:
        if (missing := software.missing()) is not None:
            return Outcome(trial, skipped=f"{software.name}: {missing}")
    try:
        for software in trial.software:
            built(software, builds)
    except NotFetchedError as error:
        return Outcome(trial, skipped=f"{software.name} could not be fetched: {_last_line(error)}")
    with _Stage(trial, builds, directory) as stage:
        differences: list[Difference] = []
        for number in workers:
            differences += compare(stage.direct, stage.through(number), number, trial.client.differences)
        unnoticed = tuple(fault for fault in trial.faults if not _is_noticed(fault, stage, trial.client.differences))
    return Outcome(trial, tuple(stage.direct), tuple(differences), unnoticed=unnoticed)


def _is_noticed(fault: str, stage: "_Stage", known: Sequence[KnownDifference]) -> bool:
    """Return True if the client's driver fails, or prints other lines, before a gateway with a fault."""
    try:
        through = stage.through(0, f"from tests.peers.faulty import spoil\nspoil({fault!r})\n")
    except PeerError:
        return True
    return any(not each.reason for each in compare(stage.direct, through, 0, known))


class _Stage(ExitStack):
    """The running key manager of a trial, and the lines of its direct run."""

    def __init__(self, trial: Trial, builds: Path, directory: Path) -> None:
        super().__init__()
        self._trial = trial
        self._build = built(trial.client.software, builds)
        self._certificates = Certificates(directory, trial.key_type)
        server_build = built(trial.server.software, builds)
        self._ports = self.enter_context(trial.server.running(self._certificates, server_build))
        credential = self._certificates.credential("gateway")
        self.direct = self._drive(self._ports, "kms_ca", credential)
        if all(map(is_error, self.direct)):
            raise PeerError(f"each result without the gateway is an error, such as {self.direct[0]!r}")

    def through(self, workers: int, patch: str = "") -> list[str]:
        """Return the lines through two gateways; ``patch`` is Python that runs before them."""
        front = self._trial.front
        settings = GatewaySettings(self._ports, listener="" if front is None else front.listener, tls_workers=workers)
        with ExitStack() as running:
            gateways = [
                running.enter_context(running_gateway(self._certificates, settings, patch=patch)) for _ in range(2)
            ]
            ports = [gateway.port for gateway in gateways]
            if front is not None:
                ports = [running.enter_context(front.running(self._certificates, gateways))]
            return self._drive(ports, "gateway_ca", self._certificates.client("client"))

    def _drive(self, ports: Sequence[int], ca: str, credential: tuple[Path, Path]) -> list[str]:
        addresses = tuple(f"127.0.0.1:{port}" for port in ports)
        target = Target(addresses, self._certificates.path(f"{ca}.pem"), *credential)
        return self._trial.client.drive(target, self._build)


def compare(
    direct: Sequence[str], through: Sequence[str], workers: int, known: Sequence[KnownDifference]
) -> Iterator[Difference]:
    """Yield the differences of two runs, line by line; a line that one run lacks is empty.

    A difference has a reason only if it is known, with the very line that stands in the other's place.
    """
    reasons = {(each.direct, each.through): each.reason for each in known}
    for number in range(max(len(direct), len(through))):
        first, second = (lines[number] if number < len(lines) else "" for lines in (direct, through))
        if first != second:
            yield Difference(workers, first, second, reasons.get((first, second), ""))


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2][:200].replace("|", "/")
