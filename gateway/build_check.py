"""Build check: make all that ``run`` makes of the files of a configuration, for ``kmip-gateway check``.

No port is opened, no connection made, and no file written.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.tls.minting import IssuingCa
from gateway.upstream.passwords import password_of
from gateway.wiring import (
    admin_access,
    backend_context,
    backend_trust,
    build_trail,
    client_issuers,
    client_trust,
    server_context,
)


def build_mistakes(config: Config) -> list[str]:
    """Return every reason for which ``run`` would end at once; an address that is in use is not among them."""
    found: list[str] = []
    for make in _steps(config):
        try:
            make()
        except ConfigError as error:
            found += error.mistakes
    return list(dict.fromkeys(found))


def _steps(config: Config) -> Iterator[Callable[[], Any]]:
    for listener in config.listeners:
        yield partial(server_context, listener)
        yield partial(client_trust, listener)
    for backend in config.backends:
        yield partial(backend_trust, backend)
    yield partial(_backend_contexts, config)
    yield partial(client_issuers, config)
    yield partial(admin_access, config)
    yield partial(build_trail, config, "")


def _backend_contexts(config: Config) -> None:
    """Make the TLS context of every identity at every backend. Raises ConfigError with all mistakes."""
    mistakes: list[str] = []
    for identity in config.identities:
        try:
            password_of(identity)
            ca = IssuingCa.of(identity) if identity.credential == "minted" else None
        except ValueError as error:
            mistakes.append(f'identities["{identity.name}"]: {error}')
            continue
        for backend in config.backends:
            try:
                backend_context(backend, identity, ca)
            except ConfigError as error:
                mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
