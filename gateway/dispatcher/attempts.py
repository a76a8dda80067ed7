"""Attempts: one try at a backend: a session is leased, the request exchanged, the outcome counted."""

from functools import partial
from typing import Final

import trio

from gateway.budget import RetryBudget
from gateway.dispatcher.job import ClientGoneError, DispatcherSettings, Job
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.kmip.messages import Response
from gateway.metrics import Metrics
from gateway.policy import Effect, may_repeat
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session

_REPEATABLE: Final = Effect.TOUCH  # a member of an enumeration is slow to come by

#: Reasons of failures that say nothing of the backend's health.
_NOBODYS_FAULT: Final = frozenset({"interrupted", "too_large"})


class Attempts:
    """Tries backends, one at a time, and says whether a request that failed may be tried again."""

    def __init__(self, balancer: Balancer, settings: DispatcherSettings, metrics: Metrics) -> None:
        self._balancer = balancer
        self._settings = settings
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"<Attempts at {self._balancer!r}>"

    async def try_backend(self, backend: Backend, job: Job, budget: RetryBudget) -> Response:
        """One try at a backend; and another, on a fresh session, where the first found the peer's end of it closed.

        Raises BackendError and PoolBusyError.
        """
        pool = backend.pools[job.credential]
        session = await self._lease(pool, job)
        is_reused = session.requests > 0
        try:
            return await self._exchange(backend, pool, session, job)
        except BackendError as error:
            if not (is_reused and _is_stale(error)):
                raise
            pool.drop_idle("stale")  # a restart has closed them all
            if error.stage > Stage.CONNECT and not self.may_repeat(job, error, budget):
                raise
        return await self._exchange(backend, pool, await self._lease(pool, job), job)

    # Leasing ---------------------------------------------------------------------------------------------------------

    async def _lease(self, pool: Pool, job: Job) -> Session:
        session = pool.take()
        if session is not None and job.effect > _REPEATABLE:
            session = await self._proved(pool, session, job)
        if session is None:
            session = await self._wait(pool, job)
            if job.is_gone():
                pool.give_back(session)
                raise ClientGoneError
        return session

    async def _wait(self, pool: Pool, job: Job) -> Session:
        began = trio.current_time()
        try:
            with trio.move_on_at(min(began + job.queue_left, job.deadline)):
                return await pool.wait(job.principal)
        except BackendError:
            began = trio.current_time()  # it was not the queue that took so long
            raise
        finally:
            if (
                job.preferred is None or pool is not job.preferred.pools[job.credential]
            ):  # others get a time of their own
                job.queue_left -= trio.current_time() - began
        raise PoolBusyError(f"no session free within {self._settings.queue:g} s", reason="queue_timeout")

    async def _proved(self, pool: Pool, session: Session | None, job: Job) -> Session | None:
        """A session that was used just now, or has proved itself alive just now; None where no idle one is."""
        while session is not None and trio.current_time() - session.idle_since > self._settings.validate_after:
            if await self._proves_alive(pool, session, job):
                return session
            pool.drop_idle("stale")
            session = pool.take()
        return session

    async def _proves_alive(self, pool: Pool, session: Session, job: Job) -> bool:
        is_alive = False
        try:
            with trio.move_on_at(min(trio.current_time() + self._settings.proof, job.deadline)):
                await session.exchange(pool.probe)
                is_alive = session.is_idle
        except BackendError:
            pass
        finally:
            if not is_alive:
                pool.give_back(session)
        return is_alive

    # Exchanging ------------------------------------------------------------------------------------------------------

    async def _exchange(self, backend: Backend, pool: Pool, session: Session, job: Job) -> Response:
        began = trio.current_time()
        result = "cancelled"
        is_reused = session.requests > 0
        backend.outstanding += 1
        self._set_alarm(backend, pool, session, job, began)
        try:
            response = await session.exchange(job.request)
            result = "answered"
        except BackendError as error:
            result = f"{error.stage.name.lower()}_{error.reason}"
            if error.reason not in _NOBODYS_FAULT and not (is_reused and _is_stale(error)):
                pool.exchange_failed()
            raise
        finally:
            session.alarm.stop()
            backend.outstanding -= 1
            ended = trio.current_time()
            pool.give_back(session, ended)
            pool.observer.exchanged(result, ended - began)
        pool.answered(ended)
        return response

    def _set_alarm(self, backend: Backend, pool: Pool, session: Session, job: Job, now: float) -> None:
        """An exchange must end within the request's deadline; within the try's, if another backend is left by then.

        One that the request prefers is waited for until it is found to be down: others may not know yet what it knows.
        """
        session.is_repeatable = job.effect <= _REPEATABLE and job.source is None
        due = job.deadline
        if session.is_repeatable and backend is not job.preferred:
            due = min(due, now + self._settings.try_timeout)
        pool.alarms.set(session.alarm, due, partial(self._overdue, pool, session, job))

    def _overdue(self, pool: Pool, session: Session, job: Job) -> None:
        request = job.request
        if trio.current_time() >= job.deadline or self._balancer.has_other(
            job.tried, job.credential, job.effect, request.version
        ):
            session.expire()
        else:
            pool.alarms.set(session.alarm, job.deadline, session.expire)

    def may_repeat(self, job: Job, error: BackendError, budget: RetryBudget) -> bool:
        """Whether a request that was sent may be sent again: by the tables, and within the budget."""
        if not may_repeat(job.effect, error.stage) or error.reason == "too_large":
            denied = "unsafe"
        elif error.reason == "interrupted" or budget.withdraw(trio.current_time()):
            self._metrics.retries.labels(error.reason).inc()
            return True
        else:
            denied = "budget"
        self._metrics.retries_denied.labels(denied).inc()
        return False


def _is_stale(error: BackendError) -> bool:
    """Whether a session turned out to be closed, without a byte of an answer: the race that pools can't win."""
    return error.reason == "closed" and error.stage < Stage.READ
