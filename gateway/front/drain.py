"""Drain: the end of serving, in three parts.

lame duck   /readyz fails, and clients are accepted as before, so that load balancers can look and leave
drain       no new clients; each connection ends after its request in flight
deadline    requests that are still in flight are answered "the outcome is unknown", and all connections closed
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import trio

from gateway.config import DeadlinesConfig
from gateway.front.clients import Clients
from gateway.log import Log
from gateway.metrics import Metrics


class Drain:
    """The drain of a core: it begins with ``begin``, and ``end_waiting`` shortens the waiting."""

    def __init__(self, deadlines: DeadlinesConfig, metrics: Metrics, log: Log) -> None:
        self._deadlines = deadlines
        self._metrics = metrics
        self._log = log
        self._begun = trio.Event()
        self._waiting_ended = trio.Event()
        self._answered_before = 0.0
        self._cut_off = (0, 0)  # requests and connections

    def __repr__(self) -> str:
        return f"<Drain{', begun' * self.has_begun}{', waiting ended' * self._waiting_ended.is_set()}>"

    @property
    def has_begun(self) -> bool:
        """True from ``begin`` on: /readyz answers 503."""
        return self._begun.is_set()

    def begin(self) -> None:
        """Begin the drain. May be called again."""
        self._begun.set()

    def end_waiting(self) -> None:
        """End the lame duck, and come to the deadline now."""
        self._begun.set()
        self._waiting_ended.set()

    async def wait(self) -> None:
        """Wait until no new client may be accepted."""
        await self._begun.wait()
        self._answered_before = self._answered()
        self._metrics.draining.set(1)
        if lame_duck := self._deadlines.lame_duck:
            self._log.info("draining: /readyz fails, and clients are still accepted", seconds=lame_duck)
            with trio.move_on_after(lame_duck):
                await self._waiting_ended.wait()
        self._log.info("draining", seconds=self._deadlines.drain)

    @asynccontextmanager
    async def bounding(self, clients: Collection[Clients]) -> AsyncIterator[trio.Nursery]:
        """Yield a nursery for the tasks that serve; from the end of the block on, they have ``drain`` seconds.

        ``wait`` must have returned in the block. The last line of a log tells how the drain went.
        """
        async with trio.open_nursery() as watching:
            async with trio.open_nursery() as serving:
                yield serving
                watching.start_soon(self._cut_off_late, clients, serving.cancel_scope)
            watching.cancel_scope.cancel()
        requests, connections = self._cut_off
        self._log.info(
            "drained",
            requests_answered=round(self._answered() - self._answered_before),
            requests_cut_off=requests,
            connections_cut_off=connections,
        )

    async def _cut_off_late(self, clients: Collection[Clients], serving: trio.CancelScope) -> None:
        with trio.move_on_after(self._deadlines.drain):
            await self._waiting_ended.wait()
        self._cut_off = (
            sum(each.requests_in_flight for each in clients),
            sum(each.connections for each in clients),
        )
        serving.cancel()

    def _answered(self) -> float:
        """Return the number of requests that were answered so far, the gateway's own errors among them."""
        self._metrics.flush()
        return sum(sample.value for family in self._metrics.requests.collect() for sample in family.samples)
