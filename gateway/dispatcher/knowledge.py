"""What one key manager knows and others do not: where a client's requests stay, and who else is asked."""

from collections.abc import Iterator, MutableMapping
from typing import Final, NamedTuple

import trio

from gateway.budget import LookupBudget
from gateway.dispatcher.answer import Answer, give_up
from gateway.dispatcher.attempts import Attempts
from gateway.dispatcher.job import ClientGoneError, DispatcherSettings, Job
from gateway.dispatcher.search import Search
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.kmip.binding import credentials
from gateway.kmip.messages import Response
from gateway.metrics import Metrics
from gateway.policy import (
    Effect,
    destroyed,
    has_changed_nothing,
    is_missing_something,
    makes_only_new,
    tells_of_a_change,
)
from gateway.upstream.affinity import Affinity, Stay
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
        budgets: MutableMapping[str, LookupBudget],
        metrics: Metrics,
    ) -> None:
        self._balancer = balancer
        self._attempts = attempts
        self._settings = settings
        self._affinity = Affinity(window=0.0) if knowledge.affinity is None else knowledge.affinity
        self._asks_others = knowledge.asks_others
        self._metrics = metrics
        self.may_be_late = knowledge.asks_others or not self._affinity.is_shared
        self._budgets = budgets

    def __repr__(self) -> str:
        return f"<Whereabouts by {self._affinity!r}>"

    async def try_backend(self, backend: Backend, job: Job, until: float | None = None) -> Response:
        """As Attempts.try_backend, for a request that leaves something on a backend: the client's next ones follow it.

        Record the affinity when the request is sent and renew it when the answer arrives, or when it becomes clear that
        the outcome is unknown; remove it if the request turns out not to have run.
        """
        stay = self._note(job, job.effect, backend)
        try:
            response = await self._attempts.try_backend(backend, job, until)
        except (PoolBusyError, BackendError, ClientGoneError) as error:
            if isinstance(error, BackendError) and error.stage > Stage.CONNECT:
                self._note(job, job.effect, backend)
            elif stay is not None:
                self._affinity.drop(job.principal, stay)
            raise
        except trio.Cancelled:
            self._note(job, job.effect, backend)
            raise
        if stay is None:
            return response
        if has_changed_nothing(job.request, response):
            self._affinity.drop(job.principal, stay)
        else:
            self._note_answer(job, backend, response)
        return response

    def _note_answer(self, job: Job, backend: Backend, response: Response) -> None:
        stay = self._note(job, job.effect, backend)
        if job.effect is _BOUND:
            if tells_of_a_change(response):
                self._note(job, Effect.MUTATE, backend)
        elif stay is not None:
            stay.destroyed(destroyed(job.request, response))

    def note_values(self, job: Job, backend: Backend) -> None:
        """The answer holds values that bind the client to a backend: what may show them goes there."""
        self._note(job, _BOUND, backend)

    def _note(self, job: Job, effect: Effect, backend: Backend) -> Stay | None:
        return self._affinity.note(job.principal, effect, backend.stable_id, trio.current_time())

    def order(self, job: Job) -> Iterator[Backend]:
        """Who should be tried, best first; only the source of what a request is bound to, where a mark names it."""
        if self.may_be_late:
            self._budgets[job.credential].request()
        if job.source is not None:
            return iter((job.source,))
        if len(self._affinity):
            is_bound = job.effect is _BOUND or bool(credentials(job.request))
            job.stays = self._affinity.stays(job.principal, trio.current_time(), is_bound=is_bound)
            if job.stays and job.preferred is None:
                job.preferred = self._balancer.preferred_backend(
                    [stay.backend for stay in job.stays],
                    job.credential,
                    job.effect,
                    job.request.version,
                    is_new=makes_only_new(job.request),
                )
        return self._balancer.order(job.credential, job.effect, job.request.version, job.preferred)

    def may_be_elsewhere(self, job: Job, response: Response) -> bool:
        """Whether something is missing, in the answer to a read, or for want of which nothing else was done."""
        return (
            self.may_be_late
            and is_missing_something(response)
            and (job.effect <= _REPEATABLE or has_changed_nothing(job.request, response))
        )

    async def look_elsewhere(self, job: Job, order: Iterator[Backend], first: Backend, response: Response) -> Answer:
        """One key manager does not have what was asked for, or not yet: see to it before the client hears that."""
        budget = self._budgets[job.credential]
        search = Search(job, (first, response), self._affinity, budget, asks_others=self._asks_others)
        is_read = job.effect <= _REPEATABLE
        tries = self._attempts if is_read else self
        for backend in order:
            now = trio.current_time()
            if now >= job.deadline or not search.asks(backend, now):
                continue
            job.tried.append(backend)
            # An answer to a read is there already, and should not wait for long.
            until = min(job.deadline, now + self._settings.failover.try_timeout) if is_read else None
            try:
                response = await tries.try_backend(backend, job, until)
            except PoolBusyError:
                continue
            except BackendError as error:
                if error.stage > Stage.CONNECT and not is_read:
                    return give_up(job.request, job.effect, error)
                continue
            if search.hears(backend, response):
                break
        self._metrics.fallback_lookups.labels(search.outcome).inc()
        return search.result()
