"""Attempts: the tries of requests at backends. For each try, a session is leased and the request exchanged.

An exchange runs until the deadline, also if the answer is overdue. A read whose answer is overdue is hedged, that is,
sent to a different backend as well: see race.py. A try with an end of its own, of a fallback lookup or a second
opinion, is not hedged: its exchange goes on in the background, and may take as long as any other, so that a slow
backend and a backend that gives no answer can be told apart.

An outcome is counted for or against the backend here, and reported to its Breaker. An exchange is a failure of the
backend if it breaks on a session that was fresh or validated, or ends at the deadline without an answer. A read that
fails counts only if another backend has answered the same read: otherwise the read itself is at fault.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from gateway.dispatcher.answer import NOT_TAKEN
from gateway.dispatcher.job import ClientDisconnectedError, DispatcherSettings, Job
from gateway.dispatcher.leasing import Leasing
from gateway.dispatcher.race import Hedge
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.kmip.messages import Response
from gateway.metrics import Metrics
from gateway.policy import is_server_error, may_repeat
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.breaker import Circuit
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session, SupersededError

_DOUBT: Final = 1.0  # s without an answer, on a session that was idle for long, until a second session is tried
_AGAIN: Final = 1.0  # s until an overdue read that could not be hedged looks for another backend again
_GRACE: Final = 0.25  # s until the exchange ends, if the answer has arrived unread when the deadline comes

#: Reasons of failures that prove nothing about the backend's health.
_NOT_COUNTED: Final = frozenset({"interrupted", "too_large", "max_buffered"})


class Attempts:
    """Tries backends, and decides if a request that failed may be tried again."""

    def __init__(self, balancer: Balancer, settings: DispatcherSettings, metrics: Metrics) -> None:
        self._balancer = balancer
        self._settings = settings
        self._metrics = metrics
        self._leasing = Leasing(settings)
        self.settings_changed()

    def __repr__(self) -> str:
        return f"<Attempts at {self._balancer!r}>"

    def settings_changed(self) -> None:
        """Use the settings as they are now."""
        # s of an exchange whose times are kept. If a slow request has no such exchange, and was answered at the first
        # try, most of its time has passed elsewhere.
        self._slow = self._settings.log.slow_request / 2 or float("inf")

    async def try_backend(self, backend: Backend, job: Job, until: float | None = None) -> tuple[Backend, Response]:
        """Try a backend; and once more, on a second session, if the key manager had closed the first session.

        Return the backend that answered, and its response: if a read was hedged, that may be a different backend. With
        ``until``, only for reads, the try ends at that time with the reason "timeout", and is not hedged. Raises
        BackendError, PoolBusyError and ClientDisconnectedError.
        """
        pool = backend.pools.get(job.credential) or backend.pool_of(job.principal)
        breaker = backend.breaker
        trials: Sequence[Circuit] = (
            () if breaker.is_quiet else breaker.enter(job.credential, job.effect, trio.current_time())
        )
        try:
            session = await self._leasing.lease(backend, pool, job, until)
            is_reused = session.is_reused
            try:
                return backend, await self._exchange(backend, pool, session, job, until)
            except BackendError as error:
                if not is_reused or not await self._may_try_again(pool, job, error):
                    raise
            session = await self._leasing.lease(backend, pool, job, until, always_validate=True)
            return backend, await self._exchange(backend, pool, session, job, until)
        except SupersededError:
            if until is not None:
                raise BackendError(
                    "no answer in time", backend=backend.name, stage=Stage.WAIT, reason="timeout"
                ) from None
            assert job.race is not None  # noqa: S101 - only a race supersedes a try without an end of its own
            assert job.race.winner is not None  # noqa: S101
            return job.race.winner
        except (BackendError, PoolBusyError):
            race = job.race
            if race is None or race.is_over:
                raise
            winner = await race.outcome(job.deadline)
            if winner is None:
                raise
            return winner
        finally:
            if trials:
                breaker.leave(trials)
            if job.race is not None:
                job.race.over()

    async def _may_try_again(self, pool: Pool, job: Job, error: BackendError) -> bool:
        """Return True if the session had been closed while it was idle, and the request may be sent on a second one."""
        if job.is_racing or not _was_closed_unanswered(error):
            return False
        pool.drop_closed()  # a restart of the key manager closes all sessions
        if error.stage > Stage.CONNECT:
            if not (may_repeat(job.effect, error.stage) and await job.get_token()):
                return False
            job.sends_again(error.reason)
        return True

    # Exchanging ------------------------------------------------------------------------------------------------------

    async def _exchange(
        self,
        backend: Backend,
        pool: Pool,
        session: Session,
        job: Job,
        until: float | None = None,
        hedge: Hedge | None = None,
    ) -> Response:
        began = trio.current_time()
        result = "cancelled"
        is_reused = session.is_reused
        backend.in_flight += 1
        self._set_timer(backend, pool, session, job, began, until, hedge)
        try:
            response = await session.exchange(job.request, payer=job.payer)
            result = "answered"
        except SupersededError:
            result = ""  # the task ``_finish`` counts the result and gives the session back
            job.add_exchange(began, trio.current_time())
            session.timer.stop()
            pool.abandon(session)
            pool.spawn(
                partial(self._finish, backend, pool, session, job, began, is_race=until is None, is_reused=is_reused)
            )
            raise
        except BackendError as error:
            result = f"{error.stage.name.lower()}_{error.reason}"
            job.measure()
            self._broke(backend, pool, session, job, error, began, hedge)
            raise
        finally:
            if result:
                session.timer.stop()
                backend.in_flight -= 1
                ended = trio.current_time()
                if not backend.breaker.is_quiet:
                    backend.breaker.ended(job.credential, job.effect, session, ended)
                pool.give_back(session, ended)
                seconds = ended - began
                pool.observer.exchanged(result, seconds, is_reused=is_reused)
                if job.times is not None or seconds >= self._slow:
                    job.add_exchange(began, ended)
        pool.answered_at = ended
        if not backend.breaker.is_quiet:
            self._answered(backend, job, response)
        return response

    def _answered(self, backend: Backend, job: Job, response: Response) -> None:
        if not (self._settings.health.observe and is_server_error(response)):
            backend.breaker.answered(job.credential, job.effect, trio.current_time())

    async def _finish(
        self,
        backend: Backend,
        pool: Pool,
        session: Session,
        job: Job,
        began: float,
        *,
        is_race: bool,
        is_reused: bool,
    ) -> None:
        """End an exchange whose answer is not needed any more, so that the session is kept. Runs in a task.

        The exchange has lost its race (``is_race``), or its try had an end of its own.
        """
        result = "cancelled"
        try:
            if session.stage > Stage.SEND:
                if is_race:
                    pool.timers.set(session.timer, self._end_of(session), partial(self._expire, pool, session))
                else:
                    due = began + self._settings.failover.try_timeout
                    pool.timers.set(session.timer, due, partial(self._late, backend, pool, session, job))
                response = await session.exchange(job.request, is_sent=True, payer=job.payer)
                result = "answered"
                pool.answered_at = trio.current_time()
                self._answered(backend, job, response)
        except BackendError as error:
            result = f"{error.stage.name.lower()}_{error.reason}"
            # If the same backend has answered on a second session, only this session was dead.
            winner = job.race.winner if job.race is not None else None
            is_same = winner is not None and winner[0] is backend
            if not is_same and error.reason not in _NOT_COUNTED:
                self.failed(backend, job, began)
        finally:
            session.timer.stop()
            ended = trio.current_time()
            backend.breaker.ended(job.credential, job.effect, session, ended)
            backend.in_flight -= 1
            pool.give_back(session)
            pool.observer.exchanged(result, ended - began, is_reused=is_reused)

    # Overdue ---------------------------------------------------------------------------------------------------------

    def _set_timer(
        self,
        backend: Backend,
        pool: Pool,
        session: Session,
        job: Job,
        now: float,
        until: float | None,
        hedge: Hedge | None,
    ) -> None:
        """Set the session's timer to the time at which the exchange must end, is overdue, or is doubtful."""
        session.is_repeatable = job.is_read and job.source is None
        session.client_disconnected = job.client_disconnected
        session.exchanging_since = now
        settings = self._settings
        if until is not None:
            pool.timers.set(session.timer, until, partial(self._leave, pool, session))
            return
        if (
            now - session.idle_since > settings.pool.validate_after
            and session.is_reused
            and job.is_read
            and hedge is None
        ):
            due = now + _DOUBT
            action = partial(self._doubtful, backend, pool, session, job, now)
        else:
            due = now + settings.failover.try_timeout
            action = partial(self._overdue, backend, pool, session, job, hedge)
        pool.timers.set(session.timer, min(due, job.deadline), action)

    def _doubtful(self, backend: Backend, pool: Pool, session: Session, job: Job, began: float) -> None:
        """Hedge a read on a second session: the first session was idle for long, gave no answer, and may be dead.

        The second session is at the same backend, unless a request is overdue there and a different backend may
        answer sooner.
        """
        now = trio.current_time()
        if now < job.deadline and not session.has_unread_data() and job.doubt_once():
            self._leasing.validate_idle(pool, session.idle_since)
            is_overdue = backend.breaker.is_overdue(job.credential, job.effect)
            if is_overdue and not job.is_tied_to(backend) and self._may_hedge(job):
                self._hedge(job, session, pool, None)
            elif not job.retries.is_nothing:
                self._hedge(job, session, pool, backend)
        due = max(now, min(job.deadline, began + self._settings.failover.try_timeout))
        pool.timers.set(session.timer, due, partial(self._overdue, backend, pool, session, job, None))

    def _overdue(self, backend: Backend, pool: Pool, session: Session, job: Job, hedge: Hedge | None) -> None:
        """Hedge a read whose answer takes long; every exchange goes on until the deadline."""
        now = trio.current_time()
        due = self._end_of(session) if hedge is not None and hedge.race.is_answered else job.deadline
        if now >= due:
            self._expire(pool, session)
            return
        if not session.has_unread_data():
            backend.breaker.overdue(job.credential, job.effect, session)
        if hedge is not None and not hedge.is_overdue:
            hedge.is_overdue = True
            job.retries.give_back()  # other requests need not wait for an answer that may never come
        if job.is_read and not (hedge is not None and hedge.race.is_over):
            self._hedge_if_useful(backend, pool, session, job)
            due = min(due, now + _AGAIN)
        pool.timers.set(session.timer, due, partial(self._overdue, backend, pool, session, job, hedge))

    def _end_of(self, session: Session) -> float:
        """Return the time at which an exchange must end whose answer is not needed any more.

        The exchange may take as long as if it were the request's first: else the backend would be blamed for the time
        that other backends took before.
        """
        return session.exchanging_since + self._settings.deadlines.request

    def _late(self, backend: Backend, pool: Pool, session: Session, job: Job) -> None:
        """Report an exchange in the background as overdue; on a dead path, end it, which is no failure."""
        if session.is_cut_off(_DOUBT):
            session.close()
            self._leasing.validate_idle(pool, session.idle_since)
            return
        if not session.has_unread_data():
            backend.breaker.overdue(job.credential, job.effect, session)
        pool.timers.set(session.timer, self._end_of(session), partial(self._expire, pool, session))

    def _hedge_if_useful(self, backend: Backend, pool: Pool, session: Session, job: Job) -> None:
        """Send an overdue read to another backend too, or once more to this backend if the path is dead."""
        if not job.is_tied_to(backend) and self._may_hedge(job):
            self._hedge(job, session, pool, None)
        elif not job.retries.is_nothing and session.is_cut_off(_DOUBT) and job.doubt_once():
            self._hedge(job, session, pool, backend)

    def _may_hedge(self, job: Job) -> bool:
        """Return True if another backend may answer a read sooner, and was not tried."""
        if job.retries.is_nothing or (job.is_racing and job.race is not None and job.race.is_hopeful):
            return False
        return self._balancer.has_other(job.tried, job.credential, job.effect, job.request.version)

    def _leave(self, pool: Pool, session: Session) -> None:
        """Let the exchange go on in the background; 0.25 s later if bytes have arrived that were not read yet."""
        if session.has_unread_data():
            pool.timers.set(session.timer, trio.current_time() + _GRACE, session.supersede)
        else:
            session.supersede()

    def _expire(self, pool: Pool, session: Session) -> None:
        """End the exchange at its deadline; 0.25 s later if bytes have arrived that were not read yet."""
        if session.has_unread_data():
            pool.timers.set(session.timer, trio.current_time() + _GRACE, session.expire)
        else:
            session.expire()

    def _hedge(self, job: Job, session: Session, pool: Pool, backend: Backend | None) -> None:
        """Begin a hedge at ``backend``, or at the next in order if None. ``session`` is that of the first try."""
        hedge = job.join_race(session).begin(job.deadline)
        pool.spawn(partial(self._run_hedge, job, hedge, backend))

    async def _run_hedge(self, job: Job, hedge: Hedge, backend: Backend | None) -> None:
        """Try a read once more, as soon as the budget allows. Runs in a task."""
        has_token = False
        trials: Sequence[Circuit] = ()
        try:
            with hedge.scope:
                await job.retries.wait()
                has_token = True
                backend = backend or job.next_backend()
                if backend is None:
                    return
                trials = backend.breaker.enter(job.credential, job.effect, trio.current_time())
                pool = backend.pool_of(job.principal)
                session = await self._lease_for_hedge(backend, pool, job, hedge)
                if hedge.race.is_over or job.client_disconnected():
                    pool.give_back(session)
                    return
                hedge.sends(pool, session)
                job.sends_again("overdue")
                response = await self._exchange(backend, pool, session, job, hedge=hedge)
                hedge.race.answered(backend, response)
        except (BackendError, PoolBusyError):
            pass  # the first try, or the next hedge, may still be answered
        finally:
            if has_token and not hedge.is_overdue:
                job.retries.give_back()
            if backend is not None:
                backend.breaker.leave(trials)
            hedge.race.end(hedge)

    async def _lease_for_hedge(self, backend: Backend, pool: Pool, job: Job, hedge: Hedge) -> Session:
        """Borrow a session, validated if it was idle for long.

        The wait in the queue is not counted as the request's: the first try may need that time later.
        """
        session = pool.take(job.principal)
        if session is not None:
            hedge.is_validating = True
            session = await self._leasing.validated(pool, session, job, job.deadline)
            hedge.is_validating = False
        if session is not None:
            return session
        until = min(trio.current_time() + self._settings.pool.queue_timeout, job.deadline)
        return await self._leasing.wait(backend, pool, job, until)

    # Failures --------------------------------------------------------------------------------------------------------

    def _broke(
        self,
        backend: Backend,
        pool: Pool,
        session: Session,
        job: Job,
        error: BackendError,
        began: float,
        hedge: Hedge | None,
    ) -> None:
        """Remember a failure that may be the backend's, until it is known if a different backend answers the request.

        Not remembered: a close of a reused session, a close before the request was sent, and failures that prove
        nothing about the backend. If a different try was answered, the failure is counted at once.
        """
        if error.reason in _NOT_COUNTED:
            return
        if _was_closed_unanswered(error):
            if session.is_reused:
                pool.observer.found_stale("checkout" if error.stage is Stage.CONNECT else "in_flight")
                return
            pool.opening.closed_by_peer(session, trio.current_time())
            if error.stage is Stage.CONNECT:
                return
        if hedge is not None and hedge.race.is_answered:
            self.failed(backend, job, began)
        else:
            job.add_failure(backend, began)

    def evaluate_ejection(self, job: Job, *, is_answered: bool) -> None:
        """Count a request's failures against the backends at which it failed.

        The failures of a read that no backend answered are not counted: the read is at fault. A change was tried at one
        backend only, so that its failure always counts.
        """
        failures = job.take_failures()
        if is_answered or not job.is_read:
            for backend, began in failures:
                self.failed(backend, job, began)

    def failed(self, backend: Backend, job: Job, began: float) -> None:
        """Count a failure against a backend; its breaker may eject the backend."""
        ejected_for = backend.breaker.failed(job.credential, job.effect, began, trio.current_time())
        if ejected_for is not None:
            pool = backend.pools.get(job.credential)
            if pool is not None:  # else the credential was removed while the exchange was under way
                pool.observer.ejected(ejected_for, job.effect)
                pool.drop_closed()

    async def may_repeat(self, job: Job, error: BackendError) -> bool:
        """Return True if a request that was sent may be sent again: by policy, and within the retry budget.

        A read waits for the budget until its deadline. Raises ClientDisconnectedError.
        """
        if error.reason == "interrupted" and job.client_disconnected():
            raise ClientDisconnectedError(is_sent=True)
        if not may_repeat(job.effect, error.stage) or error.reason in NOT_TAKEN:
            denied = "unsafe"
        elif error.reason == "interrupted" or await job.get_token():
            job.sends_again(error.reason)
            return True
        else:
            denied = "budget"
        self._metrics.retries_denied.labels(denied).inc()
        return False


def _was_closed_unanswered(error: BackendError) -> bool:
    """Return True if the key manager closed the session before the first byte of an answer, as it may at any time."""
    return error.reason == "closed" and error.stage < Stage.READ
