"""Opening: opens the sessions of one pool, and remembers why the last attempt failed.

              an attempt fails             the pause is over
    READY  --------------------> PAUSED  ---------------------> TRYING (one attempt at a time)
      ^                             ^                              |  |
      |                             +------- an attempt fails -----+  |
      +------------------------- a session opens --------------------+

A failure concerns either one credential (the key manager refuses it, or closes the connection right after the
handshake), or every credential (nobody listens, nothing comes back). The pause after the first kind is this pool's, the
pause after the second is the gate's, for all pools of the backend.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from gateway.errors import BackendError, Stage
from gateway.kmip.messages import Request
from gateway.log import quoted
from gateway.upstream.gate import Gate, Pause
from gateway.upstream.open_session import Opener
from gateway.upstream.session import Session

#: Reasons that concern one credential only.
REFUSED: Final = frozenset({"credential", "validation", "alert"})

_FIRST_PAUSE: Final = 0.25  # s after a credential was refused
_RESOURCES_PAUSE: Final = 0.1  # s without attempts when this process is out of descriptors or memory
_YOUNG: Final = 2.0  # s: if a session ends earlier, before its first answer to a client, the next one is tried twice

Spawn = Callable[[Callable[[], Awaitable[None]]], None]


class Opening:
    """Attempts of one pool. ``opener`` opens a session, within ``connect_deadline`` seconds.

    If the key manager closes a session as soon as it was opened, ``is_suspicious`` is set, and the next session must
    answer ``probe`` a second time: some key managers close behind the first answer, as one does that is full.
    """

    def __init__(
        self, backend: str, opener: Opener, gate: Gate, probe: Request, *, connect_deadline: float, max_pause: float
    ) -> None:
        self._backend = backend
        self.opener = opener
        self._gate = gate
        self._deadline = connect_deadline
        self._pause = Pause(_FIRST_PAUSE, max_pause)
        self._probe = probe
        self.is_suspicious = False
        self.under_way = 0
        self.failure: BackendError | None = None
        self.failed_at = float("-inf")
        self.failing_since = float("inf")

    def __repr__(self) -> str:
        return f"<Opening {self.under_way} under way{', failing' if self.failure is not None else ''}>"

    def may_try(self, now: float) -> bool:
        """Return True if one more attempt may begin, as far as this credential is concerned."""
        return self.failure is None or (not self.under_way and self._pause.is_over(now))

    def known_failure(self, now: float) -> BackendError | None:
        """Return why no session can be had now, if an attempt would have to wait for the end of a pause.

        While a refused credential is tried again, that is known, too.
        """
        failure = self.failure
        if failure is not None and (not self._pause.is_over(now) or (self.under_way and failure.reason in REFUSED)):
            return failure
        return None if self._gate.pause.is_over(now) or self.under_way else self._gate.failure

    async def attempt(self) -> Session | BackendError:
        """Try to open a session. Never raises what a key manager can cause."""
        try:
            with trio.move_on_after(self._deadline):
                session = await self.opener()
                return await self._tried_twice(session) if self.is_suspicious else session
        except BackendError as error:
            return error
        except Exception as error:  # noqa: BLE001 - an odd key manager must not end the gateway
            return self._error(quoted(f"{type(error).__name__}: {error}"), "unexpected")
        return self._error(f"no session within {self._deadline:g} s", "timeout")

    async def _tried_twice(self, session: Session) -> Session | BackendError:
        try:
            await session.exchange(self._probe)
        except BackendError:
            session.close()
            return self._error("the key manager closes sessions behind their first answer", "validation")
        except BaseException:
            session.close()
            raise
        self.is_suspicious = False
        session.requests = 0
        return session

    def _error(self, message: str, reason: str) -> BackendError:
        return BackendError(message, backend=self._backend, stage=Stage.CONNECT, reason=reason)

    def opened(self) -> None:
        """Count a session that opened."""
        self.failure = None
        self.failing_since = float("inf")
        self._pause.reset()

    def failed(self, error: BackendError, now: float) -> None:
        """Count a failed attempt, and begin the pause that belongs to it."""
        if error.reason == "resources":
            self._gate.wait_until(now + _RESOURCES_PAUSE)
            return
        if self.failure is None:
            self.failing_since = now
        self.failure = error
        self.failed_at = now
        if error.reason in REFUSED:
            self._pause.failed(now)
            self._gate.refused()
        else:
            self._gate.failed(error, now)

    def closed_by_peer(self, session: Session, now: float) -> bool:
        """Count a session that the key manager closed. Return True if it was closed as soon as it was opened."""
        if session.requests or now - session.opened_at > _YOUNG:
            return False
        self.is_suspicious = True
        return True
