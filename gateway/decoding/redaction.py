"""The values that may be a secret, and are shown with ``--secrets`` only.

Of bytes and big numbers, only those of the tags below are shown; of texts, all but passwords and those of unknown tags,
which may be anything.
"""

from typing import Final

from gateway.decoding.names import Names
from gateway.decoding.tree import TEXTS, Node
from gateway.kmip.spec import ItemType

_PUBLIC_BYTES: Final = frozenset(
    {
        "Asynchronous Correlation Value",
        "Certificate Request",
        "Certificate Value",
        "Correlation Value",
        "Digest Value",
        "Issuer Distinguished Name",
        "IV/Counter/Nonce",
        "MAC/Signature",
        "Modulus",
        "Nonce ID",
        "Public Exponent",
        "Q String",
        "Serial Number",
        "Signature Data",
        "Unique Batch Item ID",
        "X.509 Certificate Issuer",
        "X.509 Certificate Subject",
    }
)
_SECRET_TEXTS: Final = frozenset({"Hashed Password", "One Time Password", "Password", "Server Hashed Password"})


def is_secret(node: Node, names: Names) -> bool:
    """Return True if the value of an item may be a secret."""
    name = names.tag(node.tag)
    if node.type in {ItemType.BYTE_STRING, ItemType.BIG_INTEGER}:
        return node.length > 0 and name not in _PUBLIC_BYTES
    if node.type in TEXTS:
        return node.length > 0 and (name is None or name in _SECRET_TEXTS)
    return False
