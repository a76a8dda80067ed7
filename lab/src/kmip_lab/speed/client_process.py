"""The body of a client process, which repeats one operation and counts the outcomes."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError
from typing import Final, Protocol

from kmip_lab.speed.errors import OperationError
from kmip_lab.speed.operations import NO_KEYS, OPERATIONS, Keys
from kmip_lab.speed.result import Tally
from kmip_lab.speed.session import ClientSession, Dialer
from kmip_lab.speed.target import Target

_MOST_FAILURES: Final = 10  # in a row, after which a client stops
_START_TIMEOUT: Final = 60.0  # seconds in which all clients must be ready


class ProgressCounters(Protocol):
    """Shared memory with the number of operations that each client has done."""

    def __setitem__(self, index: int, value: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """The work of each client: ``operation``, ``repeat`` times, in sessions that are "kept", "fresh" or "resumed"."""

    target: Target
    operation: str
    repeat: int
    sessions: str
    keys: Keys = NO_KEYS


def work(plan: ClientPlan, number: int, barrier: Barrier, progress: ProgressCounters, results: Connection) -> None:
    """Run client ``number``: open a session, wait for all clients at the barrier, and send a Tally to ``results``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        results.send(_Client(plan, number).run(barrier, progress))
    except BrokenBarrierError:
        pass  # another client failed, and reports it
    except BaseException:
        barrier.abort()
        raise


def _end_with_parent() -> None:
    """End this process as soon as the parent has ended in any way: no process is left to take the results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Client:
    """A client that follows a ClientPlan. It stops after ten failures in a row, and counts the operations left out."""

    def __init__(self, plan: ClientPlan, number: int) -> None:
        self._plan = plan
        self._number = number
        self._dialer = Dialer(plan.target, offset=number, resume=plan.sessions == "resumed")
        self._measurable = OPERATIONS[plan.operation]
        self._session: ClientSession | None = None
        self._request = b""
        self._tally = Tally()

    def run(self, barrier: Barrier, progress: ProgressCounters) -> Tally:
        """Do everything in order. A session that is to be kept is opened before the barrier."""
        tally = self._tally
        if self._plan.sessions == "kept":
            with suppress(OperationError):  # the first operation meets it again, and counts it
                self._open()
        barrier.wait(_START_TIMEOUT)
        tally.began, cpu = time.perf_counter(), time.process_time()
        self._repeat(progress)
        tally.ended, tally.cpu = time.perf_counter(), time.process_time() - cpu
        self._close()
        tally.full_handshakes = self._dialer.full_handshakes
        tally.resumed_handshakes = self._dialer.resumed_handshakes
        return tally

    def _repeat(self, progress: ProgressCounters) -> None:
        failures = 0
        for done in range(1, self._plan.repeat + 1):
            failures = 0 if self._succeeds() else failures + 1
            progress[self._number] = done
            if failures == _MOST_FAILURES:
                self._tally.left_out = self._plan.repeat - done
                return

    def _succeeds(self) -> bool:
        began = time.perf_counter()
        try:
            answer = self._open().ask(self._request)
        except OperationError as error:
            self._tally.note(error.kind, str(error))
            if self._plan.sessions != "kept" or not error.refused:
                self._close()
            return False
        if self._plan.sessions != "kept":
            self._close()
        self._tally.durations.append(time.perf_counter() - began)
        if self._measurable.makes_keys:
            self._tally.made += (uid.decode() for uid in answer.unique_identifiers)
        return True

    def _open(self) -> ClientSession:
        if self._session is None:
            self._session = self._dialer.open()
            self._request = self._measurable.request(self._dialer.version, self._plan.keys)
        return self._session

    def _close(self) -> None:
        if self._session is not None:
            self._dialer.close(self._session)
            self._session = None
