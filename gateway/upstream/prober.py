"""The prober: asks a backend now and then whether it serves, and tells Health.

It has a session of its own, under the credential that ``[health]`` names, so that neither a full pool nor a client's
refused credential looks like a sick key manager. It asks over the same path as requests take: TLS, KMIP, an answer.
"""

import random
import time
from typing import Final, NamedTuple

import trio

from gateway.errors import BackendError, ProtocolError
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request, Response, Version, read_version
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.health import Verdict
from gateway.upstream.session import Opener, Session

_DISCOVER: Final = decode_request(compose.discover_versions())


class ProberSettings(NamedTuple):
    """Seconds between probes and for an answer, and what counts as one that serves.

    ``serving_text`` is part of a serving node's answer to Query; without it every answer serves, or every successful
    one where ``must_succeed`` is set. ``asks_versions`` is for backends that understand Discover Versions.
    """

    interval: float = 2.0
    timeout: float = 2.0
    jitter: float = 0.2
    must_succeed: bool = False
    serving_text: bytes = b""
    asks_versions: bool = True


class Prober:
    """Probes one backend, for ever. ``opener`` opens sessions with the credential of the probe."""

    def __init__(
        self, backend: Backend, opener: Opener, probe: Request, settings: ProberSettings, metrics: Metrics
    ) -> None:
        self._backend = backend
        self._opener = opener
        self._probe = probe
        self._settings = settings
        self._metrics = metrics
        self._session: Session | None = None

    def __repr__(self) -> str:
        return f"<Prober of {self._backend.name}: {self._backend.health!r}>"

    async def run(self) -> None:
        """Probe now and then, until cancelled."""
        settings = self._settings
        try:
            while True:
                await self.probe()
                spread = random.uniform(1 - settings.jitter, 1 + settings.jitter)  # noqa: S311 - spreads load only
                await trio.sleep(settings.interval * spread)
        finally:
            self._hang_up()

    async def probe(self) -> None:
        """Probe once, and tell Health."""
        began = time.perf_counter()
        verdict: Verdict | None = Verdict.FAILS
        with trio.move_on_after(self._settings.timeout):
            verdict = await self._ask()
        if verdict is None:
            return
        if verdict is Verdict.FAILS:
            self._hang_up()
        else:
            self._backend.reached()
        self._backend.health.probed(verdict)
        self._metrics.probed(self._backend.name, verdict.value, time.perf_counter() - began)

    async def _ask(self) -> Verdict | None:
        """Ask on the session that is kept; where the peer has closed that in the meantime, on a fresh one.

        None where this process had no descriptor to ask with, which says nothing of the backend.
        """
        if self._session is not None and not self._backend.site.is_of(self._session):
            self._hang_up()
        if self._session is not None:
            try:
                return self._judge(await self._session.exchange(self._probe))
            except BackendError:
                self._hang_up()
        try:
            self._session = await self._opener()
            if self._settings.asks_versions:
                self._backend.versions = _versions(await self._session.exchange(_DISCOVER)) or self._backend.versions
            return self._judge(await self._session.exchange(self._probe))
        except BackendError as error:
            return None if error.reason == "resources" else Verdict.FAILS
        except Exception:  # noqa: BLE001 - as in Pool: what is odd about one backend must not end the gateway
            return Verdict.FAILS

    def _judge(self, response: Response) -> Verdict:
        settings = self._settings
        if settings.serving_text:
            return Verdict.SERVES if settings.serving_text in response.frame else Verdict.STANDBY
        if settings.must_succeed and response.items[0].status != ResultStatus.SUCCESS:
            return Verdict.FAILS
        return Verdict.SERVES

    def _hang_up(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


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
