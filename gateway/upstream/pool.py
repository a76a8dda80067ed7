"""Pool: the sessions of one backend and credential, lent for the length of one exchange.

Newest first, so that what is not needed grows old and goes. Who finds none waits in turn, for whichever comes first: a
session given back, or one opened in the background; a waiter that leaves does not waste it. Everything that decides is
a plain function; only ``wait`` and the opening of sessions wait.
"""

import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, NamedTuple, Protocol

import trio

from gateway.alarm import Alarms
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request
from gateway.upstream.health import Breaker
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.queue import FairQueue
from gateway.upstream.session import PROBES, Opener, Session, Site, State
from gateway.upstream.slots import Slots

_OPENING_AT_ONCE: Final = 8  # handshakes towards one backend under way for one credential, when all is well
_IDLE: Final = State.IDLE  # a member of an enumeration is slow to come by
_DEFAULT_PROBE: Final = decode_request(PROBES["discover-versions"])
_BREATH: Final = 0.1  # s without opening when this process is out of descriptors or memory
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

    def ejected(self) -> None:
        """Exchanges failed in a row: the backend is left alone for a while."""

    def idle_limit_learned(self, limit: IdleLimit) -> None:
        """The backend closes idle sessions earlier than the settings suppose."""


class _Waiter:
    """Somebody who waits for a session, and what came of it."""

    __slots__ = ("done", "error", "principal", "session", "since")

    def __init__(self, principal: Hashable) -> None:
        self.done = trio.Event()
        self.principal = principal
        self.since = trio.current_time()
        self.session: Session | None = None
        self.error: BackendError | PoolBusyError | None = None


class PoolStatistics(NamedTuple):
    """How many sessions are in which state, and how many wait."""

    idle: int
    busy: int
    opening: int
    waiting: int


class Pool:
    """Lends sessions. ``spawn`` starts a background task in a nursery that outlives the pool's use.

    ``probe`` is the cheap request with which a session proves itself alive; ``idle_limit`` and ``site`` are the
    backend's, shared by its pools. The breaker tells whether requests should come here at all.

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
        breaker: Breaker | None = None,
        idle_limit: IdleLimit | None = None,
        probe: Request = _DEFAULT_PROBE,
        site: Site | None = None,
    ) -> None:
        self.backend = backend
        self.credential = credential
        self._settings = settings
        self._slots = slots
        self.opener = opener
        self._spawn = spawn
        self.observer = observer
        self.probe = probe
        self.answered_at = float("-inf")
        self.alarms = Alarms(spawn)
        self._breaker = breaker or Breaker()
        self._idle_limit = idle_limit or IdleLimit(settings.idle_timeout)
        self._site = site or Site()
        self._idle: list[Session] = []  # longest idle first
        self._busy: set[Session] = set()
        self._opening = 0
        self._waiters: FairQueue[_Waiter] = FairQueue()
        self._pace = _OPENING_AT_ONCE
        self._breathes_until = float("-inf")
        self._timed_out = False
        self._closed = ""  # or why
        slots.add(self)

    def __repr__(self) -> str:
        counts = " ".join(f"{name}={count}" for name, count in self.statistics()._asdict().items())
        failing = " failing" if self.is_failing else ""
        return f"<Pool {self.backend} as {self.credential}: {counts}{failing}>"

    def statistics(self) -> PoolStatistics:
        """The pool's counts, now."""
        return PoolStatistics(len(self._idle), len(self._busy), self._opening, len(self._waiters))

    @property
    def is_failing(self) -> bool:
        """Whether requests should rather go elsewhere: no session could be opened, or exchanges failed in a row."""
        return self._breaker.is_open

    @property
    def is_silent(self) -> bool:
        """Whether it is failing because nothing came back in time: what waits for an answer here waits in vain."""
        return self._breaker.is_open and self._timed_out

    @property
    def failing_since(self) -> float:
        """When that began, in trio's time."""
        return self._breaker.opened_at

    @property
    def has_room(self) -> bool:
        """Whether a request would find a session idle, or could have one opened."""
        return bool(self._idle) or (not self._waiters and self._slots.has_room())

    @property
    def waiting_since(self) -> float:
        """When the first waiter that a session should be opened for, and is not, began to wait, in trio's time; or
        infinity.
        """
        return self._waiters.since(self._opening) if self._missing() > 0 else float("inf")

    # Lending ---------------------------------------------------------------------------------------------------------

    def take(self) -> Session | None:
        """Lend the session used last that is still alive, or None. It must be given back.

        Whether it is too old is asked when it comes back, and in between by ``tend``.
        """
        while self._idle:
            session = self._idle.pop()
            if session.is_quiet():
                self._busy.add(session)
                return session
            self._closed_by_peer(session, trio.current_time())
        return None

    async def wait(self, principal: Hashable = None) -> Session:
        """Wait in turn for a session; it must be given back. Turns are taken between principals.

        Raises PoolBusyError where too many wait already, BackendError (CONNECT) where none can be opened. How long to
        wait is the caller's affair.
        """
        if self._closed:
            raise self._error(CLOSED[self._closed], self._closed)
        waiter = _Waiter(principal)
        self._waiters.append(waiter)
        try:
            self.open_if_wanted()
            self._check_queue(waiter)
            await waiter.done.wait()
        except BaseException:
            if waiter.session is not None:
                self.give_back(waiter.session)
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
        if waiter.session is None:
            raise waiter.error or self._error("no session", "drain")
        return waiter.session

    def _check_queue(self, newcomer: _Waiter) -> None:
        """Those for whom a session is being opened are not queueing. A full queue is full for those who fill it."""
        queueing = len(self._waiters) - self._opening
        if queueing <= self._settings.queue_length:
            return
        full = PoolBusyError(f"{self.backend}: {queueing - 1} requests are waiting already", reason="queue_full")
        other = self._waiters.newest_of_the_longest(newcomer.principal)
        if other is None:
            raise full
        self._waiters.remove(other)
        other.error = full
        other.done.set()

    def give_back(self, session: Session, now: float | None = None) -> None:
        """Take back what was lent: keep it if its exchange ended properly, throw it away if not.

        ``now`` is the time, in trio's seconds, where the caller has just looked at the clock.
        """
        self._busy.remove(session)  # raises where it is not lent: given back twice, it would be lent twice
        now = trio.current_time() if now is None else now
        if session.state is not _IDLE:
            self._discard(session, "remote_busy" if session.state is State.CLOSED else "error")
        elif self._closed:
            self._discard(session, self._closed)
        elif now >= session.expires_at:
            self._discard(session, "lifetime")
        elif self._slots.owed_by(self):
            self._discard(session, "yielded")
        else:
            self._offer(session, now)

    def answered(self, now: float) -> None:
        """A client's request was answered here, at this time."""
        self.answered_at = now
        self._breaker.answered()

    def exchange_failed(self) -> None:
        """An exchange failed in a way that speaks against the backend."""
        if self._breaker.exchange_failed(trio.current_time()):
            self.observer.ejected()
            self.drop_idle("ejected")

    def drop_idle(self, reason: str) -> None:
        """Close all idle sessions: they are believed to be dead, or their backend to be."""
        while self._idle:
            self._discard(self._idle.pop(), reason)

    def interrupt_repeatable(self) -> None:
        """Close the lent sessions whose request may be repeated elsewhere, so that it is."""
        for session in self._busy:
            if session.is_repeatable:
                session.close()

    def _offer(self, session: Session, now: float) -> None:
        """Hand an idle session to the first waiter, or keep it. As in ``take``, only a quiet one is lent."""
        if not self._waiters:
            session.idle_since = now
            self._idle.append(session)
        elif not session.is_quiet():
            self._discard(session, "remote_idle")  # it was not idle, so that this teaches nothing
        else:
            waiter = self._waiters.popleft()
            self._busy.add(session)
            waiter.session = session
            waiter.done.set()

    def _closed_by_peer(self, session: Session, now: float) -> None:
        if self._idle_limit.closed_by_peer(now - session.idle_since, now):
            self.observer.idle_limit_learned(self._idle_limit)
        self._discard(session, "remote_idle")

    def _discard(self, session: Session, reason: str) -> None:
        self._end(session, reason)
        self._slots.give_back(self)

    def _end(self, session: Session, reason: str) -> None:
        session.close()
        self.observer.session_closed(reason)

    # Opening ---------------------------------------------------------------------------------------------------------

    def open_if_wanted(self) -> None:
        """Begin to open a session for every waiter that none is being opened for, within the bounds."""
        while self._missing() > 0 and self._begin_to_open():
            pass

    def _missing(self) -> int:
        """How many more sessions should be being opened for those who wait."""
        return min(len(self._waiters), self._at_once()) - self._opening

    def _at_once(self) -> int:
        """Attempts for waiters that may be under way together.

        Towards a backend that failed it is one, whose outcome is everybody's; and none during the pause, as long as
        those who wait may still get what is lent. Towards one that has come back it is one more with each success.
        """
        if not self._breaker.is_open:
            return self._pace
        return 0 if self._busy and not self._breaker.may_try(trio.current_time()) else 1

    def _begin_to_open(self) -> bool:
        if self._closed or trio.current_time() < self._breathes_until or not self._slots.take(self):
            return False
        self._opening += 1
        self._spawn(self._open)
        return True

    async def _open(self) -> None:
        began = trio.current_time()
        try:
            outcome = await self._attempt()
        except BaseException:  # the nursery in which sessions are opened ends, and with it the pool
            self._opening -= 1
            self.close()
            self._slots.give_back(self)
            raise
        self._opening -= 1
        if isinstance(outcome, Session):
            self._opened(outcome, trio.current_time() - began)
        else:
            self._failed(outcome)

    async def _attempt(self) -> Session | BackendError:
        try:
            with trio.move_on_after(self._settings.connect_deadline):
                return await self.opener()
        except BackendError as error:
            return error
        except Exception as error:  # noqa: BLE001 - what is odd about one backend must not end the gateway
            return self._error(f"{type(error).__name__}: {error}", "unexpected")
        return self._error(f"no session within {self._settings.connect_deadline:g} s", "timeout")

    def _opened(self, session: Session, seconds: float) -> None:
        self._breaker.session_opened()
        self._pace = min(self._pace + 1, _OPENING_AT_ONCE)
        spread = 1 - self._settings.lifetime_spread * random.random()  # noqa: S311 - spreads load, hides nothing
        now = trio.current_time()
        session.expires_at = now + self._settings.max_lifetime * spread
        self.observer.session_opened(seconds)
        if self._closed:
            self._discard(session, self._closed)
            return
        if self._site.is_of(session):
            self._offer(session, now)
        else:
            self._discard(session, "gone")
        self.open_if_wanted()

    def _failed(self, error: BackendError) -> None:
        """Pause; and let those waiters go and try elsewhere whom no session that is lent or being opened could serve.

        The pause comes before the place is given back: whoever gets it must know. What this process is out of is not
        the backend's fault.
        """
        now = trio.current_time()
        if error.reason == "resources":
            self._breathes_until = now + _BREATH
        else:
            if self._breaker.may_try(now):  # attempts that fail together are one failure
                self._breaker.could_not_open(now)
            self._pace = 1
            self._timed_out = error.reason == "timeout"
        self.observer.session_open_failed(error)
        if not self._busy:
            self._dismiss_waiters(error, keep=self._opening)
        self._slots.give_back(self)

    def _dismiss_waiters(self, error: BackendError, *, keep: int = 0) -> None:
        """Let waiters go, those who have waited longest first: it was for them that the attempt began."""
        while len(self._waiters) > keep:
            waiter = self._waiters.oldest()
            self._waiters.remove(waiter)
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
        surplus = len(idle) + len(self._busy) - self._settings.min_idle
        lent = []
        for place, session in enumerate(idle):
            reason = self._reason_to_close(session, now, surplus=place < surplus)
            if reason == "remote_idle":
                self._closed_by_peer(session, now)
            elif reason:
                self._discard(session, reason)
            elif place >= surplus and now - session.idle_since >= self._idle_limit.effective * _KEEP_ALIVE_AT:
                self._busy.add(session)
                lent.append(session)
            else:
                self._idle.append(session)
        self.open_if_wanted()
        if self._breaker.may_try(now):
            self._open_what_is_missing()
        return lent

    def _reason_to_close(self, session: Session, now: float, *, surplus: bool) -> str | None:
        if now >= session.expires_at:
            return "lifetime"
        if not session.is_quiet():
            return "remote_idle"
        if surplus and now - session.idle_since >= self._idle_limit.effective:
            return "idle"
        return None

    def _open_what_is_missing(self) -> None:
        """Keep ``min_idle`` sessions, where there is room; and try a backend that failed again, so that no client has
        to find out.
        """
        if self._breaker.is_open:
            if not self._opening:
                self._begin_to_open()
            return
        wanted = self._settings.min_idle - len(self._idle) - len(self._busy)
        while self._opening < wanted and self._slots.has_room() and self._begin_to_open():
            pass

    def close_oldest_idle(self, since: float) -> bool:
        """Close the session that has been idle longest, if it has been since then; its place is the caller's."""
        if not self._idle or self._idle[0].idle_since > since:
            return False
        self._end(self._idle.pop(0), "yielded")
        return True

    def moved(self) -> None:
        """The backend is somewhere else by now: what leads to where it was is not lent any more."""
        idle, self._idle = self._idle, []
        for session in idle:
            if self._site.is_of(session):
                self._idle.append(session)
            else:
                self._discard(session, "gone")
        for session in self._busy:
            if not self._site.is_of(session):
                session.expires_at = float("-inf")

    def close(self, why: str = "drain") -> None:
        """Close what is idle, lend nothing more; what is lent is closed when it comes back. ``why`` is of CLOSED."""
        self._closed = why
        self.drop_idle(why)
        self._dismiss_waiters(self._error(CLOSED[why], why))


#: Why a pool may be closed, and what is said to those who wait.
CLOSED: Final = {"drain": "the gateway is shutting down", "gone": "its address is not the key manager's any more"}
