"""A request on its way, and the times that bind it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import trio

from gateway.budget import LookupBudget, RetryBudget
from gateway.config import DeadlinesConfig, FailoverConfig, HealthConfig, PoolConfig, ReplicationConfig
from gateway.dispatcher.race import Race
from gateway.identity import Principal
from gateway.kmip.messages import Request, Response
from gateway.policy import Effect, effect_of
from gateway.upstream.affinity import Stay
from gateway.upstream.backend import Backend
from gateway.upstream.session import Payer

_TOUCH: Final = Effect.TOUCH  # access to an enum member is slow


class DispatcherSettings(NamedTuple):
    """Tables of the configuration that the dispatcher uses."""

    deadlines: DeadlinesConfig = DeadlinesConfig()
    pool: PoolConfig = PoolConfig()
    failover: FailoverConfig = FailoverConfig()
    replication: ReplicationConfig = ReplicationConfig()
    health: HealthConfig = HealthConfig()


class Budgets:
    """The budgets of each identity: none uses up the retries of another."""

    def __init__(self, settings: DispatcherSettings) -> None:
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


class Job:
    """A request on its way, and what binds it: ``deadline`` in trio's time, ``queue_left`` in seconds of waiting.

    ``payer`` holds the bytes of its answers while they are received.

    ``tried`` are the backends that were asked, ``order`` yields those that are left.
    """

    __slots__ = (
        "answered_by",
        "breaks",
        "credential",
        "deadline",
        "effect",
        "has_token",
        "is_doubted",
        "is_gone",
        "is_read",
        "kept",
        "order",
        "payer",
        "preferred",
        "principal",
        "queue_left",
        "race",
        "request",
        "retries",
        "rounds",
        "source",
        "stays",
        "tried",
    )

    def __init__(
        self,
        request: Request,
        principal: Principal,
        is_gone: Callable[[], bool],
        settings: DispatcherSettings,
        retries: RetryBudget,
        payer: Payer | None = None,
    ) -> None:
        self.request = request
        self.principal = principal
        self.credential = principal.identity.name
        self.effect = effect = effect_of(request)
        self.is_read = effect <= _TOUCH  # it may be repeated after it was sent
        self.deadline = trio.current_time() + settings.deadlines.request
        self.queue_left = settings.pool.queue_timeout
        self.is_gone = is_gone
        self.payer = payer
        self.kept = 0  # bytes of an answer that the payer holds while others are asked
        self.retries = retries
        self.has_token = False  # of ``retries``
        self.order: Iterator[Backend]
        self.tried: list[Backend] = []
        self.rounds = 0  # through all backends, without an answer
        #: Exchanges that failed, and when each began, until they are judged.
        self.breaks: Sequence[tuple[Backend, float]] = ()
        self.is_doubted = False  # a second session was tried since the first was idle for long
        self.race: Race | None = None  # once more than one try is under way
        self.answered_by: Backend | None = None  # if that is not the backend that was tried last
        self.source: Backend | None = None  # the only one that can answer, as a mark says
        self.preferred: Backend | None = None  # the one to try first
        self.stays: Sequence[Stay] = ()  # what the client has just left where

    def keeps(self, response: Response) -> bool:
        """Hold an answer while other backends are asked. Return False if that is over a limit."""
        size = len(response.frame)
        if self.payer is not None and self.payer.hold(size) is not None:
            return False
        self.kept += size
        return True

    def release(self) -> None:
        """Release what ``keeps`` holds."""
        if self.payer is not None:
            self.payer.hold(-self.kept)
        self.kept = 0


class ClientGoneError(Exception):
    """The client has left while its request was waiting."""
