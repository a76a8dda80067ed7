"""The configuration of a gateway before key managers, with a development set of certificates beside it."""

from collections.abc import Mapping
from typing import Final

from gateway.config import Address

_GATEWAY: Final = """
[[listeners]]
name = "kmip"
bind = "{listen}"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients-ca.pem"

[[identities]]
name = "clients"
match = {{ subject_cn = "{client}" }}
shared = {shared}
certificate = "gateway-client.pem"
private_key = "gateway-client.key"

[admin]
bind = "{admin}"

[log]
level = "error"
"""
_BACKEND: Final = """
[[backends]]
name = "{name}"
address = "{address}"
ca = "kms-ca.pem"
server_name = "localhost"
"""
#: A table that takes only masters of a cluster into service.
MASTERS_ONLY: Final = """
[health]
expect_text = "ServerType=master"
"""


def gateway_toml(
    listen: Address, admin: Address, backends: Mapping[str, Address], *, client: str = "*", more: str = ""
) -> str:
    """Return a configuration that is all default; ``more`` holds further tables.

    The paths are relative to the directory of the development set. One credential serves all clients with the common
    name ``client``; "*" is every client.
    """
    shared = "true" if client == "*" else "false"
    text = _GATEWAY.format(listen=listen, admin=admin, client=client, shared=shared) + more
    return text + "".join(_BACKEND.format(name=name, address=address) for name, address in backends.items())
