"""Operations that encrypt and decrypt, all at once or, since 1.3, in parts (1.4 sections 4.29 and 4.30)."""

import os
from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, ObjectType, ResultReason, Tag
from kmip_lab.keymanager import attributes, keys
from kmip_lab.keymanager.call import Call, Done, identified, required
from kmip_lab.keymanager.ciphers import Stream, Way
from kmip_lab.keymanager.numbers import BlockCipherMode, CryptographicUsageMask, PaddingMethod, State
from kmip_lab.keymanager.objects import ManagedObject
from kmip_lab.keymanager.refusals import Refusal
from kmip_lab.keymanager.tree import Node

_ADDITIONAL_DATA: Final = 0x4200FE  # Authenticated Encryption Additional Data
_STREAMED_SINCE: Final = (1, 3)

#: The states in which a key may be used, by whether it encrypts (1.4 section 3.22).
_STATES: Final = {
    True: frozenset({State.ACTIVE}),
    False: frozenset({State.ACTIVE, State.DEACTIVATED, State.COMPROMISED}),
}


def encrypt(call: Call) -> Done:
    """Encrypt: without an IV, one is made here and given with the answer."""
    return _process(call, encrypts=True)


def decrypt(call: Call) -> Done:
    """Decrypt."""
    return _process(call, encrypts=False)


def _process(call: Call, *, encrypts: bool) -> Done:
    """One part or all of it. A stream is known to this key manager only; what can't be processed is its end."""
    found, data = call.living(), call.payload.octets(Tag.DATA)
    streams = call.version >= _STREAMED_SINCE
    correlation = call.payload.octets(Tag.CORRELATION_VALUE) if streams else None
    if correlation is None:
        required(data, "Data")
        stream, iv = _begin(call, found, encrypts=encrypts)
        is_last = not (streams and call.payload.flag(Tag.INIT_INDICATOR))
    else:
        stream, iv = call.local.streams.find(correlation, call.owner), b""
        if stream.encrypts != encrypts:
            raise Refusal(ResultReason.INVALID_CORRELATION_VALUE, "this stream is another operation's")
        call.local.streams.drop(correlation)  # to be kept anew below, with the value that the client has
        is_last = False
    is_last = is_last or call.payload.flag(Tag.FINAL_INDICATOR)
    output, tag = stream.update(data or b""), None
    if is_last:
        rest, tag = stream.finish(call.payload.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG))
        output += rest
    else:
        correlation = call.local.streams.add(call.owner, stream, correlation)
    items = [ttlv.octets(Tag.DATA, output)]
    if iv:
        items.append(ttlv.octets(Tag.IV_COUNTER_NONCE, iv))
    if not is_last and correlation is not None:
        items.append(ttlv.octets(Tag.CORRELATION_VALUE, correlation))
    if tag is not None:
        items.append(ttlv.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG, tag))
    return identified(found, *items)


def _begin(call: Call, found: ManagedObject, *, encrypts: bool) -> tuple[Stream, bytes]:
    """A new stream, and the IV where it was made here."""
    key, way = _key(found, encrypts=encrypts), _way(call, found)
    iv, made = call.payload.octets(Tag.IV_COUNTER_NONCE), b""
    if iv is None and encrypts:
        iv = made = os.urandom(way.iv_size())
    if iv is None:
        raise Refusal(ResultReason.MISSING_INITIALIZATION_VECTOR, "the IV is missing")
    return Stream.begin(way, key, iv, call.payload.octets(_ADDITIONAL_DATA) or b"", encrypts=encrypts), made


def _key(found: ManagedObject, *, encrypts: bool) -> bytes:
    key = keys.key_bytes(found.material or b"") if found.object_type == ObjectType.SYMMETRIC_KEY else None
    if key is None:
        raise Refusal(ResultReason.ILLEGAL_OPERATION, f"object {found.uid} is not a key that encrypts here")
    if found.state not in _STATES[encrypts]:
        raise Refusal(ResultReason.WRONG_KEY_LIFECYCLE_STATE, f"key {found.uid} is not active")
    needed = CryptographicUsageMask.ENCRYPT if encrypts else CryptographicUsageMask.DECRYPT
    if not (attributes.number_of(found.instance("Cryptographic Usage Mask")) or 0) & needed:
        raise Refusal(ResultReason.INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK, f"key {found.uid} is not for this")
    return key


def _way(call: Call, found: ManagedObject) -> Way:
    """By the request's Cryptographic Parameters, or the key's; CBC with PKCS5 padding where they don't say."""
    parameters = call.payload.structure(Tag.CRYPTOGRAPHIC_PARAMETERS)
    own = found.instance("Cryptographic Parameters")
    if parameters is None and own is not None:
        parameters = Node.of(attributes.encode(own, (2, 0)))
    if parameters is None:
        return Way()
    mode = parameters.number(Tag.BLOCK_CIPHER_MODE, ItemType.ENUMERATION)
    padding = parameters.number(Tag.PADDING_METHOD, ItemType.ENUMERATION)
    return Way(BlockCipherMode.CBC if mode is None else mode, PaddingMethod.PKCS5 if padding is None else padding)
