"""Waiting: the requests that wait for a session of one pool.

A wait ends with a session, or with an error after which the dispatcher may try the next backend.
"""

from collections.abc import Callable, Hashable

import trio

from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.policy import Effect
from gateway.upstream.queue import FairQueue
from gateway.upstream.session import Session


class Waiter:
    """A request that waits. ``done`` is set together with ``session`` or ``error``.

    ``effect`` is None if the request must not move to a different backend.
    """

    __slots__ = ("done", "effect", "error", "principal", "session", "since")

    def __init__(self, principal: Hashable, effect: Effect | None) -> None:
        self.done = trio.Event()
        self.principal = principal
        self.effect = effect
        self.since = trio.current_time()
        self.session: Session | None = None
        self.error: BackendError | PoolBusyError | None = None

    def lend(self, session: Session) -> None:
        """End the wait with a session."""
        self.session = session
        self.done.set()


class Waiters(FairQueue[Waiter]):
    """The waiting requests of one pool of ``backend``. The methods end waits that get no session."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self._backend = backend

    def check_length(self, newcomer: Waiter, most: int, *, opening: int) -> None:
        """Reject a request if more than ``most`` wait, not counting one for each of ``opening`` sessions.

        The rejected request is the newest of the principal that fills the queue. Raises PoolBusyError if that is the
        newcomer, which stays in the queue until its caller removes it.
        """
        queueing = len(self) - opening
        if queueing <= most:
            return
        full = PoolBusyError(f"{self._backend}: {queueing - 1} requests are waiting already", reason="queue_full")
        rejected = self.newest_of_the_longest(newcomer.principal)
        if rejected is None:
            raise full
        self._fail(rejected, full)

    def fail_all(self, error: BackendError, *, keep: int = 0) -> None:
        """Fail all waits but ``keep``, the longest first, so that the requests try a different backend."""
        while len(self) > keep:
            # Each gets an error of its own: a raised error keeps its traceback.
            self._fail(self.oldest(), self._error(error.args[0], error.reason))

    def have_waited_since(self, since: float) -> bool:
        """Return True if a request has waited since this time, or longer."""
        return bool(self) and self.oldest().since <= since

    def move(self, since: float, room: Callable[[Effect], int]) -> None:
        """Fail as many waits that began at ``since`` or earlier as other backends can serve requests without a wait.

        ``room`` returns that number for requests of an effect; it is called once for reads and once for changes.
        """
        left: dict[bool, int] = {}
        for waiter in self.all():
            if waiter.since > since:
                return
            if waiter.effect is None:
                continue
            is_change = not waiter.effect.is_read
            if is_change not in left:
                left[is_change] = room(waiter.effect)
            if left[is_change] > 0:
                self._fail(waiter, self._error("another key manager has a free session", "moved"))
            left[is_change] -= 1

    def _fail(self, waiter: Waiter, error: BackendError | PoolBusyError) -> None:
        self.remove(waiter)
        waiter.error = error
        waiter.done.set()

    def _error(self, message: str, reason: str) -> BackendError:
        return BackendError(message, backend=self._backend, stage=Stage.CONNECT, reason=reason)
