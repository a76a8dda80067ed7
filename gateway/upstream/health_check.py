"""The prober: runs the health check of one backend now and then, and tells Health.

It asks over the same path as requests take: TLS, KMIP, an answer. Its session is its own, so that a full pool does not
look like a sick key manager. Health belongs to the key manager, and a refusal to the credential: if the key manager
refuses the credential that the check shows, the check goes on with another one. Nor does a check that fails outweigh
answers that clients have got since it began.
"""

import random
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import trio

from gateway.errors import BackendError, ProtocolError, Stage
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request, Response, Version, read_version
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.log import Log, quoted
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.health import Verdict
from gateway.upstream.session import Session

_DISCOVER: Final = decode_request(compose.discover_versions())
_HANDSHAKES: Final = 3  # credentials tried in one check, at the most: no storm at a key manager that refuses many
#: Reasons of a session that could not be opened, for which another credential may do better. If the cause was not the
#: credential after all, another one fails in the same way.
_MAY_BE_THE_CREDENTIAL: Final = frozenset({"credential", "alert", "tls", "validation"})


class Finding(NamedTuple):
    """The outcome of a health check; ``reason`` and ``detail`` as in Health."""

    verdict: Verdict
    reason: str = ""
    detail: str = ""


_SERVES: Final = Finding(Verdict.SERVES)


class HealthCheckSettings(NamedTuple):
    """Seconds between health checks and for one of them, and which answer counts as one of a backend that serves.

    ``expect_text`` is part of a serving node's answer to Query; without it every answer serves, or every successful
    one where ``must_succeed`` is set. ``asks_versions`` is for backends that understand Discover Versions.
    """

    interval: float = 2.0
    timeout: float = 2.0
    jitter: float = 0.2
    must_succeed: bool = False
    expect_text: bytes = b""
    asks_versions: bool = True


class HealthChecker:
    """Checks one backend, for ever.

    ``credentials`` are names of the backend's pools, in the order in which they are tried: the check keeps to one of
    them until the key manager refuses it.
    """

    def __init__(
        self,
        backend: Backend,
        credentials: Sequence[str],
        probe: Request,
        settings: HealthCheckSettings,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._backend = backend
        self._credentials = credentials
        self._credential = credentials[0]
        self._refusals: dict[str, BackendError] = {}  # by credential, since a session was opened
        self._probe = probe
        self._settings = settings
        self._metrics = metrics
        self._log = log.bind(backend=backend.name)
        self._session: Session | None = None
        self._began_before = trio.current_time()
        self._is_outweighed = False

    def __repr__(self) -> str:
        return f"<HealthChecker of {self._backend.name} as {self._credential}: {self._backend.health!r}>"

    async def run(self) -> None:
        """Check now and then, until cancelled."""
        settings = self._settings
        try:
            while True:
                try:
                    await self.probe()
                except Exception as error:  # noqa: BLE001 - else this fault of ours would end the whole gateway
                    self._log.error("health check lost to a fault of the gateway", exc_info=error)
                    self._hang_up()
                spread = random.uniform(1 - settings.jitter, 1 + settings.jitter)  # noqa: S311 - spreads load only
                await trio.sleep(settings.interval * spread)
        finally:
            self._hang_up()

    async def probe(self) -> None:
        """Check once, and tell Health, unless the outcome says nothing of the backend."""
        began, began_at = time.perf_counter(), trio.current_time()
        found = await self._find()
        began_before, self._began_before = self._began_before, began_at
        if isinstance(found, BackendError):
            self._hang_up()
            if found.reason == "resources" or self._is_outweighed_by_answers(found, began_at, began_before):
                return
            found = Finding(Verdict.FAILS, found.reason, found.args[0])
        self._is_outweighed = False
        if found.verdict is Verdict.FAILS:
            self._hang_up()
        else:
            self._backend.reached()
        self._backend.health.probed(*found)
        self._metrics.health_checked(self._backend.name, found.verdict.value, time.perf_counter() - began)

    def _is_outweighed_by_answers(self, error: BackendError, began_at: float, began_before: float) -> bool:
        """Return whether clients have got answers since a check began that failed without an answer of its own.

        If every credential that was tried was refused, answers since the check before count as well: a refusal comes at
        once, and sessions that were opened earlier go on.
        """
        since = began_before if error.reason in _MAY_BE_THE_CREDENTIAL else began_at
        answered_at = max((pool.answered_at for pool in self._backend.pools.values()), default=float("-inf"))
        if answered_at < since:
            return False
        if not self._is_outweighed:  # said once, until a check counts again
            self._is_outweighed = True
            self._log.warning(
                "health check failed, and does not count: the key manager answers clients",
                reason=error.reason,
                detail=error.args[0],
            )
        return True

    async def _find(self) -> Finding | BackendError:
        """Return what the backend's answer says of it, or the error for want of which there is none."""
        timeout = self._settings.timeout
        try:
            with trio.move_on_after(timeout):
                return self._judge(await self._ask())
        except BackendError as error:
            return error
        except Exception as error:  # noqa: BLE001 - as in Pool: what is odd about one backend must not end the gateway
            return self._error(quoted(f"{type(error).__name__}: {error}"), "unexpected")
        return self._error(f"no answer to the health check within {timeout:g} s", "timeout")

    async def _ask(self) -> Response:
        """Ask on the session that is kept; if the peer has closed that in the meantime, on a fresh one."""
        if self._session is not None and not self._backend.endpoint.is_current(self._session):
            self._hang_up()
        if self._session is not None:
            try:
                return await self._session.exchange(self._probe)
            except BackendError:
                self._hang_up()
        self._session = await self._open()
        if self._settings.asks_versions:
            self._backend.versions = _versions(await self._session.exchange(_DISCOVER)) or self._backend.versions
        return await self._session.exchange(self._probe)

    async def _open(self) -> Session:
        """Open a session with the first credential that the key manager takes, of a few.

        The next check goes on with those that this one did not try. Raises BackendError.
        """
        if len(self._refusals) == len(self._credentials):
            self._refusals.clear()  # every one was refused: begin anew
        tried = []
        while True:
            credential = self._next_credential()
            tried.append(credential)
            try:
                session = await self._backend.pools[credential].opener()
            except BackendError as error:
                if error.reason not in _MAY_BE_THE_CREDENTIAL:
                    self._refusals.clear()  # the trouble is the key manager's, perhaps since the first was refused
                    raise
                self._refusals[credential] = error
                if len(self._refusals) == len(self._credentials) or len(tried) == _HANDSHAKES:
                    raise self._error(_refused_to(tried, error), error.reason) from None
            else:
                self._took(credential)
                return session

    def _next_credential(self) -> str:
        """Choose a credential that was not refused: the check's own, else one that has served clients lately."""
        left = [name for name in self._credentials if name not in self._refusals]
        return self._credential if self._credential in left else min(left, key=self._rank)

    def _rank(self, credential: str) -> tuple[bool, float, bool]:
        pool = self._backend.pools[credential]
        sessions = pool.statistics()
        return pool.is_failing, -pool.answered_at, not (sessions.idle or sessions.busy)

    def _took(self, credential: str) -> None:
        """The key manager has taken this credential: keep to it, and say so if that is a change."""
        refusal = self._refusals.get(self._credential)
        if refusal is not None:
            self._log.error(
                "key manager refuses the credential of the health check: another identity's serves instead",
                credential=self._credential,
                instead=credential,
                reason=refusal.reason,
                detail=refusal.args[0],
            )
        self._credential = credential
        self._refusals.clear()

    def _judge(self, response: Response) -> Finding:
        settings = self._settings
        if settings.expect_text:
            return _SERVES if settings.expect_text in response.frame else _STANDBY
        if settings.must_succeed and response.items[0].status != ResultStatus.SUCCESS:
            return _NO_SUCCESS
        return _SERVES

    def _error(self, message: str, reason: str) -> BackendError:
        return BackendError(message, backend=self._backend.name, stage=Stage.CONNECT, reason=reason)

    def _hang_up(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


_STANDBY: Final = Finding(
    Verdict.STANDBY, "expect_text", "the answer to the health check lacks health.expect_text: it stands by"
)
_NO_SUCCESS: Final = Finding(
    Verdict.FAILS, "no_success", 'the health check is answered with an error, and health.expect_status = "success"'
)


def _refused_to(credentials: Sequence[str], error: BackendError) -> str:
    """Say that these credentials were refused, for the reason that the last of them met."""
    if len(credentials) == 1:
        return str(error.args[0])
    return f"no session with the credential of any of {', '.join(credentials)}: {error.args[0]}"


def _versions(response: Response) -> frozenset[Version] | None:
    """The versions that a Discover Versions names, or None where it names none."""
    item = response.items[0]
    span = item.fields.get(Tag.RESPONSE_PAYLOAD)
    if item.operation != Operation.DISCOVER_VERSIONS or item.status != ResultStatus.SUCCESS or span is None:
        return None
    try:
        return frozenset(read_version(response.frame, found) for found in ttlv.walk(response.frame, *span)) or None
    except ProtocolError:
        return None
