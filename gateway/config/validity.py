"""Dates of the certificates that the gateway shows the key managers.

An expired certificate is a warning and no mistake: at worst, key managers refuse this identity, and some key managers
do not check the dates.
"""

from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self

from gateway.config.files import certificates
from gateway.config.model import Config, IdentityConfig
from gateway.config.secrecy import exposed


class OwnCertificate(NamedTuple):
    """The file of certificates shown for an identity; all of them are valid from ``begins`` until ``ends``."""

    identity: str
    file: Path
    begins: datetime
    ends: datetime

    @classmethod
    def of(cls, identity: IdentityConfig) -> Self:
        """Read the file as it is now. Raises ValueError."""
        chain = certificates(identity.certificate)
        return cls(
            identity.name,
            identity.certificate,
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
        f'identities["{own.identity}"].certificate: {own.file} {own.lapse(now)}; until then, key managers may refuse'
        " this identity"
        for own in lapsed(config, now)
    ] + [f"{secret.setting}: {secret.file} {secret.remedy()}" for secret in exposed(config)]
