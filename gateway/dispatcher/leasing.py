"""Leasing: a session for one try at a backend, validated if it may be dead.

A session that was idle for long may be dead without a sign: a firewall forgot it, or the key manager closed it and the
packet was lost. Before a change, such a session is validated with a harmless request, since a change can't be repeated
after it was sent. A read is sent at once, and tried on a second session if no answer comes.
"""

from functools import partial
from typing import Final

import trio

from gateway.dispatcher.job import ClientDisconnectedError, DispatcherSettings, Job
from gateway.errors import BackendError, PoolBusyError
from gateway.upstream.backend import Backend
from gateway.upstream.maintenance import validate
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session

_ALWAYS: Final = -1.0  # s of idleness after which a session is validated, if every session is to be validated


class Leasing:
    """Borrows sessions from pools for the tries of requests."""

    def __init__(self, settings: DispatcherSettings) -> None:
        self._settings = settings

    def __repr__(self) -> str:
        return f"<Leasing, waits for {self._settings.pool.queue_timeout:g} s>"

    async def lease(
        self, backend: Backend, pool: Pool, job: Job, until: float | None = None, *, always_validate: bool = False
    ) -> Session:
        """Borrow a session, validated before a change if it was idle for long, and in any case if ``always_validate``.

        A request that broke a good session is sent on validated sessions only, so that the request breaks at most one
        session at each backend. If the key manager is distrusted, every reused session is validated: if the key manager
        has sent an answer twice, the second copy does not fit the validation request, and the session is closed.
        ``until`` bounds the waits for a session and the validations. Raises BackendError, PoolBusyError and
        ClientDisconnectedError.
        """
        if job.failures or pool.endpoint.is_distrusted:
            always_validate = True
        session = pool.take(job.principal)
        if session is not None and job.is_read and not always_validate:
            return session
        until = job.deadline if until is None else until
        if session is not None:
            session = await self.validated(pool, session, job, until, always=always_validate)
        while session is None:
            session = await self._wait_in_queue(backend, pool, job, until)
            if job.client_disconnected():
                pool.give_back(session)
                raise ClientDisconnectedError
            if (
                pool.endpoint.is_distrusted
                and session.is_reused
                and not await self._is_alive(pool, session, job, until)
            ):
                session = None
        return session

    async def _wait_in_queue(self, backend: Backend, pool: Pool, job: Job, until: float) -> Session:
        """Wait for a session, for what is left of the job's time in queues.

        The wait for the preferred backend is not counted, so that the other backends keep their time. Nor is a wait
        that ends with a failed handshake: the time went into connecting.
        """
        began = trio.current_time()
        is_counted = backend is not job.preferred
        is_connecting = False
        try:
            session = await self.wait(backend, pool, job, min(began + job.queue_left, until))
            is_connecting = not session.is_reused
        except BackendError:
            is_counted, is_connecting = False, True
            raise
        else:
            return session
        finally:
            seconds = trio.current_time() - began
            times = job.measure()
            if is_connecting:
                times.connect += seconds
            else:
                times.queue += seconds
            if is_counted:
                job.count_wait(seconds)

    async def wait(self, backend: Backend, pool: Pool, job: Job, until: float) -> Session:
        """Wait for a session until the time ``until``. Raises BackendError and PoolBusyError.

        If the job may move to a different backend during the wait, the pool is given the job's effect.
        """
        effect = None if job.is_tied_to(backend) else job.effect
        with trio.move_on_at(until):
            return await pool.wait(job.principal, effect)
        pool.observer.wait_timed_out()
        raise PoolBusyError(f"no session free within {self._settings.pool.queue_timeout:g} s", reason="queue_timeout")

    async def validated(
        self, pool: Pool, session: Session, job: Job, until: float, *, always: bool = False
    ) -> Session | None:
        """Return the session if it passes validation before ``until``; else a second session of the pool, or None.

        A session that was idle for less than ``validate_after`` is returned at once, unless ``always``. Once a session
        has failed, the sessions that were idle as long are validated in the background. Raises PoolBusyError if no time
        is left for a second session, which would fail its validation and be closed.
        """
        idle_since = session.idle_since
        limit = _ALWAYS if always else self._settings.pool.validate_after
        if trio.current_time() - idle_since <= limit or await self._is_alive(pool, session, job, until):
            return session
        self.validate_idle(pool, idle_since)
        if trio.current_time() >= until:
            raise PoolBusyError("no session was validated in time", reason="queue_timeout")
        another = pool.take(job.principal)
        if another is None or await self._is_alive(pool, another, job, until):
            return another
        return None

    async def _is_alive(self, pool: Pool, session: Session, job: Job, until: float) -> bool:
        """Validate a session before ``until``; give it back to its pool if it fails."""
        session.is_repeatable = False
        is_alive = False
        began = trio.current_time()
        try:
            with trio.move_on_at(min(began + self._settings.deadlines.connect, until)):
                await session.exchange(pool.validation_request)
                is_alive = session.is_idle
                session.is_reused = False  # as good as a fresh session
        except BackendError:
            pass
        finally:
            job.measure().connect += trio.current_time() - began
            if not is_alive:
                pool.give_back(session)
        return is_alive

    def validate_idle(self, pool: Pool, idle_since: float) -> None:
        """Validate, in the background, the sessions that have been idle since this time or longer."""
        pool.drop_closed()
        for session in pool.lend_for_validation(idle_since):
            pool.spawn(partial(validate, pool, session, self._settings.deadlines.connect))
