"""Minted credentials: one for each client of an identity whose credentials are minted, as many as the limit allows.

A credential belongs to a principal: issuer, subject and alternative names. Its certificate is made when it is needed
first, renewed when a session is opened late in its life, and only in memory. Beyond the limit, the principal whose last
request is the longest ago is forgotten, with its pools at all backends; but never a principal with requests under way,
so that the limit can be exceeded by the number of these.
"""

import random
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Final

import trio

from gateway.config import PoolConfig
from gateway.errors import BackendError, MintingError, Stage
from gateway.identity import Principal
from gateway.metrics import Metrics
from gateway.tls.minting import IssuingCa, MintedCertificate
from gateway.upstream.open_session import SessionTarget, open_session
from gateway.upstream.session import Session

_LOOK_EVERY: Final = 0.1  # s between two looks at whether the requests of a removed identity have ended
_REFUSED_FOR: Final = 30.0  # s for which a refusal to issue a certificate is not tried again


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


class MintedCredential:
    """The credential of one principal. ``in_flight`` counts its requests."""

    __slots__ = ("_cas", "_certificate", "_client", "_lock", "_metrics", "_refused", "identity", "in_flight")

    def __init__(self, principal: Principal, cas: Mapping[str, IssuingCa], metrics: Metrics) -> None:
        assert principal.names is not None  # noqa: S101 - see MintedCredentials.enter
        self.identity = principal.identity.name
        self.in_flight = 0
        self._client = principal.names.certificate
        self._cas = cas
        self._metrics = metrics
        self._certificate: MintedCertificate | None = None
        self._refused: tuple[MintingError, float] | None = None
        self._lock: trio.Lock | None = None  # while a certificate is made in a thread

    def __repr__(self) -> str:
        return f"<MintedCredential of {self.identity}: {self._certificate or 'no certificate'}>"

    @property
    def is_usable(self) -> bool:
        """True if there is a certificate that has not ended."""
        return self._certificate is not None and time.time() < self._certificate.ends

    async def current(self) -> MintedCertificate:
        """Return the certificate, made anew if it is late in its life. Raises MintingError if none may be issued."""
        now = time.time()
        held = self._certificate
        if held is not None and now < held.renew_at:
            return held
        if self._refused is not None and trio.current_time() < self._refused[1]:
            raise MintingError(str(self._refused[0]))
        try:
            made = await self._issue()
        except MintingError as error:
            self._refused = error, trio.current_time() + _REFUSED_FOR
            self._metrics.certificates_minted.labels(self.identity, "refused").inc()
            raise
        self._refused = None
        return made

    async def _issue(self) -> MintedCertificate:
        ca = self._cas.get(self.identity)
        if ca is None:
            raise MintingError(f"the identity {self.identity} has no issuing CA any more: a reload has removed it")
        if not ca.is_slow:
            made = ca.issue(self._client, _now())
        else:
            held, self._lock = self._certificate, self._lock or trio.Lock()
            async with self._lock:
                if self._certificate is not None and self._certificate is not held:
                    return self._certificate  # made while this task waited
                made = await trio.to_thread.run_sync(ca.issue, self._client, _now())
        if self._cas.get(self.identity) is ca:  # else a reload has replaced the CA meanwhile
            self._certificate = made
        self._metrics.certificates_minted.labels(self.identity, "issued").inc()
        return made

    def renew(self) -> None:
        """Make a new certificate for the next session: the issuing CA has changed."""
        self._certificate = None
        self._refused = None


class MintedCredentials:
    """The credentials of all principals, in the order of their latest requests.

    ``cas`` are the issuing CAs by identity, and may change. ``is_unused`` returns True if no pool of a credential has a
    session in use or a request that waits; ``forget`` closes its pools.
    """

    def __init__(
        self,
        settings: PoolConfig,
        cas: Mapping[str, IssuingCa],
        metrics: Metrics,
        *,
        is_unused: Callable[[str], bool],
        forget: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._cas = cas
        self._metrics = metrics
        self._is_unused = is_unused
        self._forget = forget
        self._credentials: OrderedDict[str, MintedCredential] = OrderedDict()

    def __repr__(self) -> str:
        return f"<MintedCredentials of {len(self)} principals>"

    def __len__(self) -> int:
        return len(self._credentials)

    def __getitem__(self, credential: str) -> MintedCredential:
        return self._credentials[credential]

    def enter(self, principal: Principal) -> MintedCredential:
        """Return the credential of a principal, for one request. The caller must ``leave`` it afterwards."""
        key = principal.credential
        credential = self._credentials.get(key)
        if credential is None:
            credential = self._credentials[key] = MintedCredential(principal, self._cas, self._metrics)
        credential.in_flight += 1
        self._credentials.move_to_end(key)
        if len(self._credentials) > self._settings.max_principals:
            self._make_room()
        return credential

    def leave(self, credential: MintedCredential) -> None:
        """Count the end of a request that ``enter`` counted."""
        credential.in_flight -= 1

    def _make_room(self) -> None:
        """Forget the principals whose latest requests are the oldest, except those with requests under way."""
        surplus = len(self._credentials) - self._settings.max_principals
        idle = (key for key, credential in self._credentials.items() if self._is_idle(key, credential))
        for key in list(islice(idle, surplus)):
            self._drop(key)

    def _is_idle(self, key: str, credential: MintedCredential) -> bool:
        return not credential.in_flight and self._is_unused(key)

    def _drop(self, key: str) -> None:
        del self._credentials[key]
        self._forget(key)

    def renew(self, identity: str) -> None:
        """Make new certificates for the clients of an identity, for the sessions that are opened from now on."""
        for credential in self._credentials.values():
            if credential.identity == identity:
                credential.renew()

    async def retire(self, identity: str) -> None:
        """Forget all clients of an identity that is removed, each after its last request."""
        left = {key for key, credential in self._credentials.items() if credential.identity == identity}
        while left:
            left &= self._credentials.keys()
            for key in [key for key in left if self._is_idle(key, self._credentials[key])]:
                self._drop(key)
                left.discard(key)
            if left:
                await trio.sleep(_LOOK_EVERY)


async def open_minted_session(target: SessionTarget, credential: MintedCredential) -> Session:
    """Open a session that shows the credential of one principal; see ``open_session``.

    The session expires before its certificate ends. Raises BackendError (CONNECT).
    """
    try:
        certificate = await credential.current()
    except MintingError as error:
        raise BackendError(str(error), backend=target.backend, stage=Stage.CONNECT, reason="credential") from None
    session = await open_session(target._replace(minted=certificate))
    ends = certificate.session_ends(random.random())  # noqa: S311 - spreads load, hides nothing
    session.expires_at = trio.current_time() + ends - time.time()
    return session
