"""Drive libmongocrypt as MongoDB's drivers do: HOST PORT CA CERTIFICATE KEY. Print a line for each result."""

import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any

import bson
from pymongocrypt.options import MongoCryptOptions
from pymongocrypt.synchronous.explicit_encrypter import ExplicitEncrypter
from pymongocrypt.synchronous.state_machine import MongoCryptCallback

RANDOM = "AEAD_AES_256_CBC_HMAC_SHA_512-Random"
DETERMINISTIC = "AEAD_AES_256_CBC_HMAC_SHA_512-Deterministic"


class Vault(MongoCryptCallback):
    """The parts that a driver does: connections to the key manager, and the collection of data keys."""

    def __init__(self, host: str, port: str, ca: str, certificate: str, key: str) -> None:
        self._address = (host, int(port))
        self._tls = ssl.create_default_context(cafile=ca)
        self._tls.load_cert_chain(certificate, key)
        self.keys: dict[bytes, bytes] = {}
        self.messages = 0

    def kms_request(self, kms_context: Any) -> None:
        """Send a message on a new connection, as the drivers do."""
        self.messages += 1
        with (
            socket.create_connection(self._address, timeout=20) as raw,
            self._tls.wrap_socket(raw, server_hostname=self._address[0]) as connection,
        ):
            connection.sendall(kms_context.message)
            while kms_context.bytes_needed > 0:
                data = connection.recv(kms_context.bytes_needed)
                if not data:
                    message = "the connection was closed"
                    raise OSError(message)
                kms_context.feed(data)

    def fetch_keys(self, filter: bytes) -> Iterator[bytes]:  # noqa: A002, ARG002 - the base class's
        """Yield the data keys: the filter names one of the few that there are."""
        yield from self.keys.values()

    def insert_data_key(self, data_key: bytes) -> bytes:
        """Keep a data key."""
        identifier = bytes(bson.decode(data_key)["_id"])
        self.keys[identifier] = data_key
        return identifier

    def bson_encode(self, doc: Any) -> bytes:
        """Encode a document."""
        return bson.encode(doc)

    def collection_info(self, database: str, filter: bytes) -> bytes:  # noqa: A002
        """Not used by explicit encryption."""
        raise NotImplementedError

    def mark_command(self, database: str, cmd: bytes) -> bytes:
        """Not used by explicit encryption."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


def call(topic: str, function: Callable[[], Any], show: Callable[[Any], str]) -> Any:
    """Call a function; print and return its result, or print its error and return None."""
    try:
        result = function()
    except Exception as error:  # noqa: BLE001 - every error of the peer is a result
        print(f"{topic}: error: {type(error).__name__}: {error}".replace("\n", " "))
        return None
    print(f"{topic}: {show(result)}")
    return result


def drive(*arguments: str) -> None:
    """Make data keys of each kind, and use each."""
    options: dict[str, Any] = {"kms_providers": {"kmip": {"endpoint": f"{arguments[0]}:{arguments[1]}"}}}
    registered: str | None = None
    for kind in ("registered", "named", "delegated", "missing"):
        vault = Vault(*arguments)
        encrypter = ExplicitEncrypter(vault, MongoCryptOptions(**options))
        master: dict[str, Any] = {"keyId": registered} if kind == "named" else {}
        if kind == "missing":
            master = {"keyId": "no-such-object"}
        if kind == "delegated":
            master = {"delegated": True}
        key = call(
            f"{kind} data key",
            lambda: encrypter.create_data_key("kmip", master),  # noqa: B023 - called at once
            lambda found: f"an identifier of {len(found)} bytes, {vault.messages} messages",  # noqa: B023
        )
        if key is None:
            continue
        registered = bson.decode(vault.keys[key])["masterKey"]["keyId"]
        reader = Vault(*arguments)
        reader.keys = vault.keys
        user = ExplicitEncrypter(reader, MongoCryptOptions(**options))
        for algorithm in (RANDOM, DETERMINISTIC):
            value = {"v": "a value"}
            sealed = call(
                f"{kind} {algorithm}",
                lambda: user.encrypt(bson.encode(value), algorithm, key_id=key),  # noqa: B023
                lambda found: f"{len(found)} bytes",
            )
            if sealed is not None:
                call(
                    f"{kind} decrypt",
                    lambda: user.decrypt(sealed),  # noqa: B023
                    lambda found: f"equal {bson.decode(found) == value}",  # noqa: B023
                )
        print(f"{kind} reader: {reader.messages} messages")


drive(*sys.argv[1:])
