"""The dispatcher itself: which answer a request gets, by the order, the tables and the budget."""

from collections.abc import Callable
from typing import Final

import trio

from gateway.budget import RetryBudgets
from gateway.dispatcher.answer import BAD_MARKS, Answer, bad_mark, give_up, refusal
from gateway.dispatcher.attempts import Attempts
from gateway.dispatcher.job import ClientGoneError, DispatcherSettings, Job
from gateway.dispatcher.knowledge import Knowledge, Whereabouts
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.identity import Principal
from gateway.kmip.binding import given
from gateway.kmip.messages import Request
from gateway.kmip.spec import Tag
from gateway.metrics import Metrics
from gateway.policy import Effect, Refusal, may_be_given_values, refused_operation
from gateway.upstream.balancer import Balancer
from gateway.upstream.marks import Marks

_BOUND: Final = Effect.BOUND  # a member of an enumeration is slow to come by

#: Header fields with which a request may show or be given a value that binds it, whatever its operations are.
_BINDING_HEADERS: Final = frozenset({int(Tag.AUTHENTICATION), int(Tag.ASYNCHRONOUS_INDICATOR)})


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
        self._marks = knowledge.marks
        self._versions = knowledge.versions
        self._attempts = Attempts(balancer, settings, metrics)
        self._whereabouts = Whereabouts(balancer, self._attempts, settings, knowledge, metrics)
        self._budgets = RetryBudgets(settings.retry_fraction, settings.retry_floor)

    def __repr__(self) -> str:
        return f"<Dispatcher over {self._balancer!r}>"

    async def dispatch(
        self, request: Request, principal: Principal, is_gone: Callable[[], bool] = lambda: False
    ) -> Answer:
        """Answer a request of a principal, within the request's deadline.

        ``is_gone`` tells whether the client has left; it is asked before a request is sent that had to wait. The answer
        to one that has is empty.
        """
        operation = refused_operation(request)
        if operation is not None:
            return refusal(Refusal.NOT_SUPPORTED, "this operation is not passed on to key managers", request)
        if self._versions is not None:
            frame = self._versions.answer(request, principal.identity.name)
            if frame is not None:
                return Answer(frame)
        job = Job(request, principal, is_gone, self._settings)
        try:
            if job.effect >= _BOUND or not _BINDING_HEADERS.isdisjoint(request.fields):
                return await self._try_bound(job)
            return await self._try_in_order(job)
        except ClientGoneError:
            return Answer(b"", detail="the client has left")

    async def _try_bound(self, job: Job) -> Answer:
        """As below, for a request that may show values which bind it to a backend, or be given some."""
        request = job.request
        if self._marks is not None:
            refused = self._take_marks(job, self._marks)
            if refused is not None:
                return refused
        answer = await self._try_in_order(job)
        if answer.response is None or answer.backend is None:
            return answer
        values = given(answer.response, request)
        if not values:
            return answer
        self._whereabouts.note_values(job, answer.backend)
        if self._marks is None:
            return answer
        frame = self._marks.put(answer.response, values, job.principal, answer.backend.known_as)
        most = request.maximum_response_size
        if most is not None and len(answer.frame) <= most < len(frame):
            return give_up(request, job.effect, _TOO_LARGE_WITH_MARKS)
        return answer._replace(frame=frame)

    def _take_marks(self, job: Job, marks: Marks) -> Answer | None:
        """Take the marks off a request, and note what they say of its way; or refuse it for them."""
        request = job.request
        backends = {backend.known_as: backend for backend in self._balancer.backends}
        taken = marks.take(request, job.principal, backends, leave_room=may_be_given_values(request))
        if taken.refusal is not None:
            return bad_mark(taken.refusal, request)
        job.request = taken.request
        source = backends.get(taken.backend)
        if taken.is_ticket:  # another key manager may know it, too, or says that one must log in again
            job.preferred = source
        else:
            job.source = source
        return None

    async def _try_in_order(self, job: Job) -> Answer:
        """Try one backend after the other, as long as the tables, the budget and the deadline allow."""
        budget = self._budgets.of(job.credential)
        budget.request()
        whereabouts, attempts = self._whereabouts, self._attempts
        failure: BackendError | None = None
        busy: PoolBusyError | None = None
        tries = attempts if job.effect < _BOUND else whereabouts  # which notes what is left where
        order = whereabouts.order(job)
        for backend in order:
            job.tried.append(backend)
            try:
                response = await tries.try_backend(backend, job, budget)
            except PoolBusyError as error:
                busy = error
            except BackendError as error:
                failure = error
                if error.stage > Stage.CONNECT and not attempts.may_repeat(job, error, budget):
                    return give_up(job.request, job.effect, error)
            else:
                if whereabouts.may_be_elsewhere(job, response):
                    return await whereabouts.look_elsewhere(job, order, backend, response)
                return Answer.of(response, backend)
            if trio.current_time() >= job.deadline:
                break
        return self._nothing_left(job, failure, busy)

    def _nothing_left(self, job: Job, failure: BackendError | None, busy: PoolBusyError | None) -> Answer:
        request = job.request
        if failure is not None and failure.stage > Stage.CONNECT:
            return give_up(request, job.effect, failure)
        if busy is not None:
            message = "too many requests are waiting for key managers"
            return refusal(Refusal.OVERLOADED, message, request, detail=str(busy))
        if trio.current_time() >= job.deadline:
            return refusal(Refusal.DEADLINE, f"no session within {self._settings.request:g} s", request)
        detail = "no key manager takes requests that change something" if failure is None else str(failure)
        message = "no key manager can be reached" if job.source is None else BAD_MARKS[Refusal.NO_BACKEND]
        return refusal(Refusal.NO_BACKEND, message, request, detail=detail)


_TOO_LARGE_WITH_MARKS: Final = BackendError(
    "with marks, the answer is longer than the client takes", backend="gateway", stage=Stage.READ, reason="too_large"
)
