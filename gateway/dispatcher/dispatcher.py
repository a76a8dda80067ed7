"""The dispatcher itself: tries backends in order until a request has its answer, by policy, budget and deadline."""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import trio

from gateway.dispatcher.answer import BAD_MARKS, NOT_TAKEN, Answer, bad_mark, denied, final_error, refusal
from gateway.dispatcher.attempts import Attempts
from gateway.dispatcher.fallback_lookup import FallbackLookup, ask_others
from gateway.dispatcher.job import Budgets, ClientDisconnectedError, DispatcherSettings, Job
from gateway.dispatcher.replication import ReplicationPolicy, StickyRouting
from gateway.errors import BackendError, MintingError, PoolBusyError, Stage
from gateway.fast_metrics import Reading
from gateway.identity import Principal
from gateway.kmip.binding import given
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Tag
from gateway.metrics import Metrics
from gateway.policy import (
    Refusal,
    effect_of,
    has_failed,
    is_server_error,
    may_be_given_values,
)
from gateway.upstream.affinity import Affinity
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.marks import Taken
from gateway.upstream.minted import MintedCredentials
from gateway.upstream.opening import REFUSED
from gateway.upstream.passwords import Password
from gateway.upstream.session import Payer

_RESULT_REASON: Final = int(Tag.RESULT_REASON)  # field of a response item whose operation failed
_PAUSE: Final = 0.1  # s between two rounds
_MAX_ROUNDS: Final = 5  # of one request through all backends
_MAX_FAILURES: Final = 2  # counted failures of a read, after which no further round begins: the read may be at fault

#: Header fields by which a request may show or be given a correlation value or ticket, whatever its operations are.
_STATE_HEADERS: Final = frozenset({int(Tag.AUTHENTICATION), int(Tag.ASYNCHRONOUS_INDICATOR)})

#: Result Messages of the gateway's own refusals; the reasons for the operator are in the log.
_CLIENT_CREDENTIAL: Final = (
    "requests through this gateway must not carry a credential: the gateway puts in the one of this client; remove user"
    " name, password or device from the client's configuration"
)
_NOT_MINTED: Final = (
    "the gateway may not show this client's names to the key managers; ask its operator, whose log says why"
)

_TOO_LARGE_WITH_MARKS: Final = BackendError(
    "with marks, the answer is longer than the client's Maximum Response Size",
    backend="gateway",
    stage=Stage.READ,
    reason="too_large",
)


class Observer(Protocol):
    """Learns of each request that is forwarded. If ``refuses``, it is asked before, and may refuse the request."""

    @property
    def measures(self) -> bool:
        """True if the job is to keep the times of its exchanges."""

    @property
    def refuses(self) -> bool:
        """True if ``before_forwarding`` must be asked."""

    async def before_forwarding(self, job: Job) -> Answer | None:
        """Return None if the request may be forwarded, or the refusal."""

    def after_forwarding(self, job: Job) -> None:
        """Take note of the end of a request, whether it was answered or not."""


class Dispatcher:
    """Finds an answer to each request. Never raises for a fault of a backend or a queue: every outcome is an Answer.

    ``passwords`` are put into the requests of their identities; the mapping may change. ``minted`` are the credentials
    of principals that have one of their own.
    """

    def __init__(
        self,
        balancer: Balancer,
        settings: DispatcherSettings,
        *,
        metrics: Metrics,
        replication: ReplicationPolicy = ReplicationPolicy(),  # noqa: B008 - it is frozen
        passwords: Mapping[str, Password] | None = None,
        minted: MintedCredentials | None = None,
    ) -> None:
        self._passwords = {} if passwords is None else passwords
        self._minted = minted
        self._balancer = balancer
        self._settings = settings
        self._metrics = metrics
        self._replication = replication
        self._versions = replication.versions
        self._budgets = Budgets(settings)
        self._attempts = Attempts(balancer, settings, metrics)
        self._affinity = Affinity(0.0) if replication.affinity is None else replication.affinity
        self._sticky = StickyRouting(
            balancer,
            self._attempts,
            self._affinity,
            self._budgets.lookups,
            fallback_on_not_found=replication.fallback_on_not_found,
        )

    def __repr__(self) -> str:
        return f"<Dispatcher over {self._balancer!r}>"

    def settings_changed(self) -> None:
        """Use the settings as they are now: a reload has changed them in place."""
        self._budgets.settings_changed()
        self._attempts.settings_changed()
        self._affinity.window = self._settings.replication.read_your_writes_window

    def requests_in_flight(self, identity: str) -> int:
        """Return the number of requests of an identity that are under way."""
        return self._budgets.retries[identity].in_flight

    def retry_tokens(self) -> list[Reading]:
        """Return the tokens of each identity's retry budget by state: held and free."""
        budgets = self._budgets.retries.items()
        return [
            ((name, state), number)
            for name, budget in budgets
            for state, number in (("held", budget.held), ("free", budget.free))
        ]

    def forget_identity(self, name: str) -> None:
        """Forget the budgets of an identity that was removed, which has no request under way."""
        self._budgets.forget(name)

    async def dispatch(
        self,
        request: Request,
        principal: Principal,
        client_disconnected: Callable[[], bool] = lambda: False,
        payer: Payer | None = None,
        observer: Observer | None = None,
        now: float | None = None,
    ) -> Answer:
        """Answer a request of a principal, within the request's deadline.

        ``client_disconnected`` returns True once the client has disconnected. It is called after a wait, before the
        request is sent, and during a read, if other requests wait for the session that the read uses. ``payer`` counts
        the bytes of answers while they are received. ``observer`` learns of the request if it is forwarded. ``now`` is
        trio's time, if the caller has just looked.
        """
        identity, items = principal.identity, request.items
        if len(items) > 1 or items[0].operation not in identity.permissions.free:
            denials = identity.permissions.denials(request)
            if denials:
                self._metrics.operations_denied(identity.name, denials)
                return denied(request, denials)
        if self._versions is not None:
            frame = self._versions.answer(request, principal.credential)
            if frame is not None:
                return Answer(frame)
        effect = effect_of(request)
        may_carry_state = effect.leaves_state or not _STATE_HEADERS.isdisjoint(request.fields)
        bare, marked, is_ticket = request, None, False
        if may_carry_state or self._passwords:
            prepared = self._prepare(request, principal, may_carry_state=may_carry_state)
            if isinstance(prepared, Answer):
                return prepared
            bare, marked, is_ticket = prepared
        retries = self._budgets.retries[identity.name]
        now = trio.current_time() if now is None else now
        job = Job(bare, principal, effect, self._settings, retries, client_disconnected, payer, now)
        if marked is not None:
            job.start_at(marked, only=not is_ticket)  # another backend may know a ticket, or asks for a new login
        retries.in_flight += 1
        outcome = "abandoned"
        if observer is not None and observer.measures:
            job.measure()
        try:
            refused = None if observer is None or not observer.refuses else await observer.before_forwarding(job)
            if refused is not None:
                return refused
            answer = await (self._try_in_order(job) if principal.names is None else self._try_as_minted(job))
            outcome = "failed" if answer.response is None else "answered"
            answer = answer if job.times is None else _with_stages(answer, job)
            return self._with_marks(request, job, answer) if may_carry_state else answer
        except ClientDisconnectedError as error:
            self._metrics.client_aborts.labels("sent" if error.is_sent else "queued").inc()
            message = "the client closed its side of the connection while the request waited"
            return _with_stages(refusal(Refusal.CLIENT_DISCONNECTED, message, request), job)
        finally:
            retries.in_flight -= 1
            if observer is not None or job.failures or job.has_token or job.held or job.retried:
                self._end(job, observer, outcome)

    def _end(self, job: Job, observer: Observer | None, outcome: str) -> None:
        """End a request that has an observer, has failed at a backend, was sent again, or holds something."""
        if observer is not None:
            observer.after_forwarding(job)
        if job.failures:  # of backends that were asked while an answer was held, or of a request without an answer
            self._attempts.evaluate_ejection(job, is_answered=job.held > 0)
        for reason in job.retried:
            self._metrics.retries.labels(reason, outcome).inc()
        job.release()

    # Changes of the request ------------------------------------------------------------------------------------------

    def _prepare(
        self, request: Request, principal: Principal, *, may_carry_state: bool
    ) -> tuple[Request, Backend | None, bool] | Answer:
        """Return the request without marks and with the password of its identity; or the refusal of the request.

        The backend that the marks name follows, and True if they stood before tickets.
        """
        marked, is_ticket = None, False
        if may_carry_state:
            taken = self._take_marks(request, principal)
            if taken.refusal is not None:
                return bad_mark(taken.refusal, request)
            request, marked, is_ticket = taken.request, self._backend_named(taken.backend), taken.is_ticket
        password = self._passwords.get(principal.identity.name)
        if password is not None:
            if not request.has_authentication or password.client_credential == "replace":
                request = password.added_to(request)
            elif password.client_credential == "refuse":
                return refusal(Refusal.CLIENT_CREDENTIAL, _CLIENT_CREDENTIAL, request)
        return request, marked, is_ticket

    async def _try_as_minted(self, job: Job) -> Answer:
        """Try backends with the credential of the client alone, which is made first if there is none."""
        assert self._minted is not None  # noqa: S101 - only a rule with minted credentials gives a principal names
        credential = self._minted.enter(job.principal)
        try:
            if not credential.is_usable:
                began = trio.current_time()
                try:
                    await credential.current()
                finally:
                    job.measure().connect += trio.current_time() - began
            return await self._try_in_order(job)
        except MintingError as error:
            return refusal(Refusal.NOT_MINTED, _NOT_MINTED, job.request, detail=str(error))
        finally:
            self._minted.leave(credential)

    # Marks -----------------------------------------------------------------------------------------------------------

    def _take_marks(self, request: Request, principal: Principal) -> Taken:
        marks = self._replication.marks
        if marks is None:
            return Taken(request)
        names = [backend.stable_id for backend in self._balancer.backends]
        return marks.take(request, principal, names, leave_room=may_be_given_values(request))

    def _backend_named(self, name: str) -> Backend | None:
        return next((backend for backend in self._balancer.backends if name and backend.stable_id == name), None)

    def _with_marks(self, request: Request, job: Job, answer: Answer) -> Answer:
        """Put marks on the correlation values and tickets in an answer, and note the affinity that they create."""
        if answer.response is None or answer.backend is None:
            return answer
        values = given(answer.response, request)
        if not values:
            return answer
        self._sticky.note_values(job, answer.backend)
        marks = self._replication.marks
        if marks is None:
            return answer
        frame = marks.put(answer.response, values, job.principal, answer.backend.stable_id)
        most = request.maximum_response_size
        if most is not None and len(answer.frame) <= most < len(frame):
            return final_error(request, job.effect, _TOO_LARGE_WITH_MARKS)
        return answer._replace(frame=frame)

    # Trying ----------------------------------------------------------------------------------------------------------

    async def _try_in_order(self, job: Job) -> Answer:
        """Try one backend after the other, in rounds, as long as policy, budget and deadline allow.

        A failed try leads to the next backend if nothing was sent, or if the request may be repeated; otherwise the
        round is over. The loops stand in one function, since every function that awaits another adds to the cost of
        every request.
        """
        attempts = self._sticky if job.effect.leaves_state else self._attempts
        while True:
            failure: BackendError | None = None
            busy: PoolBusyError | None = None
            job.begin_round(self._sticky.route(job))
            for backend in job.order:
                job.mark_tried(backend)
                try:
                    answered_by, response = await attempts.try_backend(backend, job)
                except PoolBusyError as waited:
                    busy = waited
                except BackendError as error:
                    failure = error
                    if error.stage > Stage.CONNECT and not await self._attempts.may_repeat(job, error):
                        break
                else:
                    items = response.items
                    has_no_failure = len(items) == 1 and _RESULT_REASON not in items[0].fields
                    if has_no_failure and not job.failures and not self._sticky.may_miss_objects:
                        return Answer(response.frame, response, None, "", answered_by)
                    return await self._answer(job, answered_by, response)
                if trio.current_time() >= job.deadline:
                    break
            if not await self._may_begin_another_round(job, failure, busy):
                return self._no_answer(job, failure, busy)

    async def _answer(self, job: Job, backend: Backend, response: Response) -> Answer:
        """Return the answer that a backend has given, or a better answer of a different backend.

        Before that, count the request's earlier failures, since the request has an answer now.
        """
        if job.failures:
            self._attempts.evaluate_ejection(job, is_answered=True)
        second: tuple[Backend, Response] | None = None
        if self._settings.health.observe and job.is_read and is_server_error(response):
            second = await self._second_opinion(job, backend, response)
            if second is not None and not has_failed(second[1]):
                (backend, response), second = second, None
        if self._sticky.should_ask_others(job, response) and job.hold(response):
            return await self._look_up(job, backend, response, second)
        return Answer.of(response, backend)

    async def _look_up(
        self, job: Job, backend: Backend, response: Response, second: tuple[Backend, Response] | None
    ) -> Answer:
        """Ask other backends for the objects that a response reports as missing.

        ``second`` is the answer of a backend that was asked for a second opinion already, and is not asked again.
        """
        lookup = FallbackLookup(
            job,
            (backend, response),
            self._affinity,
            self._budgets.lookups[job.identity],
            fallback_on_not_found=self._replication.fallback_on_not_found,
        )
        try_backend = self._attempts.try_backend if job.is_read else self._sticky.try_backend
        try:
            if second is not None and lookup.add_answer(*second):
                answer = lookup.result()
            else:
                answer = await ask_others(job, lookup, try_backend, self._settings.failover.try_timeout)
        except BackendError as error:
            return final_error(job.request, job.effect, error)
        self._metrics.fallback_lookups.labels(lookup.outcome).inc()
        return answer

    async def _second_opinion(self, job: Job, backend: Backend, response: Response) -> tuple[Backend, Response] | None:
        """Try one more backend for a read that failed for a reason that may be the key manager's own.

        Return the second answer, with its backend; None if there is none, or if the retry budget has no token. If no
        operation failed in the second answer, a failure of the first backend is counted.
        """
        version = job.request.version
        if (
            job.source is not None
            or not self._balancer.has_other(job.tried, job.credential, job.effect, version)
            or not job.hold(response)
            or not await job.get_token(self._settings.failover.try_timeout)
        ):
            return None
        began = trio.current_time()
        other = job.next_backend()
        if other is None:
            return None
        until = min(job.deadline, began + self._settings.failover.try_timeout)
        # A trial of the first backend goes on until the second answer is known: else the first backend would be sent
        # more trials meanwhile.
        trials = backend.breaker.enter(job.credential, job.effect, began)
        try:
            _, second = await self._attempts.try_backend(other, job, until)
        except (BackendError, PoolBusyError):
            return None
        finally:
            backend.breaker.leave(trials)
        if not has_failed(second):
            self._attempts.failed(backend, job, began)
        return other, second

    # Rounds ----------------------------------------------------------------------------------------------------------

    async def _may_begin_another_round(
        self, job: Job, failure: BackendError | None, busy: PoolBusyError | None
    ) -> bool:
        """Return True, perhaps after a wait, if all backends should be tried once more.

        That is so for a read that broke once and holds a retry token, and, for ``queue_timeout`` seconds at most, while
        no backend can be reached. Raises ClientDisconnectedError.
        """
        if failure is None or trio.current_time() >= job.deadline:
            return False
        if failure.stage > Stage.CONNECT:
            if not job.is_read or len(job.failures) >= _MAX_FAILURES or job.rounds >= _MAX_ROUNDS:
                return False
            if failure.reason in NOT_TAKEN or not job.has_token:
                return False
            await trio.sleep(_PAUSE)
        elif busy is not None or failure.reason in REFUSED or not await self._outlasts_outage(job):
            return False
        if job.client_disconnected():
            raise ClientDisconnectedError(is_sent=failure.stage > Stage.CONNECT)
        return True

    async def _outlasts_outage(self, job: Job) -> bool:
        """Wait until a session opens, if no backend can be reached; return False if that does not happen in time.

        A request waits only in the first ``queue_timeout`` seconds of an outage: later its client gets the error at
        once. If a backend can be reached after all, return True after a short pause, while fewer than 5 rounds have
        begun.
        """
        now = trio.current_time()
        candidates = [backend for backend in self._balancer.backends if backend.accepts(job.effect)]
        if job.source is not None:
            candidates = [job.source]
        pools = [pool for backend in candidates if (pool := backend.pools.get(job.credential)) is not None]
        since = max((pool.failing_since for pool in pools), default=now)
        if since == float("inf"):  # a backend can be reached: only a session was lost, before the request was sent
            await trio.sleep(_PAUSE)
            return job.rounds < _MAX_ROUNDS
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
            seconds = trio.current_time() - now
            job.count_wait(seconds)
            job.measure().connect += seconds
        return opened.is_set()

    def _no_answer(self, job: Job, failure: BackendError | None, busy: PoolBusyError | None) -> Answer:
        """Return the refusal of a request that no backend answered: for its latest failure, or for full queues."""
        request = job.request
        if failure is not None and failure.stage > Stage.CONNECT:
            return final_error(request, job.effect, failure)
        if busy is not None:
            message = "too many requests are waiting for key managers; try again later"
            return refusal(Refusal.OVERLOADED, message, request, detail=str(busy))
        if trio.current_time() >= job.deadline:
            message = f"no key manager was free within {self._settings.deadlines.request:g} s; try again later"
            return refusal(Refusal.DEADLINE, message, request)
        detail = (
            "no key manager accepts the request: all are drained or configured as read-only"
            if failure is None
            else str(failure)
        )
        message = "no key manager can be reached" if job.source is None else BAD_MARKS[Refusal.NO_BACKEND]
        return refusal(Refusal.NO_BACKEND, message, request, detail=detail)


def _with_stages(answer: Answer, job: Job) -> Answer:
    """Return the answer with the stages of its request, if they were kept."""
    return answer if job.times is None else answer._replace(stages=job.stages(job.times))
