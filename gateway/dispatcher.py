"""The dispatcher: one request in, one answer out.

It asks the balancer for an order, leases a session, has the request exchanged, and decides by how far an attempt came
whether another backend may be tried. One deadline covers all of it.
"""

import time
from typing import NamedTuple

import trio

from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.identity import Principal
from gateway.kmip.messages import Request, Response
from gateway.policy import Refusal, refuse, refused_operation
from gateway.upstream.balancer import Balancer
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session


class Deadlines(NamedTuple):
    """In seconds: for a request over all, and for waiting for a session in it."""

    request: float = 30.0
    queue: float = 5.0


class Answer(NamedTuple):
    """What a client gets: the key manager's frame, or the gateway's own where ``refusal`` says why."""

    frame: bytes
    response: Response | None = None
    refusal: Refusal | None = None
    detail: str = ""


class Dispatcher:
    """Finds an answer to each request. Never raises for what a backend or a queue does: every outcome is an Answer."""

    def __init__(self, balancer: Balancer, deadlines: Deadlines) -> None:
        self._balancer = balancer
        self._deadlines = deadlines

    async def dispatch(self, request: Request, principal: Principal) -> Answer:
        """Answer a request of a principal. Takes no longer than the request's deadline."""
        operation = refused_operation(request)
        if operation is not None:
            return _refusal(Refusal.NOT_SUPPORTED, "this operation is not passed on to key managers", request)
        attempt = _Attempt()
        with trio.move_on_after(self._deadlines.request):
            return await self._try_in_order(request, principal, attempt)
        if attempt.stage > Stage.CONNECT:
            return _unknown(request, f"no answer within {self._deadlines.request:g} s")
        return _refusal(Refusal.DEADLINE, f"no session within {self._deadlines.request:g} s", request)

    async def _try_in_order(self, request: Request, principal: Principal, attempt: "_Attempt") -> Answer:
        """Try one backend after the other, as long as nothing was sent."""
        failure: BackendError | PoolBusyError | None = None
        queue_deadline = trio.current_time() + self._deadlines.queue
        for pool in self._balancer.order(principal.identity.name):
            try:
                session = pool.take() or await self._wait(pool, queue_deadline)
            except (BackendError, PoolBusyError) as error:
                failure = error
                continue
            try:
                response = await self._exchange(pool, session, request, attempt)
            except BackendError as error:
                return _unknown(request, error.args[0])
            return Answer(response.frame, response)
        if isinstance(failure, PoolBusyError):
            return _refusal(Refusal.OVERLOADED, str(failure), request)
        return _refusal(Refusal.NO_BACKEND, "no key manager can be reached", request, detail=str(failure))

    async def _wait(self, pool: Pool, deadline: float) -> Session:
        with trio.move_on_at(deadline):
            return await pool.wait()
        raise PoolBusyError(f"no session free within {self._deadlines.queue:g} s", reason="queue_timeout")

    async def _exchange(self, pool: Pool, session: Session, request: Request, attempt: "_Attempt") -> Response:
        began = time.perf_counter()
        result = "cancelled"
        try:
            response = await session.exchange(request)
            result = "answered"
        except BackendError as error:
            result = f"{error.stage.name.lower()}_{error.reason}"
            raise
        finally:
            attempt.stage = session.stage
            pool.give_back(session)
            pool.observer.exchanged(result, time.perf_counter() - began)
        return response


class _Attempt:
    """How far a request came, for the moment when its deadline cuts it off."""

    __slots__ = ("stage",)

    def __init__(self) -> None:
        self.stage = Stage.CONNECT


def _refusal(refusal: Refusal, message: str, request: Request, *, detail: str = "") -> Answer:
    return Answer(refuse(refusal, message, request), refusal=refusal, detail=detail or message)


def _unknown(request: Request, detail: str) -> Answer:
    message = "the key manager did not answer; the outcome is unknown, do not blindly repeat the request"
    return _refusal(Refusal.OUTCOME_UNKNOWN, message, request, detail=detail)
