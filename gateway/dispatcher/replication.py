"""Replication: the rules for backends that have different objects, and the routing of clients to their own changes.

The problem
-----------
With ``mode = "async"`` a change that one key manager has run reaches the others only after the *replication lag*.
Until then they are *stale*: a Get or an Activate of a new object fails there with Item Not Found, a Locate finds
nothing, and an attribute has its old value. A client that gets "not found" makes a second key. Some state never
replicates, in any mode: an asynchronous request that is pending, a multi-part operation, a login.

Four remedies, each in its own file:

=================  ===============================  ===============================================================
remedy             file                             effect
=================  ===============================  ===============================================================
sticky routing     this file, upstream/affinity.py  a client goes back to the backend that ran its latest changes
fallback lookup    fallback_lookup.py               objects that a backend does not find are looked up on others
marks              upstream/marks.py                a value goes back to the backend that issued the value
Discover Versions  upstream/versions.py             the gateway answers with the versions that all backends speak
=================  ===============================  ===============================================================

Affinity: the memory of changes
-------------------------------
Each gateway remembers, in its own process only, an *affinity entry* for each client (identity, issuer and subject)
and each backend on which that client changed something. The entry is made when the change is sent, is renewed when
the answer comes or the outcome becomes unknown, and lasts ``read_your_writes_window`` (10 s) from then. The entry is
dropped if the change turns out not to have run: nothing was sent, or the request failed because an object is missing.
The entry also holds the identifiers of the objects that the client has destroyed on that backend.

While an entry lasts, every request of the client prefers that backend; of several entries, the latest entry whose
backend is available counts. The gateway waits for the preferred backend while that backend is busy or slow, and does
not hedge its reads. Only a request that makes nothing but new objects goes to a better tier, if a backend of a better
tier is available.

A request of the effect STATEFUL makes a *stateful* entry, in mode "shared" too, and so does an answer that holds a
correlation value or ticket. Only stateful requests and requests with a ticket follow stateful entries, and they follow
stateful entries first.

A read that finds nothing, with ``mode = "async"``
--------------------------------------------------
 1. A read is a request of the effect READ or TOUCH. A read counts as finding nothing if any of its operations fails
    with Item Not Found (Object Not Found since 2.0), or is a Locate without a match.
 2. The first answer came from the client's preferred backend, if an entry (or the mark of a ticket) names an
    available backend, and otherwise from the backend that the balancer chose. If that backend was busy or failed, the
    first answer came from the next backend in order.
 3. The gateway keeps the first answer, which counts as buffered, while other backends are asked. If no buffer is
    free, the client gets the first answer at once.
 4. If this client has itself destroyed all objects that the read names, as its entries say, the client gets the
    first answer at once.
 5. Otherwise the backends that were not tried in this round are asked in the balancer's order, one at a time, each for
    ``try_timeout`` at most, the validation of a session included, and until the request's deadline. A backend that is
    down, ejected or unreachable is passed over, and so is a backend at which a read is overdue, unless it is asked
    without a token (7). A backend that is busy or fails is passed over, too, and the lookup goes on. Its failure counts
    as that of any read; an exchange without an answer goes on in the background, is overdue, and becomes a failure
    after ``request`` seconds.
 6. Backends with an entry of this client are always asked; all other backends only with ``fallback_on_not_found``.
    Here and in the following steps, an entry is an entry of a change; a stateful entry tells nothing of objects.
 7. A lookup costs one token of the identity's lookup budget, however many backends the lookup asks. A backend on which
    any client of the identity changed something within the window is asked without a token. Every other backend is
    passed over while the budget has no token.
 8. An answer that reports nothing as missing ends the lookup, if it found more than every answer before it, or came
    from a backend with an entry. Otherwise the answer that found most counts, and of equal answers the first. An answer
    is passed on whole: answers of two backends are never mixed. An error other than "not found", from a backend without
    an entry, changes nothing, unless the error shows that the object exists. Answers that name only objects which this
    client has destroyed are ignored. If a backend was asked for a second opinion about an error of the first backend,
    and reported an error, too, its answer counts as an answer of the lookup, which does not ask it again.
 9. If objects are still missing, and a backend with an entry of this client gave no answer, the client gets General
    Failure (Internal Server Error since 2.0) with "try again later": that backend may have the object.
10. Otherwise the client gets the answer of step 8. If no backend found more, that is the first answer, "not found",
    unchanged.
11. A read makes no entry, and no backend is preferred because a lookup found an object there. If the read is sent
    again, the same steps follow. If the client disconnects while the lookup waits for a session, the lookup ends.

A change that failed only because an object is missing has not run. It is sent, by the same steps, to the backends
with an entry of this client, and to no other backend. If it breaks after it was sent, its outcome is unknown.

The purpose of marks
--------------------
Affinity ends with the window and with the process, and two gateways do not share it; but a Poll may come later, or
through another gateway. So the gateway writes the backend's name into correlation values and tickets, on their way to
the client. A request that shows a marked correlation value goes to that backend and to no other (``Job.source``). A
request that shows only marked tickets prefers that backend; another backend may know the ticket too, or asks for a
new login.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import trio

from gateway.budget import LookupBudget
from gateway.dispatcher.attempts import Attempts
from gateway.dispatcher.job import ClientDisconnectedError, Job, Route
from gateway.errors import BackendError, PoolBusyError, Stage
from gateway.kmip.binding import credentials
from gateway.kmip.messages import Response
from gateway.policy import (
    Effect,
    destroyed,
    has_changed_nothing,
    is_missing_something,
    makes_only_new,
    tells_of_a_change,
)
from gateway.upstream.affinity import Affinity, AffinityEntry
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.marks import Marks
from gateway.upstream.versions import CommonVersions

_STATEFUL: Final = Effect.STATEFUL  # access to an enum member is slow


class ReplicationPolicy(NamedTuple):
    """The remedies that are configured; by default, none.

    ``affinity`` keeps a client at the backends of its changes, ``marks`` lead a value back to its backend, ``versions``
    answers Discover Versions. With ``fallback_on_not_found``, objects that a backend does not find are
    looked up on all other backends.
    """

    affinity: Affinity | None = None
    marks: Marks | None = None
    versions: CommonVersions | None = None
    fallback_on_not_found: bool = False


class StickyRouting:
    """Routes a client's requests to the backends of its changes, which the affinity entries name.

    ``may_miss_objects`` is True if an answer "not found" may be stale, so that ``should_ask_others`` must be called.
    """

    def __init__(
        self,
        balancer: Balancer,
        attempts: Attempts,
        affinity: Affinity,
        budgets: Mapping[str, LookupBudget],
        *,
        fallback_on_not_found: bool,
    ) -> None:
        self._balancer = balancer
        self._attempts = attempts
        self._affinity = affinity
        self._budgets = budgets
        self.may_miss_objects = fallback_on_not_found or not affinity.is_shared

    def __repr__(self) -> str:
        return f"<StickyRouting by {self._affinity!r}>"

    def route(self, job: Job) -> Route:
        """Return the backends to try, best first: the job's source alone, or the preferred backend before the others.

        Each round of a request adds the share of one request to the identity's lookup budget here.
        """
        if self.may_miss_objects:
            self._budgets[job.identity].request()
        if job.source is not None:
            return iter((job.source,)), job.preferred, ()
        preferred, entries = job.preferred, job.entries
        if len(self._affinity):
            is_stateful = job.effect is _STATEFUL or bool(credentials(job.request))
            entries = self._affinity.entries(job.principal, trio.current_time(), is_stateful=is_stateful)
            if entries and preferred is None:
                preferred = self._balancer.preferred_backend(
                    [entry.backend for entry in entries],
                    job.credential,
                    job.effect,
                    job.request.version,
                    is_new=makes_only_new(job.request),
                )
        order = self._balancer.order(job.credential, job.effect, job.request.version, preferred)
        return order, preferred, entries

    async def try_backend(self, backend: Backend, job: Job, until: float | None = None) -> tuple[Backend, Response]:
        """Try a backend with a change or a stateful request, as Attempts.try_backend does, and keep the entry for it.

        Record the affinity when the request is sent and renew it when the answer arrives, or when it becomes clear that
        the outcome is unknown; remove it if the request turns out not to have run.
        """
        entry = self._note(job, job.effect, backend)
        try:
            _, response = await self._attempts.try_backend(backend, job, until)
        except (PoolBusyError, BackendError, ClientDisconnectedError) as error:
            if isinstance(error, BackendError) and error.stage > Stage.CONNECT:
                self._note(job, job.effect, backend)
            elif entry is not None:
                self._affinity.drop(job.principal, entry)
            raise
        except trio.Cancelled:
            self._note(job, job.effect, backend)
            raise
        if entry is not None and has_changed_nothing(job.request, response):
            self._affinity.drop(job.principal, entry)
        elif entry is not None:
            self._note_answer(job, backend, response)
        return backend, response

    def _note_answer(self, job: Job, backend: Backend, response: Response) -> None:
        entry = self._note(job, job.effect, backend)
        if job.effect is _STATEFUL:
            if tells_of_a_change(response):  # a Poll: the asynchronous change has run
                self._note(job, Effect.MUTATE, backend)
        elif entry is not None:
            entry.add_destroyed(destroyed(job.request, response))

    def note_values(self, job: Job, backend: Backend) -> None:
        """Make a stateful entry: an answer holds correlation values or tickets, which only this backend knows."""
        self._note(job, _STATEFUL, backend)

    def _note(self, job: Job, effect: Effect, backend: Backend) -> AffinityEntry | None:
        return self._affinity.note(job.principal, effect, backend.stable_id, trio.current_time())

    def should_ask_others(self, job: Job, response: Response) -> bool:
        """Return True if the answer reports a missing object and nothing was changed: another backend may be tried."""
        return (
            self.may_miss_objects
            and is_missing_something(response)
            and (job.is_read or has_changed_nothing(job.request, response))
        )
