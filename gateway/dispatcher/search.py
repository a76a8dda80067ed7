"""Search: what one key manager does not find is looked for on others: on which, at what price, and whose answer counts.

A read is asked of the others; what failed for want of its object has not run, and goes to those on which the client has
just changed something. Nothing here waits.
"""

from typing import Final

from gateway.budget import LookupBudget
from gateway.dispatcher.answer import Answer, refusal
from gateway.dispatcher.job import Job
from gateway.kmip.messages import Response
from gateway.policy import Effect, Refusal, found_by, is_missing_something, names_only
from gateway.upstream.affinity import Affinity
from gateway.upstream.backend import Backend

_REPEATABLE: Final = Effect.TOUCH  # a member of an enumeration is slow to come by


class Search:
    """One search, for what the first backend's response says is missing.

    ``budget`` pays for it: once, however many are asked. Those on which somebody under the identity has lately changed
    something are asked for nothing, since there it may well be. ``outcome`` is the label under which it is counted.
    """

    def __init__(
        self,
        job: Job,
        first: tuple[Backend, Response],
        affinity: Affinity,
        budget: LookupBudget,
        *,
        asks_others: bool,
    ) -> None:
        self._job = job
        self._backend, self._best = first
        self._affinity = affinity
        self._budget = budget
        self._is_paid = False
        self._asks_others = asks_others and job.effect <= _REPEATABLE
        #: Where the client has just left something, and was not asked; and what it has destroyed there itself.
        self._unheard = {stay.backend for stay in job.stays} - {self._backend.stable_id}
        self._gone = frozenset(identifier for stay in job.stays for identifier in stay.gone)
        self._is_over = names_only(self._gone, job.request)
        self.outcome = "missing"

    def __repr__(self) -> str:
        return f"<Search by {self._job.request!r}: {self.outcome}>"

    def asks(self, backend: Backend, now: float) -> bool:
        """Whether to ask a backend, at this time; that is paid for."""
        credential, name = self._job.credential, backend.stable_id
        if (
            self._is_over
            or not (name in self._unheard or self._asks_others)
            or not backend.is_available_to(credential, self._job.effect)
        ):
            return False
        if self._is_paid or self._affinity.changed_lately(credential, name, now):
            return True
        self._is_paid = self._budget.withdraw(now)
        if not self._is_paid:
            self.outcome = "denied"
        return self._is_paid

    def hears(self, backend: Backend, response: Response) -> bool:
        """Take an answer into account. Returns whether nobody else need be asked.

        The answer that found most counts; where no other found more, the first. What others still have of an object
        that the client has destroyed itself is missing.
        """
        is_stay = backend.stable_id in self._unheard
        self._unheard.discard(backend.stable_id)
        if names_only(self._gone, response):
            return False
        is_whole = not is_missing_something(response)
        if found_by(response) <= found_by(self._best) and not (is_stay and is_whole):
            return False
        self._backend, self._best = backend, response
        self.outcome = "found"
        return is_whole or self._job.effect > _REPEATABLE

    def result(self) -> Answer:
        """What the client gets. Where one that may have it was not asked, nobody knows what is missing."""
        if self._unheard and not self._is_over and is_missing_something(self._best):
            return refusal(
                Refusal.BACKEND_FAILED, _UNHEARD, self._job.request, detail=f"{sorted(self._unheard)}: {_UNHEARD}"
            )
        return Answer.of(self._best, self._backend)


_UNHEARD: Final = (
    "this is not known where it was looked for, and a key manager on which this client has just changed something can't"
    " be asked; try again later"
)
