"""Fallback lookup: ask other backends for objects that the first backend does not have, or not yet.

The rules are numbered in replication.py, under "A read that finds nothing". ``ask_others`` sends the requests;
FallbackLookup decides which backends are asked and which answer the client gets.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from gateway.budget import LookupBudget
from gateway.dispatcher.answer import Answer, refusal
from gateway.dispatcher.job import Job
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.kmip.messages import Response
from gateway.policy import Refusal, found_by, is_missing_something, names_only
from gateway.upstream.affinity import Affinity
from gateway.upstream.backend import Backend

TryBackend = Callable[[Backend, Job, float | None], Awaitable[tuple[Backend, Response]]]

_MAY_EXIST: Final = (
    "object not found, but the key manager that holds this client's latest changes is unavailable; try again later"
)


class FallbackLookup:
    """A lookup of the objects that the first backend's response reports as missing. No method waits.

    ``outcome`` is the label under which the lookup is counted: "found" if a different backend's answer replaced the
    first, "denied" if a backend was passed over because the budget was empty, else "missing".
    """

    def __init__(
        self,
        job: Job,
        first: tuple[Backend, Response],
        affinity: Affinity,
        budget: LookupBudget,
        *,
        fallback_on_not_found: bool,
    ) -> None:
        self._job = job
        self._best_backend, self._best_response = first
        self._affinity = affinity
        self._budget = budget
        self._is_paid = False
        self._asks_all = fallback_on_not_found and job.is_read
        changes = [entry for entry in job.entries if not entry.is_stateful]  # a login, say, leaves no object behind
        #: Backends with an affinity entry of the client that have not answered: they may have the object.
        self._without_answer = {entry.backend for entry in changes} - {self._best_backend.stable_id}
        self._destroyed_ids = frozenset(name for entry in changes for name in entry.destroyed_ids)
        self._has_destroyed_all = names_only(self._destroyed_ids, job.request)  # all objects that the request names
        self.outcome = "missing"

    def __repr__(self) -> str:
        return f"<FallbackLookup by {self._job.request!r}: {self.outcome}>"

    def may_ask(self, backend: Backend, now: float) -> bool:
        """Return True if a backend is to be asked at this time; take a token of the lookup budget if needed.

        A backend at which a read is overdue would probably not answer in time. Such a backend is asked only if this
        client has an entry for the backend, or a client of the identity has just changed something there.
        """
        credential, name = self._job.credential, backend.stable_id
        if (
            self._has_destroyed_all
            or not (name in self._without_answer or self._asks_all)
            or not backend.is_available_to(credential, self._job.effect)
        ):
            return False
        if self._affinity.changed_lately(self._job.identity, name, now):
            return True
        if name not in self._without_answer and backend.breaker.is_overdue(credential, self._job.effect):
            return False
        if self._is_paid:
            return True
        self._is_paid = self._budget.withdraw(now)
        if not self._is_paid:
            self.outcome = "denied"
        return self._is_paid

    def add_answer(self, backend: Backend, response: Response) -> bool:
        """Keep a backend's answer if it is better than the best answer so far. Return True if the lookup ends.

        The lookup of a change ends as soon as the change has run. An answer that names only objects which this client
        has destroyed is ignored: that backend does not know yet that they are destroyed.
        """
        has_entry = backend.stable_id in self._without_answer
        self._without_answer.discard(backend.stable_id)
        if names_only(self._destroyed_ids, response):
            return False
        misses_nothing = not is_missing_something(response)
        found_more = found_by(response) > found_by(self._best_response)
        if not found_more and not (has_entry and misses_nothing):
            return False
        self._best_backend, self._best_response = backend, response
        self.outcome = "found"
        return misses_nothing or not self._job.is_read

    def result(self) -> Answer:
        """Return the best answer, or an error if a backend that may have a missing object gave no answer."""
        if self._without_answer and not self._has_destroyed_all and is_missing_something(self._best_response):
            detail = f"no answer from {', '.join(sorted(self._without_answer))}: {_MAY_EXIST}"
            return refusal(Refusal.BACKEND_FAILED, _MAY_EXIST, self._job.request, detail=detail)
        return Answer.of(self._best_response, self._best_backend)


async def ask_others(job: Job, lookup: FallbackLookup, try_backend: TryBackend, try_timeout: float) -> Answer:
    """Ask the remaining backends of the round, until ``lookup`` ends or the deadline comes; return the client's answer.

    A backend that is busy or fails is passed over. A read waits ``try_timeout`` seconds for each backend, since the
    client can be given the first answer; a change waits until its deadline. Raises BackendError if a change breaks
    after it was sent: the outcome is unknown. Raises ClientDisconnectedError.
    """
    while (backend := job.next_backend()) is not None:
        now = trio.current_time()
        if now >= job.deadline:
            break
        if not lookup.may_ask(backend, now):
            continue
        until = min(job.deadline, now + try_timeout) if job.is_read else None
        try:
            _, response = await try_backend(backend, job, until)
        except PoolBusyError:
            continue
        except BackendError as error:
            if error.stage > Stage.CONNECT and not job.is_read:
                raise
            continue
        if lookup.add_answer(backend, response):
            break
    return lookup.result()
