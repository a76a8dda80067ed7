"""What one key manager knows and others do not: where a client's requests stay, and who else is asked."""

from collections.abc import Iterator
from typing import Final, NamedTuple

import trio

from gateway.budget import RetryBudgets
from gateway.dispatcher.answer import Answer, give_up, refusal
from gateway.dispatcher.attempts import Attempts
from gateway.dispatcher.job import DispatcherSettings, Job
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.kmip.messages import Response
from gateway.kmip.spec import Tag
from gateway.metrics import Metrics
from gateway.policy import Effect, Refusal, found_by, has_done_something, is_missing_something, makes_only_new
from gateway.upstream.affinity import Affinity
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.marks import Marks
from gateway.upstream.versions import CommonVersions

_REPEATABLE: Final = Effect.TOUCH  # a member of an enumeration is slow to come by
_BOUND: Final = Effect.BOUND


class Knowledge(NamedTuple):
    """What key managers know and others do not, and what is done about it; by default, nothing.

    ``affinity`` keeps a client's requests together, ``marks`` find the backend that gave a value, ``versions`` answers
    for all of them. ``asks_others`` says whether others are asked when one knows nothing of an object.
    """

    affinity: Affinity | None = None
    marks: Marks | None = None
    versions: CommonVersions | None = None
    asks_others: bool = False


class Whereabouts:
    """Keeps the requests of a client where it has left something, and looks elsewhere for what is missing."""

    def __init__(
        self,
        balancer: Balancer,
        attempts: Attempts,
        settings: DispatcherSettings,
        knowledge: Knowledge,
        metrics: Metrics,
    ) -> None:
        self._balancer = balancer
        self._attempts = attempts
        self._settings = settings
        self._affinity = Affinity(window=0.0) if knowledge.affinity is None else knowledge.affinity
        self._asks_others = knowledge.asks_others
        self._metrics = metrics
        self._may_be_late = knowledge.asks_others or not self._affinity.is_shared
        self._budgets = RetryBudgets(settings.retry_fraction, settings.retry_floor)

    def __repr__(self) -> str:
        return f"<Whereabouts by {self._affinity!r}>"

    def begins(self, job: Job, backend: Backend) -> bool:
        """A request is about to be tried on a backend: if it changes something, the client's next ones go there, too.

        Returns whether that is news, for ``ends``.
        """
        return self._affinity.note(job.principal, job.effect, backend.known_as, trio.current_time())

    def ends(self, job: Job, backend: Backend, response: Response | None, *, is_news: bool) -> None:
        """It was answered, or did not run (None): the window begins anew, or is as it was before."""
        if response is not None and has_done_something(response):
            self.begins(job, backend)
        elif is_news:
            self._affinity.drop(job.principal, job.effect, backend.known_as)

    def order(self, job: Job) -> Iterator[Backend]:
        """Who should be tried, best first; only the source of what a request is bound to, where a mark names it."""
        if job.source is not None:
            return iter((job.source,))
        if len(self._affinity):
            is_bound = job.effect is _BOUND or Tag.AUTHENTICATION in job.request.fields
            job.stays = self._affinity.stays(job.principal, trio.current_time(), is_bound=is_bound)
            if job.stays and job.preferred is None:
                job.preferred = self._balancer.where_it_stays(
                    job.stays, job.credential, is_new=makes_only_new(job.request)
                )
        return self._balancer.order(job.credential, job.effect, job.request.version, job.preferred)

    def may_be_elsewhere(self, effect: Effect, response: Response) -> bool:
        """Whether something is missing, in the answer to a read, or for want of which nothing else was done."""
        return (
            self._may_be_late
            and is_missing_something(response)
            and (effect <= _REPEATABLE or not has_done_something(response))
        )

    async def look_elsewhere(self, job: Job, order: Iterator[Backend], answer: Answer) -> Answer:
        """One key manager does not have what was asked for, or not yet: see to it before the client hears that.

        A read is asked of the others; what failed for want of its object has not run, and goes to those on which the
        client has just changed something. Gives the answer that found most; where no other found more, the first. But
        where one of those can't be asked, nobody knows what is missing.
        """
        unheard = set(job.stays) - {backend.known_as for backend in job.tried[-1:]}
        found, outcome = _found_by(answer), "missing"
        budget = self._budgets.of(job.credential)
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
                other = Answer.of(await self._attempts.try_backend(backend, job, budget), backend)
            except PoolBusyError:
                continue
            except BackendError as error:
                if error.stage > Stage.CONNECT and job.effect > _REPEATABLE:
                    return give_up(job.request, job.effect, error)
                continue
            unheard.discard(backend.known_as)
            if _found_by(other) > found:
                answer, found, outcome = other, _found_by(other), "found"
                if job.effect > _REPEATABLE:
                    break
        self._metrics.others_asked.labels(outcome).inc()
        if unheard and _is_missing_something(answer):
            return refusal(Refusal.BACKEND_FAILED, _UNHEARD, job.request, detail=f"{sorted(unheard)}: {_UNHEARD}")
        return answer


_UNHEARD: Final = (
    "this is not known where it was looked for, and a key manager on which this client has just changed something can't"
    " be asked; try again later"
)


def _found_by(answer: Answer) -> int:
    return 0 if answer.response is None else found_by(answer.response)


def _is_missing_something(answer: Answer) -> bool:
    return answer.response is not None and is_missing_something(answer.response)
