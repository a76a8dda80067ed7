"""The whole configuration as frozen values; ``load(path)`` reports every mistake at once.

``values`` are the kinds of a single setting, ``model`` the tables, ``files`` the certificates and keys they name,
``crosschecks`` what one setting says about another, ``mistakes`` all of that in the operator's words, ``loading`` the
way from a file to a Config, ``summary`` the way from a Config to a few lines, and ``validity`` the dates of the
certificates that the gateway shows.
"""

from gateway.config.loading import load
from gateway.config.model import (
    Addresses,
    AdminConfig,
    BackendConfig,
    Config,
    DeadlinesConfig,
    IdentityConfig,
    LimitsConfig,
    ListenerConfig,
    LogConfig,
    MatchConfig,
    PerAddressConfig,
    PoolConfig,
    Probe,
    TlsPolicy,
    matches_many,
)
from gateway.config.summary import summary
from gateway.config.validity import OwnCertificate, lapsed, warnings
from gateway.config.values import Address

__all__ = [
    "Address",
    "Addresses",
    "AdminConfig",
    "BackendConfig",
    "Config",
    "DeadlinesConfig",
    "IdentityConfig",
    "LimitsConfig",
    "ListenerConfig",
    "LogConfig",
    "MatchConfig",
    "OwnCertificate",
    "PerAddressConfig",
    "PoolConfig",
    "Probe",
    "TlsPolicy",
    "lapsed",
    "load",
    "matches_many",
    "summary",
    "warnings",
]
