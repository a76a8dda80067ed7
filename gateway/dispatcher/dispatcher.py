"""The dispatcher itself: which answer a request gets, by the order, the tables and the budget."""

from collections.abc import Callable
from typing import Final

import trio

from gateway.dispatcher.answer import BAD_MARKS, NOT_TAKEN, Answer, bad_mark, give_up, refusal
from gateway.dispatcher.attempts import Attempts
from gateway.dispatcher.job import Budgets, ClientGoneError, DispatcherSettings, Job
from gateway.dispatcher.knowledge import Knowledge, Whereabouts
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.identity import Principal
from gateway.kmip.binding import given
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Tag
from gateway.metrics import Metrics
from gateway.policy import (
    Effect,
    Refusal,
    has_failed,
    is_server_error,
    may_be_given_values,
    refused_operation,
)
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.marks import Marks
from gateway.upstream.opening import REFUSED
from gateway.upstream.session import Payer

_BOUND: Final = Effect.BOUND  # access to an enum member is slow
_RESULT_REASON: Final = int(Tag.RESULT_REASON)  # failed operations give one
_PAUSE: Final = 0.1  # s before the backends are tried once more
_MOST_ROUNDS: Final = 5  # through all backends
_GIVE_UP_AFTER: Final = 2  # exchanges that broke on fresh sessions: the request may be at fault

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
        self._budgets = Budgets(settings)
        self._attempts = Attempts(balancer, settings, metrics)
        self._whereabouts = Whereabouts(balancer, self._attempts, settings, knowledge, self._budgets.lookups, metrics)

    def __repr__(self) -> str:
        return f"<Dispatcher over {self._balancer!r}>"

    async def dispatch(
        self,
        request: Request,
        principal: Principal,
        is_gone: Callable[[], bool] = lambda: False,
        payer: Payer | None = None,
    ) -> Answer:
        """Answer a request of a principal, within the request's deadline.

        ``is_gone`` tells if the client has disconnected; it is asked before a request is sent that had to wait, and if
        others wait for the session that a read uses. ``payer`` holds the bytes of answers while they are received.
        """
        operation = refused_operation(request)
        if operation is not None:
            return refusal(Refusal.NOT_SUPPORTED, "this operation is not passed on to key managers", request)
        if self._versions is not None:
            frame = self._versions.answer(request, principal.identity.name)
            if frame is not None:
                return Answer(frame)
        job = Job(request, principal, is_gone, self._settings, self._budgets.retries[principal.identity.name], payer)
        job.retries.in_flight += 1
        try:
            if job.effect >= _BOUND or not _BINDING_HEADERS.isdisjoint(request.fields):
                return await self._try_bound(job)
            return await self._try_in_order(job)
        except ClientGoneError:
            message = "the client closed its side of the connection while the request waited"
            return refusal(Refusal.CLIENT_DISCONNECTED, message, job.request)
        finally:
            job.retries.in_flight -= 1
            if job.has_token or job.breaks or job.kept:
                self._end(job)

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
        frame = self._marks.put(answer.response, values, job.principal, answer.backend.stable_id)
        most = request.maximum_response_size
        if most is not None and len(answer.frame) <= most < len(frame):
            return give_up(request, job.effect, _TOO_LARGE_WITH_MARKS)
        return answer._replace(frame=frame)

    def _take_marks(self, job: Job, marks: Marks) -> Answer | None:
        """Take the marks off a request, and note what they say of its way; or refuse it for them."""
        request = job.request
        backends = {backend.stable_id: backend for backend in self._balancer.backends}
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
        whereabouts, attempts = self._whereabouts, self._attempts
        tries = attempts if job.effect < _BOUND else whereabouts  # which notes what is left where
        while True:
            failure: BackendError | None = None
            busy: PoolBusyError | None = None
            job.order = order = whereabouts.order(job)
            for backend in order:
                job.tried.append(backend)
                try:
                    response = await tries.try_backend(backend, job)
                except PoolBusyError as error:
                    busy = error
                except BackendError as error:
                    failure = error
                    if error.stage > Stage.CONNECT and not await attempts.may_repeat(job, error):
                        break
                else:
                    items = response.items
                    is_plain = len(items) == 1 and _RESULT_REASON not in items[0].fields
                    if is_plain and not (job.breaks or job.answered_by or whereabouts.may_be_late):
                        return Answer.of(response, backend)
                    return await self._answer(job, job.answered_by or backend, response)
                if trio.current_time() >= job.deadline:
                    break
            if not await self._may_go_round(job, failure, busy):
                return self._nothing_left(job, failure, busy)

    def _end(self, job: Job) -> None:
        """Settle what a request has used."""
        if job.has_token:
            job.retries.give_back()
        if job.breaks:
            self._attempts.judge(job, is_answered=False)
        if job.kept:
            job.release()

    async def _answer(self, job: Job, backend: Backend, response: Response) -> Answer:
        """Return the answer that a backend has given, or a better one of another."""
        if job.breaks:
            self._attempts.judge(job, is_answered=True)
        if self._settings.health.observe and job.is_read and is_server_error(response):
            backend, response = await self._second_opinion(job, backend, response)
        if self._whereabouts.may_be_elsewhere(job, response) and job.keeps(response):
            return await self._whereabouts.look_elsewhere(job, job.order, backend, response)
        return Answer.of(response, backend)

    async def _second_opinion(self, job: Job, backend: Backend, response: Response) -> tuple[Backend, Response]:
        """A read failed for what may be the key manager's own reason: try another one, once, if the budget allows.

        Only a success counts. It speaks against the first backend.
        """
        version = job.request.version
        if (
            job.source is not None
            or not self._balancer.has_other(job.tried, job.credential, job.effect, version)
            or not job.keeps(response)
            or not await self._attempts.has_token(job, self._settings.failover.try_timeout)
        ):
            return backend, response
        began = trio.current_time()
        other = next(job.order, None)
        if other is None:
            return backend, response
        job.tried.append(other)
        until = min(job.deadline, began + self._settings.failover.try_timeout)
        # If this was a trial, it has not ended: else every request would be sent to the first backend meanwhile.
        trials = backend.breaker.enter(job.credential, job.effect, began)
        try:
            another = await self._attempts.try_backend(other, job, until)
        except (BackendError, PoolBusyError):
            return backend, response
        finally:
            backend.breaker.leave(trials)
        if has_failed(another):
            return backend, response
        self._attempts.failed(backend, job, began)
        return other, another

    async def _may_go_round(self, job: Job, failure: BackendError | None, busy: PoolBusyError | None) -> bool:
        """Return True, perhaps after a wait, if the backends should be tried once more.

        That is so for a read that broke once, and as long as nobody can be reached, but for a short time only.
        """
        job.rounds += 1
        if failure is None or trio.current_time() >= job.deadline:
            return False
        if failure.stage > Stage.CONNECT:
            if not job.is_read or len(job.breaks) >= _GIVE_UP_AFTER or job.rounds >= _MOST_ROUNDS:
                return False
            if failure.reason in NOT_TAKEN or not job.has_token:
                return False
            await trio.sleep(_PAUSE)
        elif busy is not None or failure.reason in REFUSED or not await self._outlasts_outage(job):
            return False
        if job.is_gone():
            raise ClientGoneError
        job.tried.clear()
        return True

    async def _outlasts_outage(self, job: Job) -> bool:
        """Wait until a session opens, if nobody can be reached; return False if that does not happen in time.

        A request waits only in the first seconds of an outage: afterwards its client is better told at once.
        """
        now = trio.current_time()
        able = [backend for backend in self._balancer.backends if backend.accepts(job.effect)]
        if job.source is not None:
            able = [job.source]
        pools = [backend.pools[job.credential] for backend in able]
        since = max((pool.failing_since for pool in pools), default=now)
        if since == float("inf"):  # somebody can be reached: a session was lost in the moment of sending
            await trio.sleep(_PAUSE)
            return job.rounds < _MOST_ROUNDS
        until = min(now + job.queue_left, job.deadline, since + self._settings.pool.queue_timeout)
        if not pools or now >= until:
            return False
        opened = trio.Event()
        try:
            for pool in pools:
                pool.reopened.add(opened)
            with trio.move_on_at(until):
                await opened.wait()
        finally:
            for pool in pools:
                pool.reopened.discard(opened)
            job.queue_left -= trio.current_time() - now
        return opened.is_set()

    def _nothing_left(self, job: Job, failure: BackendError | None, busy: PoolBusyError | None) -> Answer:
        request = job.request
        if failure is not None and failure.stage > Stage.CONNECT:
            return give_up(request, job.effect, failure)
        if busy is not None:
            message = "too many requests are waiting for key managers"
            return refusal(Refusal.OVERLOADED, message, request, detail=str(busy))
        if trio.current_time() >= job.deadline:
            return refusal(Refusal.DEADLINE, f"no session within {self._settings.deadlines.request:g} s", request)
        detail = "no key manager takes requests that change something" if failure is None else str(failure)
        message = "no key manager can be reached" if job.source is None else BAD_MARKS[Refusal.NO_BACKEND]
        return refusal(Refusal.NO_BACKEND, message, request, detail=detail)


_TOO_LARGE_WITH_MARKS: Final = BackendError(
    "with marks, the answer is longer than the client takes", backend="gateway", stage=Stage.READ, reason="too_large"
)
