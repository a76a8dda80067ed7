"""Race: the tries of one read that are under way together. The first good answer wins.

    first try   ----------- overdue ----------------------------------> loses: ends its exchange in the background
    hedge             waits for a token, then for a session --> answered: wins

The task of the request waits for the first try, whether or not there is a hedge. A hedge is a second try in a task of
its own; if the hedge wins, it interrupts the first try. When the race is over, a hedge that has sent nothing is
cancelled. A try that has sent the request ends its exchange in the background, so that its session is kept; the session
is closed if its slot is needed.
"""

from typing import Final

import trio

from gateway.kmip.messages import Response
from gateway.upstream.backend import Backend
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session

_NEVER: Final = float("inf")


class Hedge:
    """A second try of a read.

    ``scope`` is that of its task: it holds the deadline until the request is sent. ``is_overdue`` is True once the
    answer takes longer than ``try_timeout``.
    """

    __slots__ = ("is_overdue", "is_sent", "is_validating", "pool", "race", "scope", "session")

    def __init__(self, race: "Race", deadline: float) -> None:
        self.race = race
        self.scope = trio.CancelScope(deadline=deadline)
        self.is_sent = False
        self.is_validating = False  # a session, which would be lost if the hedge were cancelled now
        self.is_overdue = False
        self.pool: Pool | None = None
        self.session: Session | None = None

    def __repr__(self) -> str:
        return f"<Hedge {'sent' if self.is_sent else 'waiting'}{', overdue' * self.is_overdue}>"

    def sends(self, pool: Pool, session: Session) -> None:
        """Note that the request is about to be sent on this session, whose timer enforces the deadline from now on."""
        self.is_sent = True
        self.scope.deadline = _NEVER
        self.pool, self.session = pool, session

    def abandon(self) -> None:
        """Abandon the hedge: cancel the task, or let the session end the exchange if the request was sent."""
        if self.pool is not None and self.session is not None:
            self.pool.abandon(self.session)
        elif not self.is_validating:
            self.scope.cancel()


class Race:
    """The tries of one read. ``first`` is the session of the first try, while the request's task waits for it."""

    def __init__(self, first: Session) -> None:
        self.first: Session | None = first
        self.winner: tuple[Backend, Response] | None = None
        self.is_over = False
        self.is_answered = False  # the race is over because a try was answered
        self.hedges: set[Hedge] = set()
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<Race of the first try and {len(self.hedges)} hedges{', over' * self.is_over}>"

    @property
    def is_hopeful(self) -> bool:
        """True if a hedge is under way that is not overdue."""
        return any(not hedge.is_overdue for hedge in self.hedges)

    def begin(self, deadline: float) -> Hedge:
        """Return a new hedge, which must call ``end`` when its task ends."""
        hedge = Hedge(self, deadline)
        self.hedges.add(hedge)
        return hedge

    def answered(self, backend: Backend, response: Response) -> None:
        """Let a hedge win with this response, unless the race is decided; the first try is interrupted."""
        if self.is_over or self.winner is not None:
            return
        self.winner = backend, response
        if self.first is not None:
            self.first.supersede()

    def end(self, hedge: Hedge) -> None:
        """Remove a hedge that has won, failed or been cancelled."""
        self.hedges.discard(hedge)
        self._changed.set()

    async def outcome(self, deadline: float) -> tuple[Backend, Response] | None:
        """Wait, after the first try has failed, until a hedge wins; return None if all fail or the deadline comes."""
        self.first = None
        with trio.move_on_at(deadline):
            while self.winner is None and self.hedges:
                self._changed = trio.Event()
                await self._changed.wait()
        return self.winner

    def over(self) -> None:
        """End the race: the request has its answer, or none. All hedges are abandoned."""
        self.is_over = True
        if self.winner is not None or self.first is not None:  # ``outcome`` forgets a first try that has failed
            self.is_answered = True
        self.first = None
        for hedge in self.hedges:
            hedge.abandon()
