"""Expiry: the dates of certificates and CRLs in use, as metrics, and as log lines before and after they pass."""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import trio
from cryptography import x509

from gateway.config import Config, OwnCertificate
from gateway.config.crls import Crl
from gateway.config.files import certificates
from gateway.log import Log
from gateway.metrics import Metrics
from gateway.revocation import Trust, TrustInUse

_DAY: Final = 86400.0
_SOON: Final = 30 * _DAY
_LOOK_EVERY: Final = 60.0  # s
_LAST_PART: Final = 0.25  # of the time from a CRL's thisUpdate to its nextUpdate


class Dated(NamedTuple):
    """A file of certificates: the labels of its metric, and the time (Unix s) at which the first of them ends.

    ``own`` is the certificate that is shown to the key managers for an identity.
    """

    role: str
    name: str
    file: Path
    ends: float
    own: OwnCertificate | None = None


def dated(config: Config) -> Iterator[Dated]:
    """Yield each file of certificates of a configuration. Raises ValueError for a file that can't be read."""
    for listener in config.listeners:
        yield Dated("listener", listener.name, listener.certificate, _first_end(listener.certificate))
        yield Dated("client_ca", listener.name, listener.client_ca, _end_of_bundle(listener.client_ca))
    for identity in config.identities:
        own = OwnCertificate.of(identity)
        role = "issuing_ca" if identity.credential == "minted" else "backend_client"
        yield Dated(role, identity.name, own.file, own.ends.timestamp(), own)
    for backend in config.backends:
        if backend.ca is not None:
            yield Dated("backend_ca", backend.name, backend.ca, _end_of_bundle(backend.ca))
    if config.admin.certificate is not None:
        yield Dated("admin", "admin", config.admin.certificate, _first_end(config.admin.certificate))
    if config.admin.client_ca is not None:
        yield Dated("admin_client_ca", "admin", config.admin.client_ca, _end_of_bundle(config.admin.client_ca))


def _first_end(file: Path) -> float:
    return min(map(_end, certificates(file)))


def _end_of_bundle(file: Path) -> float:
    """Return when the first CA of a bundle ends; a CA that is there twice, as after a renewal, ends with the later."""
    ends: dict[x509.Name, float] = {}
    for certificate in certificates(file):
        ends[certificate.subject] = max(ends.get(certificate.subject, 0.0), _end(certificate))
    return min(ends.values())


def _end(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


class ExpiryWatch:
    """Keeps the metrics of dates, and logs what ends soon or has ended: at once, at each limit, and once a day.

    Limits are 30, 7 and 1 days before the end of a certificate, a quarter of its time before the end of a CRL, and the
    ends themselves.
    """

    def __init__(self, config: Config, trusts: Callable[[], Iterable[TrustInUse]], metrics: Metrics, log: Log) -> None:
        self._config = config
        self._trusts = trusts
        self._metrics = metrics
        self._log = log
        self._certificates: list[Dated] = []
        self._due = 0.0  # Unix s

    def __repr__(self) -> str:
        return f"<ExpiryWatch of {len(self._certificates)} files>"

    def read(self) -> list[Dated]:
        """Read the files as they are now. May run in a thread. Raises ValueError if one can't be read."""
        return list(dated(self._config))

    def note(self, certificates: list[Dated]) -> None:
        """Take the facts of all files, and log what ends soon."""
        self._certificates = certificates
        self._metrics.certificate_not_after.clear()
        for each in certificates:
            self._metrics.certificate_not_after.labels(each.role, each.name).set(each.ends)
        self.note_crls()

    def note_crls(self) -> None:
        """Take the facts of the CRLs in use, and log what ends soon."""
        metrics = self._metrics
        for metric in (metrics.crl_next_update, metrics.crl_revoked):
            metric.clear()
        for role, name, trust in self._trusts():
            for issuer in trust.missing(time.time()):
                metrics.crl_next_update.labels(role, name, issuer).set(0)
            for issuer in {crl.name for crl in trust.lists or ()}:
                lists = [crl for crl in trust.lists or () if crl.name == issuer]
                metrics.crl_next_update.labels(role, name, issuer).set(min(crl.ends for crl in lists))
                metrics.crl_revoked.labels(role, name, issuer).set(sum(len(crl.serials) for crl in lists))
        self._warn(time.time())

    async def run(self) -> None:
        """Log what ends soon, until cancelled."""
        while True:
            await trio.sleep(_LOOK_EVERY)
            if time.time() >= self._due:
                self._warn(time.time())

    def _warn(self, now: float) -> None:
        limits = [now + _DAY]
        for each in self._certificates:
            limits += [each.ends - before for before in (_SOON, 7 * _DAY, _DAY, 0)]
            lapse = "" if each.own is None else each.own.lapse(datetime.fromtimestamp(now, UTC))
            if lapse:
                self._log.error(
                    "own certificate is not valid: key managers may refuse this identity",
                    identity=each.name,
                    file=str(each.file),
                    detail=lapse,
                )
            else:
                self._warn_of_certificate(each, now)
        for role, name, trust in self._trusts():
            for issuer in trust.missing(now):
                self._log.warning("no CRL of a CA", role=role, name=name, issuer=issuer, detail=_effect(trust))
            for crl in trust.lists or ():
                limits += [crl.ends - _LAST_PART * (crl.ends - crl.begins), crl.ends]
                self._warn_of_crl(TrustInUse(role, name, trust), crl, now)
        self._due = min(limit for limit in limits if limit > now)

    def _warn_of_certificate(self, each: Dated, now: float) -> None:
        if each.ends >= now + _SOON:
            return
        write, event = self._log.warning, "certificate ends soon: renew it"
        if each.ends < now:
            write, event = self._log.error, "certificate has expired: renew it"
        days = int((each.ends - now) // _DAY)
        write(event, role=each.role, name=each.name, file=str(each.file), ends=_date(each.ends), days=days)

    def _warn_of_crl(self, of: TrustInUse, crl: Crl, now: float) -> None:
        fields = {"role": of.role, "name": of.name, "issuer": crl.name, "file": str(crl.file), "ends": _date(crl.ends)}
        if lapse := crl.lapse(now):
            self._log.error("CRL is stale: fetch the current one", **fields, detail=f"{lapse}; {_effect(of.trust)}")
        elif crl.ends - now < _LAST_PART * (crl.ends - crl.begins):
            self._log.warning("CRL becomes stale soon: fetch the next one", **fields)


def _effect(trust: Trust) -> str:
    if trust.accepts_stale:
        return 'certificates of this CA are accepted without a current CRL (crl_stale = "accept")'
    return 'certificates of this CA are refused (crl_stale = "refuse")'


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
