"""Which server is measured, and what is shown to it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from gateway import tls
from gateway.config import Address
from gateway.errors import ConfigError
from gateway.kmip.messages import Version

#: The versions that are asked for where nothing is said, the preferred one first.
VERSIONS: Final[tuple[Version, ...]] = ((1, 4), (1, 3), (1, 2), (1, 1), (1, 0))
#: Every version that requests can be written in.
KNOWN_VERSIONS: Final[frozenset[Version]] = frozenset({*VERSIONS, (2, 0), (2, 1)})


@dataclass(frozen=True, slots=True)
class Target:
    """A KMIP server, or several that sessions go to in turn, and the client's credential.

    ``server_name`` is checked against the server's certificate; without one, the address's host is. ``versions`` are
    acceptable, the preferred one first. ``discover``: every session begins with Discover Versions, as qClient's do.
    ``timeout`` is in seconds, for connecting and for each answer.
    """

    addresses: tuple[Address, ...]
    certificate: Path
    private_key: Path
    ca: Path
    password: str | None = field(default=None, repr=False)
    server_name: str | None = None
    versions: tuple[Version, ...] = VERSIONS
    discover: bool = True
    timeout: float = 30.0

    def context(self) -> SSL.Context:
        """A client's TLS context. Raises ConfigError with a line for each file that can't be used."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(tls.Policy.COMPATIBLE.minimum_version)
        context.set_cipher_list(tls.Policy.COMPATIBLE.ciphers)
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_IGNORE_UNEXPECTED_EOF)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        mistakes = []
        for load in (self._load_certificate, self._load_private_key, self._load_ca):
            try:
                load(context)
            except _UnusableError as unusable:
                mistakes.append(str(unusable))
        if mistakes:
            raise ConfigError(mistakes)
        return context

    def _load_certificate(self, context: SSL.Context) -> None:
        try:
            context.use_certificate_chain_file(str(self.certificate).encode())
        except SSL.Error:
            raise _UnusableError(
                f"certificate {self.certificate}: holds no certificate in PEM; give the client's certificate"
            ) from None

    def _load_private_key(self, context: SSL.Context) -> None:
        password = None if self.password is None else self.password.encode()
        try:
            text = self.private_key.read_bytes()
            if password is not None and b"ENCRYPTED" not in text:
                password = None  # qClient's files name one, needed or not
            key = serialization.load_pem_private_key(text, password)
        except TypeError:
            raise _UnusableError(f"private key {self.private_key}: it is encrypted; give its password") from None
        except OSError as error:
            raise _UnusableError(f"private key {self.private_key}: {error.strerror}; give a file in PEM") from None
        except ValueError:
            wrong = "can't be decrypted; check the password" if password else "holds no private key in PEM; give one"
            raise _UnusableError(f"private key {self.private_key}: {wrong}") from None
        try:
            context.use_privatekey(key)  # type: ignore[arg-type]
            context.check_privatekey()
        except (SSL.Error, TypeError):
            raise _UnusableError(
                f"private key {self.private_key}: is not that of {self.certificate}; give the two that belong together"
            ) from None

    def _load_ca(self, context: SSL.Context) -> None:
        try:
            context.load_verify_locations(str(self.ca).encode())
        except SSL.Error:
            raise _UnusableError(
                f"CA {self.ca}: holds no certificate in PEM; give the CA that the server's certificate comes from"
            ) from None


class _UnusableError(Exception):
    """A file that can't be used, in a line."""
