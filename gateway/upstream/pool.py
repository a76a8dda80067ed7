"""Pool: the sessions of one backend and credential, each lent for one exchange.

The session used last is lent first, so that surplus sessions grow old and are closed. A request that finds no idle
session waits for its turn, and gets a session that is given back or one that is opened in the background, whichever
comes first. Slots decides when a session may be opened. Every decision is a plain function; only ``wait`` and ``_open``
wait.

The subjects that have files of their own: waiting.py (the requests that wait), reserve.py (fairness between principals
while few slots are free), opening.py (attempts to open a session, and the pauses after failures), slots.py (fairness
between pools).
"""

import random
from collections.abc import Collection, Hashable, Iterator
from typing import Final, NamedTuple, Protocol

import trio

from gateway.config import DeadlinesConfig, FailoverConfig, PoolConfig
from gateway.errors import BackendError, Stage
from gateway.kmip.messages import Request
from gateway.policy import Effect
from gateway.timers import TimerHeap
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.open_session import VALIDATION_REQUESTS, Opener
from gateway.upstream.opening import REFUSED, Opening, Spawn
from gateway.upstream.reserve import Reserve
from gateway.upstream.session import Session, SessionState
from gateway.upstream.slots import Slots
from gateway.upstream.waiting import Waiter, Waiters

_IDLE: Final = SessionState.IDLE  # access to an enum member is slow
_DEFAULT_VALIDATION: Final = VALIDATION_REQUESTS["discover-versions"]
_KEEP_ALIVE_AT: Final = 0.8  # of idle_timeout: age at which a warm session is validated, so that no peer closes it
_SOON: Final = 0.25  # s in which nearly all exchanges end
_NO_REFUSAL: Final = frozenset({"connect", "timeout", "resources"})  # failed attempts that show no limit of sessions

#: Reasons to close a pool, and the message to waiting requests.
CLOSED: Final = {
    "drain": "the gateway is shutting down",
    "removed": "the key manager has left this address",
    "drained": "an operator has drained the key manager",
}


class Observer(Protocol):
    """Receives the events of a pool: PoolObserver, which feeds the metrics and the log."""

    def session_opened(self, seconds: float) -> None:
        """Take note of a session that was opened in so many seconds."""

    def session_open_failed(self, error: BackendError) -> None:
        """Take note of a failed attempt to open a session."""

    def session_closed(self, reason: str, age: float) -> None:
        """Take note of a session closed ``age`` seconds after it was opened; ``reason`` is of a closed set."""

    def closed_while_idle(self, seconds: float) -> None:
        """Take note that the key manager has closed a session that was not used for so many seconds."""

    def waited(self, seconds: float) -> None:
        """Take note of the end of a request's wait for a session."""

    def wait_timed_out(self) -> None:
        """Take note that a request's wait for a session has ended because its time was over."""

    def found_stale(self, when: str) -> None:
        """Take note of a session that the key manager had closed: found at ``checkout``, or ``in_flight``."""

    def exchanged(self, result: str, seconds: float, *, is_reused: bool) -> None:
        """Take note of the end of a client's exchange: ``answered``, or stage and reason of the failure.

        ``is_reused`` is True if the session had been used, or idle, before.
        """

    def ejected(self, credential: str, effect: Effect) -> None:
        """Take note of an ejection for requests of this kind; the credential "" stands for all credentials."""

    def idle_limit_learned(self, limit: IdleLimit) -> None:
        """Take note that the backend closes idle sessions earlier than configured."""

    def ceiling_learned(self, ceiling: int, limit: int) -> None:
        """Take note that the backend allows fewer sessions than configured."""


class PoolStatistics(NamedTuple):
    """The numbers of sessions by state, and of waiting requests."""

    idle: int
    busy: int
    opening: int
    waiting: int


class Pool:
    """Lends the sessions of one backend and credential.

    ``spawn`` starts a background task in a nursery that outlives the use of the pool. ``validation_request`` is the
    cheap request that validates a session. ``idle_limit``, ``slots`` and ``endpoint`` are shared by the pools of the
    backend. ``answered_at`` is the time of the last answer to a client. The events in ``reopened`` are set when a
    session opens. Without ``keeps_warm``, no session is opened unless a request waits.

    Invariants: idle, busy and opening sessions together hold exactly the slots taken; no request waits while a session
    is idle.
    """

    def __init__(
        self,
        backend: str,
        credential: str,
        settings: PoolConfig,
        *,
        deadlines: DeadlinesConfig,
        failover: FailoverConfig,
        slots: Slots,
        opener: Opener,
        spawn: Spawn,
        observer: Observer,
        idle_limit: IdleLimit | None = None,
        validation_request: Request = _DEFAULT_VALIDATION,
        endpoint: Endpoint | None = None,
        keeps_warm: bool = True,
    ) -> None:
        self.backend = backend
        self.credential = credential
        self.opener = opener
        self.spawn = spawn
        self.observer = observer
        self.validation_request = validation_request
        self.timers = TimerHeap(spawn)
        self.answered_at = float("-inf")
        self.opening = Opening(
            backend,
            opener,
            slots.gate,
            validation_request,
            deadlines=deadlines,
            failover=failover,
        )
        self._settings = settings
        self._keeps_warm = keeps_warm
        self._slots = slots
        self._gate = slots.gate
        self._idle_limit = idle_limit or IdleLimit(settings.idle_timeout)
        self.endpoint = endpoint or Endpoint()
        self._idle: list[Session] = []  # longest idle first
        self._busy: set[Session] = set()
        self.waiters = Waiters(backend)
        self._reserve = Reserve(slots, self.waiters, self._busy)
        self.reopened: set[trio.Event] = set()
        self._validating: set[Session] = set()  # busy sessions that no client uses
        self._used_at = float("-inf")  # time at which a client last gave a session back, or a session was opened
        self._closed = ""  # or the reason, of CLOSED

    def __repr__(self) -> str:
        counts = " ".join(f"{name}={count}" for name, count in self.statistics()._asdict().items())
        failing = " failing" if self.is_failing else ""
        return f"<Pool {self.backend} as {self.credential}: {counts}{failing}>"

    def statistics(self) -> PoolStatistics:
        """Return the numbers of sessions by state, and of waiting requests."""
        return PoolStatistics(len(self._idle), len(self._busy), self.opening.under_way, len(self.waiters))

    @property
    def is_failing(self) -> bool:
        """True if requests should prefer other backends: no session is idle, and the last attempt to open one failed.

        An answer to a client since then ends this. If the attempt of a different pool of the backend failed for a
        reason that concerns every credential, that counts, too, unless this pool has a session. A pool that keeps
        nothing warm finds out with a request whether a failure is over: the failure counts until the pause ends.
        """
        opening = self.opening
        if opening.failure is None:
            return self._gate.failure is not None and not self._idle and not self._busy
        if not self._keeps_warm and self._gate.failure is None and opening.may_try(trio.current_time()):
            return False
        return not self._idle and self.answered_at <= opening.failed_at

    @property
    def is_dormant(self) -> bool:
        """True if a pool that keeps nothing warm has nothing to maintain."""
        return not (self._keeps_warm or self._idle or self._busy or self.waiters)

    @property
    def is_unused(self) -> bool:
        """True if no session is lent or being opened, and no request waits for one."""
        return not (self._busy or self.waiters or self.opening.under_way)

    @property
    def failing_since(self) -> float:
        """Time since which no session can be opened; infinity if the last attempt succeeded."""
        return min(self.opening.failing_since, self._slots.gate.failing_since)

    @property
    def is_silent(self) -> bool:
        """True if the last attempt to open a session timed out, and no client was answered since.

        An exchange that is under way should then be treated as overdue.
        """
        failure = self.opening.failure
        return failure is not None and failure.reason == "timeout" and self.answered_at <= self.opening.failed_at

    @property
    def has_room(self) -> bool:
        """True if a request would find an idle session, or a free slot to open a session in."""
        return bool(self._idle) or (not self.waiters and self._slots.has_room())

    @property
    def room(self) -> int:
        """The number of idle sessions, and of free slots if no request waits: more requests would have to wait."""
        return len(self._idle) + (0 if self.waiters else self._slots.free)

    @property
    def waiting_since(self) -> float:
        """Time at which the longest-waiting request without a pending open began to wait; infinity if none."""
        return self.waiters.since(self.opening.under_way) if self.needs_session else float("inf")

    @property
    def idle_since(self) -> float:
        """Time at which a client last used a session of this pool; infinity if no session is idle."""
        return self._used_at if self._idle else float("inf")

    # Lending ---------------------------------------------------------------------------------------------------------

    def take(self, principal: Hashable = None) -> Session | None:
        """Lend the session used last that is still alive, or return None. The caller must give the session back.

        ``maintain`` and ``give_back`` close sessions that are too old.
        """
        while self._idle:
            session = self._idle.pop()
            if session.is_quiet():
                self._busy.add(session)
                if session.principal is not principal:
                    session.principal = principal
                    self._reserve.note(principal)
                return session
            self.observer.found_stale("checkout")
            self._closed_by_peer(session, trio.current_time())
        return None

    async def wait(self, principal: Hashable = None, effect: Effect | None = None) -> Session:
        """Wait for a session, which the caller must give back. Principals take turns.

        ``effect`` is None if the request must not move to a different backend. Raises PoolBusyError if too many
        requests wait already, BackendError (CONNECT) if no session can be opened, if the pool is closed, or if the
        request should move to a different backend. The caller bounds the time.
        """
        if self._closed:
            raise self._error(CLOSED[self._closed], self._closed)
        known = None if self._busy else self.opening.known_failure(trio.current_time())
        if known is not None:
            raise self._error(known.args[0], known.reason)
        waiter = Waiter(principal, effect)
        self.waiters.append(waiter)
        try:
            self.open_if_wanted()
            self.waiters.check_length(waiter, self._settings.queue_length, opening=self.opening.under_way)
            await waiter.done.wait()
        except BaseException:
            if waiter.session is not None:
                self.give_back(waiter.session)
            elif waiter in self.waiters:
                self.waiters.remove(waiter)
            raise
        finally:
            self.observer.waited(trio.current_time() - waiter.since)
        if waiter.session is None:
            raise waiter.error or self._error("no session", "drain")
        return waiter.session

    def give_back(self, session: Session, now: float | None = None) -> None:
        """Take back a lent session: keep it if its exchange ended properly, else close it.

        ``now`` is the time, in trio's seconds, if the caller has just looked at the clock.
        """
        self._busy.remove(session)  # raises if the session is not lent: given back twice, it would be lent twice
        session.is_repeatable = False  # until the next borrower says so; its client is not the previous one
        now = trio.current_time() if now is None else now
        if self._validating and session in self._validating:
            self._validating.discard(session)
        else:
            self._used_at = now
        if session.is_abandoned:
            self._slots.returned(session)
        if session.state is not _IDLE:
            is_closed = session.state is SessionState.CLOSED
            self._discard(session, session.fault or ("remote_busy" if is_closed else "error"))
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
        """Allow a busy session to be closed as soon as its slot is needed: no request waits for its answer any more.

        In a closed pool the session is closed at once.
        """
        if self._closed:
            session.close()
        elif session in self._busy:
            self._slots.abandon(session, self)

    def lend_for_validation(self, idle_since: float) -> list[Session]:
        """Lend the sessions that have been idle since this time, or longer. The caller validates and returns them."""
        doubtful = [session for session in self._idle if session.idle_since <= idle_since]
        self._idle = [session for session in self._idle if session.idle_since > idle_since]
        self._busy.update(doubtful)
        self._validating.update(doubtful)
        return doubtful

    def _offer(self, session: Session, now: float, passed_over: Collection[Hashable] = ()) -> None:
        """Lend an idle session to the next waiting request, or keep it. As in ``take``, only a quiet session is lent.

        Principals in ``passed_over`` come last.
        """
        if not self.waiters:
            session.idle_since = now
            self._idle.append(session)
        elif not session.is_quiet():
            self._closed_by_peer(session, now, was_idle=False)
        else:
            waiter = self.waiters.popleft(passed_over)
            self._busy.add(session)
            session.principal = waiter.principal
            self._reserve.note(waiter.principal)
            waiter.lend(session)

    # Ending exchanges early ------------------------------------------------------------------------------------------

    def interrupt_repeatable(self) -> None:
        """Close the lent sessions whose request may be repeated, so that it is repeated on a different backend."""
        for session in list(self._busy):
            if session.is_repeatable:
                session.close()

    def hedge_repeatable(self) -> None:
        """Call the timers of lent sessions whose request may be repeated: the dispatcher then hedges the request.

        Abandoned sessions are left out: their timers end the exchange, which must not happen early.
        """
        now = trio.current_time()
        for session in self._busy:
            if session.is_repeatable and not session.is_abandoned and session.timer.due > now:
                self.timers.set(session.timer, now, session.timer.action)

    def close_disconnected(self) -> None:
        """Close the lent sessions whose request may be repeated and whose client has disconnected.

        An exchange that has just begun is left to end: that takes less time than a handshake.
        """
        since = trio.current_time() - _SOON
        for session in list(self._busy):
            if session.is_repeatable and session.exchanging_since <= since and session.client_disconnected():
                session.close()

    # Closing ---------------------------------------------------------------------------------------------------------

    def drop_closed(self) -> None:
        """Close the idle sessions that the key manager has closed, and no other."""
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

    def drop_outdated(self) -> None:
        """Close idle sessions to addresses that the backend no longer has, and lent ones when they are given back."""
        idle, self._idle = self._idle, []
        for session in idle:
            if self.endpoint.is_current(session):
                self._idle.append(session)
            else:
                self._discard(session, "removed")
        for session in self._busy:
            if not self.endpoint.is_current(session):
                session.expires_at = float("-inf")

    def renew(
        self,
        opener: Opener,
        failover: FailoverConfig,
        pause: float,
        delay: float = 0.0,
        *,
        validation_request: Request | None = None,
    ) -> float:
        """Open sessions with another opener from now on, and replace the sessions of the previous opener.

        After ``delay`` seconds, one session is closed every ``pause`` seconds: an idle one, or a lent one when it is
        given back. Return the number of seconds that this takes, without the delay.
        """
        self.opener = opener
        self.validation_request = validation_request or self.validation_request
        self.opening.renew(opener, failover.max_ejection_time, self.validation_request)
        now = trio.current_time()
        sessions = [*self._idle, *self._busy]
        for number, session in enumerate(sessions):
            session.expires_at = min(session.expires_at, now + delay + number * pause)
        self.open_if_wanted()
        return len(sessions) * pause

    def close_oldest_idle(self) -> None:
        """Close the session that has been idle longest. The caller, Slots, frees its slot."""
        self._end(self._idle.pop(0), "yielded")

    def close(self, why: str = "drain") -> None:
        """Close idle sessions and lend nothing more; busy sessions are closed on return. ``why`` is of CLOSED."""
        self._closed = why
        self.drop_idle(why)
        self.waiters.fail_all(self._error(CLOSED[why], why))
        for session in self._slots.forget(self):
            session.close()

    def reopen(self) -> None:
        """Lend sessions again after ``close("drained")``; a pool that was closed for another reason stays closed."""
        if self._closed == "drained":
            self._closed = ""

    def expire(self, times: Iterator[float]) -> int:
        """Let each session expire at the next of these times, unless earlier; return the number of sessions.

        ``maintain`` and ``give_back`` close expired sessions; then others are opened, as needed.
        """
        sessions = [*self._idle, *self._busy]
        for session in sessions:
            session.expires_at = min(session.expires_at, next(times))
        return len(sessions)

    def _closed_by_peer(self, session: Session, now: float, *, was_idle: bool = True) -> None:
        """Close a session that is not quiet: the key manager has closed it, or has sent bytes unasked.

        The idle limit learns from the session's time without use only if the key manager has closed an idle session.
        """
        if session.fault or session.is_flooded:
            self._discard(session, session.fault or "records")
            return
        if was_idle:
            self.observer.closed_while_idle(now - session.idle_since)
        is_evidence = not self.opening.closed_by_peer(session, now) and was_idle
        if is_evidence and self._idle_limit.closed_by_peer(now - session.idle_since, now):
            self.observer.idle_limit_learned(self._idle_limit)
        self._discard(session, "remote_idle")

    def _discard(self, session: Session, reason: str) -> None:
        """Close a session and free its slot; then open a session for waiting requests, or fail the waits."""
        if session.fault:
            self.endpoint.distrust(trio.current_time())
        self._end(session, reason)
        self._slots.release(self)
        if not self.waiters or self._busy:
            return
        known = self.opening.known_failure(trio.current_time())
        if known is None:
            self.open_if_wanted()
        else:  # no session will be given back that the requests could wait for
            self.waiters.fail_all(known, keep=self.opening.under_way)

    def _end(self, session: Session, reason: str) -> None:
        session.close()
        self.observer.session_closed(reason, trio.current_time() - session.opened_at)

    # Opening ---------------------------------------------------------------------------------------------------------

    @property
    def needs_session(self) -> bool:
        """True if a session should be opened for a waiting request."""
        opening = self.opening.under_way
        missing = len(self.waiters) - opening
        if missing <= 0 or self._closed:
            return False
        now = trio.current_time()
        return self.opening.may_try(now) and missing > self._reserve.passed_over(now, opening)

    @property
    def needs_warm_session(self) -> bool:
        """True if a session should be opened to keep ``min_idle``, or to find out if a failure is over."""
        if not self._keeps_warm or self._closed or not self.opening.may_try(trio.current_time()):
            return False
        if self.opening.failure is not None:
            return True
        return len(self._idle) + len(self._busy) + self.opening.under_way < self._settings.min_idle

    def open_if_wanted(self) -> None:
        """Queue for a slot if requests wait for which no session is being opened."""
        if self.needs_session:
            self._slots.want(self)

    def begin_to_open(self) -> None:
        """Start the task that opens a session in the slot that Slots has just given to this pool."""
        self.opening.under_way += 1
        self.spawn(self._open)

    async def _open(self) -> None:
        began = trio.current_time()
        opener = self.opener
        try:
            outcome = await self.opening.attempt()
        except BaseException:  # the nursery in which sessions are opened ends, and with it the pool
            self.opening.under_way -= 1
            self.close()
            self._slots.not_opened(self)
            raise
        self.opening.under_way -= 1
        if isinstance(outcome, Session):
            self._opened(outcome, trio.current_time() - began, is_current=opener is self.opener)
        else:
            self._failed(outcome, began)
            self._slots.not_opened(self)

    def _opened(self, session: Session, seconds: float, *, is_current: bool) -> None:
        self.opening.opened()
        spread = 1 - self._settings.lifetime_spread * random.random()  # noqa: S311 - spreads load, hides nothing
        now = trio.current_time()
        session.expires_at = min(session.expires_at, now + self._settings.max_lifetime * spread) if is_current else now
        self._used_at = now
        self.observer.session_opened(seconds)
        for event in self.reopened:
            event.set()
        if self._closed:
            self._discard(session, self._closed)
        elif self.endpoint.is_current(session):
            self._offer(session, now, self._reserve.greedy(self.opening.under_way))
        else:
            self._discard(session, "removed")
        self._slots.opened(seconds)
        self.open_if_wanted()

    def _failed(self, error: BackendError, began: float) -> None:
        """Begin the pause after a failed attempt that ``began`` then, and fail the waits that cannot end otherwise.

        The pause begins before ``_open`` frees the slot: Slots may give the slot to the next pool at once, which must
        see the pause.

        If sessions have answered since the attempt began, the failure shows that the key manager allows no more
        sessions. A refused connection does not show that, since it is a restart; nor does a timeout, since a slow key
        manager also answers late.
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
        """Fail the waits that no busy or opening session can end, so that the requests try a different backend.

        The longest waits fail first: the failed attempt was made for them.
        """
        if not self._busy:
            self.waiters.fail_all(error, keep=self.opening.under_way)

    def _error(self, message: str, reason: str) -> BackendError:
        return BackendError(message, backend=self.backend, stage=Stage.CONNECT, reason=reason)

    # Maintenance -----------------------------------------------------------------------------------------------------

    def maintain(self) -> list[Session]:
        """Close sessions that are too old or closed by the peer, and queue for a slot if sessions are missing.

        Called four times a second. Returns lent sessions: the caller validates each of them and gives it back.
        """
        now = trio.current_time()
        if self.endpoint.is_distrusted:
            self.endpoint.end_distrust_if_due(now)
        idle, self._idle = self._idle, []
        surplus = len(idle) + len(self._busy) - (self._settings.min_idle if self._keeps_warm else 0)
        lent = []
        for index, session in enumerate(idle):
            reason = self._reason_to_close(session, now, is_surplus=index < surplus)
            if reason == "remote_idle":
                self._closed_by_peer(session, now)
            elif reason:
                self._discard(session, reason)
            elif index >= surplus and now - session.idle_since >= self._idle_limit.effective * _KEEP_ALIVE_AT:
                self._busy.add(session)
                self._validating.add(session)
                lent.append(session)
            else:
                self._idle.append(session)
        if self.needs_warm_session:
            self._slots.want_warm(self)
        self.open_if_wanted()
        return lent

    def _reason_to_close(self, session: Session, now: float, *, is_surplus: bool) -> str | None:
        if now >= session.expires_at:
            return "lifetime"
        if not session.is_quiet():
            return "records" if session.is_flooded else "remote_idle"
        if is_surplus and now - session.idle_since >= self._idle_limit.effective:
            return "idle"
        return None
