"""Dates of the certificates that the gateway shows the key managers, and of CRLs.

An expired certificate is a warning and no mistake: at worst, key managers refuse this identity, and some key managers
do not check the dates.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from gateway.config.crls import missing_lists, read_crls
from gateway.config.files import certificates
from gateway.config.model import BackendConfig, Config, IdentityConfig, ListenerConfig, WhenStale
from gateway.config.secrecy import exposed


class OwnCertificate(NamedTuple):
    """The file of certificates shown for an identity, or of the CA that issues them.

    All of the certificates are valid from ``begins`` until ``ends``.
    """

    identity: str
    file: Path
    begins: datetime
    ends: datetime

    @classmethod
    def of(cls, identity: IdentityConfig) -> Self:
        """Read the file as it is now. Raises ValueError."""
        chain = certificates(identity.own_file)
        return cls(
            identity.name,
            identity.own_file,
            max(certificate.not_valid_before_utc for certificate in chain),
            min(certificate.not_valid_after_utc for certificate in chain),
        )

    def lapse(self, now: datetime) -> str:
        """Return why the certificate is not valid at a time, and what to do; "" if it is valid."""
        if self.ends < now:
            return f"ended on {self.ends:%Y-%m-%d}; renew it"
        if self.begins > now:
            return (
                f"is not valid before {self.begins:%Y-%m-%d %H:%M} UTC; check this machine's clock, or replace the file"
            )
        return ""


def lapsed(config: Config, now: datetime) -> list[OwnCertificate]:
    """Return the certificates that are not valid at a time, in the order of the identities. Raises ValueError."""
    own = [OwnCertificate.of(identity) for identity in config.identities]
    return [certificate for certificate in own if certificate.lapse(now)]


def warnings(config: Config, now: datetime) -> list[str]:
    """Return the faults with which the gateway runs nevertheless, one line each. Raises ValueError."""
    return [
        f'identities["{own.identity}"].{_setting(config, own)}: {own.file} {own.lapse(now)}; until then, key managers'
        " may refuse this identity"
        for own in lapsed(config, now)
    ] + [
        *(line for listener in config.listeners for line in _of_client_crls(listener, now.timestamp())),
        *(line for backend in config.backends for line in _of_backend_crls(backend, now.timestamp())),
        *_of_secrets(config),
    ]


def _of_secrets(config: Config) -> list[str]:
    return [f"{secret.setting}: {secret.file} {secret.remedy()}" for secret in exposed(config)]


def _of_client_crls(listener: ListenerConfig, now: float) -> Iterator[str]:
    if listener.client_crl:
        yield from _of_crls(
            f'listeners["{listener.name}"].client_crl', listener.client_ca, listener.client_crl, listener.crl_stale, now
        )


def _of_backend_crls(backend: BackendConfig, now: float) -> Iterator[str]:
    if backend.crl and backend.ca is not None:
        yield from _of_crls(f'backends["{backend.name}"].crl', backend.ca, backend.crl, backend.crl_stale, now)


def _of_crls(setting: str, ca: Path, crls: Sequence[Path], stale: WhenStale, now: float) -> Iterator[str]:
    """Yield a line for each CRL that is not current, and for each CA of a file that has none."""
    authorities = certificates(ca)
    lists = read_crls(crls, authorities, ca, with_serials=False)
    effect = "are refused" if stale == "refuse" else "are accepted without a check"
    for crl in lists:
        if lapse := crl.lapse(now):
            ended = f"{datetime.fromtimestamp(crl.ends, UTC):%Y-%m-%d %H:%M} UTC"
            yield (
                f"{setting}: {crl.file} {lapse}, for {crl.name} (nextUpdate {ended}); fetch the current CRL; until"
                f" then, certificates of this CA {effect} (crl_stale)"
            )
    for name in missing_lists(authorities, lists, now):
        yield (
            f"{setting}: there is no CRL of {name}, which is in {ca}; add its CRL; until then, certificates of this CA"
            f" {effect} (crl_stale)"
        )


def _setting(config: Config, own: OwnCertificate) -> str:
    is_minted = any(each.name == own.identity and each.credential == "minted" for each in config.identities)
    return "issuing_ca" if is_minted else "certificate"
