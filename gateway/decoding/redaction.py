"""The values that may be a secret, and are shown with ``--secrets`` only.

Of bytes and big numbers, only those of the tags below are shown. Of texts, all are shown but those of unknown tags and
of custom attributes, which may be anything. A value of a tag that is made for secrets is never shown, whatever its
type: a program that writes a key as a text is one of those that are looked at.
"""

from typing import Final

from gateway.decoding.names import Names
from gateway.decoding.tree import TEXTS, Node
from gateway.kmip.spec import ItemType, Tag

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
#: Tags whose values are keys, parts of keys, passwords or a client's data, and structures around them.
_SECRET: Final = frozenset(
    {
        "Attestation Assertion",
        "Attestation Measurement",
        "Authenticated Encryption Tag",
        "AuthenticatedEncryption Additional Data",
        "Authentication",
        "CRT Coefficient",
        "Credential",
        "Credential Value",
        "D",
        "Data",
        "Derivation Data",
        "Digested Data",
        "G",
        "Hashed Password",
        "Initialization Vector",
        "J",
        "Key",
        "Key Block",
        "Key Material",
        "Key Value",
        "MAC Data",
        "Message Extension",
        "Nonce",
        "Nonce Value",
        "One Time Password",
        "Opaque Data Value",
        "Opaque Object",
        "P",
        "P Source",
        "PGP Key",
        "PKCS#11 Input Parameters",
        "PKCS#11 Output Parameters",
        "Password",
        "Prime Exponent P",
        "Prime Exponent Q",
        "Private Exponent",
        "Private Key",
        "Q",
        "Salt",
        "Secret Data",
        "Server Hashed Password",
        "Split Key",
        "Symmetric Key",
        "Ticket",
        "Ticket Value",
        "Vendor Extension",
        "X",
        "Y",
    }
)


def is_secret(node: Node, names: Names, attribute: str | None = None) -> bool:
    """Return True if the value of an item may be a secret.

    ``attribute`` is the name of the attribute that an Attribute Value belongs to; None if that is not known.
    """
    if node.is_structure or not node.length:
        return False
    name = names.tag(node.tag)
    if name in _SECRET:
        return True
    if node.type in {ItemType.BYTE_STRING, ItemType.BIG_INTEGER}:
        return name not in _PUBLIC_BYTES
    if node.type in TEXTS:
        return name is None or (node.tag == Tag.ATTRIBUTE_VALUE and not names.has_tag(attribute or ""))
    return False
