"""Health check: checks one backend again and again, and reports to Health.

A check takes the same path as requests: TLS, KMIP, an answer. It has a session of its own, so that a full pool does not
look like a failing key manager. Health belongs to the key manager, and a refusal to the credential: if the key manager
refuses the credential of the check, the check goes on with the next credential. A failed check does not count if
clients have been answered since it began.
"""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import trio

from gateway.config import HealthConfig
from gateway.errors import BackendError, ProtocolError, Stage
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request, Response, Version, read_version
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.log import Log, quoted
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.health import Verdict
from gateway.upstream.passwords import Password
from gateway.upstream.session import Session

DISCOVER_VERSIONS: Final = decode_request(compose.discover_versions())
_HANDSHAKES: Final = 3  # credentials tried in one check at most: no handshake storm if many are refused
#: Reasons of a session that could not be opened, for which the next credential may succeed. If the credential was not
#: the cause, the next credential fails in the same way.
_MAY_BE_THE_CREDENTIAL: Final = frozenset({"credential", "alert", "tls", "validation"})


class HealthCheckResult(NamedTuple):
    """Verdict of a health check; ``reason`` and ``detail`` as in Health."""

    verdict: Verdict
    reason: str = ""
    detail: str = ""


_SERVES: Final = HealthCheckResult(Verdict.SERVES)


class HealthChecker:
    """Checks one backend with a cheap ``request``.

    ``credentials`` are names of the backend's pools, in the order in which they are tried: the check uses a credential
    until the key manager refuses it. ``passwords`` are put into the requests of their credentials. ``asks_versions`` is
    for backends that understand Discover Versions. A check is
    successful with any answer, with an answer that contains ``settings.expect_text``, or with a Result Status Success,
    as the settings say.
    """

    def __init__(
        self,
        backend: Backend,
        credentials: Sequence[str],
        request: Request,
        settings: HealthConfig,
        metrics: Metrics,
        log: Log,
        *,
        asks_versions: bool = True,
        passwords: Mapping[str, Password] | None = None,
    ) -> None:
        self._backend = backend
        self._credentials = credentials
        self._credential = credentials[0]
        self._refusals: dict[str, BackendError] = {}  # by credential, since a session was opened
        self._request = request
        self._settings = settings
        self._expect_text = settings.expect_text.encode()
        self._asks_versions = asks_versions
        self._passwords = passwords or {}
        self._metrics = metrics
        self._log = log.bind(backend=backend.name)
        self._session: Session | None = None
        self._began_before = trio.current_time()
        self._is_outweighed = False

    def __repr__(self) -> str:
        return f"<HealthChecker of {self._backend.name} as {self._credential}: {self._backend.health!r}>"

    async def run(self) -> None:
        """Check every ``interval`` seconds, with jitter, until cancelled."""
        settings = self._settings
        try:
            while True:
                try:
                    await self.check()
                except Exception as error:  # noqa: BLE001 - else an internal error would end it
                    self._log.error("internal error: health check not made; report this bug", exc_info=error)
                    self._close_session()
                spread = random.uniform(1 - settings.jitter, 1 + settings.jitter)  # noqa: S311 - spreads load only
                await trio.sleep(settings.interval * spread)
        finally:
            self._close_session()

    async def check(self) -> None:
        """Check once, and report to Health, unless the outcome does not concern the backend."""
        began, began_at = time.perf_counter(), trio.current_time()
        found = await self._check()
        began_before, self._began_before = self._began_before, began_at
        if isinstance(found, BackendError):
            self._close_session()
            if found.reason == "resources" or self._is_outweighed_by_answers(found, began_at, began_before):
                return
            found = HealthCheckResult(Verdict.FAILS, found.reason, found.args[0])
        self._is_outweighed = False
        if found.verdict is Verdict.FAILS:
            self._close_session()
        else:
            self._backend.reached()
        if found.verdict is Verdict.SERVES:
            if not self._backend.last_health_check_success:
                seconds = round(time.time() - self._backend.since, 3)
                self._log.info("key manager reached", address=str(self._backend.endpoint.address), seconds=seconds)
            self._backend.last_health_check_success = time.time()
        self._backend.health.checked(*found)
        self._metrics.health_checked(self._backend.name, found.verdict.value, time.perf_counter() - began)

    def _is_outweighed_by_answers(self, error: BackendError, began_at: float, began_before: float) -> bool:
        """Return True if clients have been answered since the failed check began.

        If all credentials that were tried were refused, answers since the previous check count, too: a refusal comes
        at once, and sessions that were opened earlier go on.
        """
        since = began_before if error.reason in _MAY_BE_THE_CREDENTIAL else began_at
        answered_at = max((pool.answered_at for pool in self._backend.pools.values()), default=float("-inf"))
        if answered_at < since:
            return False
        if not self._is_outweighed:  # logged once, until a check counts again
            self._is_outweighed = True
            self._log.warning(
                "health check failed, and does not count: the key manager answers clients",
                reason=error.reason,
                detail=error.args[0],
            )
        return True

    async def _check(self) -> HealthCheckResult | BackendError:
        """Ask the backend, and return the verdict on its answer, or the error if there is no answer."""
        timeout = self._settings.timeout
        try:
            with trio.move_on_after(timeout):
                return self._evaluate(await self._ask())
        except BackendError as error:
            return error
        except Exception as error:  # noqa: BLE001 - as in Opening: an odd key manager must not end the gateway
            return self._error(quoted(f"{type(error).__name__}: {error}"), "unexpected")
        return self._error(f"no answer to the health check within {timeout:g} s", "timeout")

    async def _ask(self) -> Response:
        """Send the request on the kept session; on a fresh session if there is none or the kept one fails."""
        if self._session is not None and not self._backend.endpoint.is_current(self._session):
            self._close_session()
        if self._session is not None:
            try:
                return await self._session.exchange(self._with_credential(self._request))
            except BackendError:
                self._close_session()
        self._session = await self._open()
        if self._asks_versions:
            discover = self._with_credential(DISCOVER_VERSIONS)
            self._backend.versions = offered_versions(await self._session.exchange(discover)) or self._backend.versions
        return await self._session.exchange(self._with_credential(self._request))

    def _with_credential(self, request: Request) -> Request:
        """Return a request of the check with the password of the credential that is used, if it has one."""
        password = self._passwords.get(self._credential)
        return request if password is None else password.added_to(request)

    async def _open(self) -> Session:
        """Open a session with the first credential that the key manager accepts; try three credentials at most.

        The next check goes on with the credentials that were not tried. Raises BackendError.
        """
        if len(self._refusals) == len(self._credentials):
            self._refusals.clear()  # all were refused: start over
        tried = []
        while True:
            credential = self._next_credential()
            tried.append(credential)
            try:
                session = await self._backend.pools[credential].opener()
            except BackendError as error:
                if error.reason not in _MAY_BE_THE_CREDENTIAL:
                    self._refusals.clear()  # not a refusal: the key manager fails, perhaps since the first refusal
                    raise
                self._refusals[credential] = error
                if len(self._refusals) == len(self._credentials) or len(tried) == _HANDSHAKES:
                    raise self._error(_refused_to(tried, error), error.reason) from None
            else:
                self._accepted(credential)
                return session

    def _next_credential(self) -> str:
        """Return a credential that was not refused: the current one, else the one that served clients most recently."""
        left = [name for name in self._credentials if name not in self._refusals]
        return self._credential if self._credential in left else min(left, key=self._rank)

    def _rank(self, credential: str) -> tuple[bool, float, bool]:
        pool = self._backend.pools[credential]
        sessions = pool.statistics()
        return pool.is_failing, -pool.answered_at, not (sessions.idle or sessions.busy)

    def _accepted(self, credential: str) -> None:
        """Use this credential from now on, since the key manager accepts it; log if it is a different one."""
        refusal = self._refusals.get(self._credential)
        if refusal is not None:
            self._log.error(
                "key manager refuses the credential of the health check: another identity's is used instead",
                credential=self._credential,
                instead=credential,
                reason=refusal.reason,
                detail=refusal.args[0],
            )
        self._credential = credential
        self._refusals.clear()

    def _evaluate(self, response: Response) -> HealthCheckResult:
        if self._expect_text:
            return _SERVES if self._expect_text in response.frame else _STANDBY
        if self._settings.expect_status == "success" and response.items[0].status != ResultStatus.SUCCESS:
            return _NO_SUCCESS
        return _SERVES

    def _error(self, message: str, reason: str) -> BackendError:
        return BackendError(message, backend=self._backend.name, stage=Stage.CONNECT, reason=reason)

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


_STANDBY: Final = HealthCheckResult(
    Verdict.STANDBY,
    "expect_text",
    "the answer to the health check does not contain health.expect_text: the backend is in standby",
)
_NO_SUCCESS: Final = HealthCheckResult(
    Verdict.FAILS, "no_success", 'the health check was answered with an error, and health.expect_status is "success"'
)


def _refused_to(credentials: Sequence[str], error: BackendError) -> str:
    """Return a message that names the refused credentials, and the reason of the last refusal."""
    if len(credentials) == 1:
        return str(error.args[0])
    return f"no session with the credential of any of {', '.join(credentials)}: {error.args[0]}"


def offered_versions(response: Response) -> frozenset[Version] | None:
    """Return the versions that an answer to Discover Versions names, or None if it names none."""
    item = response.items[0]
    span = item.fields.get(Tag.RESPONSE_PAYLOAD)
    if item.operation != Operation.DISCOVER_VERSIONS or item.status != ResultStatus.SUCCESS or span is None:
        return None
    try:
        return frozenset(read_version(response.frame, found) for found in ttlv.walk(response.frame, *span)) or None
    except ProtocolError:
        return None
