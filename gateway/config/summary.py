"""From a Config to a few lines for a human: who comes in where, as whom, and to which key managers."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from gateway.config.model import (
    BackendConfig,
    Config,
    FailoverConfig,
    IdentityConfig,
    ListenerConfig,
    MatchConfig,
    ReplicationConfig,
)
from gateway.config.values import is_loopback

_SOON = 30  # days before its end in which a certificate should be renewed


def summary(config: Config) -> list[str]:
    """What a configuration amounts to, one line for each listener, backend and identity, then the rest."""
    return [*_lines(config)]


def _lines(config: Config) -> Iterator[str]:
    yield from map(_listener, config.listeners)
    yield from map(_backend, config.backends)
    yield from map(_identity, config.identities)
    yield from map(_certificate, _certificates(config))
    open_to = "" if is_loopback(config.admin.bind) else ", which other machines can reach: keep it from strangers"
    yield f"admin on {config.admin.bind}{open_to}"
    limits, deadlines, pool = config.limits, config.deadlines, config.pool
    yield (
        f"limits: requests of {_size(limits.max_request_size)}, responses of {_size(limits.max_response_size)},"
        f" {limits.max_batch_items} batch items, {limits.max_depth} levels"
    )
    yield (
        f"deadlines: {deadlines.request:g} s for a request, {deadlines.connect:g} s of it to connect,"
        f" {pool.queue_timeout:g} s of it in the queue; {deadlines.drain:g} s to drain"
    )
    yield _when_none(config.failover)
    yield _replication(config.replication)
    yield f"log: {config.log.level} and above, as {config.log.format}"


def _listener(listener: ListenerConfig) -> str:
    warned = ", which lets in broken versions of TLS" if listener.tls_policy == "legacy" else ""
    behind = f", behind PROXY protocol from {', '.join(listener.proxy_from)}" if listener.proxy_protocol else ""
    return (
        f"listener {listener.name} on {listener.bind}: {listener.max_clients} clients at the most,"
        f" TLS policy {listener.tls_policy}{warned}{behind}"
    )


def _backend(backend: BackendConfig) -> str:
    proofs = [f"the CA in {backend.ca.name}"] if backend.ca else []
    proofs += [f"{len(backend.pinned_sha256)} pinned certificate(s)"] if backend.pinned_sha256 else []
    return (
        f"backend {backend.name} at {backend.address}: {backend.max_sessions} sessions at the most,"
        f" known as {backend.server_name} by {' and '.join(proofs)}"
    )


def _when_none(failover: FailoverConfig) -> str:
    if failover.when_none == "close":
        return "while no key manager can be reached: new connections are refused"
    return "while no key manager can be reached: new connections are accepted, and requests are answered with an error"


def _replication(replication: ReplicationConfig) -> str:
    follows = "have the same objects at any time"
    if replication.mode == "async":
        asked = "others are asked for what one does not find" if replication.fallback_on_not_found else "none is asked"
        seconds = f"{replication.read_your_writes_window:g} s"
        follows = f"hear of changes late: a client stays for {seconds} where it made one, and {asked}"
    marks = f"marks by {replication.mark_key_file.name}" if replication.marks else "no marks"
    return f"key managers {follows}; {marks}"


def _identity(identity: IdentityConfig) -> str:
    whose = "all of them one client to the key managers" if identity.shared else "one client"
    where = f" on {' or '.join(identity.listeners)}" if identity.listeners else ""
    return (
        f"identity {identity.name} for {_match(identity.match)}{where}: {whose}, shown as {identity.certificate.name}"
    )


def _certificates(config: Config) -> list[Path]:
    """Every file of certificates, once, in the order of the file."""
    files = [file for listener in config.listeners for file in (listener.certificate, listener.client_ca)]
    files += [backend.ca for backend in config.backends if backend.ca is not None]
    files += [identity.certificate for identity in config.identities]
    return list(dict.fromkeys(files))


def _certificate(file: Path) -> str:
    """When the first certificate of a file ends, and whether that is soon or the file is not valid yet."""
    certificates = x509.load_pem_x509_certificates(file.read_bytes())
    ends = min(certificate.not_valid_after_utc for certificate in certificates)
    begins = max(certificate.not_valid_before_utc for certificate in certificates)
    now = datetime.now(UTC)
    days = (ends - now).days
    warned = f": NOT VALID before {begins:%Y-%m-%d %H:%M} UTC" if begins > now else ""
    warned = warned or (": ENDED, renew it" if ends < now else "")
    warned = warned or (f": ENDS IN {days} DAYS, renew it" if days < _SOON else "")
    return f"certificates in {file.name} until {ends:%Y-%m-%d}{warned}"


def _match(match: MatchConfig) -> str:
    given = [(key, getattr(match, key)) for key in type(match).model_fields]
    return " and ".join(f"{key} {' or '.join(values)}" for key, values in given if values)


def _size(size: int) -> str:
    for unit, name in ((1024 * 1024, "MiB"), (1024, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
