"""Opening: the attempts of one pool to open a session, and the pauses after failures.

              an attempt fails              the pause ends
    READY  --------------------> PAUSED  ---------------------> TRYING (one attempt at a time)
      ^                             ^                              |  |
      |                             +------- an attempt fails -----+  |
      +------------------------- a session opens --------------------+

    READY    ``failure`` is None: any number of attempts, as Slots and Gate allow
    PAUSED   ``failure`` is set, and a pause lasts: no attempt; new requests fail at once with the known failure
    TRYING   ``failure`` is set, and no pause lasts: one attempt, whose outcome ends the state

A failure concerns one credential (the key manager refuses it, or closes the connection right after the handshake), or
every credential (connection refused, or no answer). The pause after the first kind is this pool's. The pause after the
second kind is the Gate's, for all pools of the backend.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from gateway.config import DeadlinesConfig, FailoverConfig
from gateway.errors import BackendError, Stage
from gateway.kmip.messages import Request
from gateway.log import quoted
from gateway.upstream.gate import Gate, Pause
from gateway.upstream.open_session import Opener
from gateway.upstream.session import Session

#: Reasons of failures that concern one credential only.
REFUSED: Final = frozenset({"credential", "validation", "alert"})

_FIRST_PAUSE: Final = 0.25  # s after a credential was refused
_RESOURCES_PAUSE: Final = 0.1  # s without attempts if this process is out of descriptors or memory
_YOUNG: Final = 2.0  # s; if the peer closes an unused session that is younger, the next session is validated twice

Spawn = Callable[[Callable[[], Awaitable[None]]], None]


class Opening:
    """The state machine above. ``opener`` opens a session, within ``deadlines.connect`` seconds.

    ``under_way`` is the number of attempts; the pool counts them. If the key manager closes a session as soon as it was
    opened, ``is_suspicious`` is set, and the next session must answer ``validation_request`` a second time: some key
    managers close after the first answer, for example when they have too many sessions.
    """

    def __init__(
        self,
        backend: str,
        opener: Opener,
        gate: Gate,
        validation_request: Request,
        *,
        deadlines: DeadlinesConfig,
        failover: FailoverConfig,
    ) -> None:
        self._backend = backend
        self.opener = opener
        self._gate = gate
        self._deadlines = deadlines
        self._pause = Pause(_FIRST_PAUSE, failover.max_ejection_time)
        self._validation_request = validation_request
        self.is_suspicious = False
        self.under_way = 0
        self.failure: BackendError | None = None
        self.failed_at = float("-inf")
        self.failing_since = float("inf")

    def __repr__(self) -> str:
        return f"<Opening {self.under_way} under way{', failing' if self.failure is not None else ''}>"

    @property
    def _deadline(self) -> float:
        return self._deadlines.connect

    def renew(self, opener: Opener, longest_pause: float, validation_request: Request) -> None:
        """Open sessions with another opener from now on; the pause after failures of the previous opener ends."""
        self.opener = opener
        self._validation_request = validation_request
        self._pause = Pause(_FIRST_PAUSE, longest_pause)

    def may_try(self, now: float) -> bool:
        """Return True if one more attempt may begin, as far as this credential is concerned."""
        return self.failure is None or (not self.under_way and self._pause.is_over(now))

    def known_failure(self, now: float) -> BackendError | None:
        """Return the failure with which a new request fails at once; None if the request should wait for an attempt.

        A request waits for an attempt that is under way or may begin; but if the credential was refused, not for an
        attempt that is under way.
        """
        failure = self.failure
        if failure is not None and (not self._pause.is_over(now) or (self.under_way and failure.reason in REFUSED)):
            return failure
        return None if self._gate.pause.is_over(now) or self.under_way else self._gate.failure

    async def attempt(self) -> Session | BackendError:
        """Try to open a session, and return it or the error. Raises nothing that a key manager can cause."""
        try:
            with trio.move_on_after(self._deadline):
                session = await self.opener()
                return await self._validate_again(session) if self.is_suspicious else session
        except BackendError as error:
            return error
        except Exception as unexpected:  # noqa: BLE001 - an odd key manager must not end the gateway
            return self._error(quoted(f"{type(unexpected).__name__}: {unexpected}"), "unexpected")
        return self._error(f"no session within {self._deadline:g} s", "timeout")

    async def _validate_again(self, session: Session) -> Session | BackendError:
        try:
            await session.exchange(self._validation_request)
        except BackendError:
            session.close()
            return self._error("the key manager closes sessions after their first answer", "validation")
        except BaseException:
            session.close()
            raise
        if not session.is_idle:
            session.close()
            return self._error("the key manager sent more bytes after an answer", "validation")
        self.is_suspicious = False
        session.requests = 0
        return session

    def _error(self, message: str, reason: str) -> BackendError:
        return BackendError(message, backend=self._backend, stage=Stage.CONNECT, reason=reason)

    def opened(self) -> None:
        """Enter READY: a session has opened."""
        self.failure = None
        self.failing_since = float("inf")
        self._pause.reset()

    def failed(self, error: BackendError, now: float) -> None:
        """Enter PAUSED with the pause that belongs to the failure; a lack of resources here only delays attempts."""
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
        """Count a session that the key manager closed. Return True if it was closed unused within 2 s."""
        if session.requests or now - session.opened_at > _YOUNG:
            return False
        self.is_suspicious = True
        return True
