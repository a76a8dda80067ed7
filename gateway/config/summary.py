"""From a Config to a few lines for a human: who comes in where, as whom, and to which key managers."""

from collections.abc import Iterator

from gateway.config.model import BackendConfig, Config, IdentityConfig, ListenerConfig, MatchConfig
from gateway.config.values import is_loopback


def summary(config: Config) -> list[str]:
    """What a configuration amounts to, one line for each listener, backend and identity, then the rest."""
    return [*_lines(config)]


def _lines(config: Config) -> Iterator[str]:
    yield from map(_listener, config.listeners)
    yield from map(_backend, config.backends)
    yield from map(_identity, config.identities)
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
    yield f"log: {config.log.level} and above, as {config.log.format}"


def _listener(listener: ListenerConfig) -> str:
    warned = ", which lets in broken versions of TLS" if listener.tls_policy == "legacy" else ""
    return (
        f"listener {listener.name} on {listener.bind}: {listener.max_clients} clients at the most,"
        f" TLS policy {listener.tls_policy}{warned}"
    )


def _backend(backend: BackendConfig) -> str:
    proofs = [f"the CA in {backend.ca.name}"] if backend.ca else []
    proofs += [f"{len(backend.pinned_sha256)} pinned certificate(s)"] if backend.pinned_sha256 else []
    return (
        f"backend {backend.name} at {backend.address}: {backend.max_sessions} sessions at the most,"
        f" known as {backend.server_name} by {' and '.join(proofs)}"
    )


def _identity(identity: IdentityConfig) -> str:
    whose = "all of them one client to the key managers" if identity.shared else "one client"
    return f"identity {identity.name} for {_match(identity.match)}: {whose}, shown as {identity.certificate.name}"


def _match(match: MatchConfig) -> str:
    given = [(key, getattr(match, key)) for key in type(match).model_fields]
    return " and ".join(f"{key} {' or '.join(values)}" for key, values in given if values)


def _size(size: int) -> str:
    for unit, name in ((1024 * 1024, "MiB"), (1024, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
