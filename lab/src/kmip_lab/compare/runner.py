"""Run the comparison: every load on every proxy in turn, round by round.

Two backends and the proxies before them are processes of their own, which end with the block that began them.
"""

import json
import os
import resource
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio
from OpenSSL import SSL

from gateway.config import Address
from gateway.errors import GatewayError
from gateway.kmip.spec import ResultStatus
from kmip_lab.certs import DevelopmentSet, write_development_set
from kmip_lab.compare import wire
from kmip_lab.compare.cases import CASES, HANDSHAKE_COST, OPERATION_COST, Backends, LoadCase
from kmip_lab.compare.configurations import ProxySettings
from kmip_lab.compare.figures import Sample
from kmip_lab.compare.load import LoadJob, LoadResult
from kmip_lab.compare.proxies import COMPILED, DIRECT, GATEWAY, PROXIES, program_name, tls_workers
from kmip_lab.tools.clients import connect, created_key
from kmip_lab.tools.programs import START_TIMEOUT, free_addresses, key_manager_command, last_line, program
from kmip_lab.tools.requests import get_key
from kmip_lab.tools.scrape import SESSIONS_OPENED, measured_with_full_pools

_BACKENDS: Final = 2
_LOAD_TIMEOUT: Final = 60.0  # s beyond the time that the load was given
_MOST_RUNS: Final = 5  # of one load through a gateway that goes on opening sessions; the last one counts
_FILES: Final = 8192  # descriptors: idle clients, and a backend's session for each of them


@dataclass(frozen=True)
class Plan:
    """Cases, proxies (DIRECT is one), rounds, seconds of each run; ``idle`` is the number of idle clients."""

    cases: Sequence[LoadCase]
    proxies: Sequence[str]
    rounds: int
    seconds: float
    idle: int
    is_tls_1_3: bool = True
    is_pinned: bool = True
    compiled: Path | None = None  # the directory of the compiled gateway

    def phases(self) -> list[tuple[Backends, list[tuple[int, LoadCase, list[str]]]]]:
        """Return backends, and rounds, cases and proxies that run them. Programs are started anew for each phase.

        Idle clients have a phase for each round, so that the proxies' memory is still unused. A case that is only the
        ceiling of another case is run without proxies. The proxies take turns in being first.
        """
        needed = {case.ceiling for case in self.cases}
        cases = [case for case in CASES.values() if case in self.cases or case.name in needed]
        turns = [(number, case, self._names(number, case)) for number in range(self.rounds) for case in cases]
        idle = [(turn[1].backends, [turn]) for turn in turns if turn[1].work == "idle"]
        others = [
            (kind, [turn for turn in turns if turn[1].backends is kind and turn[1].work != "idle"]) for kind in Backends
        ]
        return [*idle, *(phase for phase in others if phase[1])]

    def _names(self, number: int, case: LoadCase) -> list[str]:
        if case not in self.cases:
            return [DIRECT]
        names = [name for name in self.proxies if name != DIRECT or case.work != "idle"]
        first = number % max(len(names), 1)
        return names[first:] + names[:first]

    def steps(self) -> int:
        """Return the number of all runs."""
        return sum(len(names) for _kind, turns in self.phases() for _number, _case, names in turns)


@dataclass(frozen=True)
class Destination:
    """Addresses that a load connects to, the credential that it shows there, and the sessions of the proxy's processes.

    ``ca`` is the file name of the CA that issued the server's certificate. ``admin`` is the gateway's admin port.
    ``supervisor`` is the process number of a gateway with TLS workers, or 0.
    """

    name: str
    addresses: list[Address]
    credential: str
    ca: str
    context: SSL.Context
    sessions: list[int]
    admin: Address | None = None
    supervisor: int = 0


@dataclass(frozen=True)
class Cores:
    """The processors that each side may use; None is any of them."""

    proxy: set[int] | None = None
    load: set[int] | None = None
    backends: set[int] | None = None


def cores(numbers: Sequence[int]) -> Cores:
    """Give the proxy a processor of its own; load and backends share the second, or are apart if there are three."""
    if len(numbers) < 2:
        return Cores()
    return Cores({numbers[0]}, {numbers[1]}, set(numbers[2:]) or {numbers[1]})


async def compare(plan: Plan, on_run: Callable[[str], None]) -> list[Sample]:
    """Run everything; ``on_run`` is called with a description before each run.

    Raises ClickException if a program does not work.
    """
    samples: list[Sample] = []
    processors = cores(sorted(os.sched_getaffinity(0))) if plan.is_pinned else Cores()
    with tempfile.TemporaryDirectory(prefix="kmip-gateway-compare-") as temporary, _limits(), _on(processors.load):
        files = write_development_set(Path(temporary))
        for kind, turns in plan.phases():
            async with _destinations(files, kind, plan, processors) as (destinations, request):
                for number, case, names in turns:
                    for name in names:
                        on_run(f"round {number + 1}: {case.name}, {name}")
                        job = _job(plan, case, destinations[name], request, files)
                        measured = await _load_with_full_pools(job, destinations[name].admin)
                        samples.append(Sample(case.name, name, number, measured))
    return samples


# Programs -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _destinations(
    files: DevelopmentSet, kind: Backends, plan: Plan, processors: Cores
) -> AsyncIterator[tuple[dict[str, Destination], bytes]]:
    """Run backends of a kind, and every proxy before them, all ready; and yield the request that they answer."""
    async with AsyncExitStack() as stack:
        backends = free_addresses(_BACKENDS)
        command = _backends_command(files, kind, backends)
        await stack.enter_async_context(program("the backends", command, processors=processors.backends))
        direct = Destination(DIRECT, backends, "gateway-client", "kms-ca.pem", files.gateway_context(), [])
        destinations = {DIRECT: direct}
        request = await _request(kind, direct)
        for name in plan.proxies:
            if name != DIRECT:
                front, spare = free_addresses(2)
                workers = tls_workers(name)
                package = plan.compiled if name == COMPILED else None
                settings = ProxySettings(files, front, spare, backends, workers, package)
                command = PROXIES[program_name(name)](settings).run
                proxy = await stack.enter_async_context(program(name, command, processors=processors.proxy))
                admin = spare if program_name(name) in {GATEWAY, COMPILED} else None
                context = files.client_context()
                destinations[name] = Destination(
                    *(name, [front], "client", "gateway-ca.pem", context, [proxy.number]),
                    admin=admin,
                    supervisor=proxy.number if workers else 0,
                )
                await _wait_until_serving(destinations[name], request)
        yield destinations, request


def _backends_command(files: DevelopmentSet, kind: Backends, addresses: Sequence[Address]) -> list[str]:
    resumption = "--resumption" if kind.resumes else "--no-resumption"
    if kind.is_free:
        paths = [str(path) for path in (*files.pair("kms"), files.file("kms-clients-ca.pem"))]
        ports = [str(address.port) for address in addresses]
        return [sys.executable, "-m", "kmip_lab.compare.backend", resumption, *paths, *ports]
    key_managers = {f"kms-{number}": address for number, address in enumerate(addresses, 1)}
    costs = ("--handshake-cost", str(HANDSHAKE_COST), "--operation-cost", str(OPERATION_COST))
    return key_manager_command(files, key_managers, *costs, resumption)


async def _request(kind: Backends, direct: Destination) -> bytes:
    """Return the Get that the backends will answer; in simulated key managers, create the key first."""
    await _wait_until_serving(direct, wire.REQUEST, must_succeed=kind.is_free)
    if kind.is_free:
        return wire.REQUEST
    return get_key(await created_key(direct.addresses[0], direct.context))


async def _wait_until_serving(destination: Destination, request: bytes, *, must_succeed: bool = True) -> None:
    with trio.move_on_after(START_TIMEOUT):
        while True:
            with suppress(OSError, GatewayError):
                async with connect(destination.addresses[0], destination.context, server_name="localhost") as client:
                    answer = await client.ask(request)
                if answer.items[0].status == ResultStatus.SUCCESS or not must_succeed:
                    return
            await trio.sleep(0.05)
    raise click.ClickException(f"{destination.name}: no answer to a Get within {START_TIMEOUT:g} s of its start")


# Loads ----------------------------------------------------------------------------------------------------------------


def _job(plan: Plan, case: LoadCase, destination: Destination, request: bytes, files: DevelopmentSet) -> LoadJob:
    certificate, private_key = files.pair(destination.credential)
    return LoadJob(
        work=case.work,
        addresses=[(address.host, address.port) for address in destination.addresses],
        certificate=str(certificate),
        private_key=str(private_key),
        ca=str(files.file(destination.ca)),
        request=request.hex(),
        sessions=destination.sessions,
        clients=plan.idle if case.work == "idle" else case.clients,
        warm_up=case.warm_up,
        seconds=plan.seconds,
        is_tls_1_3=plan.is_tls_1_3,
        rate=case.rate,
        supervisor=destination.supervisor,
    )


async def _load_with_full_pools(job: LoadJob, admin: Address | None) -> LoadResult:
    if admin is None or job.work == "idle":
        return await _load(job)
    measured, grown = await measured_with_full_pools(partial(_load, job), admin, _MOST_RUNS)
    return replace(measured, opened=int(grown[SESSIONS_OPENED]))


async def _load(job: LoadJob) -> LoadResult:
    command = [sys.executable, "-m", "kmip_lab.compare.load"]
    text = json.dumps(asdict(job)).encode()
    try:
        with trio.fail_after(job.warm_up + job.seconds + _LOAD_TIMEOUT):
            ended = await trio.run_process(command, stdin=text, capture_stdout=True, capture_stderr=True, check=False)
    except trio.TooSlowError:
        raise click.ClickException(f"the load ({job.work}) did not end in time") from None
    if ended.returncode:
        raise click.ClickException(f"the load ({job.work}) failed: {last_line(ended.stderr)}")
    return LoadResult(**json.loads(ended.stdout))


@contextmanager
def _limits() -> Iterator[None]:
    """Raise the limit of descriptors to that of idle clients, for all programs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _on(processors: set[int] | None) -> Iterator[None]:
    """Run this process, and the processes that it starts, on these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
