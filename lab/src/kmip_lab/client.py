"""A small KMIP client for the demo, the measurements and the tests: it opens a session, asks, and reads the answer."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from OpenSSL import SSL

from gateway import tls
from gateway.config import Address
from gateway.errors import ProtocolError, StreamClosedError
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Response, Version
from gateway.kmip.spec import ItemType, ObjectType, Operation, Tag

_MAX_RESPONSE_SIZE = 16 << 20


class Client:
    """One session, as a client sees it."""

    def __init__(self, stream: tls.TlsStream) -> None:
        self.stream = stream
        self._reader = FrameReader(Tag.RESPONSE_MESSAGE, _MAX_RESPONSE_SIZE)

    async def ask(self, frame: bytes) -> Response:
        """Send a request and return the answer. Raises StreamClosedError where none comes."""
        await self.stream.send_all(frame)
        return await self.read_response()

    async def read_response(self) -> Response:
        """The next answer. Raises StreamClosedError where none comes."""
        while True:
            data = await self.stream.receive_some()
            if not data:
                raise StreamClosedError("closed without an answer")
            answer = self._reader.feed(data)
            if answer is not None:
                return decode_response(answer)


def client_context(certificate: Path, private_key: Path, ca: Path) -> SSL.Context:
    """A context for Client: as a client of the gateway, or of a key manager."""
    return tls.client_context(certificate, private_key, ca)


@asynccontextmanager
async def connect(address: Address, context: SSL.Context, *, server_name: str | None = None) -> AsyncIterator[Client]:
    """A handshaken session, for the length of a block. ``server_name`` is checked; by default, the address's host."""
    connected = trio.socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        await connected.connect((address.host, address.port))
    except BaseException:
        connected.close()
        raise
    name = server_name or address.host
    stream = tls.TlsStream(socket.socket(fileno=connected.detach()), context, server_side=False, server_name=name)
    try:
        await stream.handshake()
        tls.check_server(stream, name, frozenset())
        yield Client(stream)
    finally:
        stream.close_politely()


#: Cryptographic Usage Mask, 1.4 section 9.1.3.3.1.
SIGN, VERIFY, ENCRYPT, DECRYPT, WRAP_KEY = 0x1, 0x2, 0x4, 0x8, 0x10
_RSA, _ECDSA = 4, 6  # Cryptographic Algorithm
_NIST_KEY_WRAP = 0x0D  # Block Cipher Mode


def create_key(version: Version = (1, 2), *, contact: str = "", usage: int = ENCRYPT | DECRYPT) -> bytes:
    """A Create of an AES-256 key, in 1.x; ``contact`` is its Contact Information, ``usage`` its usage mask."""
    attributes = [
        _attribute("Cryptographic Algorithm", ttlv.enumeration(Tag.ATTRIBUTE_VALUE, 3)),
        _attribute("Cryptographic Length", ttlv.integer(Tag.ATTRIBUTE_VALUE, 256)),
        _attribute("Cryptographic Usage Mask", ttlv.integer(Tag.ATTRIBUTE_VALUE, usage)),
    ]
    if contact:
        attributes.append(_attribute("Contact Information", ttlv.text(Tag.ATTRIBUTE_VALUE, contact)))
    payload = ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY) + ttlv.structure(
        Tag.TEMPLATE_ATTRIBUTE, *attributes
    )
    return compose.encode_request(version, [compose.Ask(Operation.CREATE, payload)])


def get_key(unique_identifier: str, version: Version = (1, 2)) -> bytes:
    """A Get."""
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, unique_identifier)
    return compose.encode_request(version, [compose.Ask(Operation.GET, payload)])


def wrap_key(unique_identifier: str, wrapping_key: str, version: Version = (1, 2)) -> bytes:
    """A Get of a key wrapped with NIST AES key wrap (RFC 3394) under an active key that may wrap."""
    parameters = ttlv.structure(Tag.CRYPTOGRAPHIC_PARAMETERS, ttlv.enumeration(Tag.BLOCK_CIPHER_MODE, _NIST_KEY_WRAP))
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, unique_identifier) + ttlv.structure(
        Tag.KEY_WRAPPING_SPECIFICATION,
        ttlv.enumeration(Tag.WRAPPING_METHOD, 1),
        ttlv.structure(Tag.ENCRYPTION_KEY_INFORMATION, ttlv.text(Tag.UNIQUE_IDENTIFIER, wrapping_key), parameters),
        ttlv.enumeration(Tag.ENCODING_OPTION, 1),
    )
    return compose.encode_request(version, [compose.Ask(Operation.GET, payload)])


def create_rsa_pair(version: Version = (1, 2)) -> bytes:
    """A Create Key Pair of RSA-2048, in 1.x."""
    return _create_pair(version, _RSA, 2048)


def create_ecdsa_pair(version: Version = (1, 2)) -> bytes:
    """A Create Key Pair of ECDSA on the curve P-256, in 1.x."""
    return _create_pair(version, _ECDSA, 256)


def _create_pair(version: Version, algorithm: int, length: int) -> bytes:
    common = (
        _attribute("Cryptographic Algorithm", ttlv.enumeration(Tag.ATTRIBUTE_VALUE, algorithm)),
        _attribute("Cryptographic Length", ttlv.integer(Tag.ATTRIBUTE_VALUE, length)),
    )
    payload = ttlv.structure(Tag.COMMON_TEMPLATE_ATTRIBUTE, *common)
    for tag, usage in ((Tag.PRIVATE_KEY_TEMPLATE_ATTRIBUTE, SIGN), (Tag.PUBLIC_KEY_TEMPLATE_ATTRIBUTE, VERIFY)):
        mask = _attribute("Cryptographic Usage Mask", ttlv.integer(Tag.ATTRIBUTE_VALUE, usage))
        payload += ttlv.structure(tag, mask)
    return compose.encode_request(version, [compose.Ask(Operation.CREATE_KEY_PAIR, payload)])


def activate(unique_identifier: str, version: Version = (1, 2)) -> bytes:
    """An Activate."""
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, unique_identifier)
    return compose.encode_request(version, [compose.Ask(Operation.ACTIVATE, payload)])


def key_value(response: Response) -> bytes:
    """The key material in the answer to a Get of a symmetric key. Raises ProtocolError where there is none."""
    span = response.items[0].fields.get(Tag.RESPONSE_PAYLOAD, (0, 0))
    item = ttlv.Item(Tag.RESPONSE_PAYLOAD, ItemType.STRUCTURE, *span)
    for tag in (Tag.SYMMETRIC_KEY, Tag.KEY_BLOCK, Tag.KEY_VALUE, Tag.KEY_MATERIAL):
        found = ttlv.find(response.frame, item.start, item.end, tag)
        if found is None:
            raise ProtocolError(f"there is no {tag.name} in the answer")
        item = found
    return ttlv.read_bytes(response.frame, item)


def _attribute(name: str, value: bytes) -> bytes:
    return ttlv.structure(Tag.ATTRIBUTE, ttlv.text(Tag.ATTRIBUTE_NAME, name), value)
