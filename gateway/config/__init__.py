"""The whole configuration as frozen values; ``load(path)`` reports every mistake at once.

``values`` has the types of single settings, ``model`` the tables, ``files`` the certificates and keys that settings
name, ``crosschecks`` the rules between settings, ``mistakes`` the texts for the operator, ``parsing`` and ``loading``
the way from a file to a Config, ``summary`` the way from a Config to a few lines, ``validity`` the dates of the
certificates that the gateway shows, and ``secrecy`` the permissions of files with secrets.
"""

from gateway.config.advice import advice
from gateway.config.apart import load_apart
from gateway.config.loading import load
from gateway.config.model import (
    DEFAULT_BACKEND_TLS_POLICY,
    DEFAULT_RESUMPTION_LIFETIME,
    DEFAULT_TLS_POLICY,
    Addresses,
    AdminConfig,
    AllowanceConfig,
    AuditConfig,
    BackendConfig,
    BackendOptions,
    Balancing,
    BalancingConfig,
    Config,
    DeadlinesConfig,
    FailoverConfig,
    HealthConfig,
    IdentityConfig,
    LimitsConfig,
    ListenerConfig,
    LogConfig,
    MatchConfig,
    PerAddressConfig,
    PolicyConfig,
    PoolConfig,
    Probe,
    ReplicationConfig,
    TlsPolicy,
    matches_many,
)
from gateway.config.secrecy import ExposedFile, exposed
from gateway.config.summary import summary
from gateway.config.validity import OwnCertificate, lapsed, warnings
from gateway.config.values import Address

__all__ = [
    "DEFAULT_BACKEND_TLS_POLICY",
    "DEFAULT_RESUMPTION_LIFETIME",
    "DEFAULT_TLS_POLICY",
    "Address",
    "Addresses",
    "AdminConfig",
    "AllowanceConfig",
    "AuditConfig",
    "BackendConfig",
    "BackendOptions",
    "Balancing",
    "BalancingConfig",
    "Config",
    "DeadlinesConfig",
    "ExposedFile",
    "FailoverConfig",
    "HealthConfig",
    "IdentityConfig",
    "LimitsConfig",
    "ListenerConfig",
    "LogConfig",
    "MatchConfig",
    "OwnCertificate",
    "PerAddressConfig",
    "PolicyConfig",
    "PoolConfig",
    "Probe",
    "ReplicationConfig",
    "TlsPolicy",
    "advice",
    "exposed",
    "lapsed",
    "load",
    "load_apart",
    "matches_many",
    "summary",
    "warnings",
]
