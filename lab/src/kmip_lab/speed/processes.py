"""Start client processes, let them begin together, watch them, and gather their results."""

import multiprocessing
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Final

from gateway.errors import GatewayError
from kmip_lab.speed.client_process import ClientPlan, work
from kmip_lab.speed.result import Measurement, Tally

_TICK: Final = 0.1  # seconds between two looks at the clients' progress
_END_TIMEOUT: Final = 5.0  # seconds that a client may take to end after it has sent its result

#: Clients are forked from a process without threads, which has loaded all modules before: those of a client, and the
#: command line, since each process loads the program that was started once more.
_PROCESSES: Final = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["kmip_lab.speed.client_process", "kmip_lab.cli"])


class ClientDiedError(GatewayError):
    """A client process ended without a result."""


def measure(
    plan: ClientPlan, clients: int, progress: Callable[[int], None] = lambda _done: None
) -> tuple[Measurement, list[str]]:
    """Have ``clients`` processes follow the plan at once; block until all have ended.

    ``progress`` is called now and then, and at the end in any case, with the operations done so far. Returns the
    measurement, and the unique identifiers of the keys that were made. Raises ClientDiedError.
    """
    slots = _PROCESSES.RawArray("L", clients)
    barrier = _PROCESSES.Barrier(clients)
    with ExitStack() as stack:
        stack.callback(lambda: progress(sum(slots)))
        processes: dict[connection.Connection, BaseProcess] = {}
        for number in range(clients):
            reader, writer = _PROCESSES.Pipe(duplex=False)
            stack.callback(reader.close)
            process = _PROCESSES.Process(target=work, args=(plan, number, barrier, slots, writer), daemon=True)
            process.start()
            stack.push(partial(_end, process))
            writer.close()
            processes[reader] = process
        tallies = _gather(processes, lambda: progress(sum(slots)))
    made = [uid for tally in tallies for uid in tally.made]
    return Measurement.of(plan.operation, plan.sessions, plan.repeat, tallies), made


def _gather(processes: Mapping[connection.Connection, BaseProcess], tick: Callable[[], None]) -> list[Tally]:
    tallies: list[Tally] = []
    waiting = list(processes)
    while waiting:
        for ready in connection.wait(waiting, _TICK):
            assert isinstance(ready, connection.Connection)  # noqa: S101 - as in ``waiting``
            waiting.remove(ready)
            try:
                tallies.append(ready.recv())
            except EOFError:
                raise ClientDiedError(_why(processes[ready], processes.values())) from None
        tick()
    return tallies


def _why(process: BaseProcess, team: Iterable[BaseProcess]) -> str:
    """Return why a client ended without a result: from its exit status, or from that of another client."""
    process.join(_END_TIMEOUT)
    if process.exitcode == 0:  # it has waited in vain for another client, as all of them have
        for other in team:
            other.join(_END_TIMEOUT)
    codes = [each.exitcode for each in (process, *team) if each.exitcode]
    if not codes:
        return "not all clients were ready in time"
    if codes[0] < 0:
        return f"a client process was killed by signal {-codes[0]}"
    return f"a client process ended with exit status {codes[0]}; its messages are above"


def _end(process: BaseProcess, failed: type[BaseException] | None, *_details: object) -> None:
    """Wait for a process that has sent its result; if the measurement failed, end it."""
    if failed is None:
        process.join(_END_TIMEOUT)
    if process.exitcode is None:
        process.terminate()
        process.join()
    process.close()
