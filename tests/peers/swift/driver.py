"""Start Swift's KMIP keymaster as its proxy server does: HOST PORT CA CERTIFICATE KEY. Print a line for each result."""

import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kmip.core import enums
from kmip.pie.client import ProxyKmipClient
from swift.common.middleware.crypto import kmip_keymaster

HOST, PORT, CA, CERTIFICATE, KEY = sys.argv[1:]


def keymaster(keys: Mapping[str, str], active: str | None = None) -> kmip_keymaster.KmipKeyMaster:
    """Return the middleware of a configuration with these keys; each is an option and an identifier."""
    lines = ["[kmip_keymaster]", f"host = {HOST}", f"port = {PORT}", f"ca_certs = {CA}"]
    lines += [f"certfile = {CERTIFICATE}", f"keyfile = {KEY}", *(f"{name} = {value}" for name, value in keys.items())]
    lines += [f"active_root_secret_id = {active}"] if active else []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "keymaster.conf"
        path.write_text("\n".join(lines))
        settings = {"keymaster_config_path": str(path), "__file__": str(path), "__name__": "kmip_keymaster"}
        return kmip_keymaster.KmipKeyMaster(None, settings)


def main() -> None:
    """Make keys, and start the keymaster with them, in ways that work and in ways that don't."""
    logging.disable(logging.CRITICAL)
    files = {"ca": CA, "cert": CERTIFICATE, "key": KEY}
    with ProxyKmipClient(hostname=HOST, port=int(PORT), config_file=os.devnull, **files) as client:
        first, second = (client.create(enums.CryptographicAlgorithm.AES, 256) for _ in range(2))
        short = client.create(enums.CryptographicAlgorithm.AES, 128)
        values = [client.get(uid).value for uid in (first, second)]

    for topic, keys, active in (
        ("one root secret", {"key_id": first}, None),
        ("two root secrets", {"key_id": first, "key_id_new": second}, "new"),
        ("one key twice", {"key_id": first, "key_id_new": first}, None),
    ):
        for attempt in range(3):
            found = keymaster(keys, active).root_secret if active is None else keymaster(keys, active)._root_secrets
            right = found == values[0] if active is None else list(found.values()) == values
            print(f"{topic}, start {attempt + 1}: {'the right secrets' if right else 'WRONG SECRETS'}")
    for topic, keys in (("missing key", {"key_id": "no-such-object"}), ("short key", {"key_id": short})):
        try:
            keymaster(keys)
        except Exception as error:  # noqa: BLE001 - every error of the peer is a result
            print(f"{topic}: error: {type(error).__name__}: {str(error).replace(f'key {short} ', 'key SHORT ')}")
        else:
            print(f"{topic}: no error")


main()
