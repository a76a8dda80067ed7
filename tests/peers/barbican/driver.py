"""Drive Barbican's KMIP secret store as its workers do: HOST PORT CA CERTIFICATE KEY. Print a line for each result."""

import base64
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from barbican.plugin import kmip_secret_store
from barbican.plugin.interface import secret_store as store
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

HOST, PORT, CA, CERTIFICATE, KEY = sys.argv[1:]
ENCODING = serialization.Encoding.PEM


def call(topic: str, function: Callable[[], Any], show: Callable[[Any], str] = str) -> Any:
    """Call a function; print and return its result, or print its error and return None."""
    try:
        result = function()
    except Exception as error:  # noqa: BLE001 - every error of the peer is a result
        print(f"{topic}: error: {type(error).__name__}")
        return None
    print(f"{topic}: {show(result)}")
    return result


def plugin() -> kmip_secret_store.KMIPSecretStore:
    """Return the plugin, configured as barbican.conf would."""
    settings = kmip_secret_store.CONF
    settings([], project="barbican", default_config_files=[])
    for name, value in {
        "host": HOST,
        "port": int(PORT),
        "ca_certs": CA,
        "certfile": CERTIFICATE,
        "keyfile": KEY,
        "username": "barbican",
        "password": "a password",
        "pkcs1_only": False,
    }.items():
        settings.set_override(name, value, group="kmip_plugin")
    return kmip_secret_store.KMIPSecretStore(settings)


def secrets() -> list[tuple[str, str, bytes, store.KeySpec]]:
    """Return a secret of each type that Barbican stores: name, type, value, and specification."""
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(ENCODING, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key().public_bytes(ENCODING, serialization.PublicFormat.SubjectPublicKeyInfo)
    with open(CERTIFICATE, "rb") as file:  # noqa: PTH123 - a path from the command line
        certificate = file.read()
    aes, pair = store.KeySpec(store.KeyAlgorithm.AES, 256, "CBC"), store.KeySpec(store.KeyAlgorithm.RSA, 2048)
    return [
        ("symmetric key", store.SecretType.SYMMETRIC, bytes(range(32)), aes),
        ("passphrase", store.SecretType.PASSPHRASE, b"a passphrase", store.KeySpec()),
        ("opaque", store.SecretType.OPAQUE, bytes(200_000), store.KeySpec()),
        ("private key", store.SecretType.PRIVATE, pem, pair),
        ("public key", store.SecretType.PUBLIC, public, pair),
        ("certificate", store.SecretType.CERTIFICATE, certificate, store.KeySpec()),
    ]


def main() -> None:
    """Generate, store, read and delete."""
    logging.disable(logging.CRITICAL)
    os.chmod(KEY, 0o400)  # noqa: PTH101 - Barbican insists
    kmip = plugin()
    key = call(
        "generate symmetric key",
        lambda: kmip.generate_symmetric_key(store.KeySpec(store.KeyAlgorithm.AES, 256, "CBC")),
        lambda found: f"{sorted(found)}",
    )
    if key is not None:
        call(
            "read generated key",
            lambda: kmip.get_secret(store.SecretType.SYMMETRIC, key),
            lambda found: (
                f"{len(base64.b64decode(found.secret))} bytes, {found.key_spec.alg} {found.key_spec.bit_length}"
            ),
        )
        call("delete generated key", lambda: kmip.delete_secret(key))
        call("read deleted key", lambda: kmip.get_secret(store.SecretType.SYMMETRIC, key))
    pair = call(
        "generate key pair",
        lambda: kmip.generate_asymmetric_key(store.KeySpec(store.KeyAlgorithm.RSA, 2048)),
        lambda found: f"{sorted(found.private_key_meta)} {sorted(found.public_key_meta)}",
    )
    if pair is not None:
        call(
            "read public key",
            lambda: kmip.get_secret(store.SecretType.PUBLIC, pair.public_key_meta),
            lambda found: base64.b64decode(found.secret)[:26].decode(),
        )
    for name, kind, value, spec in secrets():
        secret = store.SecretDTO(kind, base64.b64encode(value), spec, "application/octet-stream")
        stored = call(f"store {name}", lambda: kmip.store_secret(secret), lambda found: f"{sorted(found)}")  # noqa: B023
        if stored is None:
            continue
        call(
            f"read {name}",
            lambda: kmip.get_secret(kind, stored),  # noqa: B023
            lambda found: f"equal {base64.b64decode(found.secret) == value}",  # noqa: B023
        )
        call(f"delete {name}", lambda: kmip.delete_secret(stored))  # noqa: B023


main()
