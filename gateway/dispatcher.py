"""The dispatcher: one request in, one answer out.

It asks the balancer for an order, leases a session, has the request exchanged, and decides by two tables, what the
request would do if it ran twice and how far the attempt came, whether it may be tried again. One deadline covers all.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple, Self

import trio

from gateway.budget import RetryBudget
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.identity import Principal
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Tag
from gateway.metrics import Metrics
from gateway.policy import (
    Effect,
    Refusal,
    effect_of,
    found_by,
    has_done_something,
    is_missing_something,
    makes_only_new,
    may_be_given_values,
    may_repeat,
    refuse,
    refused_operation,
)
from gateway.upstream.affinity import Affinity
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.marks import Marks
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session
from gateway.upstream.versions import CommonVersions


class DispatcherSettings(NamedTuple):
    """Times in seconds.

    ``request`` is for a request over all, ``queue`` for waiting for sessions in it, ``try_timeout`` for one try of a
    request that may be repeated. Before one that may not, a session that was idle for longer than ``validate_after``
    has ``proof`` to prove itself alive. The rest are a RetryBudget's.
    """

    request: float = 30.0
    queue: float = 5.0
    try_timeout: float = 5.0
    validate_after: float = 1.0
    proof: float = 3.0
    retry_fraction: float = 0.2
    retry_floor: float = 1.0


class Knowledge(NamedTuple):
    """What key managers know and others do not, and what is done about it; by default, nothing.

    ``affinity`` keeps a client's requests together, ``marks`` find the backend that gave a value, ``versions`` answers
    for all of them. ``asks_others`` says whether others are asked when one knows nothing of an object.
    """

    affinity: Affinity | None = None
    marks: Marks | None = None
    versions: CommonVersions | None = None
    asks_others: bool = False


_REPEATABLE: Final = Effect.TOUCH  # a member of an enumeration is slow to come by
_BOUND: Final = Effect.BOUND


class Answer(NamedTuple):
    """What a client gets: the key manager's frame, or the gateway's own; ``refusal`` says why it is a refusal."""

    frame: bytes
    response: Response | None = None
    refusal: Refusal | None = None
    detail: str = ""
    backend: Backend | None = None

    @classmethod
    def of(cls, response: Response, backend: Backend) -> Self:
        """A key manager's."""
        return cls(response.frame, response, backend=backend)


class _Job:
    """A request on its way, and what binds it: ``deadline`` in trio's time, ``queue_left`` in seconds of waiting."""

    __slots__ = (
        "credential",
        "deadline",
        "effect",
        "is_gone",
        "preferred",
        "principal",
        "queue_left",
        "request",
        "source",
        "stays",
        "tried",
    )

    def __init__(
        self, request: Request, principal: Principal, is_gone: Callable[[], bool], settings: DispatcherSettings
    ) -> None:
        self.request = request
        self.principal = principal
        self.credential = principal.identity.name
        self.effect = effect_of(request)
        self.deadline = trio.current_time() + settings.request
        self.queue_left = settings.queue
        self.is_gone = is_gone
        self.tried: list[Backend] = []
        self.source: Backend | None = None  # the only one that can answer, as a mark says
        self.preferred: Backend | None = None  # the one to try first
        self.stays: list[str] = []  # on which backends the client has just left something


class Dispatcher:
    """Finds an answer to each request. Never raises for what a backend or a queue does: every outcome is an Answer."""

    def __init__(
        self,
        balancer: Balancer,
        settings: DispatcherSettings,
        *,
        metrics: Metrics,
        knowledge: Knowledge = Knowledge(),  # noqa: B008 - it is frozen
    ) -> None:
        self._balancer = balancer
        self._settings = settings
        self._metrics = metrics
        self._affinity, self._marks, self._versions, self._asks_others = knowledge
        self._may_be_late = self._asks_others or (self._affinity is not None and not self._affinity.is_shared)
        self._budgets: dict[str, RetryBudget] = {}
        self._asking_budgets: dict[str, RetryBudget] = {}

    async def dispatch(
        self, request: Request, principal: Principal, is_gone: Callable[[], bool] = lambda: False
    ) -> Answer:
        """Answer a request of a principal, within the request's deadline.

        ``is_gone`` tells whether the client has left; it is asked before a request is sent that had to wait. The answer
        to one that has is empty.
        """
        operation = refused_operation(request)
        if operation is not None:
            return _refusal(Refusal.NOT_SUPPORTED, "this operation is not passed on to key managers", request)
        if self._versions is not None:
            frame = self._versions.answer(request, principal.identity.name)
            if frame is not None:
                return Answer(frame)
        job = _Job(request, principal, is_gone, self._settings)
        try:
            if self._marks is not None and (job.effect >= _BOUND or _MARKED_HEADERS & request.fields.keys()):
                return await self._try_bound(job, self._marks)
            return await self._try_in_order(job)
        except _ClientGoneError:
            return Answer(b"", detail="the client has left")

    async def _try_bound(self, job: _Job, marks: Marks) -> Answer:
        """As below, for a request that may show marks, and whose answer may need some."""
        request = job.request
        backends = {backend.known_as: backend for backend in self._balancer.backends}
        taken = marks.take(request, job.principal, backends, leave_room=may_be_given_values(request))
        if taken.refusal is not None:
            return _refusal(taken.refusal, _BAD_MARKS[taken.refusal], request)
        job.request = taken.request
        source = backends.get(taken.backend)
        if taken.is_ticket:  # another key manager may know it, too, or says that one must log in again
            job.preferred = source
        else:
            job.source = source
        answer = await self._try_in_order(job)
        if answer.response is None or answer.backend is None:
            return answer
        frame = marks.put(answer.response, request, job.principal, answer.backend.known_as)
        most = request.maximum_response_size
        if most is not None and len(answer.frame) <= most < len(frame):
            return self._give_up(job, _TOO_LARGE_WITH_MARKS)
        return answer._replace(frame=frame)

    async def _try_in_order(self, job: _Job) -> Answer:
        """Try one backend after the other, as long as the tables, the budget and the deadline allow."""
        budget = self._budget(self._budgets, job.credential)
        budget.request()
        failure: BackendError | None = None
        busy: PoolBusyError | None = None
        order = self._order(job)
        for backend in order:
            job.tried.append(backend)
            is_news = job.effect >= _BOUND and self._note(job, backend)  # its next request may come before the answer
            try:
                response = await self._try_backend(backend, job, budget)
            except PoolBusyError as error:
                busy = error
            except BackendError as error:
                failure = error
                if error.stage > Stage.CONNECT and not self._may_repeat(job, error, budget):
                    return self._give_up(job, error)
            else:
                if job.effect >= _BOUND:
                    self._settle(job, backend, response, is_news=is_news)
                answer = Answer.of(response, backend)
                if self._may_be_late and _may_be_known_elsewhere(job.effect, response):
                    return await self._look_elsewhere(job, order, answer)
                return answer
            if is_news:
                self._drop(job, backend)
            if trio.current_time() >= job.deadline:
                break
        return self._nothing_left(job, failure, busy)

    def _order(self, job: _Job) -> Iterator[Backend]:
        """Who should be tried, best first; only the source of what a request is bound to, where a mark names it."""
        if job.source is not None:
            return iter((job.source,))
        if self._affinity is not None and len(self._affinity):
            is_bound = job.effect is _BOUND or Tag.AUTHENTICATION in job.request.fields
            job.stays = self._affinity.stays(job.principal, trio.current_time(), is_bound=is_bound)
            if job.stays and job.preferred is None:
                job.preferred = self._balancer.where_it_stays(
                    job.stays, job.credential, is_new=makes_only_new(job.request)
                )
        return self._balancer.order(job.credential, job.effect, job.request.version, job.preferred)

    # What one key manager does not know ------------------------------------------------------------------------------

    async def _look_elsewhere(self, job: _Job, order: Iterator[Backend], answer: Answer) -> Answer:
        """One key manager does not have what was asked for, or not yet: see to it before the client hears that.

        A read is asked of the others; what failed for want of its object has not run, and goes to those on which the
        client has just changed something. Gives the answer that found most; where no other found more, the first. But
        where one of those can't be asked, nobody knows what is missing.
        """
        unheard = set(job.stays) - {backend.known_as for backend in job.tried[-1:]}
        found, outcome = _found_by(answer), "missing"
        budget = self._budget(self._asking_budgets, job.credential)
        budget.request()
        whole = job.deadline
        for backend in order:
            asks = backend.known_as in unheard or (self._asks_others and job.effect <= _REPEATABLE)
            if not asks or not backend.is_available_to(job.credential):
                continue
            now = trio.current_time()
            if now >= whole or not budget.withdraw(now):
                outcome = "denied" if outcome == "missing" else outcome
                break
            job.tried.append(backend)
            if job.effect <= _REPEATABLE:  # there is an answer already, which should not wait for long
                job.deadline = min(whole, now + self._settings.try_timeout)
            try:
                other = Answer.of(await self._try_backend(backend, job, budget), backend)
            except PoolBusyError:
                continue
            except BackendError as error:
                if error.stage > Stage.CONNECT and job.effect > _REPEATABLE:
                    return self._give_up(job, error)
                continue
            unheard.discard(backend.known_as)
            if _found_by(other) > found:
                answer, found, outcome = other, _found_by(other), "found"
                if job.effect > _REPEATABLE:
                    break
        self._metrics.others_asked.labels(outcome).inc()
        if unheard and _is_missing_something(answer):
            return _refusal(Refusal.BACKEND_FAILED, _UNHEARD, job.request, detail=f"{sorted(unheard)}: {_UNHEARD}")
        return answer

    def _note(self, job: _Job, backend: Backend) -> bool:
        """Keep the client's next requests where this one leaves something that others may not have."""
        if self._affinity is None:
            return False
        return self._affinity.note(job.principal, job.effect, backend.known_as, trio.current_time())

    def _settle(self, job: _Job, backend: Backend, response: Response, *, is_news: bool) -> None:
        """The answer says whether something was left: the window begins anew, or it is as it was before."""
        if has_done_something(response):
            self._note(job, backend)
        elif is_news:
            self._drop(job, backend)

    def _drop(self, job: _Job, backend: Backend) -> None:
        if self._affinity is not None:
            self._affinity.drop(job.principal, job.effect, backend.known_as)

    # Trying ----------------------------------------------------------------------------------------------------------

    async def _try_backend(self, backend: Backend, job: _Job, budget: RetryBudget) -> Response:
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
            if error.stage > Stage.CONNECT and not self._may_repeat(job, error, budget):
                raise
        return await self._exchange(backend, pool, await self._lease(pool, job), job)

    # Leasing ---------------------------------------------------------------------------------------------------------

    async def _lease(self, pool: Pool, job: _Job) -> Session:
        session = pool.take()
        if session is not None and job.effect > _REPEATABLE:
            session = await self._proved(pool, session, job)
        if session is None:
            session = await self._wait(pool, job)
            if job.is_gone():
                pool.give_back(session)
                raise _ClientGoneError
        return session

    async def _wait(self, pool: Pool, job: _Job) -> Session:
        began = trio.current_time()
        try:
            left = job.queue_left
            if job.preferred is not None and pool is job.preferred.pools[job.credential]:
                left /= 2  # others, where one need not wait, may serve it
            with trio.move_on_at(min(began + left, job.deadline)):
                return await pool.wait(job.principal)
        except BackendError:
            began = trio.current_time()  # it was not the queue that took so long
            raise
        finally:
            job.queue_left -= trio.current_time() - began
        raise PoolBusyError(f"no session free within {self._settings.queue:g} s", reason="queue_timeout")

    async def _proved(self, pool: Pool, session: Session | None, job: _Job) -> Session | None:
        """A session that was used just now, or has proved itself alive just now; None where no idle one is."""
        while session is not None and trio.current_time() - session.idle_since > self._settings.validate_after:
            if await self._proves_alive(pool, session, job):
                return session
            pool.drop_idle("stale")
            session = pool.take()
        return session

    async def _proves_alive(self, pool: Pool, session: Session, job: _Job) -> bool:
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

    async def _exchange(self, backend: Backend, pool: Pool, session: Session, job: _Job) -> Response:
        began = time.perf_counter()
        result = "cancelled"
        is_reused = session.requests > 0
        backend.outstanding += 1
        try:
            response = await self._exchange_in_time(pool, session, job)
            result = "answered"
        except BackendError as error:
            result = f"{error.stage.name.lower()}_{error.reason}"
            if error.reason not in _NOBODYS_FAULT and not (is_reused and _is_stale(error)):
                pool.exchange_failed()
            raise
        finally:
            backend.outstanding -= 1
            pool.give_back(session)
            pool.observer.exchanged(result, time.perf_counter() - began)
        pool.answered()
        return response

    async def _exchange_in_time(self, pool: Pool, session: Session, job: _Job) -> Response:
        """Exchange within the request's deadline; within the try's, where another backend is left when that comes."""
        session.is_repeatable = job.effect <= _REPEATABLE and job.source is None
        due = job.deadline
        if session.is_repeatable:
            due = min(due, trio.current_time() + self._settings.try_timeout)
        pool.alarms.set(session.alarm, due, partial(self._overdue, pool, session, job))
        try:
            return await session.exchange(job.request)
        finally:
            session.alarm.stop()

    def _overdue(self, pool: Pool, session: Session, job: _Job) -> None:
        request = job.request
        if trio.current_time() >= job.deadline or self._balancer.has_other(
            job.tried, job.credential, job.effect, request.version
        ):
            session.expire()
        else:
            pool.alarms.set(session.alarm, job.deadline, session.expire)

    # Deciding --------------------------------------------------------------------------------------------------------

    def _budget(self, budgets: dict[str, RetryBudget], credential: str) -> RetryBudget:
        """One for each identity: none uses up the retries of another."""
        budget = budgets.get(credential)
        if budget is None:
            settings = self._settings
            budget = RetryBudget(fraction=settings.retry_fraction, floor=settings.retry_floor)
            budgets[credential] = budget
        return budget

    def _may_repeat(self, job: _Job, error: BackendError, budget: RetryBudget) -> bool:
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

    def _nothing_left(self, job: _Job, failure: BackendError | None, busy: PoolBusyError | None) -> Answer:
        request = job.request
        if failure is not None and failure.stage > Stage.CONNECT:
            return self._give_up(job, failure)
        if busy is not None:
            message = "too many requests are waiting for key managers"
            return _refusal(Refusal.OVERLOADED, message, request, detail=str(busy))
        if trio.current_time() >= job.deadline:
            return _refusal(Refusal.DEADLINE, f"no session within {self._settings.request:g} s", request)
        detail = "no key manager takes requests that change something" if failure is None else str(failure)
        message = "no key manager can be reached"
        if job.source is not None:
            message = _BAD_MARKS[Refusal.NO_BACKEND]
        return _refusal(Refusal.NO_BACKEND, message, request, detail=detail)

    def _give_up(self, job: _Job, error: BackendError) -> Answer:
        """Say truly what became of a request that was sent: for what may not be repeated, that nobody knows."""
        is_repeatable = job.effect <= _REPEATABLE
        refusal, message = _LAST_WORDS[error.reason == "too_large", is_repeatable]
        return _refusal(refusal, message, job.request, detail=str(error))


#: What a client is told of a request that was sent: by whether its answer was too large, and whether it repeats.
_LAST_WORDS = {
    (False, True): (Refusal.BACKEND_FAILED, "no key manager answered; the request may be repeated"),
    (False, False): (
        Refusal.OUTCOME_UNKNOWN,
        "the key manager did not answer properly: the outcome is unknown, do not repeat the request blindly",
    ),
    (True, True): (Refusal.RESPONSE_TOO_LARGE, "the answer is larger than this gateway passes on"),
    (True, False): (
        Refusal.RESPONSE_TOO_LARGE,
        "the answer is larger than this gateway passes on, so that the outcome is unknown",
    ),
}
_BAD_MARKS = {
    Refusal.UNKNOWN_ASYNCHRONOUS_VALUE: "no key manager here gave this client this asynchronous correlation value",
    Refusal.UNKNOWN_CORRELATION_VALUE: "no key manager here gave this client this correlation value",
    Refusal.UNKNOWN_TICKET: "no key manager here gave this client this ticket",
    Refusal.NO_BACKEND: "the key manager that holds this request's state can't be reached; try again later",
    Refusal.SEVERAL_BACKENDS: "one batch can't use values that two key managers gave",
}
_UNHEARD = (
    "this is not known where it was looked for, and a key manager on which this client has just changed something can't"
    " be asked; try again later"
)
#: Header fields with which a request may show or be given a marked value, whatever its operations are.
_MARKED_HEADERS = frozenset({int(Tag.AUTHENTICATION), int(Tag.ASYNCHRONOUS_INDICATOR)})
_TOO_LARGE_WITH_MARKS = BackendError(
    "with marks, the answer is longer than the client takes", backend="gateway", stage=Stage.READ, reason="too_large"
)
#: Reasons of failures that say nothing of the backend's health.
_NOBODYS_FAULT = frozenset({"interrupted", "too_large"})


class _ClientGoneError(Exception):
    """The client has left while its request was waiting."""


def _is_stale(error: BackendError) -> bool:
    """Whether a session turned out to be closed, without a byte of an answer: the race that pools can't win."""
    return error.reason == "closed" and error.stage < Stage.READ


def _found_by(answer: Answer) -> int:
    return 0 if answer.response is None else found_by(answer.response)


def _may_be_known_elsewhere(effect: Effect, response: Response) -> bool:
    """Whether something is missing in the answer to a read, or for want of which nothing else was done."""
    return is_missing_something(response) and (effect <= _REPEATABLE or not has_done_something(response))


def _is_missing_something(answer: Answer) -> bool:
    return answer.response is not None and is_missing_something(answer.response)


def _refusal(refusal: Refusal, message: str, request: Request, *, detail: str = "") -> Answer:
    return Answer(refuse(refusal, message, request), refusal=refusal, detail=detail or message)
