"""The server that is measured, and the credential that clients show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from gateway import tls
from gateway.config import Address
from gateway.errors import ConfigError
from gateway.kmip.messages import Version

#: The versions that are asked for by default, the preferred version first.
VERSIONS: Final[tuple[Version, ...]] = ((1, 4), (1, 3), (1, 2), (1, 1), (1, 0))
#: All versions that requests can be encoded in.
KNOWN_VERSIONS: Final[frozenset[Version]] = frozenset({*VERSIONS, (2, 0), (2, 1)})

#: The names of the files in messages if options have named the files.
_FILE_NAMES: Final = {"certificate": "certificate", "private_key": "private key", "ca": "CA"}


@dataclass(frozen=True, slots=True)
class Target:
    """A KMIP server, or several that sessions go to in turn, and the client's credential.

    ``server_name`` is checked against the server's certificate; without one, the address's host is. ``versions`` are
    acceptable, the preferred version first. ``discover``: every session begins with Discover Versions, as qClient's do.
    ``timeout`` is in seconds, for connecting and for each answer. ``named_by`` has the place in a configuration file
    at which each of ``certificate``, ``private_key`` and ``ca`` is named: messages about the file begin with it.
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
    named_by: Mapping[str, str] = field(default_factory=dict, repr=False)

    def context(self) -> SSL.Context:
        """Return a client's TLS context. Raises ConfigError with a line for each file that can't be used."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(tls.Policy.COMPATIBLE.minimum_version)
        context.set_cipher_list(tls.Policy.COMPATIBLE.ciphers)
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_IGNORE_UNEXPECTED_EOF)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        loads = {"certificate": self._load_certificate, "private_key": self._load_private_key, "ca": self._load_ca}
        mistakes = []
        for name, load in loads.items():
            try:
                load(context)
            except _UnusableError as unusable:
                place = f"{self.named_by[name]}:" if name in self.named_by else _FILE_NAMES[name]
                mistakes.append(f"{place} {getattr(self, name)}: {unusable}")
        if mistakes:
            raise ConfigError(mistakes)
        return context

    def _load_certificate(self, context: SSL.Context) -> None:
        try:
            context.use_certificate_chain_file(str(self.certificate).encode())
        except SSL.Error:
            raise _UnusableError("holds no certificate in PEM; give the client's certificate") from None

    def _load_private_key(self, context: SSL.Context) -> None:
        password = None if self.password is None else self.password.encode()
        try:
            text = self.private_key.read_bytes()
            if password is not None and b"ENCRYPTED" not in text:
                password = None  # qClient's files name one, needed or not
            key = serialization.load_pem_private_key(text, password)
        except TypeError:
            raise _UnusableError("is encrypted; give its password") from None
        except OSError as error:
            raise _UnusableError(f"{error.strerror}; give a file in PEM") from None
        except ValueError:
            wrong = "can't be decrypted; check the password" if password else "holds no private key in PEM; give one"
            raise _UnusableError(wrong) from None
        try:
            context.use_privatekey(key)  # type: ignore[arg-type]
            context.check_privatekey()
        except (SSL.Error, TypeError):
            words = f"is not that of {self.certificate}; give the two that belong together"
            raise _UnusableError(words) from None

    def _load_ca(self, context: SSL.Context) -> None:
        try:
            context.load_verify_locations(str(self.ca).encode())
        except SSL.Error:
            words = "holds no certificate in PEM; give the CA that the server's certificate comes from"
            raise _UnusableError(words) from None


class _UnusableError(Exception):
    """A file can't be used; the text says why, and what to do."""
