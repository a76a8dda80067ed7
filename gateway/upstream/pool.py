"""Pool: the sessions of one backend and credential, lent for the length of one exchange.

The session used last is lent first, so that surplus sessions grow old and are closed. A request that finds no idle
session waits in turn, for a session that is given back or for one that is opened in the background, whichever comes
first. Slots decide when a session may be opened. Everything that decides is a plain function; only ``wait`` and
``_open`` wait.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from typing import Final, NamedTuple, Protocol

import trio

from gateway.alarm import Alarms
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request
from gateway.policy import Effect
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.opening import REFUSED, Opening, Spawn
from gateway.upstream.queue import FairQueue
from gateway.upstream.session import PROBES, Opener, Session, Site, State
from gateway.upstream.slots import Slots

_IDLE: Final = State.IDLE  # access to an enum member is slow
_TOUCH: Final = Effect.TOUCH
_DEFAULT_PROBE: Final = decode_request(PROBES["discover-versions"])
_KEEP_ALIVE_AT: Final = 0.8  # of idle_timeout: when a session that is kept warm is used, so that no peer drops it
_SOON: Final = 0.25  # s in which nearly all exchanges end
_NO_REFUSAL: Final = frozenset(
    {"connect", "timeout", "resources"}
)  # reasons of failed attempts that tell of no limit of sessions
_SEEN: Final = 60.0  # s for which a principal counts as one that may come back
_PRINCIPALS: Final = 1000  # that are remembered for that
_RESERVE: Final = 8  # one of so many slots is left to other principals
_HALVES: Final = 2  # a principal that holds one half of the slots leaves the last ones to others


class PoolSettings(NamedTuple):
    """Times in seconds; ``lifetime_spread`` is the fraction of max_lifetime over which ends are spread.

    ``max_pause`` bounds the time without attempts after a credential was refused.
    """

    min_idle: int = 1
    idle_timeout: float = 25.0
    max_lifetime: float = 3600.0
    lifetime_spread: float = 0.1
    queue_length: int = 1000
    connect_deadline: float = 3.0
    max_pause: float = 30.0


class Observer(Protocol):
    """Told about the sessions of a backend: the metrics, the log."""

    def session_opened(self, seconds: float) -> None:
        """A session was opened, in so many seconds."""

    def session_open_failed(self, error: BackendError) -> None:
        """A session could not be opened."""

    def session_closed(self, reason: str) -> None:
        """A session was closed, for a reason of a closed set."""

    def exchanged(self, result: str, seconds: float) -> None:
        """An exchange for a client ended: ``answered``, or stage and reason of its failure."""

    def ejected(self, credential: str, effect: Effect) -> None:
        """Exchanges failed in a row: requests of this kind go elsewhere; credential "" stands for all."""

    def idle_limit_learned(self, limit: IdleLimit) -> None:
        """The backend closes idle sessions earlier than the settings suppose."""

    def ceiling_learned(self, ceiling: int, limit: int) -> None:
        """The backend allows fewer sessions than the settings do."""


class _Waiter:
    """A request that waits for a session, and the outcome."""

    __slots__ = ("done", "effect", "error", "principal", "session", "since")

    def __init__(self, principal: Hashable, effect: Effect | None) -> None:
        self.done = trio.Event()
        self.principal = principal
        self.effect = effect
        self.since = trio.current_time()
        self.session: Session | None = None
        self.error: BackendError | PoolBusyError | None = None


class PoolStatistics(NamedTuple):
    """How many sessions are in which state, and how many requests wait."""

    idle: int
    busy: int
    opening: int
    waiting: int


class Pool:
    """Lends sessions. ``spawn`` starts a background task in a nursery that outlives the pool's use.

    ``probe`` is the cheap request that validates a session; ``idle_limit``, ``slots`` and ``site`` are the backend's,
    shared by its pools. ``answered_at`` is the time of the last answer to a client; ``reopened`` are events to be set
    when a session opens.

    Invariants: idle, busy and opening together hold exactly the slots taken; no request waits while a session is idle.
    """

    def __init__(
        self,
        backend: str,
        credential: str,
        settings: PoolSettings,
        *,
        slots: Slots,
        opener: Opener,
        spawn: Spawn,
        observer: Observer,
        idle_limit: IdleLimit | None = None,
        probe: Request = _DEFAULT_PROBE,
        site: Site | None = None,
    ) -> None:
        self.backend = backend
        self.credential = credential
        self.opener = opener
        self.spawn = spawn
        self.observer = observer
        self.probe = probe
        self.alarms = Alarms(spawn)
        self.answered_at = float("-inf")
        self.opening = Opening(
            backend,
            opener,
            slots.gate,
            probe,
            connect_deadline=settings.connect_deadline,
            max_pause=settings.max_pause,
        )
        self._settings = settings
        self._slots = slots
        self._gate = slots.gate
        self._idle_limit = idle_limit or IdleLimit(settings.idle_timeout)
        self.site = site or Site()
        self._idle: list[Session] = []  # longest idle first
        self._busy: set[Session] = set()
        self._waiters: FairQueue[_Waiter] = FairQueue()
        self._seen: dict[Hashable, float] = {}  # principals, and when each was first lent a session after another
        self.reopened: set[trio.Event] = set()  # to be set when a session opens
        self._validating: set[Session] = set()  # busy sessions that no client uses
        self._used_at = float("-inf")  # time at which a client last gave a session back, or one was opened
        self._closed = ""  # or why

    def __repr__(self) -> str:
        counts = " ".join(f"{name}={count}" for name, count in self.statistics()._asdict().items())
        failing = " failing" if self.is_failing else ""
        return f"<Pool {self.backend} as {self.credential}: {counts}{failing}>"

    def statistics(self) -> PoolStatistics:
        """Return the pool's counts."""
        return PoolStatistics(len(self._idle), len(self._busy), self.opening.under_way, len(self._waiters))

    @property
    def is_failing(self) -> bool:
        """True if requests should rather go elsewhere: no session is idle, none opens, and none has answered since."""
        opening = self.opening
        if opening.failure is None:
            return self._gate.failure is not None and not self._idle and not self._busy
        return not self._idle and self.answered_at <= opening.failed_at

    @property
    def failing_since(self) -> float:
        """Time since which sessions can't be opened; infinity if the last attempt succeeded."""
        return min(self.opening.failing_since, self._slots.gate.failing_since)

    @property
    def is_silent(self) -> bool:
        """True if it is failing since nothing comes back: an exchange that is under way is overdue already."""
        failure = self.opening.failure
        return failure is not None and failure.reason == "timeout" and self.answered_at <= self.opening.failed_at

    @property
    def has_room(self) -> bool:
        """True if a request would find a session idle, or could have one opened."""
        return bool(self._idle) or (not self._waiters and self._slots.has_room())

    @property
    def waiting_since(self) -> float:
        """Time at which the longest-waiting request without a session being opened began to wait; or infinity."""
        return self._waiters.since(self.opening.under_way) if self.needs_session else float("inf")

    @property
    def idle_since(self) -> float:
        """Time at which clients last used a session of this pool; infinity if none is idle."""
        return self._used_at if self._idle else float("inf")

    # Lending ---------------------------------------------------------------------------------------------------------

    def take(self, principal: Hashable = None) -> Session | None:
        """Lend the session used last that is still alive, or return None. It must be given back.

        ``tend`` and ``give_back`` see to sessions that are too old.
        """
        while self._idle:
            session = self._idle.pop()
            if session.is_quiet():
                self._busy.add(session)
                if session.principal is not principal:
                    self._note(session, principal)
                return session
            self._closed_by_peer(session, trio.current_time())
        return None

    def _note(self, session: Session, principal: Hashable) -> None:
        """Note the principal that a session is lent to, after another one."""
        session.principal = principal
        self._seen[principal] = trio.current_time()
        if len(self._seen) > _PRINCIPALS:
            del self._seen[next(iter(self._seen))]

    async def wait(self, principal: Hashable = None, effect: Effect | None = None) -> Session:
        """Wait in turn for a session; it must be given back. Turns are taken between principals.

        ``effect`` is that of a request that may as well wait at another backend. Raises PoolBusyError if too many
        requests wait already, BackendError (CONNECT) if no session can be opened. The caller bounds the time.
        """
        if self._closed:
            raise self._error(CLOSED[self._closed], self._closed)
        known = None if self._busy else self.opening.known_failure(trio.current_time())
        if known is not None:
            raise self._error(known.args[0], known.reason)
        waiter = _Waiter(principal, effect)
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
        """Refuse a request if the queue is full: one of the principal that fills it.

        Requests for which a session is being opened do not count.
        """
        queueing = len(self._waiters) - self.opening.under_way
        if queueing <= self._settings.queue_length:
            return
        full = PoolBusyError(f"{self.backend}: {queueing - 1} requests are waiting already", reason="queue_full")
        other = self._waiters.newest_of_the_longest(newcomer.principal)
        if other is None:
            raise full
        self._release_waiter(other, full)

    def _release_waiter(self, waiter: _Waiter, error: BackendError | PoolBusyError) -> None:
        self._waiters.remove(waiter)
        waiter.error = error
        waiter.done.set()

    def give_back(self, session: Session, now: float | None = None) -> None:
        """Take back what was lent: keep it if its exchange ended properly, else close it.

        ``now`` is the time, in trio's seconds, if the caller has just looked at the clock.
        """
        self._busy.remove(session)  # raises if it is not lent: given back twice, it would be lent twice
        session.is_repeatable = (
            False  # until the next request says so; its client may not be taken for that of the last
        )
        now = trio.current_time() if now is None else now
        if self._validating and session in self._validating:
            self._validating.discard(session)
        else:
            self._used_at = now
        if session.is_abandoned:
            self._slots.returned(session)
        if session.state is not _IDLE:
            self._discard(session, session.fault or ("remote_busy" if session.state is State.CLOSED else "error"))
        elif self._closed:
            self._discard(session, self._closed)
        elif now >= session.expires_at:
            self._discard(session, "lifetime")
        elif self._slots.should_yield(self):
            self._discard(session, "yielded")
        else:
            session.is_reused = True
            self._offer(session, now)

    def abandon(self, session: Session) -> None:
        """Nobody awaits this busy session's answer any more: it may be closed as soon as its slot is needed."""
        if self._closed:
            session.close()
        elif session in self._busy:
            self._slots.abandon(session, self)

    def doubt(self, idle_since: float) -> list[Session]:
        """Lend the sessions that have been idle since then, or longer, to be validated before a request uses them."""
        doubtful = [session for session in self._idle if session.idle_since <= idle_since]
        self._idle = [session for session in self._idle if session.idle_since > idle_since]
        self._busy.update(doubtful)
        self._validating.update(doubtful)
        return doubtful

    def drop_closed(self) -> None:
        """Close the idle sessions that the key manager has closed, and no others."""
        idle, self._idle = self._idle, []
        now = trio.current_time()
        for session in idle:
            if session.is_quiet():
                self._idle.append(session)
            else:
                self._closed_by_peer(session, now)

    def drop_idle(self, reason: str) -> None:
        """Close all idle sessions: their backend is believed to be dead."""
        while self._idle:
            self._discard(self._idle.pop(), reason)

    def interrupt_repeatable(self) -> None:
        """Close the lent sessions whose request may be repeated elsewhere, so that it is."""
        for session in list(self._busy):
            if session.is_repeatable:
                session.close()

    def hasten_repeatable(self) -> None:
        """Treat the lent sessions whose request may be repeated elsewhere as overdue.

        If nobody awaits the answer any more, the alarm of a session ends its exchange: it must not come early.
        """
        now = trio.current_time()
        for session in self._busy:
            if session.is_repeatable and not session.is_abandoned and session.alarm.due > now:
                self.alarms.set(session.alarm, now, session.alarm.ring)

    def close_disconnected(self) -> None:
        """Close the lent sessions whose request may be repeated and whose client has disconnected.

        An exchange that has just begun is left to end: that is sooner than a handshake.
        """
        since = trio.current_time() - _SOON
        for session in list(self._busy):
            if session.is_repeatable and session.exchanging_since <= since and session.client_has_left():
                session.close()

    def _offer(self, session: Session, now: float, passed_over: Collection[Hashable] = ()) -> None:
        """Hand an idle session to the first waiting request, or keep it. As in ``take``, only a quiet one is lent.

        Principals in ``passed_over`` come last.
        """
        if not self._waiters:
            session.idle_since = now
            self._idle.append(session)
        elif not session.is_quiet():
            self._closed_by_peer(session, now, was_idle=False)
        else:
            waiter = self._waiters.popleft(passed_over)
            self._busy.add(session)
            self._note(session, waiter.principal)
            waiter.session = session
            waiter.done.set()

    def _closed_by_peer(self, session: Session, now: float, *, was_idle: bool = True) -> None:
        """Close a session that is not quiet: the key manager has closed it, or sent what nobody asked for.

        How long a session was idle teaches the idle limit only if the key manager has closed it.
        """
        if session.fault or session.is_flooded:
            self._discard(session, session.fault or "records")
            return
        is_lesson = not self.opening.died(session, now) and was_idle
        if is_lesson and self._idle_limit.closed_by_peer(now - session.idle_since, now):
            self.observer.idle_limit_learned(self._idle_limit)
        self._discard(session, "remote_idle")

    def _discard(self, session: Session, reason: str) -> None:
        if session.fault:
            self.site.distrust(trio.current_time())
        self._end(session, reason)
        self._slots.release(self)
        if not self._waiters or self._busy:
            return
        known = self.opening.known_failure(trio.current_time())
        if known is None:
            self.open_if_wanted()
        else:  # no session comes back that they could wait for
            self.release_waiters(known, keep=self.opening.under_way)

    def _end(self, session: Session, reason: str) -> None:
        session.close()
        self.observer.session_closed(reason)

    # Opening ---------------------------------------------------------------------------------------------------------

    @property
    def needs_session(self) -> bool:
        """True if a session should be opened for a waiting request."""
        missing = len(self._waiters) - self.opening.under_way
        if missing <= 0 or self._closed:
            return False
        now = trio.current_time()
        return self.opening.may_try(now) and missing > self._left_out(now)

    @property
    def needs_warm_session(self) -> bool:
        """True if a session should be opened to keep ``min_idle``, or to find out if a failure is over."""
        if self._closed or not self.opening.may_try(trio.current_time()):
            return False
        if self.opening.failure is not None:
            return True
        there = len(self._idle) + len(self._busy) + self.opening.under_way
        return there < self._settings.min_idle

    def _left_out(self, now: float) -> int:
        """Return how many waiting requests get none of the last slots, which are left to other principals."""
        greedy = self._greedy()
        if not greedy:
            return 0
        is_alone = len(greedy) == len(self._waiters.principals())
        if is_alone and not any(now - seen <= _SEEN and one not in greedy for one, seen in self._seen.items()):
            return 0
        return sum(map(self._waiters.count, greedy))

    def _greedy(self) -> list[Hashable]:
        """Return the principals that wait and hold half of the slots each, if few slots are free.

        If only one principal waits, the sessions that are being opened are for it.
        """
        limit = self._slots.limit
        if limit < _RESERVE or limit - self._slots.used > max(1, limit // _RESERVE):
            return []
        waiting = self._waiters.principals()
        own = self.opening.under_way if len(waiting) == 1 else 0
        if len(self._busy) + own < limit // _HALVES:
            return []
        held = Counter(session.principal for session in self._busy)
        if own:
            held.update({next(iter(waiting)): own})
        return [one for one, number in held.items() if number >= limit // _HALVES and self._waiters.has(one)]

    def open_if_wanted(self) -> None:
        """Queue for a slot if requests wait for which no session is being opened."""
        if self.needs_session:
            self._slots.want(self)

    def begin_to_open(self) -> None:
        """Open a session in the slot that was just taken."""
        self.opening.under_way += 1
        self.spawn(self._open)

    async def _open(self) -> None:
        began = trio.current_time()
        try:
            outcome = await self.opening.attempt()
        except BaseException:  # the nursery in which sessions are opened ends, and with it the pool
            self.opening.under_way -= 1
            self.close()
            self._slots.not_opened(self)
            raise
        self.opening.under_way -= 1
        if isinstance(outcome, Session):
            self._opened(outcome, trio.current_time() - began)
        else:
            self._failed(outcome, began)
            self._slots.not_opened(self)

    def _opened(self, session: Session, seconds: float) -> None:
        self.opening.opened()
        spread = 1 - self._settings.lifetime_spread * random.random()  # noqa: S311 - spreads load, hides nothing
        now = trio.current_time()
        session.expires_at = now + self._settings.max_lifetime * spread
        self._used_at = now
        self.observer.session_opened(seconds)
        for event in self.reopened:
            event.set()
        if self._closed:
            self._discard(session, self._closed)
        elif self.site.is_of(session):
            self._offer(session, now, self._greedy())
        else:
            self._discard(session, "removed")
        self._slots.opened(seconds)
        self.open_if_wanted()

    def _failed(self, error: BackendError, began: float) -> None:
        """Pause, and let waiting requests try elsewhere unless a session that is lent may still serve them.

        The pause begins before the slot is free: the next pool to have it must know. A failure beside sessions that
        have answered since the attempt ``began`` means that the key manager allows no more sessions; but not a refused
        connection, which is a restart, nor an attempt that took too long, since a slow key manager answers late, too.
        """
        now = trio.current_time()
        sessions = self._slots.used - self._slots.gate.under_way
        serves = self.answered_at > began and error.reason not in _NO_REFUSAL
        if serves and sessions and self._slots.ceiling.refused(sessions, began, now):
            self.observer.ceiling_learned(sessions, self._slots.limit)
        self.opening.failed(error, now)
        self.observer.session_open_failed(error)
        self.fail_waiters(error)
        if error.reason not in REFUSED:
            self._slots.fail_waiting(error)

    def fail_waiters(self, error: BackendError) -> None:
        """Let waiting requests try elsewhere, unless a session that is lent or being opened may still serve them.

        Those that have waited longest go first: the attempt began for them.
        """
        if not self._busy:
            self.release_waiters(error, keep=self.opening.under_way)

    def release_waiters(self, error: BackendError, *, keep: int = 0) -> None:
        """Let all requests but ``keep`` that wait try elsewhere."""
        while len(self._waiters) > keep:
            # Each gets an error of its own: a raised error keeps its traceback.
            self._release_waiter(self._waiters.oldest(), self._error(error.args[0], error.reason))

    def waits_since(self, since: float) -> bool:
        """Return True if a request has waited since then, or longer."""
        return bool(self._waiters) and self._waiters.oldest().since <= since

    def move_waiters(self, since: float, room: Callable[[Effect], int]) -> None:
        """Let requests that have waited since then, or longer, go to other backends.

        ``room`` tells how many requests of an effect others can serve at once.
        """
        moved: dict[bool, int] = {}
        for waiter in self._waiters.all():
            if waiter.since > since:
                return
            if waiter.effect is None:
                continue
            is_change = waiter.effect > _TOUCH
            left = moved.get(is_change, room(waiter.effect) if is_change not in moved else 0)
            if left > 0:
                self._release_waiter(waiter, self._error("another key manager has room", "moved"))
            moved[is_change] = left - 1

    @property
    def room(self) -> int:
        """How many requests could be served without a wait for others."""
        return len(self._idle) + (0 if self._waiters else self._slots.free)

    def _error(self, message: str, reason: str) -> BackendError:
        return BackendError(message, backend=self.backend, stage=Stage.CONNECT, reason=reason)

    # Maintenance -----------------------------------------------------------------------------------------------------

    def tend(self) -> list[Session]:
        """Close sessions that are old or closed, and queue for those that are missing; called now and then.

        Returns the sessions that should be validated. They are lent: each is given back after an exchange.
        """
        now = trio.current_time()
        if self.site.is_distrusted:
            self.site.trust_again(now)
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
                self._validating.add(session)
                lent.append(session)
            else:
                self._idle.append(session)
        if self.needs_warm_session:
            self._slots.want_warm(self)
        self.open_if_wanted()
        return lent

    def _reason_to_close(self, session: Session, now: float, *, surplus: bool) -> str | None:
        if now >= session.expires_at:
            return "lifetime"
        if not session.is_quiet():
            return _not_quiet(session)
        if surplus and now - session.idle_since >= self._idle_limit.effective:
            return "idle"
        return None

    def close_oldest_idle(self) -> None:
        """Close the session that has been idle longest; its slot is the caller's."""
        self._end(self._idle.pop(0), "yielded")

    def moved(self) -> None:
        """The backend has another address now: sessions to the old one are not lent any more."""
        idle, self._idle = self._idle, []
        for session in idle:
            if self.site.is_of(session):
                self._idle.append(session)
            else:
                self._discard(session, "removed")
        for session in self._busy:
            if not self.site.is_of(session):
                session.expires_at = float("-inf")

    def close(self, why: str = "drain") -> None:
        """Close idle sessions and lend nothing more; busy sessions are closed on return. ``why`` is of CLOSED."""
        self._closed = why
        self.drop_idle(why)
        self.release_waiters(self._error(CLOSED[why], why))
        for session in self._slots.forget(self):
            session.close()


#: Why a pool may be closed, and the message to waiting requests.
CLOSED: Final = {"drain": "the gateway is shutting down", "removed": "the key manager has left this address"}


def _not_quiet(session: Session) -> str:
    """Return why an idle session that is not quiet is closed, as a label."""
    return "records" if session.is_flooded else "remote_idle"
