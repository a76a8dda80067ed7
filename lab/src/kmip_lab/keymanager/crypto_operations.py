"""Encrypt and Decrypt, all data at once or, since 1.3, in parts (1.4 sections 4.29 and 4.30)."""

import os
from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, ObjectType, ResultReason, Tag
from kmip_lab.keymanager import attributes, crypto
from kmip_lab.keymanager.attributes import ManagedObject
from kmip_lab.keymanager.context import OperationContext, Success, required, success_for
from kmip_lab.keymanager.crypto import CipherParameters, CipherStream
from kmip_lab.keymanager.protocol import (
    BlockCipherMode,
    CryptographicUsageMask,
    Node,
    ObjectState,
    OperationFailed,
    PaddingMethod,
)

_ADDITIONAL_DATA: Final = 0x4200FE  # Authenticated Encryption Additional Data
_STREAMS_SINCE: Final = (1, 3)

#: The states in which a key may encrypt (True) or decrypt (False), 1.4 section 3.22.
_STATES: Final = {
    True: frozenset({ObjectState.ACTIVE}),
    False: frozenset({ObjectState.ACTIVE, ObjectState.DEACTIVATED, ObjectState.COMPROMISED}),
}


def encrypt(context: OperationContext) -> Success:
    """Encrypt. If the client gives no IV, the key manager makes one and returns it."""
    return _process(context, encrypts=True)


def decrypt(context: OperationContext) -> Success:
    """Decrypt. The client must give the IV."""
    return _process(context, encrypts=False)


def _process(context: OperationContext, *, encrypts: bool) -> Success:
    """Process all data or one part of a stream. A part that can't be processed ends its stream."""
    found, data = context.living_object(), context.payload.octets(Tag.DATA)
    streams = context.version >= _STREAMS_SINCE
    correlation = context.payload.octets(Tag.CORRELATION_VALUE) if streams else None
    if correlation is None:
        required(data, "Data")
        stream, iv = _begin(context, found, encrypts=encrypts)
        is_last = not (streams and context.payload.flag(Tag.INIT_INDICATOR))
    else:
        stream, iv = context.state.streams.find(correlation, context.owner), b""
        if stream.encrypts != encrypts:
            raise OperationFailed(
                ResultReason.INVALID_CORRELATION_VALUE,
                "the correlation value is that of a different operation's stream",
            )
        context.state.streams.drop(correlation)  # added again below, under the same value, if this part succeeds
        is_last = False
    is_last = is_last or context.payload.flag(Tag.FINAL_INDICATOR)
    output, tag = stream.update(data or b""), None
    if is_last:
        rest, tag = stream.finish(context.payload.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG))
        output += rest
    else:
        correlation = context.state.streams.add(context.owner, stream, correlation)
    items = [ttlv.octets(Tag.DATA, output)]
    if iv:
        items.append(ttlv.octets(Tag.IV_COUNTER_NONCE, iv))
    if not is_last and correlation is not None:
        items.append(ttlv.octets(Tag.CORRELATION_VALUE, correlation))
    if tag is not None:
        items.append(ttlv.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG, tag))
    return success_for(found, *items)


def _begin(context: OperationContext, found: ManagedObject, *, encrypts: bool) -> tuple[CipherStream, bytes]:
    """Return a new stream, and the IV if the key manager made it (otherwise no bytes)."""
    key, parameters = _key(found, encrypts=encrypts), _cipher_parameters(context, found)
    iv, made = context.payload.octets(Tag.IV_COUNTER_NONCE), b""
    if iv is None and encrypts:
        iv = made = os.urandom(parameters.iv_size())
    if iv is None:
        raise OperationFailed(ResultReason.MISSING_INITIALIZATION_VECTOR, "the IV is missing")
    additional = context.payload.octets(_ADDITIONAL_DATA) or b""
    return CipherStream.begin(parameters, key, iv, additional, encrypts=encrypts), made


def _key(found: ManagedObject, *, encrypts: bool) -> bytes:
    key = crypto.key_bytes(found.material or b"") if found.object_type == ObjectType.SYMMETRIC_KEY else None
    if key is None:
        raise OperationFailed(ResultReason.ILLEGAL_OPERATION, f"object {found.uid} is not a symmetric key")
    if found.state not in _STATES[encrypts]:
        raise OperationFailed(ResultReason.WRONG_KEY_LIFECYCLE_STATE, f"key {found.uid} is not active")
    needed = CryptographicUsageMask.ENCRYPT if encrypts else CryptographicUsageMask.DECRYPT
    if not (attributes.number_of(found.instance("Cryptographic Usage Mask")) or 0) & needed:
        raise OperationFailed(
            ResultReason.INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK,
            f"the Cryptographic Usage Mask of key {found.uid} does not allow this operation",
        )
    return key


def _cipher_parameters(context: OperationContext, found: ManagedObject) -> CipherParameters:
    """Return the request's Cryptographic Parameters, or else the key's; the default is CBC with PKCS5 padding."""
    parameters = context.payload.structure(Tag.CRYPTOGRAPHIC_PARAMETERS)
    own = found.instance("Cryptographic Parameters")
    if parameters is None and own is not None:
        parameters = Node.of(attributes.encode(own, (2, 0)))
    if parameters is None:
        return CipherParameters()
    mode = parameters.number(Tag.BLOCK_CIPHER_MODE, ItemType.ENUMERATION)
    padding = parameters.number(Tag.PADDING_METHOD, ItemType.ENUMERATION)
    return CipherParameters(
        BlockCipherMode.CBC if mode is None else mode, PaddingMethod.PKCS5 if padding is None else padding
    )
