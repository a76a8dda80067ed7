"""Job: one request on its way through the dispatcher: its limits, its route, and what has happened to it so far.

A Job is written in this file only. The dispatcher, its attempts and the replication policy read the fields, call the
methods, and return what they find out.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import trio

from gateway.budget import LookupBudget, RetryBudget
from gateway.config import DeadlinesConfig, FailoverConfig, HealthConfig, LogConfig, PoolConfig, ReplicationConfig
from gateway.dispatcher.race import Race
from gateway.dispatcher.stages import Stages, StageTimes
from gateway.identity import Principal
from gateway.kmip.messages import Request, Response
from gateway.policy import Effect
from gateway.upstream.affinity import AffinityEntry
from gateway.upstream.backend import Backend
from gateway.upstream.session import Payer, Session


class DispatcherSettings(NamedTuple):
    """Tables of the configuration that the dispatcher uses."""

    deadlines: DeadlinesConfig = DeadlinesConfig()
    pool: PoolConfig = PoolConfig()
    failover: FailoverConfig = FailoverConfig()
    replication: ReplicationConfig = ReplicationConfig()
    health: HealthConfig = HealthConfig()
    log: LogConfig = LogConfig()


class Budgets:
    """The retry and lookup budgets of each identity, so that no identity uses up the retries of another."""

    def __init__(self, settings: DispatcherSettings) -> None:
        self._settings = settings
        self.retries: dict[str, RetryBudget] = defaultdict(
            lambda: RetryBudget(retry_ratio=settings.failover.retry_ratio, min_retries=settings.failover.min_retries)
        )
        self.lookups: dict[str, LookupBudget] = defaultdict(
            lambda: LookupBudget(
                lookup_ratio=settings.replication.lookup_ratio,
                min_lookups_per_second=settings.replication.min_lookups_per_second,
            )
        )

    def __repr__(self) -> str:
        return f"<Budgets of {len(self.retries)} identities>"

    def forget(self, identity: str) -> None:
        """Forget the budgets of an identity."""
        self.retries.pop(identity, None)
        self.lookups.pop(identity, None)

    def settings_changed(self) -> None:
        """Use the settings as they are now."""
        failover, replication = self._settings.failover, self._settings.replication
        for retries in self.retries.values():
            retries.change(retry_ratio=failover.retry_ratio, min_retries=failover.min_retries)
        for lookups in self.lookups.values():
            lookups.change(
                lookup_ratio=replication.lookup_ratio, min_lookups_per_second=replication.min_lookups_per_second
            )


Route = tuple[Iterator[Backend], Backend | None, Sequence[AffinityEntry]]
"""The backends of one round, best first; the preferred backend among them, and the client's affinity entries."""


class Job:
    """A request on its way through the dispatcher. Fields are written only by the methods of this class.

    Fixed: ``request`` (as it is sent), ``principal``, ``identity`` (its name), ``credential`` (that of the identity, or
    the client's own), ``effect``, ``is_read``, ``deadline`` (in trio's time), ``client_disconnected``, ``payer`` (holds
    the bytes of answers while they are received), ``retries`` (the identity's budget) and ``source`` (the only backend
    that may answer, as a mark says).

    Changing: ``preferred``, the backend to try first, and ``entries``, the client's affinity entries, both from the
    round's Route; ``order``, which yields the backends that are left in this round; ``tried``, the backends that were
    tried in this round; ``rounds`` begun; ``queue_left``, seconds that may still go into waiting for sessions;
    ``failures``, exchanges that broke, with the time at which each began, until they are counted; ``race``, once more
    than one try was under way; ``has_token``, True if the request holds a token of ``retries``; ``held``, bytes of an
    answer that the payer holds while other backends are asked; ``retried``, the reasons for which the request was sent
    again; ``times``, the times of its stages, once it has waited or failed, was superseded or slow, or somebody has the
    job ``measure`` them; else None.
    """

    __slots__ = (
        "_is_doubted",
        "_tried_before",
        "client_disconnected",
        "credential",
        "deadline",
        "effect",
        "entries",
        "failures",
        "has_token",
        "held",
        "identity",
        "is_read",
        "order",
        "payer",
        "preferred",
        "principal",
        "queue_left",
        "race",
        "request",
        "retried",
        "retries",
        "rounds",
        "source",
        "times",
        "tried",
    )

    def __init__(
        self,
        request: Request,
        principal: Principal,
        effect: Effect,
        settings: DispatcherSettings,
        retries: RetryBudget,
        client_disconnected: Callable[[], bool],
        payer: Payer | None,
        now: float,
    ) -> None:
        self.request = request
        self.principal = principal
        self.identity = principal.identity.name
        self.credential = self.identity if principal.names is None else principal.names.credential
        self.effect = effect
        self.is_read = effect.is_read
        self.deadline = now + settings.deadlines.request
        self.client_disconnected = client_disconnected
        self.payer = payer
        self.retries = retries
        self.source: Backend | None = None
        self.order: Iterator[Backend]  # begin_round sets it
        self.preferred: Backend | None = None
        self.entries: Sequence[AffinityEntry] = ()
        self.tried: list[Backend] = []
        self._tried_before = 0  # backends, in earlier rounds
        self.rounds = 0
        self.queue_left = settings.pool.queue_timeout
        self.failures: Sequence[tuple[Backend, float]] = ()
        self._is_doubted = False
        self.race: Race | None = None
        self.has_token = False
        self.held = 0
        self.retried: Sequence[str] = ()
        self.times: StageTimes | None = None

    def __repr__(self) -> str:
        return f"<Job {self.request!r}: round {self.rounds}>"

    # Route -----------------------------------------------------------------------------------------------------------

    def start_at(self, backend: Backend, *, only: bool) -> None:
        """Try this backend first, or ``only`` this backend: a mark in the request names it."""
        if only:
            self.source = backend
        else:
            self.preferred = backend

    def begin_round(self, route: Route) -> None:
        """Begin a round through the backends of a route."""
        self.order, self.preferred, self.entries = route
        if self.tried:
            self._tried_before += len(self.tried)
            self.tried = []
        self.rounds += 1

    def next_backend(self) -> Backend | None:
        """Return the next backend of the round, which counts as tried; None if all were tried."""
        for backend in self.order:
            self.tried.append(backend)
            return backend
        return None

    def mark_tried(self, backend: Backend) -> None:
        """Count a backend as tried that a loop has taken from ``order``."""
        self.tried.append(backend)

    @property
    def tries(self) -> int:
        """The number of tries at backends so far, those among them that could not be reached."""
        return self._tried_before + len(self.tried)

    def is_tied_to(self, backend: Backend) -> bool:
        """Return True if the request should wait for this backend, busy or slow, instead of trying another."""
        return self.source is not None or backend is self.preferred

    def count_wait(self, seconds: float) -> None:
        """Take the time of a wait for a session off ``queue_left``."""
        self.queue_left -= seconds

    # Failures and races ----------------------------------------------------------------------------------------------

    def add_failure(self, backend: Backend, began: float) -> None:
        """Remember an exchange that broke, until it is known if another backend answers the request."""
        self.failures = [*self.failures, (backend, began)]

    def sends_again(self, reason: str) -> None:
        """Note that the request is sent again, because of the failure with this reason."""
        self.retried = [*self.retried, reason]

    def take_failures(self) -> Sequence[tuple[Backend, float]]:
        """Return the failures, and forget them."""
        failures, self.failures = self.failures, ()
        return failures

    def doubt_once(self) -> bool:
        """Return True at the first call only: a request is hedged once because a session or its path may be dead."""
        is_first, self._is_doubted = not self._is_doubted, True
        return is_first

    @property
    def is_racing(self) -> bool:
        """True if more than one try is under way."""
        return self.race is not None and not self.race.is_over

    def join_race(self, first: Session) -> Race:
        """Return the race that is under way, or begin one. ``first`` is the session of the first try."""
        if self.race is None or self.race.is_over:
            self.race = Race(first)
        return self.race

    # Times -----------------------------------------------------------------------------------------------------------

    def measure(self) -> StageTimes:
        """Return the times of the stages, which are kept from now on."""
        if self.times is None:
            self.times = StageTimes()
        return self.times

    def add_exchange(self, began: float, ended: float) -> None:
        """Keep the times of an exchange."""
        self.measure().exchanges.append((began, ended))

    def stages(self, times: StageTimes) -> Stages:
        """Return the stages so far."""
        tried = [backend.name for backend in self.tried]
        return Stages(self.tries, tried, times.queue, times.connect, times.exchanging)

    # Resources -------------------------------------------------------------------------------------------------------

    async def get_token(self, seconds: float = float("inf")) -> bool:
        """Return True once the request holds a token of the retry budget, which it keeps to its end.

        Wait for a token up to ``seconds``, and not beyond the deadline.
        """
        if not self.has_token and not self.retries.is_nothing:
            with trio.move_on_at(min(self.deadline, trio.current_time() + seconds)):
                await self.retries.wait()
                self.has_token = True
        return self.has_token

    def hold(self, response: Response) -> bool:
        """Count an answer as held while other backends are asked. Return False, and count nothing, over a limit."""
        size = len(response.frame)
        if self.payer is not None and self.payer.hold(size) is not None:
            return False
        self.held += size
        return True

    def release(self) -> None:
        """Return the retry token to the budget, and held bytes to the payer. The dispatcher calls this at the end."""
        if self.has_token:
            self.retries.give_back()
        if self.payer is not None and self.held:
            self.payer.hold(-self.held)
        self.has_token, self.held = False, 0


class ClientDisconnectedError(Exception):
    """The client has disconnected while its request was waiting; ``is_sent`` if a key manager may have seen it."""

    def __init__(self, *, is_sent: bool = False) -> None:
        super().__init__()
        self.is_sent = is_sent
