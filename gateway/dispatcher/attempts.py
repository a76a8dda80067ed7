"""Attempts: one try at a backend: a session is leased, the request exchanged, the outcome counted.

A read that is overdue is hedged: see race.py. What an outcome says about the backend is decided here, and told to its
Breaker: an exchange that breaks on a session that was fresh or validated, or ends at the deadline without an answer, is
a failure of the backend. A read that fails counts only if another backend has answered it: else the read is at fault.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from gateway.dispatcher.answer import NOT_TAKEN
from gateway.dispatcher.job import ClientGoneError, DispatcherSettings, Job
from gateway.dispatcher.race import Hedge, Race
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.kmip.messages import Response
from gateway.metrics import Metrics
from gateway.policy import is_server_error, may_repeat
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.breaker import Circuit
from gateway.upstream.maintenance import validate
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session, SupersededError

_DOUBT: Final = 1.0  # s without an answer, on a session that was idle for long, until another session is tried
_AGAIN: Final = 1.0  # s until an overdue read that could not be hedged looks for another backend again
_ALWAYS: Final = -1.0  # s of idleness after which a session is validated, if every session is to be
_GRACE: Final = 0.25  # s that an answer gets that has arrived, and was not read, when the deadline comes

#: Reasons of failures that say nothing of the backend's health.
_NOBODYS_FAULT: Final = frozenset({"interrupted", "too_large", "max_buffered"})


class Attempts:
    """Tries backends, and tells if a request that failed may be tried again."""

    def __init__(self, balancer: Balancer, settings: DispatcherSettings, metrics: Metrics) -> None:
        self._balancer = balancer
        self._settings = settings
        self._metrics = metrics
        self._overdue_sessions: set[Session] = set()  # those on which a request is overdue

    def __repr__(self) -> str:
        return f"<Attempts at {self._balancer!r}>"

    async def try_backend(self, backend: Backend, job: Job, until: float | None = None) -> Response:
        """Try a backend; and once more, on another session, if the key manager had closed the first one.

        A read may be answered by another backend meanwhile: ``job.answered_by``. With ``until`` it is not hedged, but
        given up then. Raises BackendError, PoolBusyError and ClientGoneError.
        """
        pool = backend.pools[job.credential]
        breaker = backend.breaker
        trials: Sequence[Circuit] = (
            () if breaker.is_quiet else breaker.enter(job.credential, job.effect, trio.current_time())
        )
        try:
            # Once the request broke a good session, it is sent on good sessions only: it breaks one at each backend.
            session = await self._lease(backend, pool, job, until, _ALWAYS if job.breaks else None)
            is_reused = session.is_reused
            try:
                return await self._exchange(backend, pool, session, job, until)
            except BackendError as error:
                if not is_reused or not await self._may_try_again(pool, job, error):
                    raise
            return await self._try_again(backend, pool, job, until)
        except SupersededError:
            return self._won(job)
        except (BackendError, PoolBusyError):
            race = job.race
            if race is None or race.is_over or await race.outcome(job.deadline) is None:
                raise
            return self._won(job)
        finally:
            if trials:
                breaker.leave(trials)
            if job.race is not None:
                job.race.over()

    @staticmethod
    def _won(job: Job) -> Response:
        assert job.race is not None  # noqa: S101 - only a race supersedes
        assert job.race.winner is not None  # noqa: S101
        job.answered_by, response = job.race.winner
        return response

    async def _try_again(self, backend: Backend, pool: Pool, job: Job, until: float | None) -> Response:
        """Try a backend once more: the session that was used first had been closed while it was idle."""
        session = await self._lease(backend, pool, job, until, _ALWAYS)
        return await self._exchange(backend, pool, session, job, until)

    async def _may_try_again(self, pool: Pool, job: Job, error: BackendError) -> bool:
        if _is_racing(job) or not _is_stale(error):
            return False
        pool.drop_closed()  # a restart closes all of them
        if error.stage > Stage.CONNECT:
            if not (may_repeat(job.effect, error.stage) and await self.has_token(job)):
                return False
            self._metrics.retries.labels(error.reason).inc()
        return True

    # Leasing ---------------------------------------------------------------------------------------------------------

    async def _lease(
        self,
        backend: Backend,
        pool: Pool,
        job: Job,
        until: float | None = None,
        validate_after: float | None = None,
    ) -> Session:
        """Borrow a session; one that was idle for longer than ``validate_after`` is validated first.

        By default that is so before changes only: a read is tried on another session if no answer comes. If the key
        manager is distrusted, every session that was used before is validated: an answer that is sent twice is then
        taken for the answer to the validation, and ends the session.
        """
        if pool.endpoint.is_distrusted:
            validate_after = _ALWAYS
        session = pool.take(job.principal)
        if session is not None and (not job.is_read or validate_after is not None):
            session = await self._validated(
                pool, session, job, self._settings.pool.validate_after if validate_after is None else validate_after
            )
        while session is None:
            session = await self._wait(backend, pool, job, until)
            if job.is_gone():
                pool.give_back(session)
                raise ClientGoneError
            if pool.endpoint.is_distrusted and session.is_reused and not await self._is_alive(pool, session, job):
                session = None
        return session

    async def _wait(
        self, backend: Backend, pool: Pool, job: Job, until: float | None, *, is_hedge: bool = False
    ) -> Session:
        """Wait for a session. A hedge has a time of its own for that: the first try may need the request's later."""
        began = trio.current_time()
        may_move = job.source is None and backend is not job.preferred
        queue_left = self._settings.pool.queue_timeout if is_hedge else job.queue_left
        try:
            with trio.move_on_at(min(began + queue_left, job.deadline if until is None else until)):
                return await pool.wait(job.principal, job.effect if may_move else None)
        except BackendError:
            began = trio.current_time()  # it was not the queue that took so long
            raise
        finally:
            if not is_hedge and backend is not job.preferred:  # others get a time of their own
                job.queue_left -= trio.current_time() - began
        raise PoolBusyError(f"no session free within {self._settings.pool.queue_timeout:g} s", reason="queue_timeout")

    async def _validated(self, pool: Pool, session: Session, job: Job, validate_after: float) -> Session | None:
        """Return the session if it was used just now or passes validation, else another one, or None.

        Once a session has failed, those that were idle as long are validated in the background.
        """
        idle_since = session.idle_since
        if trio.current_time() - idle_since <= validate_after or await self._is_alive(pool, session, job):
            return session
        self._doubt(pool, idle_since)
        another = pool.take(job.principal)
        if another is None or await self._is_alive(pool, another, job):
            return another
        return None

    async def _is_alive(self, pool: Pool, session: Session, job: Job) -> bool:
        session.is_repeatable = False
        is_alive = False
        try:
            with trio.move_on_at(min(trio.current_time() + self._settings.deadlines.connect, job.deadline)):
                await session.exchange(pool.validation_request)
                is_alive = session.is_idle
                session.is_reused = False  # as good as a fresh one
        except BackendError:
            pass
        finally:
            if not is_alive:
                pool.give_back(session)
        return is_alive

    def _doubt(self, pool: Pool, idle_since: float) -> None:
        """Have the sessions that have been idle since then, or longer, validated in the background."""
        pool.drop_closed()
        for session in pool.lend_for_validation(idle_since):
            pool.spawn(partial(validate, pool, session, self._settings.deadlines.connect))

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
        backend.in_flight += 1
        self._set_alarm(backend, pool, session, job, began, until, hedge)
        try:
            response = await session.exchange(job.request, payer=job.payer)
            result = "answered"
        except SupersededError:
            result = ""
            session.timer.stop()
            pool.abandon(session)
            pool.spawn(partial(self._finish, backend, pool, session, job, began))
            raise
        except BackendError as error:
            result = f"{error.stage.name.lower()}_{error.reason}"
            self._broke(backend, pool, session, job, error, began, hedge)
            raise
        finally:
            if result:
                session.timer.stop()
                if self._overdue_sessions:
                    self._not_overdue(backend, session, job)
                backend.in_flight -= 1
                ended = trio.current_time()
                pool.give_back(session, ended)
                pool.observer.exchanged(result, ended - began)
        pool.answered_at = ended
        if not backend.breaker.is_quiet:
            self._answered(backend, job, response)
        return response

    def _answered(self, backend: Backend, job: Job, response: Response) -> None:
        if not (self._settings.health.observe and is_server_error(response)):
            backend.breaker.answered(job.credential, job.effect, trio.current_time())

    async def _finish(self, backend: Backend, pool: Pool, session: Session, job: Job, began: float) -> None:
        """End an exchange to which another backend has been faster, so that the session is kept. Runs in a task."""
        result = "cancelled"
        try:
            if session.stage > Stage.SEND:
                pool.timers.set(session.timer, job.deadline, partial(self._expire, pool, session))
                response = await session.exchange(job.request, is_sent=True, payer=job.payer)
                result = "answered"
                pool.answered_at = trio.current_time()
                self._answered(backend, job, response)
        except BackendError as error:
            result = f"{error.stage.name.lower()}_{error.reason}"
            # If the same backend has answered on another session, only this session was dead.
            if job.answered_by is not backend and error.reason not in _NOBODYS_FAULT:
                self.failed(backend, job, began)
        finally:
            session.timer.stop()
            self._not_overdue(backend, session, job)
            backend.in_flight -= 1
            pool.give_back(session)
            pool.observer.exchanged(result, trio.current_time() - began)

    # Overdue ---------------------------------------------------------------------------------------------------------

    def _set_alarm(
        self,
        backend: Backend,
        pool: Pool,
        session: Session,
        job: Job,
        now: float,
        until: float | None,
        hedge: Hedge | None,
    ) -> None:
        """Set the time at which to look after this exchange: when it must end, or is overdue, or doubtful."""
        session.is_repeatable = job.is_read and job.source is None
        session.client_disconnected = job.is_gone
        session.exchanging_since = now
        settings = self._settings
        if until is not None:
            pool.timers.set(session.timer, until, partial(self._expire, pool, session))
            return
        if (
            now - session.idle_since > settings.pool.validate_after
            and session.is_reused
            and job.is_read
            and hedge is None
        ):
            due = now + _DOUBT
            ring = partial(self._doubtful, backend, pool, session, job, now)
        else:
            due = now + settings.failover.try_timeout
            ring = partial(self._overdue, backend, pool, session, job, hedge)
        pool.timers.set(session.timer, min(due, job.deadline), ring)

    def _doubtful(self, backend: Backend, pool: Pool, session: Session, job: Job, began: float) -> None:
        """No answer comes on a session that was idle for long: it may be dead. Try another session.

        That is one of the same backend, unless the backend answers nothing on other sessions either.
        """
        now = trio.current_time()
        if now < job.deadline and not session.has_unread_data() and not job.is_doubted:
            job.is_doubted = True
            self._doubt(pool, session.idle_since)
            is_bound = backend is job.preferred or job.source is not None
            if not is_bound and backend.breaker.is_overdue(job.credential, job.effect) and self._may_hedge(job):
                self._hedge(job, session, pool, None)
            elif not job.retries.is_nothing:
                self._hedge(job, session, pool, backend)
        due = max(now, min(job.deadline, began + self._settings.failover.try_timeout))
        pool.timers.set(session.timer, due, partial(self._overdue, backend, pool, session, job, None))

    def _overdue(self, backend: Backend, pool: Pool, session: Session, job: Job, hedge: Hedge | None) -> None:
        """The answer takes long. A read is hedged; everything waits on until the deadline."""
        now = trio.current_time()
        if now >= job.deadline:
            self._expire(pool, session)
            return
        if not session.has_unread_data():
            backend.breaker.overdue(job.credential, job.effect)
            self._overdue_sessions.add(session)
        due = job.deadline
        if hedge is not None and not hedge.is_overdue:
            hedge.is_overdue = True
            job.retries.give_back()  # others need not wait for what may never come
        if job.is_read and not (hedge is not None and hedge.race.is_over):
            self._hedge_if_useful(backend, pool, session, job)
            due = min(due, now + _AGAIN)
        pool.timers.set(session.timer, due, partial(self._overdue, backend, pool, session, job, hedge))

    def _not_overdue(self, backend: Backend, session: Session, job: Job) -> None:
        """An exchange has ended. If it was overdue, its backend is one like the others again."""
        if session in self._overdue_sessions:
            self._overdue_sessions.discard(session)
            backend.breaker.not_overdue(job.credential, job.effect)

    def _hedge_if_useful(self, backend: Backend, pool: Pool, session: Session, job: Job) -> None:
        """Send an overdue read to another backend too, or once more to this one if the path is dead."""
        if job.source is None and backend is not job.preferred and self._may_hedge(job):
            self._hedge(job, session, pool, None)
        elif not job.is_doubted and not job.retries.is_nothing and session.is_cut_off(_DOUBT):
            job.is_doubted = True
            self._hedge(job, session, pool, backend)

    def _may_hedge(self, job: Job) -> bool:
        """Return True if another backend may answer a read sooner, and was not asked."""
        if job.retries.is_nothing or (_is_racing(job) and job.race is not None and job.race.is_hopeful):
            return False
        return self._balancer.has_other(job.tried, job.credential, job.effect, job.request.version)

    def _expire(self, pool: Pool, session: Session) -> None:
        """The deadline is over: end the exchange, unless this process stood still and the answer is there already."""
        if session.has_unread_data():
            pool.timers.set(session.timer, trio.current_time() + _GRACE, session.expire)
        else:
            session.expire()

    def _hedge(self, job: Job, session: Session, pool: Pool, backend: Backend | None) -> None:
        """Begin one more try, at this backend or at the next one. ``session`` is that of the first try."""
        if job.race is None or job.race.is_over:
            job.race = Race(session)
        hedge = job.race.begin(job.deadline)
        pool.spawn(partial(self._run_hedge, job, hedge, backend))

    async def _run_hedge(self, job: Job, hedge: Hedge, backend: Backend | None) -> None:
        """Try a read once more, as soon as the budget allows. Runs in a task."""
        has_token = False
        trials: Sequence[Circuit] = ()
        try:
            with hedge.scope:
                await job.retries.wait()
                has_token = True
                backend = backend or next(job.order, None)
                if backend is None:
                    return
                job.tried.append(backend)
                trials = backend.breaker.enter(job.credential, job.effect, trio.current_time())
                pool = backend.pools[job.credential]
                session = pool.take(job.principal)
                if session is not None:
                    hedge.is_validating = True
                    session = await self._validated(pool, session, job, self._settings.pool.validate_after)
                    hedge.is_validating = False
                if session is None:
                    session = await self._wait(backend, pool, job, None, is_hedge=True)
                if hedge.race.is_over or job.is_gone():
                    pool.give_back(session)
                    return
                hedge.sends(pool, session)
                self._metrics.retries.labels("overdue").inc()
                response = await self._exchange(backend, pool, session, job, hedge=hedge)
                hedge.race.answered(backend, response)
        except (BackendError, PoolBusyError, ClientGoneError):
            pass  # the first try, or the next one, may still be answered
        finally:
            if has_token and not hedge.is_overdue:
                job.retries.give_back()
            if backend is not None:
                backend.breaker.leave(trials)
            hedge.race.end(hedge)

    # Judging ---------------------------------------------------------------------------------------------------------

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
        """Remember a failure that speaks against a backend, until it is known if another one answers the request."""
        if error.reason in _NOBODYS_FAULT:
            return
        if _is_stale(error):
            if session.is_reused:
                return
            pool.opening.closed_by_peer(session, trio.current_time())
            if error.stage is Stage.CONNECT:
                return
        if hedge is not None and hedge.race.is_over:
            self.failed(backend, job, began)
        else:
            job.breaks = [*job.breaks, (backend, began)]

    def judge(self, job: Job, *, is_answered: bool) -> None:
        """Count a request's failures against the backends at which it failed.

        A read that no backend answered is itself at fault; a change was tried at one only.
        """
        breaks, job.breaks = job.breaks, ()
        if is_answered or not job.is_read:
            for backend, began in breaks:
                self.failed(backend, job, began)

    def failed(self, backend: Backend, job: Job, began: float) -> None:
        """Count a failure of a backend."""
        held_back = backend.breaker.failed(job.credential, job.effect, began, trio.current_time())
        if held_back is not None:
            pool = backend.pools[job.credential]
            pool.observer.ejected(held_back, job.effect)
            pool.drop_closed()

    async def may_repeat(self, job: Job, error: BackendError) -> bool:
        """Return True if a request that was sent may be sent again: by the tables, and within the budget.

        A read waits for the budget until its deadline.
        """
        if error.reason == "interrupted" and job.is_gone():
            raise ClientGoneError
        if not may_repeat(job.effect, error.stage) or error.reason in NOT_TAKEN:
            denied = "unsafe"
        elif error.reason == "interrupted" or await self.has_token(job):
            self._metrics.retries.labels(error.reason).inc()
            return True
        else:
            denied = "budget"
        self._metrics.retries_denied.labels(denied).inc()
        return False

    @staticmethod
    async def has_token(job: Job, seconds: float = float("inf")) -> bool:
        """Return True once this request has a token of the retry budget, which it holds to its end.

        It waits for one for so many seconds, and not beyond its deadline.
        """
        if not job.has_token and not job.retries.is_nothing:
            with trio.move_on_at(min(job.deadline, trio.current_time() + seconds)):
                await job.retries.wait()
                job.has_token = True
        return job.has_token


def _is_stale(error: BackendError) -> bool:
    """Return True if a session was closed without a byte of an answer: pools can't exclude that race."""
    return error.reason == "closed" and error.stage < Stage.READ


def _is_racing(job: Job) -> bool:
    """Return True if more than one try is under way."""
    return job.race is not None and not job.race.is_over
