"""A request on its way, and the times that bind it."""

from collections.abc import Callable
from typing import NamedTuple

import trio

from gateway.identity import Principal
from gateway.kmip.messages import Request
from gateway.policy import effect_of
from gateway.upstream.affinity import Stay
from gateway.upstream.backend import Backend


class DispatcherSettings(NamedTuple):
    """Times in seconds.

    ``request`` is for a request over all, ``queue`` for waiting for sessions in it, ``try_timeout`` for one try of a
    request that may be repeated. Before one that may not, a session that was idle for longer than ``validate_after``
    has ``proof`` to prove itself alive. The rest are a RetryBudget's.
    """

    request: float = 30.0
    queue: float = 5.0
    try_timeout: float = 5.0
    validate_after: float = 1.0
    proof: float = 3.0
    retry_fraction: float = 0.2
    retry_floor: float = 1.0


class Job:
    """A request on its way, and what binds it: ``deadline`` in trio's time, ``queue_left`` in seconds of waiting."""

    __slots__ = (
        "credential",
        "deadline",
        "effect",
        "is_gone",
        "preferred",
        "principal",
        "queue_left",
        "request",
        "source",
        "stays",
        "tried",
    )

    def __init__(
        self, request: Request, principal: Principal, is_gone: Callable[[], bool], settings: DispatcherSettings
    ) -> None:
        self.request = request
        self.principal = principal
        self.credential = principal.identity.name
        self.effect = effect_of(request)
        self.deadline = trio.current_time() + settings.request
        self.queue_left = settings.queue
        self.is_gone = is_gone
        self.tried: list[Backend] = []
        self.source: Backend | None = None  # the only one that can answer, as a mark says
        self.preferred: Backend | None = None  # the one to try first
        self.stays: list[Stay] = []  # what the client has just left where


class ClientGoneError(Exception):
    """The client has left while its request was waiting."""
