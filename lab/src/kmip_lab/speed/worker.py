"""One client: a process that repeats one operation, and counts."""

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

from kmip_lab.speed.operations import NO_KEYS, OPERATIONS, Keys
from kmip_lab.speed.result import Tally
from kmip_lab.speed.session import Dialler, Session
from kmip_lab.speed.target import Target
from kmip_lab.speed.trouble import TroubleError

_PATIENCE: Final = 10  # failures in a row after which a client tries no more
_LONGEST_START: Final = 60.0  # seconds in which all clients must be ready


class Slots(Protocol):
    """Memory that clients write their progress to, a slot each."""

    def __setitem__(self, index: int, value: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What each client does: ``repeat`` times ``operation``, in a session that is "kept", "fresh" or "resumed"."""

    target: Target
    operation: str
    repeat: int
    sessions: str
    keys: Keys = NO_KEYS


def work(plan: Plan, number: int, barrier: Barrier, progress: Slots, results: Connection) -> None:
    """Be client ``number``: get ready, begin with all others, and send a Tally. The body of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        results.send(_Client(plan, number).run(barrier, progress))
    except BrokenBarrierError:
        pass  # another one's fault, which it tells
    except BaseException:
        barrier.abort()
        raise


def _end_with_parent() -> None:
    """Wait for the parent's end, however it comes, and end this process: nobody is left who would hear its count."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Client:
    """Does what a Plan says. It gives up after some failures in a row, and says how much it left out."""

    def __init__(self, plan: Plan, number: int) -> None:
        self._plan = plan
        self._number = number
        self._dialler = Dialler(plan.target, offset=number, resume=plan.sessions == "resumed")
        self._measurable = OPERATIONS[plan.operation]
        self._session: Session | None = None
        self._request = b""
        self._tally = Tally()

    def run(self, barrier: Barrier, progress: Slots) -> Tally:
        """Everything, in order. A session that is to be kept is opened before the others are waited for."""
        tally = self._tally
        if self._plan.sessions == "kept":
            with suppress(TroubleError):  # it will be met again, and counted, in the first operation
                self._open()
        barrier.wait(_LONGEST_START)
        tally.began, cpu = time.perf_counter(), time.process_time()
        self._repeat(progress)
        tally.ended, tally.cpu = time.perf_counter(), time.process_time() - cpu
        self._close()
        tally.full_handshakes = self._dialler.full_handshakes
        tally.resumed_handshakes = self._dialler.resumed_handshakes
        return tally

    def _repeat(self, progress: Slots) -> None:
        failures = 0
        for done in range(1, self._plan.repeat + 1):
            failures = 0 if self._succeeds() else failures + 1
            progress[self._number] = done
            if failures == _PATIENCE:
                self._tally.left_out = self._plan.repeat - done
                return

    def _succeeds(self) -> bool:
        began = time.perf_counter()
        try:
            answer = self._open().ask(self._request)
        except TroubleError as trouble:
            self._tally.note(trouble.kind, str(trouble))
            if self._plan.sessions != "kept" or not trouble.refused:
                self._close()
            return False
        if self._plan.sessions != "kept":
            self._close()
        self._tally.durations.append(time.perf_counter() - began)
        if self._measurable.makes_keys:
            self._tally.made += (uid.decode() for uid in answer.unique_identifiers)
        return True

    def _open(self) -> Session:
        if self._session is None:
            self._session = self._dialler.open()
            self._request = self._measurable.request(self._dialler.version, self._plan.keys)
        return self._session

    def _close(self) -> None:
        if self._session is not None:
            self._dialler.close(self._session)
            self._session = None
