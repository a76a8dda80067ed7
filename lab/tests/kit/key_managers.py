"""Key managers in the test's own process, and PyKMIP's client for them."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from kmip.core.enums import KMIPVersion
from kmip.pie.client import ProxyKmipClient
from kmip_lab.keymanager import KeyManager

#: The fixture ``start``: starts a key manager of this name, with KeyManager's settings.
Start = Callable[..., Awaitable[KeyManager]]


def pykmip_client(certificates: Path, port: int, version: KMIPVersion = KMIPVersion.KMIP_1_2) -> ProxyKmipClient:
    """Return PyKMIP's client, not yet connected. It blocks: in async tests, use it in a thread."""
    return ProxyKmipClient(
        hostname="127.0.0.1",
        port=port,
        cert=str(certificates / "gateway-client.pem"),
        key=str(certificates / "gateway-client.key"),
        ca=str(certificates / "kms-ca.pem"),
        config_file=os.devnull,
        kmip_version=version,
    )
