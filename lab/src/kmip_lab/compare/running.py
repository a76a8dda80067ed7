"""The comparison as it runs: every load on every proxy in turn, round by round."""

import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import click
import trio

from gateway.config import Address
from kmip_lab.certs import write_development_set
from kmip_lab.compare.cases import CASES, Backends, Case
from kmip_lab.compare.figures import Sample
from kmip_lab.compare.load import Job, Measured
from kmip_lab.compare.places import Cores, Target, cores, last_line, place
from kmip_lab.compare.proxies import DIRECT
from kmip_lab.scrape import SESSIONS_OPENED, scrape

_LOAD_TIMEOUT: Final = 60.0  # s beyond the time that the load was given
_MOST_RUNS: Final = 5  # of one load through a gateway that goes on opening sessions; the last one counts
_FILES: Final = 8192  # descriptors: idle clients, and a backend's session for each of them


@dataclass(frozen=True)
class Plan:
    """What to run: cases, proxies (DIRECT is one), rounds, and seconds of each run; ``idle`` is how many clients."""

    cases: Sequence[Case]
    proxies: Sequence[str]
    rounds: int
    seconds: float
    idle: int
    is_tls_1_3: bool = True
    is_pinned: bool = True

    def runs(self, kind: Backends) -> list[tuple[int, Case, list[str]]]:
        """Rounds, cases and who takes part in them.

        Idle clients come first, while the proxies' memory is still unused; a case that only another one needs, for what
        load and backends do alone, is run without proxies; no proxy is always the first.
        """
        needed = {case.ceiling for case in self.cases}
        cases = [case for case in CASES.values() if case in self.cases or case.name in needed]
        turns = [(0, case) for case in cases if case.work == "idle"]
        turns += [(number, case) for number in range(self.rounds) for case in cases if case.work != "idle"]
        return [(number, case, self._names(number, case)) for number, case in turns if case.backends is kind]

    def _names(self, number: int, case: Case) -> list[str]:
        if case not in self.cases:
            return [DIRECT]
        names = [name for name in self.proxies if name != DIRECT or case.work != "idle"]
        first = number % max(len(names), 1)
        return names[first:] + names[:first]

    def steps(self) -> int:
        """How many runs there will be."""
        return sum(len(names) for kind in Backends for _number, _case, names in self.runs(kind))


async def compare(plan: Plan, tell: Callable[[str], None]) -> list[Sample]:
    """Run everything; ``tell`` hears of each run that begins. Raises ClickException where a program does not work."""
    samples: list[Sample] = []
    mine = cores(sorted(os.sched_getaffinity(0))) if plan.is_pinned else Cores()
    with tempfile.TemporaryDirectory(prefix="kmip-gateway-compare-") as temporary, _limits(), _on(mine.load):
        directory = Path(temporary)
        write_development_set(directory)
        for kind in Backends:
            if plan.runs(kind):
                async with place(directory, kind, plan.proxies, mine) as (targets, request):
                    for number, case, names in plan.runs(kind):
                        for name in names:
                            tell(f"round {number + 1}: {case.name}, {name}")
                            job = _job(plan, case, targets[name], request, directory)
                            measured = await _load_with_full_pools(job, targets[name].admin)
                            samples.append(Sample(case.name, name, number, measured))
    return samples


def _job(plan: Plan, case: Case, target: Target, request: bytes, directory: Path) -> Job:
    return Job(
        case.work,
        [(address.host, address.port) for address in target.addresses],
        str(directory / f"{target.credential}.pem"),
        str(directory / f"{target.credential}.key"),
        str(directory / target.ca),
        request.hex(),
        target.sessions,
        plan.idle if case.work == "idle" else case.clients,
        case.warm_up,
        plan.seconds,
        plan.is_tls_1_3,
        case.rate,
    )


async def _load_with_full_pools(job: Job, admin: Address | None) -> Measured:
    """Run a load; through the gateway, until it opens no session meanwhile, as one that has been running for long."""
    if admin is None or job.work == "idle":
        return await _load(job)
    opened = await _opened(admin)
    for _ in range(_MOST_RUNS):
        before, measured = opened, await _load(job)
        opened = await _opened(admin)
        if opened == before:
            break
    return replace(measured, opened=opened - before)


async def _opened(admin: Address) -> int:
    return int((await trio.to_thread.run_sync(scrape, admin))[SESSIONS_OPENED])


async def _load(job: Job) -> Measured:
    command = [sys.executable, "-m", "kmip_lab.compare.load"]
    text = json.dumps(asdict(job)).encode()
    try:
        with trio.fail_after(job.warm_up + job.seconds + _LOAD_TIMEOUT):
            ended = await trio.run_process(command, stdin=text, capture_stdout=True, capture_stderr=True, check=False)
    except trio.TooSlowError:
        raise click.ClickException(f"the load ({job.work}) did not come to its end") from None
    if ended.returncode:
        raise click.ClickException(f"the load ({job.work}) broke off: {last_line(ended.stderr)}")
    return Measured(**json.loads(ended.stdout))


@contextmanager
def _limits() -> Iterator[None]:
    """As many descriptors as idle clients need, for all programs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _on(processors: set[int] | None) -> Iterator[None]:
    """This process, and what it starts, on these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
