"""Summary: a Config in a few lines, for ``kmip-gateway check``."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from cryptography import x509

from gateway.config.files import certificates
from gateway.config.model import (
    DEFAULT_BACKEND_TLS_POLICY,
    AdminConfig,
    AuditConfig,
    BackendConfig,
    Config,
    FailoverConfig,
    IdentityConfig,
    ListenerConfig,
    MatchConfig,
    PolicyConfig,
    ReplicationConfig,
)
from gateway.config.values import ALL, is_loopback


def summary(config: Config) -> list[str]:
    """Return one line for each listener, backend, identity and file of certificates, and a line for other sections."""
    return [*_lines(config)]


def _lame_duck(seconds: float) -> str:
    return f", after {seconds:g} s in which /readyz fails and clients are still accepted" if seconds else ""


def _lines(config: Config) -> Iterator[str]:
    yield from map(_listener, config.listeners)
    yield from map(_backend, config.backends)
    yield from map(_identity, config.identities)
    yield from map(_certificate, certificate_settings(config))
    yield _processes(config.gateway.tls_workers) + (f"; as user {config.gateway.user}" if config.gateway.user else "")
    yield _admin(config.admin)
    limits, deadlines, pool = config.limits, config.deadlines, config.pool
    yield (
        f"limits: requests of {_size(limits.max_request_size)}, responses of {_size(limits.max_response_size)},"
        f" {limits.max_batch_items} batch items, {limits.max_depth} levels"
    )
    yield (
        f"deadlines: {deadlines.request:g} s for a request, of which {deadlines.connect:g} s to connect and"
        f" {pool.queue_timeout:g} s in the queue; {deadlines.drain:g} s to drain"
        f"{_lame_duck(deadlines.lame_duck)}"
    )
    yield _when_none(config.failover)
    yield _replication(config.replication)
    yield f"log: level {config.log.level} and above, as {config.log.format}"
    yield _audit(config.audit)


def _processes(tls_workers: int | str) -> str:
    if tls_workers == 0:
        return "processes: one"
    workers = "one TLS worker for each processor but one" if tls_workers == "auto" else f"{tls_workers} TLS worker(s)"
    return f"processes: a supervisor, a core, and {workers}"


def _admin(admin: AdminConfig) -> str:
    needed = ["a token"] if admin.token_file else []
    needed += ["a client certificate"] if admin.client_ca else []
    tls = " over TLS" if admin.certificate else ""
    readers = f"; metrics for clients with {' and '.join(needed)}" if needed else ""
    if admin.anonymous_metrics and not is_loopback(admin.bind):
        readers = ", with metrics for everybody"
    return f"admin on {admin.bind}{tls}{readers}"


def _audit(audit: AuditConfig) -> str:
    if audit.to == "off":
        return "audit trail: off"
    kinds = "all requests" if audit.requests == "all" else "changes, and reads that were not answered"
    to = audit.file.name if audit.to == "file" else audit.to
    failing = "served" if audit.on_failure == "continue" else "refused"
    return f"audit trail: {kinds}, to {to}; requests are {failing} while it can't be written"


def _listener(listener: ListenerConfig) -> str:
    revoked = f", CRLs in {_file_names(listener.client_crl)}" if listener.client_crl else ""
    behind = f", behind PROXY protocol from {', '.join(listener.proxy_from)}" if listener.proxy_protocol else ""
    return (
        f"listener {listener.name} on {listener.bind}: at most {listener.max_clients} clients,"
        f" TLS policy {listener.tls_policy}{behind}{revoked}"
    )


def _backend(backend: BackendConfig) -> str:
    checks = [f"name {backend.server_name}, CA in {backend.ca.name}"] if backend.ca else []
    checks += [f"{len(backend.pinned_sha256)} pinned certificate(s)"] if backend.pinned_sha256 else []
    checks += [f"CRLs in {_file_names(backend.crl)}"] if backend.crl else []
    policy = f", TLS policy {backend.tls_policy}" if backend.tls_policy != DEFAULT_BACKEND_TLS_POLICY else ""
    return (
        f"backend {backend.name} at {backend.address}: at most {backend.max_sessions} sessions{policy},"
        f" verified by {', '.join(checks)}"
    )


def _file_names(files: Iterable[Path]) -> str:
    return " and ".join(file.name for file in files)


def _when_none(failover: FailoverConfig) -> str:
    if failover.when_none == "close":
        return "while no key manager can be reached: new connections are refused"
    return "while no key manager can be reached: new connections are accepted, and requests are answered with an error"


def _replication(replication: ReplicationConfig) -> str:
    mode = "shared, all key managers have the same objects at any time"
    if replication.mode == "async":
        fallback = "on" if replication.fallback_on_not_found else "off"
        seconds = f"{replication.read_your_writes_window:g} s"
        mode = f"async, a client's requests go to the key manager of its last change for {seconds};"
        mode += f" other key managers are asked for objects that are not found: {fallback}"
    marks = f"marks with the key in {replication.mark_key_file.name}" if replication.marks else "no marks"
    return f"replication: {mode}; {marks}"


def _identity(identity: IdentityConfig) -> str:
    clients = "many clients, one client to the key managers" if identity.shared else "one client"
    where = f" on {' or '.join(identity.listeners)}" if identity.listeners else ""
    may_use = "" if has_no_policy(identity) else f", may use {policy_text(identity)}"
    shown = f"shown as {identity.own_file.name}"
    if identity.credential == "minted":
        clients, shown = "each client with its own names", f"in certificates of {identity.own_file.name}"
        shown += f", which may have {permitted_subjects(certificates(identity.own_file))}"
    elif identity.credential == "password":
        shown += " and by a password"
    return f"identity {identity.name} for {_match(identity.match)}{where}: {clients}, {shown}{may_use}"


def permitted_subjects(chain: Iterable[x509.Certificate]) -> str:
    """Return in words the subjects that a CA may give to certificates, by the name constraints of its chain."""
    permitted = []
    for authority in chain:
        with suppress(x509.ExtensionNotFound):
            constraints = authority.extensions.get_extension_for_class(x509.NameConstraints).value
            names = (
                each.value for each in constraints.permitted_subtrees or () if isinstance(each, x509.DirectoryName)
            )
            if subjects := [name.rfc4514_string() for name in names]:
                permitted.append(f"subjects under {' or '.join(subjects)}")
    return " and ".join(permitted) or "any subject"


def has_no_policy(policy: PolicyConfig) -> bool:
    """Return True if a policy is the default, under which everything is allowed that is ever forwarded."""
    return all(getattr(policy, key) == field.default for key, field in PolicyConfig.model_fields.items())


def policy_text(policy: PolicyConfig) -> str:
    """Return a policy in words: operations, object types of new objects, and size of a batch."""
    text = ("all operations" if ALL in policy.allow else ", ".join(policy.allow)) + (
        f", except {', '.join(policy.refuse)}" if policy.refuse else ""
    )
    if ALL not in policy.object_types:
        text += f"; new objects of type {' or '.join(policy.object_types)}"
    return text + (f"; {policy.max_batch_items} operations in a request" if policy.max_batch_items else "")


def certificate_settings(config: Config) -> dict[Path, str]:
    """Return each file of certificates, in the order of the configuration, with the first setting that names it."""
    found: dict[Path, str] = {}
    for listener in config.listeners:
        place = f'listeners["{listener.name}"]'
        found.setdefault(listener.certificate, f"{place}.certificate")
        found.setdefault(listener.client_ca, f"{place}.client_ca")
    for backend in config.backends:
        if backend.ca is not None:
            found.setdefault(backend.ca, f'backends["{backend.name}"].ca')
    for identity in config.identities:
        key = "issuing_ca" if identity.credential == "minted" else "certificate"
        found.setdefault(identity.own_file, f'identities["{identity.name}"].{key}')
    for key in ("certificate", "client_ca"):
        if (file := getattr(config.admin, key)) is not None:
            found.setdefault(file, f"admin.{key}")
    return found


def _certificate(file: Path) -> str:
    """Return the end of the first certificate in a file to expire."""
    return f"certificates in {file.name} until {validity_of(file)[1]:%Y-%m-%d}"


def validity_of(file: Path) -> tuple[datetime, datetime]:
    """Return the time from which, and the time until which, all certificates in a file are valid."""
    found = certificates(file)
    return (
        max(certificate.not_valid_before_utc for certificate in found),
        min(certificate.not_valid_after_utc for certificate in found),
    )


def _match(match: MatchConfig) -> str:
    given = [(key, getattr(match, key)) for key in type(match).model_fields]
    return " and ".join(f"{key} {' or '.join(values)}" for key, values in given if values)


def _size(size: int) -> str:
    for unit, name in ((1024 * 1024, "MiB"), (1024, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
