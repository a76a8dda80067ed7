"""Pool: the sessions of one backend and credential, lent for the length of one exchange.

Newest first, so that what is not needed grows old and goes. Who finds none waits in turn, for whichever comes first: a
session given back, or one opened in the background; a waiter that leaves does not waste it. Everything that decides is
a plain function; only ``wait`` and the opening of sessions wait.
"""

import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

import trio

from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.upstream.session import Opener, Session, State
from gateway.upstream.slots import Slots

_OPENING_AT_ONCE: Final = 8  # handshakes towards one backend under way for one credential
_PAUSE_FIRST: Final = 0.1  # s until a backend that failed is tried again in the background,
_PAUSE_FACTOR: Final = 2.0  # growing by this each time,
_PAUSE_LONGEST: Final = 10.0  # up to this
_KEEP_ALIVE_AT: Final = 0.8  # of idle_timeout: when a session that is kept warm is used, so that no peer drops it


class PoolSettings(NamedTuple):
    """Times in seconds; ``lifetime_spread`` is the fraction of max_lifetime over which ends are spread."""

    min_idle: int = 1
    idle_timeout: float = 25.0
    max_lifetime: float = 3600.0
    lifetime_spread: float = 0.1
    queue_length: int = 1000
    connect_deadline: float = 3.0


class Observer(Protocol):
    """Who is told what happens to the sessions of a backend: the metrics, the log."""

    def session_opened(self, seconds: float) -> None:
        """A session was opened, in so many seconds."""

    def session_open_failed(self, error: BackendError) -> None:
        """A session could not be opened."""

    def session_closed(self, reason: str) -> None:
        """A session was closed, for a reason of a closed set."""

    def exchanged(self, result: str, seconds: float) -> None:
        """An exchange for a client ended: ``answered``, or stage and reason of its failure."""


class _Waiter:
    """Somebody who waits for a session, and what came of it."""

    __slots__ = ("done", "error", "session", "since")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.since = trio.current_time()
        self.session: Session | None = None
        self.error: BackendError | None = None


class PoolStatistics(NamedTuple):
    """How many sessions are in which state, and how many wait."""

    idle: int
    busy: int
    opening: int
    waiting: int


class Pool:
    """Lends sessions. ``spawn`` starts a background task in a nursery that outlives the pool's use.

    Invariants: idle, busy and opening together hold exactly the slots taken; nobody waits while a session is idle.
    """

    def __init__(
        self,
        backend: str,
        credential: str,
        settings: PoolSettings,
        *,
        slots: Slots,
        opener: Opener,
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
        observer: Observer,
    ) -> None:
        self.backend = backend
        self.credential = credential
        self._settings = settings
        self._slots = slots
        self._opener = opener
        self._spawn = spawn
        self.observer = observer
        self._idle: list[Session] = []  # longest idle first
        self._busy: set[Session] = set()
        self._opening = 0
        self._waiters: deque[_Waiter] = deque()
        self._failures = 0
        self._paused_until = 0.0
        self._closed = False
        slots.add(self)

    def __repr__(self) -> str:
        counts = " ".join(f"{name}={count}" for name, count in self.statistics()._asdict().items())
        failing = f" failing for the {self._failures}. time" if self._failures else ""
        return f"<Pool {self.backend} as {self.credential}: {counts}{failing}>"

    def statistics(self) -> PoolStatistics:
        """The pool's counts, now."""
        return PoolStatistics(len(self._idle), len(self._busy), self._opening, len(self._waiters))

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to open a session failed."""
        return self._failures > 0

    @property
    def has_room(self) -> bool:
        """Whether a request would find a session idle, or could have one opened."""
        return bool(self._idle) or (not self._waiters and self._slots.has_room())

    @property
    def waiting_since(self) -> float:
        """When the first waiter that no opening session is meant for began to wait, in trio's time; or infinity."""
        return self._waiters[self._opening].since if len(self._waiters) > self._opening else float("inf")

    # Lending ---------------------------------------------------------------------------------------------------------

    def take(self) -> Session | None:
        """Lend the session used last that is still alive, or None. It must be given back."""
        now = trio.current_time()
        while self._idle:
            session = self._idle.pop()
            if now >= session.expires_at:
                self._discard(session, "lifetime")
            elif not session.is_quiet():
                self._discard(session, "remote_idle")
            else:
                self._busy.add(session)
                return session
        return None

    async def wait(self) -> Session:
        """Wait in turn for a session; it must be given back.

        Raises PoolBusyError where too many wait already, BackendError (CONNECT) where none can be opened. How long to
        wait is the caller's affair.
        """
        if self._closed:
            raise self._error("the gateway is shutting down", "draining")
        if len(self._waiters) >= self._settings.queue_length:
            raise PoolBusyError(
                f"{self.backend}: {len(self._waiters)} requests are waiting already", reason="queue_full"
            )
        waiter = _Waiter()
        self._waiters.append(waiter)
        self.open_if_wanted()
        try:
            await waiter.done.wait()
        except BaseException:
            if waiter.session is not None:
                self.give_back(waiter.session)
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
        if waiter.session is None:
            raise waiter.error or self._error("no session", "draining")
        return waiter.session

    def give_back(self, session: Session) -> None:
        """Take back what was lent: keep it if its exchange ended properly, throw it away if not."""
        self._busy.discard(session)
        if session.state is not State.IDLE:
            self._discard(session, "remote_busy" if session.state is State.CLOSED else "error")
        elif self._closed:
            self._discard(session, "drain")
        elif trio.current_time() >= session.expires_at:
            self._discard(session, "lifetime")
        elif self._slots.owed_by(self):
            self._discard(session, "yielded")
        else:
            self._offer(session)

    def _offer(self, session: Session) -> None:
        """Hand an idle session to the first waiter, or keep it."""
        if self._waiters:
            waiter = self._waiters.popleft()
            self._busy.add(session)
            waiter.session = session
            waiter.done.set()
        else:
            session.idle_since = trio.current_time()
            self._idle.append(session)

    def _discard(self, session: Session, reason: str) -> None:
        session.close()
        self.observer.session_closed(reason)
        self._slots.give_back(self)

    # Opening ---------------------------------------------------------------------------------------------------------

    def open_if_wanted(self) -> None:
        """Begin to open a session for every waiter that none is being opened for, within the bounds.

        Towards a backend that failed there is one attempt at a time, and its outcome is everybody's.
        """
        at_once = 1 if self._failures else _OPENING_AT_ONCE
        while self._opening < min(len(self._waiters), at_once) and self._begin_to_open():
            pass

    def _begin_to_open(self) -> bool:
        if self._closed or not self._slots.take(self):
            return False
        self._opening += 1
        self._spawn(self._open)
        return True

    async def _open(self) -> None:
        began = trio.current_time()
        error: BackendError | None = None
        session: Session | None = None
        try:
            with trio.move_on_after(self._settings.connect_deadline) as scope:
                session = await self._opener()
            if scope.cancelled_caught:
                error = self._error(f"no session within {self._settings.connect_deadline:g} s", "timeout")
        except BackendError as failure:
            error = failure
        finally:
            self._opening -= 1
            if session is None:
                self._slots.give_back(self)
        if session is not None:
            self._opened(session, trio.current_time() - began)
        elif error is not None:
            self._failed(error)

    def _opened(self, session: Session, seconds: float) -> None:
        self._failures = 0
        spread = 1 - self._settings.lifetime_spread * random.random()  # noqa: S311 - spreads load, hides nothing
        session.expires_at = trio.current_time() + self._settings.max_lifetime * spread
        self.observer.session_opened(seconds)
        if self._closed:
            self._discard(session, "drain")
            return
        self._offer(session)
        self.open_if_wanted()

    def _failed(self, error: BackendError) -> None:
        """Pause; and where no session is left that could serve them, let the waiters go and try elsewhere."""
        pause = min(_PAUSE_LONGEST, _PAUSE_FIRST * _PAUSE_FACTOR**self._failures)
        self._paused_until = trio.current_time() + pause * random.uniform(0.5, 1)  # noqa: S311 - as above
        self._failures = min(self._failures + 1, 32)
        self.observer.session_open_failed(error)
        if not self._busy and not self._opening:
            self._dismiss_waiters(error)

    def _dismiss_waiters(self, error: BackendError) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            waiter.error = self._error(error.args[0], error.reason)  # one each: a raised error keeps its traceback
            waiter.done.set()

    def _error(self, message: str, reason: str) -> BackendError:
        return BackendError(message, backend=self.backend, stage=Stage.CONNECT, reason=reason)

    # Tending ---------------------------------------------------------------------------------------------------------

    def tend(self) -> list[Session]:
        """Do what time asks for: close what is old or gone, open what is missing; to be called now and then.

        Returns the sessions that should prove themselves alive. They are lent: each is given back after an exchange.
        """
        now = trio.current_time()
        idle, self._idle = self._idle, []
        surplus = len(idle) - self._settings.min_idle
        lent = []
        for place, session in enumerate(idle):
            reason = self._reason_to_close(session, now, surplus=place < surplus)
            if reason:
                self._discard(session, reason)
            elif now - session.idle_since >= self._settings.idle_timeout * _KEEP_ALIVE_AT:
                self._busy.add(session)
                lent.append(session)
            else:
                self._idle.append(session)
        if now >= self._paused_until:
            self._open_what_is_missing()
        return lent

    def _reason_to_close(self, session: Session, now: float, *, surplus: bool) -> str | None:
        if now >= session.expires_at:
            return "lifetime"
        if not session.is_quiet():
            return "remote_idle"
        if surplus and now - session.idle_since >= self._settings.idle_timeout:
            return "idle"
        return None

    def _open_what_is_missing(self) -> None:
        """Keep ``min_idle`` sessions; and try a backend that failed again, so that no client has to find out."""
        self.open_if_wanted()
        wanted = 1 if self._failures else self._settings.min_idle - len(self._idle) - len(self._busy)
        while self._opening < wanted and self._begin_to_open():
            pass

    def close_oldest_idle(self) -> bool:
        """Close the session that has been idle longest; False without one."""
        if not self._idle:
            return False
        self._discard(self._idle.pop(0), "yielded")
        return True

    def close(self) -> None:
        """Close what is idle, lend nothing more; what is lent is closed when it comes back."""
        self._closed = True
        while self._idle:
            self._discard(self._idle.pop(), "drain")
        self._dismiss_waiters(self._error("the gateway is shutting down", "draining"))
