"""The messages of the comparison, one Get and its answer, and the TLS contexts of both ends.

The contexts do what any client and any key manager must, and no more: no callbacks into Python, so that load generator
and backends stay cheaper than what they measure.
"""

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from gateway.errors import ProtocolError
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request, Version
from gateway.kmip.spec import ObjectType, Operation, ResultStatus, Tag
from kmip_lab.tools.requests import get_key

_IDENTIFIER: Final = "1b4e28ba-2fa1-4ad2-883f-0016d3cca427"
_VERSION: Final[Version] = (1, 2)
_VERSIONS: Final = ((1, 4), (1, 3), (1, 2), (1, 1), (1, 0))
_NOW: Final = 1_700_000_000  # s; an answer that never changes is made once
_RELEASE_BUFFERS: Final = 0x10

#: KMIP 1.4 section 9.1.3.2: Raw, AES.
_RAW, _AES = 1, 3

HEADER: Final = 8  # bytes of a message's tag, type and length
#: The bytes by which a successful answer is known: the Result Status of its only item.
SUCCESS: Final = ttlv.enumeration(Tag.RESULT_STATUS, ResultStatus.SUCCESS)
#: The load of the comparison, 152 bytes.
REQUEST: Final = get_key(_IDENTIFIER, _VERSION)


def _key() -> bytes:
    """Return the payload of an answer to a Get: an AES-256 key, in the clear (1.4 sections 2.1.3 and 4.11)."""
    material = ttlv.structure(Tag.KEY_VALUE, ttlv.octets(Tag.KEY_MATERIAL, bytes(range(32))))
    block = ttlv.structure(
        Tag.KEY_BLOCK,
        ttlv.enumeration(Tag.KEY_FORMAT_TYPE, _RAW),
        material,
        ttlv.enumeration(Tag.CRYPTOGRAPHIC_ALGORITHM, _AES),
        ttlv.integer(Tag.CRYPTOGRAPHIC_LENGTH, 256),
    )
    return b"".join(
        (
            ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY),
            ttlv.text(Tag.UNIQUE_IDENTIFIER, _IDENTIFIER),
            ttlv.structure(Tag.SYMMETRIC_KEY, block),
        )
    )


def _success(version: Version, operation: int, payload: bytes) -> bytes:
    return compose.encode_response(
        version, [compose.Result(ResultStatus.SUCCESS, operation, payload=payload)], now=_NOW
    )


#: The answer to it, 312 bytes.
ANSWER: Final = _success(_VERSION, Operation.GET, _key())


#: A longer request is an attack's Encrypt, and is answered unread: its cost to a proxy must not be a cost to a backend.
_LONG: Final = 64 * 1024
_ENCRYPTED: Final = _success(_VERSION, Operation.ENCRYPT, b"")


def answer(frame: bytes) -> bytes:
    """Answer Get, Discover Versions and Query properly, and every other operation with an empty success."""
    if frame == REQUEST:
        return ANSWER
    if len(frame) > _LONG:
        return _ENCRYPTED
    try:
        request = decode_request(frame)
    except ProtocolError:
        return compose.failure(None, 4, "not understood")  # Invalid Message, 1.4 section 9.1.3.2.29
    return compose.encode_response(request.version, [_result(request, number) for number in range(len(request.items))])


def _result(request: Request, number: int) -> compose.Result:
    item = request.items[number]
    payload = _PAYLOADS.get(item.operation, b"")
    return compose.Result(ResultStatus.SUCCESS, item.operation, item.unique_batch_item_id, payload=payload)


_PAYLOADS: Final[dict[int, bytes]] = {
    Operation.GET: _key(),
    Operation.DISCOVER_VERSIONS: b"".join(
        ttlv.structure(
            Tag.PROTOCOL_VERSION,
            ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, major),
            ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, minor),
        )
        for major, minor in _VERSIONS
    ),
    Operation.QUERY: ttlv.text(Tag.VENDOR_IDENTIFICATION, "kmip-gateway comparison"),
}


def size(data: bytes | bytearray) -> int:
    """Return the size of the message at the beginning of ``data``; more than len(data) if its header is incomplete."""
    return HEADER + int.from_bytes(data[4:HEADER], "big") if len(data) >= HEADER else len(data) + 1


def server_context(certificate: Path, private_key: Path, client_ca: Path, *, resumes: bool = True) -> SSL.Context:
    """Return a context for the free backends: TLS 1.2 and 1.3, a client certificate required."""
    context = _context(certificate, private_key, client_ca)
    context.load_client_ca(str(client_ca).encode())
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.set_session_id(b"backend")
    context.set_session_cache_mode(SSL.SESS_CACHE_SERVER if resumes else SSL.SESS_CACHE_OFF)
    if not resumes:
        context.set_options(SSL.OP_NO_TICKET)
    return context


def client_context(certificate: Path, private_key: Path, ca: Path, *, is_tls_1_3: bool = True) -> SSL.Context:
    """Return a context for the load: one version of TLS, and P-256 alone, so that all do the same key exchange."""
    context = _context(certificate, private_key, ca)
    context.set_verify(SSL.VERIFY_PEER)
    context.set_max_proto_version(SSL.TLS1_3_VERSION if is_tls_1_3 else SSL.TLS1_2_VERSION)
    context.set_tmp_ecdh(ec.SECP256R1())
    # With OpenSSL's own cache a ticket of TLS 1.3 resumes once only, and the gateway issues none to a resumed session.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _context(certificate: Path, private_key: Path, ca: Path) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_IGNORE_UNEXPECTED_EOF)
    context.set_mode(_RELEASE_BUFFERS)
    context.use_certificate_chain_file(str(certificate).encode())
    context.use_privatekey_file(str(private_key).encode())
    context.load_verify_locations(str(ca).encode())
    return context
